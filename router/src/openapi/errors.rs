//! Error responses in the OpenAPI document: every status that a route's errors have in the dialects that it answers in.

use std::collections::BTreeMap;

use axum::http::Method;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use crate::error::{ApiError, Dialect, ErrorKind, ErrorResponse};
use crate::http::route::{ALL_TASKS, Route};

/// Body of an error in OpenAI's dialect.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenAiErrorResponse {
    error: OpenAiError,
}

/// An error in OpenAI's dialect.
#[derive(Debug, Serialize, ToSchema)]
struct OpenAiError {
    message: String,
    /// Class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: String,
    /// Field of the request that is at fault.
    #[schema(value_type = Option<String>)]
    param: Value,
    /// Name of the error, such as `validation`.
    code: String,
}

/// Body of an error in Anthropic's dialect.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnthropicErrorResponse {
    /// `error`.
    #[serde(rename = "type")]
    kind: String,
    error: AnthropicError,
}

/// An error in Anthropic's dialect.
#[derive(Debug, Serialize, ToSchema)]
struct AnthropicError {
    /// Class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: String,
    message: String,
}

/// Schemas of the bodies, for the document's components.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(ErrorResponse, OpenAiErrorResponse, AnthropicErrorResponse)))]
pub struct ErrorSchemas;

/// Errors of requests with a body.
const OF_BODIES: [(ErrorKind, &str); 8] = [
    (ErrorKind::InvalidJson, "The body is not valid JSON"),
    (ErrorKind::InvalidType, "A field has the wrong type"),
    (ErrorKind::Validation, "A field cannot be used"),
    (ErrorKind::TooLong, "The input is too long"),
    (ErrorKind::Empty, "The input is empty"),
    (
        ErrorKind::PayloadTooLarge,
        "The body is larger than `--payload-limit`",
    ),
    (ErrorKind::RequestTimeout, "The body came too slowly"),
    (
        ErrorKind::UnsupportedMediaType,
        "The body's `Content-Type` or `Content-Encoding` is not supported",
    ),
];

/// Errors of requests that the model works on.
const OF_WORK: [(ErrorKind, &str); 5] = [
    (
        ErrorKind::Overloaded,
        "Too many requests; come back after `Retry-After` seconds",
    ),
    (
        ErrorKind::RateLimited,
        "The API key has used what it may; come back after `Retry-After` seconds",
    ),
    (ErrorKind::Aborted, "Aborted by its id"),
    (ErrorKind::Generation, "The model failed"),
    (ErrorKind::Internal, "The server failed"),
];

/// Errors of models that are served for another task, or not yet.
const OF_MODELS: [(ErrorKind, &str); 2] = [
    (ErrorKind::WrongTask, "The model is served for another task"),
    (
        ErrorKind::Unavailable,
        "Loading, restarting or shutting down; come back after `Retry-After` seconds",
    ),
];

/// Adds to `operation` the errors of its route that it does not list, and the schema of each.
pub fn complete(operation: &mut Operation, route: &Route) {
    let mut errors: Vec<(ErrorKind, &str)> = Vec::new();
    if route.method == Method::POST {
        errors.extend(OF_BODIES);
        errors.extend(OF_WORK);
    }
    if route.needs_key() {
        errors.push((ErrorKind::Unauthorized, "The API key is missing or wrong"));
    }
    if route.tasks != ALL_TASKS {
        errors.extend(OF_MODELS);
    }
    let mut described: BTreeMap<String, String> = BTreeMap::new();
    for (kind, description) in errors {
        for dialect in dialects(route) {
            let status = ApiError::new(kind, "").status(dialect).as_u16().to_string();
            described
                .entry(status)
                .and_modify(|all| {
                    if !all.contains(description) {
                        *all = format!("{all}. {description}");
                    }
                })
                .or_insert_with(|| description.to_owned());
        }
    }
    let responses = &mut operation.responses.responses;
    for (status, description) in described {
        let response = ResponseBuilder::new().description(description).build();
        responses.entry(status).or_insert(RefOr::T(response));
    }
    for (status, response) in responses.iter_mut() {
        let is_error = status.starts_with(['4', '5']);
        if let RefOr::T(response) = response
            && is_error
        {
            let content = ContentBuilder::new().schema(Some(schema(route))).build();
            response
                .content
                .insert("application/json".to_owned(), RefOr::T(content));
        }
    }
}

/// Paths whose bodies tell which route answers, so that errors may have OpenAI's dialect too.
const BY_BODY: [&str; 4] = ["/invocations", "/vertex", "/tokenize", "/rerank"];

/// Dialects of a route's errors.
fn dialects(route: &Route) -> Vec<Dialect> {
    let own = route.api.dialect();
    if BY_BODY.contains(&route.path) {
        return vec![own, Dialect::Tei, Dialect::OpenAi];
    }
    vec![own]
}

fn schema(route: &Route) -> RefOr<Schema> {
    let mut names: Vec<&str> = dialects(route).into_iter().map(schema_name).collect();
    names.dedup();
    match names.as_slice() {
        [name] => Ref::from_schema_name(*name).into(),
        names => {
            let one = OneOfBuilder::new();
            let one = names
                .iter()
                .fold(one, |one, name| one.item(Ref::from_schema_name(*name)));
            RefOr::T(Schema::OneOf(one.build()))
        }
    }
}

fn schema_name(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Tgi | Dialect::Tei => "ErrorResponse",
        Dialect::OpenAi => "OpenAiErrorResponse",
        Dialect::Anthropic => "AnthropicErrorResponse",
    }
}
