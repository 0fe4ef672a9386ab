//! Spans of one request in the engine: queue, prefill and decode, children of the HTTP request's span.

use opentelemetry::trace::TraceContextExt;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The request's current phase. Dropping it ends the phase's span.
pub(crate) struct RequestSpans {
    request: Span,
    /// Span of the chunk of the prompt that is being computed; it ends before its phase.
    chunk: Span,
    phase: Span,
}

impl RequestSpans {
    pub fn queued(request: &Span) -> Self {
        RequestSpans {
            request: request.clone(),
            chunk: Span::none(),
            phase: info_span!(parent: request, "queue"),
        }
    }

    /// Begins the prefill of a prompt, of which the cache has `num_cached` tokens.
    pub fn prefill(&mut self, num_prompt_tokens: usize, num_cached: usize) {
        self.phase = info_span!(
            parent: &self.request,
            "prefill",
            prompt_tokens = num_prompt_tokens as i64,
            cached_tokens = num_cached as i64,
        );
    }

    /// Begins a chunk of the prompt: `num_tokens`, the first of which is at `position`. It lasts until the next chunk or
    /// the first token.
    pub fn chunk(&mut self, position: usize, num_tokens: usize) {
        self.chunk = Span::none();
        self.chunk = info_span!(
            parent: &self.phase,
            "prefill.chunk",
            position = position as i64,
            tokens = num_tokens as i64,
        );
    }

    pub fn decode(&mut self) {
        self.chunk = Span::none();
        self.phase = info_span!(
            parent: &self.request,
            "decode",
            tokens = Empty,
            gen_ai.output.messages = Empty,
        );
    }

    /// Notes the number of generated tokens, the first of which the prefill has made.
    pub fn finished(&self, num_generated: usize) {
        self.phase
            .record("tokens", num_generated.saturating_sub(1) as i64);
    }

    /// Notes the answer, as the message that a span holds.
    pub fn answered(&self, message: &str) {
        self.phase.record("gen_ai.output.messages", message);
    }

    /// W3C `traceparent` of the request's span; empty when the request is not traced.
    pub fn traceparent(&self) -> String {
        if self.request.is_disabled() {
            return String::new();
        }
        let context = self.request.context();
        let span = context.span();
        let span = span.span_context();
        if span.is_valid() && span.is_sampled() {
            format!(
                "00-{}-{}-{:02x}",
                span.trace_id(),
                span.span_id(),
                span.trace_flags().to_u8()
            )
        } else {
            String::new()
        }
    }
}
