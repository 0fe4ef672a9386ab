//! Builds the messages of a chat from the blocks or items that other APIs write a conversation in.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::chat_template::{Content, Message};

/// Separator of texts that become one message.
const BETWEEN_TEXTS: &str = "\n";

/// A conversation while it is built. Reasoning, text and calls that follow each other are one assistant's message, as
/// chat templates expect.
#[derive(Debug, Default)]
pub struct History {
    messages: Vec<Message>,
    /// Names of the functions that were called, by the ids of the calls. Some templates show them beside the results.
    names: HashMap<String, String>,
    /// True if texts of one user that follow each other become one message.
    joins_users: bool,
}

impl History {
    /// An empty conversation. `joins_users`: texts of the user that follow each other become one message.
    pub fn new(joins_users: bool) -> Self {
        History {
            joins_users,
            ..Self::default()
        }
    }

    /// Appends a text of `role`.
    pub fn text(&mut self, role: &str, text: String) {
        let joins = match role {
            "assistant" => true,
            "user" => self.joins_users,
            _ => false,
        };
        let last = self.messages.last_mut();
        match last.filter(|last| joins && last.role == role) {
            Some(last) => append(&mut last.content, text),
            None => self.push(role, Some(text)),
        }
    }

    /// Appends a reasoning of the assistant. It begins a turn, unless only reasoning stands before it in the turn.
    pub fn reasoning(&mut self, text: String) {
        let last = self.messages.last_mut();
        let open = last
            .filter(|last| last.role == "assistant" && last.content.is_none() && !has_calls(last));
        let Some(last) = open else {
            self.push("assistant", None);
            return self.set_reasoning(text);
        };
        match last.extra.get_mut("reasoning_content") {
            Some(Value::String(before)) => {
                before.push_str(BETWEEN_TEXTS);
                before.push_str(&text);
            }
            _ => self.set_reasoning(text),
        }
    }

    fn set_reasoning(&mut self, text: String) {
        if let Some(last) = self.messages.last_mut() {
            last.extra
                .insert("reasoning_content".into(), Value::String(text));
        }
    }

    /// Appends a call of the assistant. `arguments`: JSON text.
    pub fn call(&mut self, id: String, name: String, arguments: String) {
        if self
            .messages
            .last()
            .is_none_or(|last| last.role != "assistant")
        {
            self.push("assistant", None);
        }
        self.names.insert(id.clone(), name.clone());
        let call = json!({
            "id": id, "type": "function", "function": {"name": name, "arguments": arguments}
        });
        let Some(last) = self.messages.last_mut() else {
            return;
        };
        match last.extra.get_mut("tool_calls") {
            Some(Value::Array(calls)) => calls.push(call),
            _ => {
                last.extra
                    .insert("tool_calls".into(), Value::Array(vec![call]));
            }
        }
    }

    /// Appends the result of the call `id`.
    pub fn result(&mut self, id: String, text: String) {
        let mut extra = Map::new();
        if let Some(name) = self.names.get(&id) {
            extra.insert("name".into(), name.as_str().into());
        }
        extra.insert("tool_call_id".into(), id.into());
        self.messages.push(Message {
            role: "tool".into(),
            content: Some(Content::Text(text)),
            extra,
        });
    }

    /// True if a call `id` stands before.
    pub fn has_call(&self, id: &str) -> bool {
        self.names.contains_key(id)
    }

    /// The messages.
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    fn push(&mut self, role: &str, text: Option<String>) {
        self.messages.push(Message {
            role: role.to_owned(),
            content: text.map(Content::Text),
            extra: Map::new(),
        });
    }
}

