//! Places among `max_concurrent_requests`, for requests that wait or run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::request::SubmitError;

/// All places of an engine or an encoder.
#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    num_taken: AtomicUsize,
    /// Notified when `num_taken` reaches zero.
    idle: Notify,
}

impl Places {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Places {
            limit,
            num_taken: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// Takes one, if one is free.
    pub fn take(self: &Arc<Self>) -> Result<Place, SubmitError> {
        let limit = self.limit;
        self.num_taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < limit).then_some(taken + 1)
            })
            .map(|_| {
                Place(Arc::new(Taken {
                    places: self.clone(),
                    is_free_again: AtomicBool::new(false),
                }))
            })
            .map_err(|_| SubmitError::Overloaded {
                limit,
                retry_after_s: 1,
            })
    }

    /// Returns when none is taken.
    pub async fn all_free(&self) {
        loop {
            let idle = self.idle.notified();
            if self.num_taken.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    places: Arc<Places>,
    is_free_again: AtomicBool,
}

impl Place {
    /// The same place, held twice: it is given back when the first of both is dropped.
    pub(crate) fn twin(&self) -> Self {
        Place(self.0.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Taken {
            places,
            is_free_again,
        } = &*self.0;
        if !is_free_again.swap(true, Ordering::SeqCst)
            && places.num_taken.fetch_sub(1, Ordering::SeqCst) == 1
        {
            places.idle.notify_waiters();
        }
    }
}

/// A place that was taken for a request before it was made, if one was. A clone of the request has none.
#[derive(Debug, Default)]
pub struct Reserved(Option<Place>);

impl Reserved {
    pub(crate) fn take(&mut self) -> Option<Place> {
        self.0.take()
    }
}

impl From<Place> for Reserved {
    fn from(place: Place) -> Self {
        Reserved(Some(place))
    }
}

impl Clone for Reserved {
    fn clone(&self) -> Self {
        Reserved(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_when_it_is_dropped() {
        let places = Places::new(1);
        let reserved = Reserved::from(places.take().expect("a place"));
        assert!(places.take().is_err());
        let copy = reserved.clone();
        let twin = reserved.0.as_ref().map(Place::twin);
        drop(reserved);
        places.all_free().await;
        assert!(copy.0.is_none());
        let next = places.take().expect("it is free again");
        drop(twin);
        assert!(places.take().is_err(), "the twin gives nothing back");
        drop(next);
    }
}
