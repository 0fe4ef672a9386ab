//! Translates the input of a response to the messages of a chat.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::fields::{content, expected, optional_text, text};
use super::request::{Item, ResponsesRequest, TextConfig};
use super::tools::{Tools, custom_arguments, flattened};
use crate::api::conversation::history::History;
use crate::api::openai::ChatRequest;
use crate::error::ApiError;

/// Part of the answer that a client includes to get the reasoning in a form that it only passes on.
pub const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";
/// Part of the answer with the log-probabilities of its text.
pub const TEXT_LOGPROBS: &str = "message.output_text.logprobs";

/// Beginning of reasoning that this server has packed.
const PACKED: &str = "gridwork:";

/// Types of items of other servers' features. The model cannot use them, so they are left out.
const LEFT_OUT: [&str; 8] = [
    "compaction",
    "compaction_summary",
    "context_compaction",
    "ghost_snapshot",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_list_tools",
    "program",
];

/// Reasoning as `encrypted_content`, for clients that pass on nothing else of it.
pub fn packed(reasoning: &str) -> String {
    [PACKED, &STANDARD.encode(reasoning)].concat()
}

/// Reasoning in an `encrypted_content` of this server; `None` for that of others.
fn unpacked(packed: &str) -> Option<String> {
    let bytes = STANDARD.decode(packed.strip_prefix(PACKED)?).ok()?;
    String::from_utf8(bytes).ok()
}

/// The chat that `request` stands for. `items`: the conversation, earlier responses included.
pub fn chat(
    request: &ResponsesRequest,
    earlier: &[Item],
    input: &[Item],
    tools: &mut Tools,
) -> Result<ChatRequest, ApiError> {
    let mut history = History::new(false);
    if let Some(instructions) = request
        .instructions
        .as_deref()
        .filter(|text| !text.is_empty())
    {
        history.text("system", instructions.to_owned());
    }
    for (index, item) in earlier.iter().enumerate() {
        add(&mut history, item, &format!("previous_response[{index}]"))?;
    }
    for (index, item) in input.iter().enumerate() {
        add(&mut history, item, &format!("input[{index}]"))?;
    }
    let messages = history.into_messages();
    if messages.is_empty() {
        return Err(ApiError::validation(
            "input",
            "`input` must not be empty, unless there are `instructions` or a `previous_response_id`",
        ));
    }
    let tool_choice = tools.choose(request.tool_choice.as_ref())?;
    let effort = request
        .reasoning
        .as_ref()
        .and_then(|reasoning| reasoning.effort.clone());
    let mut variables = Map::new();
    if effort.as_deref() == Some("none") {
        variables
            .extend(["enable_thinking", "thinking"].map(|name| (name.to_owned(), false.into())));
    }
    variables.extend(request.chat_template_kwargs.clone().unwrap_or_default());
    let wants_logprobs =
        request.includes(TEXT_LOGPROBS) || request.top_logprobs.is_some_and(|top| top > 0);
    Ok(ChatRequest {
        messages,
        max_completion_tokens: request.max_output_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        logprobs: wants_logprobs.then_some(true),
        top_logprobs: request.top_logprobs.filter(|_| wants_logprobs),
        cache_salt: request.cache_salt.clone(),
        stream: request.stream,
        tools: (!tools.functions.is_empty()).then(|| Value::Array(tools.functions.clone())),
        tool_choice,
        parallel_tool_calls: request.parallel_tool_calls,
        reasoning_effort: effort,
        response_format: response_format(request.text.as_ref())?,
        chat_template_kwargs: (!variables.is_empty()).then_some(variables),
        // The answer is a turn of its own, also after a message of the assistant.
        add_generation_prompt: Some(true),
        ..ChatRequest::default()
    })
}

