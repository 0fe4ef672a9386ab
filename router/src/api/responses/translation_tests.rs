use serde_json::{Value, json};

use super::*;

fn request(body: Value) -> ResponsesRequest {
    serde_json::from_value(body).expect("a request")
}

fn items(json: Value) -> Vec<Item> {
    serde_json::from_value(json).expect("items")
}

fn translated(body: Value, input: Value) -> Result<ChatRequest, ApiError> {
    let request = request(body);
    let mut tools = Tools::read(request.tools.as_deref().unwrap_or_default())?;
    chat(&request, &[], &items(input), &mut tools)
}

fn messages(input: Value) -> Value {
    let chat = translated(json!({}), input).expect("a chat");
    serde_json::to_value(chat.messages).expect("JSON")
}

#[test]
fn parameters_keep_their_meaning() {
    let schema = json!({"type": "object"});
    let chat = translated(
        json!({
            "instructions": "Be kind.", "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stream": true,
            "reasoning": {"effort": "none", "summary": "auto"}, "parallel_tool_calls": false, "store": false,
            "include": ["reasoning.encrypted_content", TEXT_LOGPROBS], "top_logprobs": 2, "service_tier": "auto",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": true}, "verbosity": "low"},
            "prompt_cache_key": "k", "client_metadata": {"x": "y"},
        }),
        json!([{"role": "user", "content": "Hi"}]),
    )
    .expect("a chat");
    let variables = json!({"enable_thinking": false, "thinking": false});
    let expected = ChatRequest {
        messages: chat.messages.clone(),
        max_completion_tokens: Some(9),
        temperature: Some(0.5),
        top_p: Some(0.9),
        stream: Some(true),
        logprobs: Some(true),
        top_logprobs: Some(2),
        reasoning_effort: Some("none".into()),
        parallel_tool_calls: Some(false),
        response_format: Some(json!({
            "type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}})),
        chat_template_kwargs: variables.as_object().cloned(),
        add_generation_prompt: Some(true),
        ..ChatRequest::default()
    };
    assert_eq!(chat, expected);
    let roles: Vec<_> = chat
        .messages
        .iter()
        .map(|message| message.role.as_str())
        .collect();
    assert_eq!(roles, ["system", "user"]);
}

#[test]
fn items_become_the_messages_of_their_turns() {
    let messages = messages(json!([
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}],
         "content": [{"type": "reasoning_text", "text": "Look."}, {"type": "reasoning_text", "text": "Now."}]},
        {"type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{\"city\":\"Bern\"}"},
        {"type": "function_call", "call_id": "2", "namespace": "mcp", "name": "read", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "3", "name": "apply_patch", "input": "*** Begin"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {"type": "function_call_output", "call_id": "2",
         "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "custom_tool_call_output", "call_id": "3", "output": {"content": "done", "success": true}},
        {"type": "local_shell_call_output", "call_id": "9", "output": "x"},
        {"role": "user", "content": "And?"},
        {"role": "user", "content": "Well?"},
    ]));
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    assert_eq!(
        messages,
        json!([
            {"role": "developer", "content": "Rules."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "Look.\nNow.", "tool_calls": [
                call("1", "weather", "{\"city\":\"Bern\"}"), call("2", "mcp__read", "{}"),
                call("3", "apply_patch", "{\"input\":\"*** Begin\"}")]},
            {"role": "tool", "content": "sun", "name": "weather", "tool_call_id": "1"},
            {"role": "tool", "content": "a\nb", "name": "mcp__read", "tool_call_id": "2"},
            {"role": "tool", "content": "done", "name": "apply_patch", "tool_call_id": "3"},
            {"role": "user", "content": "And?"},
            {"role": "user", "content": "Well?"},
        ])
    );
}

#[test]
fn packed_reasoning_comes_back_and_that_of_others_is_left_out() {
    let reasoning = |packed: &str| {
        let item = json!({"type": "reasoning", "summary": [], "content": null, "encrypted_content": packed});
        messages(json!([item, {"role": "assistant", "content": "Yes."}]))
    };
    assert_eq!(reasoning(&packed("Hm é."))[0]["reasoning_content"], "Hm é.");
    for foreign in ["gAAAAABo", "gridwork:%%%"] {
        assert_eq!(
            reasoning(foreign),
            json!([{"role": "assistant", "content": "Yes."}])
        );
    }
}

#[test]
fn other_forms_of_the_text_are_json() {
    let format = |format: Value| {
        let body = json!({"text": {"format": format}});
        let chat = translated(body, json!([{"role": "user", "content": "Hi"}]));
        chat.map(|chat| chat.response_format)
            .map_err(|error| error.field.unwrap_or_default())
    };
    assert_eq!(format(json!({"type": "text"})), Ok(None));
    assert_eq!(
        format(json!({"type": "json_object"})),
        Ok(Some(json!({"type": "json_object"})))
    );
    let named = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}});
    for given in [
        json!({"type": "json_schema", "json_schema": {"schema": {}}}),
        json!({"type": "json_schema", "name": "answer", "schema": {}}),
    ] {
        let found = format(given).expect("a format").expect("a schema");
        assert_eq!(
            found["json_schema"]["schema"],
            named["json_schema"]["schema"]
        );
        assert_eq!(found["json_schema"]["name"], "answer");
    }
    for (wrong, field) in [
        (json!({"type": "yaml"}), "text.format.type"),
        (json!({}), "text.format.type"),
        (
            json!({"type": "json_schema", "name": "n"}),
            "text.format.schema",
        ),
    ] {
        assert_eq!(format(wrong), Err(field.to_owned()));
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_path() {
    for (item, field) in [
        (json!({"type": "mesage", "content": "a"}), "input[1].type"),
        (json!({"content": "a"}), "input[1].type"),
        (json!({"type": 5}), "input[1].type"),
        (json!({"role": "tool", "content": "a"}), "input[1].role"),
        (json!({"role": "user"}), "input[1].content"),
        (
            json!({"role": "user", "content": ["a"]}),
            "input[1].content[0]",
        ),
        (
            json!({"role": "user", "content": [{"type": "input_image"}]}),
            "input[1].content[0].type",
        ),
        (
            json!({"role": "user", "content": [{"type": "input_text"}]}),
            "input[1].content[0].text",
        ),
        (
            json!({"type": "function_call", "call_id": "1", "name": "f"}),
            "input[1].arguments",
        ),
        (
            json!({"type": "function_call_output", "call_id": "9", "output": "a"}),
            "input[1].call_id",
        ),
        (
            json!({"type": "custom_tool_call", "name": "f", "input": 5}),
            "input[1].input",
        ),
        (
            json!({"type": "reasoning", "content": 5}),
            "input[1].content",
        ),
    ] {
        let input = json!([{"role": "user", "content": "Hi"}, item]);
        let error = translated(json!({}), input).expect_err("a refusal");
        assert_eq!(error.field.as_deref(), Some(field), "{item}");
        assert!(error.message.contains(field), "{}", error.message);
    }
    let error = translated(json!({}), json!([])).expect_err("a refusal");
    assert_eq!(error.field.as_deref(), Some("input"));
    assert!(translated(json!({"instructions": "Speak."}), json!([])).is_ok());
}
