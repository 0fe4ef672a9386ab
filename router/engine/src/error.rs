//! Errors of the engine and the encoder: why they cannot start, why a request is not admitted, why it failed.

use gridwork_proto::v1::Task;

/// Reasons why the engine or the encoder cannot serve. The message is for the user.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    #[error("the shard was not ready after {seconds} s; last state: {state}")]
    Timeout { seconds: u64, state: String },
    #[error("{0}")]
    Shard(String),
    #[error("the connection to the shard broke: {0}")]
    Lost(String),
    #[error("the shard has not answered its warm-up for {seconds} s")]
    Silent { seconds: u64 },
    #[error(
        "the shard speaks version {shard} of the contract, this router version {router}; install matching versions"
    )]
    Version { shard: u32, router: u32 },
    #[error("the shard serves another task: {}", .task.as_str_name())]
    OtherTask { task: Task },
    #[error(
        "--max-total-tokens {max_total_tokens} is more than the model's context of {context_tokens} tokens; set it to {context_tokens} or less"
    )]
    ContextTooShort {
        max_total_tokens: u32,
        context_tokens: u32,
    },
    #[error(
        "the KV cache holds {capacity_tokens} tokens, too few for one sequence of {max_total_tokens} tokens; set --max-total-tokens to {capacity_tokens} or less, or give the cache more memory with --kv-cache-memory"
    )]
    CacheTooSmall {
        capacity_tokens: u64,
        max_total_tokens: u32,
    },
    #[error(
        "--speculate {speculate} needs a model on the paged path, and this one runs on the {model_impl} path{}; remove --speculate", in_brackets(.reason)
    )]
    NoDrafts {
        speculate: u32,
        model_impl: String,
        reason: String,
    },
    #[error(
        "--speculate {speculate} needs a model that generates, and this one is served for another task ({}); remove --speculate", .task.as_str_name()
    )]
    NothingToDraft { speculate: u32, task: Task },
}

fn in_brackets(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}

/// Reasons why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the model is still loading")]
    NotReady,
    #[error("the server is shutting down")]
    Draining,
    /// The text begins as text-generation-inference's does, for clients that look for it.
    #[error("Model is overloaded: {limit} requests are already running or waiting")]
    Overloaded { limit: usize, retry_after_s: u64 },
    #[error(
        "this API key has {limit} requests under way, which is its limit; wait until one has ended"
    )]
    TenantBusy { limit: usize, retry_after_s: u64 },
    #[error("this API key has used its {limit} tokens a minute; try again in {retry_after_s} s")]
    TokensSpent { limit: u64, retry_after_s: u64 },
}

/// Reasons why an admitted request failed. Other requests are not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    #[error("the model produced NaN logits for this request")]
    NanLogits,
    #[error("the shard died {deaths} times while computing this request")]
    ShardCrash { deaths: u32 },
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

impl GenerationError {
    /// Value of the label `kind` in `gridwork_generation_failures_total`. Dashboards rely on these words.
    pub fn kind(&self) -> &'static str {
        match self {
            GenerationError::NanLogits => "nan_logits",
            GenerationError::ShardCrash { .. } => "shard_killer",
            GenerationError::QueueTimeout { .. } => "queue_timeout",
            GenerationError::Unread { .. } => "unread",
            GenerationError::Shard(_) => "shard",
            GenerationError::Shutdown | GenerationError::GivenUp(_) => "shutdown",
        }
    }
}
