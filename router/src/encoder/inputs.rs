//! From an input as a client gives it to a sequence of tokens.

use std::borrow::Cow;
use std::sync::Arc;

use gridwork_engine::EncodeSequence;
use serde::Deserialize;
use tokenizers::utils::truncation::{
    TruncationDirection as Direction, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{Encoding, PostProcessor, Tokenizer};
use utoipa::ToSchema;

use crate::error::{ApiError, ErrorKind};
use crate::tokenizing::tokenizer_regex::SlowRegexes;
use crate::tokenizing::vocabulary::{self, text_of};

/// One thing to be encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    Text(String),
    /// The first text may be that of other inputs too.
    Pair(Arc<str>, String),
    /// Used as they are, without special tokens around them.
    Tokens(Vec<u32>),
}

impl Input {
    /// Refuses texts that a regular expression of the tokenizer takes too long for.
    pub fn check(&self, slow: &SlowRegexes, field: &str) -> Result<(), ApiError> {
        let checked = match self {
            Input::Text(text) => slow.check(text),
            Input::Pair(first, second) => slow.check(first).and_then(|()| slow.check(second)),
            Input::Tokens(_) => Ok(()),
        };
        checked.map_err(|cause| {
            ApiError::validation(field, format!("`{field}` cannot be tokenized: {cause}"))
        })
    }

    /// Bytes of the texts; of tokens their numbers'.
    pub fn num_bytes(&self) -> usize {
        match self {
            Input::Text(text) => text.len(),
            Input::Pair(first, second) => first.len() + second.len(),
            Input::Tokens(ids) => size_of_val(ids.as_slice()),
        }
    }

    /// Characters of the texts; 0 for tokens.
    pub fn num_chars(&self) -> usize {
        match self {
            Input::Text(text) => text.chars().count(),
            Input::Pair(first, second) => first.chars().count() + second.chars().count(),
            Input::Tokens(_) => 0,
        }
    }
}

/// Which end of a text is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
pub enum TruncationDirection {
    #[serde(alias = "left")]
    Left,
    #[default]
    #[serde(alias = "right")]
    Right,
}

/// Whether texts that are too long are cut.
#[derive(Debug, Clone, Copy, Default)]
pub struct Truncation {
    pub enabled: bool,
    pub direction: TruncationDirection,
}

/// How the inputs of one request become sequences.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// Name of the inputs in the request.
    pub field: &'static str,
    /// Maximum number of inputs.
    pub max_inputs: usize,
    pub truncation: Truncation,
    /// Text that is put before each text.
    pub prompt: Option<String>,
    /// Maximum length of a sequence.
    pub max_tokens: usize,
    pub vocab_size: u32,
}

/// What sentence-transformers does with a text before it is tokenized, as the model's files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Normalization {
    /// Take white space off both ends.
    pub strips: bool,
    pub lower_cases: bool,
}

impl Normalization {
    /// The text as it is tokenized.
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        // Python counts these separators as white space too.
        let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        let stripped = match self.strips {
            true => text.trim_matches(is_space),
            false => text,
        };
        match self.lower_cases {
            true => stripped.to_lowercase().into(),
            false => stripped.into(),
        }
    }
}

pub(super) fn empty(field: &str) -> ApiError {
    ApiError {
        field: Some(field.to_owned()),
        ..ApiError::new(ErrorKind::Empty, format!("`{field}` cannot be empty"))
    }
}

/// Refuses an empty array of inputs and one of more than `limit`. `field`: the array's name.
pub(super) fn check_number(limit: usize, number: usize, field: &str) -> Result<(), ApiError> {
    if number == 0 {
        return Err(empty(field));
    }
    if number > limit {
        return Err(ApiError::validation(
            field,
            format!(
                "`{field}` has {number} inputs, and one request may have {limit} (--max-client-batch-size)"
            ),
        ));
    }
    Ok(())
}

impl Preparation {
    /// Refuses an empty array of inputs and one of more than the limit.
    pub fn check_number(&self, number: usize) -> Result<(), ApiError> {
        check_number(self.max_inputs, number, self.field)
    }

