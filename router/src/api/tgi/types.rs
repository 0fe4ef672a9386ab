//! Requests and answers of this API.

use std::collections::BTreeMap;

use gridwork_engine::FinishReason as EngineFinishReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ApiError, ErrorKind};
use crate::generation::parameters::Parameters;
use crate::http::extract::{Body, object};
use crate::http::unsupported::UnsupportedField;

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct GenerateRequest {
    /// The text to continue.
    #[schema(example = "My name is Olivier and I")]
    pub inputs: String,
    /// How to continue it.
    #[serde(default, deserialize_with = "object")]
    pub parameters: Option<GenerateParameters>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct CompatGenerateRequest {
    /// The text to continue.
    #[schema(example = "My name is Olivier and I")]
    pub inputs: String,
    /// How to continue it.
    #[serde(default, deserialize_with = "object")]
    pub parameters: Option<GenerateParameters>,
    /// Answer with server-sent events, as `/generate_stream` does.
    #[serde(default)]
    #[schema(default = false)]
    pub stream: Option<bool>,
}

impl Body for GenerateRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = MISPLACED;
}

impl Body for CompatGenerateRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = MISPLACED;
}

/// The parameters, where they would not be read.
const MISPLACED: &[UnsupportedField] = &[
    UnsupportedField::misplaced("best_of", "parameters"),
    UnsupportedField::misplaced("temperature", "parameters"),
    UnsupportedField::misplaced("repetition_penalty", "parameters"),
    UnsupportedField::misplaced("frequency_penalty", "parameters"),
    UnsupportedField::misplaced("presence_penalty", "parameters"),
    UnsupportedField::misplaced("top_k", "parameters"),
    UnsupportedField::misplaced("top_p", "parameters"),
    UnsupportedField::misplaced("min_p", "parameters"),
    UnsupportedField::misplaced("typical_p", "parameters"),
    UnsupportedField::misplaced("do_sample", "parameters"),
    UnsupportedField::misplaced("max_new_tokens", "parameters"),
    UnsupportedField::misplaced("return_full_text", "parameters"),
    UnsupportedField::misplaced("stop", "parameters"),
    UnsupportedField::misplaced("stop_token_ids", "parameters"),
    UnsupportedField::misplaced("truncate", "parameters"),
    UnsupportedField::misplaced("watermark", "parameters"),
    UnsupportedField::misplaced("details", "parameters"),
    UnsupportedField::misplaced("decoder_input_details", "parameters"),
    UnsupportedField::misplaced("seed", "parameters"),
    UnsupportedField::misplaced("top_n_tokens", "parameters"),
    UnsupportedField::misplaced("grammar", "parameters"),
    UnsupportedField::misplaced("adapter_id", "parameters"),
    UnsupportedField::misplaced("logit_bias", "parameters"),
    UnsupportedField::misplaced("ignore_eos", "parameters"),
    UnsupportedField::misplaced("skip_special_tokens", "parameters"),
    UnsupportedField::misplaced("cache_salt", "parameters"),
];

