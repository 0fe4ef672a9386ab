//! The command line. Every flag is also an environment variable; flags and variables keep TGI's names.
//!
//! Three variables depart from "the flag in upper case": `GRIDWORK_HOSTNAME`, because container runtimes set `HOSTNAME`
//! to the container's name; `GRIDWORK_SERVER` for `--server-command`; and `--env` has none, because `ENV` is often set
//! to something else.

mod legacy;
mod parse;
mod validate;

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

pub use legacy::Legacy;
pub use parse::{parse_command_line, parse_size};

/// Serves a Hugging Face Transformers model over HTTP.
#[derive(Debug, Parser)]
#[command(
    name = "gridwork",
    version,
    about = "Serves a Hugging Face Transformers model over HTTP.",
    after_help = "Every flag can also be given as the environment variable shown beside it.",
    max_term_width = 120
)]
pub struct Cli {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub batching: BatchingArgs,
    #[command(flatten)]
    pub processes: ProcessArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub legacy: Legacy,
}

/// Which model, and how it is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A local folder, a local .gguf file, or a name on the Hugging Face hub (`gpt2`, `org/name`)
    #[arg(long, env = "MODEL_ID")]
    pub model_id: Option<String>,

    /// Name that answers carry and /v1/models lists; several may be given, answers carry the first [default: --model-id]
    #[arg(long, env = "SERVED_MODEL_NAME", num_args = 1.., value_delimiter = ',', value_name = "NAME",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub served_model_name: Vec<String>,

    /// Branch, tag or commit on the hub
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,

    /// Run Python code that comes with the model
    #[arg(long, env = "TRUST_REMOTE_CODE", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub trust_remote_code: bool,

    /// Branch, tag or commit of Python code that the model takes from another repository on the hub
    #[arg(long, env = "CODE_REVISION")]
    pub code_revision: Option<String>,

    /// Convert weights that are pickle files (.bin, .pt); nothing but tensors is read from them
    #[arg(long, env = "ALLOW_PICKLE_WEIGHTS", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub allow_pickle_weights: bool,

    /// Type of weights and activations; auto: what the model's config says
    #[arg(long, env = "DTYPE", default_value = "auto")]
    pub dtype: Dtype,

    /// How the model is run; auto: the fastest way that it allows
    #[arg(long, env = "MODEL_IMPL", default_value = "auto")]
    pub model_impl: ModelImpl,

    /// What the model is served for; auto: what its folder says
    #[arg(long, env = "TASK", default_value = "auto")]
    pub task: Task,

    /// Where defaults of requests come from: auto (generation_config.json of the model), none, or the folder of another generation_config.json
    #[arg(
        long,
        env = "GENERATION_CONFIG",
        default_value = "auto",
        value_name = "auto|none|DIR"
    )]
    pub generation_config: PathBuf,

    /// Name of the model's prompt that is put before texts to embed, unless a request names another [default: what the model's files say]
    #[arg(
        long,
        env = "DEFAULT_PROMPT_NAME",
        value_name = "NAME",
        conflicts_with = "default_prompt"
    )]
    pub default_prompt_name: Option<String>,

    /// Text that is put before texts to embed, unless a request names a prompt
    #[arg(
        long,
        env = "DEFAULT_PROMPT",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub default_prompt: Option<String>,

    /// Implementation of attention; auto: the fastest that the device and the model allow
    #[arg(long, env = "ATTENTION", default_value = "auto")]
    pub attention: Attention,

    /// Run the model's own layers, without packed or fused ones in their place
    #[arg(long, env = "DISABLE_FUSION", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub disable_fusion: bool,

    /// Keep the weights of linear layers and experts in 8 or 4 bits, on CPUs: less memory and faster decoding, at some cost in quality
    #[arg(long, env = "QUANTIZE", value_name = "METHOD")]
    pub quantize: Option<Quantize>,

    /// Compile the model for this machine: takes minutes once, and is then taken from the user's cache
    #[arg(long, env = "COMPILE", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub compile: bool,

    /// Folder that models from the hub are downloaded to [default: the hub library's own cache]
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE", value_name = "DIR")]
    pub huggingface_hub_cache: Option<PathBuf>,

    /// A tokenizer_config.json to use in place of the model's (for its chat template)
    #[arg(long, env = "TOKENIZER_CONFIG_PATH", value_name = "FILE")]
    pub tokenizer_config_path: Option<PathBuf>,
}

