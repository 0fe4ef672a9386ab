//! HTTP of all APIs: routes, request bodies, answers and streams, accounting and API keys.

pub mod abortable;
pub mod accounting;
pub mod api_key;
pub mod body_encoding;
pub mod extract;
pub mod json_stream;
pub mod path;
pub mod route;
pub mod sse;
pub mod unsupported;
