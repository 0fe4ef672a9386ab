//! Which waiting sequences are admitted to a step, and with which blocks of the prefix cache.

use std::time::Instant;

use super::Scheduler;
use crate::scheduler::batch::Batch;
use crate::sequence::{Sequence, SequenceKey};

impl Scheduler {
    /// Admits waiting sequences, best first, while their whole prompt fits beside what running ones still need.
    pub(super) fn admit_waiting(&mut self, batch: &mut Batch, now: Instant) {
        if self.waiting.is_empty() || batch.budget_tokens == 0 || self.free_rows.is_empty() {
            return;
        }
        let mut promised: usize = self
            .running
            .iter()
            .filter_map(|(_, key)| self.sequences.get(key))
            .map(|sequence| self.still_needed(sequence))
            .sum();
        while batch.budget_tokens > 0 && !self.free_rows.is_empty() {
            let Some(key) = self.next_to_admit(promised) else {
                return;
            };
            self.waiting.overtake(key, &mut self.sequences);
            self.admit(key, batch, now);
            if let Some(sequence) = self.sequences.get(&key) {
                promised += self.still_needed(sequence);
            }
        }
    }

    /// Blocks that a running sequence must get before all its tokens are computed.
    fn still_needed(&self, sequence: &Sequence) -> usize {
        let needed = sequence
            .tokens
            .len()
            .div_ceil(self.config.block_size_tokens);
        needed.saturating_sub(sequence.blocks.len())
    }

    /// The waiting sequence that is admitted next, if it fits beside `promised` blocks.
    fn next_to_admit(&mut self, promised: usize) -> Option<SequenceKey> {
        let (pool, block_size) = (&self.pool, self.config.block_size_tokens);
        let first = self.waiting.first()?;
        let best = self.waiting.next(&mut self.sequences, |sequence| {
            sequence.estimate_cached(pool, block_size).0
        })?;
        [best, first]
            .into_iter()
            .find(|key| self.fits(*key, promised))
    }

    /// Whether a waiting sequence can be admitted now, with its whole prompt.
    fn fits(&mut self, key: SequenceKey, promised: usize) -> bool {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return false;
        };
        // Preempted while tokens of it were being sampled: they are due any moment.
        if sequence.num_pending > 0 {
            return false;
        }
        let block_size = self.config.block_size_tokens;
        let (cached, unused) = sequence.estimate_cached(&self.pool, block_size);
        let needed = (sequence.tokens.len() + 1).div_ceil(block_size);
        // What is cached and in use is there already; what is cached and not in use counts as free until then.
        let needed = needed.min(self.pool.total()) - (cached - unused);
        // Some room to grow, so that sequences are not admitted only to be preempted at the next step.
        let headroom = self.running.len().min(self.pool.total() / 64);
        needed + promised + headroom <= self.pool.num_free()
    }

    /// Moves a sequence from the queue to the shard and adds the first chunk of it.
    pub(super) fn admit(&mut self, key: SequenceKey, batch: &mut Batch, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let Some(row) = self.free_rows.pop() else {
            return;
        };
        self.waiting.remove(sequence);
        self.running.insert((sequence.request.priority, key));
        sequence.row = Some(row);
        if self.pool.shares() && sequence.may_use_cache() {
            let found = sequence.adopt_cached(&mut self.pool, self.config.block_size_tokens);
            self.metrics.looked_up(sequence.tokens.len(), found);
        }
        if let Some(waited) = sequence.started(now) {
            self.metrics.queued(waited);
            self.metrics
                .cached_prompt_tokens
                .increment(sequence.num_cached as u64);
        }
        batch.step.admitted.push(sequence.introduction(row));
        self.add_chunk(key, batch);
    }
}
