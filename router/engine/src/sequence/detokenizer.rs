//! Turns generated tokens into text, one at a time. The concatenated pieces equal the decoding of all tokens.
//!
//! A character may span several tokens. Its text comes with the token that completes it.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::request::GenerationRequest;
use crate::token_table::{TokenTable, special_tokens};

/// Decoding tables that all sequences share: the tokenizer and, where its decoder works on bytes, the texts of all
/// tokens.
pub(crate) struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    /// True if each token is special, by token id.
    special: Vec<bool>,
    /// Texts of all tokens when the decoder is byte-level. Decoding is then concatenation.
    texts: Option<Arc<TokenTable>>,
}

impl Vocabulary {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Vocabulary {
            special: special_tokens(&tokenizer),
            texts: TokenTable::of_byte_level(&tokenizer).map(Arc::new),
            tokenizer,
        }
    }

    /// Texts of all tokens, as grammars need them. Found by decoding where the decoder does not work on bytes, which
    /// takes about a second for a large vocabulary.
    pub fn token_table(&self) -> Arc<TokenTable> {
        match &self.texts {
            Some(texts) => texts.clone(),
            None => Arc::new(TokenTable::of(&self.tokenizer)),
        }
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// A special token's name in a text, `<|im_start|>` for example.
    pub fn special_text(&self, id: u32) -> Option<String> {
        self.is_special(id)
            .then(|| self.tokenizer.id_to_token(id))
            .flatten()
    }
}

/// Special tokens that a text leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Skips {
    special: bool,
    /// Special tokens that are shown even so.
    shown: Arc<[u32]>,
}

impl Skips {
    pub fn of(request: &GenerationRequest) -> Self {
        Skips {
            special: request.skip_special_tokens,
            shown: Arc::clone(&request.shown_special_tokens),
        }
    }

    fn skips(&self, vocabulary: &Vocabulary, id: u32) -> bool {
        self.special && vocabulary.is_special(id) && !self.shown.contains(&id)
    }
}

/// Incremental detokenizer of one sequence.
pub(crate) enum Detokenizer {
    Bytes(ByteLevel),
    Window(Window),
}

impl Detokenizer {
    /// `prompt` holds the tokens before the first generated one. Its end decides whether a leading space is kept.
    pub fn new(vocabulary: &Vocabulary, prompt: &[u32], skips: Skips) -> Self {
        if vocabulary.texts.is_some() {
            Detokenizer::Bytes(ByteLevel {
                pending: Vec::new(),
                num_earlier_chars: 0,
                skips,
            })
        } else {
            Detokenizer::Window(Window::new(vocabulary, prompt, skips))
        }
    }

    /// Adds a token. Returns the text that became certain with it.
    pub fn push(&mut self, vocabulary: &Vocabulary, id: u32) -> String {
        match self {
            Detokenizer::Bytes(bytes) => bytes.push(vocabulary, id),
            Detokenizer::Window(window) => window.push(vocabulary, id),
        }
    }

    /// Number of characters at the beginning of the last [`Detokenizer::push`] that stem from earlier tokens: bytes
    /// that waited to become a character and did not.
    pub fn num_earlier_chars(&self) -> usize {
        match self {
            Detokenizer::Bytes(bytes) => bytes.num_earlier_chars,
            Detokenizer::Window(window) => window.num_earlier_chars,
        }
    }

    /// The rest of the text after the last token. An incomplete character becomes U+FFFD.
    pub fn flush(&mut self, vocabulary: &Vocabulary) -> String {
        match self {
            Detokenizer::Bytes(bytes) => {
                String::from_utf8_lossy(&std::mem::take(&mut bytes.pending)).into_owned()
            }
            Detokenizer::Window(window) => window.flush(vocabulary),
        }
    }
}

/// Detokenizer for byte-level decoders: concatenates bytes and returns the complete characters.
pub(crate) struct ByteLevel {
    /// Beginning of an incomplete character, up to three bytes.
    pending: Vec<u8>,
    num_earlier_chars: usize,
    skips: Skips,
}

