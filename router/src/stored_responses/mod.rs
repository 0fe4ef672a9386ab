//! Responses that are kept, so that clients can read and continue them. Each API key has its own, and an equal share of
//! the memory. The oldest give way to new ones.

mod running;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::body::Bytes;

pub use running::RunningResponse;

/// Owner of responses: the index of an API key; `None` without keys.
type Owner = Option<u32>;

/// Estimated size of what is kept beside the texts of a response.
const OVERHEAD_BYTES: usize = 512;

/// Estimated size of an item's entry in the index, beside its id.
const ITEM_BYTES: usize = 96;

/// The responses of all owners. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoredResponses {
    bytes: usize,
    /// Number of owners that share them.
    num_owners: Arc<AtomicUsize>,
    shelves: Arc<Mutex<HashMap<Owner, Shelf>>>,
}

/// The responses of one owner, the oldest first.
#[derive(Debug, Default)]
struct Shelf {
    responses: VecDeque<Arc<StoredResponse>>,
    /// Responses that run in the background, by id.
    running: HashMap<String, Arc<RunningResponse>>,
    /// The response that each item belongs to, by the item's id.
    by_item: HashMap<String, Weak<StoredResponse>>,
    /// Size of all responses that exist, including those that only later ones refer to.
    bytes: Arc<AtomicUsize>,
}

/// A response with its input, as JSON texts.
#[derive(Debug)]
pub struct StoredResponse {
    pub id: String,
    /// The response, a JSON object.
    pub response: String,
    /// Items of the input, a JSON array. Those of earlier responses are not among them.
    pub input: String,
    /// Ids of the items of its input and output.
    pub item_ids: Vec<String>,
    /// Events of a response that ran in the background, by sequence number; empty for others.
    pub events: Vec<Bytes>,
    /// Response that this one continues. It stays readable through this one when it has given way.
    pub previous: Option<Arc<StoredResponse>>,
    charge: Option<Charge>,
}

/// Bytes that count until the response is dropped.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl Charge {
    fn new(bytes: usize, total: &Arc<AtomicUsize>) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Self {
            bytes,
            total: total.clone(),
        }
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl StoredResponse {
    pub fn new(
        id: String,
        response: String,
        input: String,
        item_ids: Vec<String>,
        previous: Option<Arc<StoredResponse>>,
    ) -> Self {
        Self {
            id,
            response,
            input,
            item_ids,
            events: Vec::new(),
            previous,
            charge: None,
        }
    }

    /// The response with its events.
    pub fn with_events(mut self, events: Vec<Bytes>) -> Self {
        self.events = events;
        self
    }

    /// Size of the texts of this response, of its ids, and of what is kept beside them.
    pub fn num_bytes(&self) -> usize {
        let ids: usize = self
            .item_ids
            .iter()
            .map(|id| 2 * id.len() + ITEM_BYTES)
            .sum();
        let events: usize = self.events.iter().map(Bytes::len).sum();
        self.response.len() + self.input.len() + ids + events + OVERHEAD_BYTES
    }

    /// This response and those that it continues, the oldest first.
    pub fn chain(self: &Arc<Self>) -> Vec<Arc<StoredResponse>> {
        let previous = |response: &Arc<StoredResponse>| response.previous.clone();
        let mut chain: Vec<_> = std::iter::successors(Some(self.clone()), previous).collect();
        chain.reverse();
        chain
    }
}

impl Drop for StoredResponse {
    /// Drops a long chain without recursion.
    fn drop(&mut self) {
        let mut next = self.previous.take();
        while let Some(response) = next {
            next = Arc::try_unwrap(response)
                .ok()
                .and_then(|mut response| response.previous.take());
        }
    }
}

impl Shelf {
    /// Removes the oldest responses until all together have at most `limit` bytes; returns whether they do.
    fn make_room(&mut self, limit: usize) -> bool {
        while self.bytes.load(Ordering::Relaxed) > limit {
            // Dropped here, so that its bytes no longer count, unless a later one refers to it.
            match self.responses.pop_front() {
                Some(oldest) => self.forget_items(&oldest),
                None => return false,
            }
        }
        true
    }

    /// Removes the items of a response that is no longer kept from the index.
    fn forget_items(&mut self, response: &Arc<StoredResponse>) {
        for id in &response.item_ids {
            let of_it = |found: &Weak<StoredResponse>| found.as_ptr() == Arc::as_ptr(response);
            if self.by_item.get(id).is_some_and(of_it) {
                self.by_item.remove(id);
            }
        }
    }
}

