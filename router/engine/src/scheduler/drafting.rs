//! How many drafts a step computes, and when the next step must wait for what becomes of them.

use super::Scheduler;
use crate::sequence::Sequence;

/// Sequences that are computed together wait for each other: one that would draft lets so many others wait, no more.
const MOST_OTHERS: usize = 8;

/// What is left for drafts in a step.
#[derive(Debug, Default)]
pub(super) struct DraftRoom {
    tokens: usize,
    tokens_per_sequence: usize,
    blocks: usize,
}

impl Scheduler {
    /// The room for drafts in the next step; `None` when that step must wait for the result of the one on its way: what
    /// follows drafts is not known before, nor what to draft.
    pub(super) fn draft_room(&self) -> Option<DraftRoom> {
        if self.config.draft_step_tokens == 0 {
            return Some(DraftRoom::default());
        }
        let (mut num_decodes, mut num_drafting) = (0, 0);
        let mut unknown = false;
        for (_, key) in &self.running {
            let Some(sequence) = self.sequences.get(key) else {
                continue;
            };
            if sequence.num_drafts > 0 {
                return None;
            }
            if !sequence.is_decoding() || sequence.num_ready() == 0 {
                continue;
            }
            num_decodes += 1;
            if sequence.may_draft() {
                num_drafting += 1;
                unknown |= sequence.num_pending > 0;
            }
        }
        let most = self
            .config
            .draft_step_tokens
            .min(self.config.max_batch_tokens);
        let tokens = most.saturating_sub(num_decodes);
        if num_drafting == 0 || tokens == 0 || num_decodes > num_drafting * (MOST_OTHERS + 1) {
            return Some(DraftRoom::default());
        }
        if unknown {
            return None;
        }
        Some(DraftRoom {
            tokens,
            tokens_per_sequence: (tokens / num_drafting).max(1),
            // Every sequence can have a block in this step and one in the next, whatever becomes of the drafts.
            blocks: self.pool.num_free().saturating_sub(2 * self.running.len()),
        })
    }
}

impl DraftRoom {
    /// The drafts of a sequence whose last known token is computed next.
    pub fn take(
        &mut self,
        sequence: &Sequence,
        eos_token_ids: &[u32],
        block_size_tokens: usize,
    ) -> Vec<u32> {
        let most = self.tokens.min(self.tokens_per_sequence);
        if most == 0 || sequence.num_pending > 0 {
            return Vec::new();
        }
        let end = sequence.num_computed + 1;
        let held = end.div_ceil(block_size_tokens).max(sequence.blocks.len());
        let most = most.min((held + self.blocks) * block_size_tokens - end);
        let drafts = sequence.drafts(most, eos_token_ids);
        let needed = (end + drafts.len()).div_ceil(block_size_tokens);
        self.tokens -= drafts.len();
        self.blocks -= needed.saturating_sub(held);
        drafts
    }
}
