//! Reads the `generation_config` of a chat: settings of Transformers' `generate()`, as its command line sends them.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::generation::parameters::Parameters;
use crate::generation::table::parameter_table;

macro_rules! generation_config {
    ({ $(#[$attribute:meta])* pub struct $config:ident { $($own:tt)* } } $(
        $(#[$doc:meta])* $name:ident: $type:ty {
            meaning $meaning:tt
            openai $openai:tt
            tgi $tgi:tt
            transformers { $($(#[$field_attribute:meta])* $field:ident: $field_type:ty $(=> $conversion:expr)?;)? }
        }
    )*) => {
        $(#[$attribute])*
        pub struct $config {
            $($($(#[$field_attribute])* pub $field: Option<$field_type>,)?)*
            $($own)*
        }

        impl $config {
            /// Reads a setting of the table; gives `value` back when there is none of this name.
            fn read_parameter(&mut self, name: &str, value: Value) -> Result<Option<Value>, String> {
                match name {
                    $($(stringify!($field) => self.$field = read(name, value)?,)?)*
                    _ => return Ok(Some(value)),
                }
                Ok(None)
            }

            fn into_parameters(self) -> Result<Parameters, ApiError> {
                Ok(Parameters {
                    $($($name: self.$field$(.map($conversion).transpose()?)?,)?)*
                    ..Parameters::default()
                })
            }
        }
    };
}

parameter_table! { generation_config =>
    /// Settings of `generate()` that are read. Others are refused, unless they would change nothing.
    #[derive(Debug, Clone, Default, PartialEq, ToSchema)]
    pub struct GenerationConfig {
        pub num_return_sequences: Option<u32>,
        #[schema(ignore)]
        unread: Vec<String>,
    }
}

/// Settings that do not affect the text: how to compute it, further results, the origin of the object.
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
            let Some(value) = config.read_parameter(&name, value)? else {
                continue;
            };
            match name.as_str() {
                "num_return_sequences" => config.num_return_sequences = read(&name, value)?,
                // `generate()` ignores it too.
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

    /// Fills the parameters that the request itself does not give. `num_return_sequences` is left to the caller.
    pub fn apply(mut self, parameters: &mut Parameters) -> Result<(), ApiError> {
        if let Some(name) = self.unread.first() {
            let field = format!("generation_config.{name}");
            let message = format!("`{field}` is not supported by this version; leave it out");
            return Err(ApiError::validation(&field, message));
        }
        self.do_sample = if parameters.asks_for_sampling() {
            None
        } else {
            // As in `generate()`, which takes the most likely token unless `do_sample` is set.
            Some(self.do_sample.unwrap_or(false))
        };
        parameters.fill_from(self.into_parameters()?);
        Ok(())
    }
}

/// Reads a setting. A single item may stand for a list of one.
fn read<T: DeserializeOwned>(name: &str, value: Value) -> Result<Option<T>, String> {
    let given = value.to_string();
    serde_json::from_value(value.clone())
        .or_else(|_| serde_json::from_value(Value::Array(vec![value])))
        .map(Some)
        .map_err(|_| format!("`{name}` cannot be {given}"))
}

/// True if an unknown setting is off.
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
    use crate::generation::watermark;

    fn applied(config: Value, mut parameters: Parameters) -> Result<Parameters, String> {
        let config: GenerationConfig =
            serde_json::from_value(config).map_err(|error| error.to_string())?;
        config
            .apply(&mut parameters)
            .map_err(|error| error.field.unwrap_or_default())?;
        Ok(parameters)
    }

    #[test]
    fn the_text_of_a_json_object_is_read() {
        let text = "{\n  \"do_sample\": false,\n  \"max_new_tokens\": 20,\n  \"temperature\": 0.5,\n  \
                    \"transformers_version\": \"5.24.0\"\n}\n";
        let config: GenerationConfig = serde_json::from_value(json!(text)).unwrap();
        assert_eq!(config.max_new_tokens, Some(20));
        let parameters = applied(json!(text), Parameters::default()).unwrap();
        assert_eq!(
            (parameters.do_sample, parameters.temperature),
            (Some(false), Some(0.5))
        );
    }

    #[test]
    fn fields_of_the_request_override_the_config() {
        let own = Parameters {
            temperature: Some(2.0),
            ..Parameters::default()
        };
        let config = json!({"do_sample": false, "temperature": 0.5, "top_k": 3, "eos_token_id": 7});
        let parameters = applied(config, own).unwrap();
        assert_eq!(
            (parameters.do_sample, parameters.temperature),
            (None, Some(2.0))
        );
        assert_eq!(
            (parameters.top_k, parameters.stop_token_ids),
            (Some(3), Some(vec![7]))
        );
        let parameters = applied(json!({}), Parameters::default()).unwrap();
        assert_eq!(parameters.do_sample, Some(false));
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for name in ["num_beams", "penalty_alpha", "nobody_knows"] {
            let got = applied(json!({ name: 4 }), Parameters::default());
            assert_eq!(got, Err(format!("generation_config.{name}")));
        }
        let refused = applied(json!({"max_length": 20}), Parameters::default());
        assert_eq!(refused, Err("generation_config.max_length".into()));
    }

    #[test]
    fn rules_about_tokens_are_read_in_transformers_form() {
        let config = json!({
            "bad_words_ids": [[1, 2], [3]], "sequence_bias": [[[4, 5], -1.5]], "suppress_tokens": [6],
            "begin_suppress_tokens": [7, 8], "no_repeat_ngram_size": 3, "watermarking_config": {"bias": 1.0},
        });
        let parameters = applied(config, Parameters::default()).unwrap();
        assert_eq!(parameters.bad_words_ids, Some(vec![vec![1, 2], vec![3]]));
        assert_eq!(parameters.sequence_bias, Some(vec![(vec![4, 5], -1.5)]));
        assert_eq!(parameters.suppress_tokens, Some(vec![6]));
        assert_eq!(parameters.begin_suppress_tokens, Some(vec![7, 8]));
        assert_eq!(parameters.no_repeat_ngram_size, Some(3));
        let watermark = watermark::Watermark::Given(watermark::Settings {
            share: 0.25,
            bias: 1.0,
            key: watermark::USUAL_KEY,
        });
        assert_eq!(parameters.watermark, Some(watermark));
    }

    #[test]
    fn settings_that_are_off_or_have_no_effect_are_accepted() {
        applied(
            json!({
                "num_beams": 1, "no_repeat_ngram_size": 0, "penalty_alpha": null, "bad_words_ids": [],
                "use_cache": true, "bos_token_id": 1, "pad_token_id": 2, "output_scores": true,
                "max_length": 20, "max_new_tokens": 5, "early_stopping": false,
            }),
            Parameters::default(),
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
            let error = applied(config, Parameters::default()).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