impl StoredResponses {
    /// `bytes` are shared equally among `num_owners`; 0: nothing is kept.
    pub fn new(bytes: usize, num_owners: Arc<AtomicUsize>) -> Self {
        Self {
            bytes,
            num_owners,
            shelves: Arc::default(),
        }
    }

    fn bytes_per_owner(&self) -> usize {
        self.bytes / self.num_owners.load(Ordering::Relaxed).max(1)
    }

    /// True if responses are kept at all.
    pub fn is_enabled(&self) -> bool {
        self.bytes_per_owner() > 0
    }

    /// Keeps `response`. Older ones of `owner` give way until it fits. A response that is larger than the owner's share
    /// is not kept; returns whether it is.
    pub fn keep(&self, owner: Owner, mut response: StoredResponse) -> bool {
        let bytes = response.num_bytes();
        if bytes > self.bytes_per_owner() {
            return false;
        }
        self.on_shelf(owner, |shelf| {
            response.charge = Some(Charge::new(bytes, &shelf.bytes));
            let response = Arc::new(response);
            for id in &response.item_ids {
                shelf.by_item.insert(id.clone(), Arc::downgrade(&response));
            }
            shelf.responses.push_back(response);
            shelf.make_room(self.bytes_per_owner());
            !shelf.responses.is_empty()
        })
    }

    /// Adds a response that runs in the background. Older ones of `owner` give way until it fits; returns whether it
    /// does.
    pub fn begin(&self, owner: Owner, response: &Arc<RunningResponse>) -> bool {
        self.on_shelf(owner, |shelf| {
            response.set_charge(Charge::new(response.num_bytes(), &shelf.bytes));
            let fits = shelf.make_room(self.bytes_per_owner());
            if fits {
                shelf.running.insert(response.id.clone(), response.clone());
            }
            fits
        })
    }

    /// Removes old responses of `owner` so that those which run have room; returns whether they have.
    pub fn make_room(&self, owner: Owner) -> bool {
        self.on_shelf(owner, |shelf| shelf.make_room(self.bytes_per_owner()))
    }

    /// The response `id` of `owner`, if it runs in the background.
    pub fn running(&self, owner: Owner, id: &str) -> Option<Arc<RunningResponse>> {
        self.on_shelf(owner, |shelf| shelf.running.get(id).cloned())
    }

    /// Removes a response that runs in the background; returns whether it was there.
    pub fn end(&self, owner: Owner, id: &str) -> bool {
        self.on_shelf(owner, |shelf| shelf.running.remove(id).is_some())
    }

    /// The response `id` of `owner`.
    pub fn get(&self, owner: Owner, id: &str) -> Option<Arc<StoredResponse>> {
        self.on_shelf(owner, |shelf| {
            let mut newest_first = shelf.responses.iter().rev();
            newest_first.find(|response| response.id == id).cloned()
        })
    }

    /// Removes the response `id` of `owner`; returns whether there was one.
    pub fn remove(&self, owner: Owner, id: &str) -> bool {
        let removed = self.on_shelf(owner, |shelf| {
            let at = shelf.responses.iter().position(|kept| kept.id == id)?;
            let removed = shelf.responses.remove(at)?;
            shelf.forget_items(&removed);
            Some(removed)
        });
        removed.is_some()
    }

    /// The response of `owner` that has the item `id`.
    pub fn with_item(&self, owner: Owner, id: &str) -> Option<Arc<StoredResponse>> {
        self.on_shelf(owner, |shelf| shelf.by_item.get(id)?.upgrade())
    }

