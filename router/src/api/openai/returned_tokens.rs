//! Token ids beside the text of an answer (`return_token_ids`), in vLLM's form.

use std::sync::Arc;

use gridwork_engine::{GeneratedToken, PromptLogprob};
use serde::Serialize;
use serde::ser::SerializeMap;

use super::prompt_logprobs::{PromptLogprobs, entries};
use crate::tokenizing::token_text::TokenTexts;

/// The tokens of a choice that no answer or chunk has shown yet.
#[derive(Debug, Clone, Default)]
pub struct ReturnedTokens {
    /// Tokens of the prompt, until they have been shown.
    prompt: Option<Arc<[u32]>>,
    generated: Vec<u32>,
    /// Log-probabilities of the generated tokens.
    known: Vec<PromptLogprob>,
}

impl ReturnedTokens {
    pub fn new(prompt: Arc<[u32]>) -> Self {
        Self {
            prompt: Some(prompt),
            ..Self::default()
        }
    }

    /// Adds a generated token.
    pub fn push(&mut self, token: &GeneratedToken) {
        self.generated.push(token.id);
        self.known.push(PromptLogprob {
            logprob: token.logprob,
            top: token.top.clone(),
        });
    }

    /// Ids of the prompt's tokens; only the first call returns them.
    pub fn take_prompt_ids(&mut self) -> Option<Vec<u32>> {
        Some(self.prompt.take()?.to_vec())
    }

    /// Ids of the generated tokens.
    pub fn ids(&self) -> &[u32] {
        &self.generated
    }

    /// Log-probabilities of the generated tokens, by token id.
    pub fn logprobs(&self, texts: TokenTexts<'_>) -> PromptLogprobs {
        entries(texts, &self.generated, &self.known)
    }

    /// Fields that a chunk adds to its choice. Shows everything once.
    pub fn take_fields(&mut self, texts: Option<TokenTexts<'_>>) -> ReturnedFields {
        let taken = std::mem::take(self);
        ReturnedFields {
            logprobs_by_id: texts.map(|texts| taken.logprobs(texts)),
            prompt_token_ids: taken.prompt,
            token_ids: taken.generated,
        }
    }
}

/// Fields of a streamed choice.
#[derive(Debug)]
pub struct ReturnedFields {
    token_ids: Vec<u32>,
    prompt_token_ids: Option<Arc<[u32]>>,
    logprobs_by_id: Option<PromptLogprobs>,
}

impl Serialize for ReturnedFields {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("token_ids", &self.token_ids)?;
        if let Some(ids) = &self.prompt_token_ids {
            map.serialize_entry("prompt_token_ids", &ids[..])?;
        }
        if let Some(logprobs) = &self.logprobs_by_id {
            map.serialize_entry("logprobs_by_id", logprobs)?;
        }
        map.end()
    }
}
