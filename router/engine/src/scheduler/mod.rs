//! Decides what every step computes. The scheduler is a state machine without I/O: [`Scheduler::schedule`] makes a
//! step, and [`Scheduler::apply`] takes its result.
//!
//! A step takes every decoding sequence, then chunks of prefill up to the token budget: first of running sequences,
//! then of waiting ones, by priority and arrival. Blocks are allocated for the tokens that a step computes. When none
//! is available for a decode, the newest sequence of the lowest priority is preempted and recomputed later. With
//! speculation, the rest of a step is filled with drafts.

mod admission;
pub(crate) mod batch;
mod drafting;
mod filling;
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
use crate::error::GenerationError;
use crate::metrics::EngineMetrics;
use crate::request::Priority;
use crate::scheduler::batch::{Batch, StepInFlight};
use crate::scheduler::pace::Pace;
use crate::scheduler::queue::WaitingQueue;
use crate::scheduler::suspects::Suspects;
use crate::sequence::detokenizer::Vocabulary;
use crate::sequence::lengths::LengthRule;
use crate::sequence::{Sequence, SequenceKey, Sequences};
use crate::shard::watchdog::Work;
use crate::shares::Shares;
use recovery::release;

/// Maximum number of steps in flight. While the shard computes one, the next one already waits there, unless the
/// first takes long.
const MAX_STEPS_IN_FLIGHT: usize = 2;

/// Invariants are checked for at most 1/1000 of the time.
const CHECK_SHARE: u32 = 1000;

#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerConfig {
    pub block_size_tokens: usize,
    pub num_blocks: u32,
    /// Token budget of a step. Decodes are never left out; prefill gets the tokens that they leave, and at least a
    /// block.
    pub max_batch_prefill_tokens: usize,
    pub max_sequences: u32,
    /// True if sequences with an equal beginning share its blocks.
    pub prefix_cache: bool,
    /// Maximum number of drafts of a sequence in a step; 0: no drafts.
    pub max_drafts: usize,
    /// Number of tokens in a step up to which drafts are worth their cost.
    pub draft_step_tokens: usize,
    /// True if tokens are drafted only where a grammar forces them, and only while every decode has a grammar, so that
    /// requests without one lose nothing.
    pub drafts_only_forced: bool,
    /// Default queue timeout, for requests that do not set one.
    pub queue_timeout: Duration,
    /// Dependence of keys on the number of tokens computed together.
    pub lengths: LengthRule,
}