    fn on_shelf<T>(&self, owner: Owner, act: impl FnOnce(&mut Shelf) -> T) -> T {
        // A panic elsewhere leaves a valid shelf.
        let mut shelves = self.shelves.lock().unwrap_or_else(PoisonError::into_inner);
        act(shelves.entry(owner).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response of 1000 bytes.
    fn response(id: &str, previous: Option<Arc<StoredResponse>>) -> StoredResponse {
        let text = "x".repeat(1000 - OVERHEAD_BYTES);
        StoredResponse::new(id.into(), text, String::new(), Vec::new(), previous)
    }

    fn ids(store: &StoredResponses, owner: Owner) -> Vec<String> {
        store.on_shelf(owner, |shelf| {
            let newest_first = shelf.responses.iter().rev();
            newest_first.map(|response| response.id.clone()).collect()
        })
    }

    #[test]
    fn the_oldest_give_way_and_owners_do_not_see_each_other() {
        let store = StoredResponses::new(4000, Arc::new(2.into()));
        for id in ["a", "b", "c"] {
            assert!(store.keep(Some(0), response(id, None)));
        }
        assert!(store.keep(Some(1), response("d", None)));
        assert_eq!(ids(&store, Some(0)), ["c", "b"]);
        assert!(store.get(Some(0), "a").is_none());
        assert!(store.get(Some(1), "b").is_none());
        assert!(store.get(Some(1), "d").is_some());
        assert!(store.remove(Some(0), "b"));
        assert!(!store.remove(Some(0), "b"));
        assert!(store.keep(Some(0), response("e", None)));
        assert_eq!(ids(&store, Some(0)), ["e", "c"]);
    }

    #[test]
    fn what_a_later_response_continues_counts_until_that_is_dropped() {
        let store = StoredResponses::new(3000, Arc::new(1.into()));
        assert!(store.keep(None, response("a", None)));
        let a = store.get(None, "a");
        assert!(store.keep(None, response("b", a)));
        assert!(store.remove(None, "a"));
        let b = store.get(None, "b").expect("b");
        let chain: Vec<_> = b.chain().iter().map(|kept| kept.id.clone()).collect();
        assert_eq!(chain, ["a", "b"]);
        drop(b);
        assert!(store.keep(None, response("c", None)));
        assert_eq!(ids(&store, None), ["c", "b"]);
        assert!(store.keep(None, response("d", None)));
        assert_eq!(ids(&store, None), ["d", "c"], "b and a have given way");
    }

    #[test]
    fn items_are_found_while_their_response_is_kept() {
        let store = StoredResponses::new(4000, Arc::new(1.into()));
        let with_items = |id: &str, items: &[&str]| {
            let mut response = response(id, None);
            response.item_ids = items.iter().map(|item| (*item).to_owned()).collect();
            response
        };
        assert!(store.keep(None, with_items("a", &["1", "2"])));
        assert!(store.keep(None, with_items("b", &["2", "3"])));
        let owner_of = |item: &str| store.with_item(None, item).map(|found| found.id.clone());
        assert_eq!(owner_of("1").as_deref(), Some("a"));
        assert_eq!(owner_of("2").as_deref(), Some("b"));
        assert!(store.remove(None, "a"));
        assert_eq!((owner_of("1"), owner_of("2").as_deref()), (None, Some("b")));
        assert!(store.remove(None, "b"));
        assert_eq!((owner_of("2"), owner_of("3")), (None, None));
    }

    #[test]
    fn nothing_is_kept_beyond_the_share() {
        let store = StoredResponses::new(999, Arc::new(1.into()));
        assert!(store.is_enabled());
        assert!(!store.keep(None, response("a", None)));
        assert!(!StoredResponses::new(0, Arc::new(1.into())).is_enabled());
        assert!(!StoredResponses::new(0, Arc::new(1.into())).keep(None, response("a", None)));
    }

    fn running(id: &str) -> Arc<RunningResponse> {
        let (abort, _) = futures::stream::AbortHandle::new_pair();
        let text = "x".repeat(1000 - OVERHEAD_BYTES - id.len());
        Arc::new(RunningResponse::new(
            id.into(),
            text,
            String::new(),
            None,
            abort,
        ))
    }

    #[test]
    fn running_responses_and_their_events_count_as_bytes() {
        let store = StoredResponses::new(3000, Arc::new(1.into()));
        for id in ["a", "b"] {
            assert!(store.keep(None, response(id, None)));
        }
        let first = running("first");
        assert!(store.begin(None, &first));
        assert_eq!(ids(&store, None), ["b", "a"]);
        first.add(&[Bytes::from(vec![0; 1001])], None);
        assert!(store.make_room(None));
        assert!(ids(&store, None).is_empty(), "all have given way");
        assert!(!store.begin(None, &running("second")));
        assert!(store.running(None, "second").is_none());
        first.add(&[Bytes::from(vec![0; 1000])], None);
        assert!(!store.make_room(None), "it alone is too large");
        assert!(store.running(None, "first").is_some());
        assert!(store.running(Some(1), "first").is_none());
        assert!(store.end(None, "first"));
        assert!(!store.end(None, "first"));
        drop(first);
        assert!(store.keep(None, response("c", None)));
    }

    #[test]
    fn a_long_chain_is_dropped_without_recursion() {
        let mut last = None;
        for _ in 0..200_000 {
            let next = StoredResponse::new(
                String::new(),
                String::new(),
                String::new(),
                Vec::new(),
                last,
            );
            last = Some(Arc::new(next));
        }
        drop(last);
    }
}