impl ByteLevel {
    fn push(&mut self, vocabulary: &Vocabulary, id: u32) -> String {
        self.num_earlier_chars = 0;
        if self.skips.skips(vocabulary, id) {
            return String::new();
        }
        let Some(bytes) = vocabulary.texts.as_ref().map(|texts| texts.text(id)) else {
            return String::new();
        };
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return text.to_owned();
        }
        let num_earlier_bytes = self.pending.len();
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid_to = done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[done..valid_to]));
                    done = valid_to;
                    match error.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            done += invalid;
                        }
                        None => break,
                    }
                }
            }
        }
        // The earlier bytes, up to three, begin a character. They are invalid, or belong to the bytes that follow.
        let is_cut_off = |chunk: std::str::Utf8Chunk<'_>| {
            chunk.valid().is_empty() && chunk.invalid().len() <= num_earlier_bytes
        };
        let first = self.pending[..done].utf8_chunks().next();
        self.num_earlier_chars =
            usize::from(num_earlier_bytes > 0 && first.is_some_and(is_cut_off));
        self.pending.drain(..done);
        text
    }
}

/// Detokenizer for every other decoder: decodes a short window of tokens twice, without and with the new token, and
/// returns the difference. The window begins with tokens whose text is known, since decoders treat the beginning of a
/// text differently (leading spaces).
pub(crate) struct Window {
    ids: Vec<u32>,
    /// Number of leading `ids` whose text has been returned.
    num_shown: usize,
    shown_text: String,
    num_earlier_chars: usize,
    /// Number of U+FFFD at the end of the text that may still become a character.
    num_waiting: usize,
    skips: Skips,
}

/// Number of prompt tokens at the beginning of the window: enough for a character that spans byte tokens.
const CONTEXT_TOKENS: usize = 6;

impl Window {
    fn new(vocabulary: &Vocabulary, prompt: &[u32], skips: Skips) -> Self {
        let mut window = Window {
            ids: prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec(),
            num_shown: 0,
            shown_text: String::new(),
            num_earlier_chars: 0,
            num_waiting: 0,
            skips,
        };
        // A window that begins inside a character would spoil the bytes that follow it.
        loop {
            window.shown_text = window.decode(vocabulary, &window.ids);
            if window.ids.is_empty() || !window.shown_text.starts_with(char::REPLACEMENT_CHARACTER)
            {
                break;
            }
            window.ids.remove(0);
        }
        window.num_shown = window.ids.len();
        window
    }

    fn decode(&self, vocabulary: &Vocabulary, ids: &[u32]) -> String {
        let tokenizer = &vocabulary.tokenizer;
        let text = if self.skips.special && !self.skips.shown.is_empty() {
            let kept = ids.iter().copied();
            let kept: Vec<u32> = kept
                .filter(|id| !self.skips.skips(vocabulary, *id))
                .collect();
            tokenizer.decode(&kept, false)
        } else {
            tokenizer.decode(ids, self.skips.special)
        };
        text.unwrap_or_default()
    }

    fn push(&mut self, vocabulary: &Vocabulary, id: u32) -> String {
        self.num_earlier_chars = 0;
        self.ids.push(id);
        let text = self.decode(vocabulary, &self.ids);
        let is_replacement = |c: &char| *c == char::REPLACEMENT_CHARACTER;
        let num_waiting = text.chars().rev().take_while(is_replacement).count();
        if num_waiting > 0 {
            self.num_waiting = num_waiting;
            return String::new();
        }
        let new = self.show(vocabulary, &text);
        let were_none = new.chars().take_while(is_replacement).count();
        self.num_earlier_chars = were_none.min(std::mem::take(&mut self.num_waiting));
        new
    }

    fn flush(&mut self, vocabulary: &Vocabulary) -> String {
        let text = self.decode(vocabulary, &self.ids);
        self.show(vocabulary, &text)
    }

