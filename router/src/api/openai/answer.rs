//! Streamed answers of both generating routes.

use std::sync::Arc;

use axum::response::Response;

use super::choice::RunningChoice;
use super::chunk::{AnswerKind, ChunkEncoder, Identity};
use super::request::StreamOptions;
use super::stream::{AnswerStream, OnEnd, StreamContent, StreamEnd};
use crate::http::accounting::RequestAccounting;
use crate::http::sse;
use crate::observability::metrics;
use crate::state::AppState;

/// An answer to stream.
#[derive(Debug)]
pub struct Streaming {
    pub kind: AnswerKind,
    pub identity: Identity,
    pub options: StreamOptions,
    pub with_logprobs: bool,
}

impl Streaming {
    /// Response with the stream as its body. The stream records how the answer ended.
    pub fn response(
        self,
        state: &AppState,
        choices: Vec<RunningChoice>,
        accounting: RequestAccounting,
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
        let head = accounting.clone();
        let prompt_tokens = accounting.prompt_tokens as u64;
        let stream = AnswerStream::new(
            self.kind,
            encoder,
            choices,
            prompt_tokens,
            content,
            record_end(accounting),
        );
        let mut response = sse::response(stream);
        head.write_for_stream(response.headers_mut());
        response
    }
}

/// Records how a streamed answer ended.
pub fn record_end(mut accounting: RequestAccounting) -> OnEnd {
    Box::new(move |end: StreamEnd<'_>| match end {
        StreamEnd::Complete(finishes) => {
            finishes.iter().for_each(|finish| accounting.add(finish));
            accounting.record_success();
        }
        StreamEnd::Failed(error) => error.count(),
        StreamEnd::Dropped => {
            metrics::request_failures("dropped").increment(1);
        }
    })
}
