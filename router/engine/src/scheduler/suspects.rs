//! Sequences that may have crashed the shard or made a step raise an exception. After two deaths at the same place,
//! or one exception, a sequence is computed alone. When the shard dies again, or the step raises again, that sequence
//! was the cause and fails.

use std::collections::{BTreeSet, VecDeque};

use crate::sequence::crashes::DEATHS_UNTIL_FAILED;
use crate::sequence::{Sequence, SequenceKey, Sequences};

/// Suspects, which are computed alone, one after another.
#[derive(Debug, Default)]
pub(crate) struct Suspects(VecDeque<SequenceKey>);

impl Suspects {
    /// Counts a death for every sequence in flight. Returns those that crashed the shard alone, with their number of
    /// deaths.
    pub fn shard_died(
        &mut self,
        in_flight: &BTreeSet<SequenceKey>,
        sequences: &mut Sequences,
    ) -> Vec<(SequenceKey, u32)> {
        self.0.clear();
        let mut culprits = Vec::new();
        for &key in in_flight {
            let Some(sequence) = sequences.get_mut(&key) else {
                continue;
            };
            sequence.crashes.died_at(sequence.tokens.len());
            match sequence.crashes {
                crashes if crashes.deaths >= DEATHS_UNTIL_FAILED => {
                    culprits.push((key, crashes.deaths));
                }
                crashes if crashes.is_suspect() => self.0.push_back(key),
                _ => {}
            }
        }
        // Earlier suspects that were not in flight at this death.
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
        culprits
    }

    /// Adds a sequence of a step that raised an exception while computing several.
    pub fn add(&mut self, sequence: &mut Sequence) {
        sequence.crashes.raised_at(sequence.tokens.len());
        self.0.push_back(sequence.key);
    }

    /// The suspect to compute alone now, if any.
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
