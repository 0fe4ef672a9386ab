//! Decides what every step computes. A plain state machine: [`Scheduler::schedule`] makes a step, [`Scheduler::apply`]
//! takes its result; nothing here waits, and nothing else touches its state.
//!
//! A step takes every sequence that is decoding, then chunks of prefill up to the token budget: first of sequences
//! that run already, then of waiting ones, by priority and arrival. Blocks are taken for what a step computes. When
//! none is left for a decode, the lowest-priority, newest sequence gives its blocks up and is computed again later.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{SequenceFailure, Step, StepResult, sequence_failure};

use crate::batch::{Batch, StepInFlight};
use crate::blocks::BlockPool;
use crate::detokenizer::Vocabulary;
use crate::metrics::EngineMetrics;
use crate::request::{GenerationError, Priority};
use crate::sequence::{Sampled, Sequence, SequenceKey};
use crate::suspects::Suspects;

/// Steps that may be sent before the result of the first of them is known: while the shard computes one, the next
/// is waiting for it already.
const MAX_STEPS_IN_FLIGHT: usize = 2;

#[derive(Debug, Clone, Copy)]
pub(crate) struct SchedulerConfig {
    pub block_size_tokens: usize,
    pub num_blocks: u32,
    /// Token budget of a step. Decodes are never left out; prefill gets what they leave of it, and a block at least.
    pub max_batch_tokens: usize,
    pub max_sequences: u32,
}

