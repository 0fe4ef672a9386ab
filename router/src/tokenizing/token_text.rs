//! Text and bytes of single tokens, as log-probabilities report them.

use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;

/// Lookup of single tokens' texts and bytes.
#[derive(Debug, Clone, Copy)]
pub struct TokenTexts<'a> {
    tokenizer: &'a Tokenizer,
    byte_level: bool,
}

impl<'a> TokenTexts<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            byte_level: tokenizer.get_decoder().is_some_and(is_byte_level),
        }
    }

    /// Bytes of a token. They need not be whole characters, and are empty for an unknown id.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let added = self.tokenizer.get_added_vocabulary();
        if let Some(text) = added.simple_id_to_token(id) {
            return text.into_bytes();
        }
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Vec::new();
        };
        if self.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
            return bytes.unwrap_or_else(|| token.into_bytes());
        }
        match fallback_byte(&token) {
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        }
    }

    /// True if the token is one of the tokenizer's special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .is_some_and(|text| added.is_special_token(&text))
    }

    /// Text and bytes of a token. Parts of characters are U+FFFD in the text.
    pub fn text_and_bytes(&self, id: u32) -> (String, Vec<u8>) {
        let bytes = self.bytes(id);
        (String::from_utf8_lossy(&bytes).into_owned(), bytes)
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// Byte for a character of GPT-2's byte-level alphabet. Printable bytes of Latin-1 stand for themselves; the others
/// have the characters from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Byte of a token like `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::str::FromStr;

    use serde_json::json;

    use super::*;

    fn tokenizer(vocab: serde_json::Value, decoder: serde_json::Value) -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": decoder,
            "added_tokens": [{"id": 9, "content": "<é>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Tokenizer::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let bytes: Vec<u8> = (0..0x144)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes.into_iter().collect::<HashSet<_>>().len(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn byte_level_tokens_are_their_bytes() {
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let tokenizer = tokenizer(json!({"ĠParis": 0, "Ã": 1, "<é>": 9}), decoder);
        let texts = TokenTexts::new(&tokenizer);
        assert_eq!(
            texts.text_and_bytes(0),
            (" Paris".into(), b" Paris".to_vec())
        );
        assert_eq!(texts.text_and_bytes(1), ("\u{FFFD}".into(), vec![0xC3]));
        assert_eq!(texts.text_and_bytes(9).0, "<é>");
        assert_eq!(texts.text_and_bytes(100), (String::new(), Vec::new()));
    }

    #[test]
    fn sentence_piece_tokens_keep_their_space() {
        let decoder =
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
        let tokenizer = tokenizer(json!({"▁Hello": 0, "<0x0A>": 1, "<0xx>": 2}), decoder);
        let texts = TokenTexts::new(&tokenizer);
        assert_eq!(texts.text_and_bytes(0).0, " Hello");
        assert_eq!(texts.text_and_bytes(1), ("\n".into(), vec![10]));
        assert_eq!(texts.text_and_bytes(2).0, "<0xx>");
    }
}
