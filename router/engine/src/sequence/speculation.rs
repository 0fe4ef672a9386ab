//! Speculation without a draft model: the next tokens are predicted to be those that followed when the last few
//! tokens occurred before, in the prompt or in the answer (A. Saxena, "Prompt Lookup Decoding", 2023).
//!
//! A guess is made for every token, drafted or not, and compared with the sampled one. This measures the worth of
//! drafts without computing any, and a sequence without repetition costs a few look-ups a token.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Lengths of the runs of tokens that are looked up. The longest match counts.
const LONGEST_GRAM: usize = 4;
const SHORTEST_GRAM: usize = 2;

/// Trust from which on drafts are computed: about every second guess is right there.
const ENOUGH_TRUST: usize = 2;

/// Predictor of one sequence, and the trust in it.
#[derive(Debug)]
pub(crate) struct Speculation {
    max_drafts: usize,
    hasher: RandomState,
    /// End of the latest occurrence of every run of tokens, one table for each length, the shortest first. Clients
    /// choose the texts, so the tables compare tokens and the hash is keyed.
    grams: [HashTable<u32>; LONGEST_GRAM - SHORTEST_GRAM + 1],
    /// Index of the token that is guessed to be the next.
    guess: Option<usize>,
    /// Incremented for each right guess, halved for a wrong one, decremented when there was none. When a share `p` of
    /// the guesses is right, trust stays near `2p / (1 - p)`, twice the mean number of consecutive right ones.
    trust: usize,
}

impl Speculation {
    /// A predictor for a sequence that begins with `prompt`, with at most `max_drafts` drafts in a step.
    pub fn new(max_drafts: usize, prompt: &[u32]) -> Self {
        let mut speculation = Speculation {
            max_drafts,
            hasher: RandomState::new(),
            grams: std::array::from_fn(|_| HashTable::with_capacity(prompt.len())),
            guess: None,
            trust: 0,
        };
        for end in 1..=prompt.len() {
            speculation.look_up(&prompt[..end]);
        }
        speculation
    }

    /// Adds the last of `tokens`. All tokens before it must have been added.
    pub fn push(&mut self, tokens: &[u32]) {
        self.trust = match self.guess.map(|at| tokens[at]) {
            Some(guessed) if Some(&guessed) == tokens.last() => {
                (self.trust + 1).min(ENOUGH_TRUST.max(2 * self.max_drafts))
            }
            Some(_) => self.trust / 2,
            None => self.trust.saturating_sub(1),
        };
        self.look_up(tokens);
    }

    /// True if guesses are right often enough to draft them.
    pub fn is_trusted(&self) -> bool {
        self.trust >= ENOUGH_TRUST
    }

    /// Resets the trust, since drafts led to NaN logits.
    pub fn distrust(&mut self) {
        self.trust = 0;
    }

    /// Up to `max` drafts of the tokens after `tokens`, all of which must have been added.
    pub fn drafts(&self, tokens: &[u32], max: usize) -> Vec<u32> {
        let Some(guess) = self.guess.filter(|_| self.is_trusted()) else {
            return Vec::new();
        };
        let count = max.min(self.max_drafts).min(self.trust);
        // Beyond the last token, the guess repeats.
        let again = tokens[guess..].iter().cycle();
        again.take(count).copied().collect()
    }