/// How it is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on (the variable is not HOSTNAME, which container runtimes set)
    #[arg(long, env = "GRIDWORK_HOSTNAME", default_value = "0.0.0.0")]
    pub hostname: String,

    /// Port to listen on
    #[arg(long, short, env = "PORT", default_value_t = 3000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Key that clients must send as `Authorization: Bearer KEY`; may be repeated; prefer the variable, which `ps` does not show
    #[arg(long, env = "API_KEY", hide_env_values = true, value_delimiter = ',', value_name = "KEY",
          value_parser = parse::secret)]
    pub api_key: Vec<parse::Secret>,

    /// Origin allowed to call from a browser, or * for any; may be repeated [default: any]
    #[arg(
        long,
        env = "CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN",
        value_parser = parse::origin
    )]
    pub cors_allow_origin: Vec<String>,

    /// Largest request body, bytes
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub payload_limit: u64,

    /// Maximum number of connections [default: 4096 or twice --max-concurrent-requests, as open files allow]
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,

    /// Seconds in which a client must have sent a request; a large body may take a second more for each 8 KiB
    #[arg(long, env = "CLIENT_READ_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_read_timeout: u64,

    /// Seconds without progress after which an answer that a client does not read is given up
    #[arg(long, env = "CLIENT_WRITE_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_write_timeout: u64,

    /// Seconds that a connection is kept open without a request
    #[arg(long, env = "CLIENT_IDLE_TIMEOUT", default_value_t = 75, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_idle_timeout: u64,

    /// Maximum number of prompts, or inputs of an encoder, in one request [default: 128 prompts, 2048 inputs on OpenAI's
    /// routes, 32 on others]
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_client_batch_size: Option<u32>,

    /// Cut inputs of encoders that are too long, unless a request says otherwise; false: refuse them
    #[arg(long, env = "AUTO_TRUNCATE", default_value = "true", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, action = clap::ArgAction::Set, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub auto_truncate: bool,

    /// At SIGTERM, seconds that running requests are given to finish
    #[arg(
        long,
        short,
        env = "GRACEFUL_TERMINATION_TIMEOUT",
        default_value_t = 90,
        value_name = "SECONDS"
    )]
    pub graceful_termination_timeout: u64,
}

/// What a request may ask for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of a request")]
pub struct LimitArgs {
    /// Requests at once, waiting ones included; more are answered 429
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrent_requests: u32,

    /// Seconds that a request may wait before it is started
    #[arg(long, env = "QUEUE_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub queue_timeout: u64,

    /// Longest prompt, tokens [default: what the model and the cache allow]
    #[arg(long, env = "MAX_INPUT_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_tokens: Option<u32>,

    /// The old name of --max-input-tokens
    #[arg(long, env = "MAX_INPUT_LENGTH", hide = true, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_length: Option<u32>,

    /// Longest prompt and answer together, tokens [default: what the model and the cache allow]
    #[arg(long, env = "MAX_TOTAL_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_total_tokens: Option<u32>,

    /// Highest `n`
    #[arg(long, env = "MAX_N", default_value_t = 128, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_n: u32,

