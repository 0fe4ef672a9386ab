//! The API of text-generation-inference.

pub mod generate;
pub mod stream;
pub mod tokenize;
pub mod types;
