//! Values of parameters as clients write them, and their conversion to the engine's types.

use std::collections::BTreeMap;

use gridwork_engine::Priority;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;

/// Sequences that end the text.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Stop {
    /// One sequence.
    One(String),
    /// Several sequences; whichever comes first ends the text.
    Many(Vec<String>),
}

/// Any 64-bit integer, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected an integer of 64 bits")]
pub enum Seed {
    /// Fits into a signed integer; a negative one counts as its two's complement.
    Signed(i64),
    /// Does not fit into a signed integer.
    Unsigned(u64),
}

/// Converts one stop sequence or several into a list.
pub fn stop_sequences(stop: Stop) -> Result<Vec<String>, ApiError> {
    Ok(match stop {
        Stop::One(text) => vec![text],
        Stop::Many(texts) => texts,
    })
}

/// Converts a signed seed to its two's complement.
pub fn seed(seed: Seed) -> Result<u64, ApiError> {
    Ok(match seed {
        Seed::Signed(seed) => seed.cast_unsigned(),
        Seed::Unsigned(seed) => seed,
    })
}

/// Converts `top_k` where 0 and -1 switch it off, whatever the model's default is.
pub fn top_k_or_off(top_k: i64) -> Result<u32, ApiError> {
    match top_k {
        -1 | 0 => Ok(0),
        1.. => Ok(u32::try_from(top_k).unwrap_or(u32::MAX)),
        _ => Err(ApiError::validation(
            "top_k",
            format!("`top_k` must be strictly positive, or 0 or -1 for off. Given: {top_k}"),
        )),
    }
}

/// Converts `top_k` where it must be positive.
pub fn positive_top_k(top_k: i64) -> Result<u32, ApiError> {
    if top_k < 1 {
        return Err(ApiError::validation(
            "top_k",
            format!("`top_k` must be strictly positive. Given: {top_k}"),
        ));
    }
    Ok(u32::try_from(top_k).unwrap_or(u32::MAX))
}

/// Refuses a temperature of 0, which other dialects take for greedy sampling.
pub fn temperature_above_zero(temperature: f32) -> Result<f32, ApiError> {
    if temperature == 0.0 {
        return Err(ApiError::validation(
            "temperature",
            "`temperature` must be strictly positive",
        ));
    }
    Ok(temperature)
}

/// Class in the queue of a number, of which lower ones go first.
pub fn priority(priority: i64) -> Result<Priority, ApiError> {
    Ok(match priority {
        ..0 => Priority::High,
        0 => Priority::Normal,
        1.. => Priority::Low,
    })
}

/// Number of tokens to keep that stands for as many as the model takes.
pub const MODEL_MAXIMUM: usize = usize::MAX;

/// Converts a number of tokens to keep, of which -1 stands for as many as the model takes.
pub fn truncate_prompt_tokens(tokens: i64) -> Result<usize, ApiError> {
    match tokens {
        -1 => Ok(MODEL_MAXIMUM),
        _ => usize::try_from(tokens).map_err(|_| {
            ApiError::validation(
                "truncate_prompt_tokens",
                format!("`truncate_prompt_tokens` must be -1, or positive. Given: {tokens}"),
            )
        }),
    }
}

/// Converts a JSON object from token ids to biases.
pub fn logit_bias(given: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = given.into_iter().map(|(id, value)| match id.parse() {
        Ok(id) => Ok((id, value)),
        Err(_) => Err(ApiError::validation(
            "logit_bias",
            format!("the keys of `logit_bias` must be token ids. Given: {id:?}"),
        )),
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Option<String> {
        result.unwrap_err().field
    }

    #[test]
    fn top_k_is_off_at_zero_and_minus_one() {
        for (given, expected) in [(0, 0), (-1, 0), (7, 7), (i64::MAX, u32::MAX)] {
            assert_eq!(top_k_or_off(given).unwrap(), expected);
        }
        assert_eq!(field(top_k_or_off(-2)).as_deref(), Some("top_k"));
    }

    #[test]
    fn top_k_and_temperature_of_tgi_are_positive() {
        assert_eq!(positive_top_k(7).unwrap(), 7);
        assert_eq!(field(positive_top_k(0)).as_deref(), Some("top_k"));
        assert_eq!(temperature_above_zero(0.5).unwrap(), 0.5);
        for zero in [0.0, -0.0] {
            let refused = field(temperature_above_zero(zero));
            assert_eq!(refused.as_deref(), Some("temperature"));
        }
    }

    #[test]
    fn lower_priorities_go_first() {
        for (given, expected) in [
            (i64::MIN, Priority::High),
            (-1, Priority::High),
            (0, Priority::Normal),
            (1, Priority::Low),
            (i64::MAX, Priority::Low),
        ] {
            assert_eq!(priority(given).unwrap(), expected);
        }
    }

    #[test]
    fn minus_one_keeps_as_many_tokens_as_the_model_takes() {
        assert_eq!(truncate_prompt_tokens(-1).unwrap(), MODEL_MAXIMUM);
        assert_eq!(truncate_prompt_tokens(7).unwrap(), 7);
        let refused = field(truncate_prompt_tokens(-2));
        assert_eq!(refused.as_deref(), Some("truncate_prompt_tokens"));
    }

    #[test]
    fn logit_bias_takes_token_ids_only() {
        let bias = |id: &str| logit_bias(BTreeMap::from([(id.to_owned(), 1.5)]));
        assert_eq!(bias("50256").unwrap(), [(50256, 1.5)]);
        for id in ["", "a", "-1", "1.0", "99999999999"] {
            assert_eq!(field(bias(id)).as_deref(), Some("logit_bias"));
        }
    }

    #[test]
    fn a_negative_seed_is_its_twos_complement() {
        assert_eq!(seed(Seed::Signed(-1)).unwrap(), u64::MAX);
        assert_eq!(seed(Seed::Unsigned(u64::MAX)).unwrap(), u64::MAX);
    }
}
