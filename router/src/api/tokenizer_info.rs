//! `GET /tokenizer_info`: the configuration of the tokenizer, in vLLM's form.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::http::route::LISTED;
use crate::state::AppState;

/// Keys that are paths on the machine of whoever saved the tokenizer.
const PATHS: [&str; 3] = ["name_or_path", "tokenizer_file", "cache_dir"];

/// The tokenizer's configuration
///
/// Content of the model's tokenizer_config.json, with the chat template, wherever that stands.
#[utoipa::path(
    get, path = LISTED,
    responses(
        (status = 200, description = "The configuration", body = Value),
        (status = 404, description = "The model has no tokenizer_config.json"),
    )
)]
pub async fn tokenizer_info(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let path = config_path(&state);
    let text = tokio::fs::read_to_string(&path).await.map_err(|_| {
        ApiError::new(
            ErrorKind::NotFound,
            "the model has no readable tokenizer_config.json",
        )
    })?;
    let mut config: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
        let message = format!("the model's tokenizer_config.json is not a JSON object: {error}");
        ApiError::new(ErrorKind::Internal, message)
    })?;
    config.retain(|key, _| !PATHS.contains(&key.as_str()));
    if let Ok(template) = state.chat_template() {
        config.insert("chat_template".into(), template.source().into());
    }
    Ok(Json(Value::Object(config)))
}

fn config_path(state: &AppState) -> PathBuf {
    let settings = state.settings();
    let launch = &settings.launch;
    let folder = launch.tokenizer_path.as_ref().unwrap_or(&launch.model_path);
    let given = settings.names.tokenizer_config_path.clone();
    given.unwrap_or_else(|| folder.join("tokenizer_config.json"))
}
