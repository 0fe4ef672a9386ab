//! Formats from response templates, against the answers of Transformers' own parser.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::test_families::{data, parse_cut_everywhere};
use super::{Plan, Tool, response_template};

/// Written by `integration-tests/test_response_templates.py`.
#[derive(Deserialize)]
struct File {
    templates: BTreeMap<String, Value>,
    tools: Vec<Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    prefix: String,
    answer: String,
    message: Value,
}

#[test]
fn answers_are_taken_apart_as_transformers_does() {
    let file: File = data("response_templates.json");
    let tools: Arc<[Tool]> = file
        .tools
        .iter()
        .map(|tool| Tool {
            name: tool["function"]["name"].as_str().unwrap().to_owned(),
            parameters: tool["function"]["parameters"].clone(),
            strict: false,
        })
        .collect();
    assert!(file.cases.len() > 30);
    for case in &file.cases {
        let format = response_template::translate(&file.templates[&case.template]).unwrap();
        let plan = Plan::new(Arc::new(format), Arc::clone(&tools), true, &case.prefix).unwrap();
        // The end of a turn is no part of a generated text.
        let answer = case.answer.replace("<|im_end|>", "");
        let parsed = parse_cut_everywhere(&plan, &answer, &case.template);
        let context = format!("{}: {answer:?} is {parsed:?}", case.template);
        let text = |key: &str| case.message[key].as_str().unwrap_or_default();
        assert_eq!(parsed.content.trim(), text("content"), "{context}");
        assert_eq!(
            parsed.reasoning.trim(),
            text("reasoning_content"),
            "{context}"
        );
        let calls: Vec<Value> = parsed
            .calls
            .iter()
            .map(|(name, arguments)| {
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                json!({"type": "function", "function": {"name": name, "arguments": arguments}})
            })
            .collect();
        let wanted = case.message.get("tool_calls");
        assert_eq!(json!(calls), *wanted.unwrap_or(&json!([])), "{context}");
    }
}
