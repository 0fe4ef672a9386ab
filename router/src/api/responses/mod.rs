//! OpenAI's Responses: `/v1/responses`.

mod background;
pub mod create;
mod events;
mod fields;
mod items;
mod request;
mod response;
pub mod stored;
mod tools;
mod translation;
mod truncation;
