//! `generation_config` of a chat: settings of Transformers' `generate()`, as its command line sends them.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::request::Shared;
use crate::error::ApiError;

/// The settings that are read. All others are refused, unless they would change nothing.
#[derive(Debug, Clone, Default, PartialEq, ToSchema)]
pub struct GenerationConfig {
    pub max_new_tokens: Option<u32>,
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// One text or several.
    pub stop_strings: Option<Vec<String>>,
    /// Further tokens that end the text, one or several.
    pub eos_token_id: Option<Vec<u32>>,
    pub num_return_sequences: Option<u32>,
    #[schema(ignore)]
    unread: Vec<String>,
}

/// Settings that say nothing about the text: how it is computed, what else is returned, where the object comes from.
const WITHOUT_EFFECT: [&str; 21] = [
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "is_assistant",
    "low_memory",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Settings that are off at 1.
const OFF_AT_ONE: [&str; 5] = [
    "encoder_repetition_penalty",
    "guidance_scale",
    "length_penalty",
    "num_beam_groups",
    "num_beams",
];

impl<'de> Deserialize<'de> for GenerationConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = match Value::deserialize(deserializer)? {
            Value::Object(object) => object,
            Value::String(text) => serde_json::from_str(&text)
                .map_err(|_| D::Error::custom("expected the text of a JSON object"))?,
            _ => return Err(D::Error::custom("expected an object, or the text of one")),
        };
        Self::read(object).map_err(D::Error::custom)
    }
}

impl GenerationConfig {
    fn read(object: Map<String, Value>) -> Result<Self, String> {
        let mut config = Self::default();
        let max_new_tokens_given = object
            .get("max_new_tokens")
            .is_some_and(|value| !value.is_null());
        for (name, value) in object {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "max_new_tokens" => config.max_new_tokens = read(&name, value)?,
                "do_sample" => config.do_sample = read(&name, value)?,
                "temperature" => config.temperature = read(&name, value)?,
                "top_k" => config.top_k = read(&name, value)?,
                "top_p" => config.top_p = read(&name, value)?,
                "min_p" => config.min_p = read(&name, value)?,
                "typical_p" => config.typical_p = read(&name, value)?,
                "repetition_penalty" => config.repetition_penalty = read(&name, value)?,
                "num_return_sequences" => config.num_return_sequences = read(&name, value)?,
                "stop_strings" => config.stop_strings = read(&name, listed(value))?,
                "eos_token_id" => config.eos_token_id = read(&name, listed(value))?,
                // `generate()` does not look at it either.
                "max_length" if max_new_tokens_given => {}
                name if WITHOUT_EFFECT.contains(&name)
                    || name.starts_with("output_")
                    || name == "return_dict_in_generate" => {}
                _ if is_neutral(&name, &value) => {}
                _ => config.unread.push(name),
            }
        }
        Ok(config)
    }

    /// Puts the settings where the request itself has none; `max_new_tokens` is left to the caller.
    pub fn apply(self, shared: &mut Shared) -> Result<(), ApiError> {
        if let Some(name) = self.unread.first() {
            let field = format!("generation_config.{name}");
            let message = format!("`{field}` is not supported by this version; leave it out");
            return Err(ApiError::validation(&field, message));
        }
        let asks_for_sampling = shared.temperature.is_some()
            || shared.top_p.is_some()
            || shared.top_k.is_some()
            || shared.min_p.is_some()
            || shared.typical_p.is_some();
        if !asks_for_sampling {
            // As in `generate()`, where the most likely token is taken unless sampling is asked for.
            shared.do_sample = Some(self.do_sample.unwrap_or(false));
        }
        shared.temperature = shared.temperature.or(self.temperature);
        shared.top_k = shared.top_k.or(self.top_k);
        shared.top_p = shared.top_p.or(self.top_p);
        shared.min_p = shared.min_p.or(self.min_p);
        shared.typical_p = shared.typical_p.or(self.typical_p);
        shared.repetition_penalty = shared.repetition_penalty.or(self.repetition_penalty);
        shared.n = shared.n.or(self.num_return_sequences);
        shared.stop = shared
            .stop
            .take()
            .or(self.stop_strings.map(super::request::Stop::Many));
        shared.stop_token_ids = shared.stop_token_ids.take().or(self.eos_token_id);
        Ok(())
    }
}

