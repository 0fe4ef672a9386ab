//! State of a shard's sequences that is needed to answer steps, apart from keys and values.

use std::collections::HashMap;
use std::time::Instant;

use gridwork_proto::v1::{Step, StepResult};

/// The sequences of a fake shard.
#[derive(Debug, Default)]
pub struct FakeSequences {
    by_id: HashMap<u32, FakeSequence>,
}

/// One sequence of a fake shard.
#[derive(Debug, Clone, Copy)]
pub struct FakeSequence {
    pub first_token: u32,
    pub last_token: u32,
    /// Prompt and sampled tokens.
    pub num_tokens: u32,
    /// Time at which the shard computed the sequence's latest step.
    pub computed_at: Instant,
    num_computed: u32,
}

impl FakeSequences {
    /// Computes a step. `next_token` samples each sequence whose last known token is computed by it.
    ///
    /// # Panics
    ///
    /// When the step computes a sequence that was not admitted, or has drafts.
    pub fn run(
        &mut self,
        step: &Step,
        mut next_token: impl FnMut(&FakeSequence) -> u32,
    ) -> StepResult {
        assert!(step.drafts.is_empty(), "the fake shard verifies no drafts");
        let now = Instant::now();
        for id in &step.released {
            self.by_id.remove(id);
        }
        for new in &step.admitted {
            let sequence = FakeSequence {
                first_token: new.token_ids.first().copied().unwrap_or_default(),
                last_token: new.token_ids.last().copied().unwrap_or_default(),
                num_tokens: new.token_ids.len() as u32,
                computed_at: now,
                num_computed: new.num_computed_tokens,
            };
            self.by_id.insert(new.id, sequence);
        }
        let mut result = StepResult {
            step_id: step.id,
            ..Default::default()
        };
        for (id, num_tokens) in step.sequence_ids.iter().zip(&step.num_tokens) {
            let Some(sequence) = self.by_id.get_mut(id) else {
                panic!(
                    "step {} computes sequence {id}, which was not admitted",
                    step.id
                );
            };
            sequence.computed_at = now;
            sequence.num_computed += num_tokens;
            if sequence.num_computed == sequence.num_tokens {
                sequence.last_token = next_token(sequence);
                sequence.num_tokens += 1;
                result.sequence_ids.push(*id);
                result.token_ids.push(sequence.last_token);
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use gridwork_proto::v1::NewSequence;

    use super::*;

    #[test]
    fn a_token_is_sampled_once_the_whole_prompt_is_computed() {
        let mut sequences = FakeSequences::default();
        let mut run = |step: Step| sequences.run(&step, |sequence| sequence.last_token + 1);
        let first = Step {
            id: 1,
            admitted: vec![NewSequence {
                id: 7,
                token_ids: vec![1, 2, 3],
                ..Default::default()
            }],
            sequence_ids: vec![7],
            num_tokens: vec![2],
            ..Default::default()
        };
        assert_eq!(run(first).token_ids, [0; 0]);
        for (id, token) in [(2, 4), (3, 5)] {
            let result = run(Step {
                id,
                sequence_ids: vec![7],
                num_tokens: vec![1],
                ..Default::default()
            });
            assert_eq!(
                (result.sequence_ids, result.token_ids),
                (vec![7], vec![token])
            );
        }
    }
}
