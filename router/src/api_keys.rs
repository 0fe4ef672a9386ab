//! API keys that are accepted, the keys that a request sends, and the tenant whose request a task handles.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use axum::http::{HeaderMap, header};
use gridwork_edge::api_key_file::{self, KeyFileError, ListedKey};
use gridwork_edge::file;
use gridwork_engine::{Tenant, TenantLimits};

/// Headers that hold nothing but the key: Anthropic's clients send the first, Azure's the second.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

tokio::task_local! {
    /// Tenant whose request the current task handles.
    static TENANT: Arc<Tenant>;
}

/// Where keys come from, and what each allows.
#[derive(Clone, Default)]
pub struct KeySettings {
    /// Keys of the command line or the environment.
    pub given: Vec<String>,
    /// File with more keys.
    pub file: Option<PathBuf>,
    /// Limits of each key, unless the file says otherwise.
    pub limits: TenantLimits,
}

/// Accepted API keys. Each is a tenant, which stays the same as long as the server runs, also when its key is removed and
/// added again. Cheap to clone.
#[derive(Clone, Default)]
pub struct ApiKeys(Arc<Parts>);

#[derive(Default)]
struct Parts {
    settings: KeySettings,
    accepted: RwLock<Vec<Accepted>>,
    /// Every tenant so far, by its key.
    tenants: Mutex<HashMap<String, Arc<Tenant>>>,
    /// Number of accepted keys.
    number: Arc<AtomicUsize>,
}

struct Accepted {
    key: String,
    /// Name in logs.
    name: Option<String>,
    tenant: Arc<Tenant>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} keys", self.len())
    }
}

impl ApiKeys {
    /// Takes each key once, with those of the file. Keys that were given have been checked before.
    pub fn new(settings: KeySettings) -> Result<Self, KeyFileError> {
        let listed = settings.file.as_deref().map(api_key_file::read);
        let listed = listed.transpose()?;
        let keys = ApiKeys(Arc::new(Parts {
            settings,
            ..Parts::default()
        }));
        keys.accept(listed.unwrap_or_default());
        Ok(keys)
    }

    /// Accepts the keys that were given, and `listed` ones, from now on.
    fn accept(&self, listed: Vec<ListedKey>) {
        let Parts {
            settings,
            accepted,
            tenants,
            number,
        } = &*self.0;
        let given = settings.given.iter().map(|key| ListedKey {
            key: key.clone(),
            name: None,
            max_requests: None,
            max_tokens_per_minute: None,
        });
        let mut tenants = tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now: Vec<Accepted> = Vec::new();
        // The file comes first: it says more.
        for listed in listed.into_iter().chain(given) {
            if now.iter().any(|other| other.key == listed.key) {
                continue;
            }
            let limits = TenantLimits {
                max_requests: listed.max_requests.or(settings.limits.max_requests),
                max_tokens_per_minute: listed
                    .max_tokens_per_minute
                    .or(settings.limits.max_tokens_per_minute),
            };
            let id = u32::try_from(tenants.len()).unwrap_or(u32::MAX);
            let tenant = tenants
                .entry(listed.key.clone())
                .or_insert_with(|| Tenant::new(id, limits, number.clone()));
            tenant.set_limits(limits);
            now.push(Accepted {
                key: listed.key,
                name: listed.name,
                tenant: tenant.clone(),
            });
        }
        number.store(now.len(), Ordering::Relaxed);
        *accepted.write().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Takes up changes of the file for ever. A file that cannot be used leaves the keys as they are.
    pub async fn follow_file(self) {
        let Some(path) = self.0.settings.file.clone() else {
            return;
        };
        let look = move || api_key_file::read(&path).map_err(|error| error.to_string());
        let first = look();
        file::watch(first, look, |found| match found {
            Ok(listed) => {
                self.accept(listed.clone());
                tracing::info!("{} API keys are accepted from now on", self.len());
            }
            Err(error) => tracing::warn!("the API keys stay as they were: {error}"),
        })
        .await;
    }

    fn accepted(&self) -> RwLockReadGuard<'_, Vec<Accepted>> {
        self.0
            .accepted
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// True if no key is needed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.0.number.load(Ordering::Relaxed)
    }

    /// True if there are several keys, or may be later.
    pub fn may_be_several(&self) -> bool {
        self.len() > 1 || self.0.settings.file.is_some()
    }

