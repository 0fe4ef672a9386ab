//! What the engine is asked for and what it answers: the one internal form that every HTTP API translates to.

use std::time::Duration;

pub use gridwork_proto::v1::SamplingParameters;

use crate::places::Reserved;

/// One sequence to generate. The caller has validated it: the prompt is not empty, and prompt plus `max_new_tokens`
/// fit into [`Limits::max_total_tokens`](crate::Limits).
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The prompt, tokenized; special tokens included.
    pub token_ids: Vec<u32>,
    /// Most tokens to generate; at least 1.
    pub max_new_tokens: u32,
    pub sampling: SamplingParameters,
    pub stop: StopConditions,
    pub logprobs: LogprobOptions,
    pub priority: Priority,
    /// What its cached keys and values may be shared with.
    pub namespace: CacheNamespace,
    /// Leave special tokens out of the generated text.
    pub skip_special_tokens: bool,
    /// How long the request may wait for its first step before it fails; `None`: the engine's own limit.
    pub queue_timeout: Option<Duration>,
    /// A place that was taken for it; without one it is given a place when it is submitted.
    pub place: Reserved,
    /// Span of the HTTP request; queue, prefill and decode become its children, in the shard too.
    pub span: tracing::Span,
}

/// When to stop before `max_new_tokens`.
#[derive(Debug, Clone, Default)]
pub struct StopConditions {
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Stop as soon as the generated text contains one of these, wherever in a token it ends. One that contains a special
    /// token is found where that token is generated, also when special tokens are left out of the text.
    pub strings: Vec<String>,
    /// Stop at these tokens; they are not part of the text.
    pub token_ids: Vec<u32>,
    /// Whether the text ends with the stop string (TGI) or before it (OpenAI). When false, text that may be the
    /// beginning of a stop string is held back until it is known not to be.
    pub include_in_output: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct LogprobOptions {
    /// Log-probability of every generated token.
    pub sampled: bool,
    /// And of the `top_n` most likely tokens at its position.
    pub top_n: u32,
    /// And of the prompt's tokens, as an [`Event::PromptLogprobs`] before the first token.
    pub prompt: bool,
    /// And of the most likely tokens at each position of the prompt; needs `prompt`.
    pub prompt_top_n: u32,
}

/// What, besides the tokens before it, a token's keys and values depend on, or are to be kept apart by. Requests share
/// what was computed before only when all of this is the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CacheNamespace {
    /// Adapter that the model runs with.
    pub adapter: Option<String>,
    /// Hash over what the prompt holds besides text, collision-free.
    pub media_hash: Option<[u8; 32]>,
    /// Whose request it is, where tenants are kept apart.
    pub tenant: Option<u32>,
    /// The client's own.
    pub salt: Option<String>,
    /// How many tokens were computed together with these, as far as keys depend on it. The engine's own.
    pub length_class: usize,
}

/// Scheduling class; within a class, first come first served, but for requests whose prompts are in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

/// What happens to an admitted request, in order: at most one `PromptLogprobs`, then `Token`s, the last of which has
/// `finish` set. A failure ends the stream with a [`GenerationError`] instead.
#[derive(Debug, Clone)]
pub enum Event {
    /// One entry for each prompt token; the first has no log-probability.
    PromptLogprobs(Vec<PromptLogprob>),
    Token(GeneratedToken),
}

/// What the model thought of a token of the prompt.
#[derive(Debug, Clone, Default)]
pub struct PromptLogprob {
    /// Natural logarithm, of the model's own distribution; `None` for the first token.
    pub logprob: Option<f32>,
    /// Most likely tokens at this position, best first; empty unless asked for.
    pub top: Vec<TopToken>,
}

#[derive(Debug, Clone)]
pub struct GeneratedToken {
    pub id: u32,
    /// Text that has become certain with this token, ready to be shown; empty while a character or a possible stop
    /// string is incomplete. The texts of all tokens, concatenated, are the generated text.
    pub text: String,
    /// Characters of the text that was decoded before this token: where its own text begins, even while text before it
    /// is held back. Counted only when log-probabilities are asked for, else 0.
    pub offset_chars: u64,
    /// Whether text is held back that may turn out to be the beginning of a stop string.
    pub holds_text: bool,
    /// `Some` when asked for; natural logarithm, of the model's own distribution.
    pub logprob: Option<f32>,
    /// Whether it is one of the tokenizer's special tokens.
    pub special: bool,
    /// Most likely tokens at this position, best first; empty unless asked for.
    pub top: Vec<TopToken>,
    /// Set on the last token.
    pub finish: Option<Finish>,
}

#[derive(Debug, Clone, Copy)]
pub struct TopToken {
    pub id: u32,
    pub logprob: f32,
}

#[derive(Debug, Clone)]
pub struct Finish {
    pub reason: FinishReason,
    pub num_generated_tokens: u32,
    /// Tokens of the prompt that were in the cache already.
    pub num_cached_tokens: u32,
    pub timing: Timing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` reached.
    Length,
    /// An end-of-sequence token, also when it is the last one allowed.
    EndOfSequence,
    /// This stop string was found.
    StopString(String),
    /// This stop token was generated.
    StopToken(u32),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// From submission to the first step that computes any of it.
    pub queue: Duration,
    /// From submission to the first token.
    pub first_token: Duration,
    /// From the first step to the last token.
    pub inference: Duration,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("The model is still loading")]
    NotReady,
    #[error("The server is shutting down")]
    Draining,
    #[error("Model is overloaded: {limit} requests are already running or waiting")]
    Overloaded { limit: usize, retry_after_s: u64 },
}

/// Why an admitted request failed. It harms no other request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("the model produced NaN logits for this request")]
    NanLogits,
    #[error("the shard died {deaths} times while computing this request")]
    ShardKiller { deaths: u32 },
    #[error("the request waited longer than {limit_s} s for its first step")]
    QueueTimeout { limit_s: u64 },
    #[error("the client left {bytes} bytes of its answer unread; read faster, or ask for less")]
    Unread { bytes: usize },
    #[error("{0}")]
    Shard(String),
    #[error("the server stopped before the request was finished")]
    Shutdown,
    #[error("the server ends before the request is finished: {0}")]
    GivenUp(String),
}
