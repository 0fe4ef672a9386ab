//! Turns text into tokens: by the tokenizer's file, or by the shard where the tokenizer is Python code.

use std::sync::Arc;

use gridwork_engine::{ShardTokenizer, TokenizeError};
use tokenizers::Tokenizer;

use crate::error::{ApiError, ErrorKind};
use crate::tokenizing::token_bytes::max_bytes_per_token;
use crate::tokenizing::token_text::TokenTexts;
use crate::tokenizing::tokenizer_regex::SlowRegexes;
use crate::tokenizing::workers::{WorkError, WorkerPermit, run_with};

/// Tokenizer of texts. Cheap to clone.
#[derive(Clone)]
pub enum TextEncoder {
    Local {
        tokenizer: Arc<Tokenizer>,
        /// Maximum number of bytes of text for one token, if there is a maximum.
        max_bytes_per_token: Option<usize>,
        slow_regexes: SlowRegexes,
    },
    Shard {
        shard: ShardTokenizer,
        /// Knows the texts of tokens, but not the tokens of texts.
        texts: Arc<Tokenizer>,
    },
}

/// The tokens of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    pub ids: Vec<u32>,
    /// Byte range of each token's text.
    pub offsets: Vec<(usize, usize)>,
}

impl TokenizedText {
    /// Number of bytes of memory that it uses.
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.ids.as_slice()) + size_of_val(self.offsets.as_slice())
    }
}

impl TextEncoder {
    /// Returns the text of a token, if the tokenizer knows it.
    pub fn token_text(&self, id: u32) -> Option<String> {
        let (TextEncoder::Local { tokenizer, .. }
        | TextEncoder::Shard {
            texts: tokenizer, ..
        }) = self;
        tokenizer.id_to_token(id)
    }

    pub fn local(tokenizer: Arc<Tokenizer>, slow_regexes: SlowRegexes) -> Self {
        TextEncoder::Local {
            slow_regexes,
            max_bytes_per_token: max_bytes_per_token(&tokenizer),
            tokenizer,
        }
    }

    /// Maximum number of bytes of text for one token; `None` if unknown.
    pub fn max_bytes_per_token(&self) -> Option<usize> {
        match self {
            TextEncoder::Local {
                max_bytes_per_token,
                ..
            } => *max_bytes_per_token,
            TextEncoder::Shard { .. } => None,
        }
    }

    /// Tokenizes a text. `field` is its name in the request. `permit` is held meanwhile.
    pub async fn encode(
        &self,
        text: String,
        add_special_tokens: bool,
        field: &str,
        permit: WorkerPermit,
    ) -> Result<TokenizedText, ApiError> {
        let refused = |cause: &dyn std::fmt::Display| {
            ApiError::validation(field, format!("`{field}` cannot be tokenized: {cause}"))
        };
        match self {
            TextEncoder::Local {
                tokenizer,
                slow_regexes,
                ..
            } => {
                let (tokenizer, slow) = (tokenizer.clone(), slow_regexes.clone());
                let encoding = run_with(permit, move || {
                    slow.check(&text)?;
                    tokenizer.encode(text, add_special_tokens)
                });
                let encoded = encoding
                    .await
                    .map_err(|error| not_tokenized(error, field))?;
                let encoding = encoded.map_err(|error| refused(&error))?;
                Ok(TokenizedText {
                    ids: encoding.get_ids().to_vec(),
                    offsets: encoding.get_offsets().to_vec(),
                })
            }
            TextEncoder::Shard { shard, texts } => {
                let ids = shard.encode(text.clone(), add_special_tokens).await;
                drop(permit);
                let ids = ids.map_err(|error| match error {
                    TokenizeError::Refused(cause) => refused(&cause),
                    TokenizeError::Lost(_) => {
                        ApiError::new(ErrorKind::Unavailable, error.to_string())
                    }
                })?;
                let offsets = offsets(texts, &ids, &text);
                Ok(TokenizedText { ids, offsets })
            }
        }
    }
}

/// Error for a text that the tokenizer gave up on.
pub(crate) fn not_tokenized(error: WorkError, field: &str) -> ApiError {
    match error {
        // Oniguruma counts its steps, and the calling library panics at the limit.
        WorkError::Panicked(message) if message.starts_with("Onig") => ApiError::validation(
            field,
            format!(
                "`{field}` cannot be tokenized: a regular expression in the model's tokenizer.json takes too many \
                 steps for this text"
            ),
        ),
        WorkError::Panicked(message) => {
            ApiError::new(ErrorKind::Internal, format!("tokenizing failed: {message}"))
        }
        busy @ WorkError::Busy => busy.into(),
    }
}

/// Finds the byte ranges of tokens in their text. A token whose bytes do not follow in the text (a special
/// token, or a replacement) gets an empty range.
fn offsets(tokenizer: &Tokenizer, ids: &[u32], text: &str) -> Vec<(usize, usize)> {
    let texts = TokenTexts::new(tokenizer);
    let mut at = 0;
    ids.iter()
        .map(|&id| {
            let start = at;
            let bytes = texts.bytes(id);
            if text.as_bytes()[at..].starts_with(&bytes) {
                at += bytes.len();
            }
            (start, at)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn offsets_follow_the_text_and_skip_what_is_not_in_it() {
        // A tokenizer.json as written for tokenizers in Python: two ids for one text, and half characters.
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "Unigram", "unk_id": null, "byte_fallback": false,
                      "vocab": [["<s>", 0.0], ["a", 0.0], ["\u{120}b", 0.0], ["\u{c3}", 0.0], ["\u{a9}", 0.0],
                                ["a", 0.0], ["", 0.0]]}
        });
        let tokenizer = Tokenizer::from_str(&json.to_string()).unwrap();
        assert_eq!(
            offsets(&tokenizer, &[0, 1, 2, 3, 4, 6, 5], "a b\u{e9}a"),
            [(0, 0), (0, 1), (1, 3), (3, 4), (4, 5), (5, 5), (5, 6)]
        );
        assert_eq!(
            tokenizer.decode(&[0, 1, 2, 3, 4, 6, 5], true).unwrap(),
            "a b\u{e9}a"
        );
        assert_eq!(tokenizer.decode(&[1, 3], true).unwrap(), "a\u{fffd}");
    }
}
