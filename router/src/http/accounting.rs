//! Accounting of one request: its metrics, the attributes of its span, and the headers of its answer.

use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use gridwork_engine::Finish;
use serde::Serialize;
use tracing::Span;

use crate::encoder::EncodingUsage;
use crate::observability::metrics;

/// Times and counts of one request. Where it has several sequences, counts are summed, and times are those of the
/// slowest.
#[derive(Debug, Clone)]
pub struct RequestAccounting {
    pub span: Span,
    started: Instant,
    compute_type: String,
    pub prompt_chars: usize,
    pub prompt_tokens: usize,
    /// Time for tokenizing and checking.
    pub validation: Duration,
    queue: Duration,
    inference: Duration,
    generated_tokens: u64,
}

impl RequestAccounting {
    /// Accounting of a request that begins now. `compute_type`: the header `x-compute-type`.
    pub fn new(span: Span, compute_type: &str) -> Self {
        RequestAccounting {
            span,
            started: Instant::now(),
            compute_type: compute_type.to_owned(),
            prompt_chars: 0,
            prompt_tokens: 0,
            validation: Duration::ZERO,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
            generated_tokens: 0,
        }
    }

    /// Adds a generated sequence that has ended.
    pub fn add(&mut self, finish: &Finish) {
        self.queue = self.queue.max(finish.timing.queue);
        self.inference = self.inference.max(finish.timing.inference);
        self.generated_tokens += u64::from(finish.num_generated_tokens);
    }

    fn time_per_token(&self) -> Duration {
        self.inference / u32::try_from(self.generated_tokens.max(1)).unwrap_or(u32::MAX)
    }

    /// The complete answer of a generator: records the success and adds the headers.
    pub fn respond(&self, answer: impl IntoResponse) -> Response {
        self.record_success();
        let mut response = answer.into_response();
        let headers = response.headers_mut();
        self.write_common(headers);
        write(
            headers,
            [
                ("x-validation-time", milliseconds(self.validation)),
                ("x-time-per-token", milliseconds(self.time_per_token())),
                ("x-generated-tokens", self.generated_tokens.to_string()),
            ],
        );
        response
    }

    /// The complete answer of an encoder: records the success and adds the headers.
    pub fn respond_encoded<T: Serialize>(mut self, answer: &T, usage: &EncodingUsage) -> Response {
        self.prompt_chars = usage.chars;
        self.prompt_tokens = usage.tokens;
        self.validation = usage.tokenization;
        self.queue = usage.queue;
        self.inference = usage.inference;
        self.record_times();
        let mut response = Json(answer).into_response();
        let headers = response.headers_mut();
        self.write_common(headers);
        write(
            headers,
            [
                ("x-tokenization-time", milliseconds(self.validation)),
                ("x-compute-tokens", self.prompt_tokens.to_string()),
            ],
        );
        response
    }

    /// Headers that complete answers of generators and encoders share.
    fn write_common(&self, headers: &mut HeaderMap) {
        let total = self.started.elapsed();
        self.write_for_stream(headers);
        write(
            headers,
            [
                ("x-compute-time", total.as_secs_f64().to_string()),
                ("x-total-time", milliseconds(total)),
                ("x-queue-time", milliseconds(self.queue)),
                ("x-inference-time", milliseconds(self.inference)),
            ],
        );
    }

    /// Headers of a stream. Its times are not known when it begins.
    pub fn write_for_stream(&self, headers: &mut HeaderMap) {
        write(
            headers,
            [
                ("x-compute-type", self.compute_type.clone()),
                ("x-compute-characters", self.prompt_chars.to_string()),
                ("x-prompt-tokens", self.prompt_tokens.to_string()),
            ],
        );
    }

    /// Records a successful generation: metrics, and attributes of the span.
    pub fn record_success(&self) {
        self.record_times();
        metrics::request_generated_tokens().record(self.generated_tokens as f64);
        let span = &self.span;
        span.record("time_per_token", format!("{:?}", self.time_per_token()));
        span.record("generated_tokens", self.generated_tokens);
    }

    fn record_times(&self) {
        let total = self.started.elapsed();
        metrics::request_success().increment(1);
        metrics::request_duration().record(total.as_secs_f64());
        let span = &self.span;
        span.record("total_time", format!("{total:?}"));
        span.record("validation_time", format!("{:?}", self.validation));
        span.record("queue_time", format!("{:?}", self.queue));
        span.record("inference_time", format!("{:?}", self.inference));
        span.record("prompt_tokens", self.prompt_tokens);
    }
}

fn milliseconds(time: Duration) -> String {
    time.as_millis().to_string()
}

fn write<const N: usize>(headers: &mut HeaderMap, values: [(&'static str, String); N]) {
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
