//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::OnceLock;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};

use super::response::{Model, ModelList};
use super::submit::unix_time_s;
use crate::error::{ApiError, Dialect};
use crate::state::AppState;

/// The served model, as a list: an entry for each of its names
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    responses((status = 200, description = "The one model that is served, under each of its names", body = ModelList))
)]
pub async fn models(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list".into(),
        data: state
            .config()
            .served_names
            .iter()
            .map(|name| served(&state, name))
            .collect(),
    })
}

/// The served model
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "Id of the model; slashes in it may stand as they are")),
    responses(
        (status = 200, description = "It is served", body = Model),
        (status = 404, description = "It is not")
    )
)]
pub async fn model(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let id = match id {
        Ok(Path(id)) => id,
        Err(error) => {
            return ApiError::validation("model", error.body_text()).into_response(Dialect::OpenAi);
        }
    };
    if state.config().served_names.contains(&id) {
        return Json(served(&state, &id)).into_response();
    }
    ApiError::unknown_model("model", &id, state.served_name()).into_response(Dialect::OpenAi)
}

fn served(state: &AppState, name: &str) -> Model {
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

/// When this was first called: the routes do it when they are made. In seconds since 1970.
pub fn started_s() -> u64 {
    static SINCE: OnceLock<u64> = OnceLock::new();
    *SINCE.get_or_init(unix_time_s)
}
