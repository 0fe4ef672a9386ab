//! Handler of `POST /load_model`, which `transformers chat` calls before its first message.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::error::Dialect;
use crate::http::extract::{ApiJson, Body};
use crate::http::unread::Unread;
use crate::state::AppState;

/// Request to load a model.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct LoadModelRequest {
    /// Name of the model. Any name is accepted, because one model is served.
    pub model: Option<String>,
}

impl Body for LoadModelRequest {
    const UNREAD: &'static [Unread] = &[];
}

/// Tell that the model is loaded
///
/// The answer is one server-sent event, `data: {"status": "ready", …}`.
#[utoipa::path(
    post,
    path = "/load_model",
    tag = "OpenAI",
    request_body = LoadModelRequest,
    responses(
        (status = 200, description = "It is loaded", content_type = "text/event-stream", body = String),
        (status = 503, description = "Loading, restarting or shutting down"),
    )
)]
pub async fn load_model(
    State(state): State<AppState>,
    ApiJson(request): ApiJson<LoadModelRequest>,
) -> Response {
    if state.encoder().loaded().is_none()
        && let Err(error) = state.ready()
    {
        return error.into_response(Dialect::OpenAi);
    }
    let name = request
        .model
        .unwrap_or_else(|| state.served_name().to_owned());
    let event = json!({"status": "ready", "model": name, "cached": true});
    let content_type = HeaderValue::from_static("text/event-stream");
    (
        [(header::CONTENT_TYPE, content_type)],
        format!("data: {event}\n\n"),
    )
        .into_response()
}
