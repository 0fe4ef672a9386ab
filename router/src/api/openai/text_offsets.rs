//! Offsets of tokens in a text, in characters. All tokens of one character have its offset.

use crate::tokenizing::token_text::TokenTexts;

/// Offsets of the tokens `ids` that `text` was tokenized to. Special tokens need not be part of the text. `None` when
/// the tokens' bytes differ from the text's, because the tokenizer normalized the text.
pub fn of_text(texts: TokenTexts<'_>, ids: &[u32], text: &str) -> Option<Vec<u64>> {
    let mut walk = Walk::new(texts, text);
    let starts: Option<Vec<usize>> = ids.iter().map(|&id| walk.exactly(id)).collect();
    let starts = starts.filter(|_| walk.rest().is_empty())?;
    Some(of_bytes(text, starts.into_iter()))
}

/// Offsets of the tokens `ids` that `text` was decoded from, including special ones.
pub fn of_decoded(texts: TokenTexts<'_>, ids: &[u32], text: &str) -> Vec<u64> {
    let bytes: Vec<Vec<u8>> = ids.iter().map(|&id| texts.bytes(id)).collect();
    let whole = bytes.concat();
    if String::from_utf8_lossy(&whole) == text {
        let starts = bytes.iter().scan(0, |at, bytes| {
            let start = *at;
            *at += bytes.len();
            Some(start)
        });
        return of_lossy_bytes(&whole, starts);
    }
    let mut walk = Walk::new(texts, text);
    let starts: Vec<usize> = ids.iter().map(|&id| walk.as_far_as_possible(id)).collect();
    of_bytes(text, starts.into_iter())
}

/// Offsets in characters of tokens that begin at these bytes of `text`, in ascending order.
pub fn of_bytes(text: &str, starts: impl Iterator<Item = usize>) -> Vec<u64> {
    of_lossy_bytes(text.as_bytes(), starts)
}

/// Offsets in characters of tokens that begin at these bytes, in ascending order. Each invalid piece of UTF-8 counts as
/// one U+FFFD.
fn of_lossy_bytes(bytes: &[u8], starts: impl Iterator<Item = usize>) -> Vec<u64> {
    // Byte offset of each character's end.
    let mut ends = bytes
        .utf8_chunks()
        .scan(0, |at, chunk| {
            let characters = chunk.valid().chars().map(char::len_utf8);
            let invalid = Some(chunk.invalid().len()).filter(|len| *len > 0);
            let ends = characters.chain(invalid).map(|len| {
                *at += len;
                *at
            });
            Some(ends.collect::<Vec<_>>())
        })
        .flatten()
        .peekable();
    let mut num_chars = 0;
    starts
        .map(|start| {
            while ends.next_if(|end| *end <= start).is_some() {
                num_chars += 1;
            }
            num_chars
        })
        .collect()
}

/// Walks through a text, token by token.
struct Walk<'a> {
    texts: TokenTexts<'a>,
    text: &'a [u8],
    at: usize,
    /// True if a token has been found in the text yet.
    has_begun: bool,
}

impl<'a> Walk<'a> {
    fn new(texts: TokenTexts<'a>, text: &'a str) -> Self {
        Self {
            texts,
            text: text.as_bytes(),
            at: 0,
            has_begun: false,
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Offset of the token; `None` when the text does not continue with it.
    fn exactly(&mut self, id: u32) -> Option<usize> {
        let start = self.at;
        let bytes = self.texts.bytes(id);
        let rest = self.rest();
        if rest.starts_with(&bytes) {
            self.at += bytes.len();
        } else if self.texts.is_special(id) {
            return Some(start);
        } else if let [b' ', word @ ..] = &bytes[..]
            && !self.has_begun
            && rest.starts_with(word)
        {
            // SentencePiece adds a space before the text, and decoding removes it.
            self.at += word.len();
        } else {
            return None;
        }
        self.has_begun = true;
        Some(start)
    }

    /// Offset of the token. One that the text does not continue with gets the end of the token before it.
    fn as_far_as_possible(&mut self, id: u32) -> usize {
        const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();
        let start = self.at;
        if self.exactly(id).is_none() && self.rest().starts_with(REPLACEMENT) {
            // A byte that is not valid UTF-8.
            self.at += REPLACEMENT.len();
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use serde_json::json;
    use tokenizers::Tokenizer;

    use super::*;

    /// A tokenizer with the tokens 0 to 5 for `a b é😀`. Token 6 alone is half a character; 9 is special.
    fn byte_level() -> Tokenizer {
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let vocab = json!({"a": 0, "Ġb": 1, "Ġ": 2, "Ã©": 3, "ðŁ": 4, "ĺĢ": 5, "Ã": 6, "<7>": 7, "<8>": 8, "<s>": 9});
        tokenizer(vocab, decoder)
    }

    fn sentence_piece() -> Tokenizer {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let vocab = json!({"▁Hello": 0, "▁you": 1, "<0xF0>": 2, "<0x9F>": 3, "<0x98>": 4, "<0x80>": 5, "ly": 6, "<7>": 7, "<8>": 8, "<s>": 9});
        tokenizer(vocab, decoder)
    }

    fn tokenizer(vocab: serde_json::Value, decoder: serde_json::Value) -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": decoder,
            "added_tokens": [{"id": 9, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Tokenizer::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn tokens_of_one_character_have_its_offset() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        let ids = [0, 1, 2, 3, 4, 5, 0];
        let text = "a b é😀a";
        let expected = Some(vec![0, 1, 3, 4, 5, 5, 6]);
        assert_eq!(of_text(texts, &ids, text), expected);
        assert_eq!(Some(of_decoded(texts, &ids, text)), expected);
    }

    #[test]
    fn special_tokens_count_when_the_text_shows_them() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        let ids = [9, 0, 9, 1];
        assert_eq!(of_text(texts, &ids, "a b"), Some(vec![0, 0, 1, 1]));
        assert_eq!(of_text(texts, &ids, "a<s> b"), Some(vec![0, 0, 1, 4]));
        let decoded = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(of_decoded(texts, &ids, &decoded), [0, 3, 4, 7]);
    }

    #[test]
    fn invalid_bytes_count_as_one_character() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        let ids = [6, 0, 4, 0];
        let decoded = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(decoded, "\u{FFFD}a\u{FFFD}a");
        assert_eq!(of_decoded(texts, &ids, &decoded), [0, 1, 2, 3]);
    }

    #[test]
    fn the_space_before_a_text_is_not_counted() {
        let tokenizer = sentence_piece();
        let texts = TokenTexts::new(&tokenizer);
        for (ids, expected) in [
            (vec![0, 6, 1], vec![0, 5, 7]),
            (vec![0, 2, 3, 4, 5, 1], vec![0, 5, 5, 5, 5, 6]),
            (vec![9, 0, 1], vec![0, 3, 9]),
            (vec![0, 2, 3, 1], vec![0, 5, 6, 7]),
        ] {
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(of_decoded(texts, &ids, &decoded), expected, "{decoded}");
        }
        assert_eq!(of_text(texts, &[9, 0, 1], "Hello you"), Some(vec![0, 0, 5]));
    }

    #[test]
    fn a_normalized_text_has_no_offsets() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        assert_eq!(of_text(texts, &[0, 1], "A B"), None);
        assert_eq!(of_text(texts, &[0], "a "), None);
        assert_eq!(of_bytes("é b", [0, 2].into_iter()), [0, 1]);
    }
}
