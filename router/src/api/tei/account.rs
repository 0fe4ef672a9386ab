//! Counting a request of an encoder, and what its answer's headers say.

use std::time::{Duration, Instant};

use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Span;

use crate::encoder::Usage;
use crate::error::{ApiError, Dialect};
use crate::state::AppState;

/// One request, from its arrival on.
pub struct Account {
    started: Instant,
    span: Span,
    dialect: Dialect,
}

impl Account {
    /// Counts a request on `route`.
    pub fn begin(route: &'static str, dialect: Dialect, span: Span) -> Self {
        metrics::counter!("gridwork_requests_total", "route" => route).increment(1);
        Account {
            started: Instant::now(),
            span,
            dialect,
        }
    }

    /// The response to the request.
    pub fn respond<T: Serialize>(
        self,
        state: &AppState,
        result: Result<(T, Usage), ApiError>,
    ) -> Response {
        let (answer, usage) = match result {
            Ok(answered) => answered,
            Err(error) => return error.into_response(self.dialect),
        };
        let total = self.started.elapsed();
        metrics::counter!("gridwork_request_success_total").increment(1);
        metrics::histogram!("gridwork_request_duration_seconds").record(total.as_secs_f64());
        self.span.record("total_time", format!("{total:?}"));
        self.span
            .record("validation_time", format!("{:?}", usage.tokenization));
        self.span.record("queue_time", format!("{:?}", usage.queue));
        self.span
            .record("inference_time", format!("{:?}", usage.inference));
        self.span.record("prompt_tokens", usage.tokens);
        let mut response = Json(answer).into_response();
        let ms = |time: Duration| time.as_millis().to_string();
        for (name, value) in [
            (
                "x-compute-type",
                state.settings().launch.compute_type.clone(),
            ),
            ("x-compute-time", total.as_secs_f64().to_string()),
            ("x-compute-characters", usage.chars.to_string()),
            ("x-compute-tokens", usage.tokens.to_string()),
            ("x-prompt-tokens", usage.tokens.to_string()),
            ("x-total-time", ms(total)),
            ("x-tokenization-time", ms(usage.tokenization)),
            ("x-queue-time", ms(usage.queue)),
            ("x-inference-time", ms(usage.inference)),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}
