//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use tracing::Span;

use super::answer::{Streaming, begin};
use super::chat_request::ChatRequest;
use super::choice::Choice;
use super::chunk::{Identity, Kind};
use super::response::{
    AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs, FinishReason, Usage,
};
use super::submit::{Order, OrderedPrompt};
use super::token_text::TokenTexts;
use crate::chat_template::RenderOptions;
use crate::connections::intake::Ticket;
use crate::error::{ApiError, Dialect, ErrorKind};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::http::extract::ApiJson;
use crate::http::headers::Account;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// Answer a conversation
///
/// With `stream`, the answer is a stream of server-sent events: `data: ` and a chunk each, at the end `data: [DONE]`.
/// A request that is refused is answered with its status before the stream begins; a failure later is an event
/// `data: {"error": …}`, after which the stream ends.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "OpenAI",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, chunks of it", content(
            (ChatCompletion = "application/json"),
            (super::response::ChatCompletionChunk = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn chat_completions(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<ChatRequest>,
) -> Response {
    let span = request_span(&headers, "POST", "/v1/chat/completions");
    match answer(&state, request, span).await {
        Ok(response) => response,
        Err(error) => error.into_response(Dialect::OpenAi),
    }
}

async fn answer(
    state: &AppState,
    mut request: ChatRequest,
    span: Span,
) -> Result<Response, ApiError> {
    let mut account = begin(state, "chat_completions");
    let mut shared = request.take_shared();
    request.check_supported()?;
    let (mut limit_field, mut limit) = request.limit();
    if let Some(config) = request.generation_config.take() {
        if limit.is_none() && config.max_new_tokens.is_some() {
            limit_field = "generation_config.max_new_tokens";
            limit = config.max_new_tokens;
        }
        config.apply(&mut shared)?;
    }
    let num_choices = shared.num_choices(
        1,
        state.settings().limits.max_n,
        state.settings().limits.max_concurrent_requests,
    )?;
    let stream = shared.stream.unwrap_or(false);
    let stream_options = shared.stream_options()?;
    let logprobs = logprobs(&request)?;
    state.ready()?;

    let (text, add_special_tokens) = chat_prompt(state, request).await?;
    let order = Order {
        prompts: vec![OrderedPrompt {
            prompt: Prompt::Text {
                text,
                add_special_tokens,
            },
            text: None,
        }],
        parameters: Parameters {
            max_new_tokens: limit,
            logprobs: logprobs.is_some(),
            top_n_tokens: logprobs.unwrap_or(0),
            ..shared.into_parameters()?
        },
        names: FieldNames {
            prompt: "messages",
            max_new_tokens: limit_field,
            top_n_tokens: "top_logprobs",
        },
        num_choices,
        default_limit: None,
        echo: false,
        echo_only: false,
    };
    let choices = order.submit(state, &span, &mut account).await?;
    let identity = Identity::new("chatcmpl", state);
    if stream {
        let streaming = Streaming {
            kind: Kind::Chat,
            identity,
            options: stream_options,
            with_logprobs: logprobs.is_some(),
        };
        return Ok(streaming.response(state, choices, account, span));
    }
    let body = collect(state, identity, choices, &mut account, logprobs.is_some()).await?;
    account.record_success(&span);
    let mut response = Json(body).into_response();
    account.write(response.headers_mut());
    Ok(response)
}

/// How many alternatives to show; `None`: no log-probabilities at all.
fn logprobs(request: &ChatRequest) -> Result<Option<u32>, ApiError> {
    match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::validation(
            "top_logprobs",
            "`top_logprobs` is only allowed when `logprobs` is true",
        )),
    }
}

/// The conversation as the model was trained to read it, and whether the tokenizer's special tokens go before it. Rendered
/// apart from the threads that serve connections: a template may take long.
pub async fn chat_prompt(
    state: &AppState,
    request: ChatRequest,
) -> Result<(String, bool), ApiError> {
    let bytes = Ticket::current().map_or(0, |ticket| ticket.bytes());
    let of_work = state.clone();
    let rendering = state
        .workers()
        .run(bytes, move || render(&of_work, &request));
    rendering.await?
}

fn render(state: &AppState, request: &ChatRequest) -> Result<(String, bool), ApiError> {
    let (add_generation_prompt, continue_final_message) = request.continuation()?;
    let variables = request.template_variables();
    let options = RenderOptions {
        add_generation_prompt,
        continue_final_message,
        variables: Some(&variables),
    };
    let rendered = match state.chat_template() {
        Ok(template) => template.render(&request.messages, &options),
        Err(error) => Err(error.clone()),
    };
    let text = rendered.map_err(|error| ApiError {
        field: Some("messages".into()),
        ..ApiError::new(ErrorKind::Template, error.to_string())
    })?;
    // The template writes them itself.
    Ok((text, request.add_special_tokens.unwrap_or(false)))
}

async fn collect(
    state: &AppState,
    identity: Identity,
    mut running: Vec<Choice>,
    account: &mut Account,
    with_logprobs: bool,
) -> Result<ChatCompletion, ApiError> {
    let texts = TokenTexts::new(state.tokenizer());
    let mut choices = Vec::with_capacity(running.len());
    let mut generated_tokens = 0;
    for choice in &mut running {
        let mut content = String::new();
        let mut logprobs = with_logprobs.then(ChatLogprobs::default);
        let finish = choice
            .collect(false, |piece| {
                if let Some(logprobs) = &mut logprobs {
                    piece.add_to_chat(texts, logprobs);
                }
                content.push_str(&piece.text());
            })
            .await?;
        account.add(&finish);
        generated_tokens += choice.num_counted();
        choices.push(ChatChoice {
            index: choice.index,
            message: AssistantMessage {
                role: "assistant".into(),
                content,
            },
            logprobs,
            finish_reason: FinishReason::from(&finish.reason),
        });
    }
    Ok(ChatCompletion {
        id: identity.id,
        object: "chat.completion".into(),
        created: identity.created,
        model: identity.model,
        system_fingerprint: identity.system_fingerprint,
        choices,
        usage: Usage::new(account.prompt_tokens as u64, generated_tokens)
            .with_cached_tokens(Choice::sum_cached(&running)),
    })
}
