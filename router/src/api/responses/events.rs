//! The events of a streamed response. Their sequence numbers rise by one.

use serde_json::{Map, Value, json};

use super::items::{ItemMaker, ItemStatus, OutputItem, OutputPart};
use super::response::{ResponseBody, ResponseError, Status};
use super::tools::Called;
use crate::api::conversation::answer::Answer;
use crate::api::conversation::blocks::Block;
use crate::api::conversation::events::{EventWriter, named_event};
use crate::api::openai::response::TokenLogprob;
use crate::error::ApiError;

/// Called once with the complete response.
pub type OnComplete = Box<dyn FnOnce(&ResponseBody) + Send + Sync>;

/// Writer of the events of one response.
pub struct ResponseEvents {
    response: ResponseBody,
    maker: ItemMaker,
    on_complete: Option<OnComplete>,
    sequence_number: u64,
    /// Id of the open item.
    item_id: String,
}

impl ResponseEvents {
    pub fn new(response: ResponseBody, maker: ItemMaker, on_complete: OnComplete) -> Self {
        Self {
            response,
            maker,
            on_complete: Some(on_complete),
            sequence_number: 0,
            item_id: String::new(),
        }
    }

    /// The whole response.
    pub fn response(mut self, answer: Answer) -> ResponseBody {
        for block in &answer.blocks {
            let id = self.maker.id(block);
            let item = self.maker.item(block, id, ItemStatus::Completed);
            self.response.output.push(item);
        }
        self.complete(&answer);
        self.response
    }

    fn complete(&mut self, answer: &Answer) {
        self.response.complete(&answer.reason, answer.tokens);
        if self.response.status == Status::Incomplete
            && let Some(last) = self.response.output.last_mut()
        {
            last.set_status(ItemStatus::Incomplete);
        }
        if let Some(on_complete) = self.on_complete.take() {
            on_complete(&self.response);
        }
    }

    /// Writes an event with its fields, of which `fields` is an object.
    fn event(&mut self, out: &mut Vec<u8>, name: &str, fields: Value) {
        let mut event = Map::new();
        event.insert("type".into(), name.into());
        event.insert("sequence_number".into(), self.sequence_number.into());
        self.sequence_number += 1;
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        named_event(out, name, &event);
    }

    /// Writes an event about the open item.
    fn item_event(&mut self, out: &mut Vec<u8>, name: &str, at: usize, fields: Value) {
        let mut event = json!({"item_id": self.item_id, "output_index": at});
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        self.event(out, name, event);
    }

    /// Tells that the first token has come, of a response that was queued.
    fn leave_queue(&mut self, out: &mut Vec<u8>) {
        if self.response.status == Status::Queued {
            self.response.status = Status::InProgress;
            self.response_event(out, "response.in_progress");
        }
    }

    fn response_event(&mut self, out: &mut Vec<u8>, name: &str) {
        let response = json!({ "response": self.response });
        self.event(out, name, response);
    }

    /// Writes the events that end the content of `block`.
    fn end_content(&mut self, out: &mut Vec<u8>, at: usize, block: &Block) {
        match block {
            Block::Text { text, logprobs } => {
                let done = json!({"content_index": 0, "text": text, "logprobs": logprobs});
                self.item_event(out, "response.output_text.done", at, done);
                self.end_part(out, at, &OutputPart::text(text, logprobs));
            }
            Block::Reasoning(text) => {
                let done = json!({"content_index": 0, "text": text});
                self.item_event(out, "response.reasoning_text.done", at, done);
                self.end_part(out, at, &OutputPart::reasoning(text));
            }
            Block::Call(_) => {}
        }
    }

    fn end_part(&mut self, out: &mut Vec<u8>, at: usize, part: &OutputPart) {
        let done = json!({"content_index": 0, "part": part});
        self.item_event(out, "response.content_part.done", at, done);
    }

    /// Writes the events that end the arguments or the input of a call.
    fn end_call(&mut self, out: &mut Vec<u8>, at: usize, item: &OutputItem) {
        match item {
            OutputItem::FunctionCall {
                name, arguments, ..
            } => {
                let done = json!({"name": name, "arguments": arguments});
                self.item_event(out, "response.function_call_arguments.done", at, done);
            }
            OutputItem::CustomToolCall { input, .. } => {
                // The model writes the input as a JSON text, so that it is known at its end.
                let delta = json!({ "delta": input });
                self.item_event(out, "response.custom_tool_call_input.delta", at, delta);
                let done = json!({ "input": input });
                self.item_event(out, "response.custom_tool_call_input.done", at, done);
            }
            OutputItem::Message { .. } | OutputItem::Reasoning { .. } => {}
        }
    }
}

impl EventWriter for ResponseEvents {
    fn start(&mut self, out: &mut Vec<u8>, _prompt_tokens: u64) {
        self.response_event(out, "response.created");
        match self.response.status {
            Status::Queued => self.response_event(out, "response.queued"),
            _ => self.response_event(out, "response.in_progress"),
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>, at: usize, block: &Block) {
        self.leave_queue(out);
        self.item_id = self.maker.id(block);
        let item = self
            .maker
            .item(block, self.item_id.clone(), ItemStatus::InProgress);
        let added = json!({"output_index": at, "item": item});
        self.event(out, "response.output_item.added", added);
        let part = match block {
            Block::Text { .. } => OutputPart::text("", &[]),
            Block::Reasoning(_) => OutputPart::reasoning(""),
            Block::Call(_) => return,
        };
        let added = json!({"content_index": 0, "part": part});
        self.item_event(out, "response.content_part.added", at, added);
    }

    fn delta(
        &mut self,
        out: &mut Vec<u8>,
        at: usize,
        block: &Block,
        text: &str,
        logprobs: &[TokenLogprob],
    ) {
        match block {
            Block::Text { .. } => {
                let delta = json!({"content_index": 0, "delta": text, "logprobs": logprobs});
                self.item_event(out, "response.output_text.delta", at, delta);
            }
            Block::Reasoning(_) => {
                let delta = json!({"content_index": 0, "delta": text});
                self.item_event(out, "response.reasoning_text.delta", at, delta);
            }
            Block::Call(call) => {
                if matches!(self.maker.tools.called(&call.name), Called::Function { .. }) {
                    let delta = json!({ "delta": text });
                    self.item_event(out, "response.function_call_arguments.delta", at, delta);
                }
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, at: usize, block: &Block) {
        self.end_content(out, at, block);
        let item = self
            .maker
            .item(block, self.item_id.clone(), ItemStatus::Completed);
        self.end_call(out, at, &item);
        let done = json!({"output_index": at, "item": item});
        self.event(out, "response.output_item.done", done);
        self.response.output.push(item);
    }

    fn finish(&mut self, out: &mut Vec<u8>, answer: Answer) {
        self.leave_queue(out);
        self.complete(&answer);
        let name = match self.response.status {
            Status::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        self.response_event(out, name);
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.response.status = Status::Failed;
        self.response.error = Some(ResponseError {
            code: "server_error".into(),
            message: error.message.clone(),
        });
        self.response_event(out, "response.failed");
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
