//! Routes for an operator: health, the served model, metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::served_model::{EncoderInfo, Info, InfoByTask};
use crate::error::{ApiError, Dialect, ErrorKind, ErrorResponse};
use crate::http::route::LISTED;
use crate::observability::openmetrics;
use crate::state::AppState;

/// The served model, its limits and the versions.
#[utoipa::path(
    get, path = LISTED,
    responses(
        (status = 200, description = "The served model", body = InfoByTask),
        (status = 503, description = "The model is still loading", body = ErrorResponse),
    )
)]
pub async fn info(State(state): State<AppState>) -> Response {
    if let Some(info) = state.encoder().loaded() {
        let info = EncoderInfo::new(&state, &info);
        return Json(InfoByTask::Encoder(Box::new(info))).into_response();
    }
    let ready = match state.ready() {
        Ok(ready) => ready,
        Err(error) => return error.uncounted_response(Dialect::Tgi),
    };
    let info = Info::new(&state, &ready);
    Json(InfoByTask::Generator(Box::new(info))).into_response()
}

/// Tell if requests would be answered now.
#[utoipa::path(
    get, path = LISTED,
    responses(
        (status = 200, description = "Everything is well"),
        (status = 503, description = "Loading, hanging, restarting or shutting down", body = ErrorResponse),
    )
)]
pub async fn health(State(state): State<AppState>) -> Response {
    let encoder = &state.encoder().encoder;
    let is_loaded = state.engine().loaded().is_some() || encoder.loaded().is_some();
    let mut response = if state.computes() && !state.engine().is_draining() {
        ().into_response()
    } else {
        unstored(not_ready(&state).uncounted_response(Dialect::Tgi))
    };
    let loaded = HeaderValue::from_static(if is_loaded { "true" } else { "false" });
    response.headers_mut().insert(LOADED, loaded);
    response
}

/// Header of `/health`: whether the model has been loaded, also while a shard is restarted.
const LOADED: HeaderName = HeaderName::from_static("x-gridwork-loaded");

/// Why requests would not be answered now.
fn not_ready(state: &AppState) -> ApiError {
    let encoder = &state.encoder().encoder;
    let message = match state.ready() {
        Err(error) if encoder.loaded().is_none() => error.message,
        _ if state.engine().is_draining() => "the server is shutting down".into(),
        _ => state
            .supervision()
            .trouble()
            .unwrap_or_else(|| "the shard is being restarted".into()),
    };
    ApiError {
        retry_after_s: Some(5),
        ..ApiError::new(ErrorKind::Unavailable, message)
    }
}

/// A response that no proxy keeps.
fn unstored(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Tell if the server's process works, whatever the state of its model.
///
/// It is 200 while the model loads, while a shard is restarted, and while the server shuts down. `/health` tells if
/// requests would be answered.
#[utoipa::path(
    get, path = LISTED,
    responses((status = 200, description = "The process works"))
)]
pub async fn livez() -> Response {
    unstored(().into_response())
}

/// Tell the same as `/health`, on the path that Amazon SageMaker asks.
#[utoipa::path(
    get, path = LISTED,
    responses(
        (status = 200, description = "Everything is well"),
        (status = 503, description = "Loading, hanging, restarting or shutting down", body = ErrorResponse),
    )
)]
pub async fn ping(state: State<AppState>) -> Response {
    health(state).await
}

/// Version of the server.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Version {
    #[schema(example = "0.1.0")]
    pub version: String,
}

/// The version of the server.
#[utoipa::path(
    get, path = LISTED,
    responses((status = 200, description = "The version", body = Version))
)]
pub async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Metrics in Prometheus' text format, or in OpenMetrics' for a scraper that asks for it.
#[utoipa::path(get, path = LISTED, responses((status = 200, description = "Metrics", body = String)))]
pub async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let page = state.render_metrics();
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    let (content_type, page) = if accepted.any(|value| value.contains(openmetrics::MEDIA_TYPE)) {
        (openmetrics::CONTENT_TYPE, openmetrics::of_page(&page))
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", page)
    };
    ([(header::CONTENT_TYPE, content_type)], page).into_response()
}
