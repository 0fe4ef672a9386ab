//! Flags that bound a request.

use clap::Args;
use clap::builder::{BoolishValueParser, RangedU64ValueParser};
use serde::{Deserialize, Serialize};

use crate::values;

/// Limits of a request. Read by the router.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Limits of a request")]
pub struct RequestLimits {
    /// Maximum number of concurrent requests, waiting ones included; others are answered 429
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=u64::from(u32::MAX)))]
    pub max_concurrent_requests: usize,

    /// Maximum number of concurrent requests of each API key, waiting ones included [default: no other than for all]
    #[arg(long, env = "MAX_REQUESTS_PER_KEY", value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=u64::from(u32::MAX)))]
    pub max_requests_per_key: Option<usize>,

    /// Maximum number of tokens a minute of each API key, prompts and answers together [default: any number]
    #[arg(long, env = "MAX_TOKENS_PER_MINUTE_PER_KEY", value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tokens_per_minute_per_key: Option<u64>,

    /// Seconds that a request may wait before it is started
    #[arg(long, env = "QUEUE_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=values::YEAR_S))]
    pub queue_timeout: u64,

    /// Maximum length of a prompt, tokens [default: what the model and the cache allow]
    #[arg(long, env = "MAX_INPUT_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_tokens: Option<u32>,

    /// Maximum length of prompt and answer together, tokens [default: what the model and the cache allow]
    #[arg(long, env = "MAX_TOTAL_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_total_tokens: Option<u32>,

    /// Maximum `n`, the number of choices of a request
    #[arg(long, env = "MAX_N", default_value_t = 128, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_n: u32,

    /// Maximum number of bytes of the prompt that an answer repeats (`echo`), over all its choices
    #[arg(
        long,
        env = "MAX_ECHO_BYTES",
        default_value_t = 16_000_000,
        value_name = "BYTES"
    )]
    pub max_echo_bytes: usize,

    /// Maximum `best_of` on TGI's routes; on OpenAI's --max-n bounds it
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 2, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=u64::from(u32::MAX)))]
    pub max_best_of: usize,

    /// Maximum number of stop sequences
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 16, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(..=u64::from(u32::MAX)))]
    pub max_stop_sequences: usize,

    /// Refuse requests that ask for a grammar or a JSON schema
    #[arg(long, env = "DISABLE_GRAMMAR_SUPPORT", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub disable_grammar_support: bool,

    /// Maximum `top_n_tokens`
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 20, value_name = "N")]
    pub max_top_n_tokens: u32,

    /// Share of the vocabulary that a `watermark` favours, above 0 and at most 1
    #[arg(long, env = "WATERMARK_GAMMA", default_value_t = 0.5, value_name = "SHARE", value_parser = values::fraction)]
    pub watermark_gamma: f32,

    /// Value that a `watermark` adds to the logits of favoured tokens, from -100 to 100
    #[arg(long, env = "WATERMARK_DELTA", default_value_t = 2.0, value_name = "BIAS", value_parser = values::bias,
          allow_negative_numbers = true)]
    pub watermark_delta: f32,

    /// Number of threads that tokenize and check requests
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub validation_workers: usize,
}