pub(crate) struct Scheduler {
    config: SchedulerConfig,
    vocabulary: Arc<Vocabulary>,
    eos_token_ids: Vec<u32>,
    metrics: EngineMetrics,
    sequences: Sequences,
    waiting: WaitingQueue,
    /// Turns of tenants among the waiting.
    shares: Shares,
    /// Running sequences, best first: keys grow with arrival.
    running: BTreeSet<(Priority, SequenceKey)>,
    pool: BlockPool,
    /// Hasher of the prefix tree. It outlives the pool, since sequences keep the hashes of their blocks.
    hasher: RandomState,
    /// Time of the next check of the invariants.
    next_check: Option<Instant>,
    free_sequence_ids: Vec<u32>,
    /// Released ids that the next step tells the shard.
    released_sequence_ids: Vec<u32>,
    in_flight: VecDeque<StepInFlight>,
    pace: Pace,
    next_step_id: u64,
    /// Sequences that may have crashed the shard and are computed alone.
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
            shares: Shares::default(),
            running: BTreeSet::new(),
            pool: BlockPool::new(0, None, RandomState::new()),
            hasher: RandomState::new(),
            next_check: None,
            free_sequence_ids: Vec::new(),
            released_sequence_ids: Vec::new(),
            in_flight: VecDeque::new(),
            pace: Pace::default(),
            next_step_id: 1,
            suspects: Suspects::default(),
        };
        scheduler.reset_shard(config);
        scheduler
    }

    /// Starts anew with an empty shard of this configuration. Every sequence is recomputed.
    pub fn reset_shard(&mut self, config: SchedulerConfig) {
        self.shard_lost(false);
        self.config = config;
        for sequence in self.sequences.values_mut() {
            sequence.set_length_rule(config.lengths);
        }
        self.empty_pool();
        self.free_sequence_ids = (0..config.max_sequences).rev().collect();
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

    /// Size of the oldest step in flight.
    pub fn oldest_work(&self) -> Option<Work> {
        self.in_flight.front().map(StepInFlight::work)
    }

    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn add(&mut self, mut sequence: Sequence) {
        let timeout = self.queue_timeout(&sequence);
        sequence.start_by = sequence.submitted.checked_add(timeout);
        sequence.set_length_rule(self.config.lengths);
        let num_tokens = sequence.num_tokens_asked();
        sequence.turn = self.shares.turn(sequence.tenant_id(), num_tokens);
        self.waiting.insert(&sequence);
        self.sequences.insert(sequence.key, sequence);
    }

    /// Ends a sequence whose client disconnected.
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

    /// Fails sequences that waited too long for their first step.
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

    /// Makes the next step; `None` when there is nothing to compute or enough is in flight.
    pub fn schedule(&mut self, now: Instant) -> Option<Step> {
        let mut in_flight = self.in_flight.iter();
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT
            || in_flight.any(|step| self.pace.is_long(step.entries.len(), step.num_tokens))
        {
            return None;
        }
        let mut batch = Batch::new(self.config.max_batch_prefill_tokens);
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
        let only_releases = self.in_flight.is_empty() && !self.released_sequence_ids.is_empty();
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
        step.released = std::mem::take(&mut self.released_sequence_ids);
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
            released_nodes: Vec::new(),
        });
        self.report();
        Some(step)
    }

    /// Forgets everything that a lost shard held. With `died`, the shard was lost while computing the steps in
    /// flight, and their sequences become suspects.
    pub fn shard_lost(&mut self, died: bool) {
        if died {
            self.blame();
        }
        self.in_flight.clear();
        self.released_sequence_ids.clear();
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
        self.free_sequence_ids = (0..self.config.max_sequences).rev().collect();
        self.report();
    }

    /// Counts a death for every sequence in flight. Fails sequences that crashed the shard alone.
    fn blame(&mut self) {
        let entries = self.in_flight.iter().flat_map(|step| &step.entries);
        let in_flight: BTreeSet<SequenceKey> = entries.map(|entry| entry.key).collect();
        for (key, deaths) in self.suspects.shard_died(&in_flight, &mut self.sequences) {
            self.fail(key, GenerationError::ShardCrash { deaths });
        }
    }

    /// Takes a running sequence's blocks and id away. It waits to be recomputed.
    fn preempt(&mut self, key: SequenceKey) {
        self.back_to_queue(key);
        self.metrics.preemptions.increment(1);
    }

    fn back_to_queue(&mut self, key: SequenceKey) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let sequence_id = sequence.sequence_id;
        release(sequence, &mut self.pool, &mut self.in_flight);
        sequence.rewind();
        self.running.remove(&(sequence.request.priority, key));
        self.waiting.insert(sequence);
        self.free_sequence_id(sequence_id);
    }

    fn free_sequence_id(&mut self, sequence_id: Option<u32>) {
        self.released_sequence_ids.extend(sequence_id);
        self.free_sequence_ids.extend(sequence_id);
    }

    fn fail(&mut self, key: SequenceKey, error: GenerationError) {
        if let Some(sequence) = self.remove(key) {
            self.metrics.failed(&error);
            sequence.fail(error);
        }
    }

    /// Removes a sequence and frees everything it holds.
    fn remove(&mut self, key: SequenceKey) -> Option<Sequence> {
        let mut sequence = self.sequences.remove(&key)?;
        let num_unused = sequence
            .num_tokens_asked()
            .saturating_sub(sequence.tokens.len());
        self.shares.give_back(sequence.tenant_id(), num_unused);
        self.running.remove(&(sequence.request.priority, key));
        self.waiting.remove(&sequence);
        release(&mut sequence, &mut self.pool, &mut self.in_flight);
        let sequence_id = sequence.sequence_id.take();
        self.free_sequence_id(sequence_id);
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

    /// Checks the invariants that hold between any two calls.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.pool
            .check_integrity(self.sequences.values().map(|sequence| &sequence.blocks))?;
        let mut sequence_ids: Vec<u32> = self.free_sequence_ids.clone();
        sequence_ids.extend(
            self.sequences
                .values()
                .filter_map(|sequence| sequence.sequence_id),
        );
        sequence_ids.sort_unstable();
        if sequence_ids
            .iter()
            .copied()
            .ne(0..self.config.max_sequences)
        {
            return Err("a sequence id is lost or has two owners".into());
        }
        for sequence in self.sequences.values() {
            if sequence.num_drafts > 0
                && (sequence.sequence_id.is_none() || sequence.num_pending != 1)
            {
                return Err("a sequence has drafts in no step".into());
            }
        }
        if self.waiting.len() + self.running.len() != self.sequences.len() {
            return Err("a sequence is neither waiting nor running, or both".into());
        }
        Ok(())
    }

    /// Checks the invariants: always with debug assertions, otherwise within [`CHECK_SHARE`] of the time.
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
