//! `/generate_stream`: an event for every token.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures::Stream;
use gridwork_engine::{Event, GeneratedToken, Generation, GenerationError};
use tracing::Span;

use super::generate::{own_text, top_token};
use super::types::{ErrorResponse, GenerateRequest, StreamDetails, StreamResponse};
use crate::connections::intake;
use crate::error::{ApiError, Dialect};
use crate::generation::parameters::{FieldNames, Prompt};
use crate::http::extract::ApiJson;
use crate::http::headers::Account;
use crate::http::sse::{self, json_string};
use crate::observability::telemetry::request_span;
use crate::state::AppState;

/// Continue a text and stream it, token by token.
#[utoipa::path(
    post, path = "/generate_stream", tag = "Text generation", request_body = GenerateRequest,
    responses(
        (status = 200, description = "Server-sent events", body = StreamResponse, content_type = "text/event-stream"),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
        (status = 503, description = "Loading or shutting down; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn generate_stream(
    State(state): State<AppState>,
    headers: HeaderMap,
    ApiJson(request): ApiJson<GenerateRequest>,
) -> Response {
    let span = request_span(&headers, "POST", "/generate_stream");
    match stream_response(&state, request, span).await {
        Ok(response) => response,
        Err(error) => error.into_response(Dialect::Tgi),
    }
}

/// Admits the request, then answers with its stream.
pub(super) async fn stream_response(
    state: &AppState,
    request: GenerateRequest,
    span: Span,
) -> Result<Response, ApiError> {
    metrics::counter!("gridwork_requests_total", "route" => "generate_stream").increment(1);
    let mut account = Account::new(Instant::now(), &state.settings().launch.compute_type);
    let GenerateRequest { inputs, parameters } = request;
    let parameters = parameters.unwrap_or_default();
    if parameters.best_of.is_some_and(|best_of| best_of != 1) {
        return Err(ApiError::validation(
            "best_of",
            "`best_of` != 1 is not supported when streaming tokens",
        ));
    }
    if parameters.decoder_input_details == Some(true) {
        return Err(ApiError::validation(
            "decoder_input_details",
            "`decoder_input_details` == true is not supported when streaming tokens",
        ));
    }
    let wants_details = parameters.details.unwrap_or(false);
    let full_text = parameters.return_full_text.unwrap_or(false);
    span.record("parameters", format!("{parameters:?}"));
    let parameters = parameters.translate(true, state.served_name())?;
    account.prompt_chars = inputs.chars().count();
    let text = if full_text {
        inputs.clone()
    } else {
        String::new()
    };
    let prompt = Prompt::Text {
        text: inputs,
        add_special_tokens: true,
    };
    let valid = state
        .validate(prompt, parameters, &FieldNames::TGI, span.clone())
        .await?;
    intake::release_current();
    account.prompt_tokens = valid.prompt_tokens;
    account.validation = valid.validation_time;
    if let Some(seed) = valid.seed {
        span.record("seed", seed);
    }
    let generation = state.engine().submit(valid.request)?;
    let mut headers = HeaderMap::new();
    account.write_for_stream(&mut headers);
    let mut response = sse::response(TokenStream {
        state: state.clone(),
        generation,
        span,
        account,
        text,
        seed: valid.seed,
        wants_details,
        index: 0,
        ended: false,
    });
    response.headers_mut().extend(headers);
    Ok(response)
}

/// Frames of events, one event for each token.
struct TokenStream {
    state: AppState,
    generation: Generation,
    span: Span,
    account: Account,
    /// All text so far.
    text: String,
    seed: Option<u64>,
    wants_details: bool,
    index: u32,
    ended: bool,
}

/// Enough for one frame: what is ready beyond it goes into the next.
const FRAME_BYTES: usize = 16 * 1024;

impl Stream for TokenStream {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut frame = Vec::new();
        while !self.ended && frame.len() < FRAME_BYTES {
            match Pin::new(&mut self.generation).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(Event::Token(token)))) => self.write(&mut frame, token),
                Poll::Ready(Some(Ok(Event::PromptLogprobs(_)))) => {}
                Poll::Ready(Some(Err(error))) => self.write_error(&mut frame, error),
                Poll::Ready(None) => self.ended = true,
            }
        }
        if frame.is_empty() && !self.ended {
            Poll::Pending
        } else {
            Poll::Ready(Some(frame.into()))
        }
    }
}

impl TokenStream {
    fn write(&mut self, out: &mut Vec<u8>, token: GeneratedToken) {
        self.index += 1;
        self.text.push_str(&token.text);
        if token.finish.is_none() && token.top.is_empty() && !token.special {
            let logprob = token.logprob.unwrap_or(0.0);
            out.reserve(128 + token.text.len());
            out.extend_from_slice(b"data: {\"index\":");
            out.extend_from_slice(self.index.to_string().as_bytes());
            out.extend_from_slice(b",\"token\":{\"id\":");
            out.extend_from_slice(token.id.to_string().as_bytes());
            out.extend_from_slice(b",\"text\":");
            json_string(out, &token.text);
            out.extend_from_slice(b",\"logprob\":");
            write_number(out, logprob);
            out.extend_from_slice(
                b",\"special\":false},\"generated_text\":null,\"details\":null}\n\n",
            );
            return;
        }
        let tokenizer = self.state.tokenizer().clone();
        let text = if token.special {
            own_text(&tokenizer, token.id)
        } else {
            token.text
        };
        let mut event = StreamResponse {
            index: self.index,
            token: super::types::Token {
                id: token.id,
                text,
                logprob: token.logprob.unwrap_or(0.0),
                special: token.special,
            },
            top_tokens: token
                .top
                .iter()
                .map(|top| top_token(&tokenizer, top))
                .collect(),
            generated_text: None,
            details: None,
        };
        if let Some(finish) = token.finish {
            self.account.add(&finish);
            self.account.record_success(&self.span);
            event.generated_text = Some(std::mem::take(&mut self.text));
            event.details = self.wants_details.then(|| StreamDetails {
                finish_reason: (&finish.reason).into(),
                generated_tokens: finish.num_generated_tokens,
                seed: self.seed,
                input_length: self.account.prompt_tokens,
                cached_tokens: finish.num_cached_tokens,
            });
            self.ended = true;
        }
        write_event(out, &event);
    }

    fn write_error(&mut self, out: &mut Vec<u8>, error: GenerationError) {
        let error = ApiError::from(error);
        error.count();
        write_event(out, &error.body(Dialect::Tgi));
        self.ended = true;
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            metrics::counter!("gridwork_request_failures_total", "kind" => "dropped").increment(1);
        }
    }
}

fn write_event(out: &mut Vec<u8>, event: &impl serde::Serialize) {
    out.extend_from_slice(b"data: ");
    // Writing to memory what has only strings, numbers and options in it cannot fail.
    let _ = serde_json::to_writer(&mut *out, event);
    out.extend_from_slice(b"\n\n");
}

/// JSON has no infinity: a logprob of a token that cannot be sampled shows as `null`.
fn write_number(out: &mut Vec<u8>, value: f32) {
    let _ = serde_json::to_writer(out, &value);
}
