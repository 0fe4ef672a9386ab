//! Translates a conversation in Anthropic's form to that of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::nonce::without_billing_header;
use super::request::{Block, InputMessage, MessagesRequest, OutputConfig, Thinking};
use super::tools;
use crate::api::conversation::history::History;
use crate::api::conversation::text_or_list::TextOrList;
use crate::api::openai::ChatRequest;
use crate::error::ApiError;
use crate::generation::values::Stop;

/// Separator of the texts of one message or result.
const BETWEEN_TEXTS: &str = "\n";

/// The chat that `request` stands for.
pub fn chat(request: MessagesRequest) -> Result<ChatRequest, ApiError> {
    let mut history = History::new(true);
    if let Some(system) = &request.system {
        let text = system_text(system)?;
        if !text.is_empty() {
            history.text("system", text);
        }
    }
    if request.messages.is_empty() {
        return Err(ApiError::validation(
            "messages",
            "`messages` must not be empty",
        ));
    }
    for (index, message) in request.messages.iter().enumerate() {
        add_message(&mut history, message, &format!("messages[{index}]"))?;
    }
    let functions = tools::definitions(request.tools.as_deref().unwrap_or_default())?;
    let choice = request.tool_choice.as_ref();
    let choice = choice.map(|given| tools::choice(given, &functions));
    let (tool_choice, parallel_tool_calls) = choice.transpose()?.unzip();
    let (reasoning_effort, response_format) = output(request.output_config, request.output_format)?;
    let mut variables = thinking_variables(request.thinking.as_ref())?;
    variables.extend(request.chat_template_kwargs.unwrap_or_default());
    Ok(ChatRequest {
        messages: history.into_messages(),
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        stop: request.stop_sequences.map(Stop::Many),
        cache_salt: request.cache_salt,
        stream: request.stream,
        tools: (!functions.is_empty()).then_some(Value::Array(functions)),
        tool_choice,
        parallel_tool_calls: parallel_tool_calls.flatten(),
        reasoning_effort,
        response_format,
        chat_template_kwargs: (!variables.is_empty()).then_some(variables),
        ..ChatRequest::default()
    })
}

/// Text of the instructions, without lines that mean nothing to the model.
fn system_text(system: &TextOrList<Block>) -> Result<String, ApiError> {
    let blocks = match system {
        TextOrList::Text(text) => return Ok(without_billing_header(text).to_owned()),
        TextOrList::List(blocks) => blocks,
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("system[{index}]");
        if block.kind != "text" {
            return Err(unsupported_block(block, &path));
        }
        let text = without_billing_header(needed(block.text.as_deref(), &path, "text")?);
        if !text.is_empty() {
            texts.push(text);
        }
    }
    Ok(texts.join(BETWEEN_TEXTS))
}

fn add_message(history: &mut History, message: &InputMessage, path: &str) -> Result<(), ApiError> {
    let role = message.role.as_str();
    if !["user", "assistant", "system"].contains(&role) {
        let field = format!("{path}.role");
        let message =
            format!("`{field}` must be \"user\", \"assistant\" or \"system\". Given: {role:?}");
        return Err(ApiError::validation(&field, message));
    }
    match &message.content {
        Some(TextOrList::Text(text)) => history.text(role, text.clone()),
        Some(TextOrList::List(blocks)) => {
            for (index, block) in blocks.iter().enumerate() {
                add_block(history, role, block, &format!("{path}.content[{index}]"))?;
            }
        }
        None => {
            let field = format!("{path}.content");
            return Err(ApiError::validation(
                &field,
                format!("`{field}` is missing"),
            ));
        }
    }
    Ok(())
}

fn add_block(history: &mut History, role: &str, block: &Block, path: &str) -> Result<(), ApiError> {
    match (block.kind.as_str(), role) {
        ("thinking", "assistant") => {
            let text = needed(block.thinking.as_deref(), path, "thinking")?;
            if !text.is_empty() {
                history.reasoning(text.to_owned());
            }
        }
        // Only Anthropic can read the reasoning, and only its servers run such tools.
        ("redacted_thinking" | "server_tool_use" | "mcp_tool_use" | "mcp_tool_result", _) => {}
        (kind, _) if kind.ends_with("_tool_result") => {}
        ("tool_use", "assistant") => {
            let id = needed(block.id.as_deref(), path, "id")?;
            let name = needed(block.name.as_deref(), path, "name")?;
            let input = block.input.clone().unwrap_or_default();
            let arguments = Value::Object(input).to_string();
            history.call(id.to_owned(), name.to_owned(), arguments);
        }
        ("tool_result", "user") => add_result(history, block, path)?,
        _ => history.text(role, text_of(block, path)?),
    }
    Ok(())
}

/// Appends the result of a call. The model is told of a failed call by the text, since chat templates know no flag.
fn add_result(history: &mut History, block: &Block, path: &str) -> Result<(), ApiError> {
    let id = needed(block.tool_use_id.as_deref(), path, "tool_use_id")?;
    if !history.has_call(id) {
        let field = format!("{path}.tool_use_id");
        let message =
            format!("`{field}` is {id:?}, and no block of type `tool_use` before it has this id");
        return Err(ApiError::validation(&field, message));
    }
    let mut text = texts_of(block.content.as_ref(), &format!("{path}.content"))?;
    let says_so = text.starts_with('<')
        || text
            .get(..ERROR.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(ERROR));
    if block.is_error == Some(true) && !says_so {
        text.insert_str(0, "Error: ");
    }
    history.result(id.to_owned(), text);
    Ok(())
}

