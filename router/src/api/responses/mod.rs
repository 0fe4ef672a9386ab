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

/// The way of a body to its chat, for tests with random bodies.
#[cfg(test)]
pub mod fuzzing {
    use super::request::ResponsesRequest;
    use super::tools::Tools;
    use super::translation;
    use crate::api::conversation::text_or_list::TextOrList;
    use crate::api::openai::ChatRequest;
    use crate::error::ApiError;
    use crate::http::extract;

    pub fn translated(body: &[u8]) -> Result<ChatRequest, ApiError> {
        let mut request: ResponsesRequest = extract::parse(body)?;
        let input = match request.input.take() {
            Some(TextOrList::List(items)) => items,
            Some(TextOrList::Text(_)) | None => Vec::new(),
        };
        let mut tools = Tools::read(request.tools.as_deref().unwrap_or_default())?;
        translation::chat(&request, &[], &input, &mut tools)
    }
}
