//! Validates and tokenizes requests, off the threads that serve connections.

use std::time::{Duration, Instant};

use gridwork_engine::{
    CacheNamespace, GenerationRequest, Limits, LogprobOptions, Priority, ReservedPermit,
    SamplingParameters, StopConditions,
};
use tracing::Span;

use crate::error::{ApiError, Dialect};
use crate::generation::bounds::{ValidationLimits, check};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::generation::token_runs;
use crate::generation::values::MODEL_MAXIMUM;
use crate::observability::metrics;
use crate::tokenizing::text_encoder::{TextEncoder, TokenizedText};
use crate::tokenizing::vocabulary::Vocabulary;
use crate::tokenizing::workers::Workers;

/// Validates requests; cheap to clone.
#[derive(Clone)]
pub struct Validator {
    encoder: TextEncoder,
    limits: ValidationLimits,
    workers: Workers,
}

/// A request that the engine accepts.
#[derive(Debug, Clone)]
pub struct Valid {
    pub request: GenerationRequest,
    /// Seed to report; `None` when the generation is greedy.
    pub seed: Option<u64>,
    pub validation_time: Duration,
}

impl Valid {
    /// Token ids of the prompt.
    pub fn prompt_ids(&self) -> &[u32] {
        &self.request.token_ids
    }

    /// Repeats the request `count` times. All but the first have other seeds and no reserved permit.
    pub fn repeat(mut self, count: usize) -> Vec<Valid> {
        let permit = std::mem::take(&mut self.request.permit);
        let first_seed = self.seed;
        let mut copies = vec![self; count];
        for (i, copy) in copies.iter_mut().enumerate() {
            // Further seeds follow from the first, which may be the client's own.
            if let Some(seed) = first_seed {
                let seed = seed.wrapping_add(i as u64);
                copy.seed = Some(seed);
                copy.request.sampling.seed = seed;
            }
        }
        if let Some(first) = copies.first_mut() {
            first.request.permit = permit;
        }
        copies
    }
}

impl Validator {
    pub fn new(encoder: TextEncoder, limits: ValidationLimits, workers: Workers) -> Self {
        Validator {
            encoder,
            limits,
            workers,
        }
    }

    /// Maximum number of tokens of a prompt.
    pub fn max_input_tokens(&self, engine: &Limits) -> usize {
        self.limits.max_input_tokens(engine)
    }

    /// Checks `parameters`, tokenizes `prompt`, and checks the lengths. Errors name the fields as in `names`.
    pub async fn validate(
        &self,
        prompt: Prompt,
        mut parameters: Parameters,
        names: &FieldNames,
        engine: &Limits,
        vocabulary: Vocabulary,
        span: Span,
    ) -> Result<Valid, ApiError> {
        let started = Instant::now();
        check(&parameters, &self.limits, names, vocabulary.outputs)?;
        if parameters.truncate.is_none() {
            self.check_bytes(&prompt, names, engine)?;
        }
        let bad_words = parameters.bad_words.take().unwrap_or_default();
        let prompt_ids = self.tokenize(prompt, names).await?;
        let mut valid = fit(prompt_ids, parameters, names, &self.limits, engine, span)?;
        for word in bad_words {
            self.forbid(&word, &mut valid.request.sampling).await?;
        }
        let needs_logits = valid.request.logprobs.prompt;
        let text = |id| self.encoder.token_text(id);
        vocabulary.check_prompt(names.prompt, valid.prompt_ids(), needs_logits, text)?;
        metrics::request_validation().record(started.elapsed().as_secs_f64());
        metrics::request_input_tokens().record(valid.prompt_ids().len() as f64);
        metrics::request_max_new_tokens().record(f64::from(valid.request.max_new_tokens));
        Ok(Valid {
            validation_time: started.elapsed(),
            ..valid
        })
    }

