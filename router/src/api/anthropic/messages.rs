//! Handlers of `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::events::{MessageEvents, PING};
use super::request::MessagesRequest;
use super::response::{MessagesResponse, TokenCount};
use super::translation;
use super::usage::{CacheMarks, Caching};
use crate::api::conversation::history::with_one_instruction;
use crate::api::conversation::run::RunningAnswer;
use crate::api::openai::chat::{Chat, ChatForm};
use crate::error::{ApiError, Dialect};
use crate::http::extract::ApiJson;
use crate::http::route::{LISTED, Received};
use crate::running_requests::also_known_as;
use crate::state::AppState;

/// Form of these routes' chats.
const FORM: ChatForm = ChatForm {
    dialect: Dialect::Anthropic,
    prompt: "messages",
    max_new_tokens: Some("max_tokens"),
    clamps: true,
    fallback: Some(with_one_instruction),
};

/// Fields of a chat, and their names on these routes.
const NAMES: [(&str, &str); 4] = [
    (
        "response_format.json_schema.schema",
        "output_config.format.schema",
    ),
    ("response_format", "output_config.format"),
    ("max_completion_tokens", "max_tokens"),
    ("reasoning_effort", "output_config.effort"),
];

/// Answer a conversation, in Anthropic's form
///
/// With `stream`, the answer is a stream of server-sent events: `message_start`, then for each block
/// `content_block_start`, `content_block_delta` and `content_block_stop`, then `message_delta` and `message_stop`;
/// between them `ping`. An invalid request is refused with its status before the stream begins. A later failure is an
/// event `error`, which ends the stream.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = MessagesRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, events", content(
            (MessagesResponse = "application/json"),
            (Object = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; the message names the field"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
        (status = 529, description = "Too many requests; come back after `Retry-After` seconds"),
    )
)]
pub async fn messages(call: Received<MessagesRequest>) -> Result<Response, ApiError> {
    answer(call).await.map_err(|error| error.renamed(&NAMES))
}

async fn answer(call: Received<MessagesRequest>) -> Result<Response, ApiError> {
    let (state, request, accounting) = call.begin();
    let state = &state;
    let stream = request.stream.unwrap_or(false);
    let ready = state.ready()?;
    let events = MessageEvents {
        id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
        model: state.served_name().to_owned(),
        max_tokens: request.max_tokens,
        caching: Caching {
            marks: CacheMarks::of(&request),
            block_tokens: match ready.limits.prefix_cache {
                true => u64::from(ready.limits.block_size_tokens),
                false => 0,
            },
        },
    };
    also_known_as(&events.id);
    let chat = Chat::new(state, translation::chat(request)?, &FORM)?;
    let answer = RunningAnswer::submit(chat, state, accounting).await?;
    if stream {
        return Ok(answer.stream(events, PING));
    }
    answer.whole(|answer| events.response(answer)).await
}

/// Number of tokens of a conversation
///
/// Counts the tokens of the prompt that the conversation becomes, with its tools and instructions.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = MessagesRequest,
    responses(
        (status = 200, description = "The number", body = TokenCount),
        (status = 400, description = "Not valid; the message names the field"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn count_tokens(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<MessagesRequest>,
) -> Result<Json<TokenCount>, ApiError> {
    let chat = Chat::new(&state, translation::chat(request)?, &FORM)?;
    let (_, tokens) = chat.tokens(&state).await?;
    Ok(Json(TokenCount {
        input_tokens: tokens.len(),
    }))
}
