//! HTTP APIs. Each is a thin translation on both sides of one engine call.

mod abort;
mod anthropic;
mod conversation;
#[cfg(test)]
mod fuzz_tests;
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
