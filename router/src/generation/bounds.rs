//! The bounds of every parameter, checked before anything is tokenized.

use gridwork_engine::SamplingParameters;

use crate::error::ApiError;
use crate::generation::parameters::{FieldNames, Parameters};
use crate::generation::validation::ValidationLimits;
use crate::tokenizing::vocabulary;

/// What follows from the parameters alone.
pub(crate) struct Checked {
    pub sampling: SamplingParameters,
    /// Whether the seed matters.
    pub is_random: bool,
}

/// Checks every parameter that can be judged without the prompt; errors name the field as `names` has it.
pub(crate) fn check(
    parameters: &Parameters,
    limits: &ValidationLimits,
    names: &FieldNames,
    vocab_size: u32,
) -> Result<Checked, ApiError> {
    check_ranges(parameters)?;
    check_lengths(parameters, limits, names)?;
    check_token_ids(parameters, vocab_size)?;
    let is_random = parameters.do_sample.unwrap_or(true) && parameters.temperature != Some(0.0);
    Ok(Checked {
        sampling: sampling(parameters, is_random),
        is_random,
    })
}

/// Beyond these, dividing and multiplying logits would leave the range of a float.
const MAX_TEMPERATURE: f32 = 1e6;
const REPETITION_PENALTIES: std::ops::RangeInclusive<f32> = 1e-6..=1e6;

/// Enough for any digest or name; each of a cache's prefixes keeps its own.
const MAX_CACHE_SALT_BYTES: usize = 512;

fn check_ranges(parameters: &Parameters) -> Result<(), ApiError> {
    // Written so that a NaN is out of every range.
    let within = |field: &str, value: Option<f32>, fits: fn(f32) -> bool, bounds: &str| {
        value.filter(|value| !fits(*value)).map_or(Ok(()), |value| {
            Err(ApiError::validation(
                field,
                format!("`{field}` must be {bounds}. Given: {value}"),
            ))
        })
    };
    let penalty = |p| (-2.0..=2.0).contains(&p);
    let share = |p| p > 0.0 && p <= 1.0;
    within(
        "temperature",
        parameters.temperature,
        |t| (0.0..=MAX_TEMPERATURE).contains(&t),
        ">= 0.0 and <= 1000000.0",
    )?;
    within(
        "repetition_penalty",
        parameters.repetition_penalty,
        |p| p > 0.0,
        "strictly positive",
    )?;
    within(
        "repetition_penalty",
        parameters.repetition_penalty,
        |p| REPETITION_PENALTIES.contains(&p),
        ">= 0.000001 and <= 1000000.0",
    )?;
    within(
        "frequency_penalty",
        parameters.frequency_penalty,
        penalty,
        ">= -2.0 and <= 2.0",
    )?;
    within(
        "presence_penalty",
        parameters.presence_penalty,
        penalty,
        ">= -2.0 and <= 2.0",
    )?;
    within("top_p", parameters.top_p, share, "> 0.0 and <= 1.0")?;
    within("typical_p", parameters.typical_p, share, "> 0.0 and <= 1.0")?;
    within(
        "min_p",
        parameters.min_p,
        |p| (0.0..=1.0).contains(&p),
        ">= 0.0 and <= 1.0",
    )
}

fn check_lengths(
    parameters: &Parameters,
    limits: &ValidationLimits,
    names: &FieldNames,
) -> Result<(), ApiError> {
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
    if let Some(salt) = &parameters.cache_salt
        && !(1..=MAX_CACHE_SALT_BYTES).contains(&salt.len())
    {
        return Err(ApiError::validation(
            "cache_salt",
            format!(
                "`cache_salt` must have 1 to {MAX_CACHE_SALT_BYTES} bytes. Given: {}",
                salt.len()
            ),
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
    Ok(())
}

fn check_token_ids(parameters: &Parameters, vocab_size: u32) -> Result<(), ApiError> {
    let biased = parameters.logit_bias.iter().map(|(id, _)| *id);
    vocabulary::check("logit_bias", biased, vocab_size, |_| None)?;
    let stops = parameters.stop_token_ids.iter().copied();
    vocabulary::check("stop_token_ids", stops, vocab_size, |_| None)?;
    let outside = |value: &f32| !(-100.0..=100.0).contains(value);
    match parameters.logit_bias.iter().find(|(_, v)| outside(v)) {
        None => Ok(()),
        Some((id, value)) => Err(ApiError::validation(
            "logit_bias",
            format!("`logit_bias` of token {id} must be >= -100 and <= 100. Given: {value}"),
        )),
    }
}

fn sampling(parameters: &Parameters, is_random: bool) -> SamplingParameters {
    let (logit_bias_tokens, logit_bias_values) = parameters.logit_bias.iter().copied().unzip();
    SamplingParameters {
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
        logit_bias_tokens,
        logit_bias_values,
        seed: parameters.seed.unwrap_or_else(rand::random),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repetition_penalty(value: f32) -> Option<String> {
        let parameters = Parameters {
            repetition_penalty: Some(value),
            ..Parameters::default()
        };
        check_ranges(&parameters).err().map(|error| error.message)
    }

    #[test]
    fn a_repetition_penalty_that_would_overflow_logits_is_refused() {
        for value in [1e-6, 0.5, 1.0, 1e6] {
            assert_eq!(repetition_penalty(value), None);
        }
        for (value, words) in [
            (0.0, "strictly positive"),
            (-1.0, "strictly positive"),
            (f32::NAN, "strictly positive"),
            (1e-38, ">= 0.000001"),
            (1e38, "<= 1000000.0"),
            (f32::INFINITY, "<= 1000000.0"),
        ] {
            let message = repetition_penalty(value).unwrap_or_default();
            assert!(message.contains(words), "{value}: {message}");
        }
    }
}
