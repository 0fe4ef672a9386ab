//! The API of text-generation-inference: `/generate`, `/generate_stream`, `/`, `/tokenize` and `/chat_tokenize`, and
//! `/invocations`, which takes the bodies of all generating routes.

mod generate;
mod invocations;
mod stream;
mod tokenize;
pub mod types;

use axum::Router;
use axum::routing::{get, post};

use crate::state::AppState;

pub use generate::{__path_compat_generate, __path_generate, compat_generate, generate};
pub use invocations::{__path_invocations, invocations};
pub use stream::{__path_generate_stream, generate_stream};
pub use tokenize::{__path_chat_tokenize, __path_tokenize, chat_tokenize, tokenize};

/// The routes that generate or tokenize.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/", get(super::info::health).post(compat_generate))
        .route("/generate", post(generate))
        .route("/generate_stream", post(generate_stream))
        .route("/tokenize", post(tokenize))
        .route("/chat_tokenize", post(chat_tokenize))
        .route("/invocations", post(invocations))
}
