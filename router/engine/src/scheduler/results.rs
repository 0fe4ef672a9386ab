//! Applies a step's result: tokens for their sequences, failures, and confirmed blocks.

use std::collections::HashMap;
use std::time::Instant;

use gridwork_proto::v1::{SequenceFailure, StepResult, sequence_failure};

use super::Scheduler;
use crate::error::GenerationError;
use crate::scheduler::batch::StepEntry;
use crate::sequence::sampled::Sampled;

impl Scheduler {
    /// Applies the result of the oldest step in flight. An error means that router and shard disagree about the step;
    /// the connection cannot be used any further.
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
        if !result.error.is_empty() {
            self.step_raised(&step, &result.error);
            self.end_of_step(now);
            return Ok(());
        }
        self.pace
            .observe(step.entries.len(), step.num_tokens, result);
        let mut num_sampled = 0;
        for prompt in &result.prompt_logprobs {
            let of_sequence = |entry: &&StepEntry| entry.sequence_id == prompt.sequence_id;
            if let Some(entry) = step.entries.iter().find(of_sequence)
                && let Some(sequence) = self.sequences.get_mut(&entry.key)
                && sequence.epoch == entry.epoch
            {
                sequence.add_prompt_logprobs(prompt);
            }
        }
        let failures: HashMap<u32, &SequenceFailure> = result
            .failures
            .iter()
            .map(|failure| (failure.sequence_id, failure))
            .collect();
        if !failures.is_empty() {
            for entry in &step.entries {
                if let Some(failure) = failures.get(&entry.sequence_id) {
                    self.entry_failed(entry, Some(error_of(failure)), &step);
                }
            }
        }
        let mut sampled = Sampled::of(result)?.peekable();
        let mut forced = Sampled::forced(result)?;
        for entry in &step.entries {
            if !entry.samples || failures.contains_key(&entry.sequence_id) {
                continue;
            }
            let tokens = std::iter::from_fn(|| {
                sampled.next_if(|token| token.sequence_id == entry.sequence_id)
            });
            num_sampled += self
                .take_tokens(entry, tokens, now)
                .map_err(|count| format!("step {} gave {count} for {entry:?}", step.id))?;
            if let Some(sequence) = self.sequences.get_mut(&entry.key)
                && sequence.epoch == entry.epoch
            {
                let forced = forced.remove(&entry.sequence_id);
                sequence.set_forced(forced.unwrap_or_default());
            }
        }
        if let Some(extra) = sampled.next() {
            return Err(format!(
                "step {} gave a token for sequence {}, unasked",
                step.id, extra.sequence_id
            ));
        }
        if !step.entries.is_empty() {
            self.metrics.step_done(
                num_sampled as u64,
                now.duration_since(step.sent),
                result.forward_us,
                result.sample_us,
            );
        }
        self.end_of_step(now);
        Ok(())
    }

    fn end_of_step(&mut self, now: Instant) {
        self.report();
        if self.sequences.is_empty() && self.in_flight.is_empty() {
            self.check_when_idle(now);
        }
    }

    /// Takes a sequence's sampled tokens and returns how many of them it needed. `Err` is the number of tokens when
    /// it is not the requested one.
    fn take_tokens(
        &mut self,
        entry: &StepEntry,
        sampled: impl Iterator<Item = Sampled>,
        now: Instant,
    ) -> Result<usize, usize> {
        let sequence = self.sequences.get_mut(&entry.key);
        // The tokens are surplus when the sequence has ended or is recomputed since then.
        let mut sequence = sequence.filter(|sequence| sequence.epoch == entry.epoch);
        let num_known = sequence
            .as_ref()
            .map_or(0, |sequence| sequence.tokens.len());
        let max = entry.num_drafts + 1;
        let mut num_sampled = 0;
        let mut finish = None;
        for token in sampled {
            num_sampled += 1;
            if let Some(sequence) = &mut sequence
                && finish.is_none()
                && num_sampled <= max
            {
                finish = sequence.accept(token, &self.eos_token_ids, &self.vocabulary, now);
            }
        }
        // Drafts with NaN logits yield no token; the token is recomputed without them.
        let min = usize::from(entry.num_drafts == 0);
        if !(min..=max).contains(&num_sampled) {
            return Err(num_sampled);
        }
        let Some(sequence) = sequence else {
            return Ok(0);
        };
        let num_taken = sequence.tokens.len() - num_known;
        if entry.num_drafts > 0 {
            self.metrics
                .drafted(entry.num_drafts, num_taken.saturating_sub(1));
        }
        sequence.on_step_result(num_sampled);
        if let Some(tenant) = &sequence.request.tenant {
            tenant.charge(num_taken);
        }
        let block_size = self.config.block_size_tokens;
        if num_taken > 0 {
            self.pool
                .confirm(&mut sequence.blocks, num_known / block_size);
        }
        sequence.share_blocks(&mut self.pool, block_size);
        if let Some(finish) = finish {
            self.metrics.finished(&finish);
            self.remove(entry.key);
        } else if let Some(error) = sequence.unread_error() {
            self.fail(entry.key, error);
        } else if num_taken > 0 && num_known == sequence.num_prompt_tokens {
            self.metrics
                .first_token(now.duration_since(sequence.submitted));
        }
        Ok(num_taken)
    }
}

fn error_of(failure: &SequenceFailure) -> GenerationError {
    match failure.kind() {
        sequence_failure::Kind::NanLogits => GenerationError::NanLogits,
        _ => GenerationError::Shard(failure.message.clone()),
    }
}