    /// Maximum number of bytes that an answer repeats of its prompt (`echo`), over all its choices
    #[arg(
        long,
        env = "MAX_ECHO_BYTES",
        default_value_t = 16_000_000,
        value_name = "BYTES"
    )]
    pub max_echo_bytes: u64,

    /// Highest `best_of`
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_best_of: u32,

    /// Maximum number of stop sequences
    #[arg(
        long,
        env = "MAX_STOP_SEQUENCES",
        default_value_t = 16,
        value_name = "N"
    )]
    pub max_stop_sequences: u32,

    /// Highest `top_n_tokens`
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 20, value_name = "N")]
    pub max_top_n_tokens: u32,

    /// Refuse requests with a grammar
    #[arg(long, env = "DISABLE_GRAMMAR_SUPPORT", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, hide_possible_values = true, hide_default_value = true,
          value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    pub disable_grammar_support: bool,

    /// Threads that tokenize and check requests
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub validation_workers: u32,
}

/// What runs at once, and in how much memory.
#[derive(Debug, Args)]
#[command(next_help_heading = "Batching and memory")]
pub struct BatchingArgs {
    /// Most tokens that one step computes; longer prompts are computed in chunks
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", default_value_t = 512, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_prefill_tokens: u32,

    /// Most tokens of an encoder's batch; a longer input is computed alone
    #[arg(long, env = "MAX_BATCH_TOKENS", default_value_t = 4096, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_tokens: u32,

    /// Most tokens of all running sequences together [default: what the cache holds]
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS", value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_total_tokens: Option<u32>,

    /// Most sequences that run at once
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 128, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_size: u32,

    /// Tokens in a block of the cache
    #[arg(long, env = "BLOCK_SIZE", default_value_t = 16, value_name = "TOKENS",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub block_size: u32,

    /// Compute every prompt anew, even what is the same as in a request before
    #[arg(long, env = "DISABLE_PREFIX_CACHE", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, hide_possible_values = true, hide_default_value = true,
          value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    pub disable_prefix_cache: bool,

    /// Share cached prompts only among requests with the same API key [default: true with several keys]
    #[arg(long, env = "ISOLATE_CACHE_BY_KEY", default_missing_value = "true", num_args = 0..=1, require_equals = true,
          hide_possible_values = true, value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    pub isolate_cache_by_key: Option<bool>,

    /// Most tokens of a request that are guessed ahead and verified in one step; 0: none
    #[arg(long, env = "SPECULATE", default_value_t = 0, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(0..=16))]
    pub speculate: u32,

    /// Memory for keys and values, over all shards: bytes, or 512MiB, 4GiB [default: from what is free]
    #[arg(long, env = "KV_CACHE_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub kv_cache_memory: Option<u64>,

    /// Part of a GPU's memory that may be used, above 0 and at most 1
    #[arg(long, env = "CUDA_MEMORY_FRACTION", default_value_t = 1.0, value_name = "FRACTION",
          value_parser = parse::fraction)]
    pub cuda_memory_fraction: f32,

    /// Batch sizes of decode steps to record as CUDA graphs, for example 1,2,4,8; 0 for none [default: sizes up to
    /// --max-batch-size and 256 on one GPU, none on several]
    #[arg(long, env = "CUDA_GRAPHS", value_name = "SIZES", value_parser = parse::batch_sizes)]
    pub cuda_graphs: Option<String>,
}

/// Which processes are started, and how they are watched.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device and processes")]
pub struct ProcessArgs {
    /// Where the model runs [default: cuda when an NVIDIA GPU is visible, else cpu]
    #[arg(long, env = "DEVICE")]
    pub device: Option<Device>,

    /// Number of shards that the model is split over [default: number of visible GPUs, 1 on cpu]
    #[arg(long, env = "NUM_SHARD", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub num_shard: Option<u32>,

