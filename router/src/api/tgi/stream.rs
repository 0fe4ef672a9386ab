//! Handler of `/generate_stream`, which sends an event for every token.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::response::Response;
use futures::Stream;
use gridwork_engine::{Event, GeneratedToken, Generation, GenerationError};

use super::admission::admit;
use super::tokens::{reported, reported_top};
use super::types::{GenerateRequest, StreamDetails, StreamResponse};
use crate::error::{ApiError, Dialect, ErrorResponse};
use crate::http::accounting::RequestAccounting;
use crate::http::route::{LISTED, Received};
use crate::http::sse::{self, FRAME_BYTES, json_string};
use crate::observability::metrics;
use crate::state::AppState;

/// Continue a text and stream it, token by token.
#[utoipa::path(
    post, path = LISTED, request_body = GenerateRequest,
    responses(
        (status = 200, description = "Server-sent events", body = StreamResponse, content_type = "text/event-stream"),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
        (status = 503, description = "Loading or shutting down; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn generate_stream(call: Received<GenerateRequest>) -> Result<Response, ApiError> {
    let (state, request, accounting) = call.begin_stream();
    stream_response(&state, request, accounting).await
}

/// Submits the request and answers with its stream.
pub(super) async fn stream_response(
    state: &AppState,
    request: GenerateRequest,
    mut accounting: RequestAccounting,
) -> Result<Response, ApiError> {
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
    accounting
        .span
        .record("parameters", format!("{parameters:?}"));
    let parameters = parameters.translate(true, state.served_name())?;
    let text = if full_text {
        inputs.clone()
    } else {
        String::new()
    };
    let valid = admit(state, inputs, parameters, &mut accounting).await?;
    let generation = state.engine().submit(valid.request)?;
    let mut headers = HeaderMap::new();
    accounting.write_for_stream(&mut headers);
    let mut response = sse::response(TokenStream {
        state: state.clone(),
        generation,
        accounting,
        text,
        seed: valid.seed,
        wants_details,
        index: 0,
        ended: false,
    });
    response.headers_mut().extend(headers);
    Ok(response)
}

/// Stream of frames, with one event for each token.
struct TokenStream {
    state: AppState,
    generation: Generation,
    accounting: RequestAccounting,
    /// Text so far.
    text: String,
    seed: Option<u64>,
    wants_details: bool,
    index: u32,
    ended: bool,
}

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
    fn write(&mut self, out: &mut Vec<u8>, mut token: GeneratedToken) {
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
        let mut event = StreamResponse {
            index: self.index,
            token: reported(&tokenizer, &mut token),
            top_tokens: reported_top(&tokenizer, &token.top),
            generated_text: None,
            details: None,
        };
        if let Some(finish) = token.finish {
            self.accounting.add(&finish);
            self.accounting.record_success();
            event.generated_text = Some(std::mem::take(&mut self.text));
            event.details = self.wants_details.then(|| StreamDetails {
                finish_reason: (&finish.reason).into(),
                generated_tokens: finish.num_generated_tokens,
                seed: self.seed,
                input_length: self.accounting.prompt_tokens,
                cached_tokens: finish.num_cached_tokens,
            });
            self.ended = true;
        }
        // Cannot fail: the event has only strings, numbers and options, and is written to memory.
        let _ = sse::json_event(out, &event);
    }

    fn write_error(&mut self, out: &mut Vec<u8>, error: GenerationError) {
        let error = ApiError::from(error);
        error.count();
        let _ = sse::json_event(out, &error.body(Dialect::Tgi));
        self.ended = true;
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            metrics::request_failures("dropped").increment(1);
        }
    }
}

/// Writes a log-probability. JSON has no infinity, so that of an impossible token is `null`.
fn write_number(out: &mut Vec<u8>, value: f32) {
    let _ = serde_json::to_writer(out, &value);
}
