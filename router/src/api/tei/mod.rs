//! text-embeddings-inference's API for encoders.

pub mod decode;
pub mod embed;
pub mod predict;
pub mod rerank;
pub mod similarity;
pub mod tokenize;
mod types;

pub use predict::PredictResponse;
pub use types::{EncoderToken, Rank};
