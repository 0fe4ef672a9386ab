//! Bodies of this API's answers.

use gridwork_engine::FinishReason;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::prompt_logprobs::PromptLogprobs;

/// Reason for the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OpenAiFinishReason {
    /// The model, a stop sequence or a stop token ended the text.
    Stop,
    /// The maximum number of tokens was reached.
    Length,
    /// The model calls functions.
    #[serde(rename = "tool_calls")]
    ToolCalls,
    /// The model calls a function, and the request gave `functions`.
    #[serde(rename = "function_call")]
    FunctionCall,
}

impl From<&FinishReason> for OpenAiFinishReason {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::Length => Self::Length,
            FinishReason::EndOfSequence
            | FinishReason::StopString(_)
            | FinishReason::StopToken(_) => Self::Stop,
        }
    }
}

/// Stop sequence or stop token of the request that ended a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    Text(String),
    Token(u32),
}

impl StopReason {
    pub fn of(reason: &FinishReason) -> Option<Self> {
        match reason {
            FinishReason::StopString(text) => Some(Self::Text(text.clone())),
            FinishReason::StopToken(token) => Some(Self::Token(*token)),
            FinishReason::Length | FinishReason::EndOfSequence => None,
        }
    }
}

/// Number of tokens that a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Number of tokens of all prompts.
    pub prompt_tokens: u64,
    /// Number of tokens generated, over all choices.
    pub completion_tokens: u64,
    /// Sum of both.
    pub total_tokens: u64,
    /// Set in complete answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// Set in complete answers whose reasoning is told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Details of `completion_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Number of tokens of the model's thoughts.
    pub reasoning_tokens: u64,
}

/// Details of `prompt_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Number of prompt tokens whose keys and values were in the cache already.
    pub cached_tokens: u64,
}

impl Usage {
    /// Usage with its total.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: None,
            completion_tokens_details: None,
        }
    }

    /// Usage with the number of tokens of reasoning, where it is known.
    pub fn with_reasoning_tokens(self, reasoning_tokens: Option<u64>) -> Self {
        let details = |reasoning_tokens| CompletionTokensDetails { reasoning_tokens };
        Self {
            completion_tokens_details: reasoning_tokens.map(details),
            ..self
        }
    }

    /// Usage of a complete answer.
    pub fn with_cached_tokens(self, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens }),
            ..self
        }
    }
}

