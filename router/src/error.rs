//! Errors of requests, and their statuses and bodies in the dialect of each API.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gridwork_engine::{EncodeError, GenerationError, SubmitError};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::observability::{metrics, request_log};

/// API whose shapes and statuses an error has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// text-generation-inference: `{"error", "error_type"}`.
    Tgi,
    /// OpenAI: `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// text-embeddings-inference: `{"error", "error_type"}`, with statuses and types of its own.
    Tei,
    /// Anthropic: `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
}

/// Kinds of errors. Each has a status and a name in every dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The body is not JSON.
    InvalidJson,
    /// A field is missing or of the wrong type.
    InvalidType,
    /// A value is out of range, or incompatible with another.
    Validation,
    /// Prompt and answer do not fit into the model's context.
    TooLong,
    /// An input of an encoder is empty.
    Empty,
    /// The model is served for another task.
    WrongTask,
    /// The chat template refuses the conversation.
    Template,
    Unauthorized,
    UnknownModel,
    NotFound,
    MethodNotAllowed,
    PayloadTooLarge,
    /// The body came too slowly.
    RequestTimeout,
    UnsupportedMediaType,
    Overloaded,
    /// The API key has used what it may.
    RateLimited,
    /// Loading, restarting or shutting down.
    Unavailable,
    /// The client aborted the request by its id.
    Aborted,
    /// The request was admitted and failed later.
    Generation,
    Internal,
}

