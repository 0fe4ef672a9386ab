//! A shard that enforces the contract and finds out when a sequence reads blocks that another one wrote.

use super::*;

/// The content from which a cache slot was computed, see [`ShardSequence::content`]. `None`: the slot was written by
/// a failed step.
type Slot = Option<(u64, usize, Vec<u32>)>;

/// A shard whose cache slots remember the content from which they were computed.
#[derive(Default)]
pub struct Shard {
    pub sequences: HashMap<u32, ShardSequence>,
    slots: HashMap<(u32, usize), Slot>,
    pub last_step: u64,
    pub most_tokens: usize,
    pub num_computed_tokens: usize,
    pub num_drafts: usize,
    pub lengths: LengthRule,
}

/// A way in which a step fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// The step raises an exception.
    Step,
    /// The sequence at this index has NaN logits, if it samples: behind one of its drafts, if it has any.
    Nan(usize),
}

/// Token sampled from a slot that a failed step wrote. No client may ever see it.
const GARBAGE: u32 = 666_666;

pub struct ShardSequence {
    /// Stands for everything besides tokens. It differs between requests that must not share blocks.
    seed: u64,
    failed: bool,
    tokens: Vec<u32>,
    num_prompt: usize,
    num_first: usize,
    num_computed: usize,
    blocks: Vec<u32>,
}

impl Shard {
    /// Ids of the sequences, and their tokens.
    pub fn known(&self) -> impl Iterator<Item = (u32, &[u32])> {
        self.sequences
            .iter()
            .map(|(sequence_id, sequence)| (*sequence_id, sequence.tokens.as_slice()))
    }

