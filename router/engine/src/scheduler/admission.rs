//! Admits waiting sequences to a step and gives them their blocks of the prefix cache.

use std::time::Instant;

use super::Scheduler;
use crate::scheduler::batch::Batch;
use crate::sequence::{Sequence, SequenceKey};

impl Scheduler {
    /// Admits waiting sequences, best first, as long as their whole prompt fits beside the blocks that running ones
    /// still need.
    pub(super) fn admit_waiting(&mut self, batch: &mut Batch, now: Instant) {
        if self.waiting.is_empty() || batch.budget_tokens == 0 || self.free_sequence_ids.is_empty()
        {
            return;
        }
        let mut promised: usize = self
            .running
            .iter()
            .filter_map(|(_, key)| self.sequences.get(key))
            .map(|sequence| self.still_needed(sequence))
            .sum();
        while batch.budget_tokens > 0 && !self.free_sequence_ids.is_empty() {
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

    /// Number of blocks that a running sequence still needs for all of its tokens.
    fn still_needed(&self, sequence: &Sequence) -> usize {
        let needed = sequence
            .tokens
            .len()
            .div_ceil(self.config.block_size_tokens);
        needed.saturating_sub(sequence.blocks.len())
    }

    /// The next waiting sequence to admit, if it fits beside `promised` blocks.
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

    /// True if a waiting sequence can be admitted now with its whole prompt.
    fn fits(&mut self, key: SequenceKey, promised: usize) -> bool {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return false;
        };
        // It was preempted while its tokens were being sampled; they arrive soon.
        if sequence.num_pending > 0 {
            return false;
        }
        let block_size = self.config.block_size_tokens;
        let (cached, unused) = sequence.estimate_cached(&self.pool, block_size);
        let needed = (sequence.tokens.len() + 1).div_ceil(block_size);
        // Cached blocks in use are there already. Cached blocks not in use count as available until then.
        let needed = needed.min(self.pool.total()) - (cached - unused);
        // Room to grow, so that sequences are not admitted only to be preempted in the next step.
        let headroom = self.running.len().min(self.pool.total() / 64);
        needed + promised + headroom <= self.pool.num_free()
    }

    /// Moves a sequence from the queue to the shard, and adds its first chunk.
    pub(super) fn admit(&mut self, key: SequenceKey, batch: &mut Batch, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let Some(sequence_id) = self.free_sequence_ids.pop() else {
            return;
        };
        self.waiting.remove(sequence);
        self.shares.started(sequence.turn);
        self.running.insert((sequence.request.priority, key));
        sequence.sequence_id = Some(sequence_id);
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
        batch
            .step
            .admitted
            .push(sequence.to_new_sequence(sequence_id, &self.eos_token_ids));
        self.add_chunk(key, batch);
    }
}
