//! A step while it is being filled, and the record of a step in flight.

use std::time::Instant;

use gridwork_proto::v1::Step;

use crate::cache::blocks::BlockPool;
use crate::cache::prefix_tree::NodeId;
use crate::sequence::{Sequence, SequenceKey};
use crate::shard::watchdog::Work;

pub(crate) struct StepInFlight {
    pub id: u64,
    pub sent: Instant,
    /// Number of tokens to compute.
    pub num_tokens: usize,
    /// Context of the longest sequence, up to the last computed token.
    pub context_tokens: usize,
    /// Entries in the order of the step's `sequence_ids`.
    pub entries: Vec<StepEntry>,
    /// Sequences that released their blocks while this was the last step in flight.
    pub released_nodes: Vec<ReleasedNodes>,
}

/// Nodes that a sequence released while steps in flight still compute or read them.
#[derive(Debug)]
pub(crate) struct ReleasedNodes {
    pub key: SequenceKey,
    /// Its cached blocks that no sampled token has confirmed, each the parent of the next.
    pub nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct StepEntry {
    pub sequence_id: u32,
    pub key: SequenceKey,
    /// The sequence's epoch when the step was made.
    pub epoch: u32,
    pub samples: bool,
    pub num_drafts: usize,
}

/// A step while it is being filled.
pub(crate) struct Batch {
    pub step: Step,
    pub entries: Vec<StepEntry>,
    pub budget_tokens: usize,
    /// Context of the longest sequence so far.
    pub context_tokens: usize,
}

impl StepInFlight {
    /// Size of the step, on which its time depends.
    pub fn work(&self) -> Work {
        Work {
            num_sequences: self.entries.len(),
            num_tokens: self.num_tokens,
            context_tokens: self.context_tokens,
        }
    }
}

impl Batch {
    pub fn new(budget_tokens: usize) -> Self {
        Batch {
            step: Step::default(),
            entries: Vec::new(),
            budget_tokens,
            context_tokens: 0,
        }
    }

    /// Guarantees prefill a part of the step beside any number of decodes.
    pub fn leave_for_prefill(&mut self, at_least_tokens: usize) {
        self.budget_tokens = self.budget_tokens.max(at_least_tokens);
    }

    /// Schedules `num_tokens` of a running sequence, and drafts behind them. Returns false, having changed nothing,
    /// when too few blocks are available.
    pub fn add(
        &mut self,
        sequence: &mut Sequence,
        num_tokens: usize,
        drafts: &[u32],
        pool: &mut BlockPool,
        block_size_tokens: usize,
    ) -> bool {
        let Some(sequence_id) = sequence.sequence_id else {
            return false;
        };
        let computed = sequence.num_computed + num_tokens;
        let num_needed = (computed + drafts.len())
            .div_ceil(block_size_tokens)
            .saturating_sub(sequence.blocks.len());
        if !pool.extend(&mut sequence.blocks, num_needed) {
            return false;
        }
        let samples = computed == sequence.tokens.len() + sequence.num_pending;
        if sequence.num_computed < sequence.num_prompt_tokens {
            sequence.spans.chunk(sequence.num_computed, num_tokens);
        }
        sequence.num_computed = computed;
        self.context_tokens = self.context_tokens.max(computed + drafts.len());
        sequence.num_drafts = drafts.len();
        if samples {
            sequence.num_pending += 1;
        }
        // Steps are executed in order, and a step writes before it reads, so the next sequence may use these blocks.
        // With drafts, not even the last known token is certain to be computed correctly.
        if drafts.is_empty() {
            sequence.share_blocks(pool, block_size_tokens);
        }
        let new_blocks = &sequence.blocks.ids()[sequence.num_sent_blocks..];
        self.step.sequence_ids.push(sequence_id);
        self.step
            .num_tokens
            .push((num_tokens + drafts.len()) as u32);
        self.step.num_new_blocks.push(new_blocks.len() as u32);
        self.step.new_blocks.extend_from_slice(new_blocks);
        if !drafts.is_empty() {
            self.step
                .num_drafts
                .resize(self.step.sequence_ids.len() - 1, 0);
            self.step.num_drafts.push(drafts.len() as u32);
            self.step.drafts.extend_from_slice(drafts);
        }
        sequence.num_sent_blocks = sequence.blocks.len();
        self.entries.push(StepEntry {
            sequence_id,
            key: sequence.key,
            epoch: sequence.epoch,
            samples,
            num_drafts: drafts.len(),
        });
        self.budget_tokens = self.budget_tokens.saturating_sub(num_tokens + drafts.len());
        true
    }
}
