//! Response headers that tell a client's operator where the time went.

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use gridwork_engine::Finish;
use tracing::Span;

/// What one answer took, summed over its sequences where there are several.
#[derive(Debug, Clone)]
pub struct Account {
    pub started: Instant,
    pub compute_type: String,
    pub prompt_chars: usize,
    pub prompt_tokens: usize,
    pub validation: Duration,
    pub queue: Duration,
    pub inference: Duration,
    pub generated_tokens: u64,
}

impl Account {
    pub fn new(started: Instant, compute_type: &str) -> Self {
        Account {
            started,
            compute_type: compute_type.to_owned(),
            prompt_chars: 0,
            prompt_tokens: 0,
            validation: Duration::ZERO,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
            generated_tokens: 0,
        }
    }

    /// Adds one sequence that has ended.
    pub fn add(&mut self, finish: &Finish) {
        self.queue = self.queue.max(finish.timing.queue);
        self.inference = self.inference.max(finish.timing.inference);
        self.generated_tokens += u64::from(finish.num_generated_tokens);
    }

    fn time_per_token(&self) -> Duration {
        self.inference / u32::try_from(self.generated_tokens.max(1)).unwrap_or(u32::MAX)
    }

    /// The headers of a complete answer.
    pub fn write(&self, headers: &mut HeaderMap) {
        let total = self.started.elapsed();
        let mut set = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-compute-type", self.compute_type.clone());
        set("x-compute-time", total.as_secs_f64().to_string());
        set("x-compute-characters", self.prompt_chars.to_string());
        set("x-total-time", total.as_millis().to_string());
        set("x-validation-time", self.validation.as_millis().to_string());
        set("x-queue-time", self.queue.as_millis().to_string());
        set("x-inference-time", self.inference.as_millis().to_string());
        set(
            "x-time-per-token",
            self.time_per_token().as_millis().to_string(),
        );
        set("x-prompt-tokens", self.prompt_tokens.to_string());
        set("x-generated-tokens", self.generated_tokens.to_string());
    }

    /// The headers of a stream, whose times are not known when it begins.
    pub fn write_for_stream(&self, headers: &mut HeaderMap) {
        for (name, value) in [
            ("x-compute-type", self.compute_type.clone()),
            ("x-compute-characters", self.prompt_chars.to_string()),
            ("x-prompt-tokens", self.prompt_tokens.to_string()),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }

    /// Records a successful answer: metrics, and the attributes of the request's span.
    pub fn record_success(&self, span: &Span) {
        let total = self.started.elapsed();
        metrics::counter!("gridwork_request_success_total").increment(1);
        metrics::histogram!("gridwork_request_duration_seconds").record(total.as_secs_f64());
        metrics::histogram!("gridwork_request_generated_tokens")
            .record(self.generated_tokens as f64);
        span.record("total_time", format!("{total:?}"));
        span.record("validation_time", format!("{:?}", self.validation));
        span.record("queue_time", format!("{:?}", self.queue));
        span.record("inference_time", format!("{:?}", self.inference));
        span.record("time_per_token", format!("{:?}", self.time_per_token()));
        span.record("prompt_tokens", self.prompt_tokens);
        span.record("generated_tokens", self.generated_tokens);
    }
}
