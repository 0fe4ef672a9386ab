//! The HTTP APIs: each a thin translation on both sides of one engine call.

pub mod info;
pub mod openai;
pub mod tgi;
