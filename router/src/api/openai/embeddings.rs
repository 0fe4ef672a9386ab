//! `POST /v1/embeddings`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gridwork_engine::Output;
use gridwork_proto::v1::Task;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt_cut::cut;
use crate::api::tei::{Account, Inputs, InputsForm, Shape};
use crate::encoder::{Preparation, Usage};
use crate::error::{ApiError, Dialect};
use crate::http::extract::{ApiJson, Body};
use crate::http::unread::Unread;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// What to embed, and how to answer it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// A string, an array of strings, an array of token ids, or an array of arrays of token ids.
    #[schema(value_type = InputsForm)]
    pub input: Inputs,
    /// Any name, or none: there is one model.
    #[expect(dead_code, reason = "documented and accepted, but there is one model")]
    pub model: Option<String>,
    /// `float` when left out.
    pub encoding_format: Option<EncodingFormat>,
    /// Numbers of each vector, the first ones of the model's.
    pub dimensions: Option<u32>,
    /// Cut inputs that are too long, rather than refuse them; left out: as `--auto-truncate` says.
    pub truncate: Option<bool>,
    /// Cut inputs to so many tokens, or to the model's maximum with -1.
    #[schema(minimum = -1)]
    pub truncate_prompt_tokens: Option<i64>,
}

impl Body for EmbeddingRequest {
    const UNREAD: &'static [Unread] = &[Unread::renamed("inputs", "input")];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    Float,
    /// Little-endian 32-bit floats, in base64.
    Base64,
}

/// Vectors, in the order of the inputs.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingList {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
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

#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// A vector for each input
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "OpenAI",
    request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingList),
        (status = 400, description = "Not valid, or the model does not embed; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn embeddings(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<EmbeddingRequest>,
) -> Response {
    let span = request_span(&headers, "POST", "/v1/embeddings");
    let account = Account::begin("embeddings", Dialect::OpenAi, span);
    account.respond(&state, run(&state, request).await)
}

async fn run(
    state: &AppState,
    request: EmbeddingRequest,
) -> Result<(EmbeddingList, Usage), ApiError> {
    let encoder = state.encoder();
    let info = encoder.ready(&[Task::Embed], "/v1/embeddings")?;
    let shape = Shape::new(request.dimensions, None, &info)?;
    let (truncation, max_tokens) = cut(
        state,
        &info,
        request.truncate,
        request.truncate_prompt_tokens,
    )?;
    let preparation = Preparation {
        field: "input",
        truncation: Some(truncation),
        prompt: encoder.prompt(None)?,
        max_tokens,
        vocab_size: info.vocab_size,
    };
    let answer = encoder
        .encode_up_to(
            encoder.limits().max_openai_inputs,
            request.input.items,
            preparation,
            Output::Vector.into(),
            |_| Ok(()),
        )
        .await?;
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let data = answer
        .results
        .into_iter()
        .enumerate()
        .map(|(index, result)| Embedding {
            object: "embedding",
            index,
            embedding: in_format(shape.apply(result.values), format),
        })
        .collect();
    let usage = EmbeddingUsage {
        prompt_tokens: answer.usage.tokens,
        total_tokens: answer.usage.tokens,
    };
    let list = EmbeddingList {
        object: "list",
        data,
        model: state.served_name().to_owned(),
        usage,
    };
    Ok((list, answer.usage))
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
    fn base64_is_of_little_endian_floats() {
        let Vector::Base64(text) = in_format(vec![1.0, -2.0], EncodingFormat::Base64) else {
            panic!("base64");
        };
        assert_eq!(text, "AACAPwAAAMA=");
    }
}
