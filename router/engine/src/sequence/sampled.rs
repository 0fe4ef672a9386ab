//! The sampled tokens of a step's result.

use std::collections::HashMap;

use gridwork_proto::v1::StepResult;

use crate::request::TopToken;

/// One sampled token of a [`StepResult`].
pub(crate) struct Sampled {
    pub sequence_id: u32,
    pub token_id: u32,
    pub logprob: Option<f32>,
    pub top: Vec<TopToken>,
    /// True if the sequence's grammar allows nothing after the token.
    pub ends_grammar: bool,
}

impl Sampled {
    /// Tokens that grammars force after those of a result, by sequence, or an error when its arrays do not fit
    /// together.
    pub fn forced(result: &StepResult) -> Result<HashMap<u32, Vec<u32>>, String> {
        let num_forced: usize = result.num_forced.iter().map(|n| *n as usize).sum();
        if result.forced_sequence_ids.len() != result.num_forced.len()
            || result.forced.len() != num_forced
        {
            return Err(format!(
                "result of step {} has forced tokens of different lengths",
                result.step_id
            ));
        }
        let mut rest = result.forced.iter().copied();
        let counts = result.forced_sequence_ids.iter().zip(&result.num_forced);
        let of_sequence =
            |(id, count): (&u32, &u32)| (*id, rest.by_ref().take(*count as usize).collect());
        Ok(counts.map(of_sequence).collect())
    }

    /// All tokens of a result, or an error when its parallel arrays have different lengths.
    pub fn of(result: &StepResult) -> Result<impl Iterator<Item = Sampled>, String> {
        let count = result.sequence_ids.len();
        let fits = |len: usize| len == 0 || len == count;
        let num_top: usize = result.num_top.iter().map(|n| *n as usize).sum();
        if result.token_ids.len() != count
            || !fits(result.logprobs.len())
            || !fits(result.num_top.len())
            || result.top_token_ids.len() != num_top
            || result.top_logprobs.len() != num_top
        {
            return Err(format!(
                "result of step {} has arrays of different lengths",
                result.step_id
            ));
        }
        let mut next_top = 0;
        Ok((0..count).map(move |i| {
            let top = next_top..next_top + result.num_top.get(i).map_or(0, |n| *n as usize);
            next_top = top.end;
            Sampled {
                sequence_id: result.sequence_ids[i],
                ends_grammar: ends_grammar(result, i),
                token_id: result.token_ids[i],
                logprob: result
                    .logprobs
                    .get(i)
                    .copied()
                    .filter(|logprob| !logprob.is_nan()),
                top: top
                    .map(|t| TopToken {
                        id: result.top_token_ids[t],
                        logprob: result.top_logprobs[t],
                    })
                    .collect(),
            }
        }))
    }
}

/// True if the token at an index is the last one of a sequence whose grammar allows nothing more.
fn ends_grammar(result: &StepResult, index: usize) -> bool {
    let id = result.sequence_ids[index];
    result.ended.contains(&id) && result.sequence_ids.get(index + 1) != Some(&id)
}
