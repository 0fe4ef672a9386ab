//! Permits to wait or run: as many as `max_concurrent_requests`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::SubmitError;

/// All permits of an engine or an encoder.
#[derive(Debug)]
pub(crate) struct Permits {
    limit: usize,
    num_taken: AtomicUsize,
    /// Notified when `num_taken` reaches zero.
    idle: Notify,
}

impl Permits {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Permits {
            limit,
            num_taken: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Takes a permit if one is available.
    pub fn take(self: &Arc<Self>) -> Result<Permit, SubmitError> {
        let limit = self.limit;
        self.num_taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < limit).then_some(taken + 1)
            })
            .map(|_| {
                Permit(Arc::new(Taken {
                    permits: self.clone(),
                    is_returned: AtomicBool::new(false),
                }))
            })
            .map_err(|_| SubmitError::Overloaded {
                limit,
                retry_after_s: 1,
            })
    }

    /// Waits until every permit has been returned.
    pub async fn all_returned(&self) {
        loop {
            let idle = self.idle.notified();
            if self.num_taken.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// A permit for one request. Dropping it returns it.
#[derive(Debug)]
pub struct Permit(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    permits: Arc<Permits>,
    is_returned: AtomicBool,
}

impl Permit {
    /// A second holder of the same permit. It is returned when the first of the two is dropped.
    pub(crate) fn twin(&self) -> Self {
        Permit(self.0.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Taken {
            permits,
            is_returned,
        } = &*self.0;
        if !is_returned.swap(true, Ordering::SeqCst)
            && permits.num_taken.fetch_sub(1, Ordering::SeqCst) == 1
        {
            permits.idle.notify_waiters();
        }
    }
}

/// A permit taken before its request was built, or none. A clone of the request has none.
#[derive(Debug, Default)]
pub struct ReservedPermit(Option<Permit>);

impl ReservedPermit {
    pub(crate) fn take(&mut self) -> Option<Permit> {
        self.0.take()
    }
}

impl From<Permit> for ReservedPermit {
    fn from(permit: Permit) -> Self {
        ReservedPermit(Some(permit))
    }
}

impl Clone for ReservedPermit {
    fn clone(&self) -> Self {
        ReservedPermit(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dropped_permit_is_returned_once() {
        let permits = Permits::new(1);
        let reserved = ReservedPermit::from(permits.take().expect("a permit"));
        assert!(permits.take().is_err());
        let copy = reserved.clone();
        let twin = reserved.0.as_ref().map(Permit::twin);
        drop(reserved);
        permits.all_returned().await;
        assert!(copy.0.is_none());
        let next = permits.take().expect("it was returned");
        drop(twin);
        assert!(permits.take().is_err(), "the twin returns nothing");
        drop(next);
    }
}