    /// Refuses a text that has too many bytes to fit, before it is tokenized.
    fn check_bytes(
        &self,
        prompt: &Prompt,
        names: &FieldNames,
        engine: &Limits,
    ) -> Result<(), ApiError> {
        let (Prompt::Text { text, .. }, Some(bytes_per_token)) =
            (prompt, self.encoder.max_bytes_per_token())
        else {
            return Ok(());
        };
        let (field, limit) = (names.prompt, self.limits.max_input_tokens(engine));
        let fewest_tokens = text.len().div_ceil(bytes_per_token);
        if fewest_tokens <= limit {
            return Ok(());
        }
        Err(ApiError::too_long(
            field,
            engine.max_total_tokens as usize,
            format!("`{field}` must have at most {limit} tokens. Given: at least {fewest_tokens}"),
        )
        .with_prompt_tokens(fewest_tokens))
    }

    async fn tokenize(&self, prompt: Prompt, names: &FieldNames) -> Result<Vec<u32>, ApiError> {
        match prompt {
            Prompt::Tokens(ids) => Ok(ids),
            Prompt::Text { text, .. } if text.is_empty() => Ok(Vec::new()),
            Prompt::Text {
                text,
                add_special_tokens,
            } => {
                let encoded = self.encode(text, add_special_tokens, names.prompt).await?;
                Ok(encoded.ids)
            }
        }
    }

    /// Forbids the tokens that spell a word.
    async fn forbid(&self, word: &str, sampling: &mut SamplingParameters) -> Result<(), ApiError> {
        let mut before = Vec::new();
        for text in token_runs::spellings(word) {
            let run = self.encode(text, false, "bad_words").await?.ids;
            if run != before {
                token_runs::add(sampling, &run, token_runs::NEVER);
            }
            before = run;
        }
        Ok(())
    }

    /// Tokenizes a text on a worker thread. The number of texts at a time is limited.
    pub async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
        field: &str,
    ) -> Result<TokenizedText, ApiError> {
        let permit = self.workers.permit(text.len()).await?;
        self.encoder
            .encode(text, add_special_tokens, field, permit)
            .await
    }
}

