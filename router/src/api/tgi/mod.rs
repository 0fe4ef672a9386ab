//! The API of text-generation-inference.

mod admission;
pub mod generate;
pub mod stream;
pub mod tokenize;
mod tokens;
pub mod types;
