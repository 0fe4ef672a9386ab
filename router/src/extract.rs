//! Request bodies: JSON or a refusal that says what is wrong with it, in the path's dialect.

use axum::extract::{FromRequest, Request};
use axum::http::header;
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Dialect, ErrorKind};
use crate::state::AppState;

/// The body, parsed.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for ApiJson<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        let dialect = Dialect::of(request.uri().path());
        read(request, state.config().payload_limit_bytes)
            .await
            .map(ApiJson)
            .map_err(|error| error.into_response(dialect))
    }
}

async fn read<T: DeserializeOwned>(request: Request, limit_bytes: usize) -> Result<T, ApiError> {
    let is_json = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| {
            value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        })
        .is_some_and(|mime| mime == "application/json" || mime.ends_with("+json"));
    if !is_json {
        return Err(ApiError::new(
            ErrorKind::UnsupportedMediaType,
            "the Content-Type header must be `application/json`",
        ));
    }
    let body = match Limited::new(request.into_body(), limit_bytes)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return Err(ApiError::new(
                ErrorKind::PayloadTooLarge,
                format!("the body is larger than {limit_bytes} bytes (--payload-limit)"),
            ));
        }
        Err(error) => {
            return Err(ApiError::new(
                ErrorKind::InvalidJson,
                format!("the body ended early: {error}"),
            ));
        }
    };
    parse(&body)
}

/// Parses JSON; errors name the path of the field.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A struct would be read from an array as well.
    if !body.trim_ascii_start().starts_with(b"{") {
        well_formed(body)?;
        return Err(ApiError::new(
            ErrorKind::InvalidType,
            "the body must be a JSON object",
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            // The first error in the text may be a wrong type, with bad syntax behind it.
            serde_json::error::Category::Data => well_formed(body)
                .err()
                .unwrap_or_else(|| wrong_type(&path, &inner)),
            _ => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn well_formed(body: &[u8]) -> Result<(), ApiError> {
    serde_json::from_slice::<serde::de::IgnoredAny>(body)
        .map(|_| ())
        .map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        ErrorKind::InvalidJson,
        format!("the body is not valid JSON: {error}"),
    )
}

fn wrong_type(path: &str, error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    // The position means little to somebody whose client wrote the JSON.
    let text = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(text, _)| text);
    // A missing field is named by the message, relative to what contains it.
    let missing = text
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split_once('`'))
        .map(|(name, _)| name);
    let field = match (path, missing) {
        (".", Some(name)) => name.to_owned(),
        (path, Some(name)) => format!("{path}.{name}"),
        (".", None) => return ApiError::new(ErrorKind::InvalidType, text),
        (path, None) => path.to_owned(),
    };
    let message = if missing.is_some() {
        format!("`{field}` is missing")
    } else {
        format!("`{field}`: {text}")
    };
    ApiError {
        field: Some(field),
        ..ApiError::new(ErrorKind::InvalidType, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Outer {
        #[allow(dead_code)]
        inputs: String,
        #[allow(dead_code)]
        parameters: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        top_k: Option<u32>,
    }

    fn error(body: &str) -> ApiError {
        parse::<Outer>(body.as_bytes()).expect_err("a bad body")
    }

    #[test]
    fn a_wrong_type_names_its_field_by_path() {
        let error = error(r#"{"inputs": "x", "parameters": {"top_k": "many"}}"#);
        assert_eq!(
            (error.kind, error.field.as_deref()),
            (ErrorKind::InvalidType, Some("parameters.top_k"))
        );
        assert!(!error.message.contains("line"), "{error}");
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = error("{}");
        assert_eq!(
            (error.field.as_deref(), error.message.as_str()),
            (Some("inputs"), "`inputs` is missing")
        );
    }

    #[test]
    fn what_is_not_json_is_told_apart_from_a_wrong_type() {
        for body in [
            "",
            "{",
            "{} x",
            "\u{0}",
            r#"{"inputs": "x"} {}"#,
            "null x",
            "[",
            r#"{"inputs": 1"#,
        ] {
            assert_eq!(error(body).kind, ErrorKind::InvalidJson, "{body:?}");
        }
        for body in ["[]", r#"["x"]"#, "null", "3"] {
            assert_eq!(
                error(body).message,
                "the body must be a JSON object",
                "{body:?}"
            );
        }
    }
}
