//! Compressed request bodies: `Content-Encoding: gzip` or `deflate`, decompressed while they are read.
//!
//! A body that grows without end must not take memory. It passes the decompressors in small pieces, each only after the
//! previous one has been read, and the reader stops at `--payload-limit`.

mod decoding;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorKind};
use crate::state::AppState;
use decoding::{DecodeError, Decoding, Encoding};

/// Maximum number of encodings of one body. Each multiplies the size that a byte can grow to.
const MAX_ENCODINGS: usize = 2;

/// Decompresses the body for the handlers, and refuses unknown encodings.
pub async fn decode(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let encodings = match encodings(request.headers()) {
        Ok(encodings) if encodings.is_empty() => return next.run(request).await,
        Ok(encodings) => encodings,
        Err(error) => {
            let mut response = error.into_response();
            let accepted = HeaderValue::from_static("gzip, deflate");
            response
                .headers_mut()
                .insert(header::ACCEPT_ENCODING, accepted);
            return response;
        }
    };
    let limit_bytes = state.settings().http.payload_limit;
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::CONTENT_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = Body::new(Decoding::new(body, encodings, limit_bytes));
    next.run(Request::from_parts(parts, body)).await
}

/// Encodings of a body, in the order in which they are undone: the last applied one first.
fn encodings(headers: &HeaderMap) -> Result<Vec<Encoding>, ApiError> {
    let unsupported = |message: String| ApiError::new(ErrorKind::UnsupportedMediaType, message);
    let mut encodings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        for name in String::from_utf8_lossy(value.as_bytes()).split(',') {
            match name.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => {}
                "gzip" | "x-gzip" => encodings.push(Encoding::Gzip),
                "deflate" => encodings.push(Encoding::Deflate),
                other => {
                    return Err(unsupported(format!(
                        "the Content-Encoding {other:?} is not supported; send the body as it is, or with gzip or deflate"
                    )));
                }
            }
        }
    }
    if encodings.len() > MAX_ENCODINGS {
        return Err(unsupported(format!(
            "the Content-Encoding header has {} encodings, and {MAX_ENCODINGS} are supported",
            encodings.len()
        )));
    }
    encodings.reverse();
    Ok(encodings)
}

/// Error of a body that could not be read because of its encoding; `None` for other causes.
pub fn refusal(error: &(dyn std::error::Error + 'static), limit_bytes: usize) -> Option<ApiError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<DecodeError>() {
            Some(DecodeError::TooLarge) => {
                return Some(ApiError::new(
                    ErrorKind::PayloadTooLarge,
                    format!("the body is larger than {limit_bytes} bytes (--payload-limit)"),
                ));
            }
            Some(broken @ DecodeError::Broken(_)) => {
                return Some(ApiError::new(ErrorKind::InvalidJson, broken.to_string()));
            }
            None => cause = error.source(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Result<Vec<Encoding>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        encodings(&headers).map_err(|error| error.message)
    }

    #[test]
    fn the_last_encoding_is_undone_first() {
        use Encoding::{Deflate, Gzip};
        assert_eq!(of(&[]), Ok(vec![]));
        assert_eq!(of(&["identity"]), Ok(vec![]));
        assert_eq!(of(&["X-GZIP"]), Ok(vec![Gzip]));
        assert_eq!(of(&["gzip, deflate"]), Ok(vec![Deflate, Gzip]));
        assert_eq!(of(&["gzip", "identity, deflate"]), Ok(vec![Deflate, Gzip]));
    }

    #[test]
    fn unknown_encodings_and_too_many_are_refused() {
        for value in ["br", "zstd", "gzip, br", "compress"] {
            assert!(of(&[value]).unwrap_err().contains("gzip or deflate"));
        }
        assert!(of(&["gzip,gzip,gzip"]).unwrap_err().contains("3 encodings"));
    }
}
