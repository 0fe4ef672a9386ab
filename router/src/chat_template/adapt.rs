//! Turns a client's conversation into the messages that the model's template expects.
//!
//! Templates were written against the messages of `apply_chat_template`: a key is there when it has a value, the
//! arguments of a tool call are an object, and what a content may be depends on the template. Clients send OpenAI's
//! messages.

use serde_json::{Map, Value};

use super::message::{Content, Message};

/// The forms of messages that a template understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forms {
    pub content: ContentForm,
    /// Form of the missing content of an assistant's message that calls tools.
    pub null_with_calls: NullForm,
    /// Form of the missing content of an assistant's message that calls none.
    pub null_alone: NullForm,
    pub arguments: ArgumentsForm,
    /// True if the template treats `developer` messages differently from others.
    pub knows_developer: bool,
}

/// The form in which the template expects `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentForm {
    /// A string only: the template prints or concatenates `message.content`.
    Text,
    /// A list of parts only: the template loops over `message.content` without checking for a string.
    Parts,
    /// The form that the client sent.
    Either,
}

/// The form in which the template expects missing content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NullForm {
    /// `none`, which the template checks for.
    None,
    /// Empty content, since the template would print `None` or fail.
    Empty,
}

/// The form in which the template expects the arguments of past tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentsForm {
    Object,
    /// JSON text, since the template fails with an object.
    Text,
}

/// Names under which clients send reasoning, as in Transformers. The template gets it under the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Forms {
    /// Converts the message to the template's form.
    pub fn adapt(&self, message: &Message) -> Value {
        let mut adapted = Map::new();
        let role = match message.role.as_str() {
            "developer" if !self.knows_developer => "system",
            role => role,
        };
        adapted.insert("role".into(), role.into());
        let calls = message
            .extra
            .get("tool_calls")
            .and_then(Value::as_array)
            .is_some_and(|calls| !calls.is_empty());
        if let Some(content) = self.content_of(message, calls) {
            adapted.insert("content".into(), content);
        }
        for (name, value) in &message.extra {
            let value = match (name.as_str(), value) {
                (_, Value::Null) => continue,
                ("tool_calls", Value::Array(calls)) => {
                    calls.iter().map(|call| self.call(call)).collect()
                }
                _ => value.clone(),
            };
            adapted.insert(name.clone(), value);
        }
        let reasoning = REASONING
            .iter()
            .find_map(|name| adapted.get(*name))
            .cloned();
        if let Some(reasoning) = reasoning {
            adapted.insert(REASONING[0].into(), reasoning.clone());
            adapted.entry("thinking").or_insert(reasoning);
        }
        Value::Object(adapted)
    }

    fn content_of(&self, message: &Message, calls: bool) -> Option<Value> {
        match (&message.content, self.content) {
            (Some(Content::Parts(parts)), ContentForm::Text) => {
                let texts = parts.iter().filter_map(|part| part.text.as_deref());
                Some(Value::String(texts.collect()))
            }
            (Some(Content::Parts(parts)), _) => Some(parts.iter().map(part_json).collect()),
            (Some(Content::Text(text)), ContentForm::Parts) => {
                Some(Value::Array(vec![text_part(text)]))
            }
            (Some(Content::Text(text)), _) => Some(Value::String(text.clone())),
            (None, form) if message.role == "assistant" => {
                let null = if calls {
                    self.null_with_calls
                } else {
                    self.null_alone
                };
                Some(match (null, form) {
                    (NullForm::None, _) => Value::Null,
                    (NullForm::Empty, ContentForm::Parts) => Value::Array(Vec::new()),
                    (NullForm::Empty, _) => Value::String(String::new()),
                })
            }
            (None, _) => None,
        }
    }

    /// Converts a past tool call, without keys that are null.
    fn call(&self, call: &Value) -> Value {
        let Value::Object(call) = call else {
            return call.clone();
        };
        let mut call = without_nulls(call);
        if let Some(Value::Object(function)) = call.get_mut("function") {
            let mut kept = without_nulls(function);
            let arguments = kept.remove("arguments");
            kept.insert("arguments".into(), self.arguments(arguments));
            *function = kept;
        }
        Value::Object(call)
    }

    fn arguments(&self, arguments: Option<Value>) -> Value {
        let object = match arguments {
            None => Value::Object(Map::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
            Some(Value::String(text)) => {
                if self.arguments == ArgumentsForm::Text {
                    return Value::String(text);
                }
                match serde_json::from_str(&text) {
                    Ok(Value::Object(object)) => Value::Object(object),
                    // Arguments that are not an object are passed on unchanged.
                    _ => return Value::String(text),
                }
            }
            Some(other) => other,
        };
        match self.arguments {
            ArgumentsForm::Object => object,
            ArgumentsForm::Text => Value::String(object.to_string()),
        }
    }
}

