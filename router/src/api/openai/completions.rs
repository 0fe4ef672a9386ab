//! `POST /v1/completions`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use tracing::Span;

use super::answer::{Streaming, begin};
use super::choice::Choice;
use super::chunk::{Identity, Kind};
use super::completion_request::{CompletionRequest, DEFAULT_MAX_TOKENS, OnePrompt};
use super::response::{Completion, CompletionChoice, CompletionLogprobs, FinishReason, Usage};
use super::submit::{Order, OrderedPrompt};
use super::token_text::TokenTexts;
use crate::error::{ApiError, Dialect};
use crate::generation::parameters::{FieldNames, Parameters, Prompt};
use crate::http::extract::ApiJson;
use crate::http::headers::Account;
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// Go on with a text
///
/// With `stream`, the answer is a stream of server-sent events: `data: ` and a chunk each, at the end `data: [DONE]`.
/// A request that is refused is answered with its status before the stream begins; a failure later is an event
/// `data: {"error": …}`, after which the stream ends.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, chunks of it", content(
            (Completion = "application/json"),
            (super::response::CompletionChunk = "text/event-stream"),
        )),
        (status = 400, description = "Not valid; `param` names the field"),
        (status = 429, description = "Too many requests; come back after `Retry-After` seconds"),
        (status = 500, description = "Failed while generating"),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn completions(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<CompletionRequest>,
) -> Response {
    let span = request_span(&headers, "POST", "/v1/completions");
    match answer(&state, request, span).await {
        Ok(response) => response,
        Err(error) => error.into_response(Dialect::OpenAi),
    }
}

async fn answer(
    state: &AppState,
    mut request: CompletionRequest,
    span: Span,
) -> Result<Response, ApiError> {
    let mut account = begin(state, "completions");
    let shared = request.take_shared();
    request.check_supported(state.config().max_client_batch_size)?;
    let echo = request.echo.unwrap_or(false);
    let prompts: Vec<_> = request.prompt.into_prompts();
    let num_choices = shared.num_choices(
        prompts.len(),
        state.settings().limits.max_n,
        state.settings().limits.max_concurrent_requests,
    )?;
    let stream = shared.stream.unwrap_or(false);
    let stream_options = shared.stream_options()?;
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    let echo_only = request.max_tokens == Some(0);
    let with_logprobs = request.logprobs.is_some();
    state.ready()?;

    let order = Order {
        prompts: prompts
            .into_iter()
            .map(|prompt| ordered(prompt, echo, add_special_tokens))
            .collect(),
        parameters: Parameters {
            // The engine always generates; one token is the least.
            max_new_tokens: request.max_tokens.map(|tokens| tokens.max(1)),
            logprobs: with_logprobs,
            top_n_tokens: request.logprobs.unwrap_or(0),
            prompt_logprobs: with_logprobs && echo,
            prompt_top_n: request.logprobs.filter(|_| echo).unwrap_or(0),
            ..shared.into_parameters()?
        },
        names: FieldNames {
            prompt: "prompt",
            max_new_tokens: "max_tokens",
            top_n_tokens: "logprobs",
        },
        num_choices,
        default_limit: request.max_tokens.is_none().then_some(DEFAULT_MAX_TOKENS),
        echo,
        echo_only,
    };
    let choices = order.submit(state, &span, &mut account).await?;
    let identity = Identity::new("cmpl", state);
    if stream {
        let streaming = Streaming {
            kind: Kind::Completion,
            identity,
            options: stream_options,
            with_logprobs,
        };
        return Ok(streaming.response(state, choices, account, span));
    }
    let body = collect(state, identity, choices, &mut account, with_logprobs).await?;
    account.record_success(&span);
    let mut response = Json(body).into_response();
    account.write(response.headers_mut());
    Ok(response)
}

fn ordered(prompt: OnePrompt, echo: bool, add_special_tokens: bool) -> OrderedPrompt {
    match prompt {
        OnePrompt::Text(text) => OrderedPrompt {
            text: echo.then(|| (text.clone(), add_special_tokens)),
            prompt: Prompt::Text {
                text,
                add_special_tokens,
            },
        },
        OnePrompt::Tokens(ids) => OrderedPrompt {
            prompt: Prompt::Tokens(ids),
            text: None,
        },
    }
}

async fn collect(
    state: &AppState,
    identity: Identity,
    mut running: Vec<Choice>,
    account: &mut Account,
    with_logprobs: bool,
) -> Result<Completion, ApiError> {
    let texts = TokenTexts::new(state.tokenizer());
    let mut choices = Vec::with_capacity(running.len());
    let mut generated_tokens = 0;
    for choice in &mut running {
        let mut text = String::new();
        let mut logprobs = with_logprobs.then(CompletionLogprobs::default);
        let mut finish_reason = FinishReason::Length;
        let finish = choice
            .collect(with_logprobs, |piece| {
                if let Some(logprobs) = &mut logprobs {
                    piece.add_to_completion(texts, logprobs);
                }
                finish_reason = piece.finish_reason().unwrap_or(finish_reason);
                text.push_str(&piece.text());
            })
            .await?;
        if let Some(logprobs) = &mut logprobs {
            logprobs.end_at(choice.num_chars());
        }
        account.add(&finish);
        generated_tokens += choice.num_counted();
        choices.push(CompletionChoice {
            index: choice.index,
            text,
            logprobs,
            finish_reason,
        });
    }
    Ok(Completion {
        id: identity.id,
        object: "text_completion".into(),
        created: identity.created,
        model: identity.model,
        system_fingerprint: identity.system_fingerprint,
        choices,
        usage: Usage::new(account.prompt_tokens as u64, generated_tokens)
            .with_cached_tokens(Choice::sum_cached(&running)),
    })
}
