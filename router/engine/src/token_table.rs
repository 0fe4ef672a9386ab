//! Texts of all tokens, as bytes. The detokenizer concatenates them, and grammars tell from them the tokens that may
//! come next.

use std::collections::HashMap;

use gridwork_proto::v1;
use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;

/// Text before the tokens whose texts are found by decoding: decoders treat the beginning of a text differently.
const ANCHOR: &str = "a";

/// Texts of all tokens, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTable {
    texts: Vec<Box<[u8]>>,
    special: Vec<bool>,
}

impl TokenTable {
    /// Texts of a tokenizer's tokens. Where the decoder works on bytes they are exact; elsewhere they are what
    /// decoding a token behind another one adds to the text, which takes about a second for a large vocabulary.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        match Self::of_byte_level(tokenizer) {
            Some(table) => table,
            None => Self::as_decoded(tokenizer),
        }
    }

    /// Exact texts, or `None` where the decoder does not work on bytes.
    pub(crate) fn of_byte_level(tokenizer: &Tokenizer) -> Option<Self> {
        if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return None;
        }
        let byte_of = byte_level_alphabet();
        let special = special_tokens(tokenizer);
        let text = |id| byte_level_text(&tokenizer.id_to_token(id).unwrap_or_default(), &byte_of);
        Some(TokenTable {
            texts: (0..special.len() as u32).map(text).collect(),
            special,
        })
    }

    fn as_decoded(tokenizer: &Tokenizer) -> Self {
        let special = special_tokens(tokenizer);
        let added = tokenizer.get_added_tokens_decoder();
        let anchor = tokenizer.encode_fast(ANCHOR, false);
        let anchor = anchor.map_or_else(|_| Vec::new(), |encoding| encoding.get_ids().to_vec());
        let before = tokenizer.decode(&anchor, false).unwrap_or_default();
        let text = |id: u32| -> Box<[u8]> {
            if let Some(token) = added.get(&id) {
                return token.content.as_bytes().into();
            }
            let name = tokenizer.id_to_token(id).unwrap_or_default();
            if let Some(byte) = byte_token(&name) {
                return [byte].into();
            }
            let ids = [anchor.as_slice(), &[id]].concat();
            let whole = tokenizer.decode(&ids, false).unwrap_or_default();
            let added = whole.strip_prefix(&before).unwrap_or_default();
            added.as_bytes().into()
        };
        TokenTable {
            texts: (0..special.len() as u32).map(text).collect(),
            special,
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// True if there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Text of a token; empty for an unknown one.
    pub fn text(&self, id: u32) -> &[u8] {
        self.texts.get(id as usize).map_or(&[], AsRef::as_ref)
    }

    /// True if a token is special, so that it is no part of a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The contract's form, for a model with `vocab_size` logits and tokens that end a sequence.
    pub fn message(&self, vocab_size: u32, end_ids: &[u32]) -> v1::TokenTable {
        let count = self.len().min(vocab_size as usize);
        v1::TokenTable {
            text: self.texts[..count].concat(),
            lengths: self.texts[..count]
                .iter()
                .map(|text| text.len() as u32)
                .collect(),
            special_ids: (0..count as u32)
                .filter(|id| self.is_special(*id))
                .collect(),
            end_ids: end_ids
                .iter()
                .copied()
                .filter(|id| *id < vocab_size)
                .collect(),
        }
    }
}

/// True for each token that is special, by id.
pub(crate) fn special_tokens(tokenizer: &Tokenizer) -> Vec<bool> {
    let added = tokenizer.get_added_tokens_decoder();
    let ids = tokenizer.get_vocab(true).into_values();
    let size = ids.chain(added.keys().copied()).max();
    let mut special = vec![false; size.map_or(0, |id| id as usize + 1)];
    for (id, token) in &added {
        special[*id as usize] = token.special;
    }
    special
}

/// The byte of a token such as `<0x0A>`, by which SentencePiece writes characters without a token.
fn byte_token(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The byte of each character of the byte-level alphabet, as GPT-2 defined it. Printable bytes of Latin-1 are their
/// own characters; the others are the characters from U+0100 on, in order.
pub(crate) fn byte_level_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            if printable(byte) {
                (char::from(byte), byte)
            } else {
                let stand_in = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
                next += 1;
                (stand_in, byte)
            }
        })
        .collect()
}

/// Bytes of a token. A token with characters outside the alphabet (an added token) is its own UTF-8.
fn byte_level_text(token: &str, byte_of: &HashMap<char, u8>) -> Box<[u8]> {
    token
        .chars()
        .map(|c| byte_of.get(&c).copied())
        .collect::<Option<Vec<u8>>>()
        .map_or_else(|| token.as_bytes().into(), Vec::into_boxed_slice)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    const ADDED: &str = r#"[{"id":5,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,
        "normalized":false,"special":true}]"#;

    fn pieces() -> Tokenizer {
        Tokenizer::from_str(&format!(
            r#"{{"version":"1.0","added_tokens":{ADDED},
            "decoder":{{"type":"Sequence","decoders":[
                {{"type":"Replace","pattern":{{"String":"▁"}},"content":" "}},{{"type":"ByteFallback"}},{{"type":"Fuse"}},
                {{"type":"Strip","content":" ","start":1,"stop":0}}]}},
            "model":{{"type":"BPE","byte_fallback":true,"vocab":{{"a":0,"▁b":1,"<0xC3>":2,"▁":3,"ä":4}},"merges":[]}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn pieces_have_their_spaces_and_single_bytes() {
        let table = TokenTable::of(&pieces());
        let texts: Vec<&[u8]> = (0..6).map(|id| table.text(id)).collect();
        let expected: [&[u8]; 6] = [b"a", b" b", &[0xC3], b" ", "ä".as_bytes(), b"</s>"];
        assert_eq!(texts, expected);
        assert!(table.is_special(5) && !table.is_special(0));
        assert_eq!(table.text(99), b"");
    }

    #[test]
    fn the_message_has_no_tokens_beyond_the_logits() {
        let message = TokenTable::of(&pieces()).message(3, &[2, 7]);
        assert_eq!(message.text, [b"a b".as_slice(), &[0xC3]].concat());
        assert_eq!(message.lengths, [1, 2, 1]);
        assert_eq!(message.special_ids, Vec::<u32>::new());
        assert_eq!(message.end_ids, [2]);
        assert_eq!(TokenTable::of(&pieces()).message(100, &[]).special_ids, [5]);
    }
}
