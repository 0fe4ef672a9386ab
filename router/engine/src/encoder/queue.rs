//! Waiting sequences, and the batches made of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gridwork_proto::v1::{EncodeRequest, Encoding};
use tokio::sync::oneshot;

use super::request::{EncodeSequence, Encoded, Wanted};
use crate::error::GenerationError;
use crate::shard::watchdog::Work;
use crate::shares::{Shares, Turn};

/// Number of shard deaths at which a sequence fails. After the first death it is computed alone.
const DEATHS_UNTIL_FAILED: u32 = 3;

pub(super) type Answer = oneshot::Sender<Result<Encoded, GenerationError>>;

/// A waiting sequence, and the channel to its client.
#[derive(Debug)]
pub(super) struct Waiting {
    pub sequence: EncodeSequence,
    pub wanted: Wanted,
    pub answer: Answer,
    /// Number of the tenant that it belongs to, where there are several.
    pub tenant: Option<u32>,
    /// Its place in the queue, which sets it.
    pub turn: Turn,
    pub since: Instant,
    /// Number of shard deaths while the shard computed this sequence.
    pub deaths: u32,
}

/// Sequences computed together.
#[derive(Debug)]
pub(super) struct Batch {
    pub members: Vec<Waiting>,
    pub started: Instant,
}

/// Limits of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    /// Maximum number of tokens. A longer sequence is computed alone.
    pub max_tokens: usize,
    pub max_sequences: usize,
}

/// Waiting sequences, by turn: tenants share the order equally, and without several tenants it is that of arrival.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    shares: Shares,
}

impl Queue {
    pub fn push(&mut self, mut waiting: Waiting) {
        let num_tokens = waiting.sequence.token_ids.len();
        waiting.turn = self.shares.turn(waiting.tenant, num_tokens);
        // Sequences that were put back come first: they have had their turn.
        let is_before = |other: &Waiting| other.deaths > 0 || other.turn <= waiting.turn;
        let place = self.waiting.partition_point(is_before);
        self.waiting.insert(place, waiting);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True if the first sequence may have crashed the shard.
    pub fn begins_with_suspect(&self) -> bool {
        self.waiting.front().is_some_and(|first| first.deaths > 0)
    }

    /// Takes the first sequence and the compatible ones behind it. Sequences whose clients disconnected are dropped.
    pub fn next_batch(&mut self, limits: BatchLimits, now: Instant) -> Option<Batch> {
        self.waiting.retain(|waiting| !waiting.answer.is_closed());
        let first = self.waiting.pop_front()?;
        let (wanted, alone) = (first.wanted, first.deaths > 0);
        let mut tokens = first.sequence.token_ids.len();
        let mut members = vec![first];
        let mut left = VecDeque::with_capacity(self.waiting.len());
        for waiting in self.waiting.drain(..) {
            let more = tokens + waiting.sequence.token_ids.len();
            let fits = members.len() < limits.max_sequences && more <= limits.max_tokens;
            // The first sequence that does not fit ends the batch, so that none is overtaken. One with another output
            // only waits for its own batch.
            if alone || waiting.deaths > 0 || waiting.wanted != wanted {
                left.push_back(waiting);
            } else if fits {
                tokens = more;
                members.push(waiting);
            } else {
                left.push_back(waiting);
                tokens = limits.max_tokens;
            }
        }
        self.waiting = left;
        for member in &members {
            self.shares.started(member.turn);
        }
        // Sorted by length: the shard need not copy neighbours of equal length.
        members.sort_by_key(|member| std::cmp::Reverse(member.sequence.token_ids.len()));
        Some(Batch {
            members,
            started: now,
        })
    }

    /// Puts back a batch that the shard did not answer. Sequences with too many deaths fail.
    pub fn take_back(&mut self, batch: Batch) {
        for mut waiting in batch.members.into_iter().rev() {
            waiting.deaths += 1;
            if waiting.deaths >= DEATHS_UNTIL_FAILED {
                let deaths = waiting.deaths;
                let _ = waiting
                    .answer
                    .send(Err(GenerationError::ShardCrash { deaths }));
            } else {
                self.waiting.push_front(waiting);
            }
        }
    }

    /// Fails sequences that waited too long, and drops those whose clients disconnected.
    pub fn expire(&mut self, limit: Duration, now: Instant) {
        let expired = |waiting: &Waiting| now.duration_since(waiting.since) > limit;
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.answer.is_closed() {
                continue;
            }
            if expired(&waiting) {
                let limit_s = limit.as_secs();
                let _ = waiting
                    .answer
                    .send(Err(GenerationError::QueueTimeout { limit_s }));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    pub fn fail_all(&mut self, error: &GenerationError) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }
}

impl Batch {
    /// Size of the batch, on which its time depends.
    pub fn work(&self) -> Work {
        let lengths = || {
            let members = self.members.iter();
            members.map(|member| member.sequence.token_ids.len())
        };
        Work {
            num_sequences: self.members.len(),
            num_tokens: lengths().sum(),
            context_tokens: lengths().max().unwrap_or(0),
        }
    }

    pub fn num_tokens(&self) -> usize {
        self.members
            .iter()
            .map(|member| member.sequence.token_ids.len())
            .sum()
    }

    /// The batch as a message of the contract.
    pub fn request(&self) -> EncodeRequest {
        let has_types = self
            .members
            .iter()
            .any(|member| !member.sequence.token_type_ids.is_empty());
        let has_prompts = self
            .members
            .iter()
            .any(|member| member.sequence.prompt_length > 0);
        let wanted = self.members[0].wanted;
        let mut request = EncodeRequest {
            output: wanted.output.into(),
            top_n: wanted.top_n,
            ..Default::default()
        };
        for Waiting { sequence, .. } in &self.members {
            let start = request.token_ids.len() as u32;
            request
                .positions
                .extend(sequence.positions.iter().map(|position| start + position));
            request.token_ids.extend(&sequence.token_ids);
            request.lengths.push(sequence.token_ids.len() as u32);
            if has_types {
                request.token_type_ids.extend(&sequence.token_type_ids);
                request.token_type_ids.resize(request.token_ids.len(), 0);
            }
            if has_prompts {
                request.prompt_lengths.push(sequence.prompt_length);
            }
        }
        request
    }

    /// Sends the results to the clients. `encodings` are in the order of the members.
    pub fn answer(self, encodings: Vec<Encoding>, now: Instant) {
        let inference = now.duration_since(self.started);
        for (member, encoding) in self.members.into_iter().zip(encodings) {
            let result = if encoding.error.is_empty() {
                Ok(Encoded {
                    values: encoding.values,
                    token_ids: encoding.token_ids,
                    log_normalizers: encoding.log_normalizers,
                    queue: self.started.duration_since(member.since),
                    inference,
                })
            } else {
                Err(GenerationError::Shard(encoding.error))
            };
            let _ = member.answer.send(result);
        }
    }

    pub fn fail(self, error: &GenerationError) {
        for member in self.members {
            let _ = member.answer.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
