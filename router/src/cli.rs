//! The command line of `gridwork-router`, and the settings that follow from it.
//!
//! Every flag can also be given by an environment variable of the same name in upper case. Two differ: the address to
//! listen on is `GRIDWORK_HOSTNAME`, since container runtimes set `HOSTNAME`; and the key of the API has no flag, since
//! every user of a machine sees the arguments of its processes. A variable that is set but empty counts as not set, as
//! compose files pass them so.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use gridwork_engine::{EncoderConfig, EngineConfig, ShardAddress};

use crate::api_keys::ApiKeys;
use crate::connections;
use crate::encoder::{DefaultPrompt, EncoderLimits, LARGEST_BODIES};
use crate::state::Config;

/// The HTTP front of Gridwork: validates, schedules and answers requests, and drives the shard that runs the model.
/// Started by `gridwork`; seldom by hand.
#[derive(Debug, Parser)]
#[command(name = "gridwork-router", version, max_term_width = 120)]
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
    pub output: OutputArgs,

    /// Keys that clients must send, separated by commas; by the environment only (`API_KEY`).
    #[arg(skip)]
    pub api_keys: ApiKeys,

    /// What the model runs on, for the `x-compute-type` header; by the environment only (`COMPUTE_TYPE`).
    #[arg(skip = "cpu".to_owned())]
    pub compute_type: String,
}

/// What is served.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Folder of the model, with its tokenizer.json
    #[arg(long, env = "MODEL_PATH", value_name = "DIR")]
    pub model_path: PathBuf,

    /// Folder of the model's tokenizer.json and tokenizer_config.json [default: that of the model]
    #[arg(long, env = "TOKENIZER_PATH", value_name = "DIR")]
    pub tokenizer_path: Option<PathBuf>,

    /// Have texts tokenized by the shard: the tokenizer.json only turns tokens into text
    #[arg(long)]
    pub tokenize_on_shard: bool,

    /// Name that the model is served under
    #[arg(long, env = "MODEL_ID", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub model_id: String,

    /// Name that answers carry and /v1/models lists; may be repeated, answers carry the first [default: --model-id]
    #[arg(long, env = "SERVED_MODEL_NAME", num_args = 1.., value_name = "NAME",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub served_model_name: Vec<String>,

    /// Revision of the model, for /info
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,

    /// A tokenizer_config.json to use in place of the model's (for its chat template)
    #[arg(long, env = "TOKENIZER_CONFIG_PATH", value_name = "FILE")]
    pub tokenizer_config_path: Option<PathBuf>,

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

    /// Where the shard listens: path of a unix socket, or HOST:PORT
    #[arg(long, env = "SHARD_SOCKET", value_name = "PATH|HOST:PORT")]
    pub shard_socket: ShardAddress,

    /// Seconds that the shard may take to become ready
    #[arg(long, env = "STARTUP_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub startup_timeout: u64,

    /// Seconds that a step may take of which nothing is known yet; later ones are given what steps like them took, 20 times
    #[arg(long, env = "SHARD_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub shard_timeout: u64,

    /// Stdin is a socket at which the launcher asks how the router is
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// How it is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on
    #[arg(long, env = "GRIDWORK_HOSTNAME", default_value = "0.0.0.0", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub hostname: String,

    /// Port to listen on; 0: a free one, which is logged
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,

    /// Origin allowed to call from a browser, or * for any; may be repeated [default: any]
    #[arg(
        long,
        env = "CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN",
        value_parser = parse_origin
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
    #[arg(long, env = "AUTO_TRUNCATE", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, hide_possible_values = true, action = clap::ArgAction::Set,
          value_name = "BOOL", value_parser = clap::builder::BoolishValueParser::new())]
    pub auto_truncate: bool,

    /// At SIGTERM, seconds that running requests are given to finish
    #[arg(
        long,
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

    /// Prompts that are tokenized and checked at once
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
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
}

/// What is logged and traced.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Least severe log lines to show
    #[arg(
        long,
        env = "LOG_LEVEL",
        default_value = "info",
        ignore_case = true,
        value_enum
    )]
    pub log_level: LogLevel,

    /// Send traces to this OpenTelemetry collector (gRPC), for example http://localhost:4317
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL", value_parser = parse_endpoint)]
    pub otlp_endpoint: Option<String>,

    /// Name of the service in traces
    #[arg(
        long,
        env = "OTLP_SERVICE_NAME",
        default_value = "gridwork.router",
        value_name = "NAME"
    )]
    pub otlp_service_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// As `tracing-subscriber`'s filters call it.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Everything that a router is run with.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Folder of the model.
    pub model_path: PathBuf,
    /// A `tokenizer_config.json` in place of the model's.
    pub tokenizer_config_path: Option<PathBuf>,
    /// Folder of the tokenizer.
    pub tokenizer_path: PathBuf,
    /// Whether the shard tokenizes.
    pub tokenize_on_shard: bool,
    /// Whether stdin is a socket of the launcher.
    pub supervised: bool,
    pub engine: EngineConfig,
    /// For models that encode.
    pub encoder: EncoderConfig,
    /// Put before texts to embed, in place of the model's own default.
    pub default_prompt: Option<DefaultPrompt>,
    pub encoder_limits: EncoderLimits,
    pub http: Config,
    /// `--max-connections`, if it was given.
    pub max_connections: Option<usize>,
    pub connections: connections::Limits,
    /// How long running requests may go on once the router is told to end.
    pub graceful_termination_timeout: Duration,
    /// Collector of traces; `None`: nothing is traced.
    pub otlp_endpoint: Option<String>,
    pub otlp_service_name: String,
    pub log_level: LogLevel,
}

