//! Handler of `POST /load_model`, which `transformers chat` calls before its first message.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::http::extract::{ApiJson, Body};
use crate::http::route::LISTED;
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;

/// Request to load a model.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct LoadModelRequest {
    /// Name of the model. Any name is accepted, because one model is served.
    pub model: Option<String>,
}

impl Body for LoadModelRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Tell that the model is loaded
///
/// The answer is one server-sent event, `data: {"status": "ready", …}`.
#[utoipa::path(
    post,
    path = LISTED,
    request_body = LoadModelRequest,
    responses(
        (status = 200, description = "It is loaded", content_type = "text/event-stream", body = Object),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn load_model(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<LoadModelRequest>,
) -> Result<Response, ApiError> {
    if state.encoder().loaded().is_none() {
        state.ready()?;
    }
    let name = request
        .model
        .unwrap_or_else(|| state.served_name().to_owned());
    let event = json!({"status": "ready", "model": name, "cached": true});
    let content_type = HeaderValue::from_static("text/event-stream");
    let answer = (
        [(header::CONTENT_TYPE, content_type)],
        format!("data: {event}\n\n"),
    );
    Ok(answer.into_response())
}
