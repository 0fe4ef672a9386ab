//! Request bodies: reading and parsing JSON, with errors that name the field and the fault.

use std::error::Error;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::connections::BodyError;
use crate::connections::intake::{Busy, Counted, FREE_BYTES};
use crate::error::{ApiError, ErrorKind};
use crate::http::body_encoding;
use crate::http::unsupported::{self, UnsupportedField};
use crate::state::AppState;

/// Type that a request body is parsed as.
pub trait Body: DeserializeOwned + Send + 'static {
    /// Further fields, which are refused rather than ignored.
    const UNSUPPORTED: &'static [UnsupportedField];
}

/// A parsed request body.
pub struct ApiJson<T>(pub T);

impl<T: Body> FromRequest<AppState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let body = read(request, state.settings().http.payload_limit).await?;
        let value = off_the_serving_threads(body, state, |body| parse(body)).await??;
        Ok(ApiJson(value))
    }
}

/// Calls `parse` with `body`. A large body is parsed on a worker thread, so that no connection waits for it.
pub(crate) async fn off_the_serving_threads<T: Send + 'static>(
    body: Bytes,
    state: &AppState,
    parse: impl FnOnce(&Bytes) -> T + Send + 'static,
) -> Result<T, ApiError> {
    if body.len() <= FREE_BYTES {
        return Ok(parse(&body));
    }
    let parsing = state.workers().run(body.len(), move || parse(&body));
    Ok(parsing.await?)
}

/// Bytes of a body with a JSON content type, up to `limit_bytes` of them.
pub(crate) async fn read(request: Request, limit_bytes: usize) -> Result<Bytes, ApiError> {
    if !says_it_is_json(request.headers()) {
        return Err(ApiError::new(
            ErrorKind::UnsupportedMediaType,
            "the Content-Type header must be `application/json`",
        ));
    }
    let too_large = || {
        ApiError::new(
            ErrorKind::PayloadTooLarge,
            format!("the body is larger than {limit_bytes} bytes (--payload-limit)"),
        )
    };
    // A body whose declared length is too large is not read at all.
    if http_body::Body::size_hint(request.body()).lower() > limit_bytes as u64 {
        return Err(too_large());
    }
    let body = Counted::new(Limited::new(request.into_body(), limit_bytes));
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(body_encoding::refusal(&*error, limit_bytes)
            .unwrap_or_else(|| not_received(error.as_ref()))),
    }
}

/// Error of a body that was not received in full.
fn not_received(error: &(dyn Error + 'static)) -> ApiError {
    if error.is::<Busy>() {
        return ApiError {
            retry_after_s: Some(1),
            ..ApiError::new(ErrorKind::Overloaded, error.to_string())
        };
    }
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    match causes.find_map(|cause| cause.downcast_ref::<BodyError>()) {
        Some(slow @ BodyError::TooSlow { .. }) => {
            ApiError::new(ErrorKind::RequestTimeout, slow.to_string())
        }
        Some(BodyError::Broken(_)) | None => ApiError::new(
            ErrorKind::InvalidJson,
            format!("the body ended early: {error}"),
        ),
    }
}

fn says_it_is_json(headers: &HeaderMap) -> bool {
    headers
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
        .is_some_and(|mime| mime == "application/json" || mime.ends_with("+json"))
}

/// Parses JSON. Errors name the path of the field.
pub(crate) fn parse<T: Body>(body: &[u8]) -> Result<T, ApiError> {
    // serde would read a struct from an array as well.
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
            // The first error may be a wrong type, with bad syntax after it.
            serde_json::error::Category::Data => well_formed(body)
                .err()
                .unwrap_or_else(|| wrong_type(&path, &inner)),
            // A number of any size is valid JSON, and only this field cannot hold it.
            _ if inner.to_string().starts_with(OUT_OF_RANGE) && well_formed(body).is_ok() => {
                wrong_type(&path, &inner)
            }
            _ => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    unsupported::check(body, T::UNSUPPORTED)?;
    Ok(value)
}

/// Start of serde_json's message for a number that is larger than any double.
const OUT_OF_RANGE: &str = "number out of range";

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
    // The position is of no use to somebody whose client wrote the JSON.
    let text = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(text, _)| text);
    let text = &in_terms_of_json(text);
    // The message names a missing field relative to the object that lacks it.
    let missing = text
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split_once('`'))
        .map(|(name, _)| name);
    let duplicate = text
        .strip_prefix("duplicate field `")
        .and_then(|name| name.strip_suffix('`'));
    // So does the message about a field that is there twice.
    let field = match (path, missing.or(duplicate)) {
        (".", Some(name)) => name.to_owned(),
        (path, Some(name)) => format!("{path}.{name}"),
        (".", None) => return ApiError::new(ErrorKind::InvalidType, text.clone()),
        (path, None) => path.to_owned(),
    };
    let message = match (missing, duplicate) {
        (Some(_), _) => format!("`{field}` is missing"),
        (None, Some(_)) => format!("`{field}` is there twice"),
        (None, None) => format!("`{field}`: {text}"),
    };
    ApiError {
        field: Some(field),
        ..ApiError::new(ErrorKind::InvalidType, message)
    }
}

