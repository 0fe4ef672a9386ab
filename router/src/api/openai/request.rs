//! What both generating routes of this API accept, as clients send it.
//!
//! Everything optional may also be `null`. Fields that nobody knows are ignored, as OpenAI's clients expect; what other
//! servers read and this one does not is refused, as far as the answer would be another.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::generation::parameters::Parameters;
use crate::http::unsupported::UnsupportedField;

/// Sequences that end the text.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum Stop {
    /// One sequence.
    One(String),
    /// Several sequences; whichever comes first ends the text.
    Many(Vec<String>),
}

impl From<Stop> for Vec<String> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::One(text) => vec![text],
            Stop::Many(texts) => texts,
        }
    }
}

/// Any 64-bit integer, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected an integer of 64 bits")]
pub enum Seed {
    /// Fits into a signed integer; a negative one counts as its two's complement.
    Signed(i64),
    /// Does not.
    Unsigned(u64),
}

impl From<Seed> for u64 {
    fn from(seed: Seed) -> Self {
        match seed {
            Seed::Signed(seed) => seed.cast_unsigned(),
            Seed::Unsigned(seed) => seed,
        }
    }
}

/// What a stream brings besides the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Send a last chunk with empty `choices` and the `usage` of the whole request.
    #[serde(default)]
    #[schema(default = false, nullable = true)]
    pub include_usage: Option<bool>,
    /// Send the `usage` so far with every chunk.
    #[serde(default)]
    #[schema(default = false, nullable = true)]
    pub continuous_usage_stats: Option<bool>,
}

/// The fields that both generating routes share, out of either request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shared {
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub n: Option<u32>,
    /// `None`: sample unless `temperature` or `top_p` is 0.
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<Seed>,
    pub stop: Option<Stop>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub include_stop_str_in_output: Option<bool>,
    pub ignore_eos: Option<bool>,
    pub skip_special_tokens: Option<bool>,
    pub cache_salt: Option<String>,
}

impl Shared {
    /// Texts to generate for each prompt. `num_prompts` of them must be able to run at all beside each other.
    pub fn num_choices(
        &self,
        num_prompts: usize,
        max_n: u32,
        max_concurrent: usize,
    ) -> Result<u32, ApiError> {
        let n = self.n.unwrap_or(1);
        if !(1..=max_n).contains(&n) {
            return Err(ApiError::validation(
                "n",
                format!("`n` must be >= 1 and <= {max_n} (--max-n). Given: {n}"),
            ));
        }
        if (n as usize).saturating_mul(num_prompts) > max_concurrent {
            return Err(ApiError::validation(
                "n",
                format!(
                    "`n` = {n} for {num_prompts} prompt(s) is more than the {max_concurrent} requests that this \
                     server takes at once"
                ),
            ));
        }
        Ok(n)
    }

    /// What the stream brings; refused when there is no stream.
    pub fn stream_options(&self) -> Result<StreamOptions, ApiError> {
        match self.stream_options {
            Some(_) if self.stream != Some(true) => Err(ApiError::validation(
                "stream_options",
                "`stream_options` is only allowed when `stream` is true",
            )),
            options => Ok(options.unwrap_or_default()),
        }
    }

    /// The API-independent form; what the routes do differently is left at its default.
    pub fn into_parameters(self) -> Result<Parameters, ApiError> {
        // The most likely token alone has at least a probability of 0.
        let only_likeliest = self.top_p == Some(0.0);
        Ok(Parameters {
            do_sample: if only_likeliest {
                Some(false)
            } else {
                self.do_sample
            },
            temperature: self.temperature,
            top_k: top_k(self.top_k)?,
            top_p: self.top_p.filter(|_| !only_likeliest),
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default())?,
            seed: self.seed.map(u64::from),
            stop: self.stop.map(Vec::from).unwrap_or_default(),
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            cache_salt: self.cache_salt,
            takes_model_defaults: true,
            ..Parameters::default()
        })
    }
}

fn top_k(given: Option<i64>) -> Result<Option<u32>, ApiError> {
    match given {
        None => Ok(None),
        // Off, whatever the model's default.
        Some(-1 | 0) => Ok(Some(0)),
        Some(k @ 1..) => Ok(Some(u32::try_from(k).unwrap_or(u32::MAX))),
        Some(k) => Err(ApiError::validation(
            "top_k",
            format!("`top_k` must be strictly positive, or 0 or -1 for off. Given: {k}"),
        )),
    }
}

