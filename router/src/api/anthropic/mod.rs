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
