//! API keys that are accepted, the keys that a request sends, and the tenant whose request a task handles.

use axum::http::{HeaderMap, header};

/// Headers that hold nothing but the key: Anthropic's clients send the first, Azure's the second.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

tokio::task_local! {
    /// Tenant whose request the current task handles.
    static TENANT: u32;
}

/// Accepted API keys. Each is a tenant.
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

    /// Index of the accepted key that `headers` send. Takes as long for a nearly right key as for a wrong one.
    pub fn find(&self, headers: &HeaderMap) -> Option<u32> {
        let mut found = None;
        for given in sent_keys(headers) {
            for (index, key) in (0..).zip(&self.0) {
                if equal_in_constant_time(given, key.as_bytes()) {
                    found = Some(index);
                }
            }
        }
        found
    }
}

/// Compares in a time that does not depend on how much of the key is right.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |difference, (x, y)| difference | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

/// Runs `handling` as the handling of a request of `tenant`.
pub async fn as_tenant<T>(tenant: u32, handling: impl Future<Output = T>) -> T {
    TENANT.scope(tenant, handling).await
}

/// Tenant whose request the current task handles, by its API key; `None` without keys.
pub fn current_tenant() -> Option<u32> {
    TENANT.try_with(|tenant| *tenant).ok()
}

/// Every key that a request sends. Any of them may be the right one: clients without a key send a made-up one.
fn sent_keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearers = headers.get_all(header::AUTHORIZATION).into_iter();
    let bearers = bearers.filter_map(|value| bearer_token(value.as_bytes()));
    let others = KEY_HEADERS
        .into_iter()
        .flat_map(|name| headers.get_all(name))
        .map(|value| value.as_bytes());
    bearers.chain(others)
}

/// Token after the scheme `Bearer`, which may be written in any case (RFC 9110, section 11.1).
fn bearer_token(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

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
        sent_keys(&map)
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