/// Error of a request, for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// Field of the request that is at fault, under its name in the request.
    pub field: Option<String>,
    pub retry_after_s: Option<u64>,
    /// Length of the model's context in tokens, for a request that does not fit into it.
    pub context_tokens: Option<usize>,
    /// Number of tokens of a prompt that does not fit into it.
    pub prompt_tokens: Option<usize>,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        ApiError {
            kind,
            message: message.into(),
            field: None,
            retry_after_s: None,
            context_tokens: None,
            prompt_tokens: None,
        }
    }

    /// Error of a value of `field` that cannot be used. The message names the field.
    pub fn validation(field: &str, message: impl Into<String>) -> Self {
        ApiError {
            field: Some(field.to_owned()),
            ..Self::new(ErrorKind::Validation, message)
        }
    }

    /// Error of a `field` that needs more tokens than `context_tokens`.
    pub fn too_long(field: &str, context_tokens: usize, message: impl Into<String>) -> Self {
        ApiError {
            kind: ErrorKind::TooLong,
            context_tokens: Some(context_tokens),
            ..Self::validation(field, message)
        }
    }

    /// The error with the number of tokens of the prompt that is too long.
    pub fn with_prompt_tokens(self, prompt_tokens: usize) -> Self {
        ApiError {
            prompt_tokens: Some(prompt_tokens),
            ..self
        }
    }

    /// The error with other names of fields: `names` are pairs of a beginning of a field's path here, and the client's
    /// name for it.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        for (from, to) in names {
            if let Some(rest) = self
                .field
                .as_ref()
                .and_then(|field| field.strip_prefix(from))
            {
                self.field = Some([to, rest].concat());
            }
            self.message = self.message.replace(&format!("`{from}"), &format!("`{to}"));
        }
        self
    }

    /// Error of a model or adapter that is not served.
    pub fn unknown_model(field: &str, name: &str, served: &str) -> Self {
        let message =
            format!("the model `{name}` does not exist here; this server serves `{served}`");
        ApiError {
            field: Some(field.to_owned()),
            ..Self::new(ErrorKind::UnknownModel, message)
        }
    }

    pub fn status(&self, dialect: Dialect) -> StatusCode {
        match self.kind {
            ErrorKind::InvalidJson | ErrorKind::WrongTask => StatusCode::BAD_REQUEST,
            ErrorKind::InvalidType
            | ErrorKind::Validation
            | ErrorKind::TooLong
            | ErrorKind::Empty
            | ErrorKind::Template => match (dialect, self.kind) {
                (Dialect::OpenAi | Dialect::Anthropic, _) | (Dialect::Tei, ErrorKind::Empty) => {
                    StatusCode::BAD_REQUEST
                }
                (Dialect::Tei, ErrorKind::Validation | ErrorKind::TooLong) => {
                    StatusCode::PAYLOAD_TOO_LARGE
                }
                (Dialect::Tgi | Dialect::Tei, _) => StatusCode::UNPROCESSABLE_ENTITY,
            },
            ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorKind::UnknownModel | ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            ErrorKind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::Overloaded => match dialect {
                // Anthropic's clients know an overloaded server by it.
                Dialect::Anthropic => non_standard(529, StatusCode::SERVICE_UNAVAILABLE),
                _ => StatusCode::TOO_MANY_REQUESTS,
            },
            ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Aborted => non_standard(499, StatusCode::BAD_REQUEST),
            ErrorKind::Generation => match dialect {
                Dialect::Tgi | Dialect::Tei => StatusCode::FAILED_DEPENDENCY,
                Dialect::OpenAi | Dialect::Anthropic => StatusCode::INTERNAL_SERVER_ERROR,
            },
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// `error_type` of TGI's dialect, `kind` of the failure metric.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidJson => "invalid_json",
            ErrorKind::InvalidType
            | ErrorKind::Validation
            | ErrorKind::TooLong
            | ErrorKind::Empty => "validation",
            ErrorKind::WrongTask => "wrong_task",
            ErrorKind::Template => "template_error",
            ErrorKind::Unauthorized => "unauthorized",
            ErrorKind::UnknownModel => "unknown_model",
            ErrorKind::NotFound => "not_found",
            ErrorKind::MethodNotAllowed => "method_not_allowed",
            ErrorKind::PayloadTooLarge => "payload_too_large",
            ErrorKind::RequestTimeout => "request_timeout",
            ErrorKind::UnsupportedMediaType => "unsupported_media_type",
            ErrorKind::Overloaded => "overloaded",
            ErrorKind::RateLimited => "rate_limited",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Aborted => "aborted",
            ErrorKind::Generation => "generation",
            ErrorKind::Internal => "internal",
        }
    }

    /// `error_type` of text-embeddings-inference's dialect, where that has one.
    fn tei_type(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidType | ErrorKind::Validation | ErrorKind::TooLong => "Validation",
            ErrorKind::Empty => "Empty",
            ErrorKind::Overloaded | ErrorKind::RateLimited => "Overloaded",
            ErrorKind::Unavailable => "Unhealthy",
            ErrorKind::Generation => "Backend",
            _ => self.type_name(),
        }
    }

    /// `type` of the error in Anthropic's dialect.
    fn anthropic_type(&self) -> &'static str {
        match self.kind {
            ErrorKind::Unauthorized => "authentication_error",
            ErrorKind::UnknownModel | ErrorKind::NotFound => "not_found_error",
            ErrorKind::PayloadTooLarge => "request_too_large",
            ErrorKind::RequestTimeout => "timeout_error",
            ErrorKind::Overloaded => "overloaded_error",
            ErrorKind::RateLimited => "rate_limit_error",
            ErrorKind::Unavailable | ErrorKind::Generation | ErrorKind::Internal => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// Message in Anthropic's dialect. Clients recognise a prompt that is too long by its words.
    fn anthropic_message(&self) -> Cow<'_, str> {
        match (self.kind, self.context_tokens, self.prompt_tokens) {
            (ErrorKind::TooLong, Some(context), Some(prompt)) => {
                format!("prompt is too long: {prompt} tokens > {context} maximum").into()
            }
            _ => Cow::Borrowed(&self.message),
        }
    }

    /// Message in OpenAI's dialect. Clients recognise a prompt that is too long by its words.
    fn openai_message(&self) -> Cow<'_, str> {
        match (self.kind, self.context_tokens) {
            (ErrorKind::TooLong, Some(tokens)) => format!(
                "This model's maximum context length is {tokens} tokens, and the prompt is too long: {}. Please reduce \
                 the length of the `{}`.",
                self.message,
                self.field.as_deref().unwrap_or("request")
            )
            .into(),
            _ => Cow::Borrowed(&self.message),
        }
    }

    /// The JSON body.
    pub fn body(&self, dialect: Dialect) -> Value {
        let prefix = match self.kind {
            ErrorKind::InvalidType
            | ErrorKind::Validation
            | ErrorKind::TooLong
            | ErrorKind::Empty => "Input validation error: ",
            ErrorKind::Template => "Template error: ",
            ErrorKind::Generation => "Request failed during generation: ",
            _ => "",
        };
        match dialect {
            Dialect::Tgi => {
                json!({"error": format!("{prefix}{}", self.message), "error_type": self.type_name()})
            }
            Dialect::Tei => json!({"error": self.message, "error_type": self.tei_type()}),
            Dialect::Anthropic => {
                let (kind, message) = (self.anthropic_type(), self.anthropic_message());
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
            Dialect::OpenAi => {
                let (class, code) = match self.kind {
                    ErrorKind::Unauthorized => ("authentication_error", Some("invalid_api_key")),
                    ErrorKind::UnknownModel => ("invalid_request_error", Some("model_not_found")),
                    ErrorKind::TooLong => {
                        ("invalid_request_error", Some("context_length_exceeded"))
                    }
                    ErrorKind::Overloaded => ("rate_limit_error", Some("overloaded")),
                    ErrorKind::RateLimited => ("rate_limit_error", Some("rate_limit_exceeded")),
                    ErrorKind::Unavailable => ("server_error", Some("unavailable")),
                    ErrorKind::Generation | ErrorKind::Internal => {
                        ("server_error", Some(self.type_name()))
                    }
                    _ => ("invalid_request_error", Some(self.type_name())),
                };
                let message = self.openai_message();
                json!({"error": {"message": message, "type": class, "param": self.field, "code": code}})
            }
        }
    }

    /// Counts the failure. [`ApiError::response`] does it too; an error that ends a stream is counted here.
    pub fn count(&self) {
        metrics::request_failures(self.type_name()).increment(1);
        request_log::note(|record| record.failure = Some(self.type_name()));
    }

    /// The answer to a refused or failed request, which is counted.
    pub fn response(self, dialect: Dialect) -> Response {
        self.count();
        self.uncounted_response(dialect)
    }

    /// The answer to a request that is not for the model, such as `/health`.
    pub fn uncounted_response(self, dialect: Dialect) -> Response {
        let mut response = (self.status(dialect), Json(self.body(dialect))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == ErrorKind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A status that no standard names.
fn non_standard(code: u16, otherwise: StatusCode) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(otherwise)
}

impl IntoResponse for ApiError {
    /// A response that carries the error and has no body yet. Handlers and middleware do not know the dialect:
    /// [`written`] turns the error into its answer.
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// `response`; or, where it carries an error, the answer to that error in `dialect`, with the headers of `response`.
pub fn written(mut response: Response, dialect: Dialect) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let mut answer = error.response(dialect);
    let headers = std::mem::take(response.headers_mut());
    answer.headers_mut().extend(headers);
    answer
}

/// Body of an error in the dialects of text-generation-inference and text-embeddings-inference.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorResponse {
    pub error: String,
    pub error_type: String,
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let (kind, retry_after_s) = match &error {
            SubmitError::Overloaded { retry_after_s, .. } => {
                (ErrorKind::Overloaded, *retry_after_s)
            }
            SubmitError::TenantBusy { retry_after_s, .. }
            | SubmitError::TokensSpent { retry_after_s, .. } => {
                (ErrorKind::RateLimited, *retry_after_s)
            }
            SubmitError::NotReady | SubmitError::Draining => (ErrorKind::Unavailable, 5),
        };
        ApiError {
            retry_after_s: Some(retry_after_s),
            ..ApiError::new(kind, error.to_string())
        }
    }
}

