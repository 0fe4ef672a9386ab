//! Waiting sequences, and the choice of the next one.
//!
//! The order is by priority, then by turn: tenants share the order equally, and without several tenants it is that of
//! arrival ([`crate::shares`]). There is one exception. Among the first few of a priority, the sequence
//! with the longest cached prefix goes first, since its blocks may be evicted before its turn. Among equals the
//! shortest goes first: the others wait for it the least, and it would wait for them the longest. A sequence can be
//! overtaken a few times only, and a preempted one never. All operations take at most logarithmic time in the queue's
//! length.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Instant;

use crate::request::Priority;
use crate::sequence::{Sequence, SequenceKey, Sequences};
use crate::shares::Turn;

/// Number of sequences at the front of the queue that are compared.
///
/// The shortest first, against arrival order, on an Intel Xeon without AMX (`chat`, SmolLM2): the first
/// token came after 686 ms (848 before) with 32 clients and 1661 ms (2016) with 64, medians of 3 and 5
/// rounds. The time per token rose from 208 to 224 ms and from 396 to 433; tokens per second fell by 1 to
/// 2 %.
const WINDOW: usize = 8;

/// Maximum number of times that a sequence is overtaken by later ones.
pub(crate) const MAX_OVERTAKEN: u32 = 8;

/// Place of a sequence in the order.
fn place(sequence: &Sequence) -> (Priority, Turn, SequenceKey) {
    (sequence.request.priority, sequence.turn, sequence.key)
}

#[derive(Debug, Default)]
pub(crate) struct WaitingQueue {
    /// Waiting sequences, best first: keys grow with arrival.
    order: BTreeSet<(Priority, Turn, SequenceKey)>,
    /// Deadlines of the sequences that never ran.
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
        self.order.insert(place(sequence));
        if let Some(deadline) = sequence.deadline() {
            self.deadlines.insert((deadline, sequence.key));
        }
    }

    pub fn remove(&mut self, sequence: &Sequence) {
        self.order.remove(&place(sequence));
        if let Some(deadline) = sequence.deadline() {
            self.deadlines.remove(&(deadline, sequence.key));
        }
    }

    /// A sequence whose deadline has passed.
    pub fn expired(&self, now: Instant) -> Option<SequenceKey> {
        let &(deadline, key) = self.deadlines.first()?;
        (deadline < now).then_some(key)
    }

    pub fn first(&self) -> Option<SequenceKey> {
        self.order.first().map(|(_, _, key)| *key)
    }

    /// The next sequence: the first, or one that may overtake it. `num_cached` gives the number of a sequence's
    /// cached blocks.
    pub fn next(
        &self,
        sequences: &mut Sequences,
        num_cached: impl Fn(&mut Sequence) -> usize,
    ) -> Option<SequenceKey> {
        let &(priority, _, first) = self.order.first()?;
        let mut best: Option<(SequenceKey, (usize, Reverse<usize>))> = None;
        for &(class, _, key) in self.order.iter().take(WINDOW) {
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

    /// Counts the start of `key` for the sequences that it overtakes.
    pub fn overtake(&self, key: SequenceKey, sequences: &mut Sequences) {
        for &(_, _, before) in self.order.iter().take_while(|(.., other)| *other != key) {
            if let Some(sequence) = sequences.get_mut(&before) {
                sequence.num_overtaken += 1;
            }
        }
    }
}
