//! Steps that failed: nobody may use their blocks any more, and whoever did is computed again. So are all sequences of a step
//! that raised an exception, each alone, since nobody knows which of them was the reason.

use std::collections::{HashSet, VecDeque};

use super::Scheduler;
use crate::cache::blocks::BlockPool;
use crate::cache::prefix_tree::NodeId;
use crate::request::GenerationError;
use crate::scheduler::batch::{Departed, StepEntry, StepInFlight};
use crate::sequence::{Sequence, SequenceKey};

impl Scheduler {
    /// Takes it that `step` raised an exception. A sequence that it computed alone has failed.
    pub(super) fn step_raised(&mut self, step: &StepInFlight, message: &str) {
        let is_alone = step.entries.len() == 1;
        tracing::warn!(
            "a step of {} sequences failed ({message}){}",
            step.entries.len(),
            if is_alone {
                ""
            } else {
                "; each is computed again, alone"
            }
        );
        // Before any is sent back, and with it those that share its blocks.
        for entry in step.entries.iter().filter(|_| !is_alone) {
            if let Some(sequence) = self.sequences.get_mut(&entry.key)
                && sequence.epoch == entry.epoch
            {
                self.suspects.add(sequence);
            }
        }
        for entry in &step.entries {
            let error = is_alone.then(|| GenerationError::Shard(message.to_owned()));
            self.entry_failed(entry, error, step);
        }
    }

    /// Takes the failure of what `step` computed of a sequence. Blocks that it may have spoilt are used by nobody any
    /// more: sequences that do are computed again, and so is this one where there is no `error` to fail with.
    pub(super) fn entry_failed(
        &mut self,
        entry: &StepEntry,
        error: Option<GenerationError>,
        step: &StepInFlight,
    ) {
        let mut doubtful: Vec<Vec<NodeId>> = self
            .departed(step)
            .filter(|departed| departed.key == entry.key)
            .map(|departed| departed.nodes.clone())
            .collect();
        if let Some(sequence) = self.sequences.get(&entry.key)
            && sequence.epoch == entry.epoch
        {
            doubtful.push(self.pool.unconfirmed(&sequence.blocks));
            let waits = sequence.row.is_none();
            match error {
                Some(error) => self.fail(entry.key, error),
                None => {
                    self.forget_results(entry.key);
                    if !waits {
                        self.back_to_queue(entry.key);
                    }
                }
            }
        }
        for nodes in doubtful {
            self.recompute_users(&nodes, step);
            while let Some((node, depth)) = self.pool.first_unconfirmed(&nodes) {
                let uses = |key: &SequenceKey| {
                    let sequence = self.sequences.get(key);
                    sequence.is_some_and(|sequence| sequence.blocks.uses(node, depth))
                };
                let running = self.running.iter().map(|(_, key)| *key);
                let users: Vec<SequenceKey> = running.filter(uses).collect();
                for key in users {
                    self.forget_results(key);
                    self.back_to_queue(key);
                }
                self.pool.forget(node);
            }
        }
    }

    /// Sequences that gave up blocks of these while tokens were sampled from them: those tokens are not theirs.
    fn recompute_users(&mut self, nodes: &[NodeId], step: &StepInFlight) {
        let nodes: HashSet<NodeId> = nodes.iter().copied().collect();
        let keys: Vec<SequenceKey> = self
            .departed(step)
            .filter(|departed| departed.nodes.iter().any(|node| nodes.contains(node)))
            .map(|departed| departed.key)
            .collect();
        for key in keys {
            let waits = |sequence: &&Sequence| sequence.row.is_none() && sequence.num_pending > 0;
            if self.sequences.get(&key).filter(waits).is_some() {
                self.forget_results(key);
            }
        }
    }

    /// What steps on their way say of this sequence is not to be used.
    fn forget_results(&mut self, key: SequenceKey) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.epoch += 1;
            sequence.num_pending = 0;
        }
    }

    /// Of `step` and those behind it.
    fn departed<'a>(&'a self, step: &'a StepInFlight) -> impl Iterator<Item = &'a Departed> {
        let behind = self.in_flight.iter().flat_map(|step| &step.departed);
        step.departed.iter().chain(behind)
    }
}

/// Gives a sequence's blocks back. What steps on their way do with them is remembered with the last of these.
pub(super) fn release(
    sequence: &mut Sequence,
    pool: &mut BlockPool,
    in_flight: &mut VecDeque<StepInFlight>,
) {
    if let Some(step) = in_flight.back_mut() {
        let nodes = pool.unconfirmed(&sequence.blocks);
        if !nodes.is_empty() {
            let key = sequence.key;
            step.departed.push(Departed { key, nodes });
        }
    }
    pool.release(&mut sequence.blocks);
}
