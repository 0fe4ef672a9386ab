//! Body of `/v1/responses`.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::conversation::text_or_list::TextOrList;
use crate::http::extract::{Body, object};
use crate::http::unsupported::UnsupportedField;

/// An item of a conversation or a tool, as the client sends it. Its field `type` tells the others.
pub type Item = Map<String, Value>;

/// A conversation to answer, in the form of OpenAI's Responses.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// Name of the model. Any name is accepted, because one model is served.
    pub model: Option<String>,
    /// A text of the user, or a list of items: messages, reasoning, calls and their outputs. Items of tools that run
    /// elsewhere, such as `web_search_call`, are left out.
    #[schema(value_type = Option<TextOrList<Value>>)]
    pub input: Option<TextOrList<Item>>,
    /// Instructions before the conversation. They do not carry over to later responses.
    pub instructions: Option<String>,
    /// Stored response that this one continues.
    pub previous_response_id: Option<String>,
    /// Keep the response, so that it can be read and continued. Bounded by `--response-store-bytes`.
    #[schema(default = true)]
    pub store: Option<bool>,
    /// Maximum number of tokens to generate, reasoning included. Lowered to what the context has left. Left out: the rest
    /// of the context.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    /// Divides the logits before sampling: higher is more random; 0 takes the most likely token.
    #[schema(default = 1.0, minimum = 0.0)]
    pub temperature: Option<f32>,
    /// Sample from the most likely tokens that together have this probability; 1 is off.
    #[schema(default = 1.0, minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    /// Number of most likely tokens to report at each position of the text, with their log-probabilities.
    #[schema(default = 0, minimum = 0)]
    pub top_logprobs: Option<u32>,
    /// Answer with server-sent events.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Answer at once, and generate in the background: the response is read by its id, also its events. Needs `store`.
    #[schema(default = false)]
    pub background: Option<bool>,
    /// Tools that the model may call: of type `function`, `custom`, or `namespace` with functions in it. Tools of other
    /// types, which run on OpenAI's servers, are left out.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Item>>,
    /// `auto`, `none`, `required`, or an object that names a tool or the allowed ones.
    #[schema(default = "auto")]
    pub tool_choice: Option<Value>,
    /// Allow several calls in one answer.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// Reasoning before the answer.
    #[serde(default, deserialize_with = "object")]
    pub reasoning: Option<ReasoningConfig>,
    /// Form of the text.
    #[serde(default, deserialize_with = "object")]
    pub text: Option<TextConfig>,
    /// Further parts of the answer: `message.output_text.logprobs` and `reasoning.encrypted_content`. Others are ignored.
    pub include: Option<Vec<String>>,
    /// Up to 16 names with values, which come back with the response.
    #[serde(default, deserialize_with = "object")]
    pub metadata: Option<Map<String, Value>>,
    /// Comes back with the response. Every prefix is cached, with any key.
    pub prompt_cache_key: Option<String>,
    /// Comes back with the response.
    pub safety_identifier: Option<String>,
    /// Comes back with the response.
    pub user: Option<String>,
    /// `auto`: when the conversation does not fit into the context, its oldest turns are left out, but not the
    /// instructions. `disabled`: it is refused.
    #[schema(default = "disabled")]
    pub truncation: Option<String>,
    /// Share cached prompts only with requests that have the same salt. Any text of 1 to 512 bytes.
    pub cache_salt: Option<String>,
    /// Further variables for the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

impl Body for ResponsesRequest {
    const UNSUPPORTED: &'static [UnsupportedField] = &[
        UnsupportedField::unsupported("conversation"),
        UnsupportedField::unsupported("prompt"),
        UnsupportedField::renamed("messages", "input"),
        UnsupportedField::renamed("max_tokens", "max_output_tokens"),
        UnsupportedField::renamed("max_completion_tokens", "max_output_tokens"),
        UnsupportedField::misplaced("response_format", "text"),
        UnsupportedField::misplaced("reasoning_effort", "reasoning"),
    ];
}

/// Reasoning before the answer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct ReasoningConfig {
    /// `none`, `minimal`, `low`, `medium`, `high`, …: the variable `reasoning_effort` of the chat template. `none` also
    /// sets `enable_thinking` and `thinking` to false.
    pub effort: Option<String>,
    /// Accepted for compatibility: the reasoning is given whole.
    pub summary: Option<String>,
}

/// Form of the text.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct TextConfig {
    /// `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "name": …, "schema": …}`.
    #[serde(default, deserialize_with = "object")]
    pub format: Option<Map<String, Value>>,
    /// Accepted for compatibility.
    pub verbosity: Option<String>,
}

impl ResponsesRequest {
    /// True if `include` names `part`.
    pub fn includes(&self, part: &str) -> bool {
        self.include
            .iter()
            .flatten()
            .any(|included| included == part)
    }
}
