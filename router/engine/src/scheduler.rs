//! Decides what every step computes. A plain state machine: [`Scheduler::schedule`] makes a step, [`Scheduler::apply`]
//! takes its result; nothing here waits, and nothing else touches its state.
//!
//! A step takes every sequence that is decoding, then chunks of prefill up to the token budget: first of sequences
//! that run already, then of waiting ones, by priority and arrival. Blocks are taken for what a step computes. When
//! none is left for a decode, the lowest-priority, newest sequence gives its blocks up and is computed again later.

mod admission;
mod recovery;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::RandomState;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{SequenceFailure, Step, StepResult, sequence_failure};

use crate::batch::{Batch, StepEntry, StepInFlight};
use crate::blocks::BlockPool;
use crate::detokenizer::Vocabulary;
use crate::metrics::EngineMetrics;
use crate::queue::WaitingQueue;
use crate::request::{GenerationError, Priority};
use crate::sequence::{Sampled, Sequence, SequenceKey};
use crate::suspects::Suspects;
use recovery::release;

/// Steps that may be sent before the result of the first of them is known: while the shard computes one, the next
/// is waiting for it already.
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
    /// How long a sequence may wait that says nothing about it.
    pub queue_timeout: Duration,
}

pub(crate) struct Scheduler {
    config: SchedulerConfig,
    vocabulary: Arc<Vocabulary>,
    eos_token_ids: Vec<u32>,
    metrics: EngineMetrics,
    sequences: HashMap<SequenceKey, Sequence>,
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
            sequences: HashMap::new(),
            waiting: WaitingQueue::default(),
            running: BTreeSet::new(),
            pool: BlockPool::new(0, None, RandomState::new()),
            hasher: RandomState::new(),
            next_check: None,
            free_rows: Vec::new(),
            released_rows: Vec::new(),
            in_flight: VecDeque::new(),
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

    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn add(&mut self, mut sequence: Sequence) {
        let timeout = self.queue_timeout(&sequence);
        sequence.start_by = sequence.submitted.checked_add(timeout);
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
        if self.in_flight.len() >= MAX_STEPS_IN_FLIGHT {
            return None;
        }
        let mut batch = Batch::new(self.config.max_batch_tokens);
        if let Some(suspect) = self.suspects.next(&self.sequences) {
            if !self.in_flight.is_empty() {
                return None;
            }
            if self
                .sequences
                .get(&suspect)
                .is_some_and(|sequence| sequence.row.is_none())
            {
                self.admit(suspect, &mut batch, now);
            } else {
                self.add_decode(suspect, &mut batch);
                self.add_prefill(suspect, &mut batch);
            }
        } else {
            self.add_decodes(&mut batch);
            batch.leave_for_prefill(self.config.block_size_tokens);
            self.add_prefills(&mut batch);
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
            mut step, entries, ..
        } = batch;
        step.id = self.next_step_id;
        step.released = std::mem::take(&mut self.released_rows);
        self.next_step_id += 1;
        if !entries.is_empty() {
            self.metrics.step(
                entries.len(),
                step.num_tokens.iter().map(|n| *n as usize).sum(),
            );
        }
        self.in_flight.push_back(StepInFlight {
            id: step.id,
            sent: now,
            entries,
            departed: Vec::new(),
        });
        self.report();
        Some(step)
    }

