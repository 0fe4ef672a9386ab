//! Bodies of text-embeddings-inference's routes.

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::inputs::{Inputs, InputsForm, unless_missing};
use crate::encoder::{Input, TruncationDirection};
use crate::error::ApiError;
use crate::http::extract::Body;
use crate::http::unsupported::UnsupportedField;

/// A text, a pair of texts, or an array of arrays of one or two texts.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictInputs {
    pub items: Vec<Input>,
    /// True if the request has a single input instead of an array.
    pub is_single: bool,
}

const PREDICT_FORMS: &str =
    "expected a string, a pair of strings, or an array of arrays of one or two strings";

/// Forms of [`PredictInputs`] in JSON.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PredictForm {
    Text(String),
    Pair([String; 2]),
    One([String; 1]),
    Many(Vec<Vec<String>>),
}

impl<'de> Deserialize<'de> for PredictInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let form = PredictForm::deserialize(deserializer)
            .map_err(|error| unless_missing(error, PREDICT_FORMS))?;
        let (items, is_single) = match form {
            PredictForm::Text(text) | PredictForm::One([text]) => (vec![Input::Text(text)], true),
            PredictForm::Pair([first, second]) => (vec![Input::Pair(first.into(), second)], true),
            PredictForm::Many(items) => {
                let items = items.into_iter().map(|texts| {
                    let mut texts = texts.into_iter();
                    match (texts.next(), texts.next(), texts.next()) {
                        (Some(text), None, None) => Ok(Input::Text(text)),
                        (Some(first), Some(second), None) => Ok(Input::Pair(first.into(), second)),
                        _ => Err(D::Error::custom(PREDICT_FORMS)),
                    }
                });
                (items.collect::<Result<_, _>>()?, false)
            }
        };
        Ok(PredictInputs { items, is_single })
    }
}

/// Body of `/embed`, `/embed_all` and `/embed_sparse`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct EmbedRequest {
    #[schema(value_type = InputsForm)]
    pub inputs: Inputs,
    /// Cut inputs that are too long instead of refusing them; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// End that is cut off; the right one when left out.
    pub truncation_direction: Option<TruncationDirection>,
    /// Name of one of the model's prompts. The prompt is put before each text.
    pub prompt_name: Option<String>,
    /// Scale vectors to length 1; left out: when the model's files say so, or there are none. `/embed` only.
    pub normalize: Option<bool>,
    /// Number of elements of each vector, the first ones of the model's. `/embed` only.
    pub dimensions: Option<u32>,
}

impl Body for EmbedRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Body of `/rerank`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct RerankTextsRequest {
    pub query: String,
    pub texts: Vec<String>,
    pub truncate: Option<bool>,
    pub truncation_direction: Option<TruncationDirection>,
    /// Answer the model's logits instead of their sigmoid.
    pub raw_scores: Option<bool>,
    /// Answer the texts too.
    pub return_text: Option<bool>,
}

impl Body for RerankTextsRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[UnsupportedField::unsupported("top_n")];
}

/// A text's place in the ranking.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Rank {
    /// Index in the request's `texts`.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    pub score: f32,
}

/// Body of `/predict`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct PredictRequest {
    #[schema(value_type = PredictForm)]
    pub inputs: PredictInputs,
    pub truncate: Option<bool>,
    pub truncation_direction: Option<TruncationDirection>,
    /// Answer the model's logits instead of probabilities.
    pub raw_scores: Option<bool>,
    /// Maximum number of labels to answer, best first; all when left out. Of a masked language model the number of
    /// tokens for each mask, 1 to 100, 5 when left out.
    #[schema(minimum = 1)]
    pub top_k: Option<u32>,
    /// Parameters, where huggingface_hub sends them.
    #[serde(default, deserialize_with = "crate::http::extract::object")]
    pub parameters: Option<PredictParameters>,
}

/// Parameters as huggingface_hub sends them.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct PredictParameters {
    /// The same as `top_k` beside `parameters`.
    #[schema(minimum = 1)]
    pub top_k: Option<u32>,
    /// `none` for the model's logits; other values are refused.
    pub function_to_apply: Option<String>,
    /// Not supported, and refused.
    #[schema(value_type = Option<Vec<String>>)]
    pub targets: Option<serde_json::Value>,
}

impl PredictRequest {
    /// Moves the fields of `parameters` to their places beside it.
    pub fn adopt_parameters(&mut self) -> Result<(), ApiError> {
        let Some(parameters) = self.parameters.take() else {
            return Ok(());
        };
        let unsupported = |field: &str, message: &str| {
            let field = format!("parameters.{field}");
            Err(ApiError::validation(&field, format!("`{field}` {message}")))
        };
        if parameters.targets.is_some() {
            return unsupported("targets", "is not supported by this version; leave it out");
        }
        match parameters.function_to_apply.as_deref() {
            None => {}
            Some("none") => self.raw_scores = Some(true),
            Some(_) => {
                return unsupported(
                    "function_to_apply",
                    "must be \"none\", or left out for the model's own",
                );
            }
        }
        self.top_k = self.top_k.or(parameters.top_k);
        Ok(())
    }
}

impl Body for PredictRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// A predicted label, or a token for a mask.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Prediction {
    pub score: f32,
    /// Name of the label, or text of the token.
    pub label: String,
    /// Id of the token; only of a masked language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<u32>,
    /// Text of the token; only of a masked language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_str: Option<String>,
    /// Text with this token in the mask's place; only of a text with one mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<String>,
}

/// Body of `/similarity`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct SimilarityRequest {
    pub inputs: SimilarityInputs,
    #[serde(default, deserialize_with = "crate::http::extract::object")]
    pub parameters: Option<SimilarityParameters>,
}

impl Body for SimilarityRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct SimilarityInputs {
    pub source_sentence: String,
    /// Sentences that the source sentence is compared with.
    pub sentences: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SimilarityParameters {
    pub truncate: Option<bool>,
    pub truncation_direction: Option<TruncationDirection>,
    pub prompt_name: Option<String>,
}

/// Body of `/tokenize` of an encoder.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    pub inputs: TokenizeInputs,
    /// Add the tokenizer's special tokens; true when left out.
    pub add_special_tokens: Option<bool>,
    pub prompt_name: Option<String>,
}

impl Body for TokenizeRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum TokenizeInputs {
    One(String),
    Many(Vec<String>),
}

/// A token of a text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EncoderToken {
    pub id: u32,
    pub text: String,
    pub special: bool,
    /// Byte offset in the text; absent for special tokens.
    pub start: Option<usize>,
    pub stop: Option<usize>,
}

/// A token's weight in a sparse vector.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SparseValue {
    /// Id of the token.
    pub index: u32,
    pub value: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_of_predict_are_texts_and_pairs() {
        let read = |json: &str| serde_json::from_str::<PredictInputs>(json).ok();
        let pair = Input::Pair("a".into(), "b".into());
        let one = Input::Text("a".into());
        for (json, items, is_single) in [
            (r#""a""#, vec![one.clone()], true),
            (r#"["a", "b"]"#, vec![pair.clone()], true),
            (r#"[["a"], ["a", "b"]]"#, vec![one, pair], false),
        ] {
            assert_eq!(
                read(json),
                Some(PredictInputs { items, is_single }),
                "{json}"
            );
        }
        for json in [r#"["a", "b", "c"]"#, r#"[["a", "b", "c"]]"#, "[[]]", "1"] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
