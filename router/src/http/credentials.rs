//! The API key, in any of the headers that clients send one in.

use axum::http::{HeaderMap, header};

/// Headers that hold nothing but the key: Anthropic's clients send the first, Azure's the second.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// What the message of a refusal says of them.
pub const HOW_TO_SEND: &str =
    "send it as `Authorization: Bearer <key>`, or as `x-api-key: <key>` or `api-key: <key>`";

/// All keys that a request brings; any of them may be the right one, since clients send made-up ones where they have none.
pub fn keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearers = headers.get_all(header::AUTHORIZATION).into_iter();
    let bearers = bearers.filter_map(|value| bearer_token(value.as_bytes()));
    let others = KEY_HEADERS
        .into_iter()
        .flat_map(|name| headers.get_all(name))
        .map(|value| value.as_bytes());
    bearers.chain(others)
}

/// What follows `Bearer`, a word that may be written in any case (RFC 9110, section 11.1).
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn found(headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        keys(&map)
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect()
    }

    #[test]
    fn only_the_scheme_may_be_written_in_any_case() {
        for header in ["Bearer Key", "bearer Key", "BEARER Key"] {
            assert_eq!(found(&[("authorization", header)]), ["Key"]);
        }
        for header in ["Basic Key", "Bearer", "Key", ""] {
            assert_eq!(found(&[("authorization", header)]), [""; 0]);
        }
    }

    #[test]
    fn every_header_with_a_key_counts() {
        for name in ["x-api-key", "api-key"] {
            assert_eq!(found(&[(name, "Key")]), ["Key"]);
        }
        assert_eq!(
            found(&[("x-api-key", "a"), ("authorization", "Bearer b")]),
            ["b", "a"]
        );
    }
}
