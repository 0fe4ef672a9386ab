//! Sequences that may have killed the shard, or made a step raise an exception. After two deaths at the same place, or one
//! exception, a sequence is computed alone; if the shard dies once more, or the step raises again, it was this sequence,
//! and it fails.

use std::collections::{BTreeSet, VecDeque};

use crate::sequence::{Sequence, SequenceKey, Sequences};

/// From how many shard deaths at the same place on a sequence is computed alone.
const DEATHS_UNTIL_ALONE: u32 = 2;
/// And at how many it fails; the last one happened while it was alone.
const DEATHS_UNTIL_FAILED: u32 = 3;

/// Shard deaths that this sequence may have caused.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CrashRecord {
    /// Deaths in a row at the same place.
    pub deaths: u32,
    /// How many tokens the sequence had at the last one.
    num_tokens: usize,
    /// A step that computed it among others has raised an exception.
    raised: bool,
}

impl CrashRecord {
    /// The shard died while it computed a sequence of `num_tokens` tokens.
    pub fn died_at(&mut self, num_tokens: usize) {
        self.deaths = if num_tokens > self.num_tokens {
            1
        } else {
            self.deaths + 1
        };
        self.num_tokens = self.num_tokens.max(num_tokens);
    }

    /// A step of several sequences raised an exception, and one of them had `num_tokens` tokens.
    pub fn raised_at(&mut self, num_tokens: usize) {
        if num_tokens > self.num_tokens {
            self.deaths = 0;
            self.num_tokens = num_tokens;
        }
        self.raised = true;
    }

    /// Forgives once the sequence has got past the place of the last death.
    pub fn reached(&mut self, num_tokens: usize) {
        if num_tokens > self.num_tokens {
            self.deaths = 0;
            self.raised = false;
        }
    }

    /// Whether it has to be computed alone.
    fn is_suspect(self) -> bool {
        self.raised || self.deaths >= DEATHS_UNTIL_ALONE
    }
}

/// Those that must prove themselves alone, one after another.
#[derive(Debug, Default)]
pub(crate) struct Suspects(VecDeque<SequenceKey>);

impl Suspects {
    /// Counts a death for every sequence in flight. Returns those that did it alone, with their number of deaths.
    pub fn shard_died(
        &mut self,
        in_flight: &BTreeSet<SequenceKey>,
        sequences: &mut Sequences,
    ) -> Vec<(SequenceKey, u32)> {
        self.0.clear();
        let mut killers = Vec::new();
        for &key in in_flight {
            let Some(sequence) = sequences.get_mut(&key) else {
                continue;
            };
            sequence.crashes.died_at(sequence.tokens.len());
            match sequence.crashes {
                crashes if crashes.deaths >= DEATHS_UNTIL_FAILED => {
                    killers.push((key, crashes.deaths));
                }
                crashes if crashes.is_suspect() => self.0.push_back(key),
                _ => {}
            }
        }
        // Those that were suspected before and had no part in this death.
        let mut others: Vec<SequenceKey> = sequences
            .values()
            .filter(|sequence| {
                let crashes = sequence.crashes;
                crashes.is_suspect()
                    && crashes.deaths < DEATHS_UNTIL_FAILED
                    && !self.0.contains(&sequence.key)
            })
            .map(|sequence| sequence.key)
            .collect();
        others.sort_unstable();
        self.0.extend(others);
        killers
    }

    /// A step that computed this sequence among others has raised an exception.
    pub fn add(&mut self, sequence: &mut Sequence) {
        sequence.crashes.raised_at(sequence.tokens.len());
        self.0.push_back(sequence.key);
    }

    /// The sequence that must run alone now, if any.
    pub fn next(&mut self, sequences: &Sequences) -> Option<SequenceKey> {
        while let Some(&key) = self.0.front() {
            if sequences
                .get(&key)
                .is_some_and(|sequence| sequence.crashes.is_suspect())
            {
                return Some(key);
            }
            self.0.pop_front();
        }
        None
    }
}
