//! Prompts that fill in the middle of a text. Models that were trained for it have tokens of their own, which tell them
//! what stands before and after the part to write.

use tokenizers::Tokenizer;

/// The tokens of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Markers {
    /// Before the text that precedes the part.
    prefix: &'static str,
    /// Before the text that follows it.
    suffix: &'static str,
    /// Before the part itself. Empty: it follows the prefix.
    middle: &'static str,
    /// True if the text that follows comes first.
    suffix_first: bool,
}

const fn prefix_first(prefix: &'static str, suffix: &'static str, middle: &'static str) -> Markers {
    Markers {
        prefix,
        suffix,
        middle,
        suffix_first: false,
    }
}

/// Tokens that models use, as their papers and tokenizers name them.
const FAMILIES: [Markers; 8] = [
    prefix_first("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    prefix_first("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    prefix_first("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    prefix_first("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    prefix_first("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    prefix_first("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    prefix_first("▁<PRE>", "▁<SUF>", "▁<MID>"),
    Markers {
        prefix: "[PREFIX]",
        suffix: "[SUFFIX]",
        middle: "",
        suffix_first: true,
    },
];

impl Markers {
    /// The tokens that `tokenizer` has.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let added = tokenizer.get_added_vocabulary().get_vocab();
        let has = |token: &str| token.is_empty() || added.contains_key(token);
        FAMILIES
            .into_iter()
            .find(|family| has(family.prefix) && has(family.suffix) && has(family.middle))
    }

    /// The prompt for the part between `before` and `after`.
    pub fn prompt(&self, before: &str, after: &str) -> String {
        let (before, after) = ([self.prefix, before], [self.suffix, after]);
        let [first, second] = match self.suffix_first {
            true => [after, before],
            false => [before, after],
        };
        [first[0], first[1], second[0], second[1], self.middle].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use serde_json::{Value, json};

    use super::*;

    fn tokenizer(added: &[&str]) -> Tokenizer {
        let added: Vec<Value> = (1..)
            .zip(added)
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "added_tokens": added,
            "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}
        });
        Tokenizer::from_str(&json.to_string()).expect("a tokenizer")
    }

    fn prompt(added: &[&str]) -> Option<String> {
        Markers::of(&tokenizer(added)).map(|markers| markers.prompt("one", "three"))
    }

    #[test]
    fn the_tokens_of_the_model_mark_what_stands_before_and_after() {
        assert_eq!(
            prompt(&["<fim_suffix>", "<fim_prefix>", "<fim_middle>"]).as_deref(),
            Some("<fim_prefix>one<fim_suffix>three<fim_middle>")
        );
        assert_eq!(
            prompt(&["[PREFIX]", "[SUFFIX]"]).as_deref(),
            Some("[SUFFIX]three[PREFIX]one")
        );
    }

    #[test]
    fn a_model_without_all_of_them_is_not_made_for_it() {
        assert_eq!(prompt(&[]), None);
        assert_eq!(prompt(&["<fim_prefix>", "<fim_middle>"]), None);
    }
}
