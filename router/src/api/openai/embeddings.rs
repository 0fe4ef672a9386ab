//! `POST /v1/embeddings`.

use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gridwork_engine::Output;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt_cut::cut;
use crate::api::inputs::{Inputs, InputsForm};
use crate::encoder::{Preparation, VectorShape};
use crate::error::ApiError;
use crate::http::extract::Body;
use crate::http::route::{LISTED, Received};
use crate::http::unsupported::UnsupportedField;

/// Body of `/v1/embeddings`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// A string, an array of strings, an array of token ids, or an array of arrays of token ids.
    #[schema(value_type = InputsForm)]
    pub input: Inputs,
    /// Any name, or none: one model is served.
    #[expect(dead_code, reason = "documented and accepted, but there is one model")]
    pub model: Option<String>,
    /// `float` when left out.
    pub encoding_format: Option<EncodingFormat>,
    /// Number of elements of each vector, the first ones of the model's.
    pub dimensions: Option<u32>,
    /// Cut inputs that are too long instead of refusing them; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// Number of tokens that inputs are cut to; -1 for the model's maximum.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
}

impl Body for EmbeddingRequest {
    const UNSUPPORTED: &'static [UnsupportedField] =
        &[UnsupportedField::renamed("inputs", "input")];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    Float,
    /// Little-endian 32-bit floats, in base64.
    Base64,
}

/// Vectors in the order of the inputs.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingList {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: PromptUsage,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Tokens of a request that generates none.
#[derive(Debug, Serialize, ToSchema)]
pub struct PromptUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

impl PromptUsage {
    pub fn new(tokens: usize) -> Self {
        PromptUsage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        }
    }
}

/// A vector for each input
#[utoipa::path(
    post,
    path = LISTED,
    request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingList),
        (status = 400, description = "Not valid, or the model does not embed; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn embeddings(call: Received<EmbeddingRequest>) -> Result<Response, ApiError> {
    let (state, arrival, request, accounting) = call.begin_encoding();
    let encoder = state.encoder();
    let info = arrival.encoder(&state)?;
    let shape = VectorShape::new(request.dimensions, None, &info)?;
    let (truncation, max_tokens) = cut(
        &state,
        &info,
        request.truncate,
        request.truncate_prompt_tokens,
    )?;
    let preparation = Preparation {
        max_inputs: encoder.limits.max_openai_inputs,
        truncation,
        max_tokens,
        prompt: encoder.prompt(None)?,
        ..encoder.preparation(&info, "input")
    };
    let inputs = request.input.items;
    let encoded = encoder
        .encode(inputs, preparation, Output::Vector.into(), |_| Ok(()))
        .await?;
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let data = encoded
        .results
        .into_iter()
        .enumerate()
        .map(|(index, result)| Embedding {
            object: "embedding",
            index,
            embedding: in_format(shape.apply(result.values), format),
        })
        .collect();
    let list = EmbeddingList {
        object: "list",
        data,
        model: state.served_name().to_owned(),
        usage: PromptUsage::new(encoded.usage.tokens),
    };
    Ok(accounting.respond_encoded(&list, &encoded.usage))
}

fn in_format(vector: Vec<f32>, format: EncodingFormat) -> Vector {
    match format {
        EncodingFormat::Float => Vector::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            Vector::Base64(BASE64_STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_encodes_little_endian_floats() {
        let Vector::Base64(text) = in_format(vec![1.0, -2.0], EncodingFormat::Base64) else {
            panic!("base64");
        };
        assert_eq!(text, "AACAPwAAAMA=");
    }
}
