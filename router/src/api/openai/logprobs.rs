//! Builds the log-probabilities of chats and of completions, which have different forms.

use gridwork_engine::{GeneratedToken, PromptLogprob, TopToken};
use serde_json::{Map, Value};

use super::choice::Echo;
use super::prompt_logprobs::finite;
use super::response::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};
use crate::tokenizing::token_text::TokenTexts;

/// Entry of a chat's log-probabilities for one generated token.
pub fn chat_entry(texts: TokenTexts<'_>, token: &GeneratedToken) -> TokenLogprob {
    let (text, bytes) = texts.text_and_bytes(token.id);
    let top_logprobs = token.top.iter().map(|top| {
        let (token, bytes) = texts.text_and_bytes(top.id);
        TopLogprob {
            token,
            logprob: finite(Some(top.logprob)),
            bytes,
        }
    });
    TokenLogprob {
        token: text,
        logprob: finite(token.logprob),
        bytes,
        top_logprobs: top_logprobs.collect(),
    }
}

impl ChatLogprobs {
    pub fn push(&mut self, texts: TokenTexts<'_>, token: &GeneratedToken) {
        self.content.push(chat_entry(texts, token));
    }
}

impl CompletionLogprobs {
    /// Adds a generated token. `offset`: number of characters of the text before it.
    pub fn push(&mut self, texts: TokenTexts<'_>, token: &GeneratedToken, offset: u64) {
        let (text, _) = texts.text_and_bytes(token.id);
        let logprob = finite(token.logprob);
        self.tokens.push(text);
        self.token_logprobs.push(Some(logprob));
        self.top_logprobs
            .push(Some(alternatives(texts, (token.id, logprob), &token.top)));
        self.text_offset.push(offset);
    }

    /// Adds the prompt's tokens, with their log-probabilities where they are known.
    pub fn push_prompt(&mut self, texts: TokenTexts<'_>, echo: &Echo, known: &[PromptLogprob]) {
        for (position, &id) in echo.ids.iter().enumerate() {
            let (text, _) = texts.text_and_bytes(id);
            let known = known.get(position);
            let logprob = known.and_then(|known| known.logprob);
            let logprob = logprob.map(|logprob| finite(Some(logprob)));
            let tops = known.map_or(&[][..], |known| &known.top);
            self.tokens.push(text);
            self.token_logprobs.push(logprob);
            self.top_logprobs
                .push(logprob.map(|logprob| alternatives(texts, (id, logprob), tops)));
            let offset = echo.offsets.get(position).copied();
            self.text_offset.push(offset.unwrap_or_default());
        }
    }

    /// Splits off the last tokens, whose text begins at `offset` or after it.
    pub fn split_off(&mut self, offset: u64) -> Self {
        let begins_before = |begin: &u64| *begin < offset;
        let at = self.text_offset.iter().rposition(begins_before);
        let at = at.map_or(0, |last| last + 1);
        Self {
            tokens: self.tokens.split_off(at),
            token_logprobs: self.token_logprobs.split_off(at),
            top_logprobs: self.top_logprobs.split_off(at),
            text_offset: self.text_offset.split_off(at),
        }
    }

    /// Ends the text at `num_chars` characters: tokens whose text was cut off get this offset.
    pub fn end_at(&mut self, num_chars: u64) {
        for offset in &mut self.text_offset {
            *offset = (*offset).min(num_chars);
        }
    }
}

/// Log-probabilities of the most likely tokens at a position and of the token that stands there, by their texts.
fn alternatives(texts: TokenTexts<'_>, own: (u32, f32), tops: &[TopToken]) -> Map<String, Value> {
    let mut alternatives = Map::new();
    let tops = tops.iter().map(|top| (top.id, finite(Some(top.logprob))));
    for (id, logprob) in tops.chain([own]) {
        // Two tokens may have the same text; the more likely one is kept.
        let (text, _) = texts.text_and_bytes(id);
        alternatives
            .entry(text)
            .or_insert_with(|| shortest(logprob));
    }
    alternatives
}

/// Shortest decimal number that reads back as this `f32`. Converting to `f64` would add meaningless digits.
fn shortest(logprob: f32) -> Value {
    let number: f64 = logprob.to_string().parse().unwrap_or(f64::from(logprob));
    Value::from(number)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use gridwork_engine::TopToken;
    use serde_json::json;
    use tokenizers::Tokenizer;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "added_tokens": [],
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"Ġa": 0, "b": 1, "Ã": 2, "Â": 3}, "merges": []},
        });
        Tokenizer::from_str(&json.to_string()).unwrap()
    }

    fn token(id: u32, logprob: f32, top: &[(u32, f32)]) -> GeneratedToken {
        let top = top.iter().map(|&(id, logprob)| TopToken { id, logprob });
        GeneratedToken {
            id,
            text: String::new(),
            logprob: Some(logprob),
            offset_chars: 0,
            holds_text: false,
            special: false,
            top: top.collect(),
            finish: None,
        }
    }

    #[test]
    fn a_chats_entries_have_text_bytes_and_alternatives() {
        let tokenizer = tokenizer();
        let mut logprobs = ChatLogprobs::default();
        let tops = [(0, -0.1), (2, f32::NEG_INFINITY)];
        logprobs.push(TokenTexts::new(&tokenizer), &token(0, -0.1, &tops));
        assert_eq!(
            serde_json::to_value(&logprobs).unwrap().to_string(),
            json!({"content": [{"token": " a", "logprob": -0.1f32, "bytes": [32, 97], "top_logprobs": [
                {"token": " a", "logprob": -0.1f32, "bytes": [32, 97]},
                {"token": "\u{FFFD}", "logprob": -9999.0, "bytes": [195]},
            ]}]})
            .to_string()
        );
    }

    #[test]
    fn a_completions_lists_have_the_same_length_and_order() {
        let tokenizer = tokenizer();
        let texts = TokenTexts::new(&tokenizer);
        let mut logprobs = CompletionLogprobs::default();
        let echo = Echo {
            text: " ab".into(),
            ids: vec![0, 1],
            offsets: vec![0, 2],
        };
        let known = PromptLogprob {
            logprob: Some(-0.5),
            top: vec![TopToken {
                id: 0,
                logprob: -0.25,
            }],
        };
        logprobs.push_prompt(texts, &echo, &[PromptLogprob::default(), known]);
        logprobs.push(texts, &token(1, -1.5, &[(2, -0.2), (3, -0.3)]), 3);
        let json = serde_json::to_string(&logprobs).unwrap();
        assert_eq!(
            json,
            concat!(
                r#"{"tokens":[" a","b","b"],"token_logprobs":[null,-0.5,-1.5],"#,
                "\"top_logprobs\":[null,{\" a\":-0.25,\"b\":-0.5},{\"\u{FFFD}\":-0.2,\"b\":-1.5}],",
                r#""text_offset":[0,2,3]}"#
            )
        );
    }
}