fn logit_bias(given: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = given.into_iter().map(|(id, value)| match id.parse() {
        Ok(id) => Ok((id, value)),
        Err(_) => Err(ApiError::validation(
            "logit_bias",
            format!("the keys of `logit_bias` must be token ids. Given: {id:?}"),
        )),
    });
    entries.collect()
}

/// Fields of other servers that neither route reads.
pub const UNSUPPORTED_BY_BOTH: [UnsupportedField; 23] = [
    UnsupportedField::unsupported("guided_json"),
    UnsupportedField::unsupported("guided_regex"),
    UnsupportedField::unsupported("guided_choice"),
    UnsupportedField::unsupported("guided_grammar"),
    UnsupportedField::unsupported("structured_outputs"),
    UnsupportedField::unsupported("json_schema"),
    UnsupportedField::unsupported("regex"),
    UnsupportedField::unsupported("ebnf"),
    UnsupportedField::unsupported("grammar"),
    UnsupportedField::unsupported("min_tokens"),
    UnsupportedField::unsupported("bad_words"),
    UnsupportedField::unsupported("allowed_token_ids"),
    UnsupportedField::unsupported("logits_processors"),
    UnsupportedField::unsupported("use_beam_search"),
    UnsupportedField::unsupported("prompt_logprobs"),
    UnsupportedField::unsupported("prompt_embeds"),
    UnsupportedField::unsupported("truncate_prompt_tokens"),
    UnsupportedField::unsupported("adapter_id"),
    UnsupportedField::unsupported("lora_path"),
    UnsupportedField::unsupported("mirostat"),
    UnsupportedField::unsupported("dry_multiplier"),
    UnsupportedField::unsupported("xtc_probability"),
    UnsupportedField::renamed("max_new_tokens", "max_tokens"),
];

