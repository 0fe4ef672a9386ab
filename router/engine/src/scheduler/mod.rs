//! Decides what every step computes. A plain state machine: [`Scheduler::schedule`] makes a step, [`Scheduler::apply`]
//! takes its result; nothing here waits, and nothing else touches its state.
//!
//! A step takes every sequence that is decoding, then chunks of prefill up to the token budget: first of sequences
//! that run already, then of waiting ones, by priority and arrival. Blocks are taken for what a step computes. When
//! none is left for a decode, the lowest-priority, newest sequence gives its blocks up and is computed again later. With
//! speculation, what is left of a step is for drafts.

mod admission;
pub(crate) mod batch;
mod drafting;
mod pace;
mod queue;
mod recovery;
mod results;
pub(crate) mod suspects;

use std::collections::{BTreeSet, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::Step;

use crate::cache::blocks::BlockPool;
use crate::metrics::EngineMetrics;
use crate::request::{GenerationError, Priority};
use crate::scheduler::batch::{Batch, StepInFlight};
use crate::scheduler::pace::Pace;
use crate::scheduler::queue::WaitingQueue;
use crate::scheduler::suspects::Suspects;
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey, Sequences};
use crate::shard::watchdog::Work;
use drafting::DraftRoom;
use recovery::release;

/// Steps that may be sent before the result of the first of them is known: while the shard computes one, the next
/// is waiting for it already, unless the first takes long.
const MAX_STEPS_IN_FLIGHT: usize = 2;

/// The invariants are looked at for one part in so many of the time.
const CHECK_SHARE: u32 = 1000;

#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerConfig {
    pub block_size_tokens: usize,
    pub num_blocks: u32,
    /// Token budget of a step. Decodes are never left out; prefill gets what they leave of it, and a block at least.
    pub max_batch_tokens: usize,
    pub max_sequences: u32,
    /// Whether sequences share what is the same in them.
    pub prefix_cache: bool,
    /// Up to how many tokens of a step drafts are worth what they cost; 0: nothing is drafted.
    pub draft_step_tokens: usize,
    /// How long a sequence may wait that says nothing about it.
    pub queue_timeout: Duration,
    /// How keys depend on the number of tokens computed together.
    pub lengths: LengthRule,
}

pub(crate) struct Scheduler {
    config: SchedulerConfig,
    vocabulary: Arc<Vocabulary>,
    eos_token_ids: Vec<u32>,
    metrics: EngineMetrics,
    sequences: Sequences,
    waiting: WaitingQueue,
    /// Best first: keys grow with arrival.
    running: BTreeSet<(Priority, SequenceKey)>,
    pool: BlockPool,
    /// Of the pool's prefixes: sequences remember hashes of theirs while pools come and go.
    hasher: RandomState,
    /// When the invariants are to be looked at next.
    next_check: Option<Instant>,
    free_rows: Vec<u32>,
    /// Rows that the shard has not been told of yet.
    released_rows: Vec<u32>,
    in_flight: VecDeque<StepInFlight>,
    pace: Pace,
    next_step_id: u64,
    /// Sequences that may have killed the shard and must first prove themselves alone.
    suspects: Suspects,
}

impl Scheduler {
    pub fn new(
        config: SchedulerConfig,
        vocabulary: Arc<Vocabulary>,
        eos_token_ids: Vec<u32>,
        metrics: EngineMetrics,
    ) -> Self {
        let mut scheduler = Scheduler {
            config,
            vocabulary,
            eos_token_ids,
            metrics,
            sequences: Sequences::new(),
            waiting: WaitingQueue::default(),
            running: BTreeSet::new(),
            pool: BlockPool::new(0, None, RandomState::new()),
            hasher: RandomState::new(),
            next_check: None,
            free_rows: Vec::new(),
            released_rows: Vec::new(),
            in_flight: VecDeque::new(),
            pace: Pace::default(),
            next_step_id: 1,
            suspects: Suspects::default(),
        };
        scheduler.reset_shard(config);
        scheduler
    }

    /// Starts with an empty shard of this size; every sequence is computed anew.
    pub fn reset_shard(&mut self, config: SchedulerConfig) {
        self.shard_lost(false);
        self.config = config;
        for sequence in self.sequences.values_mut() {
            sequence.follow(config.lengths);
        }
        self.empty_pool();
        self.free_rows = (0..config.max_sequences).rev().collect();
        self.report();
    }

    fn empty_pool(&mut self) {
        let SchedulerConfig {
            num_blocks,
            prefix_cache,
            block_size_tokens,
            ..
        } = self.config;
        let shared = prefix_cache.then_some(block_size_tokens);
        self.pool = BlockPool::new(num_blocks, shared, self.hasher.clone());
    }

