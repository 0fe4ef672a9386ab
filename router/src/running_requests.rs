//! Requests that are being answered, by their ids, so that a client can abort them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::stream::{AbortHandle, AbortRegistration};

/// Owner of requests: the index of an API key; `None` without keys.
type Owner = Option<u32>;
type ById = HashMap<(Owner, String), Vec<AbortHandle>>;

tokio::task_local! {
    /// Request that the current task handles.
    static CURRENT: Arc<RunningRequest>;
}

/// All requests that are being answered. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RunningRequests(Arc<Mutex<ById>>);

impl RunningRequests {
    /// Adds a request that its owner knows as `id`. It is removed when the last reference to it is dropped. Aborting it
    /// aborts what has the registration.
    pub fn begin(&self, owner: Owner, id: &str) -> (Arc<RunningRequest>, AbortRegistration) {
        let (handle, registration) = AbortHandle::new_pair();
        let request = RunningRequest {
            all: self.clone(),
            owner,
            state: Mutex::new(State {
                handles: vec![handle],
                ids: Vec::new(),
            }),
        };
        request.also_known_as(id);
        (Arc::new(request), registration)
    }

    /// Aborts the requests that `owner` knows as `id`; returns whether there were any.
    pub fn abort(&self, owner: Owner, id: &str) -> bool {
        let found = lock(&self.0).remove(&(owner, id.to_owned()));
        let found = found.unwrap_or_default();
        found.iter().for_each(AbortHandle::abort);
        !found.is_empty()
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct RunningRequest {
    all: RunningRequests,
    owner: Owner,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    handles: Vec<AbortHandle>,
    ids: Vec<String>,
}

impl RunningRequest {
    /// Adds an id, under which the request can be aborted, too.
    fn also_known_as(&self, id: &str) {
        let mut state = lock(&self.state);
        state.ids.push(id.to_owned());
        let mut all = lock(&self.all.0);
        let listed = all.entry((self.owner, id.to_owned())).or_default();
        listed.extend(state.handles.iter().cloned());
    }

    /// Registration of a further part of the request, which is aborted with it.
    pub fn part(&self) -> AbortRegistration {
        let (handle, registration) = AbortHandle::new_pair();
        let mut state = lock(&self.state);
        if state.handles.iter().any(AbortHandle::is_aborted) {
            handle.abort();
        }
        state.handles.push(handle.clone());
        let mut all = lock(&self.all.0);
        for id in &state.ids {
            let listed = all.entry((self.owner, id.clone())).or_default();
            listed.push(handle.clone());
        }
        registration
    }

    /// Runs `handling` as the handling of this request.
    pub async fn scope<T>(self: Arc<Self>, handling: impl Future<Output = T>) -> T {
        CURRENT.scope(self, handling).await
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Other requests may have the same id, which clients choose.
        state.handles.iter().for_each(AbortHandle::abort);
        let mut all = lock(&self.all.0);
        for id in state.ids.drain(..) {
            let key = (self.owner, id);
            if let Some(listed) = all.get_mut(&key) {
                listed.retain(|handle| !handle.is_aborted());
                if listed.is_empty() {
                    all.remove(&key);
                }
            }
        }
    }
}

/// Gives the request that the current task handles the id of its answer.
pub fn also_known_as(id: &str) {
    let _ = CURRENT.try_with(|request| request.also_known_as(id));
}

/// A panic elsewhere leaves valid data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::future::Abortable;

    use super::*;

    #[tokio::test]
    async fn a_request_is_aborted_by_any_of_its_ids_and_by_its_owner_alone() {
        let all = RunningRequests::default();
        for id in ["mine", "chatcmpl-1"] {
            let (request, registration) = all.begin(Some(0), "mine");
            let of_body = request.part();
            request.scope(async { also_known_as("chatcmpl-1") }).await;
            let (request, again) = all.begin(Some(0), "other");
            assert!(!all.abort(Some(1), id));
            drop((registration, of_body));
            drop((request, again));
        }
        for id in ["mine", "chatcmpl-1"] {
            let (request, registration) = all.begin(Some(0), "mine");
            let of_body = request.part();
            let kept = request.clone();
            kept.scope(async { also_known_as("chatcmpl-1") }).await;
            assert!(!all.abort(Some(1), id));
            assert!(all.abort(Some(0), id));
            let never = std::future::pending::<()>;
            assert!(Abortable::new(never(), registration).await.is_err());
            assert!(Abortable::new(never(), of_body).await.is_err());
            assert!(Abortable::new(never(), request.part()).await.is_err());
        }
        assert!(lock(&all.0).is_empty());
    }

    #[tokio::test]
    async fn requests_of_the_same_id_are_aborted_together_and_leave_one_by_one() {
        let all = RunningRequests::default();
        let (first, _registration) = all.begin(None, "same");
        let (second, registration) = all.begin(None, "same");
        drop(first);
        assert!(all.abort(None, "same"));
        let waiting = Abortable::new(std::future::pending::<()>(), registration);
        assert!(waiting.await.is_err());
        assert!(!all.abort(None, "same"));
        drop(second);
        assert!(lock(&all.0).is_empty());
    }
}
