//! Anthropic's API: `/v1/messages`.

mod events;
pub mod messages;
mod nonce;
mod request;
mod response;
mod signature;
mod tools;
mod translation;
mod usage;

/// The way of a body to its chat, for tests with random bodies.
#[cfg(test)]
pub mod fuzzing {
    use super::translation;
    use crate::api::openai::ChatRequest;
    use crate::error::ApiError;
    use crate::http::extract;

    pub fn translated(body: &[u8]) -> Result<ChatRequest, ApiError> {
        translation::chat(extract::parse(body)?)
    }
}
