//! Checks a request against every bound and tokenizes it, off the threads that serve connections.

use std::time::{Duration, Instant};

use gridwork_engine::{
    CacheNamespace, GenerationRequest, Limits, LogprobOptions, Priority, ReservedPermit,
    StopConditions,
};
use tracing::Span;

use crate::error::ApiError;
use crate::generation::bounds::{Checked, check};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::tokenizing::text_encoder::{Encoded, TextEncoder};
use crate::tokenizing::vocabulary::Vocabulary;
use crate::tokenizing::workers::Workers;

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct ValidationLimits {
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// `None`: whatever leaves room for one generated token.
    pub max_input_tokens: Option<u32>,
}

impl ValidationLimits {
    /// Longest prompt, tokens: at least one is generated.
    fn max_input_tokens(&self, engine: &Limits) -> usize {
        let most = engine.max_total_tokens as usize - 1;
        self.max_input_tokens
            .map_or(most, |limit| most.min(limit as usize))
    }
}

/// Validates requests; cheap to clone.
#[derive(Clone)]
pub struct Validator {
    encoder: TextEncoder,
    limits: ValidationLimits,
    workers: Workers,
}

/// A request that the engine can be given.
#[derive(Debug, Clone)]
pub struct Valid {
    pub request: GenerationRequest,
    pub prompt_tokens: usize,
    /// `None` when nothing is random.
    pub seed: Option<u64>,
    pub prompt_ids: Vec<u32>,
    pub validation_time: Duration,
}

impl Valid {
    /// The same request `count` times; from the second on with random seeds and places of their own.
    pub fn repeat(&mut self, count: usize) -> Vec<Valid> {
        (0..count)
            .map(|i| {
                let mut copy = self.clone();
                if i == 0 {
                    copy.request.permit = std::mem::take(&mut self.request.permit);
                } else if copy.seed.is_some() {
                    // With a seed of the client's own, the further ones follow from it.
                    let seed = self.request.sampling.seed.wrapping_add(i as u64);
                    copy.seed = Some(seed);
                    copy.request.sampling.seed = seed;
                }
                copy
            })
            .collect()
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

    /// Checks `parameters`, tokenizes `prompt`, and checks the lengths. Errors name the field as `names` has it.
    pub async fn validate(
        &self,
        prompt: Prompt,
        parameters: Parameters,
        names: &FieldNames,
        engine: &Limits,
        vocabulary: Vocabulary,
        span: Span,
    ) -> Result<Valid, ApiError> {
        let started = Instant::now();
        let checked = check(&parameters, &self.limits, names, vocabulary.outputs)?;
        if parameters.truncate.is_none() {
            self.check_bytes(&prompt, names, engine)?;
        }
        let prompt_ids = self.tokenize(prompt, names).await?;
        let valid = fit(
            prompt_ids,
            parameters,
            checked,
            names,
            &self.limits,
            engine,
            span,
        )?;
        let needs_logits = valid.request.logprobs.prompt;
        let text = |id| self.encoder.token_text(id);
        vocabulary.check_prompt(names.prompt, &valid.prompt_ids, needs_logits, text)?;
        metrics::histogram!("gridwork_request_validation_seconds")
            .record(started.elapsed().as_secs_f64());
        metrics::histogram!("gridwork_request_input_tokens").record(valid.prompt_tokens as f64);
        metrics::histogram!("gridwork_request_max_new_tokens")
            .record(f64::from(valid.request.max_new_tokens));
        Ok(Valid {
            validation_time: started.elapsed(),
            ..valid
        })
    }

    /// Refuses a text that has too many bytes to fit, whatever its tokens are: before it costs anything.
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
        ))
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

    /// Tokenizes a bounded number of texts at once, off the threads that serve connections.
    pub async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
        field: &str,
    ) -> Result<Encoded, ApiError> {
        let permit = self.workers.permit(text.len()).await?;
        self.encoder
            .encode(text, add_special_tokens, field, permit)
            .await
    }
}

fn fit(
    mut prompt_ids: Vec<u32>,
    parameters: Parameters,
    checked: Checked,
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
        if truncate == 0 || truncate > max_input_tokens {
            return Err(ApiError::validation(
                "truncate",
                format!(
                    "`truncate` must be strictly positive and at most {max_input_tokens}. Given: {truncate}"
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
        ));
    }
    let left = max_total_tokens - prompt_tokens;
    let max_new_tokens = match (parameters.max_new_tokens, parameters.default_max_new_tokens) {
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
    let seed = checked.is_random.then_some(checked.sampling.seed);
    let request = GenerationRequest {
        token_ids: prompt_ids.clone(),
        max_new_tokens: max_new_tokens as u32,
        sampling: checked.sampling,
        stop: StopConditions {
            ignore_eos: parameters.ignore_eos,
            strings: parameters.stop,
            token_ids: parameters.stop_token_ids,
            include_in_output: parameters.include_stop,
        },
        logprobs: LogprobOptions {
            sampled: parameters.logprobs || parameters.top_n_tokens > 0,
            top_n: parameters.top_n_tokens,
            prompt: parameters.prompt_logprobs,
            prompt_top_n: parameters.prompt_top_n,
        },
        priority: Priority::Normal,
        namespace: CacheNamespace {
            salt: parameters.cache_salt,
            ..CacheNamespace::default()
        },
        skip_special_tokens: parameters.skip_special_tokens,
        queue_timeout: None,
        permit: ReservedPermit::default(),
        span,
    };
    Ok(Valid {
        request,
        prompt_tokens,
        seed,
        prompt_ids,
        validation_time: Duration::ZERO,
    })
}

#[cfg(test)]
#[path = "validation_tests.rs"]
mod tests;
