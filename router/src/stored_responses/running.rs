//! Responses that run in the background. Their events are kept, so that clients can come back for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use futures::stream::{self, AbortHandle, Stream};
use tokio::sync::watch;

use super::{Charge, StoredResponse};

/// A response while it is generated.
#[derive(Debug)]
pub struct RunningResponse {
    pub id: String,
    /// Items of its input, a JSON array.
    pub input: String,
    /// Response that it continues.
    pub previous: Option<Arc<StoredResponse>>,
    progress: Mutex<Progress>,
    /// Number of events so far.
    num_events: watch::Sender<usize>,
    abort: AbortHandle,
}

#[derive(Debug, Default)]
struct Progress {
    /// The response as it is now, a JSON object.
    response: String,
    /// Its events so far; the position of each is its sequence number.
    events: Vec<Bytes>,
    has_ended: bool,
    charge: Option<Charge>,
}

impl RunningResponse {
    /// A response without events. `response`: as it is at the beginning. `abort`: ends its generation.
    pub fn new(
        id: String,
        response: String,
        input: String,
        previous: Option<Arc<StoredResponse>>,
        abort: AbortHandle,
    ) -> Self {
        Self {
            id,
            input,
            previous,
            progress: Mutex::new(Progress {
                response,
                ..Progress::default()
            }),
            num_events: watch::Sender::new(0),
            abort,
        }
    }

    /// Size of the texts that it begins with.
    pub(super) fn num_bytes(&self) -> usize {
        self.id.len() + self.input.len() + self.progress().response.len() + super::OVERHEAD_BYTES
    }

    pub(super) fn set_charge(&self, charge: Charge) {
        self.progress().charge = Some(charge);
    }

    /// The response as it is now, a JSON object.
    pub fn response(&self) -> String {
        self.progress().response.clone()
    }

    /// Ends its generation.
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// Adds events, and the response after them if they change it. They count as bytes of the store.
    pub fn add(&self, events: &[Bytes], response: Option<String>) {
        let mut progress = self.progress();
        let bytes: usize = events.iter().map(Bytes::len).sum();
        if let Some(charge) = &mut progress.charge {
            charge.grow(bytes);
        }
        progress.events.extend_from_slice(events);
        if let Some(response) = response {
            progress.response = response;
        }
        self.num_events.send_replace(progress.events.len());
    }

    /// Ends the response. Returns all its events.
    pub fn end(&self, response: String) -> Vec<Bytes> {
        let mut progress = self.progress();
        progress.response = response;
        progress.has_ended = true;
        // The stored response counts from now on.
        progress.charge = None;
        self.num_events.send_replace(progress.events.len());
        progress.events.clone()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let mut changes = self.num_events.subscribe();
        while !self.has_ended() && changes.changed().await.is_ok() {}
    }

    fn has_ended(&self) -> bool {
        self.progress().has_ended
    }

    /// Its events from `first` on, those to come included.
    pub fn events_from(self: Arc<Self>, first: usize) -> impl Stream<Item = Bytes> + Send + Unpin {
        let changes = self.num_events.subscribe();
        Box::pin(stream::unfold(
            (self, changes, first),
            |(response, mut changes, at)| async move {
                loop {
                    changes.borrow_and_update();
                    {
                        let progress = response.progress();
                        if at < progress.events.len() {
                            let frame = Bytes::from(progress.events[at..].concat());
                            let next = progress.events.len();
                            drop(progress);
                            return Some((frame, (response, changes, next)));
                        }
                        if progress.has_ended {
                            return None;
                        }
                    }
                    if changes.changed().await.is_err() {
                        return None;
                    }
                }
            },
        ))
    }

    /// A panic elsewhere leaves valid data.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn response() -> Arc<RunningResponse> {
        let (abort, _) = AbortHandle::new_pair();
        let begin = "{}".to_owned();
        Arc::new(RunningResponse::new(
            "r".into(),
            begin,
            "[]".into(),
            None,
            abort,
        ))
    }

    fn event(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn readers_get_all_events_from_any_point_on() {
        let running = response();
        running.add(&[event("0"), event("1")], None);
        let readers = [0, 1, 2, 9].map(|first| {
            let frames = running.clone().events_from(first);
            tokio::spawn(frames.map(|frame| frame.to_vec()).concat())
        });
        tokio::task::yield_now().await;
        running.add(&[event("2")], Some("{\"status\": \"in_progress\"}".into()));
        assert!(running.response().contains("in_progress"));
        running.add(&[event("3")], None);
        assert_eq!(running.end("{}".into()).len(), 4);
        let mut texts = Vec::new();
        for reader in readers {
            texts.push(String::from_utf8(reader.await.expect("a reader")).expect("text"));
        }
        assert_eq!(texts, ["0123", "123", "23", ""]);
    }
}
