//! Refusal of requests without an accepted API key.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api_keys::as_tenant;
use crate::error::{ApiError, ErrorKind};
use crate::http::route::needs_key;
use crate::observability::request_log;
use crate::state::AppState;

/// Refuses a request without an accepted key, when the server has keys and the request needs one, whether or not its path
/// is known.
pub async fn require_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let keys = &state.config().api_keys;
    if keys.is_empty() || !needs_key(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    match keys.find(request.headers()) {
        Some((tenant, name)) => {
            request_log::note(|record| record.key_name = name);
            as_tenant(tenant, next.run(request)).await
        }
        None => ApiError::new(
            ErrorKind::Unauthorized,
            "the API key is missing or wrong; send it as `Authorization: Bearer <key>`, or as `x-api-key: <key>` or \
             `api-key: <key>`",
        )
        .into_response(),
    }
}
