//! Random bodies made of the APIs' own names: their translation refuses or succeeds, and never fails otherwise.
//! `PROPTEST_CASES` sets how many are tried.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::anthropic::fuzzing::translated as messages_chat;
use super::openai::ChatRequest;
use super::responses::fuzzing::translated as responses_chat;
use crate::error::{ApiError, Dialect};

/// Names of fields and types, and values that some fields have.
const WORDS: [&str; 56] = [
    "type",
    "role",
    "content",
    "text",
    "name",
    "id",
    "call_id",
    "arguments",
    "output",
    "input",
    "function",
    "parameters",
    "input_schema",
    "strict",
    "message",
    "reasoning",
    "summary",
    "encrypted_content",
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "item_reference",
    "custom",
    "namespace",
    "tools",
    "allowed_tools",
    "mode",
    "auto",
    "none",
    "any",
    "tool",
    "required",
    "user",
    "assistant",
    "system",
    "developer",
    "input_text",
    "output_text",
    "refusal",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_use_id",
    "tool_result",
    "document",
    "source",
    "search_result",
    "image",
    "image_url",
    "format",
    "json_schema",
    "schema",
    "{\"a\": 1}",
    "gridwork:AAAA",
    "web_search_call",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => prop::sample::select(&WORDS[..]).prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => ".{0,8}".prop_map(Value::from),
    ]
}

/// Any JSON, mostly objects with a `type` and other known fields.
fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 64, 6, |inner| {
        let name = prop::sample::select(&WORDS[..]);
        let fields = prop::collection::vec((name, inner.clone()), 0..6);
        let kind = prop::sample::select(&WORDS[..]);
        let object = (kind, fields).prop_map(|(kind, fields)| {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            let mut object: Map<String, Value> = fields.collect();
            object.insert("type".to_owned(), kind.into());
            Value::Object(object)
        });
        prop_oneof![
            3 => object,
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
}

fn list() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => prop::collection::vec(value(), 0..5).prop_map(Value::from),
        1 => value(),
    ]
}

/// The body without those fields that are `null`, which mean that they are left out.
fn body(fields: Value) -> Vec<u8> {
    fields.to_string().into_bytes()
}

/// A refusal is the client's fault, and its message names a field or says what is wrong.
fn is_refusal_or_chat(result: Result<ChatRequest, ApiError>) -> Result<(), TestCaseError> {
    let checked = result.and_then(|mut chat| chat.prepare());
    if let Err(error) = checked {
        let status = error.status(Dialect::OpenAi);
        prop_assert!(status.is_client_error(), "{status}: {error}");
        prop_assert!(!error.message.is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn responses_are_translated_or_refused(
        input in list(),
        tools in list(),
        choice in value(),
        text in value(),
    ) {
        let valid = json!([{"role": "user", "content": "hi"}]);
        for (input, tools) in [
            (&input, &tools),
            (&valid, &tools),
            (&input, &Value::Null),
        ] {
            let fields = json!({"input": input, "tools": tools, "tool_choice": choice, "text": {"format": text}});
            is_refusal_or_chat(responses_chat(&body(fields)))?;
        }
    }

    #[test]
    fn messages_are_translated_or_refused(
        content in list(),
        role in prop::sample::select(&["user", "assistant", "system", "tool"][..]),
        tools in list(),
        choice in value(),
        system in list(),
    ) {
        for (content, tools) in [(&content, &tools), (&json!("hi"), &tools), (&content, &Value::Null)] {
            let messages = json!([{"role": "user", "content": "hi"}, {"role": role, "content": content}]);
            let fields = json!({"messages": messages, "max_tokens": 5, "tools": tools, "tool_choice": choice});
            is_refusal_or_chat(messages_chat(&body(fields)))?;
        }
        let fields = json!({"messages": [{"role": "user", "content": "hi"}], "system": system});
        is_refusal_or_chat(messages_chat(&body(fields)))?;
    }
}