/// Declares a request: its own fields, then those of [`Shared`]. (`#[serde(flatten)]` would do the same, but errors
/// could then no longer name the field.)
macro_rules! request {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name {
            $($own)*
            /// Any name, or none: there is one model.
            pub model: Option<String>,
            /// Answer with server-sent events, a chunk for each piece of text, and `[DONE]` at the end.
            #[schema(default = false)]
            pub stream: Option<bool>,
            /// What a stream brings besides the text.
            #[serde(default, deserialize_with = "crate::http::extract::object")]
            pub stream_options: Option<$crate::api::openai::request::StreamOptions>,
            /// How many texts to generate for each prompt, with different seeds.
            #[schema(default = 1, minimum = 1, maximum = 128)]
            pub n: Option<u32>,
            /// Divides the logits before sampling: higher is more random; 0 takes the most likely token.
            #[schema(default = 1.0, minimum = 0.0, example = 0.7)]
            pub temperature: Option<f32>,
            /// Sample from the most likely tokens that together have this probability; 1 is off, 0 takes the most
            /// likely one.
            #[schema(default = 1.0, minimum = 0.0, maximum = 1.0)]
            pub top_p: Option<f32>,
            /// Sample from this many most likely tokens; 0 and -1 are off.
            #[schema(default = -1, minimum = -1)]
            pub top_k: Option<i64>,
            /// Sample from tokens that have at least this fraction of the most likely token's probability; 0 is off.
            #[schema(default = 0.0, minimum = 0.0, maximum = 1.0)]
            pub min_p: Option<f32>,
            /// Sample from the most typical tokens that together have this probability; 1 is off.
            #[schema(default = 1.0, exclusive_minimum = 0.0, maximum = 1.0)]
            pub typical_p: Option<f32>,
            /// Divides the logits of tokens in the prompt and the text so far; 1 is off.
            #[schema(default = 1.0, exclusive_minimum = 0.0)]
            pub repetition_penalty: Option<f32>,
            /// Subtracted from the logits of tokens that the text so far contains.
            #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
            pub presence_penalty: Option<f32>,
            /// Subtracted from the logits of tokens as often as the text so far contains them.
            #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
            pub frequency_penalty: Option<f32>,
            /// Added to the logits: from token ids, as strings, to values from -100 to 100.
            #[schema(example = json!({"50256": -100}))]
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// The same seed with the same request gives the same text; random when left out.
            pub seed: Option<$crate::api::openai::request::Seed>,
            /// Sequences that end the text; they are not part of it, unless `include_stop_str_in_output` is set.
            pub stop: Option<$crate::api::openai::request::Stop>,
            /// Tokens that end the text, besides the model's own; they are not part of it.
            pub stop_token_ids: Option<Vec<u32>>,
            /// Let the text end with the stop sequence that was found.
            #[schema(default = false)]
            pub include_stop_str_in_output: Option<bool>,
            /// Write the tokenizer's special tokens before the prompt: on for completions, off for chats, whose
            /// template brings them.
            pub add_special_tokens: Option<bool>,
            /// Go on after an end-of-sequence token.
            #[schema(default = false)]
            pub ignore_eos: Option<bool>,
            /// Leave special tokens out of the text.
            #[schema(default = true)]
            pub skip_special_tokens: Option<bool>,
            /// Share the cache of prompts only with requests that give the same: for tenants that must not learn from
            /// the time of an answer what others asked. Any text of 1 to 512 bytes.
            pub cache_salt: Option<String>,
        }

        impl $name {
            /// Takes the fields that both generating routes share.
            pub fn take_shared(&mut self) -> $crate::api::openai::request::Shared {
                $crate::api::openai::request::Shared {
                    stream: self.stream,
                    stream_options: self.stream_options,
                    n: self.n,
                    do_sample: None,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.take(),
                    seed: self.seed,
                    stop: self.stop.take(),
                    stop_token_ids: self.stop_token_ids.take(),
                    include_stop_str_in_output: self.include_stop_str_in_output,
                    ignore_eos: self.ignore_eos,
                    skip_special_tokens: self.skip_special_tokens,
                    cache_salt: self.cache_salt.take(),
                }
            }
        }
    };
}
pub(crate) use request;

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(result: Result<T, ApiError>) -> Option<String> {
        result.unwrap_err().field
    }

    #[test]
    fn top_k_is_off_at_zero_and_minus_one() {
        for (given, expected) in [
            (None, None),
            (Some(0), Some(0)),
            (Some(-1), Some(0)),
            (Some(7), Some(7)),
        ] {
            assert_eq!(top_k(given).unwrap(), expected);
        }
        assert_eq!(field(top_k(Some(-2))).as_deref(), Some("top_k"));
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
    fn n_is_bounded_by_what_can_run_at_once() {
        let shared = |n| Shared {
            n,
            ..Shared::default()
        };
        assert_eq!(shared(None).num_choices(1, 128, 1).unwrap(), 1);
        assert_eq!(shared(Some(4)).num_choices(2, 128, 8).unwrap(), 4);
        for (n, prompts) in [(0, 1), (129, 1), (5, 2)] {
            assert_eq!(
                field(shared(Some(n)).num_choices(prompts, 128, 8)).as_deref(),
                Some("n")
            );
        }
        let error = shared(Some(3)).num_choices(1, 2, 8).unwrap_err();
        assert!(error.message.contains("--max-n"), "{error}");
    }

    #[test]
    fn stream_options_need_a_stream() {
        let shared = |stream| Shared {
            stream,
            stream_options: Some(StreamOptions::default()),
            ..Shared::default()
        };
        shared(Some(true)).stream_options().unwrap();
        assert_eq!(
            field(shared(None).stream_options()).as_deref(),
            Some("stream_options")
        );
    }

    #[test]
    fn a_top_p_of_zero_takes_the_most_likely_token() {
        for top_p in [0.0, -0.0] {
            let shared = Shared {
                top_p: Some(top_p),
                temperature: Some(2.0),
                ..Shared::default()
            };
            let parameters = shared.into_parameters().unwrap();
            assert_eq!(
                (parameters.do_sample, parameters.top_p),
                (Some(false), None)
            );
        }
    }

    #[test]
    fn nothing_given_means_plain_sampling_without_the_stop_text() {
        let parameters = Shared::default().into_parameters().unwrap();
        let expected = Parameters {
            takes_model_defaults: true,
            ..Parameters::default()
        };
        assert_eq!(parameters, expected);
        assert!(!parameters.include_stop && parameters.skip_special_tokens);
        assert_eq!(parameters.do_sample, None);
    }
}