    /// true: split over all GPUs; false: never split
    #[arg(long, env = "SHARDED", value_name = "BOOL", hide_possible_values = true,
          value_parser = clap::builder::BoolishValueParser::new())]
    pub sharded: Option<bool>,

    /// Threads that each shard computes with on cpu, at most the cores [default: the cores, divided by the shards]
    #[arg(long, env = "CPU_THREADS", value_name = "N", allow_negative_numbers = true,
          value_parser = parse::cpu_threads)]
    pub cpu_threads: Option<u32>,

    /// Sockets of the shards are made at PREFIX-0, PREFIX-1, …; only their user can open them [default: in a private temporary folder]
    #[arg(long, env = "SHARD_UDS_PATH", value_name = "PREFIX")]
    pub shard_uds_path: Option<PathBuf>,

    /// Variable of the environment that shards are to have; may be repeated [default: those that they need, without keys and tokens]
    #[arg(long, env = "SHARD_ENV", value_name = "NAME", value_delimiter = ',')]
    pub shard_env: Vec<String>,

    /// Address by which several shards find each other
    #[arg(
        long,
        env = "MASTER_ADDR",
        default_value = "127.0.0.1",
        value_name = "HOST"
    )]
    pub master_addr: String,

    /// Port by which several shards find each other [default: a free one]
    #[arg(long, env = "MASTER_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub master_port: Option<u16>,

    /// Seconds until everything must be ready
    #[arg(long, env = "STARTUP_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub startup_timeout: u64,

    /// Seconds that a step may take of which nothing is known yet; later ones are given what steps like them took, 20 times
    #[arg(long, env = "SHARD_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub shard_timeout: u64,

    /// Seconds without an answer after which a shard is killed and started again
    #[arg(long, env = "SHARD_HANG_TIMEOUT", default_value_t = 120, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub shard_hang_timeout: u64,

    /// Seconds without an answer after which the router is killed and started again
    #[arg(long, env = "ROUTER_HANG_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub router_hang_timeout: u64,

    /// Restarts in a row that do not become ready before giving up
    #[arg(long, env = "MAX_RESTARTS", default_value_t = 10, value_name = "N")]
    pub max_restarts: u32,

    /// Program of the shards [default: gridwork-server beside this program, in PATH, or in a .venv above it]
    #[arg(long, env = "GRIDWORK_SERVER", value_name = "PROGRAM")]
    pub server_command: Option<String>,

    /// Program of the router [default: gridwork-router beside this program or in PATH]
    #[arg(long, env = "GRIDWORK_ROUTER", value_name = "PROGRAM")]
    pub router_command: Option<String>,
}

/// What is shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Least severe log lines to show
    #[arg(long, env = "LOG_LEVEL", default_value = "info", ignore_case = true)]
    pub log_level: LogLevel,

    /// Log as one JSON object a line
    #[arg(long, env = "JSON_OUTPUT", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, hide_default_value = true, value_name = "BOOL",
          value_parser = clap::builder::BoolishValueParser::new())]
    pub json_output: bool,

    /// Send traces to this OpenTelemetry collector (gRPC), for example http://localhost:4317
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL", value_parser = parse::url)]
    pub otlp_endpoint: Option<String>,

    /// Name of the service in traces [default: gridwork.router and gridwork.shard]
    #[arg(long, env = "OTLP_SERVICE_NAME", value_name = "NAME")]
    pub otlp_service_name: Option<String>,

    /// Print versions, platform and GPU, then end
    #[arg(long, short)]
    pub env: bool,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    Cpu,
    Cuda,
}

/// Type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

/// The ways to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelImpl {
    #[value(alias = "transformers")]
    Auto,
    #[value(alias = "native")]
    Paged,
    Batched,
    Solo,
}

/// What a model can be served for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    Auto,
    Generate,
    Embed,
    Classify,
    Rerank,
    FillMask,
}

/// The implementations of attention: compiled for CPUs, for GPUs, PyTorch's operations, the definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attention {
    Auto,
    Cpu,
    FlashAttn,
    Varlen,
    Triton,
    #[value(alias = "torch")]
    Sdpa,
    Reference,
}

/// What weights are turned into while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// One scale for each output feature; inputs in 8 bits
    Int8,
    /// A scale and an offset for each 32 weights; inputs in 8 bits
    Int4,
}

/// Severity of a log line, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The name by which a value of the command line is written, for passing it on to a child.
pub fn value_name<T: ValueEnum>(value: T) -> String {
    value
        .to_possible_value()
        .map(|possible| possible.get_name().to_owned())
        .unwrap_or_default()
}
