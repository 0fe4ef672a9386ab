//! HTTP APIs. Each is a thin translation on both sides of one engine call.

mod abort;
mod anthropic;
mod conversation;
mod info;
mod inputs;
pub mod openai;
mod responses;
pub mod routes;
mod served_model;
mod tei;
mod tgi;
mod tokenizer_info;

pub use openai::models::started_s;
