//! Accounting of one request: its metrics, the attributes of its span, the facts of its log line, and the headers of its
//! answer.

use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use gridwork_engine::{Finish, FinishReason};
use opentelemetry::{Array, StringValue, Value};
use serde::Serialize;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::encoder::EncodingUsage;
use crate::observability::otlp_metrics::Answered;
use crate::observability::telemetry::trace_id;
use crate::observability::{metrics, openmetrics, request_log};

/// Latencies whose buckets show the trace of a request.
const DURATION: &str = "gridwork_request_duration_seconds";
const QUEUE: &str = "gridwork_request_queue_seconds";
const FIRST_TOKEN: &str = "gridwork_time_to_first_token_seconds";
const PER_TOKEN: &str = "gridwork_time_per_output_token_seconds";

/// Times and counts of one request. Where it has several sequences, counts are summed, and times are those of the
/// slowest.
#[derive(Debug, Clone)]
pub struct RequestAccounting {
    pub span: Span,
    /// Trace that the request belongs to, if it is recorded.
    trace_id: Option<String>,
    started: Instant,
    compute_type: String,
    /// Operation of the request, by OpenTelemetry's conventions.
    operation: &'static str,
    model: String,
    pub prompt_chars: usize,
    pub prompt_tokens: usize,
    /// Time for tokenizing and checking.
    pub validation: Duration,
    queue: Duration,
    inference: Duration,
    generated_tokens: u64,
    cached_tokens: u64,
    /// Time to the first token of any sequence.
    first_token: Option<Duration>,
    /// Reasons why the sequences ended, in this order.
    finishes: Vec<&'static str>,
}

impl RequestAccounting {
    /// Accounting of a request that begins now. `compute_type`: the header `x-compute-type`. `operation`: what it asks for,
    /// by OpenTelemetry's conventions. `model`: name of the served model.
    pub fn new(span: Span, compute_type: &str, operation: &'static str, model: &str) -> Self {
        RequestAccounting {
            trace_id: trace_id(&span),
            span,
            started: Instant::now(),
            compute_type: compute_type.to_owned(),
            operation,
            model: model.to_owned(),
            prompt_chars: 0,
            prompt_tokens: 0,
            validation: Duration::ZERO,
            queue: Duration::ZERO,
            inference: Duration::ZERO,
            generated_tokens: 0,
            cached_tokens: 0,
            first_token: None,
            finishes: Vec::new(),
        }
    }

    /// Adds a generated sequence that has ended.
    pub fn add(&mut self, finish: &Finish) {
        self.note_exemplars(finish);
        self.queue = self.queue.max(finish.timing.queue);
        self.inference = self.inference.max(finish.timing.inference);
        self.generated_tokens += u64::from(finish.num_generated_tokens);
        self.cached_tokens += u64::from(finish.num_cached_tokens);
        let first_token = finish.timing.first_token;
        self.first_token = Some(
            self.first_token
                .map_or(first_token, |first| first.min(first_token)),
        );
        self.finishes.push(match finish.reason {
            FinishReason::Length => "length",
            FinishReason::EndOfSequence => "eos_token",
            FinishReason::StopString(_) | FinishReason::StopToken(_) => "stop_sequence",
        });
    }

    /// Notes the request's trace beside the latencies of one of its sequences.
    fn note_exemplars(&self, finish: &Finish) {
        let Some(trace_id) = &self.trace_id else {
            return;
        };
        let timing = &finish.timing;
        openmetrics::note(QUEUE, timing.queue, trace_id);
        openmetrics::note(FIRST_TOKEN, timing.first_token, trace_id);
        if finish.num_generated_tokens > 1 {
            let decoding = (timing.queue + timing.inference).saturating_sub(timing.first_token);
            let per_token = decoding / (finish.num_generated_tokens - 1);
            openmetrics::note(PER_TOKEN, per_token, trace_id);
        }
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
        span.record("time_per_token", self.time_per_token().as_secs_f64());
        span.record("gen_ai.usage.output_tokens", self.generated_tokens as i64);
        span.record(
            "gen_ai.usage.cache_read.input_tokens",
            self.cached_tokens as i64,
        );
        if let Some(first_token) = self.first_token {
            span.record("time_to_first_token", first_token.as_secs_f64());
        }
        let reasons = self.finishes.iter().map(|&reason| match reason {
            "length" => StringValue::from("length"),
            _ => StringValue::from("stop"),
        });
        span.set_attribute(
            "gen_ai.response.finish_reasons",
            Value::Array(Array::String(reasons.collect())),
        );
    }