/// Declares the whole answer of a generating route.
macro_rules! answer {
    (
        $(#[$attribute:meta])*
        $answer:ident: id $id:tt, object $object:tt, choices: $(#[$of_choices:meta])* $choice:ty
        $(, $(#[$of_more:meta])* $more:ident: $more_type:ty)*
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $answer {
            /// Unique id of the answer.
            #[schema(example = $id)]
            pub id: String,
            #[schema(example = $object)]
            pub object: String,
            /// Seconds since 1970.
            pub created: u64,
            /// Id of the model that answered.
            pub model: String,
            /// Version of the server.
            pub system_fingerprint: String,
            $(#[$of_choices])*
            pub choices: Vec<$choice>,
            pub usage: Usage,
            $($(#[$of_more])* pub $more: $more_type,)*
        }
    };
}

answer! {
    /// Answer of `/v1/chat/completions`.
    ChatCompletion: id "chatcmpl-0123456789abcdef0123456789abcdef", object "chat.completion", choices:
    /// The `n` choices, in order.
    ChatChoice,
    /// Set when requested: an entry for each token of the prompt, from token ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    /// Ids of the prompt's tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>
}

answer! {
    /// Answer of `/v1/completions`.
    Completion: id "cmpl-0123456789abcdef0123456789abcdef", object "text_completion", choices:
    /// The `n` choices of each prompt; those of the first prompt come first.
    CompletionChoice
}

/// Declares a piece of a streamed answer.
macro_rules! chunk {
    ($(#[$attribute:meta])* $chunk:ident: object $object:tt, choices: $choice:ty) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        pub struct $chunk {
            /// Id of the answer, the same in all of its chunks.
            pub id: String,
            #[schema(example = $object)]
            pub object: String,
            /// Seconds since 1970.
            pub created: u64,
            pub model: String,
            pub system_fingerprint: String,
            /// One choice; none in the chunk that reports the usage.
            pub choices: Vec<$choice>,
            /// Usage of the request, with `stream_options.include_usage` only; `null` in all chunks but the last.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub usage: Option<Usage>,
        }
    };
}

chunk! {
    /// A piece of a streamed chat.
    ChatCompletionChunk: object "chat.completion.chunk", choices: ChatChunkChoice
}

chunk! {
    /// A piece of a streamed completion.
    CompletionChunk: object "text_completion", choices: CompletionChunkChoice
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    pub index: u32,
    pub message: AssistantMessage,
    /// Set when requested.
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: OpenAiFinishReason,
    /// Stop sequence or stop token of the request that ended the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Ids of the generated tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Entry for each generated token, from token ids, with `return_token_ids` and log-probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs_by_id: Option<PromptLogprobs>,
}

/// Answer of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AssistantMessage {
    #[schema(example = "assistant")]
    pub role: String,
    /// `null` where there is no text besides calls or reasoning.
    pub content: Option<String>,
    /// Thoughts of the model, without the markers around them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same under its newer name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Calls of functions, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Call of a function, where the request gave `functions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

/// Call of a function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Unique id of the call, which its result refers to.
    pub id: String,
    #[serde(rename = "type")]
    #[schema(example = "function")]
    pub kind: String,
    pub function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionCall {
    pub name: String,
    /// JSON text, as the model wrote it. May be incomplete or invalid.
    pub arguments: String,
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
    /// Text of the token.
    pub token: String,
    /// Natural logarithm of the probability in the model's own distribution; -9999 for impossible tokens.
    pub logprob: f32,
    /// Bytes of the token. A character may be spread over several tokens.
    pub bytes: Vec<u8>,
    /// The `top_logprobs` most likely tokens at this position, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChoice {
    pub index: u32,
    pub text: String,
    /// Set when requested.
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: OpenAiFinishReason,
    /// Stop sequence or stop token of the request that ended the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Set when requested: an entry for each token of the prompt, from token ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Ids of the generated tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Entry for each generated token, from token ids, with `return_token_ids` and log-probabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs_by_id: Option<PromptLogprobs>,
    /// Ids of the prompt's tokens, with `return_token_ids`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of a completion's tokens: four lists of the same length.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms of the probabilities in the model's own distribution; `null` for the first token of an echoed
    /// prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// Log-probabilities of the most likely tokens at each position and of the token that stands there; `null` for the
    /// first token of an echoed prompt.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Offset of each token in `text`, in characters. A token that `text` leaves out has the offset where it would be.
    pub text_offset: Vec<u64>,
}

/// A piece of a generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChatChunkChoice {
    pub index: u32,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    /// Set in the last chunk of this choice.
    pub finish_reason: Option<OpenAiFinishReason>,
    /// Stop sequence or stop token of the request that ended the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
}

/// Part that a chunk adds to the message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// Always `assistant`, and in the first chunk of a choice only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Piece of the model's thoughts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same under its newer name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Pieces of calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// Piece of a call, where the request gave `functions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// Piece of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallDelta {
    /// Number of the call in the message, from 0.
    pub index: usize,
    /// In the call's first piece only, like `type` and the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    pub function: FunctionDelta,
}

/// Piece of a call's function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionDelta {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Piece of the JSON text.
    pub arguments: String,
}

/// A piece of a generated text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CompletionChunkChoice {
    pub index: u32,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    /// Set in the last chunk of this choice.
    pub finish_reason: Option<OpenAiFinishReason>,
    /// Stop sequence or stop token of the request that ended the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
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
    /// Name of the model.
    pub id: String,
    #[schema(example = "model")]
    pub object: String,
    /// Start of this server, in seconds since 1970.
    pub created: u64,
    pub owned_by: String,
    /// Name or folder of the model, as given on the command line. Clients may load its tokenizer from there.
    pub root: String,
    /// Model that this one is an adapter of. Always `null`: there are no adapters.
    pub parent: Option<String>,
    /// Maximum number of tokens of a sequence, prompt and generated; known once the model is loaded.
    pub max_model_len: Option<u32>,
}