    /// Returns the part of `text`, the decoded window, that has not been shown, and moves the window.
    fn show(&mut self, vocabulary: &Vocabulary, text: &str) -> String {
        let Some(new) = text
            .strip_prefix(self.shown_text.as_str())
            .filter(|new| !new.is_empty())
        else {
            return String::new();
        };
        let new = new.to_owned();
        // The text just returned begins and ends at whole characters: a good beginning for the next window.
        self.ids.drain(..self.num_shown);
        self.num_shown = self.ids.len();
        self.shown_text = self.decode(vocabulary, &self.ids);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_table::byte_level_alphabet;
    use proptest::prelude::*;
    use std::str::FromStr;

    /// A byte-level vocabulary: one token for each byte, and a special one.
    fn byte_level() -> Vocabulary {
        let mut alphabet: Vec<(char, u8)> = byte_level_alphabet().into_iter().collect();
        alphabet.sort_by_key(|(_, byte)| *byte);
        let vocab: Vec<String> = alphabet
            .iter()
            .map(|(c, byte)| format!("{}:{byte}", json_string(&c.to_string())))
            .collect();
        tokenizer(&format!(
            r#"{{"version":"1.0","added_tokens":[{{"id":256,"content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],
            "decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},
            "model":{{"type":"BPE","vocab":{{{}}},"merges":[]}}}}"#,
            vocab.join(",")
        ))
    }

    /// A SentencePiece-like vocabulary: word pieces with U+2581 for spaces, byte fallback, leading space stripped.
    fn sentence_piece() -> Vocabulary {
        let mut vocab: Vec<String> = (0..=255u8)
            .map(|byte| format!("\"<0x{byte:02X}>\":{byte}"))
            .collect();
        for (i, piece) in ["\u{2581}Hello", "\u{2581}world", "ly", "\u{2581}", "é"]
            .iter()
            .enumerate()
        {
            vocab.push(format!("{}:{}", json_string(piece), 256 + i));
        }
        tokenizer(&format!(
            r#"{{"version":"1.0","added_tokens":[],
            "decoder":{{"type":"Sequence","decoders":[{{"type":"Replace","pattern":{{"String":"▁"}},"content":" "}},{{"type":"ByteFallback"}},{{"type":"Fuse"}},{{"type":"Strip","content":" ","start":1,"stop":0}}]}},
            "model":{{"type":"BPE","vocab":{{{}}},"merges":[]}}}}"#,
            vocab.join(",")
        ))
    }

    fn json_string(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn tokenizer(json: &str) -> Vocabulary {
        let json = json.replacen('{', r#"{"truncation":null,"padding":null,"normalizer":null,"pre_tokenizer":null,"post_processor":null,"#, 1);
        Vocabulary::new(Arc::new(Tokenizer::from_str(&json).expect("a tokenizer")))
    }

    fn pieces(vocabulary: &Vocabulary, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(vocabulary, prompt, skips());
        let mut pieces: Vec<String> = ids
            .iter()
            .map(|id| detokenizer.push(vocabulary, *id))
            .collect();
        pieces.push(detokenizer.flush(vocabulary));
        pieces
    }

    #[test]
    fn a_character_of_several_tokens_is_shown_with_the_last() {
        let vocabulary = byte_level();
        let emoji: Vec<u32> = "a😀b".bytes().map(u32::from).collect();
        assert_eq!(
            pieces(&vocabulary, &[], &emoji),
            ["a", "", "", "", "😀", "b", ""]
        );
    }

    #[test]
    fn byte_fallback_is_held_until_the_character_is_complete() {
        let vocabulary = sentence_piece();
        let mut ids = vec![256];
        ids.extend("😀".bytes().map(u32::from));
        ids.push(258);
        assert_eq!(
            pieces(&vocabulary, &[], &ids),
            ["Hello", "", "", "", "😀", "ly", ""]
        );
    }

    #[test]
    fn a_leading_space_is_kept_after_a_prompt_and_dropped_at_the_start() {
        let vocabulary = sentence_piece();
        assert_eq!(
            pieces(&vocabulary, &[256], &[257, 258]).concat(),
            " worldly"
        );
        assert_eq!(pieces(&vocabulary, &[], &[257, 258]).concat(), "worldly");
    }

    fn skips() -> Skips {
        Skips {
            special: true,
            shown: Arc::new([]),
        }
    }

    /// Offsets of the tokens' texts, in characters.
    fn offsets(vocabulary: &Vocabulary, ids: &[u32]) -> Vec<usize> {
        let mut detokenizer = Detokenizer::new(vocabulary, &[], skips());
        let mut num_chars = 0;
        ids.iter()
            .map(|id| {
                let before = num_chars;
                num_chars += detokenizer.push(vocabulary, *id).chars().count();
                before + detokenizer.num_earlier_chars()
            })
            .collect()
    }

    #[test]
    fn invalid_bytes_count_for_their_own_token() {
        let vocabulary = byte_level();
        let [a, b] = [u32::from(b'a'), u32::from(b'b')];
        for (ids, expected) in [
            (vec![0xF0, 0x9F, 0x98, 0x80, a], vec![0, 0, 0, 0, 1]),
            (vec![0xF0, 0x9F, a, b], vec![0, 0, 1, 2]),
            (vec![0xF0, 0x9F, 0xC3, 0xA9, a], vec![0, 0, 1, 1, 2]),
            (vec![0x80, a, 0xC3, 256, a], vec![0, 1, 2, 2, 3]),
        ] {
            assert_eq!(offsets(&vocabulary, &ids), expected, "{ids:?}");
        }
        let vocabulary = sentence_piece();
        for (ids, expected) in [
            (
                vec![256, 0xF0, 0x9F, 0x98, 0x80, 258],
                vec![0, 5, 5, 5, 5, 6],
            ),
            (vec![256, 0xF0, 258], vec![0, 5, 6]),
        ] {
            assert_eq!(offsets(&vocabulary, &ids), expected, "{ids:?}");
        }
    }

    #[test]
    fn special_tokens_that_are_shown_stay() {
        for vocabulary in [byte_level(), sentence_piece()] {
            let special = (0..300).find(|id| vocabulary.is_special(*id));
            let Some(special) = special else { continue };
            let name = vocabulary.special_text(special).expect("a name");
            let skips = Skips {
                special: true,
                shown: Arc::new([special]),
            };
            let mut detokenizer = Detokenizer::new(&vocabulary, &[], skips);
            let mut text = detokenizer.push(&vocabulary, special);
            text.push_str(&detokenizer.flush(&vocabulary));
            assert_eq!(text, name);
        }
    }

    #[test]
    fn special_tokens_are_left_out() {
        let vocabulary = byte_level();
        assert!(vocabulary.is_special(256));
        assert_eq!(pieces(&vocabulary, &[], &[104, 256, 105]).concat(), "hi");
    }

    #[test]
    fn an_unknown_token_id_gives_no_text() {
        assert_eq!(pieces(&byte_level(), &[], &[104, 9999, 105]).concat(), "hi");
    }

    proptest! {
        #[test]
        fn byte_level_pieces_concatenate_to_the_whole_decoding(ids in prop::collection::vec(0u32..257, 0..40)) {
            let vocabulary = byte_level();
            let whole = vocabulary.tokenizer.decode(&ids, true).expect("decodes");
            prop_assert_eq!(pieces(&vocabulary, &[], &ids).concat(), whole);
        }

        #[test]
        fn window_pieces_concatenate_to_the_whole_decoding(text in "[aé😀 漢]{0,12}") {
            let vocabulary = sentence_piece();
            let mut ids = vec![256];
            ids.extend(text.bytes().map(u32::from));
            let whole = vocabulary.tokenizer.decode(&ids, true).expect("decodes");
            prop_assert_eq!(pieces(&vocabulary, &[], &ids).concat(), whole);
        }
    }
}