/// Beginning of a result that tells of its failure by itself.
const ERROR: &str = "error";

fn texts_of(content: Option<&TextOrList<Block>>, path: &str) -> Result<String, ApiError> {
    match content {
        None => Ok(String::new()),
        Some(TextOrList::Text(text)) => Ok(text.clone()),
        Some(TextOrList::List(blocks)) => {
            let texts = blocks
                .iter()
                .enumerate()
                .map(|(index, block)| text_of(block, &format!("{path}[{index}]")));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.join(BETWEEN_TEXTS))
        }
    }
}

/// Text of a block that has one.
fn text_of(block: &Block, path: &str) -> Result<String, ApiError> {
    match block.kind.as_str() {
        "text" => needed(block.text.as_deref(), path, "text").map(str::to_owned),
        "document" => document(block, path),
        "search_result" => {
            let source = block.source.as_ref().and_then(Value::as_str);
            let content = texts_of(block.content.as_ref(), &format!("{path}.content"))?;
            Ok(titled(source, titled(block.title.as_deref(), content)))
        }
        "tool_reference" => Ok(String::new()),
        _ => Err(unsupported_block(block, path)),
    }
}

/// Text of a document: a plain text, or blocks of type `text`.
fn document(block: &Block, path: &str) -> Result<String, ApiError> {
    let source = block.source.as_ref().unwrap_or(&Value::Null);
    let kind = source.get("type").and_then(Value::as_str);
    let text = match kind {
        Some("text") => source.get("data").and_then(Value::as_str),
        Some("content") => source.get("content").and_then(Value::as_str),
        _ => None,
    };
    let text = text.map(str::to_owned).or_else(|| {
        let parts = source.get("content").filter(|_| kind == Some("content"))?;
        let texts = parts.as_array()?.iter().map(|part| part["text"].as_str());
        Some(texts.collect::<Option<Vec<_>>>()?.join(BETWEEN_TEXTS))
    });
    let field = format!("{path}.source");
    let text = text.ok_or_else(|| {
        let message = format!(
            "`{field}`: only documents of type \"text\", or \"content\" with blocks of type `text`, are supported by \
             this version; the model reads no files"
        );
        ApiError::validation(&field, message)
    })?;
    Ok(titled(block.title.as_deref(), text))
}

fn titled(title: Option<&str>, text: String) -> String {
    match title {
        Some(title) => [title, BETWEEN_TEXTS, &text].concat(),
        None => text,
    }
}

fn needed<'a>(value: Option<&'a str>, path: &str, field: &str) -> Result<&'a str, ApiError> {
    value.ok_or_else(|| {
        let field = format!("{path}.{field}");
        ApiError::validation(&field, format!("`{field}` is missing"))
    })
}

fn unsupported_block(block: &Block, path: &str) -> ApiError {
    let field = format!("{path}.type");
    let message = format!(
        "`{field}`: blocks of type {:?} are not supported here by this version; only text is",
        block.kind
    );
    ApiError::validation(&field, message)
}

/// Variables of chat templates that switch reasoning on or off.
fn thinking_variables(thinking: Option<&Thinking>) -> Result<Map<String, Value>, ApiError> {
    let Some(thinking) = thinking else {
        return Ok(Map::new());
    };
    let enabled = match thinking.kind.as_str() {
        "enabled" | "adaptive" => true,
        "disabled" => false,
        other => {
            return Err(ApiError::validation(
                "thinking.type",
                format!(
                    "`thinking.type` must be \"enabled\", \"adaptive\" or \"disabled\". Given: {other:?}"
                ),
            ));
        }
    };
    Ok(["enable_thinking", "thinking"]
        .map(|name| (name.to_owned(), Value::Bool(enabled)))
        .into_iter()
        .collect())
}

/// Effort of the reasoning, and `response_format`.
fn output(
    config: Option<OutputConfig>,
    older: Option<Value>,
) -> Result<(Option<String>, Option<Value>), ApiError> {
    let OutputConfig { effort, format } = config.unwrap_or_default();
    let (field, format) = match (format, older) {
        (Some(format), None) => ("output_config.format", format),
        (None, Some(format)) => ("output_format", format),
        (None, None) => return Ok((effort, None)),
        (Some(_), Some(_)) => {
            return Err(ApiError::validation(
                "output_format",
                "`output_format` and `output_config.format` exclude each other",
            ));
        }
    };
    let schema = format.get("schema").filter(|schema| schema.is_object());
    let Some(schema) = schema.filter(|_| format["type"] == "json_schema") else {
        return Err(ApiError::validation(
            field,
            format!("`{field}` must be {{\"type\": \"json_schema\", \"schema\": …}}"),
        ));
    };
    let named = json!({"name": "answer", "schema": schema, "strict": true});
    let response_format = json!({"type": "json_schema", "json_schema": named});
    Ok((effort, Some(response_format)))
}

#[cfg(test)]
#[path = "translation_tests.rs"]
mod tests;
