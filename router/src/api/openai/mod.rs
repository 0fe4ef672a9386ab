//! The OpenAI-compatible API: chat completions, completions, models.

mod answer;
mod chat;
mod chat_request;
mod choice;
mod chunk;
mod completion_request;
mod completions;
mod embeddings;
mod generation_config;
mod logprobs;
mod models;
mod prompt_cut;
mod request;
mod rerank;
mod response;
mod stream;
mod submit;
mod text_offsets;
mod tools;
mod warm;

use axum::Router;
use axum::routing::{get, post};

use crate::state::AppState;

pub use chat::{__path_chat_completions, chat_completions, chat_prompt};
pub use chat_request::ChatRequest;
pub use completions::{__path_completions, completions};
pub use embeddings::{__path_embeddings, embeddings};
pub use models::{__path_model, __path_models, model, models};
pub use rerank::{__path_rerank, rerank};
pub use warm::{__path_load_model, load_model};

/// The routes of this API.
pub fn routes() -> Router<AppState> {
    models::started_s();
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
}
