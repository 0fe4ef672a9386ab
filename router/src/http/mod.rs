//! What all APIs share of HTTP: bodies in, answers and streams out, headers and keys.

pub mod body_encoding;
pub mod credentials;
pub mod extract;
pub mod headers;
pub mod json_stream;
pub mod keys;
pub mod sse;
pub mod unread;