fn read<T: DeserializeOwned>(name: &str, value: Value) -> Result<Option<T>, String> {
    let given = value.to_string();
    serde_json::from_value(value)
        .map(Some)
        .map_err(|_| format!("`{name}` cannot be {given}"))
}

/// A list of what may stand alone.
fn listed(value: Value) -> Value {
    match value {
        Value::Array(_) => value,
        one => Value::Array(vec![one]),
    }
}

/// Whether a setting that is not read is off.
fn is_neutral(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => {
            let off = if OFF_AT_ONE.contains(&name) { 1.0 } else { 0.0 };
            number.as_f64() == Some(off)
        }
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(config: Value, mut shared: Shared) -> Result<Shared, String> {
        let config: GenerationConfig =
            serde_json::from_value(config).map_err(|error| error.to_string())?;
        config
            .apply(&mut shared)
            .map_err(|error| error.field.unwrap_or_default())?;
        Ok(shared)
    }

    #[test]
    fn what_transformers_sends_is_read_from_its_text() {
        let text = "{\n  \"do_sample\": false,\n  \"max_new_tokens\": 20,\n  \"temperature\": 0.5,\n  \
                    \"transformers_version\": \"5.24.0\"\n}\n";
        let config: GenerationConfig = serde_json::from_value(json!(text)).unwrap();
        assert_eq!(config.max_new_tokens, Some(20));
        let shared = applied(json!(text), Shared::default()).unwrap();
        assert_eq!(
            (shared.do_sample, shared.temperature),
            (Some(false), Some(0.5))
        );
    }

    #[test]
    fn the_requests_own_fields_win() {
        let own = Shared {
            temperature: Some(2.0),
            ..Shared::default()
        };
        let config = json!({"do_sample": false, "temperature": 0.5, "top_k": 3, "eos_token_id": 7});
        let shared = applied(config, own).unwrap();
        assert_eq!((shared.do_sample, shared.temperature), (None, Some(2.0)));
        assert_eq!(
            (shared.top_k, shared.stop_token_ids),
            (Some(3), Some(vec![7]))
        );
        let shared = applied(json!({}), Shared::default()).unwrap();
        assert_eq!(shared.do_sample, Some(false));
    }

    #[test]
    fn settings_that_would_change_the_text_are_refused_by_name() {
        for name in [
            "num_beams",
            "no_repeat_ngram_size",
            "penalty_alpha",
            "nobody_knows",
        ] {
            let got = applied(json!({ name: 4 }), Shared::default());
            assert_eq!(got, Err(format!("generation_config.{name}")));
        }
        let refused = applied(json!({"max_length": 20}), Shared::default());
        assert_eq!(refused, Err("generation_config.max_length".into()));
    }

    #[test]
    fn settings_that_are_off_or_without_effect_are_accepted() {
        applied(
            json!({
                "num_beams": 1, "no_repeat_ngram_size": 0, "penalty_alpha": null, "bad_words_ids": [],
                "use_cache": true, "bos_token_id": 1, "pad_token_id": 2, "output_scores": true,
                "max_length": 20, "max_new_tokens": 5, "early_stopping": false,
            }),
            Shared::default(),
        )
        .unwrap();
    }

    #[test]
    fn wrong_types_name_the_setting() {
        for (config, words) in [
            (
                json!({"max_new_tokens": -1}),
                "`max_new_tokens` cannot be -1",
            ),
            (
                json!({"temperature": "hot"}),
                "`temperature` cannot be \"hot\"",
            ),
            (json!("[1"), "the text of a JSON object"),
            (json!(5), "expected an object"),
        ] {
            let error = applied(config, Shared::default()).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
