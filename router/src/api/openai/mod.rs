//! The OpenAI-compatible API: chat completions, completions, models.

pub mod answer;
mod answer_grammar;
pub mod chat;
mod chat_request;
pub mod choice;
mod chunk;
mod completion_request;
pub mod completions;
pub mod embeddings;
mod functions;
mod generation_config;
mod logprobs;
pub mod models;
mod parsed_choice;
mod prompt_cut;
mod prompt_logprobs;
pub mod render;
mod request;
pub mod rerank;
pub mod response;
mod returned_tokens;
pub mod score;
pub mod stream;
pub mod submit;
mod text_offsets;
pub mod tokenize;
mod tools;
pub mod warm;

pub use chat::chat_prompt;
pub use chat_request::ChatRequest;
