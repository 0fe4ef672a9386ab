//! Routes whose bodies tell which other route or form they are for: `/` and `/invocations`, `/rerank` and `/tokenize`.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::{IntoResponse, Response};
use gridwork_proto::v1::Task;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{
    CHAT_COMPLETIONS, COMPLETIONS, EMBED_INPUTS, EMBEDDINGS, GENERATE_EITHER, PREDICT_LABELS,
    RERANK_DOCUMENTS, RERANK_TEXTS,
};
use crate::api::tgi::types::{CompatGenerateRequest, GenerateResponse};
use crate::api::{openai, tei, tgi};
use crate::error::{ApiError, Dialect, ErrorResponse, written};
use crate::http::extract;
use crate::http::route::{LISTED, Route, served_task};
use crate::state::AppState;

/// Do what `/v1/chat/completions` does with a body that has `messages`, `/v1/completions` with one that has `prompt`,
/// and `/` with any other.
#[utoipa::path(
    post, path = LISTED, request_body = CompatGenerateRequest,
    responses(
        (status = 200, description = "What that route answers", body = Vec<GenerateResponse>),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn invocations(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    let route = target(Task::Generate, &fields);
    Ok(route.answer(request, state).await)
}

/// Answers a request to `/` or `/invocations` of an encoder as the route for its task and body.
pub async fn by_task(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    let route = target(served_task(&state).unwrap_or_default(), &fields);
    Ok(route.answer(request, state).await)
}

/// Answers `/rerank`, where text-embeddings-inference takes `texts` and vLLM takes `documents`, each in its own form.
pub async fn rerank(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    if fields.documents.is_some() {
        return Ok(RERANK_DOCUMENTS.answer(request, state).await);
    }
    Ok(tei::rerank::rerank.call(request, state).await)
}

/// Answers `/tokenize`, which text-generation-inference and text-embeddings-inference call with `inputs`, each in its own
/// form, and vLLM with `prompt` or `messages`. The last form has OpenAI's errors.
pub async fn tokenize(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    if fields.are_of_vllm() {
        let answer = openai::tokenize::tokenize(State(state), request).await;
        return Ok(written(answer.into_response(), Dialect::OpenAi));
    }
    Ok(match served_task(&state).unwrap_or_default() {
        Task::Generate | Task::Unspecified => tgi::tokenize::tokenize.call(request, state).await,
        _ => tei::tokenize::tokenize.call(request, state).await,
    })
}

/// Fields that tell whose body it is. All are absent in a body that is not JSON.
#[derive(Debug, Default, Deserialize)]
struct Fields {
    messages: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
    input: Option<IgnoredAny>,
    inputs: Option<IgnoredAny>,
    documents: Option<IgnoredAny>,
}

impl Fields {
    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// True for the body of vLLM's `/tokenize`.
    fn are_of_vllm(&self) -> bool {
        self.inputs.is_none() && (self.prompt.is_some() || self.messages.is_some())
    }
}

/// Reads the body of a request, and returns the request with the body in it.
async fn read_fields(request: Request, state: &AppState) -> Result<(Request, Fields), ApiError> {
    let (parts, body) = request.into_parts();
    let whole = Request::from_parts(parts.clone(), body);
    let bytes = extract::read(whole, state.settings().http.payload_limit).await?;
    let (bytes, fields) = extract::off_the_serving_threads(bytes, state, |bytes| {
        (bytes.clone(), Fields::read(bytes))
    })
    .await?;
    Ok((Request::from_parts(parts, Body::from(bytes)), fields))
}

/// Route that a body is for, by the field that only one of the routes for the task has. A body that is not JSON goes to
/// a route of the task, which refuses it.
fn target(task: Task, fields: &Fields) -> &'static Route {
    match task {
        Task::Generate | Task::Unspecified if fields.messages.is_some() => &CHAT_COMPLETIONS,
        Task::Generate | Task::Unspecified if fields.prompt.is_some() => &COMPLETIONS,
        Task::Generate | Task::Unspecified => &GENERATE_EITHER,
        Task::Embed if fields.input.is_some() && fields.inputs.is_none() => &EMBEDDINGS,
        Task::Embed => &EMBED_INPUTS,
        Task::Rerank if fields.documents.is_some() => &RERANK_DOCUMENTS,
        Task::Rerank if fields.inputs.is_none() => &RERANK_TEXTS,
        Task::Rerank | Task::Classify | Task::FillMask => &PREDICT_LABELS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllms_fields_are_its_form_of_tokenize() {
        for (body, expected) in [
            (r#"{"prompt": "a"}"#, true),
            (r#"{"messages": []}"#, true),
            (r#"{"inputs": "a"}"#, false),
            (r#"{"inputs": "a", "prompt": "b"}"#, false),
            ("{}", false),
            ("{", false),
        ] {
            assert_eq!(
                Fields::read(body.as_bytes()).are_of_vllm(),
                expected,
                "{body}"
            );
        }
    }

    #[test]
    fn task_and_fields_tell_whose_body_it_is() {
        for (task, body, expected) in [
            (Task::Generate, r#"{"inputs": "a"}"#, &GENERATE_EITHER),
            (
                Task::Generate,
                r#"{"messages": [], "stream": true}"#,
                &CHAT_COMPLETIONS,
            ),
            (Task::Generate, r#"{"prompt": "a"}"#, &COMPLETIONS),
            (
                Task::Generate,
                r#"{"inputs": "a", "prompt": null}"#,
                &GENERATE_EITHER,
            ),
            (Task::Generate, "{", &GENERATE_EITHER),
            (Task::Generate, "", &GENERATE_EITHER),
            (Task::Embed, r#"{"inputs": "a"}"#, &EMBED_INPUTS),
            (Task::Embed, r#"{"input": "a"}"#, &EMBEDDINGS),
            (Task::Classify, r#"{"inputs": "a"}"#, &PREDICT_LABELS),
            (Task::FillMask, r#"{"inputs": "a"}"#, &PREDICT_LABELS),
            (
                Task::Rerank,
                r#"{"query": "a", "texts": []}"#,
                &RERANK_TEXTS,
            ),
            (
                Task::Rerank,
                r#"{"query": "a", "documents": []}"#,
                &RERANK_DOCUMENTS,
            ),
            (Task::Rerank, r#"{"inputs": ["a", "b"]}"#, &PREDICT_LABELS),
            (Task::Embed, "{", &EMBED_INPUTS),
            (Task::Rerank, "", &RERANK_TEXTS),
        ] {
            let found = target(task, &Fields::read(body.as_bytes()));
            assert_eq!(found.path, expected.path, "{body}");
        }
    }
}
