//! Spans of one request in the engine: queue, prefill and decode, children of the HTTP request's span.

use opentelemetry::trace::TraceContextExt;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The request's current phase. Dropping it ends the phase's span.
pub(crate) struct RequestSpans {
    request: Span,
    phase: Span,
}

impl RequestSpans {
    pub fn queued(request: &Span) -> Self {
        RequestSpans {
            request: request.clone(),
            phase: info_span!(parent: request, "queue"),
        }
    }

    pub fn prefill(&mut self) {
        self.phase = info_span!(parent: &self.request, "prefill");
    }

    pub fn decode(&mut self) {
        self.phase = info_span!(parent: &self.request, "decode");
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
