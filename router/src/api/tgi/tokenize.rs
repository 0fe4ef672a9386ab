//! `/tokenize`: what the model sees of a text.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::types::{ErrorResponse, GenerateRequest, SimpleToken};
use crate::error::{ApiError, Dialect};
use crate::extract::ApiJson;
use crate::state::AppState;

/// Tokenize a text, special tokens included.
#[utoipa::path(
    post, path = "/tokenize", tag = "Text generation", request_body = GenerateRequest,
    responses(
        (status = 200, description = "Its tokens", body = Vec<SimpleToken>),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
    )
)]
pub async fn tokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<GenerateRequest>,
) -> Response {
    match run(&state, request.inputs).await {
        Ok(tokens) => Json(tokens).into_response(),
        Err(error) => error.into_response(Dialect::Tgi),
    }
}

async fn run(state: &AppState, inputs: String) -> Result<Vec<SimpleToken>, ApiError> {
    if inputs.is_empty() {
        return Err(ApiError::validation("inputs", "`inputs` cannot be empty"));
    }
    let encoding = state
        .validator()
        .encode(inputs.clone(), true, "inputs")
        .await?;
    Ok(encoding
        .get_ids()
        .iter()
        .zip(encoding.get_offsets())
        .map(|(&id, &(start, stop))| SimpleToken {
            id,
            text: inputs.get(start..stop).unwrap_or_default().to_owned(),
            start,
            stop,
        })
        .collect())
}