    /// What the oldest step in flight computes.
    pub fn oldest_work(&self) -> Option<Work> {
        self.in_flight.front().map(StepInFlight::work)
    }

    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn add(&mut self, mut sequence: Sequence) {
        let timeout = self.queue_timeout(&sequence);
        sequence.start_by = sequence.submitted.checked_add(timeout);
        sequence.follow(self.config.lengths);
        self.waiting.insert(&sequence);
        self.sequences.insert(sequence.key, sequence);
    }

    /// The client has gone.
    pub fn abort(&mut self, key: SequenceKey) {
        if self.remove(key).is_some() {
            self.metrics.aborted.increment(1);
        }
    }

    /// Fails every sequence.
    pub fn fail_all(&mut self, error: &GenerationError) {
        let keys: Vec<SequenceKey> = self.sequences.keys().copied().collect();
        for key in keys {
            self.fail(key, error.clone());
        }
    }

    /// Fails what has waited for its first step for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(key) = self.waiting.expired(now) {
            let timeout = self.sequences.get(&key).map(|s| self.queue_timeout(s));
            let limit_s = timeout.unwrap_or_default().as_secs();
            self.fail(key, GenerationError::QueueTimeout { limit_s });
        }
    }

    fn queue_timeout(&self, sequence: &Sequence) -> Duration {
        let own = sequence.request.queue_timeout;
        own.unwrap_or(self.config.queue_timeout)
    }

    /// The next step, or `None` when there is nothing to compute or enough is in flight.
    pub fn schedule(&mut self, now: Instant) -> Option<Step> {
        let mut in_flight = self.in_flight.iter();
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT
            || in_flight.any(|step| self.pace.is_long(step.entries.len(), step.num_tokens))
        {
            return None;
        }
        let mut batch = Batch::new(self.config.max_batch_tokens);
        if let Some(suspect) = self.suspects.next(&self.sequences) {
            if !self.in_flight.is_empty() {
                return None;
            }
            self.add_alone(suspect, &mut batch, now);
        } else {
            let mut room = self.draft_room()?;
            let prefills = self.add_decodes(&mut batch, &mut room);
            batch.leave_for_prefill(self.config.block_size_tokens);
            self.add_prefills(prefills, &mut batch);
            self.admit_waiting(&mut batch, now);
            if batch.entries.is_empty() && self.in_flight.is_empty() {
                self.make_room(&mut batch);
            }
        }
        let only_releases = self.in_flight.is_empty() && !self.released_rows.is_empty();
        if batch.entries.is_empty() && batch.step.admitted.is_empty() && !only_releases {
            return None;
        }
        let Batch {
            mut step,
            entries,
            context_tokens,
            ..
        } = batch;
        if !step.num_drafts.is_empty() {
            step.num_drafts.resize(entries.len(), 0);
        }
        step.id = self.next_step_id;
        step.released = std::mem::take(&mut self.released_rows);
        self.next_step_id += 1;
        let num_tokens = step.num_tokens.iter().map(|n| *n as usize).sum();
        if !entries.is_empty() {
            self.metrics.step(entries.len(), num_tokens);
        }
        self.in_flight.push_back(StepInFlight {
            id: step.id,
            sent: now,
            num_tokens,
            context_tokens,
            entries,
            departed: Vec::new(),
        });
        self.report();
        Some(step)
    }

    /// The shard is gone with all it held. `died`: while computing what is in flight, so that those sequences are
    /// suspected.
    pub fn shard_lost(&mut self, died: bool) {
        if died {
            self.blame();
        }
        self.in_flight.clear();
        self.released_rows.clear();
        self.next_step_id = 1;
        for (_, key) in std::mem::take(&mut self.running) {
            if let Some(sequence) = self.sequences.get_mut(&key) {
                self.pool.release(&mut sequence.blocks);
                sequence.rewind();
                self.waiting.insert(sequence);
            }
        }
        for sequence in self.sequences.values_mut() {
            sequence.num_pending = 0;
        }
        self.empty_pool();
        self.free_rows = (0..self.config.max_sequences).rev().collect();
        self.report();
    }

    /// Counts a death for every sequence in flight; fails those that did it alone.
    fn blame(&mut self) {
        let entries = self.in_flight.iter().flat_map(|step| &step.entries);
        let in_flight: BTreeSet<SequenceKey> = entries.map(|entry| entry.key).collect();
        for (key, deaths) in self.suspects.shard_died(&in_flight, &mut self.sequences) {
            self.fail(key, GenerationError::ShardKiller { deaths });
        }
    }

    /// Adds the running sequences' decodes; returns those that are not that far, best first.
    fn add_decodes(&mut self, batch: &mut Batch, room: &mut DraftRoom) -> Vec<SequenceKey> {
        let running: Vec<SequenceKey> = self.running.iter().map(|(_, key)| *key).collect();
        let prefills = |key: &SequenceKey| !self.add_decode(*key, batch, room);
        running.into_iter().filter(prefills).collect()
    }

    /// Adds a sequence's decode, taking a block from the newest sequence when there is no other left. False, and nothing
    /// done, where its prompt comes first.
    fn add_decode(&mut self, key: SequenceKey, batch: &mut Batch, room: &mut DraftRoom) -> bool {
        let block_size = self.config.block_size_tokens;
        loop {
            let Some(sequence) = self.sequences.get_mut(&key) else {
                return true;
            };
            if sequence.row.is_none() {
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

    fn add_prefills(&mut self, prefills: Vec<SequenceKey>, batch: &mut Batch) {
        for key in prefills {
            if batch.budget_tokens == 0 {
                return;
            }
            self.add_prefill(key, batch);
        }
    }

    /// Adds a chunk of a sequence's prefill.
    fn add_prefill(&mut self, key: SequenceKey, batch: &mut Batch) {
        let prefills = |sequence: &&Sequence| sequence.row.is_some() && !sequence.is_decoding();
        if self.sequences.get(&key).filter(prefills).is_some() {
            self.add_chunk(key, batch);
        }
    }

    /// Adds as much of a running sequence as budget and free blocks allow.
    fn add_chunk(&mut self, key: SequenceKey, batch: &mut Batch) {
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

    /// Adds a sequence that must be computed alone. Others that run do not now, but hold rows and blocks: the newest give
    /// up theirs until there are enough.
    fn add_alone(&mut self, key: SequenceKey, batch: &mut Batch, now: Instant) {
        loop {
            match self.sequences.get(&key).map(|sequence| sequence.row) {
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

    /// Nothing can be computed though sequences run: all blocks are held by unfinished prefills. Takes from the
    /// newest until the oldest can go on.
    fn make_room(&mut self, batch: &mut Batch) {
        while batch.entries.is_empty() && self.running.len() > 1 {
            if let Some(&(_, victim)) = self.running.last() {
                self.preempt(victim);
            }
            let prefills = self.add_decodes(batch, &mut DraftRoom::default());
            self.add_prefills(prefills, batch);
        }
    }

    /// Takes a running sequence's blocks and row away; it waits to be computed again.
    fn preempt(&mut self, key: SequenceKey) {
        self.back_to_queue(key);
        self.metrics.preemptions.increment(1);
    }

    fn back_to_queue(&mut self, key: SequenceKey) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let row = sequence.row;
        release(sequence, &mut self.pool, &mut self.in_flight);
        sequence.rewind();
        self.running.remove(&(sequence.request.priority, key));
        self.waiting.insert(sequence);
        self.free_row(row);
    }

    fn free_row(&mut self, row: Option<u32>) {
        self.released_rows.extend(row);
        self.free_rows.extend(row);
    }

    fn fail(&mut self, key: SequenceKey, error: GenerationError) {
        if let Some(sequence) = self.remove(key) {
            self.metrics.failed(&error);
            sequence.fail(error);
        }
    }

    /// Frees all that a sequence holds.
    fn remove(&mut self, key: SequenceKey) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&key)?;
        self.running.remove(&(sequence.request.priority, key));
        self.waiting.remove(&sequence);
        release(&mut sequence, &mut self.pool, &mut self.in_flight);
        let row = sequence.row.take();
        self.free_row(row);
        self.report();
        Some(sequence)
    }

    fn report(&mut self) {
        self.metrics.state(
            self.waiting.len(),
            self.running.len(),
            self.pool.num_used(),
            self.pool.total(),
        );
        self.metrics
            .cache(self.pool.num_cached(), self.pool.take_evicted());
    }

    /// Invariants that hold at any time.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.pool
            .check_integrity(self.sequences.values().map(|sequence| &sequence.blocks))?;
        let mut rows: Vec<u32> = self.free_rows.clone();
        rows.extend(self.sequences.values().filter_map(|sequence| sequence.row));
        rows.sort_unstable();
        if rows.iter().copied().ne(0..self.config.max_sequences) {
            return Err("a row is lost or has two owners".into());
        }
        for sequence in self.sequences.values() {
            if sequence.num_drafts > 0 && (sequence.row.is_none() || sequence.num_pending != 1) {
                return Err("a sequence has drafts in no step".into());
            }
        }
        if self.waiting.len() + self.running.len() != self.sequences.len() {
            return Err("a sequence is neither waiting nor running, or both".into());
        }
        Ok(())
    }

    /// In builds for tests always; in others so seldom that it takes no time to speak of.
    fn check_when_idle(&mut self, now: Instant) {
        if !cfg!(debug_assertions) && self.next_check.is_some_and(|next| now < next) {
            return;
        }
        let started = Instant::now();
        if let Err(violation) = self.check_integrity() {
            self.metrics.integrity_violations.increment(1);
            tracing::error!("scheduler integrity: {violation}");
            debug_assert!(false, "scheduler integrity: {violation}");
        }
        self.next_check = Some(now + started.elapsed() * CHECK_SHARE);
    }
}

#[cfg(test)]
mod tests;
