//! Number of drafts in a step, and when a step must wait for the results of the drafts before it.

use super::Scheduler;
use crate::sequence::Sequence;

/// Maximum number of other decodes that wait for each drafting sequence. Drafting delays every sequence of a step.
const MAX_WAITING_DECODES: usize = 8;

/// Room that is left for drafts in a step.
#[derive(Debug, Default)]
pub(super) struct DraftRoom {
    tokens: usize,
    tokens_per_sequence: usize,
    blocks: usize,
}

impl Scheduler {
    /// Room for drafts in the next step. `None` when that step must wait for the result in flight: neither the tokens
    /// behind drafts nor the next drafts are known before.
    pub(super) fn draft_room(&self) -> Option<DraftRoom> {
        if self.config.max_drafts == 0 {
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
            if self.config.drafts_only_forced && sequence.request.grammar.is_none() {
                return Some(DraftRoom::default());
            }
            num_decodes += 1;
            if sequence.may_draft() {
                num_drafting += 1;
                unknown |= sequence.num_pending > 0;
            }
        }
        let max = self
            .config
            .draft_step_tokens
            .min(self.config.max_batch_prefill_tokens);
        let tokens = max.saturating_sub(num_decodes);
        if num_drafting == 0
            || tokens == 0
            || num_decodes > num_drafting * (MAX_WAITING_DECODES + 1)
        {
            return Some(DraftRoom::default());
        }
        if unknown {
            return None;
        }
        Some(DraftRoom {
            tokens,
            tokens_per_sequence: (tokens / num_drafting).clamp(1, self.config.max_drafts),
            // Every sequence can have a block in this step and one in the next, whether or not its drafts are
            // accepted.
            blocks: self.pool.num_free().saturating_sub(2 * self.running.len()),
        })
    }
}

impl DraftRoom {
    /// Takes the drafts of a sequence whose last known token is computed next.
    pub fn take(
        &mut self,
        sequence: &Sequence,
        eos_token_ids: &[u32],
        block_size_tokens: usize,
    ) -> Vec<u32> {
        let max = self.tokens.min(self.tokens_per_sequence);
        if max == 0 || sequence.num_pending > 0 {
            return Vec::new();
        }
        let end = sequence.num_computed + 1;
        let held = end.div_ceil(block_size_tokens).max(sequence.blocks.len());
        let max = max.min((held + self.blocks) * block_size_tokens - end);
        let drafts = sequence.drafts(max, eos_token_ids);
        let needed = (end + drafts.len()).div_ceil(block_size_tokens);
        self.tokens -= drafts.len();
        self.blocks -= needed.saturating_sub(held);
        drafts
    }
}