impl From<EncodeError> for ApiError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::Submit(error) => error.into(),
            EncodeError::Failed(error) => error.into(),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        let kind = match error {
            GenerationError::Shutdown
            | GenerationError::GivenUp(_)
            | GenerationError::QueueTimeout { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Generation,
        };
        let retry_after_s = (kind == ErrorKind::Unavailable).then_some(5);
        ApiError {
            retry_after_s,
            ..ApiError::new(kind, error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_own_status_and_shape() {
        let error = ApiError::validation("top_p", "`top_p` must be > 0.0 and <= 1.0");
        assert_eq!(error.status(Dialect::Tgi), 422);
        assert_eq!(error.status(Dialect::OpenAi), 400);
        assert_eq!(
            error.body(Dialect::Tgi),
            json!({"error": "Input validation error: `top_p` must be > 0.0 and <= 1.0", "error_type": "validation"})
        );
        assert_eq!(error.body(Dialect::OpenAi)["error"]["param"], "top_p");
    }

    #[test]
    fn a_prompt_that_is_too_long_has_the_code_that_openai_clients_look_for() {
        let error = ApiError::too_long("prompt", 8, "`prompt` must have at most 7 tokens");
        assert_eq!(error.status(Dialect::OpenAi), 400);
        let body = error.body(Dialect::OpenAi);
        assert_eq!(body["error"]["code"], "context_length_exceeded");
        assert_eq!(
            body["error"]["message"],
            "This model's maximum context length is 8 tokens, and the prompt is too long: `prompt` must have at most 7 \
             tokens. Please reduce the length of the `prompt`."
        );
        assert_eq!(
            error.body(Dialect::Tgi)["error"],
            "Input validation error: `prompt` must have at most 7 tokens"
        );
        assert_eq!(error.body(Dialect::Tgi)["error_type"], "validation");
    }

    #[test]
    fn fields_have_the_clients_names() {
        let error = ApiError::validation("format.schema.a", "`format.schema.a` is not `format`")
            .renamed(&[("format.schema", "text.schema")]);
        assert_eq!(error.field.as_deref(), Some("text.schema.a"));
        assert_eq!(error.message, "`text.schema.a` is not `format`");
    }

    #[test]
    fn overload_is_429_with_retry_after() {
        let error = ApiError::from(SubmitError::Overloaded {
            limit: 3,
            retry_after_s: 2,
        });
        let response = error.response(Dialect::OpenAi);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[test]
    fn anthropics_clients_read_the_type_and_know_a_full_context_and_an_overload() {
        let error = ApiError::too_long("messages", 8, "`messages` must have at most 7 tokens")
            .with_prompt_tokens(9);
        assert_eq!(error.status(Dialect::Anthropic), 400);
        assert_eq!(
            error.body(Dialect::Anthropic),
            json!({"type": "error", "error": {"type": "invalid_request_error",
                   "message": "prompt is too long: 9 tokens > 8 maximum"}})
        );
        let error = ApiError::new(ErrorKind::Overloaded, "busy");
        assert_eq!(error.status(Dialect::Anthropic), 529);
        assert_eq!(
            error.body(Dialect::Anthropic)["error"]["type"],
            "overloaded_error"
        );
        let error = ApiError::new(ErrorKind::Unauthorized, "no key");
        assert_eq!(error.status(Dialect::Anthropic), 401);
        assert_eq!(
            error.body(Dialect::Anthropic)["error"]["type"],
            "authentication_error"
        );
    }

    #[test]
    fn encoders_refuse_as_text_embeddings_inference_does() {
        let too_long = ApiError::too_long("inputs", 7, "`inputs` must have at most 7 tokens");
        assert_eq!(too_long.status(Dialect::Tei), 413);
        assert_eq!(
            too_long.body(Dialect::Tei),
            json!({"error": "`inputs` must have at most 7 tokens", "error_type": "Validation"})
        );
        let empty = ApiError::new(ErrorKind::Empty, "`inputs` cannot be empty");
        assert_eq!(empty.status(Dialect::Tei), 400);
        assert_eq!(empty.body(Dialect::Tei)["error_type"], "Empty");
        assert_eq!(empty.status(Dialect::OpenAi), 400);
    }
}
