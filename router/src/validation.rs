//! Checks a request against every bound and tokenizes it, off the threads that serve connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_engine::{
    GenerationRequest, Limits, LogprobOptions, Priority, SamplingParameters, StopConditions,
};
use tokenizers::Tokenizer;
use tokio::sync::Semaphore;
use tracing::Span;

use crate::error::{ApiError, ErrorKind};
use crate::parameters::{FieldNames, Parameters, Prompt};

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct ValidationLimits {
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// `None`: whatever leaves room for one generated token.
    pub max_input_tokens: Option<u32>,
}

/// Validates requests; cheap to clone.
#[derive(Clone)]
pub struct Validator {
    tokenizer: Arc<Tokenizer>,
    limits: ValidationLimits,
    workers: Arc<Semaphore>,
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
    /// The same request `count` times; from the second on with random seeds of their own.
    pub fn repeat(&self, count: usize) -> Vec<Valid> {
        (0..count)
            .map(|i| {
                let mut copy = self.clone();
                if i > 0 && copy.seed.is_some() {
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
    /// `workers`: how many requests are tokenized at once.
    pub fn new(tokenizer: Arc<Tokenizer>, limits: ValidationLimits, workers: usize) -> Self {
        Validator {
            tokenizer,
            limits,
            workers: Arc::new(Semaphore::new(workers.max(1))),
        }
    }

    /// Checks `parameters`, tokenizes `prompt`, and checks the lengths. Errors name the field as `names` has it.
    pub async fn validate(
        &self,
        prompt: Prompt,
        parameters: Parameters,
        names: &FieldNames,
        engine: &Limits,
        vocab_size: u32,
        span: Span,
    ) -> Result<Valid, ApiError> {
        let started = Instant::now();
        let checked = check(&parameters, &self.limits, names, vocab_size)?;
        let prompt_ids = self.tokenize(prompt, names, vocab_size).await?;
        let valid = fit(
            prompt_ids,
            parameters,
            checked,
            names,
            &self.limits,
            engine,
            span,
        )?;
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

    async fn tokenize(
        &self,
        prompt: Prompt,
        names: &FieldNames,
        vocab_size: u32,
    ) -> Result<Vec<u32>, ApiError> {
        match prompt {
            Prompt::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|id| **id >= vocab_size) {
                    return Err(ApiError::validation(
                        names.prompt,
                        format!(
                            "`{}` has the token id {id}, but the vocabulary ends at {}",
                            names.prompt,
                            vocab_size - 1
                        ),
                    ));
                }
                Ok(ids)
            }
            Prompt::Text { text, .. } if text.is_empty() => Ok(Vec::new()),
            Prompt::Text {
                text,
                add_special_tokens,
            } => {
                let encoding = self.encode(text, add_special_tokens, names.prompt).await?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// Tokenizes on the blocking pool, a bounded number of texts at once.
    pub async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
        field: &str,
    ) -> Result<tokenizers::Encoding, ApiError> {
        let internal = |message: String| ApiError::new(ErrorKind::Internal, message);
        let permit = self
            .workers
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| internal(error.to_string()))?;
        let tokenizer = self.tokenizer.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            tokenizer.encode(text, add_special_tokens)
        })
        .await
        .map_err(|error| internal(format!("tokenizing failed: {error}")))?;
        encoded.map_err(|error| {
            ApiError::validation(field, format!("`{field}` cannot be tokenized: {error}"))
        })
    }
}

/// What follows from the parameters alone.
struct Checked {
    sampling: SamplingParameters,
    is_random: bool,
}

fn check(
    parameters: &Parameters,
    limits: &ValidationLimits,
    names: &FieldNames,
    vocab_size: u32,
) -> Result<Checked, ApiError> {
    let out_of_range = |field: &str, bounds: &str, given: f32| {
        Err(ApiError::validation(
            field,
            format!("`{field}` must be {bounds}. Given: {given}"),
        ))
    };
    // Written so that a NaN is out of every range.
    let within = |value: Option<f32>, fits: fn(f32) -> bool| value.filter(|value| !fits(*value));

    if let Some(value) = within(parameters.temperature, |t| (0.0..=1e6).contains(&t)) {
        return out_of_range("temperature", ">= 0.0 and <= 1000000.0", value);
    }
    if let Some(value) = within(parameters.repetition_penalty, |p| p > 0.0 && p.is_finite()) {
        return Err(ApiError::validation(
            "repetition_penalty",
            format!("`repetition_penalty` must be strictly positive. Given: {value}"),
        ));
    }
    for (field, value) in [
        ("frequency_penalty", parameters.frequency_penalty),
        ("presence_penalty", parameters.presence_penalty),
    ] {
        if let Some(value) = within(value, |p| (-2.0..=2.0).contains(&p)) {
            return out_of_range(field, ">= -2.0 and <= 2.0", value);
        }
    }
    for (field, value) in [
        ("top_p", parameters.top_p),
        ("typical_p", parameters.typical_p),
    ] {
        if let Some(value) = within(value, |p| p > 0.0 && p <= 1.0) {
            return out_of_range(field, "> 0.0 and <= 1.0", value);
        }
    }
    if let Some(value) = within(parameters.min_p, |p| (0.0..=1.0).contains(&p)) {
        return out_of_range("min_p", ">= 0.0 and <= 1.0", value);
    }
    if parameters.max_new_tokens == Some(0) {
        let field = names.max_new_tokens;
        return Err(ApiError::validation(
            field,
            format!("`{field}` must be strictly positive"),
        ));
    }
    if parameters.stop.len() > limits.max_stop_sequences {
        return Err(ApiError::validation(
            "stop",
            format!(
                "`stop` supports up to {} stop sequences. Given: {}",
                limits.max_stop_sequences,
                parameters.stop.len()
            ),
        ));
    }
    if parameters.stop.iter().any(String::is_empty) {
        return Err(ApiError::validation(
            "stop",
            "`stop` must not contain an empty string",
        ));
    }
    if parameters.top_n_tokens > limits.max_top_n_tokens {
        let field = names.top_n_tokens;
        return Err(ApiError::validation(
            field,
            format!(
                "`{field}` must be >= 0 and <= {}. Given: {}",
                limits.max_top_n_tokens, parameters.top_n_tokens
            ),
        ));
    }
    for (field, mut ids) in [
        (
            "logit_bias",
            Box::new(parameters.logit_bias.iter().map(|(id, _)| *id))
                as Box<dyn Iterator<Item = u32>>,
        ),
        (
            "stop_token_ids",
            Box::new(parameters.stop_token_ids.iter().copied()),
        ),
    ] {
        if let Some(id) = ids.find(|id| *id >= vocab_size) {
            return Err(ApiError::validation(
                field,
                format!(
                    "`{field}` has the token id {id}, but the vocabulary ends at {}",
                    vocab_size - 1
                ),
            ));
        }
    }
    if let Some((id, value)) = parameters
        .logit_bias
        .iter()
        .find(|(_, value)| !(-100.0..=100.0).contains(value))
    {
        return Err(ApiError::validation(
            "logit_bias",
            format!("`logit_bias` of token {id} must be >= -100 and <= 100. Given: {value}"),
        ));
    }

    let is_random = parameters.do_sample.unwrap_or(true) && parameters.temperature != Some(0.0);
    let sampling = SamplingParameters {
        greedy: !is_random,
        temperature: parameters
            .temperature
            .filter(|temperature| *temperature > 0.0)
            .unwrap_or(1.0),
        top_k: parameters.top_k.unwrap_or(0),
        top_p: parameters.top_p.unwrap_or(1.0),
        min_p: parameters.min_p.unwrap_or(0.0),
        typical_p: parameters.typical_p.unwrap_or(1.0),
        repetition_penalty: parameters.repetition_penalty.unwrap_or(1.0),
        frequency_penalty: parameters.frequency_penalty.unwrap_or(0.0),
        presence_penalty: parameters.presence_penalty.unwrap_or(0.0),
        logit_bias_tokens: parameters.logit_bias.iter().map(|(id, _)| *id).collect(),
        logit_bias_values: parameters
            .logit_bias
            .iter()
            .map(|(_, value)| *value)
            .collect(),
        seed: parameters.seed.unwrap_or_else(rand::random),
    };
    Ok(Checked {
        sampling,
        is_random,
    })
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
    let max_input_tokens = limits
        .max_input_tokens
        .map_or(max_total_tokens - 1, |limit| {
            (limit as usize).min(max_total_tokens - 1)
        });
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
        return Err(ApiError::validation(
            field,
            format!(
                "`{field}` must have at most {max_input_tokens} tokens. Given: {prompt_tokens}"
            ),
        ));
    }
    let left = max_total_tokens - prompt_tokens;
    let max_new_tokens = parameters
        .max_new_tokens
        .map_or(left, |tokens| tokens as usize);
    if max_new_tokens > left {
        let new = names.max_new_tokens;
        return Err(ApiError::validation(
            new,
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
        },
        priority: Priority::Normal,
        skip_special_tokens: parameters.skip_special_tokens,
        queue_timeout: None,
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