    pub fn run(&mut self, step: &Step, fault: Fault) -> StepResult {
        assert_eq!(step.id, self.last_step + 1);
        self.last_step = step.id;
        for sequence_id in &step.released {
            assert!(
                self.sequences.remove(sequence_id).is_some(),
                "sequence {sequence_id} was free already"
            );
        }
        for NewSequence {
            id,
            token_ids,
            num_prompt_tokens,
            num_first_tokens,
            num_computed_tokens,
            sampling,
            ..
        } in &step.admitted
        {
            let sequence = ShardSequence {
                seed: sampling.as_ref().map_or(0, |sampling| sampling.seed),
                failed: false,
                tokens: token_ids.clone(),
                num_prompt: *num_prompt_tokens as usize,
                num_first: *num_first_tokens as usize,
                num_computed: *num_computed_tokens as usize,
                blocks: Vec::new(),
            };
            assert_eq!(
                sequence.num_first,
                self.lengths
                    .num_first(sequence.num_prompt, sequence.tokens.len())
            );
            assert!(
                self.sequences.insert(*id, sequence).is_none(),
                "sequence {id} is taken"
            );
        }
        let mut result = StepResult {
            step_id: step.id,
            ..Default::default()
        };
        let mut seen = HashSet::new();
        let mut new_blocks = step.new_blocks.iter();
        let mut drafts = step.drafts.iter().copied();
        assert!([0, step.sequence_ids.len()].contains(&step.num_drafts.len()));
        self.most_tokens = self
            .most_tokens
            .max(step.num_tokens.iter().sum::<u32>() as usize);
        self.num_computed_tokens += step.num_tokens.iter().sum::<u32>() as usize;
        // All slots are written before any is read.
        let mut spans = Vec::new();
        for (i, sequence_id) in step.sequence_ids.iter().enumerate() {
            assert!(
                seen.insert(*sequence_id),
                "sequence {sequence_id} appears twice"
            );
            let sequence = self
                .sequences
                .get_mut(sequence_id)
                .expect("an admitted sequence_id");
            sequence
                .blocks
                .extend(new_blocks.by_ref().take(step.num_new_blocks[i] as usize));
            let drafts: Vec<u32> = drafts
                .by_ref()
                .take(step.num_drafts.get(i).map_or(0, |count| *count as usize))
                .collect();
            let end = sequence.num_computed + step.num_tokens[i] as usize - drafts.len();
            sequence.failed |= fault == Fault::Step;
            if fault == Fault::Step {
                result.error = "RuntimeError: no memory".to_owned();
            } else if sequence.failed {
                result
                    .failures
                    .push(failure(*sequence_id, sequence_failure::Kind::Internal));
            } else {
                assert!(
                    end <= sequence.tokens.len(),
                    "sequence {sequence_id}: tokens that are not known"
                );
            }
            let samples = end == sequence.tokens.len();
            assert!(
                drafts.is_empty() || sequence.failed || samples && end - sequence.num_computed == 1,
                "sequence {sequence_id}: drafts behind no decode"
            );
            let nan = fault == Fault::Nan(i) && samples && !sequence.failed;
            let guessed = [sequence.tokens.as_slice(), drafts.as_slice()].concat();
            let max = self.lengths.max_computed(sequence.num_first);
            assert!(
                max.is_none_or(|max| end + drafts.len() <= max),
                "sequence {sequence_id} goes on where it is to be computed anew"
            );
            for position in sequence.num_computed..end + drafts.len() {
                let content = (!sequence.failed && !nan)
                    .then(|| sequence.content(&self.lengths, &guessed, position));
                self.slots.insert(sequence.slot(position), content);
            }
            if sequence.failed {
                // The tokens that follow are not computed either; their slots keep their old content.
                sequence.num_computed = end;
            } else {
                self.num_drafts += drafts.len();
                spans.push((*sequence_id, end, nan, drafts));
            }
        }
        assert!(new_blocks.next().is_none(), "blocks for nobody");
        for (sequence_id, end, nan, drafts) in spans {
            let sequence = self
                .sequences
                .get_mut(&sequence_id)
                .expect("it was there above");
            assert!(
                end > sequence.num_computed,
                "sequence {sequence_id} computes nothing"
            );
            let mut good = true;
            // A token computed together with drafts that have NaN logits is recomputed.
            let num_read = if nan && !drafts.is_empty() {
                end - 1
            } else {
                end
            };
            for position in 0..num_read {
                match &self.slots[&sequence.slot(position)] {
                    None => good = false,
                    Some(content) => assert_eq!(
                        *content,
                        sequence.content(&self.lengths, &sequence.tokens, position),
                        "sequence {sequence_id} reads another one's cache"
                    ),
                }
            }
            if !good {
                for position in sequence.num_computed..end {
                    self.slots.insert(sequence.slot(position), None);
                }
            }
            sequence.num_computed = end;
            if nan && !drafts.is_empty() {
                sequence.num_computed = end - 1;
            } else if nan {
                sequence.failed = true;
                result
                    .failures
                    .push(failure(sequence_id, sequence_failure::Kind::NanLogits));
            } else if end == sequence.tokens.len() {
                // No draft follows the last one, so the token after it ends the loop.
                for draft in drafts.into_iter().map(Some).chain([None]) {
                    let token = if good {
                        next_token(&sequence.tokens)
                    } else {
                        GARBAGE
                    };
                    sequence.tokens.push(token);
                    result.sequence_ids.push(sequence_id);
                    result.token_ids.push(token);
                    if draft != Some(token) {
                        break;
                    }
                    sequence.num_computed += 1;
                }
            }
        }
        result
    }
}

impl ShardSequence {
    /// The tokens that it will sample next.
    pub fn next_tokens(&self, count: usize) -> Vec<u32> {
        continuation(&self.tokens, count)
    }

    /// The content on which keys at a position depend: the seed, the class of the number of tokens computed together,
    /// and the tokens up to there.
    fn content(
        &self,
        lengths: &LengthRule,
        tokens: &[u32],
        position: usize,
    ) -> (u64, usize, Vec<u32>) {
        let class = lengths.class(self.num_first.max(position + 1));
        (self.seed, class, tokens[..=position].to_vec())
    }

    fn slot(&self, position: usize) -> (u32, usize) {
        (self.blocks[position / BLOCK_SIZE], position % BLOCK_SIZE)
    }
}

fn failure(sequence_id: u32, kind: sequence_failure::Kind) -> SequenceFailure {
    SequenceFailure {
        sequence_id,
        kind: kind.into(),
        message: String::new(),
    }
}
