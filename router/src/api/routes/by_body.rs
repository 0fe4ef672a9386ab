//! Routes whose bodies tell which other route or form they are for: `/` and `/invocations`, `/vertex`, `/rerank` and
//! `/tokenize`.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::handler::Handler;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use gridwork_proto::v1::Task;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::answers::{AnswerByTask, TokensByTask};
use super::{
    CHAT_COMPLETIONS, COMPLETIONS, EMBED_INPUTS, EMBEDDINGS, GENERATE_EITHER, GENERATE_TEXT,
    PREDICT_LABELS, RERANK_DOCUMENTS, RERANK_TEXTS,
};
use crate::api::tgi::types::{CompatGenerateRequest, GenerateRequest, StreamResponse};
use crate::api::{openai, tei, tgi};
use crate::error::{ApiError, Dialect, ErrorKind, ErrorResponse, written};
use crate::http::extract::{self, ApiJson};
use crate::http::route::{LISTED, Route, served_task};
use crate::http::unsupported::UnsupportedField;
use crate::state::AppState;

/// Do what `/v1/chat/completions` does with a body that has `messages`, `/v1/completions` with one that has `prompt`,
/// and `/` with any other.
#[utoipa::path(
    post, path = LISTED, request_body = CompatGenerateRequest,
    responses(
        (status = 200, description = "What that route answers", content(
            (Value = "application/json"),
            (StreamResponse = "text/event-stream"),
        )),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
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

/// Continue a text, or do what the model is for
///
/// A generator answers as `/generate`, in an array of one, or with `stream` as `/generate_stream`; `return_full_text` is
/// true when left out. An encoder answers as the route for its task and the body: `/embed`, `/predict` or `/rerank`.
#[utoipa::path(
    post, path = LISTED, request_body = CompatGenerateRequest,
    responses(
        (status = 200, description = "The text, or the answer of an encoder", content(
            (AnswerByTask = "application/json"),
            (StreamResponse = "text/event-stream"),
        )),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn by_task(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    let route = target(served_task(&state).unwrap_or_default(), &fields);
    Ok(route.answer(request, state).await)
}

/// Body of `/vertex`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct VertexRequest {
    /// Bodies of `/generate` or `/v1/chat/completions`; for encoders, of `/`.
    #[schema(value_type = Vec<Object>)]
    pub instances: Vec<Map<String, Value>>,
}

impl extract::Body for VertexRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[];
}

/// Answer of `/vertex`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VertexResponse {
    /// Texts of a generator; answers of an encoder.
    pub predictions: Vec<Value>,
}

/// Answer several requests, as Vertex AI sends them
///
/// When one of them is refused or fails, the answer is its error.
#[utoipa::path(
    post, path = LISTED, request_body = VertexRequest,
    responses(
        (status = 200, description = "An answer to each instance", body = VertexResponse),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
        (status = 429, description = "Too many requests; see Retry-After", body = ErrorResponse),
    )
)]
pub async fn vertex(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let request = Request::from_parts(parts.clone(), body);
    let ApiJson(VertexRequest { instances }) = ApiJson::from_request(request, &state).await?;
    let most = state.config().max_client_batch_size;
    if instances.is_empty() || instances.len() > most {
        let number = instances.len();
        return Err(ApiError::validation(
            "instances",
            format!(
                "`instances` must have 1 to {most} entries (--max-client-batch-size). Given: {number}"
            ),
        ));
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_ENCODING);
    let answers = instances.into_iter().map(|mut instance| {
        // The answer holds whole texts.
        instance.remove("stream");
        let body = Value::Object(instance).to_string();
        let request = Request::from_parts(parts.clone(), Body::from(body.clone()));
        prediction(request, state.clone(), Fields::read(body.as_bytes()))
    });
    match try_join_all(answers).await {
        Ok(predictions) => Ok(Json(VertexResponse { predictions }).into_response()),
        Err(refusal) => Ok(*refusal),
    }
}

/// Answer to one instance: its text, where it is one. The error is a response that is no success.
async fn prediction(
    request: Request,
    state: AppState,
    fields: Fields,
) -> Result<Value, Box<Response>> {
    let route = match target(served_task(&state).unwrap_or_default(), &fields) {
        route if std::ptr::eq(route, &GENERATE_EITHER) => &GENERATE_TEXT,
        route => route,
    };
    let response = route.answer(request, state).await;
    if !response.status().is_success() {
        return Err(Box::new(response));
    }
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    let body = body.unwrap_or_default();
    let answer: Value = serde_json::from_slice(&body).map_err(|error| {
        let error = ApiError::new(
            ErrorKind::Internal,
            format!("an answer is no JSON: {error}"),
        );
        Box::new(error.into_response())
    })?;
    let text = [
        "/generated_text",
        "/choices/0/message/content",
        "/choices/0/text",
    ]
    .into_iter()
    .find_map(|place| answer.pointer(place).cloned());
    Ok(text.unwrap_or(answer))
}

/// Answers `/rerank`, where text-embeddings-inference takes `texts` and vLLM takes `documents`, each in its own form.
pub async fn rerank(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let (request, fields) = read_fields(request, &state).await?;
    if fields.documents.is_some() {
        return Ok(RERANK_DOCUMENTS.answer(request, state).await);
    }
    Ok(tei::rerank::rerank.call(request, state).await)
}

/// Tokenize a text, special tokens included
///
/// text-generation-inference and text-embeddings-inference call this with `inputs`, each in its own form, and vLLM with
/// `prompt` or `messages`. The last form has OpenAI's errors.
#[utoipa::path(
    post, path = LISTED, request_body = GenerateRequest,
    responses(
        (status = 200, description = "Its tokens", body = TokensByTask),
        (status = 404, description = "There is no such adapter", body = ErrorResponse),
        (status = 422, description = "A field cannot be used", body = ErrorResponse),
    )
)]
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
