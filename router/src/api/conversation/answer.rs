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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream;
    use gridwork_engine::{Event, GenerationError, Timing};
    use serde_json::json;

    use super::*;
    use crate::api::conversation::blocks::Call;
    use crate::tool_calls::{Format, Plan, Tool};

    fn parser() -> Parser {
        let format: Format = serde_json::from_value(json!({"regions": {
            "reasoning": {"open": "<think>", "close": "</think>"},
            "calls": {"open": "<tool_call>", "close": "</tool_call>",
                      "body": {"object": {"name": "name", "arguments": "arguments"}}},
        }}))
        .expect("a format");
        let tools = [Tool {
            name: "look".into(),
            parameters: json!({"type": "object"}),
            strict: false,
        }];
        let plan = Plan::new(Arc::new(format), Arc::new(tools), true, "");
        plan.expect("something to parse").parser()
    }

    /// The events of an answer that consists of `texts`, one a token.
    fn events(texts: &[&str]) -> Vec<Result<Event, GenerationError>> {
        let finish = Finish {
            reason: FinishReason::EndOfSequence,
            num_generated_tokens: texts.len() as u32,
            num_cached_tokens: 3,
            timing: Timing::default(),
        };
        let token = |(at, text): (usize, &&str)| {
            Ok(Event::Token(GeneratedToken {
                id: 1,
                text: (*text).into(),
                offset_chars: 0,
                holds_text: false,
                logprob: None,
                special: false,
                top: Vec::new(),
                finish: (at + 1 == texts.len()).then(|| finish.clone()),
            }))
        };
        texts.iter().enumerate().map(token).collect()
    }

    #[tokio::test]
    async fn reasoning_text_and_calls_are_told_apart() {
        let texts = [
            "<think>",
            "\nHm",
            ", so.",
            "\n</think>",
            "\n\nI ",
            "look.",
            "\n<tool_call>\n{\"name\": \"lo",
            "ok\", \"arguments\": {\"at\": ",
            "[1, 2]}}\n</tool_call>",
        ];
        let events = stream::iter(events(&texts));
        let mut choice = RunningChoice::new(0, 0, events, None, false);
        let reader = AnswerReader::new(Some(parser()), None, 10);
        let (answer, _) = reader.read(&mut choice).await.expect("an answer");
        let [
            Block::Reasoning(reasoning),
            Block::Text { text, .. },
            Block::Call(call),
        ] = &answer.blocks[..]
        else {
            panic!("{:?}", answer.blocks);
        };
        assert_eq!(reasoning.trim(), "Hm, so.");
        assert_eq!(text.trim(), "I look.");
        let Call {
            id,
            name,
            arguments,
        } = call;
        assert!(!id.is_empty());
        assert_eq!(
            (name.as_str(), arguments.replace(' ', "").as_str()),
            ("look", "{\"at\":[1,2]}")
        );
        assert!(answer.calls());
        let expected = Tokens {
            prompt: 10,
            cached: 3,
            generated: 9,
            reasoning: answer.tokens.reasoning,
        };
        assert_eq!(answer.tokens, expected);
        assert!((2..=4).contains(&answer.tokens.reasoning), "{expected:?}");
    }
}