    /// Number of accepted keys, which may change.
    pub fn number(&self) -> Arc<AtomicUsize> {
        self.0.number.clone()
    }

    /// Tenant of the accepted key that `headers` send, and the key's name. Takes as long for a nearly right key as for a
    /// wrong one.
    pub fn find(&self, headers: &HeaderMap) -> Option<(Arc<Tenant>, Option<String>)> {
        let accepted = self.accepted();
        let mut found = None;
        for given in sent_keys(headers) {
            for one in &*accepted {
                if equal_in_constant_time(given, one.key.as_bytes()) {
                    found = Some(one);
                }
            }
        }
        found.map(|one| (one.tenant.clone(), one.name.clone()))
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
pub async fn as_tenant<T>(tenant: Arc<Tenant>, handling: impl Future<Output = T>) -> T {
    TENANT.scope(tenant, handling).await
}

/// Tenant whose request the current task handles, by its API key; `None` without keys.
pub fn current_tenant() -> Option<Arc<Tenant>> {
    TENANT.try_with(Clone::clone).ok()
}

/// Number of the tenant whose request the current task handles.
pub fn current_tenant_id() -> Option<u32> {
    TENANT.try_with(|tenant| tenant.id()).ok()
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

    fn keys_of(given: &[&str], file: Option<PathBuf>) -> ApiKeys {
        ApiKeys::new(KeySettings {
            given: given.iter().map(|&key| key.to_owned()).collect(),
            file,
            limits: TenantLimits {
                max_requests: Some(9),
                max_tokens_per_minute: None,
            },
        })
        .expect("keys")
    }

    fn sender(keys: &ApiKeys, value: &str) -> Option<(Arc<Tenant>, Option<String>)> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(value).expect("a header");
        headers.insert(header::AUTHORIZATION, value);
        keys.find(&headers)
    }

    #[test]
    fn each_key_is_a_tenant() {
        let keys = keys_of(&["one", "two", "one"], None);
        assert_eq!(keys.len(), 2);
        let id = |value| sender(&keys, value).map(|(tenant, _)| tenant.id());
        assert_eq!(id("Bearer one"), Some(0));
        assert_eq!(id("Bearer two"), Some(1));
        for wrong in ["Bearer ", "Bearer one,two", "Bearer three", "one"] {
            assert_eq!(id(wrong), None, "{wrong}");
        }
        assert!(keys.find(&HeaderMap::new()).is_none());
        assert!(!format!("{keys:?}").contains("one"));
    }

    fn write_keys(path: &std::path::Path, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, text).expect("a file");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).expect("its rights");
    }

    #[test]
    fn a_file_adds_keys_and_says_more_of_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        write_keys(&path, "filed name=team max-requests=2\ngiven name=known");
        let keys = keys_of(&["given", "other"], Some(path.clone()));
        assert_eq!(keys.len(), 3);
        assert!(keys.may_be_several());
        let (tenant, name) = sender(&keys, "Bearer filed").expect("a key");
        assert_eq!(tenant.limits().max_requests, Some(2));
        assert_eq!(name.as_deref(), Some("team"));
        let (tenant, name) = sender(&keys, "Bearer given").expect("a key");
        assert_eq!(tenant.limits().max_requests, Some(9));
        assert_eq!(name.as_deref(), Some("known"));
        write_keys(&path, "");
        let empty = KeySettings {
            file: Some(path),
            ..KeySettings::default()
        };
        assert!(ApiKeys::new(empty).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_taken_up_and_tenants_stay_themselves() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        write_keys(&path, "old\nstays");
        let keys = keys_of(&[], Some(path.clone()));
        let stays = sender(&keys, "Bearer stays").expect("a key").0;
        let following = tokio::spawn(keys.clone().follow_file());
        tokio::time::sleep(file::LOOK_EVERY).await;
        write_keys(&path, "new\nstays max-requests=1");
        while sender(&keys, "Bearer new").is_none() {
            tokio::time::sleep(file::LOOK_EVERY).await;
        }
        assert!(sender(&keys, "Bearer old").is_none());
        let same = sender(&keys, "Bearer stays").expect("a key").0;
        assert!(Arc::ptr_eq(&stays, &same));
        assert_eq!(stays.limits().max_requests, Some(1));
        write_keys(&path, "not a key");
        tokio::time::sleep(10 * file::LOOK_EVERY).await;
        assert_eq!(keys.len(), 2);
        following.abort();
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
