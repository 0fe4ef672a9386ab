//! Turns the pieces of a parsed answer into messages and deltas.

use super::response::{
    AssistantMessage, Delta, FunctionCall, FunctionDelta, OpenAiFinishReason, ToolCall,
    ToolCallDelta,
};
use crate::tool_calls::{Parser, Piece, Plan};

/// Form of calls in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `tool_calls`.
    Tools,
    /// `function_call`, which has the first call.
    Function,
}

/// Parser of one choice.
#[derive(Debug)]
pub struct ChoiceParser {
    parser: Parser,
    /// True if reasoning is part of the answer.
    shows_reasoning: bool,
    calls: CallForm,
    num_calls: usize,
    /// Number of tokens of reasoning so far.
    pub num_reasoning_tokens: u64,
}

impl ChoiceParser {
    pub fn new(plan: &Plan, shows_reasoning: bool, calls: CallForm) -> Self {
        Self {
            parser: plan.parser(),
            shows_reasoning,
            calls,
            num_calls: 0,
            num_reasoning_tokens: 0,
        }
    }

    /// Adds a token's text, and ends the answer with the last one. Returns what it adds to the message.
    pub fn push(&mut self, text: &str, is_last: bool) -> Vec<Delta> {
        self.num_reasoning_tokens += u64::from(self.parser.is_reasoning());
        let mut pieces = self.parser.push(text);
        if is_last {
            pieces.extend(self.parser.finish());
        }
        let deltas = pieces.into_iter().filter_map(|piece| self.delta(piece));
        deltas.collect()
    }

    /// The reason for the end, given that of the text.
    pub fn finish_reason(&self, reason: OpenAiFinishReason) -> OpenAiFinishReason {
        match reason {
            OpenAiFinishReason::Stop if self.num_calls > 0 => match self.calls {
                CallForm::Tools => OpenAiFinishReason::ToolCalls,
                CallForm::Function => OpenAiFinishReason::FunctionCall,
            },
            reason => reason,
        }
    }

    fn delta(&mut self, piece: Piece) -> Option<Delta> {
        match piece {
            Piece::Content(text) => Some(Delta {
                content: Some(text),
                ..Delta::default()
            }),
            Piece::Reasoning(text) => self.shows_reasoning.then(|| Delta {
                reasoning: Some(text.clone()),
                reasoning_content: Some(text),
                ..Delta::default()
            }),
            Piece::CallBegin { index, id, name } => {
                self.num_calls += 1;
                self.call_delta(index, Some((id, name)), String::new())
            }
            Piece::CallArguments {
                index,
                json_fragment,
            } => self.call_delta(index, None, json_fragment),
            Piece::CallEnd { .. } => None,
        }
    }

    fn call_delta(
        &self,
        index: usize,
        begin: Option<(String, String)>,
        arguments: String,
    ) -> Option<Delta> {
        let (id, name) = begin.unzip();
        let function = FunctionDelta { name, arguments };
        match self.calls {
            CallForm::Tools => Some(Delta {
                tool_calls: vec![ToolCallDelta {
                    index,
                    kind: id.is_some().then(|| "function".into()),
                    id,
                    function,
                }],
                ..Delta::default()
            }),
            CallForm::Function => (index == 0).then(|| Delta {
                function_call: Some(function),
                ..Delta::default()
            }),
        }
    }
}

/// A message of which nothing is known yet.
pub fn empty_message() -> AssistantMessage {
    AssistantMessage {
        role: "assistant".into(),
        content: None,
        reasoning_content: None,
        reasoning: None,
        tool_calls: Vec::new(),
        function_call: None,
    }
}

/// Adds a delta to the message.
pub fn add(message: &mut AssistantMessage, delta: Delta) {
    if let Some(text) = delta.content {
        message.content.get_or_insert_default().push_str(&text);
    }
    if let Some(text) = delta.reasoning {
        message.reasoning.get_or_insert_default().push_str(&text);
        let older = message.reasoning_content.get_or_insert_default();
        older.push_str(&text);
    }
    for call in delta.tool_calls {
        if let (Some(id), Some(name)) = (call.id, call.function.name) {
            message.tool_calls.push(ToolCall {
                id,
                kind: "function".into(),
                function: FunctionCall {
                    name,
                    arguments: call.function.arguments,
                },
            });
        } else if let Some(last) = message.tool_calls.last_mut() {
            last.function.arguments.push_str(&call.function.arguments);
        }
    }
    if let Some(call) = delta.function_call {
        let whole = message.function_call.get_or_insert_with(|| FunctionCall {
            name: call.name.unwrap_or_default(),
            arguments: String::new(),
        });
        whole.arguments.push_str(&call.arguments);
    }
}

/// Completes a message. An answer without any text has empty content.
pub fn complete(message: &mut AssistantMessage) {
    let calls = !message.tool_calls.is_empty() || message.function_call.is_some();
    if !calls && message.reasoning.is_none() {
        message.content.get_or_insert_default();
    }
}
