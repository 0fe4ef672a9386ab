//! Checks the bounds of every parameter, before the prompt is tokenized.

use std::ops::{Bound, RangeBounds};

use gridwork_engine::Limits;

use crate::error::{ApiError, Dialect};
use crate::generation::parameters::{FieldNames, Parameters};
use crate::generation::table::parameter_table;
use crate::tokenizing::vocabulary;

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct ValidationLimits {
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// Maximum number of tokens of a prompt; `None`: all that leave room for one generated token.
    pub max_input_tokens: Option<u32>,
}

impl ValidationLimits {
    /// Maximum number of tokens of a prompt. At least one more token is generated.
    pub fn max_input_tokens(&self, engine: &Limits) -> usize {
        let most = engine.max_total_tokens as usize - 1;
        self.max_input_tokens
            .map_or(most, |limit| most.min(limit as usize))
    }
}

/// Bounds that depend on the operator and the model.
struct Bounds<'a> {
    limits: &'a ValidationLimits,
    /// Number of tokens that the model can generate.
    vocab_size: u32,
}

/// Maximum size of a cache salt: enough for any digest or name. Each prefix in the cache keeps its own copy.
const MAX_CACHE_SALT_BYTES: usize = 512;

macro_rules! declare_check {
    ({} $(
        $(#[$doc:meta])* $name:ident: $type:ty {
            meaning {
                $(sets $($target:ident).+ or $neutral:expr;)?
                $(model_default $model_default:ident;)?
                $(asks_for_sampling $asks_for_sampling:literal;)?
                $(check $check:expr;)*
            }
            openai { $($(#[$openai_attribute:meta])* $openai:ident: $openai_type:ty $(=> $openai_conversion:expr)?;)? }
            tgi { $($(#[$tgi_attribute:meta])* $tgi:ident: $tgi_type:ty $(=> $tgi_conversion:expr)?;)? }
            transformers $transformers:tt
        }
    )*) => {
        /// Checks every parameter that can be judged without the prompt. Errors name the field as the client does.
        pub(crate) fn check(
            parameters: &Parameters,
            limits: &ValidationLimits,
            names: &FieldNames,
            vocab_size: u32,
        ) -> Result<(), ApiError> {
            let bounds = Bounds { limits, vocab_size };
            $(
                if let Some(value) = &parameters.$name {
                    let own = stringify!($name);
                    let openai = [$(stringify!($openai),)? own][0];
                    let tgi = [$(stringify!($tgi),)? own][0];
                    let field = names.spelling(own, openai, tgi);
                    let checks: &[&dyn Fn(&$type, &str, &Bounds<'_>) -> Result<(), ApiError>] =
                        &[$(&|value, field, bounds| $check(value, field, bounds)),*];
                    for check in checks {
                        check(value, field, &bounds)?;
                    }
                }
            )*
            Ok(())
        }
    };
}

parameter_table! { declare_check => }

impl FieldNames {
    /// The client's name of the parameter `own`, which has these names in the tables of OpenAI and TGI.
    fn spelling(&self, own: &'static str, openai: &'static str, tgi: &'static str) -> &'static str {
        match (own, self.dialect) {
            // Routes of OpenAI's API call them differently.
            ("max_new_tokens", _) => self.max_new_tokens,
            ("top_n_tokens", _) => self.top_n_tokens,
            ("stop", Dialect::Anthropic) => "stop_sequences",
            (_, Dialect::OpenAi | Dialect::Anthropic) => openai,
            (_, Dialect::Tgi | Dialect::Tei) => tgi,
        }
    }
}

/// Numbers greater than `bound`.
fn above(bound: f32) -> impl RangeBounds<f32> {
    (Bound::Excluded(bound), Bound::Unbounded)
}

/// Numbers greater than `bound` and at most `maximum`.
fn above_up_to(bound: f32, maximum: f32) -> impl RangeBounds<f32> {
    (Bound::Excluded(bound), Bound::Included(maximum))
}

/// Refuses numbers outside of `range`, and NaN; `words` say what is allowed.
fn within(
    range: impl RangeBounds<f32>,
    words: &str,
) -> impl Fn(&f32, &str, &Bounds<'_>) -> Result<(), ApiError> {
    move |value, field, _| {
        if range.contains(value) {
            return Ok(());
        }
        Err(ApiError::validation(
            field,
            format!("`{field}` must be {words}. Given: {value}"),
        ))
    }
}

fn positive(value: &u32, field: &str, _: &Bounds<'_>) -> Result<(), ApiError> {
    if *value > 0 {
        return Ok(());
    }
    Err(ApiError::validation(
        field,
        format!("`{field}` must be strictly positive"),
    ))
}

fn stop_sequences(stop: &[String], field: &str, bounds: &Bounds<'_>) -> Result<(), ApiError> {
    let most = bounds.limits.max_stop_sequences;
    let message = if stop.len() > most {
        format!(
            "`{field}` supports up to {most} stop sequences. Given: {}",
            stop.len()
        )
    } else if stop.iter().any(String::is_empty) {
        format!("`{field}` must not contain an empty string")
    } else {
        return Ok(());
    };
    Err(ApiError::validation(field, message))
}

fn cache_salt(salt: &str, field: &str, _: &Bounds<'_>) -> Result<(), ApiError> {
    if (1..=MAX_CACHE_SALT_BYTES).contains(&salt.len()) {
        return Ok(());
    }
    Err(ApiError::validation(
        field,
        format!(
            "`{field}` must have 1 to {MAX_CACHE_SALT_BYTES} bytes. Given: {}",
            salt.len()
        ),
    ))
}

fn top_n_tokens(value: &u32, field: &str, bounds: &Bounds<'_>) -> Result<(), ApiError> {
    let most = bounds.limits.max_top_n_tokens;
    if *value <= most {
        return Ok(());
    }
    Err(ApiError::validation(
        field,
        format!("`{field}` must be >= 0 and <= {most}. Given: {value}"),
    ))
}

fn token_ids(ids: &[u32], field: &str, bounds: &Bounds<'_>) -> Result<(), ApiError> {
    vocabulary::check(field, ids.iter().copied(), bounds.vocab_size, |_| None)
}

fn not_empty(ids: &[u32], field: &str, _: &Bounds<'_>) -> Result<(), ApiError> {
    match ids {
        [] => Err(ApiError::validation(
            field,
            format!("`{field}` must not be empty; leave it out to allow all tokens"),
        )),
        _ => Ok(()),
    }
}

fn logit_bias(biases: &[(u32, f32)], field: &str, bounds: &Bounds<'_>) -> Result<(), ApiError> {
    let ids = biases.iter().map(|(id, _)| *id);
    vocabulary::check(field, ids, bounds.vocab_size, |_| None)?;
    let outside = |value: &f32| !(-100.0..=100.0).contains(value);
    match biases.iter().find(|(_, value)| outside(value)) {
        None => Ok(()),
        Some((id, value)) => Err(ApiError::validation(
            field,
            format!("`{field}` of token {id} must be >= -100 and <= 100. Given: {value}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ValidationLimits = ValidationLimits {
        max_stop_sequences: 1,
        max_top_n_tokens: 1,
        max_input_tokens: None,
    };

    fn repetition_penalty(value: f32) -> Option<String> {
        let parameters = Parameters {
            repetition_penalty: Some(value),
            ..Parameters::default()
        };
        let checked = check(&parameters, &LIMITS, &FieldNames::TGI, 1);
        checked.err().map(|error| error.message)
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