    fn record_times(&self) {
        let total = self.started.elapsed();
        metrics::request_success().increment(1);
        metrics::request_duration().record(total.as_secs_f64());
        if let Some(trace_id) = &self.trace_id {
            openmetrics::note(DURATION, total, trace_id);
        }
        let after_first = self.generated_tokens.saturating_sub(1);
        let decoding = self
            .first_token
            .map(|first| (self.queue + self.inference).saturating_sub(first));
        Answered {
            operation: self.operation,
            model: &self.model,
            total,
            first_token: self.first_token,
            per_output_token: decoding
                .filter(|_| after_first > 0)
                .map(|time| time.div_f64(after_first as f64)),
            input_tokens: self.prompt_tokens as u64,
            output_tokens: self.generated_tokens,
        }
        .record();
        let span = &self.span;
        span.record("total_time", total.as_secs_f64());
        span.record("validation_time", self.validation.as_secs_f64());
        span.record("queue_time", self.queue.as_secs_f64());
        span.record("inference_time", self.inference.as_secs_f64());
        span.record("gen_ai.usage.input_tokens", self.prompt_tokens as i64);
        request_log::note(|record| {
            record.queue = Some(self.queue);
            record.finish = Some(self.finishes.last().copied().unwrap_or("complete"));
        });
    }
}

impl Drop for RequestAccounting {
    /// Adds to the request's log line what is known at its end, whether it succeeded or not.
    fn drop(&mut self) {
        request_log::note(|record| {
            record.prompt_tokens = (self.prompt_tokens > 0).then_some(self.prompt_tokens as u64);
            if !self.finishes.is_empty() {
                record.generated_tokens = Some(self.generated_tokens);
                record.cached_tokens = Some(self.cached_tokens);
                record.first_token = self.first_token;
            }
        });
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

#[cfg(test)]
mod tests {
    use gridwork_engine::Timing;
    use gridwork_settings::LogLevel;
    use serde_json::Value;

    use super::*;
    use crate::observability::logs::tests::logged as lines_of;
    use crate::observability::request_log::recorded;

    fn finish(generated: u32, cached: u32, first_token_ms: u64) -> Finish {
        Finish {
            reason: FinishReason::StopString("a secret".to_owned()),
            num_generated_tokens: generated,
            num_cached_tokens: cached,
            timing: Timing {
                queue: Duration::from_millis(2),
                first_token: Duration::from_millis(first_token_ms),
                inference: Duration::from_millis(9),
            },
        }
    }

    /// Fields of the line of a request that `answer` handles with its accounting.
    fn fields(answer: impl FnOnce(RequestAccounting) -> Response) -> Value {
        let mut lines = lines_of(LogLevel::Info, || {
            let answer = async { answer(RequestAccounting::new(Span::none(), "cpu", "chat", "m")) };
            let request = recorded("id", "/generate".to_owned(), true, answer);
            drop(futures::executor::block_on(request));
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0]["fields"].take()
    }

    #[test]
    fn the_line_of_a_generation_sums_its_sequences() {
        let fields = fields(|mut accounting| {
            accounting.prompt_tokens = 7;
            accounting.add(&finish(3, 0, 5));
            accounting.add(&finish(4, 6, 4));
            accounting.respond("text")
        });
        assert_eq!(fields["prompt_tokens"], 7);
        assert_eq!(fields["cached_tokens"], 6);
        assert_eq!(fields["generated_tokens"], 7);
        assert_eq!(fields["queue_ms"], 2.0);
        assert_eq!(fields["first_token_ms"], 4.0);
        assert_eq!(fields["reason"], "stop_sequence");
        assert!(!fields.to_string().contains("secret"));
    }

    #[test]
    fn the_line_of_an_encoder_has_no_generated_tokens() {
        let usage = EncodingUsage {
            tokens: 9,
            ..EncodingUsage::default()
        };
        let fields = fields(|accounting| accounting.respond_encoded(&[1.0], &usage));
        assert_eq!(fields["prompt_tokens"], 9);
        assert_eq!(fields["reason"], "complete");
        assert!(fields.get("generated_tokens").is_none());
    }

    #[test]
    fn a_client_that_leaves_between_two_sequences_is_the_reason() {
        let fields = fields(|mut accounting| {
            accounting.prompt_tokens = 7;
            accounting.add(&finish(3, 0, 5));
            drop(accounting);
            let never = futures::stream::pending::<Result<String, std::io::Error>>();
            axum::body::Body::from_stream(never).into_response()
        });
        assert_eq!(fields["prompt_tokens"], 7);
        assert_eq!(fields["reason"], "client_disconnected");
    }
}
