//! Fills a step with decodes and chunks of prefill, preempting sequences when blocks run out.

use std::time::Instant;

use super::Scheduler;
use crate::scheduler::batch::Batch;
use crate::scheduler::drafting::DraftRoom;
use crate::sequence::{Sequence, SequenceKey};

impl Scheduler {
    /// Adds the decodes of the running sequences. Returns those that still prefill, best first.
    pub(super) fn add_decodes(
        &mut self,
        batch: &mut Batch,
        room: &mut DraftRoom,
    ) -> Vec<SequenceKey> {
        let running: Vec<SequenceKey> = self.running.iter().map(|(_, key)| *key).collect();
        let prefills = |key: &SequenceKey| !self.add_decode(*key, batch, room);
        running.into_iter().filter(prefills).collect()
    }

    /// Adds a sequence's decode, and preempts the newest sequences while no block is available. Returns false, having
    /// done nothing, when the sequence still prefills.
    fn add_decode(&mut self, key: SequenceKey, batch: &mut Batch, room: &mut DraftRoom) -> bool {
        let block_size = self.config.block_size_tokens;
        loop {
            let Some(sequence) = self.sequences.get_mut(&key) else {
                return true;
            };
            if sequence.sequence_id.is_none() {
                return true;
            }
            if !sequence.is_decoding() {
                return false;
            }
            if sequence.must_be_recomputed() {
                self.back_to_queue(key);
                return true;
            }
            if sequence.num_ready() == 0 {
                return true;
            }
            let drafts = room.take(sequence, &self.eos_token_ids, block_size);
            if batch.add(sequence, 1, &drafts, &mut self.pool, block_size) {
                return true;
            }
            let Some(&(_, victim)) = self.running.last() else {
                return true;
            };
            self.preempt(victim);
        }
    }

    pub(super) fn add_prefills(&mut self, prefills: Vec<SequenceKey>, batch: &mut Batch) {
        for key in prefills {
            if batch.budget_tokens == 0 {
                return;
            }
            self.add_prefill(key, batch);
        }
    }

    /// Adds a chunk of a sequence's prefill.
    fn add_prefill(&mut self, key: SequenceKey, batch: &mut Batch) {
        let prefills =
            |sequence: &&Sequence| sequence.sequence_id.is_some() && !sequence.is_decoding();
        if self.sequences.get(&key).filter(prefills).is_some() {
            self.add_chunk(key, batch);
        }
    }

    /// Adds as many tokens of a running sequence as budget and available blocks allow.
    pub(super) fn add_chunk(&mut self, key: SequenceKey, batch: &mut Batch) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let block_size = self.config.block_size_tokens;
        let room =
            (sequence.blocks.len() + self.pool.num_free()) * block_size - sequence.num_computed;
        let chunk = sequence.num_ready().min(batch.budget_tokens).min(room);
        if chunk > 0 {
            batch.add(sequence, chunk, &[], &mut self.pool, block_size);
        }
    }

    /// Adds a sequence that must be computed alone. The other running sequences pause but hold ids and blocks, so the
    /// newest of them are preempted until there are enough.
    pub(super) fn add_alone(&mut self, key: SequenceKey, batch: &mut Batch, now: Instant) {
        loop {
            match self
                .sequences
                .get(&key)
                .map(|sequence| sequence.sequence_id)
            {
                None => return,
                Some(None) => self.admit(key, batch, now),
                Some(Some(_)) => self.add_chunk(key, batch),
            }
            let mut newest = self.running.iter().rev().map(|(_, key)| *key);
            match newest.find(|other| *other != key) {
                Some(victim) if batch.entries.is_empty() => self.preempt(victim),
                _ => return,
            }
        }
    }

    /// Makes room when sequences run but none can be computed, since unfinished prefills hold all blocks. Preempts
    /// the newest until the oldest can continue.
    pub(super) fn make_room(&mut self, batch: &mut Batch) {
        while batch.entries.is_empty() && self.running.len() > 1 {
            if let Some(&(_, victim)) = self.running.last() {
                self.preempt(victim);
            }
            let prefills = self.add_decodes(batch, &mut DraftRoom::default());
            self.add_prefills(prefills, batch);
        }
    }
}
