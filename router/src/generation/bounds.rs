//! Checks the bounds of every parameter, before the prompt is tokenized.

use std::ops::{Bound, RangeBounds};

use gridwork_engine::Limits;

use crate::error::{ApiError, Dialect};
use crate::generation::parameters::{FieldNames, Parameters};
use crate::generation::table::parameter_table;
use crate::generation::watermark::{self, Watermark};
use crate::tokenizing::vocabulary;

/// Bounds that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct ValidationLimits {
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// Maximum number of tokens of a prompt; `None`: all that leave room for one generated token.
    pub max_input_tokens: Option<u32>,
    /// Watermark of requests that do not give its settings.
    pub watermark: watermark::Settings,
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

/// Maximum number of words or runs of tokens that a request forbids or favours: each is compared with the text at every
/// step.
const MAX_RUNS: usize = 1024;

/// Maximum size of a forbidden word, and of a run in tokens.
const MAX_RUN_LENGTH: usize = 256;

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

fn bad_words(words: &[String], field: &str, _: &Bounds<'_>) -> Result<(), ApiError> {
    number_of_runs(words.len(), field)?;
    let wrong = |word: &&String| word.trim().is_empty() || word.len() > MAX_RUN_LENGTH;
    let Some(word) = words.iter().find(wrong) else {
        return Ok(());
    };
    let message = if word.trim().is_empty() {
        format!("`{field}` must not contain an empty string, or one of spaces alone")
    } else {
        let bytes = word.len();
        format!(
            "`{field}` must have words of at most {MAX_RUN_LENGTH} bytes. Given: one of {bytes}"
        )
    };
    Err(ApiError::validation(field, message))
}

fn number_of_runs(number: usize, field: &str) -> Result<(), ApiError> {
    if number <= MAX_RUNS {
        return Ok(());
    }
    Err(ApiError::validation(
        field,
        format!("`{field}` must have at most {MAX_RUNS} entries. Given: {number}"),
    ))
}

fn token_runs(runs: &[Vec<u32>], field: &str, bounds: &Bounds<'_>) -> Result<(), ApiError> {
    number_of_runs(runs.len(), field)?;
    for run in runs {
        if run.is_empty() || run.len() > MAX_RUN_LENGTH {
            return Err(ApiError::validation(
                field,
                format!(
                    "`{field}` must have runs of 1 to {MAX_RUN_LENGTH} tokens. Given: one of {}",
                    run.len()
                ),
            ));
        }
        token_ids(run, field, bounds)?;
    }
    Ok(())
}

fn sequence_bias(
    biases: &[(Vec<u32>, f32)],
    field: &str,
    bounds: &Bounds<'_>,
) -> Result<(), ApiError> {
    let runs: Vec<_> = biases.iter().map(|(run, _)| run.clone()).collect();
    token_runs(&runs, field, bounds)?;
    match biases.iter().find(|(_, bias)| !bias.is_finite()) {
        None => Ok(()),
        Some((_, bias)) => Err(ApiError::validation(
            field,
            format!("`{field}` must have finite values. Given: {bias}"),
        )),
    }
}

fn watermark(watermark: &Watermark, field: &str, _: &Bounds<'_>) -> Result<(), ApiError> {
    let Watermark::Given(settings) = watermark else {
        return Ok(());
    };
    let message = if !(0.0..=1.0).contains(&settings.share) {
        let share = settings.share;
        format!("`{field}.greenlist_ratio` must be >= 0 and <= 1. Given: {share}")
    } else if !(-100.0..=100.0).contains(&settings.bias) {
        let bias = settings.bias;
        format!("`{field}.bias` must be >= -100 and <= 100. Given: {bias}")
    } else {
        return Ok(());
    };
    Err(ApiError::validation(field, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ValidationLimits = ValidationLimits {
        max_stop_sequences: 1,
        max_top_n_tokens: 1,
        max_input_tokens: None,
        watermark: watermark::Settings {
            share: 0.5,
            bias: 2.0,
            key: 1,
        },
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

    #[test]
    fn runs_of_tokens_and_words_are_bounded() {
        let refused = |parameters: Parameters| {
            let checked = check(&parameters, &LIMITS, &FieldNames::TGI, 10);
            checked.err().and_then(|error| error.field)
        };
        let words = |words: Vec<String>| {
            refused(Parameters {
                bad_words: Some(words),
                ..Parameters::default()
            })
        };
        let runs = |runs: Vec<Vec<u32>>| {
            refused(Parameters {
                bad_words_ids: Some(runs),
                ..Parameters::default()
            })
        };
        assert_eq!(words(vec!["cat".into(); MAX_RUNS]), None);
        for wrong in [
            vec![String::new()],
            vec!["cat".into(), "  ".into()],
            vec!["x".repeat(MAX_RUN_LENGTH + 1)],
            vec!["cat".into(); MAX_RUNS + 1],
        ] {
            assert_eq!(words(wrong).as_deref(), Some("bad_words"));
        }
        assert_eq!(runs(vec![vec![9, 0]; MAX_RUNS]), None);
        for wrong in [
            vec![vec![]],
            vec![vec![1, 10]],
            vec![vec![1; MAX_RUN_LENGTH + 1]],
            vec![vec![1]; MAX_RUNS + 1],
        ] {
            assert_eq!(runs(wrong).as_deref(), Some("bad_words_ids"));
        }
        let endless = Parameters {
            sequence_bias: Some(vec![(vec![1], f32::NEG_INFINITY)]),
            ..Parameters::default()
        };
        assert_eq!(refused(endless).as_deref(), Some("sequence_bias"));
    }

    #[test]
    fn a_watermarks_settings_are_bounded() {
        for (share, bias, allowed) in [
            (0.0, -100.0, true),
            (1.0, 100.0, true),
            (1.1, 2.0, false),
            (f32::NAN, 2.0, false),
            (0.5, 101.0, false),
            (0.5, f32::NAN, false),
        ] {
            let settings = watermark::Settings {
                share,
                bias,
                key: 1,
            };
            let parameters = Parameters {
                watermark: Some(Watermark::Given(settings)),
                ..Parameters::default()
            };
            let checked = check(&parameters, &LIMITS, &FieldNames::TGI, 10);
            assert_eq!(checked.is_ok(), allowed, "{share} {bias}");
        }
    }
}
