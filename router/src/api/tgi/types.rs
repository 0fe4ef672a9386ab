//! Bodies of this API's requests and answers.

use gridwork_engine::FinishReason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{ApiError, ErrorKind};
use crate::generation::parameters::Parameters;
use crate::generation::table::parameter_table;
use crate::grammar::spelling;
use crate::http::extract::{Body, object};
use crate::http::unsupported::UnsupportedField;

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct GenerateRequest {
    /// The text to continue.
    #[schema(example = "My name is Olivier and I")]
    pub inputs: String,
    /// Parameters of the generation.
    #[serde(default, deserialize_with = "object")]
    pub parameters: Option<GenerateParameters>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct CompatGenerateRequest {
    /// The text to continue.
    #[schema(example = "My name is Olivier and I")]
    pub inputs: String,
    /// Parameters of the generation.
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

macro_rules! tgi_parameters {
    (
        {
            $(#[$attribute:meta])*
            pub struct $parameters:ident {
                $($(#[$own_attribute:meta])* pub $own:ident: Option<$own_type:ty>,)*
            }
        }
        $(
            $(#[$doc:meta])* $name:ident: $type:ty {
                meaning $meaning:tt
                openai $openai:tt
                tgi { $($(#[$field_attribute:meta])* $field:ident: $field_type:ty $(=> $conversion:expr)?;)? }
                transformers $transformers:tt
            }
        )*
    ) => {
        $(#[$attribute])*
        pub struct $parameters {
            $($(#[$own_attribute])* pub $own: Option<$own_type>,)*
            $($($(#[$field_attribute])* pub $field: Option<$field_type>,)?)*
        }

        /// Parameters at the top level of a body, where they are not read.
        const MISPLACED: &[UnsupportedField] = &[
            $(UnsupportedField::misplaced(stringify!($own), "parameters"),)*
            $($(UnsupportedField::misplaced(stringify!($field), "parameters"),)?)*
        ];

        impl $parameters {
            /// Converts the parameters of the table.
            fn into_table(self) -> Result<Parameters, ApiError> {
                Ok(Parameters {
                    $($($name: self.$field$(.map($conversion).transpose()?)?,)?)*
                    ..Parameters::default()
                })
            }
        }
    };
}

parameter_table! { tgi_parameters =>
    /// Every field is optional and may be `null`. Unknown fields are ignored.
    #[derive(Debug, Clone, Default, Deserialize, ToSchema)]
    #[serde(default)]
    pub struct GenerateParameters {
        /// Generate this many sequences with different seeds, and answer with the one of highest mean log-probability.
        #[schema(default = 1, minimum = 1)]
        pub best_of: Option<u32>,
        /// Begin `generated_text` with `inputs`. Left out: only on `/`.
        pub return_full_text: Option<bool>,
        /// Answer with details of every token.
        #[schema(default = false)]
        pub details: Option<bool>,
        /// Answer with the log-probabilities of the prompt's tokens. Implies `details`.
        #[schema(default = false)]
        pub decoder_input_details: Option<bool>,
        /// Grammar that the text follows: `{"type", "value"}`, where the type is `json` (or `json_object`) with a JSON
        /// schema, `json_schema` with `{"schema"}`, `regex`, `choice`, or `grammar` in Lark or in EBNF with `::=`. What
        /// cannot be enforced exactly is refused.
        #[schema(value_type = Option<Object>)]
        pub grammar: Option<serde_json::Value>,
        /// Adapters are not served; must be left out.
        pub adapter_id: Option<String>,
    }
}

impl GenerateParameters {
    /// Parameters in the form that all APIs share. `logprobs`: report the log-probabilities of generated tokens.
    pub fn translate(mut self, logprobs: bool, served: &str) -> Result<Parameters, ApiError> {
        let grammar = self.grammar.take();
        let grammar = spelling::read([("grammar", grammar.as_ref())])?;
        if let Some(adapter) = &self.adapter_id {
            return Err(ApiError {
                message: format!(
                    "the adapter `{adapter}` does not exist: this server serves `{served}` without adapters"
                ),
                field: Some("adapter_id".into()),
                ..ApiError::new(ErrorKind::UnknownModel, "")
            });
        }
        let prompt_logprobs = self.decoder_input_details.unwrap_or(false);
        let parameters = self.into_table()?;
        let do_sample = parameters.do_sample.unwrap_or(false) || parameters.asks_for_sampling();
        // As in text-generation-inference, the model's generation config does not matter for sampling.
        Ok(Parameters {
            do_sample: Some(do_sample),
            include_stop: Some(true),
            grammar,
            logprobs,
            prompt_logprobs,
            ..parameters
        })
    }

    /// Number of sequences to generate. Checked before all other parameters.
    pub fn best_of(&self, max_best_of: usize) -> Result<usize, ApiError> {
        let best_of = self.best_of.unwrap_or(1) as usize;
        if best_of == 0 || best_of > max_best_of {
            return Err(ApiError::validation(
                "best_of",
                format!("`best_of` must be > 0 and <= {max_best_of}. Given: {best_of}"),
            ));
        }
        Ok(best_of)
    }
}

/// Refuses several sequences that would all be the same.
pub fn check_best_of(best_of: usize, parameters: &Parameters) -> Result<(), ApiError> {
    if best_of > 1 && parameters.do_sample != Some(true) {
        return Err(ApiError::validation(
            "best_of",
            "you must use sampling when `best_of` is > 1",
        ));
    }
    if best_of > 1 && parameters.seed.is_some() {
        return Err(ApiError::validation(
            "seed",
            "`seed` must not be set when `best_of` > 1",
        ));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TgiFinishReason {
    /// `max_new_tokens` was reached.
    Length,
    /// The model ended the text.
    EosToken,
    /// A stop sequence or stop token was generated.
    StopSequence,
}

impl From<&FinishReason> for TgiFinishReason {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::Length => TgiFinishReason::Length,
            FinishReason::EndOfSequence => TgiFinishReason::EosToken,
            FinishReason::StopString(_) | FinishReason::StopToken(_) => {
                TgiFinishReason::StopSequence
            }
        }
    }
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Token {
    pub id: u32,
    /// Text that the token adds; the name of a special token.
    pub text: String,
    pub logprob: f32,
    /// True if it is one of the tokenizer's special tokens.
    pub special: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PrefillToken {
    pub id: u32,
    pub text: String,
    /// Natural logarithm of the probability; `null` for the first token.
    pub logprob: Option<f32>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BestOfSequence {
    pub generated_text: String,
    pub finish_reason: TgiFinishReason,
    pub generated_tokens: u32,
    pub seed: Option<u64>,
    pub prefill: Vec<PrefillToken>,
    pub tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Details {
    pub finish_reason: TgiFinishReason,
    pub generated_tokens: u32,
    /// Number of prompt tokens that were in the cache already.
    pub cached_tokens: u32,
    /// Seed of the random numbers; `null` when the generation was greedy.
    pub seed: Option<u64>,
    /// The prompt's tokens. Empty unless `decoder_input_details` is set.
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
    pub finish_reason: TgiFinishReason,
    pub generated_tokens: u32,
    pub seed: Option<u64>,
    /// Number of tokens of the prompt.
    pub input_length: usize,
    /// Number of prompt tokens that were in the cache already.
    pub cached_tokens: u32,
}

/// One event of a stream.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StreamResponse {
    /// Position of the token in the generated text, from 1.
    pub index: u32,
    pub token: Token,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// The whole text; in the last event only.
    pub generated_text: Option<String>,
    /// Set in the last event when `details` is set.
    pub details: Option<StreamDetails>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SimpleToken {
    pub id: u32,
    pub text: String,
    /// Offset of the token's begin in the text, in bytes.
    pub start: usize,
    pub stop: usize,
}

/// Prompt of a conversation, and its tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatTokenizeResponse {
    pub tokenize_response: Vec<SimpleToken>,
    /// The prompt that the chat template renders.
    pub templated_text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_at_the_top_level_are_refused() {
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