/// `text` with JSON's names of types in place of Rust's.
fn in_terms_of_json(text: &str) -> String {
    let text = text
        .replace("invalid type: sequence", "invalid type: array")
        .replace("invalid type: map", "invalid type: object");
    let Some((found, expected)) = text.rsplit_once(", expected ") else {
        return text;
    };
    let expected = match expected {
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer from 0 to 18446744073709551615",
        "i64" => "an integer",
        "f32" => "a number",
        "a sequence" => "an array",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// Deserializes an optional field that must be a JSON object. serde would read a struct from an array as well.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(ObjectVisitor(PhantomData))
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
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
        #[serde(default, deserialize_with = "object")]
        parameters: Option<Inner>,
    }

    impl Body for Outer {
        const UNSUPPORTED: &'static [UnsupportedField] =
            &[UnsupportedField::misplaced("top_k", "parameters")];
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
    fn a_wrong_type_is_named_by_the_path_of_its_field() {
        let error = error(r#"{"inputs": "x", "parameters": {"top_k": "many"}}"#);
        assert_eq!(
            (error.kind, error.field.as_deref()),
            (ErrorKind::InvalidType, Some("parameters.top_k"))
        );
        assert!(!error.message.contains("line"), "{error}");
    }

    #[test]
    fn messages_use_the_names_of_json_types() {
        for (parameters, message) in [
            (
                r#"{"top_k": -1}"#,
                "`parameters.top_k`: invalid value: integer `-1`, expected an integer from 0 to 4294967295",
            ),
            (
                r#"{"top_k": {}}"#,
                "`parameters.top_k`: invalid type: object, expected an integer from 0 to 4294967295",
            ),
            (
                "[]",
                "`parameters`: invalid type: array, expected an object",
            ),
            (
                "3",
                "`parameters`: invalid type: integer `3`, expected an object",
            ),
        ] {
            let body = format!(r#"{{"inputs": "x", "parameters": {parameters}}}"#);
            assert_eq!(error(&body).message, message);
        }
        assert!(parse::<Outer>(br#"{"inputs": "x", "parameters": null}"#).is_ok());
    }

    #[test]
    fn a_misplaced_field_is_refused() {
        let error = error(r#"{"inputs": "x", "top_k": 5}"#);
        assert_eq!(error.message, "`top_k` must stand in `parameters`");
        assert_eq!(error.field.as_deref(), Some("top_k"));
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
    fn a_field_that_is_there_twice_is_named() {
        let error = error(r#"{"inputs": "x", "parameters": {"top_k": 1, "top_k": 2}}"#);
        assert_eq!(
            (error.field.as_deref(), error.message.as_str()),
            (
                Some("parameters.top_k"),
                "`parameters.top_k` is there twice"
            )
        );
    }

    #[test]
    fn bad_json_and_wrong_types_are_different_errors() {
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