fn part_json(part: &super::ContentPart) -> Value {
    let mut json = Map::new();
    json.insert("type".into(), part.kind.as_str().into());
    if let Some(text) = &part.text {
        json.insert("text".into(), text.as_str().into());
    }
    Value::Object(json)
}

fn text_part(text: &str) -> Value {
    serde_json::json!({"type": "text", "text": text})
}

fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    let entries = map.iter().filter(|(_, value)| !value.is_null());
    entries
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{ChatTemplate, RenderOptions};
    use super::*;

    const CALLS: &str = "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}({{ k }}={{ v }}){% endfor %}{% endfor %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}";

    fn prompt(template: &str, messages: Value) -> String {
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        ChatTemplate::compile(template, Map::new())
            .unwrap()
            .render(&messages, &RenderOptions::default())
            .unwrap()
    }

    fn call(arguments: Value) -> Value {
        json!([{"role": "assistant", "content": null, "tool_calls": [
            {"id": null, "type": "function", "function": {"name": "f", "arguments": arguments}}]}])
    }

    #[test]
    fn a_content_that_is_null_is_empty_unless_the_template_asks_for_none() {
        let messages =
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]);
        for (template, expected) in [
            (
                "{% for m in messages %}{{ m.role ~ ':' ~ m.content }}|{% endfor %}",
                "user:a|assistant:|",
            ),
            (
                "{% for m in messages %}{{ m.role + ':' + m['content'] }}|{% endfor %}",
                "user:a|assistant:|",
            ),
            (
                "{% for m in messages %}{{ m.content | trim }}|{% endfor %}",
                "a||",
            ),
            (
                "{% for m in messages %}{{ m.content | tojson }}|{% endfor %}",
                "\"a\"|\"\"|",
            ),
            (
                "{% for m in messages %}{% if m.content is none %}nothing{% else %}{{ m.content }}{% endif %}|{% endfor %}",
                "a|nothing|",
            ),
            (
                "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}|{% endfor %}",
                "a||",
            ),
        ] {
            assert_eq!(prompt(template, messages.clone()), expected, "{template}");
        }
    }

    #[test]
    fn keys_that_are_null_are_absent() {
        let template = "{% for m in messages %}{{ 'tool_calls' in m }}{{ m.refusal is defined }}{{ m.name is defined }}{{ m.content }}{% endfor %}";
        let messages = json!([{"role": "assistant", "content": "a", "tool_calls": null, "refusal": null, "name": "n"}]);
        assert_eq!(prompt(template, messages), "FalseFalseTruea");
        let template = "{% for m in messages %}{% if m.tool_calls %}{{ 'id' in m.tool_calls[0] }}{% endif %}{{ m.content }}{% endfor %}";
        assert_eq!(prompt(template, call(json!("{}"))), "False");
    }

    #[test]
    fn arguments_of_past_calls_are_objects() {
        let given = json!("{\"b\": 1.0, \"a\": [null, \"é\"]}");
        assert_eq!(prompt(CALLS, call(given)), "f(b=1.0)(a=[None, 'é'])");
        assert_eq!(prompt(CALLS, call(json!({"a": 1}))), "f(a=1)");
        assert_eq!(prompt(CALLS, call(json!(""))), "f");
        assert_eq!(prompt(CALLS, call(json!(null))), "f");
        let shown = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}{% endfor %}";
        assert_eq!(prompt(shown, call(json!("not JSON"))), "not JSON");
        assert_eq!(prompt(shown, call(json!("[1]"))), "[1]");
    }

    #[test]
    fn arguments_stay_text_for_a_template_that_concatenates_them() {
        let template = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}";
        assert_eq!(prompt(template, call(json!("{\"a\":  1}"))), "f{\"a\":  1}");
        assert_eq!(prompt(template, call(json!({"a": 1}))), "f{\"a\":1}");
    }

    #[test]
    fn reasoning_reaches_the_template_under_the_names_that_templates_know() {
        let template = "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.content }}{% endfor %}";
        for name in REASONING {
            let mut message = json!({"role": "assistant", "content": "c"});
            message[name] = json!("r");
            assert_eq!(prompt(template, json!([message])), "rrc");
        }
    }
}
