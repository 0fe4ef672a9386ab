//! `POST /abort_requests` and `POST /abort_request`: end requests by their ids, as vLLM and SGLang do.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api_keys::current_tenant_id;
use crate::error::ApiError;
use crate::http::extract::{ApiJson, Body};
use crate::http::route::LISTED;
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;

/// Maximum number of ids in a request.
const MAX_IDS: usize = 1000;

/// Requests to abort.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct AbortRequest {
    /// Ids of requests: the header `x-request-id`, or the `id` of an answer.
    pub request_ids: Option<Vec<String>>,
    /// A single id, under SGLang's name.
    pub rid: Option<String>,
}

impl Body for AbortRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[UnsupportedField::unsupported("abort_all")];
}

/// Aborted requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AbortResponse {
    /// Ids of requests that have been aborted.
    pub aborted: Vec<String>,
    /// Ids of which no request is being answered for this API key.
    pub unknown: Vec<String>,
}

/// End requests by their ids
///
/// A stream ends with an event that says so; other answers are an error of status 499. Only requests of the same API key
/// are found.
#[utoipa::path(
    post, path = LISTED, request_body = AbortRequest,
    responses(
        (status = 200, description = "Requests that have been aborted", body = AbortResponse),
        (status = 400, description = "Not valid; `param` names the field"),
    )
)]
pub async fn abort(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<AbortRequest>,
) -> Result<Json<AbortResponse>, ApiError> {
    let mut ids = request.request_ids.unwrap_or_default();
    ids.extend(request.rid);
    if ids.is_empty() || ids.len() > MAX_IDS {
        let number = ids.len();
        return Err(ApiError::validation(
            "request_ids",
            format!("`request_ids` must have 1 to {MAX_IDS} ids. Given: {number}"),
        ));
    }
    let is_aborted = |id: &String| state.running_requests().abort(current_tenant_id(), id);
    let (aborted, unknown) = ids.into_iter().partition(is_aborted);
    Ok(Json(AbortResponse { aborted, unknown }))
}
