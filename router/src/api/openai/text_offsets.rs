//! Where tokens begin in a text, in characters. All tokens of one character begin where it does.

use crate::tokenizing::token_text::TokenTexts;

/// Of tokens that were made of `text`, which may have special tokens around them that it does not show. `None` when their
/// bytes are not the text's: then the tokenizer has changed the text before cutting it.
pub fn of_text(texts: TokenTexts<'_>, ids: &[u32], text: &str) -> Option<Vec<u64>> {
    let mut walk = Walk::new(texts, text);
    let starts: Option<Vec<usize>> = ids.iter().map(|&id| walk.exactly(id)).collect();
    let starts = starts.filter(|_| walk.rest().is_empty())?;
    Some(of_bytes(text, starts.into_iter()))
}

/// Of tokens that `text` was decoded from, special ones included.
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

/// Of tokens that begin at these bytes of `text`, in ascending order.
pub fn of_bytes(text: &str, starts: impl Iterator<Item = usize>) -> Vec<u64> {
    of_lossy_bytes(text.as_bytes(), starts)
}

/// Of tokens that begin at these bytes, in ascending order; what is no UTF-8 shows as one U+FFFD for each piece.
fn of_lossy_bytes(bytes: &[u8], starts: impl Iterator<Item = usize>) -> Vec<u64> {
    // The byte behind each character.
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

/// Goes through a text, token by token.
struct Walk<'a> {
    texts: TokenTexts<'a>,
    text: &'a [u8],
    at: usize,
    /// Whether a token has been found in it yet.
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

    /// Where the token begins; `None` when the text does not go on with it.
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
            // SentencePiece puts a space before a text, and decoding takes it away again.
            self.at += word.len();
        } else {
            return None;
        }
        self.has_begun = true;
        Some(start)
    }

    /// The same; a token that the text does not go on with begins where the last one has ended.
    fn as_far_as_possible(&mut self, id: u32) -> usize {
        const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();
        let start = self.at;
        if self.exactly(id).is_none() && self.rest().starts_with(REPLACEMENT) {
            // A byte that is no character.
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

    /// Tokens 0 to 5 of `a b é😀`, 6 alone is no character, 9 is special.
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
    fn tokens_of_one_character_begin_where_it_does() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        let ids = [0, 1, 2, 3, 4, 5, 0];
        let text = "a b é😀a";
        let expected = Some(vec![0, 1, 3, 4, 5, 5, 6]);
        assert_eq!(of_text(texts, &ids, text), expected);
        assert_eq!(Some(of_decoded(texts, &ids, text)), expected);
    }

    #[test]
    fn special_tokens_take_room_where_the_text_shows_them() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        let ids = [9, 0, 9, 1];
        assert_eq!(of_text(texts, &ids, "a b"), Some(vec![0, 0, 1, 1]));
        assert_eq!(of_text(texts, &ids, "a<s> b"), Some(vec![0, 0, 1, 4]));
        let decoded = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(of_decoded(texts, &ids, &decoded), [0, 3, 4, 7]);
    }

    #[test]
    fn bytes_that_are_no_character_show_as_one() {
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
    fn a_text_that_the_tokenizer_has_changed_is_left_to_it() {
        let tokenizer = byte_level();
        let texts = TokenTexts::new(&tokenizer);
        assert_eq!(of_text(texts, &[0, 1], "A B"), None);
        assert_eq!(of_text(texts, &[0], "a "), None);
        assert_eq!(of_bytes("é b", [0, 2].into_iter()), [0, 1]);
    }
}
