//! The events of a streamed answer. Anthropic's clients tell them apart by their `event:` lines.

use serde_json::json;

use super::response::{AnswerBlock, MessagesResponse, StopReason};
use super::signature::signature;
use super::usage::{Caching, MessagesUsage};
use crate::api::conversation::answer::Answer;
use crate::api::conversation::blocks::Block;
use crate::api::conversation::events::{EventWriter, named_event};
use crate::api::openai::response::TokenLogprob;
use crate::error::{ApiError, Dialect};

/// Event that keeps a silent connection alive.
pub const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// Writer of the events of one answer.
#[derive(Debug)]
pub struct MessageEvents {
    pub id: String,
    pub model: String,
    /// The request's `max_tokens`.
    pub max_tokens: Option<u32>,
    pub caching: Caching,
}

impl MessageEvents {
    /// The whole answer.
    pub fn response(&self, answer: Answer) -> MessagesResponse {
        let (stop_reason, stop_sequence) = StopReason::of(&answer, self.max_tokens);
        MessagesResponse {
            stop_reason: Some(stop_reason),
            stop_sequence,
            content: answer.blocks.into_iter().map(AnswerBlock::from).collect(),
            ..self.empty(MessagesUsage::new(answer.tokens, self.caching))
        }
    }

    fn empty(&self, usage: MessagesUsage) -> MessagesResponse {
        MessagesResponse {
            id: self.id.clone(),
            kind: "message".into(),
            role: "assistant".into(),
            model: self.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
        }
    }
}

impl EventWriter for MessageEvents {
    fn start(&mut self, out: &mut Vec<u8>, prompt_tokens: u64) {
        let message = self.empty(MessagesUsage::at_start(prompt_tokens));
        let event = json!({"type": "message_start", "message": message});
        named_event(out, "message_start", &event);
        out.extend_from_slice(PING);
    }

    fn begin(&mut self, out: &mut Vec<u8>, at: usize, block: &Block) {
        let block = match block {
            Block::Text { .. } => json!({"type": "text", "text": ""}),
            Block::Reasoning(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Block::Call(call) => {
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            }
        };
        let event = json!({"type": "content_block_start", "index": at, "content_block": block});
        named_event(out, "content_block_start", &event);
    }

    fn delta(
        &mut self,
        out: &mut Vec<u8>,
        at: usize,
        block: &Block,
        text: &str,
        _logprobs: &[TokenLogprob],
    ) {
        if text.is_empty() {
            return;
        }
        let delta = match block {
            Block::Text { .. } => json!({"type": "text_delta", "text": text}),
            Block::Reasoning(_) => json!({"type": "thinking_delta", "thinking": text}),
            Block::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
        };
        write_delta(out, at, &delta);
    }

    fn end(&mut self, out: &mut Vec<u8>, at: usize, block: &Block) {
        if let Block::Reasoning(thinking) = block {
            let delta = json!({"type": "signature_delta", "signature": signature(thinking)});
            write_delta(out, at, &delta);
        }
        let event = json!({"type": "content_block_stop", "index": at});
        named_event(out, "content_block_stop", &event);
    }

    fn finish(&mut self, out: &mut Vec<u8>, answer: Answer) {
        let (stop_reason, stop_sequence) = StopReason::of(&answer, self.max_tokens);
        let event = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": MessagesUsage::new(answer.tokens, self.caching),
        });
        named_event(out, "message_delta", &event);
        named_event(out, "message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        named_event(out, "error", &error.body(Dialect::Anthropic));
    }
}

fn write_delta(out: &mut Vec<u8>, at: usize, delta: &serde_json::Value) {
    let event = json!({"type": "content_block_delta", "index": at, "delta": delta});
    named_event(out, "content_block_delta", &event);
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