fn fit(
    mut prompt_ids: Vec<u32>,
    mut parameters: Parameters,
    names: &FieldNames,
    limits: &ValidationLimits,
    engine: &Limits,
    span: Span,
) -> Result<Valid, ApiError> {
    let field = names.prompt;
    let max_total_tokens = engine.max_total_tokens as usize;
    let max_input_tokens = limits.max_input_tokens(engine);
    if prompt_ids.is_empty() {
        return Err(ApiError::validation(
            field,
            format!("`{field}` cannot be empty"),
        ));
    }
    if let Some(truncate) = parameters.truncate {
        let truncate = match truncate {
            MODEL_MAXIMUM => max_input_tokens,
            tokens => tokens,
        };
        if truncate == 0 || truncate > max_input_tokens {
            let field = names.truncate();
            return Err(ApiError::validation(
                field,
                format!(
                    "`{field}` must be strictly positive and at most {max_input_tokens}. Given: {truncate}"
                ),
            ));
        }
        prompt_ids.drain(..prompt_ids.len().saturating_sub(truncate));
    }
    let prompt_tokens = prompt_ids.len();
    if prompt_tokens > max_input_tokens {
        return Err(ApiError::too_long(
            field,
            max_total_tokens,
            format!(
                "`{field}` must have at most {max_input_tokens} tokens. Given: {prompt_tokens}"
            ),
        )
        .with_prompt_tokens(prompt_tokens));
    }
    let left = max_total_tokens - prompt_tokens;
    let max_new_tokens = match (parameters.max_new_tokens, parameters.default_max_new_tokens) {
        (Some(tokens), _) if parameters.clamps_max_new_tokens => left.min(tokens as usize),
        (Some(tokens), _) => tokens as usize,
        (None, Some(tokens)) => left.min(tokens as usize),
        (None, None) => left,
    };
    if max_new_tokens > left {
        let new = names.max_new_tokens;
        return Err(ApiError::too_long(
            new,
            max_total_tokens,
            format!(
                "`{field}` tokens + `{new}` must be <= {max_total_tokens}. Given: {prompt_tokens} `{field}` tokens and {max_new_tokens} `{new}`"
            ),
        ));
    }
    let shortest = parameters
        .default_min_length
        .saturating_sub(prompt_tokens as u32)
        .max(parameters.default_min_new_tokens)
        .min(max_new_tokens as u32);
    let min_new_tokens = *parameters.min_new_tokens.get_or_insert(shortest);
    check_min_new_tokens(min_new_tokens, max_new_tokens, names)?;
    if parameters.stop.is_none() && !parameters.default_stop.is_empty() {
        parameters.stop = Some(std::mem::take(&mut parameters.default_stop));
    }
    let is_random = parameters.is_random();
    let seed = parameters.seed.unwrap_or_else(rand::random);
    let biases = parameters.logit_bias.take().unwrap_or_default();
    let (logit_bias_tokens, logit_bias_values) = biases.into_iter().unzip();
    let top_n_tokens = parameters.top_n_tokens.unwrap_or(0);
    let mut request = GenerationRequest {
        token_ids: prompt_ids,
        max_new_tokens: max_new_tokens as u32,
        sampling: SamplingParameters {
            greedy: !is_random,
            seed,
            logit_bias_tokens,
            logit_bias_values,
            ..SamplingParameters::default()
        },
        stop: StopConditions::default(),
        grammar: None,
        logprobs: LogprobOptions {
            sampled: parameters.logprobs || top_n_tokens > 0,
            top_n: top_n_tokens,
            prompt: parameters.prompt_logprobs,
            prompt_top_n: parameters.prompt_top_n,
        },
        priority: Priority::Normal,
        namespace: CacheNamespace {
            salt: parameters.cache_salt.take(),
            ..CacheNamespace::default()
        },
        skip_special_tokens: true,
        shown_special_tokens: std::sync::Arc::clone(&parameters.shown_special_tokens),
        queue_timeout: None,
        tenant: None,
        permit: ReservedPermit::default(),
        request_id: "".into(),
        records_content: false,
        span,
    };
    let sampling = &mut request.sampling;
    let forbidden = parameters.bad_words_ids.take().unwrap_or_default();
    for run in &forbidden {
        token_runs::add(sampling, run, token_runs::NEVER);
    }
    for token in parameters.suppress_tokens.take().unwrap_or_default() {
        token_runs::add(sampling, &[token], token_runs::NEVER);
    }
    for (run, bias) in parameters.sequence_bias.take().unwrap_or_default() {
        token_runs::add(sampling, &run, bias);
    }
    if let Some(watermark) = parameters.watermark {
        watermark.write(limits.watermark, sampling);
    }
    parameters.write(&mut request);
    if request.sampling.temperature == 0.0 {
        // Such a request is greedy, but the shard divides by the temperature.
        request.sampling.temperature = 1.0;
    }
    Ok(Valid {
        request,
        seed: is_random.then_some(seed),
        validation_time: Duration::ZERO,
    })
}

/// Refuses a minimum number of generated tokens above the maximum.
pub fn check_min_new_tokens(
    min_new_tokens: u32,
    max_new_tokens: usize,
    names: &FieldNames,
) -> Result<(), ApiError> {
    if min_new_tokens as usize <= max_new_tokens {
        return Ok(());
    }
    let max = names.max_new_tokens;
    let min = match names.dialect {
        Dialect::OpenAi | Dialect::Anthropic => "min_tokens",
        Dialect::Tgi | Dialect::Tei => "min_new_tokens",
    };
    Err(ApiError::validation(
        min,
        format!(
            "`{min}` must be at most `{max}`, which is {max_new_tokens}. Given: {min_new_tokens}"
        ),
    ))
}

#[cfg(test)]
#[path = "validation_tests.rs"]
mod tests;
