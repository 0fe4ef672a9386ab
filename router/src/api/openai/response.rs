//! What this API answers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop sequence or stop token did.
    Stop,
    /// The limit of tokens was reached.
    Length,
}

impl From<&gridwork_engine::FinishReason> for FinishReason {
    fn from(reason: &gridwork_engine::FinishReason) -> Self {
        match reason {
            gridwork_engine::FinishReason::Length => Self::Length,
            gridwork_engine::FinishReason::EndOfSequence
            | gridwork_engine::FinishReason::StopString(_)
            | gridwork_engine::FinishReason::StopToken(_) => Self::Stop,
        }
    }
}

/// Tokens that a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens generated, over all choices.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Of complete answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// More about `prompt_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those whose keys and values were in the cache already.
    pub cached_tokens: u64,
}

impl Usage {
    /// Adds up the total.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
        }
    }

    /// Of a complete answer.
    pub fn with_cached_tokens(self, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens }),
            ..self
        }
    }
}

/// Answer of `/v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatCompletion {
    /// Unique.
    #[schema(example = "chatcmpl-0123456789abcdef0123456789abcdef")]
    pub id: String,
    #[schema(example = "chat.completion")]
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Id of the model that answered.
    pub model: String,
    /// Version of the server.
    pub system_fingerprint: String,
    /// One for each of `n`, in order.
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

/// One of the texts generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    pub index: u32,
    pub message: AssistantMessage,
    /// When asked for.
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: FinishReason,
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssistantMessage {
    #[schema(example = "assistant")]
    pub role: String,
    pub content: String,
}

/// Log-probabilities of a chat's tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry for each generated token.
    pub content: Vec<TokenLogprob>,
}

/// Log-probability of a token and of its alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm, of the model's own distribution; -9999 for impossible tokens.
    pub logprob: f32,
    /// The token's bytes: a character may be spread over several tokens.
    pub bytes: Vec<u8>,
    /// The most likely tokens at this position, best first; as many as `top_logprobs` asked for.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// Answer of `/v1/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Completion {
    /// Unique.
    #[schema(example = "cmpl-0123456789abcdef0123456789abcdef")]
    pub id: String,
    #[schema(example = "text_completion")]
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Id of the model that answered.
    pub model: String,
    /// Version of the server.
    pub system_fingerprint: String,
    /// `n` for each prompt: those of the first prompt first.
    pub choices: Vec<CompletionChoice>,
    pub usage: Usage,
}

/// One of the texts generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChoice {
    pub index: u32,
    pub text: String,
    /// When asked for.
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: FinishReason,
}

/// Log-probabilities of a completion's tokens: four lists of the same length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms, of the model's own distribution; `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens at each position, and the one that stands there, with their log-probabilities; `null` for
    /// the first token of an echoed prompt.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in `text`, in characters; for one that `text` leaves out, where it would.
    pub text_offset: Vec<u64>,
}

/// A piece of a streamed chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatCompletionChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    #[schema(example = "chat.completion.chunk")]
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    /// One; none in the chunk that brings the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Only with `stream_options.include_usage`: `null` in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A piece of one of the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunkChoice {
    pub index: u32,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the last chunk of this choice.
    pub finish_reason: Option<FinishReason>,
}

/// What a chunk adds to the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// `assistant`, in the first chunk of a choice only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    pub content: String,
}

/// A piece of a streamed completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChunk {
    /// The same in all chunks of an answer.
    pub id: String,
    #[schema(example = "text_completion")]
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    /// One; none in the chunk that brings the usage.
    pub choices: Vec<CompletionChunkChoice>,
    /// Only with `stream_options.include_usage`: `null` in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A piece of one of the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChunkChoice {
    pub index: u32,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    /// Set in the last chunk of this choice.
    pub finish_reason: Option<FinishReason>,
}

/// Answer of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    #[schema(example = "list")]
    pub object: String,
    pub data: Vec<Model>,
}

/// The served model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Model {
    /// A name of the model.
    pub id: String,
    #[schema(example = "model")]
    pub object: String,
    /// When this server started, in seconds since 1970.
    pub created: u64,
    pub owned_by: String,
    /// What was loaded, as it was given on the command line: the name or folder to take a tokenizer from.
    pub root: String,
    /// The model that this one is an adapter of; there are none.
    pub parent: Option<String>,
    /// Longest sequence, prompt and generated, in tokens; known once the model is loaded.
    pub max_model_len: Option<u32>,
}
