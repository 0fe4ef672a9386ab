//! Body of a response.

use gridwork_engine::FinishReason;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::items::OutputItem;
use super::request::ResponsesRequest;
use crate::api::conversation::answer::Tokens;
use crate::api::openai::submit::unix_time_s;

/// Answer of `/v1/responses`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponseBody {
    /// Unique id of the response.
    #[schema(example = "resp_0123456789abcdef0123456789abcdef")]
    pub id: String,
    #[schema(example = "response")]
    pub object: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Seconds since 1970; set at the end.
    pub completed_at: Option<u64>,
    pub status: Status,
    /// True if the response runs, or ran, in the background.
    pub background: bool,
    /// Reason of a failure.
    pub error: Option<ResponseError>,
    /// Reason why the response is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<u32>,
    /// Always `null`.
    pub max_tool_calls: Option<u32>,
    pub metadata: Map<String, Value>,
    /// Id of the model that answered.
    pub model: String,
    /// Reasoning, messages and calls, in order.
    pub output: Vec<OutputItem>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub reasoning: ReasoningEcho,
    pub safety_identifier: Option<String>,
    #[schema(example = "default")]
    pub service_tier: String,
    /// True if the response is kept.
    pub store: bool,
    pub temperature: f32,
    /// Form of the text, as the request has it.
    pub text: Value,
    pub tool_choice: Value,
    /// Tools, as the request has them.
    pub tools: Vec<Map<String, Value>>,
    pub top_logprobs: u32,
    pub top_p: f32,
    pub truncation: String,
    /// Set at the end.
    pub usage: Option<ResponseUsage>,
    pub user: Option<String>,
}

/// State of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// In the background, before the first token.
    Queued,
    InProgress,
    Completed,
    /// The maximum number of tokens was reached.
    Incomplete,
    Failed,
    /// Cancelled by the client.
    Cancelled,
}

/// Reason of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResponseError {
    #[schema(example = "server_error")]
    pub code: String,
    pub message: String,
}

/// Reason why a response is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncompleteDetails {
    #[schema(example = "max_output_tokens")]
    pub reason: String,
}

/// Settings of the reasoning, as the request has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasoningEcho {
    pub effort: Option<String>,
    pub summary: Option<String>,
}

/// Number of tokens that a response used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResponseUsage {
    pub input_tokens: u64,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: u64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: u64,
}

/// Details of `input_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InputTokensDetails {
    /// Number of prompt tokens whose keys and values were in the cache already.
    pub cached_tokens: u64,
}

/// Details of `output_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Number of tokens of reasoning.
    pub reasoning_tokens: u64,
}

impl From<Tokens> for ResponseUsage {
    fn from(tokens: Tokens) -> Self {
        Self {
            input_tokens: tokens.prompt,
            input_tokens_details: InputTokensDetails {
                cached_tokens: tokens.cached,
            },
            output_tokens: tokens.generated,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: tokens.reasoning,
            },
            total_tokens: tokens.prompt + tokens.generated,
        }
    }
}

impl ResponseBody {
    /// A response in progress to `request`, which it takes the fields from that come back. `store`: it will be kept.
    pub fn begin(request: &mut ResponsesRequest, model: &str, store: bool) -> Self {
        let reasoning = request.reasoning.clone().unwrap_or_default();
        let background = request.background.unwrap_or(false);
        let mut text = json!({"format": {"type": "text"}});
        if let Some(config) = &request.text {
            if let Some(format) = &config.format {
                text["format"] = Value::Object(format.clone());
            }
            if let Some(verbosity) = &config.verbosity {
                text["verbosity"] = verbosity.as_str().into();
            }
        }
        Self {
            id: format!("resp_{}", uuid::Uuid::new_v4().simple()),
            object: "response".into(),
            created_at: unix_time_s(),
            completed_at: None,
            status: match background {
                true => Status::Queued,
                false => Status::InProgress,
            },
            background,
            error: None,
            incomplete_details: None,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            max_tool_calls: None,
            metadata: request.metadata.take().unwrap_or_default(),
            model: model.to_owned(),
            output: Vec::new(),
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            previous_response_id: request.previous_response_id.clone(),
            prompt_cache_key: request.prompt_cache_key.take(),
            reasoning: ReasoningEcho {
                effort: reasoning.effort,
                summary: reasoning.summary,
            },
            safety_identifier: request.safety_identifier.take(),
            service_tier: "default".into(),
            store,
            temperature: request.temperature.unwrap_or(1.0),
            text,
            tool_choice: request.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            tools: request.tools.take().unwrap_or_default(),
            top_logprobs: request.top_logprobs.unwrap_or(0),
            top_p: request.top_p.unwrap_or(1.0),
            truncation: request
                .truncation
                .take()
                .unwrap_or_else(|| "disabled".into()),
            usage: None,
            user: request.user.take(),
        }
    }

    /// Ends the response, whose output is complete.
    pub fn complete(&mut self, reason: &FinishReason, tokens: Tokens) {
        self.completed_at = Some(unix_time_s());
        self.usage = Some(tokens.into());
        self.status = Status::Completed;
        if *reason == FinishReason::Length {
            self.status = Status::Incomplete;
            self.incomplete_details = Some(IncompleteDetails {
                reason: "max_output_tokens".into(),
            });
        }
    }
}
