//! Flags of devices and processes.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::values;

/// The processes that are started and how they are watched. Read by the launcher.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device and processes")]
pub struct Processes {
    /// Device that runs the model [default: cuda when an NVIDIA GPU is visible, else cpu]
    #[arg(long, env = "DEVICE")]
    pub device: Option<Device>,

    /// Number of shards that the model is split over [default: number of visible GPUs, 1 on cpu]
    #[arg(long, env = "NUM_SHARD", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub num_shard: Option<u32>,

    /// Split the model over all GPUs; false: never split it
    #[arg(long, env = "SHARDED", value_name = "BOOL", hide_possible_values = true,
          value_parser = BoolishValueParser::new())]
    pub sharded: Option<bool>,

    /// Number of threads of each shard on cpu, at most the cores [default: the cores, divided by the shards]
    #[arg(long, env = "CPU_THREADS", value_name = "N", allow_negative_numbers = true,
          value_parser = values::cpu_threads)]
    pub cpu_threads: Option<u32>,

    /// Prefix of the shards' sockets, PREFIX-0, PREFIX-1, …; only their user can open them [default: in a private
    /// temporary folder]
    #[arg(long, env = "SHARD_UDS_PATH", value_name = "PREFIX")]
    pub shard_uds_path: Option<PathBuf>,

    /// Serve the program that holds the other end of stdin, a socket pair: tell it when the server is ready or why it
    /// ends, end with it, read no environment variable in place of a flag, and listen on a private socket, unless --uds
    /// names another
    #[arg(long)]
    pub parent_link: bool,

    /// Environment variable to pass to the shards; may be repeated [default: those that they need, without keys and
    /// tokens]
    #[arg(long, env = "SHARD_ENV", value_name = "NAME", value_delimiter = ',')]
    pub shard_env: Vec<String>,

    /// Address at which several shards find each other
    #[arg(
        long,
        env = "MASTER_ADDR",
        default_value = "127.0.0.1",
        value_name = "HOST"
    )]
    pub master_addr: String,

    /// Port at which several shards find each other [default: a free one]
    #[arg(long, env = "MASTER_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub master_port: Option<u16>,

    /// Seconds without an answer after which a shard is killed and started again
    #[arg(long, env = "SHARD_HANG_TIMEOUT", default_value_t = 120, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=values::YEAR_S))]
    pub shard_hang_timeout: u64,

    /// Seconds without an answer after which the router is killed and started again
    #[arg(long, env = "ROUTER_HANG_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=values::YEAR_S))]
    pub router_hang_timeout: u64,

    /// Maximum number of restarts in a row that do not become ready
    #[arg(long, env = "MAX_RESTARTS", default_value_t = 10, value_name = "N")]
    pub max_restarts: u32,

    /// Program of the shards [default: gridwork-server beside this program, in PATH, or in a .venv above it]
    #[arg(long, env = "GRIDWORK_SERVER", value_name = "PROGRAM")]
    pub server_command: Option<String>,

    /// Program of the router [default: gridwork-router beside this program or in PATH]
    #[arg(long, env = "GRIDWORK_ROUTER", value_name = "PROGRAM")]
    pub router_command: Option<String>,
}

/// Times that shards may take. Read by the router; the launcher waits for `startup_timeout` too.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Device and processes")]
pub struct Timeouts {
    /// Seconds that everything may take to become ready
    #[arg(long, env = "STARTUP_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=values::YEAR_S))]
    pub startup_timeout: u64,

    /// Seconds after which a step of unknown length is taken for lost and the shards are started again; a step like
    /// earlier ones gets 20 times what they took, at least 60 s and at most this
    #[arg(long, env = "SHARD_TIMEOUT", default_value_t = 600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=values::YEAR_S))]
    pub shard_timeout: u64,
}

/// Devices that run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    Cpu,
    Cuda,
}
