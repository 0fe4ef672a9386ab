//! Recovery from failed steps. Blocks that a failed step wrote are removed from the cache, and sequences that used
//! them are recomputed. When a step raised an exception, each of its sequences is recomputed alone, since any of them
//! may be the cause.

use std::collections::{HashSet, VecDeque};

use super::Scheduler;
use crate::cache::blocks::BlockPool;
use crate::cache::prefix_tree::NodeId;
use crate::error::GenerationError;
use crate::scheduler::batch::{ReleasedNodes, StepEntry, StepInFlight};
use crate::sequence::{Sequence, SequenceKey};

/// Maximum number of ids in a log line.
const IDS_OF_A_LINE: usize = 8;

impl Scheduler {
    /// Ids of the requests of a step, for a log line: a few of them, separated by commas.
    fn request_ids(&self, step: &StepInFlight) -> String {
        let ids = step
            .entries
            .iter()
            .filter_map(|entry| self.sequences.get(&entry.key))
            .map(|sequence| &*sequence.request.request_id)
            .filter(|id| !id.is_empty());
        ids.take(IDS_OF_A_LINE).collect::<Vec<_>>().join(",")
    }

    /// Handles a step that raised an exception. A sequence that it computed alone has failed.
    pub(super) fn step_raised(&mut self, step: &StepInFlight, message: &str) {
        let is_alone = step.entries.len() == 1;
        tracing::warn!(
            request_ids = self.request_ids(step),
            "a step of {} sequences failed ({message}){}",
            step.entries.len(),
            if is_alone {
                ""
            } else {
                "; each is computed again, alone"
            }
        );
        // All suspects are noted before any sequence is sent back, together with those that share its blocks.
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

    /// Handles the failure of one sequence of `step`. Sequences that use the blocks it may have spoilt are
    /// recomputed. The sequence itself fails with `error`, or is recomputed without one.
    pub(super) fn entry_failed(
        &mut self,
        entry: &StepEntry,
        error: Option<GenerationError>,
        step: &StepInFlight,
    ) {
        let mut doubtful: Vec<Vec<NodeId>> = self
            .released_nodes(step)
            .filter(|released_nodes| released_nodes.key == entry.key)
            .map(|released_nodes| released_nodes.nodes.clone())
            .collect();
        if let Some(sequence) = self.sequences.get(&entry.key)
            && sequence.epoch == entry.epoch
        {
            doubtful.push(self.pool.unconfirmed(&sequence.blocks));
            let waits = sequence.sequence_id.is_none();
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

    /// Drops the pending tokens of sequences that released these nodes while tokens were sampled from them.
    fn recompute_users(&mut self, nodes: &[NodeId], step: &StepInFlight) {
        let nodes: HashSet<NodeId> = nodes.iter().copied().collect();
        let keys: Vec<SequenceKey> = self
            .released_nodes(step)
            .filter(|released_nodes| released_nodes.nodes.iter().any(|node| nodes.contains(node)))
            .map(|released_nodes| released_nodes.key)
            .collect();
        for key in keys {
            let waits =
                |sequence: &&Sequence| sequence.sequence_id.is_none() && sequence.num_pending > 0;
            if self.sequences.get(&key).filter(waits).is_some() {
                self.forget_results(key);
            }
        }
    }

    /// Ignores what the steps in flight return for this sequence.
    fn forget_results(&mut self, key: SequenceKey) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.epoch += 1;
            sequence.num_pending = 0;
        }
    }

    /// Released nodes of `step` and of the steps behind it.
    fn released_nodes<'a>(
        &'a self,
        step: &'a StepInFlight,
    ) -> impl Iterator<Item = &'a ReleasedNodes> {
        let behind = self.in_flight.iter().flat_map(|step| &step.released_nodes);
        step.released_nodes.iter().chain(behind)
    }
}

/// Releases a sequence's blocks. The last step in flight remembers those that steps in flight still use.
pub(super) fn release(
    sequence: &mut Sequence,
    pool: &mut BlockPool,
    in_flight: &mut VecDeque<StepInFlight>,
) {
    if let Some(step) = in_flight.back_mut() {
        let nodes = pool.unconfirmed(&sequence.blocks);
        if !nodes.is_empty() {
            let key = sequence.key;
            step.released_nodes.push(ReleasedNodes { key, nodes });
        }
    }
    pool.release(&mut sequence.blocks);
}
