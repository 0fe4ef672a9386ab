//! Worker threads that parse, render and tokenize, apart from those that serve connections.
//!
//! Two queues keep small texts from waiting for large ones. Both are bounded; requests beyond the bound are answered
//! 429.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ErrorKind};

/// Maximum size of a small text. Tokenizing it takes some ten milliseconds.
pub const SMALL_BYTES: usize = 32 * 1024;

/// Maximum number of requests waiting in a queue.
const MAX_WAITING: usize = 1024;

/// Worker threads and their queues. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Workers {
    small: Arc<Queue>,
    large: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Held while a worker is in use.
#[derive(Debug)]
pub struct WorkerPermit {
    _permit: OwnedSemaphorePermit,
    is_large: bool,
}

/// Errors of work that was not done.
#[derive(Debug)]
pub enum WorkError {
    /// The queue is full.
    Busy,
    /// The work panicked, with this message.
    Panicked(String),
}

impl From<WorkError> for ApiError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Busy => ApiError {
                retry_after_s: Some(1),
                ..ApiError::new(
                    ErrorKind::Overloaded,
                    "Model is overloaded: too many requests wait to be tokenized",
                )
            },
            WorkError::Panicked(message) => ApiError::new(ErrorKind::Internal, message),
        }
    }
}

impl Workers {
    /// Processes up to `count` small texts at once, and half as many large ones beside them, at least one.
    pub fn new(count: usize) -> Self {
        Self::with_limit(count, MAX_WAITING)
    }

    fn with_limit(count: usize, max_waiting: usize) -> Self {
        let queue = |count: usize| {
            Arc::new(Queue {
                permits: Arc::new(Semaphore::new(count.max(1))),
                waiting: AtomicUsize::new(0),
                max_waiting,
            })
        };
        Workers {
            small: queue(count),
            large: queue(count / 2),
        }
    }

    /// Waits for a worker for a text of `bytes`.
    pub async fn permit(&self, bytes: usize) -> Result<WorkerPermit, WorkError> {
        let is_large = bytes > SMALL_BYTES;
        let queue = if is_large { &self.large } else { &self.small };
        let of_worker = |permit| WorkerPermit {
            _permit: permit,
            is_large,
        };
        if let Ok(permit) = queue.permits.clone().try_acquire_owned() {
            return Ok(of_worker(permit));
        }
        let _waiting = Waiting::enter(queue)?;
        // The semaphore is never closed.
        let permit = queue.permits.clone().acquire_owned().await;
        permit.map(of_worker).map_err(|_| WorkError::Busy)
    }

    /// Does `work` on a text of `bytes`, on a thread of its queue.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let permit = self.permit(bytes).await?;
        run_with(permit, work).await
    }
}

/// Does `work` on a thread of the blocking pool, for which `permit` was given.
pub async fn run_with<T: Send + 'static>(
    permit: WorkerPermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkError> {
    let task = tokio::task::spawn_blocking(move || {
        let done = work();
        if permit.is_large {
            give_memory_back();
        }
        // The permit is held until here, even if the request was dropped meanwhile.
        drop(permit);
        done
    });
    task.await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => WorkError::Panicked(message_of(panic.as_ref())),
        Err(error) => WorkError::Panicked(error.to_string()),
    })
}

/// Returns free memory to the system. Tokenizing a large text briefly takes a hundred times its size, which the C
/// library would keep.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("the work panicked")
        .to_owned()
}

struct Waiting<'a>(&'a Queue);

impl<'a> Waiting<'a> {
    fn enter(queue: &'a Queue) -> Result<Self, WorkError> {
        let before = queue.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(queue);
        if before < queue.max_waiting {
            Ok(waiting)
        } else {
            Err(WorkError::Busy)
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_texts_do_not_wait_for_large_ones() {
        let workers = Workers::new(1);
        let _large = workers.permit(SMALL_BYTES + 1).await.expect("a worker");
        assert_eq!(workers.run(SMALL_BYTES, || 7).await.expect("a worker"), 7);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let workers = Workers::with_limit(1, 1);
        let held = workers.permit(1).await.expect("a worker");
        let waiting = tokio::spawn({
            let workers = workers.clone();
            async move { workers.run(1, || ()).await }
        });
        while workers.small.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let error = ApiError::from(workers.run(1, || ()).await.expect_err("a full queue"));
        assert_eq!(
            (error.kind, error.retry_after_s),
            (ErrorKind::Overloaded, Some(1))
        );
        drop(held);
        waiting.await.expect("no panic").expect("a worker");
        workers.run(1, || ()).await.expect("a worker");
    }

    #[tokio::test]
    async fn a_panic_is_reported_and_frees_the_worker() {
        let workers = Workers::new(1);
        let result = workers.run(1, || panic!("no {}", "luck")).await;
        assert!(matches!(result, Err(WorkError::Panicked(message)) if message == "no luck"));
        workers.run(1, || ()).await.expect("a worker");
    }
}
