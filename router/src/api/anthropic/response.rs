//! Bodies of the answers of `/v1/messages`.

use gridwork_engine::FinishReason;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::signature::signature;
use super::usage::MessagesUsage;
use crate::api::conversation::answer::Answer;
use crate::api::conversation::blocks::{Block, Call};

/// Answer of `/v1/messages`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessagesResponse {
    /// Unique id of the answer.
    #[schema(example = "msg_0123456789abcdef0123456789abcdef")]
    pub id: String,
    #[serde(rename = "type")]
    #[schema(example = "message")]
    pub kind: String,
    #[schema(example = "assistant")]
    pub role: String,
    /// Id of the model that answered.
    pub model: String,
    /// Reasoning, texts and calls, in order.
    pub content: Vec<AnswerBlock>,
    /// `null` in the first event of a stream only.
    pub stop_reason: Option<StopReason>,
    /// Stop sequence that ended the text.
    pub stop_sequence: Option<String>,
    pub usage: MessagesUsage,
}

/// A block of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerBlock {
    Text {
        text: String,
    },
    /// Reasoning before the answer.
    Thinking {
        thinking: String,
        /// Digest of the reasoning. Conversations may be continued with or without it.
        signature: String,
    },
    /// Call of a function.
    ToolUse {
        id: String,
        name: String,
        /// Arguments. Those that are no JSON object stand as text under `unparsed_arguments`.
        input: Map<String, Value>,
    },
}

/// Reason for the end of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    /// `max_tokens` was reached.
    MaxTokens,
    /// The end of the model's context came before `max_tokens`.
    ModelContextWindowExceeded,
    StopSequence,
    /// The model calls functions.
    ToolUse,
}

/// Answer of `/v1/messages/count_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct TokenCount {
    /// Number of tokens of the prompt that the conversation becomes.
    pub input_tokens: usize,
}

impl StopReason {
    /// Reason for the end of `answer`, with the stop sequence that ended it. `max_tokens`: the request's.
    pub fn of(answer: &Answer, max_tokens: Option<u32>) -> (Self, Option<String>) {
        let reached = max_tokens.is_some_and(|max| answer.tokens.generated >= u64::from(max));
        match &answer.reason {
            FinishReason::Length if reached => (Self::MaxTokens, None),
            FinishReason::Length => (Self::ModelContextWindowExceeded, None),
            FinishReason::StopString(text) => (Self::StopSequence, Some(text.clone())),
            _ if answer.calls() => (Self::ToolUse, None),
            FinishReason::EndOfSequence | FinishReason::StopToken(_) => (Self::EndTurn, None),
        }
    }
}

impl From<Block> for AnswerBlock {
    fn from(block: Block) -> Self {
        match block {
            Block::Text { text, .. } => Self::Text { text },
            Block::Reasoning(thinking) => Self::Thinking {
                signature: signature(&thinking),
                thinking,
            },
            Block::Call(call) => Self::ToolUse {
                input: input(&call),
                id: call.id,
                name: call.name,
            },
        }
    }
}

/// Arguments of a call as an object.
fn input(call: &Call) -> Map<String, Value> {
    if call.arguments.trim().is_empty() {
        return Map::new();
    }
    serde_json::from_str(&call.arguments).unwrap_or_else(|_| {
        let text = Value::String(call.arguments.clone());
        Map::from_iter([("unparsed_arguments".to_owned(), text)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conversation::answer::Tokens;

    fn answer(blocks: Vec<Block>, reason: FinishReason) -> Answer {
        Answer {
            blocks,
            reason,
            tokens: Tokens {
                prompt: 10,
                cached: 7,
                generated: 4,
                reasoning: 0,
            },
        }
    }

    fn call(arguments: &str) -> Block {
        Block::Call(Call {
            id: "toolu_1".into(),
            name: "f".into(),
            arguments: arguments.into(),
        })
    }

    #[test]
    fn the_reason_tells_a_clients_limit_from_the_contexts() {
        let reason = |reason: FinishReason, blocks: Vec<Block>, max| {
            StopReason::of(&answer(blocks, reason), max)
        };
        for (max, expected) in [
            (Some(4), StopReason::MaxTokens),
            (Some(5), StopReason::ModelContextWindowExceeded),
            (None, StopReason::ModelContextWindowExceeded),
        ] {
            assert_eq!(reason(FinishReason::Length, vec![], max), (expected, None));
        }
        assert_eq!(
            reason(FinishReason::StopString("END".into()), vec![], None),
            (StopReason::StopSequence, Some("END".into()))
        );
        assert_eq!(
            reason(FinishReason::EndOfSequence, vec![call("{}")], None),
            (StopReason::ToolUse, None)
        );
        assert_eq!(
            reason(FinishReason::EndOfSequence, vec![], None),
            (StopReason::EndTurn, None)
        );
    }

    #[test]
    fn arguments_are_an_object_and_never_lost() {
        let input = |arguments: &str| match AnswerBlock::from(call(arguments)) {
            AnswerBlock::ToolUse { input, .. } => Value::Object(input).to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(input(r#"{"b": 1, "a": [2]}"#), r#"{"b":1,"a":[2]}"#);
        assert_eq!(input(" "), "{}");
        for broken in [r#"{"a": "#, "[1]", "3"] {
            let expected = serde_json::json!({"unparsed_arguments": broken}).to_string();
            assert_eq!(input(broken), expected);
        }
    }
}
