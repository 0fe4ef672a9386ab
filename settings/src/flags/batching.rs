//! Flags of batching and of memory.

use clap::Args;
use clap::builder::BoolishValueParser;
use serde::{Deserialize, Serialize, Serializer};

use crate::values::{self, BatchSizes};

/// Batching, and the sharing of cached blocks. Read by the router; the launcher passes `block_size` to the
/// shards too.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Batching and memory")]
pub struct Batching {
    /// Maximum number of tokens in one step; longer prompts are computed in chunks
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", default_value_t = 512, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_prefill_tokens: u32,

    /// Maximum number of tokens in a batch of an encoder; a longer input is computed alone
    #[arg(long, env = "MAX_BATCH_TOKENS", default_value_t = 4096, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_tokens: u32,

    /// Maximum number of tokens of all running sequences together [default: what the cache holds]
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_total_tokens: Option<u32>,

    /// Maximum number of running sequences
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 128, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_size: u32,

    /// Number of tokens in a block of the cache
    #[arg(long, env = "BLOCK_SIZE", default_value_t = 16, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub block_size: u32,

    /// Compute every prompt anew, without blocks that earlier requests left in the cache
    #[arg(long, env = "DISABLE_PREFIX_CACHE", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, hide_possible_values = true, hide_default_value = true,
          value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub disable_prefix_cache: bool,

    /// Share cached prompts only among requests with the same API key [default: true with several keys]
    #[arg(long, env = "ISOLATE_CACHE_BY_KEY", default_missing_value = "true", num_args = 0..=1, require_equals = true,
          hide_possible_values = true, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub isolate_cache_by_key: Option<bool>,

    /// Maximum number of draft tokens of a sequence in one step; 0: no speculation
    #[arg(long, env = "SPECULATE", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(0..=16))]
    pub speculate: u32,
}

/// Memory of the cache. Read by the shards, under the names of `ShardConfig` in Python.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Batching and memory")]
pub struct Memory {
    /// Memory for keys and values, over all shards: bytes, or 512MiB, 4GiB [default: from what is free]
    #[arg(long, env = "KV_CACHE_MEMORY", value_name = "SIZE", value_parser = values::size)]
    #[serde(rename = "kv_cache_memory_bytes")]
    pub kv_cache_memory: Option<u64>,

    /// Fraction of a GPU's memory that may be used, above 0 and at most 1
    #[arg(long, env = "CUDA_MEMORY_FRACTION", default_value_t = 1.0, value_name = "FRACTION",
          value_parser = values::fraction)]
    #[serde(serialize_with = "shortest")]
    pub cuda_memory_fraction: f32,

    /// Batch sizes of decode steps to record as CUDA graphs, for example 1,2,4,8; 0 for none [default: sizes up to
    /// --max-batch-size and 256 on one GPU, none on several]
    #[arg(long, env = "CUDA_GRAPHS", value_name = "SIZES", value_parser = values::batch_sizes)]
    pub cuda_graphs: Option<BatchSizes>,
}

/// Writes 0.9 as `0.9` and not as the nearest `f64` of an `f32`.
fn shortest<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let text = value.to_string();
    serializer.serialize_f64(text.parse().unwrap_or(f64::from(*value)))
}