    /// Finds the previous occurrence of the last tokens, and records this one.
    fn look_up(&mut self, tokens: &[u32]) {
        self.guess = None;
        let hasher = &self.hasher;
        for (table, length) in self.grams.iter_mut().zip(SHORTEST_GRAM..) {
            if tokens.len() < length {
                return;
            }
            let gram = |end: u32| &tokens[end as usize - length..end as usize];
            let last = tokens.len() as u32;
            let hash = hasher.hash_one(gram(last));
            match table.entry(
                hash,
                |end| gram(*end) == gram(last),
                |end| hasher.hash_one(gram(*end)),
            ) {
                Entry::Occupied(mut before) => {
                    self.guess = Some(std::mem::replace(before.get_mut(), last) as usize);
                }
                Entry::Vacant(place) => {
                    place.insert(last);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A sequence that grew from `prompt` by `answer`.
    fn grown(max_drafts: usize, prompt: &[u32], answer: &[u32]) -> (Speculation, Vec<u32>) {
        let mut tokens = prompt.to_vec();
        let mut speculation = Speculation::new(max_drafts, prompt);
        for token in answer {
            tokens.push(*token);
            speculation.push(&tokens);
        }
        (speculation, tokens)
    }

    #[test]
    fn drafts_start_after_two_right_guesses() {
        let prompt: Vec<u32> = (10..30).collect();
        for (answer, expected) in [
            (vec![12, 13], vec![]),
            (vec![12, 13, 14], vec![]),
            (vec![12, 13, 14, 15], vec![16, 17]),
            (vec![12, 13, 14, 15, 16], vec![17, 18, 19]),
            (vec![12, 13, 14, 15, 16, 17], vec![18, 19, 20, 21]),
            (vec![12, 13, 14, 15, 16, 17, 18], vec![19, 20, 21, 22]),
        ] {
            let (speculation, tokens) = grown(4, &prompt, &answer);
            assert_eq!(speculation.drafts(&tokens, 100), expected, "{answer:?}");
            assert_eq!(speculation.is_trusted(), !expected.is_empty());
            let few = &expected[..expected.len().min(1)];
            assert_eq!(speculation.drafts(&tokens, 1), few);
        }
    }

    #[test]
    fn a_longer_match_counts_more_than_a_later_one() {
        let prompt = [1, 2, 3, 4, 5, 6, 99, 3, 4, 77, 1, 2];
        let (speculation, tokens) = grown(4, &prompt, &[3, 4]);
        assert_eq!(speculation.guess.map(|at| tokens[at]), Some(5));
    }

    #[test]
    fn a_repetition_is_drafted_beyond_the_end() {
        let (speculation, tokens) = grown(8, &[7, 8, 9], &[7, 8, 9, 7, 8, 9, 7, 8, 9, 7]);
        assert_eq!(speculation.drafts(&tokens, 5), [8, 9, 7, 8, 9]);
        let (speculation, tokens) = grown(8, &[5], &[6; 12]);
        assert_eq!(speculation.drafts(&tokens, 8), [6; 8]);
    }

    #[test]
    fn wrong_or_missing_guesses_cost_trust_which_can_return() {
        let prompt: Vec<u32> = (0..100).collect();
        let copied: Vec<u32> = (10..30).collect();
        let (mut speculation, mut tokens) = grown(4, &prompt, &copied);
        assert!(speculation.is_trusted());
        for token in 1000..1008 {
            tokens.push(token);
            speculation.push(&tokens);
        }
        assert!(!speculation.is_trusted());
        assert!(speculation.drafts(&tokens, 4).is_empty());
        for token in 50..54 {
            tokens.push(token);
            speculation.push(&tokens);
        }
        assert_eq!(speculation.drafts(&tokens, 4), [54, 55]);
        speculation.distrust();
        assert!(speculation.drafts(&tokens, 4).is_empty());
    }

    proptest! {
        /// The index finds the same match as a search through all tokens.
        #[test]
        fn the_guess_follows_the_longest_and_latest_match(
            tokens in prop::collection::vec(0u32..4, 0..80),
            prompt in 0usize..80,
        ) {
            let (prompt, answer) = tokens.split_at(prompt.min(tokens.len()));
            let (speculation, tokens) = grown(4, prompt, answer);
            let expected = (SHORTEST_GRAM..=LONGEST_GRAM).rev().find_map(|length| {
                let gram = tokens.len().checked_sub(length).map(|start| &tokens[start..])?;
                (length..tokens.len()).rev().find(|end| &tokens[end - length..*end] == gram)
            });
            prop_assert_eq!(speculation.guess, expected);
        }
    }
}