/// Everything is optional, and may be `null`; fields that nobody knows are ignored.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct GenerateParameters {
    /// Generate so many sequences with different seeds, and answer with the one of highest mean log-probability.
    #[schema(default = 1, minimum = 1)]
    pub best_of: Option<u32>,
    /// Divides the logits before sampling. Asks for sampling.
    #[schema(exclusive_minimum = 0.0, example = 0.5)]
    pub temperature: Option<f32>,
    /// Divides the logits of tokens in the prompt and the text so far; 1 is off.
    #[schema(default = 1.0, exclusive_minimum = 0.0)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens as often as the text so far contains them.
    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that the text so far contains.
    #[schema(default = 0.0, minimum = -2.0, maximum = 2.0)]
    pub presence_penalty: Option<f32>,
    /// Sample from this many most likely tokens. Asks for sampling.
    #[schema(minimum = 1)]
    pub top_k: Option<i64>,
    /// Sample from the most likely tokens that together have this probability; 1 is off. Asks for sampling.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Sample from tokens that have at least this fraction of the most likely token's probability. Asks for sampling.
    #[schema(minimum = 0.0, maximum = 1.0)]
    pub min_p: Option<f32>,
    /// Sample from the most typical tokens that together have this probability; 1 is off. Asks for sampling.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub typical_p: Option<f32>,
    /// Sample. When false and none of the fields that ask for sampling is given, the most likely token is taken.
    #[schema(default = false)]
    pub do_sample: Option<bool>,
    /// Most tokens to generate; what is left of the context when left out.
    #[schema(minimum = 1, example = 20)]
    pub max_new_tokens: Option<u32>,
    /// Begin `generated_text` with `inputs`. Left out: no, but on `/` yes.
    pub return_full_text: Option<bool>,
    /// Sequences that end the text; the one that is found is part of it.
    pub stop: Option<Vec<String>>,
    /// Tokens that end the text, besides the model's own.
    pub stop_token_ids: Option<Vec<u32>>,
    /// Keep only this many tokens at the end of `inputs`.
    #[schema(minimum = 1)]
    pub truncate: Option<usize>,
    /// Not supported; must be false.
    #[schema(default = false)]
    pub watermark: Option<bool>,
    /// Answer with details of every token.
    #[schema(default = false)]
    pub details: Option<bool>,
    /// Answer with the log-probabilities of the prompt's tokens. Implies `details`.
    #[schema(default = false)]
    pub decoder_input_details: Option<bool>,
    /// The same seed with the same request gives the same text; random when left out.
    pub seed: Option<u64>,
    /// Report so many of the most likely tokens at every position.
    #[schema(default = 0, minimum = 0)]
    pub top_n_tokens: Option<u32>,
    /// Not supported by this version; must be left out.
    #[schema(value_type = Option<Object>)]
    pub grammar: Option<serde_json::Value>,
    /// Adapters are not served; must be left out.
    pub adapter_id: Option<String>,
    /// Added to the logits: from token ids to values from -100 to 100.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Go on after an end-of-sequence token.
    #[schema(default = false)]
    pub ignore_eos: Option<bool>,
    /// Leave special tokens out of the text.
    #[schema(default = true)]
    pub skip_special_tokens: Option<bool>,
    /// Share the cache of prompts only with requests that give the same. Any text of 1 to 512 bytes.
    pub cache_salt: Option<String>,
}

impl GenerateParameters {
    /// How many sequences to generate; checked before everything else.
    pub fn best_of(&self, max_best_of: usize) -> Result<usize, ApiError> {
        let best_of = self.best_of.unwrap_or(1) as usize;
        if best_of == 0 || best_of > max_best_of {
            return Err(ApiError::validation(
                "best_of",
                format!("`best_of` must be > 0 and <= {max_best_of}. Given: {best_of}"),
            ));
        }
        if best_of > 1 && !self.asks_for_sampling() {
            return Err(ApiError::validation(
                "best_of",
                "you must use sampling when `best_of` is > 1",
            ));
        }
        if best_of > 1 && self.seed.is_some() {
            return Err(ApiError::validation(
                "seed",
                "`seed` must not be set when `best_of` > 1",
            ));
        }
        Ok(best_of)
    }

    fn asks_for_sampling(&self) -> bool {
        self.do_sample.unwrap_or(false)
            || self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.typical_p.is_some()
    }

