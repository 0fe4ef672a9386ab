//! Handlers of `/tokenize` and `/chat_tokenize`: the tokens of a text and of a conversation.

use axum::extract::State;
use axum::response::Response;

use super::types::{ChatTokenizeResponse, GenerateRequest, SimpleToken};
use crate::api::openai::{ChatRequest, chat_prompt};
use crate::error::{ApiError, ErrorResponse};
use crate::http::extract::ApiJson;
use crate::http::json_stream;
use crate::http::route::LISTED;
use crate::state::AppState;
use crate::tokenizing::text_encoder::TokenizedText;

/// Tokenize a text, special tokens included.
pub async fn tokenize(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<GenerateRequest>,
) -> Result<Response, ApiError> {
    if request.inputs.is_empty() {
        let message = "`inputs` cannot be empty";
        return Err(ApiError::validation("inputs", message));
    }
    let tokens = tokens(&state, request.inputs, true, "inputs").await?;
    tokens.respond(b"[", b"]")
}

/// Render a conversation with the model's chat template, and tokenize the result.
#[utoipa::path(
    post, path = LISTED, request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt and its tokens", body = ChatTokenizeResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
    )
)]
pub async fn chat_tokenize(
    State(state): State<AppState>,
    ApiJson(mut request): ApiJson<ChatRequest>,
) -> Result<Response, ApiError> {
    request.prepare()?;
    let (templated_text, add_special_tokens) = chat_prompt(&state, request).await?;
    let tokens = tokens(&state, templated_text, add_special_tokens, "messages").await?;
    // A [`ChatTokenizeResponse`].
    let mut end = b"],\"templated_text\":".to_vec();
    json_stream::push(&mut end, &tokens.text);
    end.push(b'}');
    tokens.respond(b"{\"tokenize_response\":[", &end)
}

async fn tokens(
    state: &AppState,
    text: String,
    add_special_tokens: bool,
    field: &str,
) -> Result<Tokens, ApiError> {
    let encoded = state
        .validator()
        .encode(text.clone(), add_special_tokens, field)
        .await?;
    Ok(Tokens { text, encoded })
}

/// A text and its tokens.
struct Tokens {
    text: String,
    encoded: TokenizedText,
}

impl Tokens {
    /// The JSON of an array of [`SimpleToken`], between `begin` and `end`.
    fn respond(self, begin: &[u8], end: &[u8]) -> Result<Response, ApiError> {
        let Tokens { text, encoded } = self;
        let held_bytes = text.len() + encoded.size_bytes() + end.len();
        let (begin, end) = (begin.to_vec(), end.to_vec());
        let mut next = 0;
        let write = move |out: &mut Vec<u8>| {
            if next == 0 {
                out.extend_from_slice(&begin);
            }
            let token = encoded.ids.get(next).zip(encoded.offsets.get(next));
            let Some((&id, &(start, stop))) = token else {
                out.extend_from_slice(&end);
                return false;
            };
            if next > 0 {
                out.push(b',');
            }
            let text = text.get(start..stop).unwrap_or_default().to_owned();
            let token = SimpleToken {
                id,
                text,
                start,
                stop,
            };
            json_stream::push(out, &token);
            next += 1;
            true
        };
        json_stream::response(write, held_bytes)
    }
}
