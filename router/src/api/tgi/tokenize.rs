//! `/tokenize` and `/chat_tokenize`: what the model sees of a text and of a conversation.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::types::{ChatTokenizeResponse, ErrorResponse, GenerateRequest, SimpleToken};
use crate::api::openai::{ChatRequest, chat_prompt};
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
    if request.inputs.is_empty() {
        return ApiError::validation("inputs", "`inputs` cannot be empty")
            .into_response(Dialect::Tgi);
    }
    match tokens(&state, &request.inputs, true, "inputs").await {
        Ok(tokens) => Json(tokens).into_response(),
        Err(error) => error.into_response(Dialect::Tgi),
    }
}

/// Render a conversation as the model's chat template has it, and tokenize that.
#[utoipa::path(
    post, path = "/chat_tokenize", tag = "Text generation", request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt and its tokens", body = ChatTokenizeResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
    )
)]
pub async fn chat_tokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<ChatRequest>,
) -> Response {
    match run_chat(&state, request).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => error.into_response(Dialect::Tgi),
    }
}

async fn run_chat(
    state: &AppState,
    request: ChatRequest,
) -> Result<ChatTokenizeResponse, ApiError> {
    request.check_supported()?;
    let (templated_text, add_special_tokens) = chat_prompt(state, &request).await?;
    Ok(ChatTokenizeResponse {
        tokenize_response: tokens(state, &templated_text, add_special_tokens, "messages").await?,
        templated_text,
    })
}

async fn tokens(
    state: &AppState,
    text: &str,
    add_special_tokens: bool,
    field: &str,
) -> Result<Vec<SimpleToken>, ApiError> {
    let encoded = state
        .validator()
        .encode(text.to_owned(), add_special_tokens, field)
        .await?;
    Ok(encoded
        .ids
        .into_iter()
        .zip(encoded.offsets)
        .map(|(id, (start, stop))| SimpleToken {
            id,
            text: text.get(start..stop).unwrap_or_default().to_owned(),
            start,
            stop,
        })
        .collect())
}
