//! text-embeddings-inference's API for encoders: `/embed`, `/embed_all`, `/embed_sparse`, `/similarity`, `/rerank`,
//! `/predict` and its own `/tokenize`; and what `/v1/embeddings` shares with them.

mod account;
mod by_task;
mod decode;
mod embed;
mod predict;
mod rerank;
mod tokenize;
mod types;
mod vectors;

use axum::Router;
use axum::routing::post;

use crate::state::AppState;

pub use account::Account;
pub use by_task::{by_task, rerank_of_either};
pub use decode::{__path_decode, decode};
pub use embed::{
    __path_embed, __path_embed_all, __path_embed_sparse, __path_similarity, embed, embed_all,
    embed_sparse, similarity,
};
pub use predict::{__path_predict, predict};
pub use rerank::{__path_rerank, rerank};
pub use tokenize::tokenize;
pub use types::{Inputs, InputsForm};
pub use vectors::Shape;

/// The routes that only encoders have.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/embed", post(embed))
        .route("/embed_all", post(embed_all))
        .route("/embed_sparse", post(embed_sparse))
        .route("/similarity", post(similarity))
        .route("/rerank", post(rerank_of_either))
        .route("/predict", post(predict))
        .route("/decode", post(decode))
        .route("/v1/embeddings", post(super::openai::embeddings))
        // Text-embeddings-inference has it here as well.
        .route("/embeddings", post(super::openai::embeddings))
        .route("/v1/rerank", post(super::openai::rerank))
        .route("/v2/rerank", post(super::openai::rerank))
}
