//! Events that clients have not read yet, and how many bytes of them may wait.
//!
//! A generation does not wait for its client: it holds a permit, a sequence id and blocks that others need. Its
//! events wait in memory instead, a few hundred bytes a token, and a slow client still gets all of them. A generation
//! is ended only when more waits than a client that reads at all leaves unread: see [`SEQUENCE_BYTES`] and
//! [`ALL_BYTES`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::request::Event;

/// Maximum number of unread bytes of one sequence: about 60,000 tokens.
pub(crate) const SEQUENCE_BYTES: usize = 16 << 20;

/// Maximum number of unread bytes of all sequences. Beyond it, sequences with more than [`FREE_BYTES`] that still
/// grow are ended.
pub(crate) const ALL_BYTES: usize = 512 << 20;

/// Number of unread bytes that every sequence may have.
pub(crate) const FREE_BYTES: usize = 1 << 20;

/// Unread bytes of all sequences.
#[derive(Debug, Default)]
pub(crate) struct Backlogs(AtomicUsize);

/// Unread bytes of one sequence. Clones count for the same sequence.
#[derive(Debug, Clone)]
pub(crate) struct Backlog(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    all: Arc<Backlogs>,
    bytes: AtomicUsize,
}

impl Backlog {
    pub fn new(all: &Arc<Backlogs>) -> Self {
        Backlog(Arc::new(Waiting {
            all: all.clone(),
            bytes: AtomicUsize::new(0),
        }))
    }

    /// Counts an event that was sent.
    pub fn add(&self, event: &Event) {
        let cost = cost(event);
        self.0.bytes.fetch_add(cost, Ordering::Relaxed);
        self.0.all.0.fetch_add(cost, Ordering::Relaxed);
    }

    /// Counts an event that was read.
    pub fn remove(&self, event: &Event) {
        let cost = cost(event);
        self.0.bytes.fetch_sub(cost, Ordering::Relaxed);
        self.0.all.0.fetch_sub(cost, Ordering::Relaxed);
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// True if the sequence must be ended because too much is unread.
    pub fn is_too_long(&self) -> bool {
        let own = self.bytes();
        own > FREE_BYTES
            && (own > SEQUENCE_BYTES || self.0.all.0.load(Ordering::Relaxed) > ALL_BYTES)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all
            .0
            .fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Bytes that an event takes in memory.
fn cost(event: &Event) -> usize {
    let beside = match event {
        Event::PromptLogprobs(logprobs) => {
            let top = logprobs.iter().map(|at| size_of_val(at.top.as_slice()));
            size_of_val(logprobs.as_slice()) + top.sum::<usize>()
        }
        Event::Token(token) => token.text.len() + size_of_val(token.top.as_slice()),
    };
    size_of::<Event>() + beside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PromptLogprob;

    fn event(bytes: usize) -> Event {
        let count = bytes / size_of::<PromptLogprob>();
        Event::PromptLogprobs(vec![PromptLogprob::default(); count])
    }

    #[test]
    fn one_sequence_is_limited_by_its_own_unread_bytes() {
        let all = Arc::default();
        let backlog = Backlog::new(&all);
        let large = event(SEQUENCE_BYTES);
        backlog.add(&large);
        assert!(backlog.is_too_long());
        backlog.remove(&large);
        assert!(!backlog.is_too_long());
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_backlogs_may_grow_when_the_total_is_exceeded() {
        let all = Arc::default();
        let large: Vec<Backlog> = (0..40).map(|_| Backlog::new(&all)).collect();
        let part = event(SEQUENCE_BYTES - 1000);
        large.iter().for_each(|backlog| backlog.add(&part));
        let small = Backlog::new(&all);
        small.add(&event(FREE_BYTES - 1000));
        assert!(large.iter().all(Backlog::is_too_long));
        assert!(!small.is_too_long());
        drop(large);
        small.add(&event(FREE_BYTES));
        assert!(!small.is_too_long());
    }
}