fn add(history: &mut History, item: &Item, path: &str) -> Result<(), ApiError> {
    let kind = match optional_text(item, path, "type")? {
        Some(kind) => kind,
        None if item.contains_key("role") => "message",
        None => text(item, path, "type")?,
    };
    match kind {
        "message" => add_message(history, item, path),
        "reasoning" => add_reasoning(history, item, path),
        "function_call" => {
            let name = text(item, path, "name")?;
            let name = match optional_text(item, path, "namespace")? {
                Some(namespace) => flattened(namespace, name),
                None => name.to_owned(),
            };
            let arguments = text(item, path, "arguments")?.to_owned();
            history.call(text(item, path, "call_id")?.to_owned(), name, arguments);
            Ok(())
        }
        "custom_tool_call" => {
            let arguments = custom_arguments(text(item, path, "input")?);
            let name = text(item, path, "name")?.to_owned();
            history.call(text(item, path, "call_id")?.to_owned(), name, arguments);
            Ok(())
        }
        "function_call_output" | "custom_tool_call_output" => add_output(history, item, path),
        kind if LEFT_OUT.contains(&kind)
            || kind.ends_with("_call")
            || kind.ends_with("_output") =>
        {
            Ok(())
        }
        kind => {
            let field = format!("{path}.type");
            let message = format!("`{field}`: there are no items of type {kind:?}");
            Err(ApiError::validation(&field, message))
        }
    }
}

fn add_message(history: &mut History, item: &Item, path: &str) -> Result<(), ApiError> {
    let role = text(item, path, "role")?;
    if !["user", "assistant", "system", "developer"].contains(&role) {
        let field = format!("{path}.role");
        let message = format!(
            "`{field}` must be \"user\", \"assistant\", \"system\" or \"developer\". Given: {role:?}"
        );
        return Err(ApiError::validation(&field, message));
    }
    let text = content(item.get("content"), &format!("{path}.content"))?;
    history.text(role, text);
    Ok(())
}

fn add_reasoning(history: &mut History, item: &Item, path: &str) -> Result<(), ApiError> {
    let mut reasoning = String::new();
    for field in ["content", "summary"] {
        let given = item.get(field).filter(|value| !value.is_null());
        if let (Some(given), true) = (given, reasoning.is_empty()) {
            reasoning = content(Some(given), &format!("{path}.{field}"))?;
        }
    }
    if reasoning.is_empty() {
        let packed = optional_text(item, path, "encrypted_content")?;
        reasoning = packed.and_then(unpacked).unwrap_or_default();
    }
    if !reasoning.is_empty() {
        history.reasoning(reasoning);
    }
    Ok(())
}

fn add_output(history: &mut History, item: &Item, path: &str) -> Result<(), ApiError> {
    let id = text(item, path, "call_id")?;
    if !history.has_call(id) {
        let field = format!("{path}.call_id");
        let message = format!("`{field}` is {id:?}, and no call before it has this id");
        return Err(ApiError::validation(&field, message));
    }
    let output = match item.get("output") {
        // Some clients wrap the text.
        Some(Value::Object(output)) => {
            content(output.get("content"), &format!("{path}.output.content"))?
        }
        output => content(output, &format!("{path}.output"))?,
    };
    history.result(id.to_owned(), output);
    Ok(())
}

/// `response_format` of a chat.
fn response_format(config: Option<&TextConfig>) -> Result<Option<Value>, ApiError> {
    let Some(format) = config.and_then(|config| config.format.as_ref()) else {
        return Ok(None);
    };
    match text(format, "text.format", "type")? {
        "text" => Ok(None),
        "json_object" => Ok(Some(json!({"type": "json_object"}))),
        "json_schema" => {
            // Clients that were written for chats nest the schema.
            let nested = format.get("json_schema").and_then(Value::as_object);
            let mut named = nested.unwrap_or(format).clone();
            named.remove("type");
            if !named.get("schema").is_some_and(Value::is_object) {
                return Err(expected("text.format.schema", "an object"));
            }
            named.entry("name").or_insert_with(|| "answer".into());
            Ok(Some(json!({"type": "json_schema", "json_schema": named})))
        }
        kind => Err(ApiError::validation(
            "text.format.type",
            format!(
                "`text.format.type` must be \"text\", \"json_object\" or \"json_schema\". Given: {kind:?}"
            ),
        )),
    }
}

#[cfg(test)]
#[path = "translation_tests.rs"]
mod tests;
