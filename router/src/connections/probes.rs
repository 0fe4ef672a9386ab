//! Probes that a full server still answers.

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{ApiError, Dialect, ErrorKind};

/// Routes that are answered when all connections are in use.
pub const PROBES: [&str; 5] = ["/health", "/livez", "/ping", "/info", "/metrics"];

/// Answers probes and refuses all other requests. Either way the connection ends. `dialect_of`: dialect of a path's
/// errors.
pub(super) async fn only_probes(
    State(dialect_of): State<fn(&str) -> Dialect>,
    request: Request,
    next: Next,
) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_probe = reads && PROBES.contains(&request.uri().path());
    let mut response = if is_probe {
        next.run(request).await
    } else {
        let error = ApiError {
            retry_after_s: Some(1),
            ..ApiError::new(
                ErrorKind::Unavailable,
                "all connections that this server takes are in use (--max-connections)",
            )
        };
        error.response(dialect_of(request.uri().path()))
    };
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
