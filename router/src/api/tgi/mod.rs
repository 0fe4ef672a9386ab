//! text-generation-inference's own API.

pub mod generate;
pub mod stream;
pub mod tokenize;
pub mod types;
