//! Keys of the API: who may ask, and whose cached prompts are whose.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{ApiError, Dialect, ErrorKind};
use crate::http::credentials;
use crate::state::AppState;

tokio::task_local! {
    /// Of the request that the current task handles.
    static TENANT: u32;
}

/// Keys that are accepted. Each is a tenant.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} keys", self.0.len())
    }
}

impl ApiKeys {
    /// Takes each key once. They have been checked before.
    pub fn new(given: impl IntoIterator<Item = String>) -> Self {
        let mut keys: Vec<String> = Vec::new();
        for key in given {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        ApiKeys(keys)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Which key `headers` give: its place in the list. Takes as long for a nearly right key as for a wrong one.
    fn find(&self, headers: &HeaderMap) -> Option<u32> {
        let mut found = None;
        for given in credentials::keys(headers) {
            for (index, key) in (0..).zip(&self.0) {
                if equal_in_constant_time(given, key.as_bytes()) {
                    found = Some(index);
                }
            }
        }
        found
    }
}

/// Takes as long for a nearly right key as for a wrong one.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |difference, (x, y)| difference | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

/// Everything that is POSTed needs a key, when there are keys.
pub async fn require_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let keys = &state.config().api_keys;
    if keys.is_empty() || request.method() != Method::POST {
        return next.run(request).await;
    }
    match keys.find(request.headers()) {
        Some(tenant) => TENANT.scope(tenant, next.run(request)).await,
        None => {
            let message = format!(
                "the API key is missing or wrong; {}",
                credentials::HOW_TO_SEND
            );
            ApiError::new(ErrorKind::Unauthorized, message)
                .into_response(Dialect::of(request.uri().path()))
        }
    }
}

/// Whose request the current task handles, by the key that was sent with it; `None` without keys.
pub fn current_tenant() -> Option<u32> {
    TENANT.try_with(|tenant| *tenant).ok()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, header};

    use super::*;

    #[test]
    fn keys_are_compared_whole_and_with_case() {
        assert!(equal_in_constant_time(b"Key", b"Key"));
        for wrong in [&b"key"[..], b"Ke", b"Keys", b""] {
            assert!(!equal_in_constant_time(wrong, b"Key"));
        }
    }

    #[test]
    fn each_key_is_a_tenant() {
        let keys = ApiKeys::new(["one", "two", "one"].map(str::to_owned));
        assert_eq!(keys.len(), 2);
        let find = |value: &str| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(value).expect("a header");
            headers.insert(header::AUTHORIZATION, value);
            keys.find(&headers)
        };
        assert_eq!(find("Bearer one"), Some(0));
        assert_eq!(find("Bearer two"), Some(1));
        for wrong in ["Bearer ", "Bearer one,two", "Bearer three", "one"] {
            assert_eq!(find(wrong), None, "{wrong}");
        }
        assert_eq!(keys.find(&HeaderMap::new()), None);
        assert!(!format!("{keys:?}").contains("one"));
    }
}