pub(crate) struct Scheduler {
    config: SchedulerConfig,
    vocabulary: Arc<Vocabulary>,
    eos_token_ids: Vec<u32>,
    metrics: EngineMetrics,
    sequences: HashMap<SequenceKey, Sequence>,
    /// Best first: keys grow with arrival.
    waiting: BTreeSet<(Priority, SequenceKey)>,
    running: BTreeSet<(Priority, SequenceKey)>,
    pool: BlockPool,
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
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            pool: BlockPool::new(0),
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
        self.pool = BlockPool::new(config.num_blocks);
        self.free_rows = (0..config.max_sequences).rev().collect();
        self.report();
    }

    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn add(&mut self, sequence: Sequence) {
        self.waiting
            .insert((sequence.request.priority, sequence.key));
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
    pub fn expire(&mut self, default_timeout: Duration, now: Instant) {
        let expired: Vec<(SequenceKey, Duration)> = self
            .waiting
            .iter()
            .filter_map(|(_, key)| self.sequences.get(key))
            .filter(|sequence| !sequence.has_started())
            .map(|sequence| {
                (
                    sequence,
                    sequence.request.queue_timeout.unwrap_or(default_timeout),
                )
            })
            .filter(|(sequence, timeout)| now.duration_since(sequence.submitted) > *timeout)
            .map(|(sequence, timeout)| (sequence.key, timeout))
            .collect();
        for (key, timeout) in expired {
            self.fail(
                key,
                GenerationError::QueueTimeout {
                    limit_s: timeout.as_secs(),
                },
            );
        }
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
        if batch.entries.is_empty() && !only_releases {
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
            let key = step
                .entries
                .iter()
                .find(|entry| entry.row == prompt.sequence_id)
                .map(|entry| entry.key);
            if let Some(sequence) = key.and_then(|key| self.sequences.get_mut(&key)) {
                sequence.add_prompt_logprobs(prompt.first_position as usize, &prompt.logprobs);
            }
        }
        let mut failures: HashMap<u32, &SequenceFailure> = result
            .failures
            .iter()
            .map(|failure| (failure.sequence_id, failure))
            .collect();
        let mut sampled = Sampled::of(result)?.peekable();
        for entry in &step.entries {
            if let Some(failure) = failures.remove(&entry.row) {
                self.fail(entry.key, error_of(failure));
                continue;
            }
            if !entry.samples {
                continue;
            }
            let token = sampled
                .next_if(|token| token.row == entry.row)
                .ok_or_else(|| {
                    format!("step {} gave no token for sequence {}", step.id, entry.row)
                })?;
            // One that has finished or gone since then: the token is surplus.
            let Some(sequence) = self.sequences.get_mut(&entry.key) else {
                continue;
            };
            num_sampled += 1;
            sequence.num_pending -= 1;
            if let Some(finish) = sequence.accept(token, &self.eos_token_ids, &self.vocabulary, now)
            {
                self.metrics.finished(&finish);
                self.remove(entry.key);
            } else if sequence.num_generated() == 1 {
                self.metrics
                    .first_token(now.duration_since(sequence.submitted));
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
            self.check_when_idle();
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
        for (priority, key) in std::mem::take(&mut self.running) {
            if let Some(sequence) = self.sequences.get_mut(&key) {
                self.pool.release(&mut sequence.blocks);
                sequence.rewind();
                self.waiting.insert((priority, key));
            }
        }
        for sequence in self.sequences.values_mut() {
            sequence.num_pending = 0;
        }
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

    /// Adds a chunk of a sequence's prefill: as much as budget and free blocks allow.
    fn add_prefill(&mut self, key: SequenceKey, batch: &mut Batch) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        if sequence.row.is_none() || sequence.is_decoding() {
            return;
        }
        let block_size = self.config.block_size_tokens;
        let room =
            (sequence.blocks.len() + self.pool.num_free()) * block_size - sequence.num_computed;
        let chunk = sequence.num_ready().min(batch.budget_tokens).min(room);
        if chunk > 0 {
            batch.add(sequence, chunk, &mut self.pool, block_size);
        }
    }

    /// Admits waiting sequences, best first, while their whole prompt fits beside what running ones still need.
    fn admit_waiting(&mut self, batch: &mut Batch, now: Instant) {
        if self.waiting.is_empty() || batch.budget_tokens == 0 || self.free_rows.is_empty() {
            return;
        }
        let block_size = self.config.block_size_tokens;
        let mut promised: usize = self
            .running
            .iter()
            .filter_map(|(_, key)| self.sequences.get(key))
            .map(|sequence| {
                sequence
                    .tokens
                    .len()
                    .div_ceil(block_size)
                    .saturating_sub(sequence.blocks.len())
            })
            .sum();
        while batch.budget_tokens > 0 && !self.free_rows.is_empty() {
            let Some(&(_, key)) = self.waiting.first() else {
                return;
            };
            let Some(sequence) = self.sequences.get(&key) else {
                return;
            };
            // Preempted while tokens of it were being sampled: they are due any moment.
            if sequence.num_pending > 0 {
                return;
            }
            let needed = (sequence.tokens.len() + 1).div_ceil(block_size);
            // Some room to grow, so that sequences are not admitted only to be preempted at the next step.
            let headroom = self.running.len().min(self.pool.total() / 64);
            if needed.min(self.pool.total()) + promised + headroom > self.pool.num_free() {
                return;
            }
            let held_before = self.pool.num_used();
            self.admit(key, batch, now);
            promised += needed.saturating_sub(self.pool.num_used() - held_before);
        }
    }

    /// Moves a sequence from the queue to the shard and adds the first chunk of it.
    fn admit(&mut self, key: SequenceKey, batch: &mut Batch, now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        let Some(row) = self.free_rows.pop() else {
            return;
        };
        let entry = (sequence.request.priority, key);
        self.waiting.remove(&entry);
        self.running.insert(entry);
        sequence.row = Some(row);
        if let Some(waited) = sequence.started(now) {
            self.metrics.queued(waited);
        }
        batch.step.admitted.push(sequence.introduction(row));
        self.add_prefill(key, batch);
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
        let Some(sequence) = self.sequences.get_mut(&key) else {
            return;
        };
        self.pool.release(&mut sequence.blocks);
        if let Some(row) = sequence.row {
            self.released_rows.push(row);
            self.free_rows.push(row);
        }
        sequence.rewind();
        let entry = (sequence.request.priority, key);
        self.running.remove(&entry);
        self.waiting.insert(entry);
        self.metrics.preemptions.increment(1);
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
        let entry = (sequence.request.priority, key);
        self.running.remove(&entry);
        self.waiting.remove(&entry);
        self.pool.release(&mut sequence.blocks);
        if let Some(row) = sequence.row.take() {
            self.released_rows.push(row);
            self.free_rows.push(row);
        }
        self.report();
        Some(sequence)
    }

    fn report(&self) {
        self.metrics.state(
            self.waiting.len(),
            self.running.len(),
            self.pool.num_used(),
            self.pool.total(),
        );
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

    fn check_when_idle(&self) {
        if let Err(violation) = self.check_integrity() {
            self.metrics.integrity_violations.increment(1);
            tracing::error!("scheduler integrity: {violation}");
            debug_assert!(false, "scheduler integrity: {violation}");
        }
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