impl Cli {
    /// Reads the arguments and the environment of this process.
    ///
    /// Errors are clap's: they name the flag, what it was given, and what it takes. `--help` and `--version` are among
    /// them.
    pub fn from_process() -> Result<Self, clap::Error> {
        let environment = |name| std::env::var_os(name);
        Self::read(
            std::env::args_os(),
            environment("API_KEY"),
            environment("COMPUTE_TYPE"),
        )
    }

    /// Reads `args` (the first is the program) and the two settings that have no flag.
    pub fn read(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        api_key: Option<OsString>,
        compute_type: Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let command = Self::command().mut_args(|arg| {
            let empty = arg
                .get_env()
                .and_then(std::env::var_os)
                .is_some_and(|value| value.is_empty());
            if empty {
                arg.env(None::<&'static str>)
            } else {
                arg
            }
        });
        let mut cli = Self::from_arg_matches(&command.try_get_matches_from(args)?)?;
        cli.api_keys = read_keys(api_key).map_err(|message| invalid(&message))?;
        if let Some(text) = compute_type.filter(|text| !text.is_empty()) {
            cli.compute_type = text.to_string_lossy().into_owned();
        }
        cli.check().map_err(|message| invalid(&message))?;
        Ok(cli)
    }

    /// What must hold between flags.
    fn check(&self) -> Result<(), String> {
        let LimitArgs {
            max_input_tokens,
            max_total_tokens,
            ..
        } = self.limits;
        if let (Some(input), Some(total)) = (max_input_tokens, max_total_tokens)
            && input >= total
        {
            return Err(format!(
                "--max-input-tokens {input} must be less than --max-total-tokens {total}: a request generates at \
                 least one token"
            ));
        }
        if let (Some(total), Some(batch)) = (max_total_tokens, self.batching.max_batch_total_tokens)
            && batch < total
        {
            return Err(format!(
                "--max-batch-total-tokens {batch} must be at least --max-total-tokens {total}: the longest request \
                 must fit into a batch"
            ));
        }
        if self.batching.isolate_cache_by_key == Some(true) && self.api_keys.is_empty() {
            return Err(
                "--isolate-cache-by-key needs API keys to tell requests apart by; give --api-key, or remove it"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// `host:port` to bind; an IPv6 address is put into brackets.
    pub fn listen_address(&self) -> String {
        let HttpArgs { hostname, port, .. } = &self.http;
        match hostname.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
            _ => format!("{hostname}:{port}"),
        }
    }

    pub fn into_config(self) -> RouterConfig {
        let Cli {
            model,
            http,
            limits,
            batching,
            output,
            api_keys,
            compute_type,
        } = self;
        let payload_limit_bytes = usize::try_from(http.payload_limit).unwrap_or(usize::MAX);
        RouterConfig {
            tokenizer_path: model
                .tokenizer_path
                .unwrap_or_else(|| model.model_path.clone()),
            tokenize_on_shard: model.tokenize_on_shard,
            supervised: model.supervised,
            model_path: model.model_path,
            tokenizer_config_path: model.tokenizer_config_path,
            encoder: EncoderConfig {
                shard: model.shard_socket.clone(),
                max_batch_tokens: batching.max_batch_tokens,
                max_batch_sequences: batching.max_batch_size,
                max_concurrent_requests: limits.max_concurrent_requests as usize,
                queue_timeout: Duration::from_secs(limits.queue_timeout),
                startup_timeout: Duration::from_secs(model.startup_timeout),
                shard_timeout: Duration::from_secs(model.shard_timeout),
                speculate: batching.speculate,
            },
            default_prompt: match (model.default_prompt, model.default_prompt_name) {
                (Some(text), _) => Some(DefaultPrompt::Text(text)),
                (None, name) => name.map(DefaultPrompt::Name),
            },
            encoder_limits: EncoderLimits {
                max_input_tokens: limits.max_input_tokens,
                max_batch_tokens: batching.max_batch_tokens,
                max_batch_size: batching.max_batch_size,
                max_client_batch_size: http.max_client_batch_size.unwrap_or(DEFAULT_CLIENT_INPUTS)
                    as usize,
                max_openai_inputs: http.max_client_batch_size.unwrap_or(DEFAULT_OPENAI_INPUTS)
                    as usize,
                auto_truncate: http.auto_truncate,
                max_request_bytes: payload_limit_bytes.saturating_mul(LARGEST_BODIES),
            },
            max_connections: http.max_connections.map(|number| number as usize),
            connections: connections::Limits {
                max_connections: DEFAULT_CONNECTIONS
                    .max(limits.max_concurrent_requests.saturating_mul(2))
                    as usize,
                read_timeout: Duration::from_secs(http.client_read_timeout),
                write_timeout: Duration::from_secs(http.client_write_timeout),
                idle_timeout: Duration::from_secs(http.client_idle_timeout),
            },
            engine: EngineConfig {
                shard: model.shard_socket,
                block_size_tokens: batching.block_size,
                max_batch_prefill_tokens: batching.max_batch_prefill_tokens,
                max_sequences: batching.max_batch_size,
                max_total_tokens: limits.max_total_tokens,
                max_batch_total_tokens: batching.max_batch_total_tokens,
                prefix_cache: !batching.disable_prefix_cache,
                speculate: batching.speculate,
                max_concurrent_requests: limits.max_concurrent_requests as usize,
                queue_timeout: Duration::from_secs(limits.queue_timeout),
                startup_timeout: Duration::from_secs(model.startup_timeout),
                shard_timeout: Duration::from_secs(model.shard_timeout),
                more_eos_token_ids: Vec::new(),
            },
            http: Config {
                served_names: if model.served_model_name.is_empty() {
                    vec![model.model_id.clone()]
                } else {
                    model.served_model_name
                },
                model_id: model.model_id,
                revision: model.revision,
                max_best_of: limits.max_best_of as usize,
                max_n: limits.max_n,
                max_echo_bytes: usize::try_from(limits.max_echo_bytes).unwrap_or(usize::MAX),
                max_stop_sequences: limits.max_stop_sequences as usize,
                max_top_n_tokens: limits.max_top_n_tokens,
                max_input_tokens: limits.max_input_tokens,
                max_client_batch_size: http.max_client_batch_size.unwrap_or(DEFAULT_CLIENT_PROMPTS)
                    as usize,
                max_concurrent_requests: limits.max_concurrent_requests as usize,
                validation_workers: limits.validation_workers as usize,
                payload_limit_bytes,
                isolate_cache_by_key: batching.isolate_cache_by_key.unwrap_or(api_keys.len() > 1),
                api_keys,
                cors_allow_origin: allowed_origins(http.cors_allow_origin),
                compute_type,
            },
            graceful_termination_timeout: Duration::from_secs(http.graceful_termination_timeout),
            otlp_endpoint: output.otlp_endpoint,
            otlp_service_name: output.otlp_service_name,
            log_level: output.log_level,
        }
    }
}

/// `--max-client-batch-size` when it is not given: of prompts.
const DEFAULT_CLIENT_PROMPTS: u32 = 128;
/// And of inputs of an encoder, as text-embeddings-inference has it.
const DEFAULT_CLIENT_INPUTS: u32 = 32;
/// And on OpenAI's routes, as OpenAI has it.
const DEFAULT_OPENAI_INPUTS: u32 = 2048;

/// `--max-connections` when it is not given, at least.
const DEFAULT_CONNECTIONS: u32 = 4096;

fn invalid(message: &str) -> clap::Error {
    Cli::command().error(clap::error::ErrorKind::ValueValidation, message)
}

/// The keys of the variable. One that is set and empty is refused, where an empty variable of another setting counts as not
/// set: a server that is meant to have a key must not be open.
fn read_keys(keys: Option<OsString>) -> Result<ApiKeys, String> {
    let Some(keys) = keys else {
        return Ok(ApiKeys::default());
    };
    let keys = keys
        .into_string()
        .map_err(|_| "API_KEY is not UTF-8".to_owned())?;
    ApiKeys::parse(&keys)
}

/// An origin as browsers send it (RFC 6454, section 6.1): scheme, host and port alone; or `*`.
fn parse_origin(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_origin = text
        .split_once("://")
        .is_some_and(|(scheme, host)| is_scheme(scheme) && is_host_and_port(host));
    if is_origin || matches!(text, "*" | "null") {
        return Ok(text.to_owned());
    }
    Err(
        "an origin is a scheme, a host and maybe a port, without a path, for example https://example.com:8080; * is any"
            .to_owned(),
    )
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        })
}

fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // A colon of an IPv6 address, which stands in brackets.
        Some((_, port)) if port.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_name = |name: &str| {
        name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._~".contains(&byte)
        })
    };
    let is_host = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && is_name(host),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// What is left to compare with; nothing where any origin is allowed.
fn allowed_origins(origins: Vec<String>) -> Vec<String> {
    if origins.iter().any(|origin| origin == "*") {
        Vec::new()
    } else {
        origins
    }
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    let uri: axum::http::Uri = text.parse().map_err(|_| "not a URL".to_owned())?;
    match uri.scheme_str() {
        Some("http") => Ok(text.to_owned()),
        Some("https") => Err(
            "this build cannot encrypt; give http:// and a collector in the same network"
                .to_owned(),
        ),
        _ => Err("a collector's URL begins with http://".to_owned()),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
