//! Requests to the engine and its events. Every HTTP API translates to this one form.

use std::sync::Arc;
use std::time::Duration;

pub use gridwork_proto::v1::SamplingParameters;

use crate::permits::ReservedPermit;
use crate::tenant::Tenant;

/// One sequence to generate. The caller has validated it: the prompt is not empty, and prompt plus `max_new_tokens`
/// are within [`Limits::max_total_tokens`](crate::Limits).
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The tokenized prompt, including special tokens.
    pub token_ids: Vec<u32>,
    /// Maximum number of tokens to generate; at least 1.
    pub max_new_tokens: u32,
    pub sampling: SamplingParameters,
    pub stop: StopConditions,
    /// Grammar that the generated text follows, in llguidance's JSON; `None`: any text. The text also ends where the
    /// grammar allows nothing more, whatever `stop` says.
    pub grammar: Option<Arc<str>>,
    pub logprobs: LogprobOptions,
    pub priority: Priority,
    /// Namespace within which its cached keys and values are shared.
    pub namespace: CacheNamespace,
    /// Leave special tokens out of the generated text.
    pub skip_special_tokens: bool,
    /// Special tokens that are in the text even so.
    pub shown_special_tokens: Arc<[u32]>,
    /// Maximum time until the request's first step; `None`: the engine's default.
    pub queue_timeout: Option<Duration>,
    /// Client of several that the request belongs to; `None`: there are none.
    pub tenant: Option<Arc<Tenant>>,
    /// Permit taken beforehand; without one, a permit is taken when the request is submitted.
    pub permit: ReservedPermit,
    /// Id of the HTTP request, for log lines; may be empty.
    pub request_id: Arc<str>,
    /// Write the answer into the span of its decode.
    pub records_content: bool,
    /// Span of the HTTP request; queue, prefill and decode become its children, in the shard too.
    pub span: tracing::Span,
}

impl GenerationRequest {
    /// A greedy request with neutral options.
    pub fn greedy(token_ids: Vec<u32>, max_new_tokens: u32) -> Self {
        GenerationRequest {
            token_ids,
            max_new_tokens,
            sampling: SamplingParameters {
                greedy: true,
                repetition_penalty: 1.0,
                ..Default::default()
            },
            stop: StopConditions::default(),
            grammar: None,
            logprobs: LogprobOptions::default(),
            priority: Priority::Normal,
            namespace: CacheNamespace::default(),
            skip_special_tokens: true,
            shown_special_tokens: Arc::new([]),
            queue_timeout: None,
            tenant: None,
            permit: ReservedPermit::default(),
            request_id: "".into(),
            records_content: false,
            span: tracing::Span::none(),
        }
    }
}

impl GenerationRequest {
    /// True if the token, which is special, is left out of the text.
    pub fn hides(&self, special_token: u32) -> bool {
        self.skip_special_tokens && !self.shown_special_tokens.contains(&special_token)
    }
}

/// When to stop before `max_new_tokens`.
#[derive(Debug, Clone, Default)]
pub struct StopConditions {
    /// Continue after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Stop as soon as the generated text contains one of these strings, wherever in a token it ends. A string that
    /// contains a special token is found where that token is generated, even when special tokens are left out of the
    /// text.
    pub strings: Vec<String>,
    /// Stop at these tokens, which are not part of the text.
    pub token_ids: Vec<u32>,
    /// Minimum number of generated tokens; at most `max_new_tokens`. Until then, no stop string ends the text, and the
    /// shard samples neither end-of-sequence tokens nor `token_ids`.
    pub min_new_tokens: u32,
    /// Tokens of which the last one that `max_new_tokens` allows is one; empty: it may be any.
    pub forced_end_token_ids: Vec<u32>,
    /// True if the text ends with the stop string (TGI) or before it (OpenAI). When false, text that may begin a stop
    /// string is held back until it is certain.
    pub include_in_output: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct LogprobOptions {
    /// Log-probability of every generated token.
    pub sampled: bool,
    /// Number of most likely tokens reported at each generated token's position.
    pub top_n: u32,
    /// Log-probabilities of the prompt's tokens, as an [`Event::PromptLogprobs`] before the first token.
    pub prompt: bool,
    /// Number of most likely tokens reported at each position of the prompt. Needs `prompt`.
    pub prompt_top_n: u32,
}

/// Everything besides the preceding tokens that a token's keys and values depend on, or by which requests are kept
/// apart. Requests share cached blocks only when all of it is equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CacheNamespace {
    /// Adapter with which the model runs.
    pub adapter: Option<String>,
    /// Collision-free hash of the prompt's content other than text.
    pub media_hash: Option<[u8; 32]>,
    /// Tenant, where tenants are kept apart.
    pub tenant: Option<u32>,
    /// Salt chosen by the client.
    pub salt: Option<String>,
    /// Class of the number of tokens computed together, where keys depend on it. Set by the engine.
    pub length_class: usize,
}

/// Scheduling class. Within a class requests are served first come, first served, except that cached prompts may go
/// first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

/// Events of an admitted request, in order: at most one `PromptLogprobs`, then `Token`s, the last of which has
/// `finish` set. A failure ends the stream with a [`GenerationError`](crate::GenerationError) instead.
#[derive(Debug, Clone)]
pub enum Event {
    /// One entry for each prompt token; the first has no log-probability.
    PromptLogprobs(Vec<PromptLogprob>),
    Token(GeneratedToken),
}

/// Log-probabilities at one position of the prompt.
#[derive(Debug, Clone, Default)]
pub struct PromptLogprob {
    /// Natural logarithm of the token's probability in the model's own distribution; `None` for the first token.
    pub logprob: Option<f32>,
    /// The most likely tokens at this position, best first; empty unless requested.
    pub top: Vec<TopToken>,
}

#[derive(Debug, Clone)]
pub struct GeneratedToken {
    pub id: u32,
    /// Text that became certain with this token, ready to be shown. Empty while a character or a possible stop string
    /// is incomplete. The concatenated texts of all tokens are the generated text.
    pub text: String,
    /// Number of characters decoded before this token: the offset of its own text, even while earlier text is held
    /// back. Counted only when log-probabilities are requested, else 0.
    pub offset_chars: u64,
    /// True if text is held back because it may begin a stop string.
    pub holds_text: bool,
    /// Natural logarithm of the token's probability in the model's own distribution; `Some` when requested.
    pub logprob: Option<f32>,
    /// True if the token is one of the tokenizer's special tokens.
    pub special: bool,
    /// The most likely tokens at this position, best first; empty unless requested.
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
    /// Number of prompt tokens that were found in the cache.
    pub num_cached_tokens: u32,
    pub timing: Timing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` reached.
    Length,
    /// An end-of-sequence token was generated, possibly as the last one allowed, or the grammar allows nothing more.
    EndOfSequence,
    /// This stop string was found.
    StopString(String),
    /// This stop token was generated.
    StopToken(u32),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Time from submission to the first step that computes any of it.
    pub queue: Duration,
    /// Time from submission to the first token.
    pub first_token: Duration,
    /// Time from the first step to the last token.
    pub inference: Duration,
}
