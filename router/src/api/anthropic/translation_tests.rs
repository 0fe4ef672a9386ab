use serde_json::{Value, json};

use super::*;

fn request(mut body: Value, more: Value) -> MessagesRequest {
    let entries = more.as_object().cloned().unwrap_or_default();
    body.as_object_mut().expect("an object").extend(entries);
    serde_json::from_value(body).expect("a request")
}

fn translated(more: Value) -> Result<ChatRequest, ApiError> {
    let messages = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9});
    chat(request(messages, more))
}

fn messages_of(more: Value) -> Value {
    let chat = translated(more).expect("a chat");
    serde_json::to_value(chat.messages).expect("JSON")
}

#[test]
fn parameters_keep_their_meaning() {
    let chat = translated(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["END"], "stream": true, "system": "Be kind.",
        "metadata": {"user_id": "u"}, "service_tier": "auto", "context_management": {"edits": []}, "betas": ["x"],
        "output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 1024},
    }))
    .expect("a chat");
    let variables = json!({"enable_thinking": true, "thinking": true});
    let expected = ChatRequest {
        messages: chat.messages.clone(),
        max_tokens: Some(9),
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(40),
        stop: Some(Stop::Many(vec!["END".into()])),
        stream: Some(true),
        reasoning_effort: Some("low".into()),
        chat_template_kwargs: variables.as_object().cloned(),
        ..ChatRequest::default()
    };
    assert_eq!(chat, expected);
    assert_eq!(chat.messages[0].role, "system");
}

#[test]
fn instructions_are_a_text_or_blocks_without_the_nonce() {
    let marked = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": "1h"}});
    for system in [
        json!("You are kind.\nAlways."),
        json!([marked("You are kind."), marked("Always.")]),
        json!([{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.328; cch=1a2b3;"},
               marked("You are kind."), marked("Always.")]),
    ] {
        let messages = messages_of(json!({ "system": system }));
        assert_eq!(
            messages[0],
            json!({"role": "system", "content": "You are kind.\nAlways."})
        );
    }
    for empty in [json!(null), json!([]), json!("")] {
        let messages = messages_of(json!({ "system": empty }));
        assert_eq!(messages[0]["role"], "user");
    }
}

#[test]
fn a_turn_with_tools_becomes_openais_messages() {
    let messages = messages_of(json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "text", "text": "Now."}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Look it up.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "AAAA"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern", "days": [1, 2]}},
            {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sun"},
                                                                          {"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no clock", "is_error": true},
            {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
        ]},
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Go on."},
    ]}));
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    assert_eq!(
        messages,
        json!([
            {"role": "user", "content": "Weather?\nNow."},
            {"role": "assistant", "content": "I look.", "reasoning_content": "Look it up.", "tool_calls": [
                call("toolu_1", "weather", r#"{"city":"Bern","days":[1,2]}"#), call("toolu_2", "time", "{}")]},
            {"role": "tool", "content": "sun\nrain", "name": "weather", "tool_call_id": "toolu_1"},
            {"role": "tool", "content": "Error: no clock", "name": "time", "tool_call_id": "toolu_2"},
            {"role": "user", "content": "And?"},
            {"role": "system", "content": "Answer in French."},
            {"role": "user", "content": "Go on."},
        ])
    );
}

#[test]
fn a_result_that_tells_of_its_failure_stays_as_it_is() {
    for (content, expected) in [
        (json!("error: no"), "error: no"),
        (
            json!("<tool_use_error>no</tool_use_error>"),
            "<tool_use_error>no</tool_use_error>",
        ),
        (json!("no"), "Error: no"),
        (json!(null), "Error: "),
        (json!("érreur"), "Error: érreur"),
    ] {
        let messages = messages_of(json!({"messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "1", "is_error": true, "content": content}]},
        ]}));
        assert_eq!(messages[1]["content"], expected);
    }
}

#[test]
fn documents_and_search_results_are_text() {
    let block = |block: Value| {
        let messages = messages_of(json!({"messages": [{"role": "user", "content": [block]}]}));
        messages[0]["content"].clone()
    };
    assert_eq!(
        block(
            json!({"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}})
        ),
        "T\nD"
    );
    assert_eq!(
        block(
            json!({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}})
        ),
        "a\nb"
    );
    assert_eq!(
        block(
            json!({"type": "search_result", "source": "http://x", "title": "T", "content": [{"type": "text", "text": "a"}]})
        ),
        "http://x\nT\na"
    );
}

#[test]
fn schemas_of_the_answer_become_a_response_format() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let format = json!({"type": "json_schema", "schema": schema});
    for more in [
        json!({"output_config": {"format": format}}),
        json!({ "output_format": format }),
    ] {
        let format = translated(more)
            .expect("a chat")
            .response_format
            .expect("a format");
        assert_eq!(format["json_schema"]["schema"], schema);
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_path() {
    let blocks = |role: &str, block: Value| json!({"messages": [{"role": role, "content": [{"type": "text", "text": "a"}, block]}]});
    let at = |rest: &str| format!("messages[0].content[1].{rest}");
    for (more, field) in [
        (json!({"messages": []}), "messages".to_owned()),
        (
            json!({"messages": [{"role": "tool", "content": "a"}]}),
            "messages[0].role".into(),
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content".into(),
        ),
        (
            blocks("user", json!({"type": "image", "source": {}})),
            at("type"),
        ),
        (blocks("user", json!({"type": "text"})), at("text")),
        (
            blocks(
                "user",
                json!({"type": "document", "source": {"type": "base64", "data": ""}}),
            ),
            at("source"),
        ),
        (
            blocks(
                "user",
                json!({"type": "tool_use", "id": "1", "name": "f", "input": {}}),
            ),
            at("type"),
        ),
        (
            blocks("user", json!({"type": "tool_result"})),
            at("tool_use_id"),
        ),
        (
            blocks("user", json!({"type": "tool_result", "tool_use_id": "9"})),
            at("tool_use_id"),
        ),
        (
            blocks("assistant", json!({"type": "tool_use", "id": "1"})),
            at("name"),
        ),
        (
            blocks("assistant", json!({"type": "thinking"})),
            at("thinking"),
        ),
        (
            json!({"system": [{"type": "image"}]}),
            "system[0].type".into(),
        ),
        (
            json!({"system": [{"type": "text"}]}),
            "system[0].text".into(),
        ),
        (
            json!({"thinking": {"type": "often"}}),
            "thinking.type".into(),
        ),
        (
            json!({"output_config": {"format": {"type": "yaml"}}}),
            "output_config.format".into(),
        ),
        (
            json!({"tool_choice": {"type": "any"}}),
            "tool_choice".into(),
        ),
    ] {
        let error = translated(more.clone()).expect_err("a refusal");
        assert_eq!(error.field, Some(field.clone()), "{more}");
        assert!(error.message.contains(&field), "{}", error.message);
    }
}
