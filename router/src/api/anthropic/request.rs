//! Bodies of `/v1/messages` and `/v1/messages/count_tokens`.
//!
//! Unknown fields are ignored, as Anthropic's clients send fields of features in test. `cache_control` changes what the
//! usage reports alone: every prefix is cached here, marked or not.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::conversation::text_or_list::TextOrList;
use crate::http::extract::{Body, object};
use crate::http::unsupported::UnsupportedField;

/// A conversation to answer, in Anthropic's form.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct MessagesRequest {
    /// Name of the model. Any name is accepted, because one model is served.
    pub model: Option<String>,
    /// The conversation so far. When the last message is the assistant's, the answer continues it.
    pub messages: Vec<InputMessage>,
    /// Maximum number of tokens to generate. Lowered to what the context has left. Left out: the rest of the context.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Instructions before the conversation: a text, or a list of blocks of type `text`.
    pub system: Option<TextOrList<Block>>,
    /// Sequences that end the text; they are not part of it.
    pub stop_sequences: Option<Vec<String>>,
    /// Answer with server-sent events, each with an `event:` line.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Divides the logits before sampling: higher is more random; 0 takes the most likely token.
    #[schema(default = 1.0, minimum = 0.0)]
    pub temperature: Option<f32>,
    /// Sample from the most likely tokens that together have this probability; 1 is off.
    #[schema(default = 1.0, minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Sample from this many most likely tokens; 0 and -1 are off.
    #[schema(default = -1, minimum = -1)]
    pub top_k: Option<i64>,
    /// Functions that the model may call. Tools of other types, which run on Anthropic's servers, are left out.
    pub tools: Option<Vec<Tool>>,
    /// Choice among the tools.
    #[serde(default, deserialize_with = "object")]
    pub tool_choice: Option<ToolChoice>,
    /// Reasoning before the answer: `enable_thinking` and `thinking` of the chat template.
    #[serde(default, deserialize_with = "object")]
    pub thinking: Option<Thinking>,
    /// Effort of the reasoning, and form of the answer.
    #[serde(default, deserialize_with = "object")]
    pub output_config: Option<OutputConfig>,
    /// Older place of `output_config.format`.
    pub output_format: Option<Value>,
    /// Share cached prompts only with requests that have the same salt. Any text of 1 to 512 bytes.
    pub cache_salt: Option<String>,
    /// Further variables for the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Report the tokens that are written to the cache.
    pub cache_control: Option<Value>,
}

impl Body for MessagesRequest {
    const UNSUPPORTED: &'static [UnsupportedField] =
        &[UnsupportedField::unsupported("mcp_servers")];
}

/// A message of the conversation.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `user`, `assistant`, or `system` for instructions in mid-conversation.
    #[schema(example = "user")]
    pub role: String,
    /// A text, or a list of blocks.
    pub content: Option<TextOrList<Block>>,
}

/// A block of a message: the fields of all types. A type uses those that it needs, and others are ignored.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[schema(no_recursion)]
pub struct Block {
    /// `text`, `thinking`, `redacted_thinking`, `tool_use`, `tool_result`, `document` with a text, or `search_result`.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: String,
    /// Text of a block of type `text`.
    pub text: Option<String>,
    /// Reasoning of a block of type `thinking`. Its signature is accepted and not checked.
    pub thinking: Option<String>,
    /// Id of a call, of type `tool_use`.
    pub id: Option<String>,
    /// Name of the called function, of type `tool_use`.
    pub name: Option<String>,
    /// Arguments of a call, of type `tool_use`.
    #[serde(default, deserialize_with = "object")]
    pub input: Option<Map<String, Value>>,
    /// Id of the call that a block of type `tool_result` answers.
    pub tool_use_id: Option<String>,
    /// Result of a call, or text of a search result.
    pub content: Option<TextOrList<Block>>,
    /// True if the call failed.
    pub is_error: Option<bool>,
    /// Content of a document, or address of a search result.
    pub source: Option<Value>,
    /// Title of a document or of a search result.
    pub title: Option<String>,
    /// The same as that of the request.
    pub cache_control: Option<Value>,
}

/// A tool.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct Tool {
    /// `custom`, which is the default. Tools of other types are left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub name: Option<String>,
    /// Shown to the model.
    pub description: Option<String>,
    /// JSON schema of the arguments.
    #[serde(default, deserialize_with = "object")]
    pub input_schema: Option<Map<String, Value>>,
    /// Hold the model's arguments to the schema.
    pub strict: Option<bool>,
    /// The same as that of the request.
    pub cache_control: Option<Value>,
}

/// Choice among the tools.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct ToolChoice {
    /// `auto`, `any`, `tool` with a name, or `none`.
    #[serde(rename = "type")]
    #[schema(example = "auto")]
    pub kind: String,
    /// Name of the tool to call, with the type `tool`.
    pub name: Option<String>,
    /// At most one call in the answer.
    pub disable_parallel_tool_use: Option<bool>,
}

/// Reasoning before the answer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct Thinking {
    /// `enabled`, `adaptive` or `disabled`. Left out with the whole field: as the chat template does by itself.
    #[serde(rename = "type")]
    #[schema(example = "enabled")]
    pub kind: String,
    /// Accepted for compatibility. The reasoning counts against `max_tokens` alone.
    pub budget_tokens: Option<u64>,
}

/// Effort of the reasoning, and form of the answer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct OutputConfig {
    /// `low`, `medium`, `high`, …: the variable `reasoning_effort` of the chat template.
    pub effort: Option<String>,
    /// `{"type": "json_schema", "schema": …}`: the answer is JSON that fits the schema.
    pub format: Option<Value>,
}
