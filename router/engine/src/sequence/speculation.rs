//! Speculation without a second model: a sequence's next tokens are guessed to be those that followed when its last few
//! tokens stood in it before, in the prompt or in the answer (A. Saxena, "Prompt Lookup Decoding", 2023).
//!
//! Guesses are made for every token, drafted or not, and compared with what came: how many drafts are worth it is known
//! without computing any, and a sequence that repeats nothing costs a few look-ups a token.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Tokens that must be the same for what followed them to be a guess: the longest that are found count.
const LONGEST_GRAM: usize = 4;
const SHORTEST_GRAM: usize = 2;

/// From which trust on drafts are computed: about where every second guess is right.
const ENOUGH_TRUST: usize = 2;

/// What of a sequence is guessed to follow, and how far that is to be trusted.
#[derive(Debug)]
pub(crate) struct Speculation {
    most_drafts: usize,
    hasher: RandomState,
    /// By the number of tokens, from the shortest on: for all runs of so many, where they ended last. Clients choose the
    /// texts; the tables compare tokens, and the hash has a key of its own.
    grams: [HashTable<u32>; LONGEST_GRAM - SHORTEST_GRAM + 1],
    /// Where the token stands that is guessed to be the next.
    guess: Option<usize>,
    /// One more for each guess that was right, half for one that was wrong, one less where there was none: when a part
    /// `p` of the guesses is right it stays near `2p / (1 - p)`, twice the mean number of right ones in a row.
    trust: usize,
}

impl Speculation {
    /// For a sequence that begins with `prompt`; at most `most_drafts` in a step.
    pub fn new(most_drafts: usize, prompt: &[u32]) -> Self {
        let mut speculation = Speculation {
            most_drafts,
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

    /// Takes note of the last one of `tokens`, which all others are known of.
    pub fn push(&mut self, tokens: &[u32]) {
        self.trust = match self.guess.map(|at| tokens[at]) {
            Some(guessed) if Some(&guessed) == tokens.last() => {
                (self.trust + 1).min(ENOUGH_TRUST.max(2 * self.most_drafts))
            }
            Some(_) => self.trust / 2,
            None => self.trust.saturating_sub(1),
        };
        self.look_up(tokens);
    }

    /// Whether drafts are worth it, wherever there is a guess.
    pub fn is_trusted(&self) -> bool {
        self.trust >= ENOUGH_TRUST
    }

    /// Drafts do harm here: begins again without any trust.
    pub fn distrust(&mut self) {
        self.trust = 0;
    }

    /// The tokens that are guessed to follow `tokens`, which are all that it was told of, `most` at most.
    pub fn drafts(&self, tokens: &[u32], most: usize) -> Vec<u32> {
        let Some(guess) = self.guess.filter(|_| self.is_trusted()) else {
            return Vec::new();
        };
        let count = most.min(self.most_drafts).min(self.trust);
        // Behind the last token, what is guessed repeats itself.
        let again = tokens[guess..].iter().cycle();
        again.take(count).copied().collect()
    }

    /// Finds where the last tokens stood before, and remembers that they stand here.
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

    /// A sequence that has grown from `prompt` by `answer`.
    fn grown(most_drafts: usize, prompt: &[u32], answer: &[u32]) -> (Speculation, Vec<u32>) {
        let mut tokens = prompt.to_vec();
        let mut speculation = Speculation::new(most_drafts, prompt);
        for token in answer {
            tokens.push(*token);
            speculation.push(&tokens);
        }
        (speculation, tokens)
    }

    #[test]
    fn what_followed_before_is_drafted_once_two_guesses_were_right() {
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
    fn what_repeats_itself_is_drafted_beyond_the_end() {
        let (speculation, tokens) = grown(8, &[7, 8, 9], &[7, 8, 9, 7, 8, 9, 7, 8, 9, 7]);
        assert_eq!(speculation.drafts(&tokens, 5), [8, 9, 7, 8, 9]);
        let (speculation, tokens) = grown(8, &[5], &[6; 12]);
        assert_eq!(speculation.drafts(&tokens, 8), [6; 8]);
    }

    #[test]
    fn trust_is_lost_by_wrong_guesses_and_by_none_and_comes_back() {
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
        /// The index finds what a search through all tokens finds.
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
