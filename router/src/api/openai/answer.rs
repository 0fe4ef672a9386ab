//! What both generating routes have in common around an answer.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use tracing::Span;

use super::choice::Choice;
use super::chunk::{ChunkEncoder, Identity, Kind};
use super::request::StreamOptions;
use super::stream::{AnswerStream, End, StreamContent};
use crate::http::headers::Account;
use crate::http::sse;
use crate::state::AppState;

/// Counts a request on `route` and begins its account.
pub fn begin(state: &AppState, route: &'static str) -> Account {
    metrics::counter!("gridwork_requests_total", "route" => route).increment(1);
    Account::new(Instant::now(), &state.settings().launch.compute_type)
}

/// An answer that is streamed.
#[derive(Debug)]
pub struct Streaming {
    pub kind: Kind,
    pub identity: Identity,
    pub options: StreamOptions,
    pub with_logprobs: bool,
}

impl Streaming {
    /// The response whose body is the stream; it records how the answer ended.
    pub fn response(
        self,
        state: &AppState,
        choices: Vec<Choice>,
        mut account: Account,
        span: Span,
    ) -> Response {
        let content = StreamContent {
            logprobs: self.with_logprobs.then(|| Arc::clone(state.tokenizer())),
            include_usage: self.options.include_usage.unwrap_or(false),
            continuous_usage: self.options.continuous_usage_stats.unwrap_or(false),
        };
        let encoder = ChunkEncoder::new(
            self.kind,
            &self.identity,
            choices.len() as u32,
            content.include_usage,
        );
        let head = account.clone();
        let prompt_tokens = account.prompt_tokens as u64;
        let on_end = move |end: End<'_>| match end {
            End::Complete(finishes) => {
                finishes.iter().for_each(|finish| account.add(finish));
                account.record_success(&span);
            }
            End::Failed(error) => error.count(),
            End::Dropped => {
                metrics::counter!("gridwork_request_failures_total", "kind" => "dropped")
                    .increment(1);
            }
        };
        let stream = AnswerStream::new(
            self.kind,
            encoder,
            choices,
            prompt_tokens,
            content,
            Box::new(on_end),
        );
        let mut response = sse::response(stream);
        head.write_for_stream(response.headers_mut());
        response
    }
}
