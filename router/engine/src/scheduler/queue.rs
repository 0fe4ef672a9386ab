//! Sequences that wait to be computed, and which of them is next.
//!
//! By priority, then by arrival; but of the first few of one priority, the one whose prompt is in the cache for the
//! longest part goes first: its blocks might be gone by the time that it is its turn. Of several, the shortest: the others
//! wait for it the least, and it would wait for them the longest. Each may be overtaken a few times only, and one that was
//! preempted never. Nothing here takes longer for a longer queue, but for a logarithm.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Instant;

use crate::request::Priority;
use crate::sequence::{Sequence, SequenceKey, Sequences};

/// How many of the first in the queue are compared.
///
/// The shortest first, against arrival order, on an Intel Xeon without AMX (`chat`, SmolLM2): the first
/// token came after 686 ms (848 before) with 32 clients and 1661 ms (2016) with 64, medians of 3 and 5
/// rounds. The time per token rose from 208 to 224 ms and from 396 to 433; tokens per second fell by 1 to
/// 2 %.
const WINDOW: usize = 8;

/// How often a sequence may be overtaken by later ones.
pub(crate) const MAX_OVERTAKEN: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// Best first: keys grow with arrival.
    order: BTreeSet<(Priority, SequenceKey)>,
    /// Until when those that never ran are to be started.
    deadlines: BTreeSet<(Instant, SequenceKey)>,
}

impl WaitingQueue {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn insert(&mut self, sequence: &Sequence) {
        self.order.insert((sequence.request.priority, sequence.key));
        if let Some(deadline) = sequence.deadline() {
            self.deadlines.insert((deadline, sequence.key));
        }
    }

    pub fn remove(&mut self, sequence: &Sequence) {
        self.order
            .remove(&(sequence.request.priority, sequence.key));
        if let Some(deadline) = sequence.deadline() {
            self.deadlines.remove(&(deadline, sequence.key));
        }
    }

    /// One whose deadline has passed.
    pub fn expired(&self, now: Instant) -> Option<SequenceKey> {
        let &(deadline, key) = self.deadlines.first()?;
        (deadline < now).then_some(key)
    }

    pub fn first(&self) -> Option<SequenceKey> {
        self.order.first().map(|(_, key)| *key)
    }

    /// The next one: the first, or one that may overtake it. `num_cached`: how many blocks of a sequence are in the cache.
    pub fn next(
        &self,
        sequences: &mut Sequences,
        num_cached: impl Fn(&mut Sequence) -> usize,
    ) -> Option<SequenceKey> {
        let &(priority, first) = self.order.first()?;
        let mut best: Option<(SequenceKey, (usize, Reverse<usize>))> = None;
        for &(class, key) in self.order.iter().take(WINDOW) {
            let Some(sequence) = sequences.get_mut(&key) else {
                continue;
            };
            if class != priority {
                break;
            }
            let rank = (num_cached(sequence), Reverse(sequence.tokens.len()));
            if sequence.num_pending == 0 && best.is_none_or(|(_, highest)| rank > highest) {
                best = Some((key, rank));
            }
            if sequence.has_started() || sequence.num_overtaken >= MAX_OVERTAKEN {
                break;
            }
        }
        Some(best.map_or(first, |(key, _)| key))
    }

    /// `key` is started now: counts that for those that it overtakes.
    pub fn overtake(&self, key: SequenceKey, sequences: &mut Sequences) {
        for &(_, before) in self.order.iter().take_while(|(_, other)| *other != key) {
            if let Some(sequence) = sequences.get_mut(&before) {
                sequence.num_overtaken += 1;
            }
        }
    }
}