    /// In the form that all APIs share. `logprobs`: whether the answer will show those of the generated tokens.
    pub fn translate(self, logprobs: bool, served: &str) -> Result<Parameters, ApiError> {
        let do_sample = self.asks_for_sampling();
        if self
            .temperature
            .is_some_and(|temperature| temperature == 0.0)
        {
            return Err(ApiError::validation(
                "temperature",
                "`temperature` must be strictly positive",
            ));
        }
        let top_k = match self.top_k {
            Some(k) if k < 1 => {
                return Err(ApiError::validation(
                    "top_k",
                    format!("`top_k` must be strictly positive. Given: {k}"),
                ));
            }
            k => k.map(|k| u32::try_from(k).unwrap_or(u32::MAX)),
        };
        if self.watermark == Some(true) {
            return Err(ApiError::validation(
                "watermark",
                "`watermark` is not supported; leave it out",
            ));
        }
        if self.grammar.is_some() {
            return Err(ApiError::validation(
                "grammar",
                "`grammar` is not supported by this version; leave it out",
            ));
        }
        if let Some(adapter) = &self.adapter_id {
            return Err(ApiError {
                message: format!(
                    "the adapter `{adapter}` does not exist: this server serves `{served}` without adapters"
                ),
                field: Some("adapter_id".into()),
                ..ApiError::new(ErrorKind::UnknownModel, "")
            });
        }
        let mut logit_bias = Vec::new();
        for (id, value) in self.logit_bias.unwrap_or_default() {
            let id = id.parse().map_err(|_| {
                ApiError::validation(
                    "logit_bias",
                    format!("`logit_bias` has the key `{id}`, which is not a token id"),
                )
            })?;
            logit_bias.push((id, value));
        }
        Ok(Parameters {
            do_sample: Some(do_sample),
            temperature: self.temperature,
            top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias,
            seed: self.seed,
            max_new_tokens: self.max_new_tokens,
            stop: self.stop.unwrap_or_default(),
            stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            include_stop: true,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
            truncate: self.truncate,
            logprobs,
            top_n_tokens: self.top_n_tokens.unwrap_or(0),
            prompt_logprobs: self.decoder_input_details.unwrap_or(false),
            prompt_top_n: 0,
            cache_salt: self.cache_salt,
            // As text-generation-inference, which takes nothing of how to sample from the model's files.
            default_max_new_tokens: None,
            takes_model_defaults: false,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// `max_new_tokens` reached.
    Length,
    /// The model ended the text.
    EosToken,
    /// A stop sequence or stop token was generated.
    StopSequence,
}

impl From<&EngineFinishReason> for FinishReason {
    fn from(reason: &EngineFinishReason) -> Self {
        match reason {
            EngineFinishReason::Length => FinishReason::Length,
            EngineFinishReason::EndOfSequence => FinishReason::EosToken,
            EngineFinishReason::StopString(_) | EngineFinishReason::StopToken(_) => {
                FinishReason::StopSequence
            }
        }
    }
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Token {
    pub id: u32,
    /// Text that the token adds; for a special token its own name.
    pub text: String,
    pub logprob: f32,
    /// Whether it is one of the tokenizer's special tokens.
    pub special: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PrefillToken {
    pub id: u32,
    pub text: String,
    /// `null` for the first token.
    pub logprob: Option<f32>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BestOfSequence {
    pub generated_text: String,
    pub finish_reason: FinishReason,
    pub generated_tokens: u32,
    pub seed: Option<u64>,
    pub prefill: Vec<PrefillToken>,
    pub tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Details {
    pub finish_reason: FinishReason,
    pub generated_tokens: u32,
    /// Tokens of the prompt that were in the cache already.
    pub cached_tokens: u32,
    /// `null` when nothing was random.
    pub seed: Option<u64>,
    /// Empty unless `decoder_input_details` was asked for.
    pub prefill: Vec<PrefillToken>,
    pub tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of_sequences: Option<Vec<BestOfSequence>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GenerateResponse {
    pub generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// Details of a stream, in its last event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StreamDetails {
    pub finish_reason: FinishReason,
    pub generated_tokens: u32,
    pub seed: Option<u64>,
    /// Tokens of the prompt.
    pub input_length: usize,
    /// Those of them that were in the cache already.
    pub cached_tokens: u32,
}

/// One event of a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StreamResponse {
    /// From 1 on.
    pub index: u32,
    pub token: Token,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// The whole text, in the last event.
    pub generated_text: Option<String>,
    /// In the last event, when `details` was asked for.
    pub details: Option<StreamDetails>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SimpleToken {
    pub id: u32,
    pub text: String,
    /// Byte offset in the text.
    pub start: usize,
    pub stop: usize,
}

/// What the model sees of a conversation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatTokenizeResponse {
    pub tokenize_response: Vec<SimpleToken>,
    /// The prompt that the chat template makes of the conversation.
    pub templated_text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_refused_where_it_would_not_be_read() {
        let parameters = format!("{:?}", GenerateParameters::default());
        let fields: Vec<_> = parameters
            .split(['{', ','])
            .filter_map(|part| part.split_once(':'))
            .map(|(name, _)| name.trim())
            .collect();
        let listed: Vec<_> = MISPLACED.iter().map(|field| field.name).collect();
        assert_eq!(fields, listed);
    }
}
