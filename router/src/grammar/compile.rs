//! Compiles grammars when requests are admitted: on few threads, within a time, and each grammar once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use gridwork_engine::Ready;
use lru::LruCache;
use tokio::sync::{Semaphore, oneshot};

use super::Grammar;
use super::check::{Checker, Refusal, check_size};
use super::closed::closed;
use super::work_clock::WorkClock;
use crate::error::{ApiError, ErrorKind};

/// Number of grammars whose results are kept.
const CACHE_SIZE: usize = 256;

/// Largest number of bytes of all grammars whose results are kept.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Computing time for one grammar. Most take a few milliseconds.
const MAX_TIME: Duration = Duration::from_millis(700);

/// Time on the clock for one grammar, on a machine that does much else.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// Interval at which a grammar's computing time is compared with the limit.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Number of requests that may wait for a thread.
const MAX_WAITING: usize = 256;

/// Stack of a compiling thread. The library recurses over nested expressions; only touched pages take memory.
const STACK_BYTES: usize = 256 * 1024 * 1024;

/// Checks grammars for the loaded model; cheap to clone.
#[derive(Clone)]
pub struct Grammars(Arc<Parts>);

struct Parts {
    checker: OnceLock<Result<Checker, String>>,
    results: Mutex<Results>,
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Results of the latest grammars.
struct Results {
    by_grammar: LruCache<Arc<str>, Result<(), Refusal>>,
    bytes: usize,
}

impl Grammars {
    /// Compiles on up to `threads` threads.
    pub fn new(threads: usize) -> Self {
        Grammars(Arc::new(Parts {
            checker: OnceLock::new(),
            results: Mutex::new(Results {
                by_grammar: LruCache::unbounded(),
                bytes: 0,
            }),
            threads: Arc::new(Semaphore::new(threads.max(1))),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Arranges the model's tokens, which takes some hundred milliseconds, so that the first grammar does not.
    pub fn prepare(&self, ready: &Ready) {
        self.0.checker(ready);
    }

    /// Returns the serialised form of a grammar that can be enforced. Errors name the place in the request.
    pub async fn compile(
        &self,
        grammar: Grammar,
        ready: &Arc<Ready>,
    ) -> Result<Arc<str>, ApiError> {
        let grammar = grammar.map_schemas(closed);
        let serialized = grammar.serialized(&ready.tokens);
        check_size(&grammar, &serialized)?;
        if let Some(known) = self.0.known(&serialized, &grammar) {
            return known.map(|()| serialized).map_err(ApiError::from);
        }
        let permit = {
            let _waiting = self.0.enter()?;
            self.0.threads.clone().acquire_owned().await
        };
        let permit =
            permit.map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        // The same grammar may have been compiled meanwhile.
        if let Some(known) = self.0.known(&serialized, &grammar) {
            return known.map(|()| serialized).map_err(ApiError::from);
        }
        let (done, result) = oneshot::channel();
        let (parts, ready) = (self.0.clone(), ready.clone());
        let field = grammar.field().to_owned();
        let text = serialized.clone();
        let clock = WorkClock::default();
        let of_thread = clock.clone();
        let work = move || {
            let _ = done.send(parts.check(&grammar, &text, &ready, &of_thread));
            // Held to the end, even when nobody waits any more.
            drop(permit);
        };
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
        match within_limits(result, &clock).await {
            Some(Ok(checked)) => checked?.map_err(ApiError::from)?,
            Some(Err(_)) => return Err(broken(&field)),
            None => return Err(too_slow(field).into()),
        }
        Ok(serialized)
    }
}

impl Parts {
    fn checker(&self, ready: &Ready) -> &Result<Checker, String> {
        self.checker.get_or_init(|| {
            let info = &ready.info;
            Checker::new(ready.tokens.clone(), info.vocab_size, &info.eos_token_ids)
        })
    }

    /// Compiles a grammar, and keeps the result.
    fn check(
        &self,
        grammar: &Grammar,
        serialized: &Arc<str>,
        ready: &Ready,
        clock: &WorkClock,
    ) -> Result<Result<(), Refusal>, ApiError> {
        let checker = self.checker(ready).as_ref().map_err(|error| {
            let message = format!("the model's tokens cannot be used for grammars: {error}");
            ApiError::new(ErrorKind::Internal, message)
        })?;
        clock.start();
        let result = checker.check(grammar, serialized);
        self.keep(serialized.clone(), result.clone());
        Ok(result)
    }

    /// The result of a grammar that was compiled before. A refusal names a field, so it counts for that alone.
    fn known(&self, serialized: &Arc<str>, grammar: &Grammar) -> Option<Result<(), Refusal>> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let known = results.by_grammar.get(serialized)?;
        match known {
            Err(refusal) if !refusal.field.starts_with(grammar.field()) => None,
            known => Some(known.clone()),
        }
    }

    fn keep(&self, serialized: Arc<str>, result: Result<(), Refusal>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = serialized.len();
        if results.by_grammar.put(serialized, result).is_none() {
            results.bytes += bytes;
        }
        while results.by_grammar.len() > CACHE_SIZE || results.bytes > CACHE_BYTES {
            let Some((oldest, _)) = results.by_grammar.pop_lru() else {
                break;
            };
            results.bytes -= oldest.len();
        }
    }

    fn enter(&self) -> Result<Waiting<'_>, ApiError> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if before < MAX_WAITING {
            return Ok(waiting);
        }
        Err(ApiError {
            retry_after_s: Some(1),
            ..ApiError::new(
                ErrorKind::Overloaded,
                "Model is overloaded: too many requests wait for their grammar to be compiled",
            )
        })
    }
}

/// A request that waits for a thread.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { field, reason } = refusal;
        let message = format!("`{field}` cannot be enforced: {reason}");
        ApiError::validation(&field, message)
    }
}

/// Waits for a result; `None` when its thread has computed for too long.
async fn within_limits<T>(
    mut result: oneshot::Receiver<T>,
    clock: &WorkClock,
) -> Option<Result<T, oneshot::error::RecvError>> {
    let started = Instant::now();
    loop {
        match tokio::time::timeout(CHECK_INTERVAL, &mut result).await {
            Ok(received) => return Some(received),
            Err(_) if clock.elapsed() > MAX_TIME || started.elapsed() > MAX_WAIT => return None,
            Err(_) => {}
        }
    }
}

fn too_slow(field: String) -> Refusal {
    Refusal {
        field,
        reason: format!(
            "it takes more than {} ms of computing; make it smaller",
            MAX_TIME.as_millis()
        ),
    }
}

fn broken(field: &str) -> ApiError {
    ApiError::validation(
        field,
        format!("`{field}` cannot be enforced: its compilation failed"),
    )
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
