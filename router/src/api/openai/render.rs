//! `/v1/chat/completions/render` and `/v1/completions/render`: the prompts that requests become, without generating.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::chat::{Chat, ChatForm};
use super::chat_request::ChatRequest;
use super::completion_request::CompletionRequest;
use crate::error::ApiError;
use crate::generation::parameters::Prompt;
use crate::http::extract::ApiJson;
use crate::http::json_stream;
use crate::http::route::LISTED;
use crate::state::AppState;

/// A prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RenderedPrompt {
    /// Unique id of the answer.
    pub request_id: String,
    /// Id of the served model.
    pub model: String,
    /// Text of the prompt; `null` for a prompt of token ids.
    pub prompt: Option<String>,
    /// Number of tokens.
    pub count: usize,
    pub token_ids: Vec<u32>,
}

/// Render a conversation, without answering it
///
/// Checks the request as `/v1/chat/completions` does.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The prompt", body = RenderedPrompt),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn chat(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<ChatRequest>,
) -> Result<Response, ApiError> {
    let chat = Chat::new(&state, request, &ChatForm::OPENAI)?;
    let (text, token_ids) = chat.tokens(&state).await?;
    respond(
        vec![rendered("chatcmpl", &state, Some(text), token_ids)],
        false,
    )
}

/// Tokenize the prompts of a completion, without continuing them
///
/// Checks the request as `/v1/completions` does. The answer is an array with an entry for each prompt.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The prompts", body = Vec<RenderedPrompt>),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn completion(
    State(state): State<AppState>,
    ApiJson(mut request): ApiJson<CompletionRequest>,
) -> Result<Response, ApiError> {
    request.check_supported(state.config().max_client_batch_size)?;
    state.ready()?;
    let mut prompts = Vec::new();
    for prompt in request.take_prompts(state.tokenizer())? {
        let (text, token_ids) = match prompt {
            Prompt::Tokens(ids) => (None, ids),
            Prompt::Text {
                text,
                add_special_tokens,
            } => {
                let encoding = state
                    .validator()
                    .encode(text.clone(), add_special_tokens, "prompt");
                (Some(text), encoding.await?.ids)
            }
        };
        prompts.push(rendered("cmpl", &state, text, token_ids));
    }
    respond(prompts, true)
}

fn rendered(
    kind: &str,
    state: &AppState,
    prompt: Option<String>,
    token_ids: Vec<u32>,
) -> RenderedPrompt {
    RenderedPrompt {
        request_id: format!("{kind}-{}", uuid::Uuid::new_v4().simple()),
        model: state.served_name().to_owned(),
        prompt,
        count: token_ids.len(),
        token_ids,
    }
}

/// Answers with the prompts, as an array or alone.
fn respond(prompts: Vec<RenderedPrompt>, as_array: bool) -> Result<Response, ApiError> {
    let bytes = |prompt: &RenderedPrompt| {
        prompt.prompt.as_ref().map_or(0, String::len) + size_of_val(prompt.token_ids.as_slice())
    };
    let held_bytes = prompts.iter().map(bytes).sum();
    let mut next = 0;
    let write = move |out: &mut Vec<u8>| {
        if as_array {
            out.push(if next == 0 { b'[' } else { b',' });
        }
        if let Some(prompt) = prompts.get(next) {
            json_stream::push(out, prompt);
        }
        next += 1;
        let more = next < prompts.len();
        if as_array && !more {
            out.push(b']');
        }
        more
    };
    json_stream::response(write, held_bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn prompt(count: usize) -> RenderedPrompt {
        RenderedPrompt {
            request_id: "cmpl-1".into(),
            model: "m".into(),
            prompt: Some("a".into()),
            count,
            token_ids: vec![7; count],
        }
    }

    async fn answer(prompts: Vec<RenderedPrompt>, as_array: bool) -> Value {
        let response = respond(prompts, as_array).expect("an answer");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
        serde_json::from_slice(&body.expect("a body")).expect("JSON")
    }

    #[tokio::test]
    async fn prompts_stand_alone_or_in_an_array() {
        let one = json!({"request_id": "cmpl-1", "model": "m", "prompt": "a", "count": 2, "token_ids": [7, 7]});
        assert_eq!(answer(vec![prompt(2)], false).await, one);
        assert_eq!(answer(vec![prompt(2)], true).await, json!([one]));
        let many = answer(vec![prompt(2), prompt(50_000)], true).await;
        assert_eq!((&many[0], &many[1]["count"]), (&one, &json!(50_000)));
    }
}
