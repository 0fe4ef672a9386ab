//! `/invocations`: the one route that Amazon SageMaker sends everything to.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::generate::compat_generate;
use super::types::{CompatGenerateRequest, ErrorResponse, GenerateResponse};
use crate::api::openai::{chat_completions, completions};
use crate::error::{ApiError, Dialect};
use crate::http::extract;
use crate::state::AppState;

/// Do what `/v1/chat/completions` does with a body that has `messages`, `/v1/completions` with one that has `prompt`,
/// and `/` with any other.
#[utoipa::path(
    post, path = "/invocations", tag = "Text generation", request_body = CompatGenerateRequest,
    responses(
        (status = 200, description = "What that route answers", body = Vec<GenerateResponse>),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn invocations(State(state): State<AppState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let limit_bytes = state.settings().http.payload_limit;
    let whole = Request::from_parts(parts.clone(), body);
    let bytes = match extract::read(whole, limit_bytes).await {
        Ok(bytes) => bytes,
        Err(error) => return error.into_response(Dialect::Tgi),
    };
    let (bytes, target) = match sort(bytes, &state).await {
        Ok(sorted) => sorted,
        Err(error) => return error.into_response(Dialect::Tgi),
    };
    let mut request = Request::from_parts(parts, Body::from(bytes));
    // The path decides how a refusal of the body looks.
    *request.uri_mut() = axum::http::Uri::from_static(target.path());
    match target {
        Target::Chat => chat_completions.call(request, state).await,
        Target::Completion => completions.call(request, state).await,
        Target::Generate => compat_generate.call(request, state).await,
    }
}

async fn sort(bytes: Bytes, state: &AppState) -> Result<(Bytes, Target), ApiError> {
    let sorted = |bytes: &Bytes| (bytes.clone(), target(bytes));
    extract::off_the_serving_threads(bytes, state, sorted).await
}

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Chat,
    Completion,
    Generate,
}

impl Target {
    fn path(self) -> &'static str {
        match self {
            Target::Chat => "/v1/chat/completions",
            Target::Completion => "/v1/completions",
            Target::Generate => "/",
        }
    }
}

/// Tells the routes apart by the one field that each of them needs. What is no JSON is left to `/` to refuse.
fn target(body: &[u8]) -> Target {
    #[derive(Deserialize)]
    struct Telling {
        messages: Option<IgnoredAny>,
        prompt: Option<IgnoredAny>,
    }
    match serde_json::from_slice(body) {
        Ok(Telling {
            messages: Some(_), ..
        }) => Target::Chat,
        Ok(Telling {
            prompt: Some(_), ..
        }) => Target::Completion,
        _ => Target::Generate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_that_a_route_needs_tells_whose_body_it_is() {
        for (body, expected) in [
            (r#"{"inputs": "a"}"#, Target::Generate),
            (r#"{"messages": [], "stream": true}"#, Target::Chat),
            (r#"{"prompt": "a"}"#, Target::Completion),
            (r#"{"inputs": "a", "prompt": null}"#, Target::Generate),
            ("{", Target::Generate),
            ("", Target::Generate),
        ] {
            assert_eq!(target(body.as_bytes()), expected, "{body}");
        }
    }
}