    /// Tokenizes and checks one input.
    pub fn prepare(
        &self,
        tokenizer: &Tokenizer,
        input: Input,
        normalization: Normalization,
    ) -> Result<EncodeSequence, ApiError> {
        let sequence = match input {
            Input::Tokens(ids) => self.tokens(ids)?,
            Input::Text(text) if text.is_empty() => return Err(empty(self.field)),
            Input::Pair(first, second) if first.is_empty() && second.is_empty() => {
                return Err(empty(self.field));
            }
            Input::Text(text) => self.texts(tokenizer, text.into(), None, normalization)?,
            Input::Pair(first, second) => {
                self.texts(tokenizer, first, Some(second), normalization)?
            }
        };
        let length = sequence.token_ids.len();
        if length == 0 {
            return Err(empty(self.field));
        }
        if length > self.max_tokens {
            let Preparation {
                field, max_tokens, ..
            } = self;
            return Err(ApiError::too_long(
                field,
                *max_tokens,
                format!(
                    "`{field}` must have at most {max_tokens} tokens. Given: {length}; with `truncate` it is cut"
                ),
            ));
        }
        let ids = sequence.token_ids.iter().copied();
        vocabulary::check(self.field, ids, self.vocab_size, text_of(tokenizer))?;
        Ok(sequence)
    }

    /// How many of a sequence's first tokens the prompt makes up, as sentence-transformers counts them: with the special
    /// tokens before it, without one behind it.
    pub fn prompt_length(&self, tokenizer: &Tokenizer, normalization: Normalization) -> u32 {
        let Some(prompt) = self.prompt.as_ref().filter(|prompt| !prompt.is_empty()) else {
            return 0;
        };
        let Ok(encoding) = tokenizer.encode(&*normalization.apply(prompt), true) else {
            return 0;
        };
        let ends_special = encoding.get_special_tokens_mask().last() == Some(&1);
        (encoding.len() - usize::from(ends_special)) as u32
    }

    fn tokens(&self, mut ids: Vec<u32>) -> Result<EncodeSequence, ApiError> {
        if let Some(direction) = self.cut_at() {
            let surplus = ids.len().saturating_sub(self.max_tokens);
            match direction {
                TruncationDirection::Left => drop(ids.drain(..surplus)),
                TruncationDirection::Right => ids.truncate(self.max_tokens),
            }
        }
        Ok(EncodeSequence {
            token_ids: ids,
            ..Default::default()
        })
    }

    fn texts(
        &self,
        tokenizer: &Tokenizer,
        mut first: Arc<str>,
        second: Option<String>,
        normalization: Normalization,
    ) -> Result<EncodeSequence, ApiError> {
        if let Some(prompt) = &self.prompt {
            first = [prompt.as_str(), &first].concat().into();
        }
        let first = normalization.apply(&first);
        let second = second.as_deref().map(|text| normalization.apply(text));
        let failed = |error: tokenizers::Error| {
            let field = self.field;
            ApiError::validation(field, format!("`{field}` cannot be tokenized: {error}"))
        };
        let mut encoding = match &second {
            None => tokenizer.encode(&*first, true),
            Some(second) => tokenizer.encode((&*first, &**second), true),
        }
        .map_err(failed)?;
        if let Some(direction) = self.cut_at()
            && encoding.len() > self.max_tokens
        {
            encoding = self
                .cut(tokenizer, &first, second.as_deref(), direction)
                .map_err(failed)?;
        }
        let types = encoding.get_type_ids();
        Ok(EncodeSequence {
            token_ids: encoding.get_ids().to_vec(),
            token_type_ids: if types.iter().all(|&id| id == 0) {
                vec![]
            } else {
                types.to_vec()
            },
            ..Default::default()
        })
    }

    /// Tokenizes again, cutting what is between the special tokens; of a pair the longer text first.
    fn cut(
        &self,
        tokenizer: &Tokenizer,
        first: &str,
        second: Option<&str>,
        direction: TruncationDirection,
    ) -> tokenizers::Result<Encoding> {
        let encode = |text: &str| tokenizer.encode(text, false);
        let (first, second) = (encode(first)?, second.map(encode).transpose()?);
        let added = tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(second.is_some()));
        let parameters = TruncationParams {
            direction: match direction {
                TruncationDirection::Left => Direction::Left,
                TruncationDirection::Right => Direction::Right,
            },
            max_length: self.max_tokens.saturating_sub(added),
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (first, mut second) = truncate_encodings(first, second, &parameters)?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        tokenizer.post_process(first, second, true)
    }

    /// The end to cut off, when cutting is wished for.
    fn cut_at(&self) -> Option<TruncationDirection> {
        self.truncation.enabled.then_some(self.truncation.direction)
    }
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