/// `messages` with one instruction, at the beginning, for chat templates that refuse others: those at the beginning are
/// joined, and later ones become the user's. `None` if there are no others.
pub fn with_one_instruction(messages: &[Message]) -> Option<Vec<Message>> {
    let is_instruction =
        |message: &Message| matches!(message.role.as_str(), "system" | "developer");
    let mut changed: Vec<Message> = Vec::with_capacity(messages.len());
    let mut is_changed = false;
    for message in messages {
        if !is_instruction(message) || changed.is_empty() {
            changed.push(message.clone());
            continue;
        }
        is_changed = true;
        match (changed.as_mut_slice(), &message.content) {
            ([first], Some(Content::Text(text))) if is_instruction(first) => {
                append(&mut first.content, text.clone());
            }
            _ => changed.push(Message {
                role: "user".into(),
                ..message.clone()
            }),
        }
    }
    is_changed.then_some(changed)
}

fn has_calls(message: &Message) -> bool {
    message.extra.contains_key("tool_calls")
}

fn append(content: &mut Option<Content>, text: String) {
    match content {
        Some(Content::Text(before)) => {
            before.push_str(BETWEEN_TEXTS);
            before.push_str(&text);
        }
        _ => *content = Some(Content::Text(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(history: History) -> Value {
        serde_json::to_value(history.into_messages()).expect("JSON")
    }

    #[test]
    fn what_the_assistant_does_in_a_turn_is_one_message() {
        let mut history = History::new(false);
        history.text("user", "Hi".into());
        history.reasoning("First.".into());
        history.reasoning("Then.".into());
        history.text("assistant", "Let me look.".into());
        history.call("1".into(), "look".into(), "{}".into());
        history.call("2".into(), "hear".into(), "{}".into());
        history.result("2".into(), "noise".into());
        history.result("9".into(), "unknown".into());
        history.reasoning("Again.".into());
        history.text("assistant", "Done.".into());
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
        assert_eq!(
            json_of(history),
            json!([
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Let me look.", "reasoning_content": "First.\nThen.",
                 "tool_calls": [call("1", "look"), call("2", "hear")]},
                {"role": "tool", "content": "noise", "name": "hear", "tool_call_id": "2"},
                {"role": "tool", "content": "unknown", "tool_call_id": "9"},
                {"role": "assistant", "content": "Done.", "reasoning_content": "Again."},
            ])
        );
    }

    #[test]
    fn reasoning_after_text_or_calls_begins_a_message() {
        let mut history = History::new(false);
        history.text("assistant", "One.".into());
        history.reasoning("Hm.".into());
        history.call("1".into(), "f".into(), "{}".into());
        history.reasoning("Hm!".into());
        let messages = json_of(history);
        assert_eq!(messages.as_array().map(Vec::len), Some(3));
        assert_eq!(messages[1]["reasoning_content"], "Hm.");
        assert!(messages[1]["tool_calls"].is_array());
        assert_eq!(messages[2]["reasoning_content"], "Hm!");
    }

    #[test]
    fn one_instruction_stays_and_others_become_the_users() {
        let build = |texts: &[(&str, &str)]| {
            let mut history = History::new(false);
            for (role, text) in texts {
                history.text(role, (*text).into());
            }
            history.into_messages()
        };
        let given = [
            ("system", "a"),
            ("developer", "b"),
            ("user", "c"),
            ("system", "d"),
            ("assistant", "e"),
        ];
        let expected = [
            ("system", "a\nb"),
            ("user", "c"),
            ("user", "d"),
            ("assistant", "e"),
        ];
        assert_eq!(with_one_instruction(&build(&given)), Some(build(&expected)));
        assert_eq!(with_one_instruction(&build(&expected)), None);
    }

    #[test]
    fn texts_of_the_user_are_joined_where_the_api_joins_them() {
        for (joins, expected) in [
            (true, json!(["a\nb", "s", "c"])),
            (false, json!(["a", "b", "s", "c"])),
        ] {
            let mut history = History::new(joins);
            for (role, text) in [("user", "a"), ("user", "b"), ("system", "s"), ("user", "c")] {
                history.text(role, text.into());
            }
            let texts: Vec<Value> = json_of(history)
                .as_array()
                .into_iter()
                .flatten()
                .map(|message| message["content"].clone())
                .collect();
            assert_eq!(Value::Array(texts), expected);
        }
    }
}
