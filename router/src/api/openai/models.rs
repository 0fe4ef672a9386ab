//! Handlers of `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::OnceLock;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};

use super::response::{Model, ModelList};
use super::submit::unix_time_s;
use crate::error::ApiError;
use crate::http::route::LISTED;
use crate::state::AppState;

/// The served model, as a list: an entry for each of its names
#[utoipa::path(
    get,
    path = LISTED,
    responses((status = 200, description = "The one model that is served, under each of its names", body = ModelList))
)]
pub async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list".into(),
        data: state
            .config()
            .served_names
            .iter()
            .map(|name| entry(&state, name))
            .collect(),
    })
}

/// The served model
#[utoipa::path(
    get,
    path = LISTED,
    params(("id" = String, Path, description = "Id of the model; slashes in it may stand as they are")),
    responses(
        (status = 200, description = "It is served", body = Model),
        (status = 404, description = "It is not")
    )
)]
pub async fn model(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::validation("model", error.body_text()))?;
    if state.config().served_names.contains(&id) {
        return Ok(Json(entry(&state, &id)));
    }
    Err(ApiError::unknown_model("model", &id, state.served_name()))
}

fn entry(state: &AppState, name: &str) -> Model {
    Model {
        id: name.to_owned(),
        object: "model".into(),
        created: started_s(),
        owned_by: "gridwork".into(),
        root: state.settings().launch.model_id.clone(),
        parent: None,
        max_model_len: max_model_len(state),
    }
}

fn max_model_len(state: &AppState) -> Option<u32> {
    match state.encoder().loaded() {
        Some(info) => u32::try_from(state.encoder().max_input_tokens(&info)).ok(),
        None => state
            .engine()
            .loaded()
            .map(|ready| ready.limits.max_total_tokens),
    }
}

/// Time of the first call, in seconds since 1970. The server calls it when it starts.
pub fn started_s() -> u64 {
    static SINCE: OnceLock<u64> = OnceLock::new();
    *SINCE.get_or_init(unix_time_s)
}
