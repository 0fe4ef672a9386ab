//! Reads a choice into blocks.

use std::sync::Arc;

use gridwork_engine::{Finish, FinishReason, GeneratedToken};
use tokenizers::Tokenizer;

use super::blocks::{Block, BlockSink, Blocks, Unobserved};
use crate::api::openai::choice::{Events, RunningChoice};
use crate::api::openai::response::ChatLogprobs;
use crate::error::ApiError;
use crate::tokenizing::token_text::TokenTexts;
use crate::tool_calls::{Parser, Piece};

/// Reader of one choice.
#[derive(Debug)]
pub struct AnswerReader {
    /// `None`: everything is text.
    parser: Option<Parser>,
    /// Tokenizer for the texts of tokens, when log-probabilities are requested.
    logprobs: Option<Arc<Tokenizer>>,
    blocks: Blocks,
    tokens: Tokens,
}

/// Number of tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub prompt: u64,
    /// Tokens of the prompt whose keys and values were in the cache already.
    pub cached: u64,
    pub generated: u64,
    /// Generated tokens of reasoning.
    pub reasoning: u64,
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub blocks: Vec<Block>,
    pub reason: FinishReason,
    pub tokens: Tokens,
}

impl Answer {
    /// True if the answer calls a function.
    pub fn calls(&self) -> bool {
        self.blocks
            .iter()
            .any(|block| matches!(block, Block::Call(_)))
    }
}

impl AnswerReader {
    pub fn new(
        parser: Option<Parser>,
        logprobs: Option<Arc<Tokenizer>>,
        prompt_tokens: u64,
    ) -> Self {
        Self {
            parser,
            logprobs,
            blocks: Blocks::default(),
            tokens: Tokens {
                prompt: prompt_tokens,
                ..Tokens::default()
            },
        }
    }

    /// Number of tokens so far. Cached ones are known at the end.
    pub fn tokens(&self) -> Tokens {
        self.tokens
    }

    /// Adds a token to the answer.
    pub fn add(&mut self, token: &GeneratedToken, sink: &mut impl BlockSink) {
        if let Some(tokenizer) = &self.logprobs {
            let mut logprobs = ChatLogprobs::default();
            logprobs.push(TokenTexts::new(tokenizer), token);
            self.blocks.push_logprobs(logprobs.content);
        }
        let pieces = match &mut self.parser {
            Some(parser) => parser.push(&token.text),
            None if token.text.is_empty() => Vec::new(),
            None => vec![Piece::Content(token.text.clone())],
        };
        for piece in pieces {
            self.blocks.push(piece, sink);
        }
        self.tokens.generated += 1;
        self.tokens.reasoning += u64::from(self.blocks.is_reasoning());
    }

    /// Ends the answer.
    pub fn finish(mut self, finish: &Finish, sink: &mut impl BlockSink) -> Answer {
        for piece in self.parser.iter_mut().flat_map(Parser::finish) {
            self.blocks.push(piece, sink);
        }
        self.tokens.cached = u64::from(finish.num_cached_tokens);
        Answer {
            blocks: self.blocks.finish(sink),
            reason: finish.reason.clone(),
            tokens: self.tokens,
        }
    }

    /// Reads `choice` to its end.
    pub async fn read<S: Events>(
        mut self,
        choice: &mut RunningChoice<S>,
    ) -> Result<(Answer, Finish), ApiError> {
        let finish = choice
            .collect(false, |piece| self.add(&piece.token, &mut Unobserved))
            .await?;
        Ok((self.finish(&finish, &mut Unobserved), finish))
    }
}
