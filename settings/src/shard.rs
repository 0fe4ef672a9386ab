//! The settings of a shard, as the launcher writes them. The shard reads them into `ShardConfig`
//! (`server/gridwork_server/config.py`), which has the same fields.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::Cli;
use crate::flags::{Device, LogLevel, Memory, ModelRun};

/// Everything that one rank is started with, but for its number and its socket, which stand on its command line: those
/// who look at processes can tell ranks apart.
#[derive(Debug, Clone, Serialize)]
pub struct ShardSettings {
    #[serde(flatten)]
    run: ModelRun,
    #[serde(flatten)]
    memory: Memory,
    #[serde(flatten)]
    launch: ShardLaunch,
    block_size: u32,
    trust_remote_code: bool,
    code_revision: Option<String>,
    revision: Option<String>,
    otlp_endpoint: Option<String>,
    otlp_service_name: String,
    log_level: LogLevel,
}

/// Facts that the launcher has found out for the shards.
#[derive(Debug, Clone, Serialize)]
pub struct ShardLaunch {
    /// Folder of the model.
    pub model_path: PathBuf,
    pub device: Device,
    /// Number of ranks.
    pub world_size: u32,
    /// Address at which rank 0 listens for the others, unless there is a file.
    pub master_addr: String,
    pub master_port: Option<u16>,
    /// File in which ranks of one machine find each other.
    pub meeting_file: Option<PathBuf>,
    /// Number of threads; `None` leaves it to the shard.
    pub cpu_threads: Option<u32>,
    /// True if rank 0 turns texts into tokens for the router.
    pub serve_tokenizer: bool,
}

impl ShardSettings {
    /// The shards' part of `cli`.
    pub fn new(cli: &Cli, launch: ShardLaunch) -> Self {
        let service = cli.output.otlp_service_name.clone();
        Self {
            run: cli.run.clone(),
            memory: cli.memory.clone(),
            launch,
            block_size: cli.batching.block_size,
            trust_remote_code: cli.model.trust_remote_code,
            code_revision: cli.model.code_revision.clone(),
            revision: cli.model.revision.clone(),
            otlp_endpoint: cli.output.otlp_endpoint.clone(),
            otlp_service_name: service.unwrap_or_else(|| "gridwork.shard".to_owned()),
            log_level: cli.output.log_level,
        }
    }
}
