//! The HTTP APIs: each a thin translation on both sides of one engine call.

mod encoder_info;
pub mod info;
pub mod openai;
pub mod tei;
pub mod tgi;