    /// Takes the result of the oldest step in flight. An error means that router and shard disagree on what was
    /// asked: the connection cannot be used any further.
    pub fn apply(&mut self, result: &StepResult, now: Instant) -> Result<(), String> {
        let step = self
            .in_flight
            .pop_front()
            .ok_or_else(|| format!("unasked result of step {}", result.step_id))?;
        if step.id != result.step_id {
            return Err(format!(
                "result of step {} where that of step {} was due",
                result.step_id, step.id
            ));
        }
        let mut num_sampled = 0;
        for prompt in &result.prompt_logprobs {
            let of_row = |entry: &&StepEntry| entry.row == prompt.sequence_id;
            if let Some(entry) = step.entries.iter().find(of_row)
                && let Some(sequence) = self.sequences.get_mut(&entry.key)
                && sequence.epoch == entry.epoch
            {
                sequence.add_prompt_logprobs(prompt.first_position as usize, &prompt.logprobs);
            }
        }
        let failures: HashMap<u32, &SequenceFailure> = result
            .failures
            .iter()
            .map(|failure| (failure.sequence_id, failure))
            .collect();
        if !failures.is_empty() {
            for entry in &step.entries {
                if let Some(failure) = failures.get(&entry.row) {
                    self.entry_failed(entry, error_of(failure), &step);
                }
            }
        }
        let mut sampled = Sampled::of(result)?.peekable();
        for entry in &step.entries {
            if !entry.samples || failures.contains_key(&entry.row) {
                continue;
            }
            let token = sampled
                .next_if(|token| token.row == entry.row)
                .ok_or_else(|| {
                    format!("step {} gave no token for sequence {}", step.id, entry.row)
                })?;
            // One that has finished or gone since then, or is computed again: the token is surplus.
            let Some(sequence) = self.sequences.get_mut(&entry.key) else {
                continue;
            };
            if sequence.epoch != entry.epoch {
                continue;
            }
            num_sampled += 1;
            sequence.num_pending -= 1;
            let block_size = self.config.block_size_tokens;
            self.pool
                .confirm(&mut sequence.blocks, sequence.tokens.len() / block_size);
            if let Some(finish) = sequence.accept(token, &self.eos_token_ids, &self.vocabulary, now)
            {
                sequence.share_blocks(&mut self.pool, block_size);
                self.metrics.finished(&finish);
                self.remove(entry.key);
            } else {
                sequence.share_blocks(&mut self.pool, block_size);
                if sequence.num_generated() == 1 {
                    self.metrics
                        .first_token(now.duration_since(sequence.submitted));
                }
            }
        }
        if let Some(extra) = sampled.next() {
            return Err(format!(
                "step {} gave a token for sequence {}, unasked",
                step.id, extra.row
            ));
        }
        if !step.entries.is_empty() {
            self.metrics.step_done(
                num_sampled,
                now.duration_since(step.sent),
                result.forward_us,
                result.sample_us,
            );
        }
        self.report();
        if self.sequences.is_empty() && self.in_flight.is_empty() {
            self.check_when_idle(now);
        }
        Ok(())
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

    fn add_decodes(&mut self, batch: &mut Batch) {
        let running: Vec<SequenceKey> = self.running.iter().map(|(_, key)| *key).collect();
        for key in running {
            self.add_decode(key, batch);
        }
    }

    /// Adds a sequence's decode, taking a block from the newest sequence when there is no other left.
    fn add_decode(&mut self, key: SequenceKey, batch: &mut Batch) {
        loop {
            let Some(sequence) = self.sequences.get_mut(&key) else {
                return;
            };
            if sequence.row.is_none() || !sequence.is_decoding() || sequence.num_ready() == 0 {
                return;
            }
            if batch.add(sequence, 1, &mut self.pool, self.config.block_size_tokens) {
                return;
            }
            let Some(&(_, victim)) = self.running.last() else {
                return;
            };
            self.preempt(victim);
        }
    }

    fn add_prefills(&mut self, batch: &mut Batch) {
        let running: Vec<SequenceKey> = self.running.iter().map(|(_, key)| *key).collect();
        for key in running {
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
            batch.add(sequence, chunk, &mut self.pool, block_size);
        }
    }

    /// Nothing can be computed though sequences run: all blocks are held by unfinished prefills. Takes from the
    /// newest until the oldest can go on.
    fn make_room(&mut self, batch: &mut Batch) {
        while batch.entries.is_empty() && self.running.len() > 1 {
            if let Some(&(_, victim)) = self.running.last() {
                self.preempt(victim);
            }
            self.add_decodes(batch);
            self.add_prefills(batch);
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

fn error_of(failure: &SequenceFailure) -> GenerationError {
    match failure.kind() {
        sequence_failure::Kind::NanLogits => GenerationError::NanLogits,
        _ => GenerationError::Shard(failure.message.clone()),
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
