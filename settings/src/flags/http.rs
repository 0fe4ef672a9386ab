//! Flags of the HTTP server.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{BoolishValueParser, NonEmptyStringValueParser, RangedU64ValueParser};
use serde::{Deserialize, Serialize};

use crate::values::{self, Secret};

/// Address, keys, and bounds of connections and bodies. Read by the router.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "HTTP")]
pub struct Http {
    /// Address to listen on (the variable is not HOSTNAME, which container runtimes set)
    #[arg(long, env = "GRIDWORK_HOSTNAME", default_value = "0.0.0.0", value_parser = NonEmptyStringValueParser::new())]
    pub hostname: String,

    /// Port to listen on
    #[arg(long, short, env = "PORT", default_value_t = 3000, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    /// Unix socket to listen on, in place of a port; only its user can connect
    #[arg(long, env = "UDS", value_name = "PATH")]
    pub uds: Option<PathBuf>,

    /// Path under which a proxy publishes the server, such as /llm; requests may come with and without it
    #[arg(long, env = "ROOT_PATH", default_value = "", hide_default_value = true, value_name = "PATH",
          value_parser = values::root_path)]
    pub root_path: String,

    /// Certificate with which to encrypt, as PEM: the server's own first, then those that it was signed with. A changed
    /// file is taken up while the server runs
    #[arg(long, env = "TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, as PEM without a password
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Port with /metrics, /health and /livez alone, without TLS and keys, for monitors (the variable is not
    /// PROMETHEUS_PORT, which Kubernetes sets)
    #[arg(long, env = "GRIDWORK_PROMETHEUS_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub prometheus_port: Option<u16>,

    /// Key that clients must send as `Authorization: Bearer KEY`; may be repeated; prefer the variable, or a file
    #[arg(long, env = "API_KEY", hide_env_values = true, value_delimiter = ',', value_name = "KEY",
          value_parser = values::secret)]
    pub api_key: Vec<Secret>,

    /// File with API keys, one on each line; a changed file is taken up while the server runs
    #[arg(long, env = "API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Origin that may call from a browser, or * for any; may be repeated [default: any, or none where keys are needed]
    #[arg(
        long,
        env = "CORS_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_name = "ORIGIN",
        value_parser = values::origin
    )]
    pub cors_allow_origin: Vec<String>,

    /// Maximum size of a request body, bytes
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000, value_name = "BYTES",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub payload_limit: usize,

    /// Maximum number of connections [default: 4096 or twice --max-concurrent-requests, as open files allow]
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=u64::from(u32::MAX)))]
    pub max_connections: Option<usize>,

    /// Seconds that a client may take to send a request; a large body may take a second more for each 8 KiB
    #[arg(long, env = "CLIENT_READ_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_read_timeout: u64,

    /// Seconds without progress after which an answer that its client does not read is dropped
    #[arg(long, env = "CLIENT_WRITE_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_write_timeout: u64,

    /// Seconds that a connection is kept open without a request
    #[arg(long, env = "CLIENT_IDLE_TIMEOUT", default_value_t = 75, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub client_idle_timeout: u64,

    /// Maximum number of prompts, or inputs of an encoder, in one request [default: 128 prompts, 2048 inputs on
    /// OpenAI's routes, 32 on others]
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", value_name = "N",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=u64::from(u32::MAX)))]
    pub max_client_batch_size: Option<usize>,

    /// Maximum size of the responses of /v1/responses that are kept for later requests, bytes, shared equally among the
    /// API keys; 0: keep none
    #[arg(
        long,
        env = "RESPONSE_STORE_BYTES",
        default_value_t = 67_108_864,
        value_name = "BYTES"
    )]
    pub response_store_bytes: usize,

    /// Cut inputs of encoders that are too long, unless a request says otherwise; false: refuse them
    #[arg(long, env = "AUTO_TRUNCATE", default_value = "true", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, hide_possible_values = true, action = clap::ArgAction::Set, value_name = "BOOL",
          value_parser = BoolishValueParser::new())]
    pub auto_truncate: bool,

    /// Seconds that running requests get to finish after SIGTERM
    #[arg(
        long,
        short,
        env = "GRACEFUL_TERMINATION_TIMEOUT",
        default_value_t = 90,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(0..=values::YEAR_S)
    )]
    pub graceful_termination_timeout: u64,
}
