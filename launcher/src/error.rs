//! What can end the launcher, in words for the person who started it.

use std::io;
use std::path::PathBuf;

use crate::model::ModelError;
use crate::supervisor::Fault;

/// Ends the launcher with a non-zero exit code. Shown once, as `error: …`.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    #[error(transparent)]
    Model(#[from] ModelError),

    #[error("{program} was not found. Looked at: {}. Install it, or name it with {flag}", .tried.join(", "))]
    ProgramNotFound {
        program: &'static str,
        flag: &'static str,
        tried: Vec<String>,
    },

    #[error("{0}")]
    Setting(String),

    #[error("{0:?} is not UTF-8, and settings are passed on as JSON; rename the file or folder")]
    NotUtf8(PathBuf),

    #[error(
        "port {port} of {hostname} is already in use. Stop what listens there, or choose another port with --port"
    )]
    PortInUse { hostname: String, port: u16 },

    #[error("cannot listen on {hostname}:{port}: {source}. Check --hostname and --port")]
    CannotListen {
        hostname: String,
        port: u16,
        source: io::Error,
    },

    #[error("cannot make the sockets of the shards in {}: {source}. Name another place with --shard-uds-path", .folder.display())]
    SocketFolder { folder: PathBuf, source: io::Error },

    #[error(
        "the socket path {} is {length} bytes long, {limit} are allowed. Name a shorter one with --shard-uds-path",
        .path.display()
    )]
    SocketPathTooLong {
        path: PathBuf,
        length: usize,
        limit: usize,
    },

    #[error("{} exists and is not a socket left over by a shard. Remove it, or name another place with --shard-uds-path", .0.display())]
    SocketPathTaken(PathBuf),

    #[error(
        "another server uses the socket {}. Stop it, or name another place with --shard-uds-path", .0.display()
    )]
    SocketInUse(PathBuf),

    #[error(
        "--num-shard {shards} needs as many GPUs, {visible} visible. Lower --num-shard, or check CUDA_VISIBLE_DEVICES"
    )]
    TooFewDevices { shards: u32, visible: u32 },

    #[error(
        "--device cuda, but no NVIDIA GPU is visible. Check CUDA_VISIBLE_DEVICES and that the container was given the GPU \
         (docker: --gpus all), or use --device cpu"
    )]
    NoDevice,

    #[error(
        "--cpu-threads {threads} is more than the {cores} cores that may be used: threads that share a core wait for each \
         other. Give {cores} or less, or leave it out"
    )]
    TooManyThreads { threads: u32, cores: u32 },

    #[error("cannot start {tag} ({program}): {source}")]
    Spawn {
        tag: String,
        program: String,
        source: io::Error,
    },

    #[error("cannot find a free port for the shards to meet: {0}. Name one with --master-port")]
    MasterPort(io::Error),

    #[error(
        "cannot make the file that the shards meet in: {0}. Name another place with --shard-uds-path"
    )]
    MeetingFile(io::Error),

    #[error("{0}")]
    Fault(Fault),

    #[error("not ready after {seconds} s (--startup-timeout). {states}")]
    StartupTimeout { seconds: u64, states: String },

    #[error(
        "{name} did not become ready in {restarts} restarts in a row (--max-restarts). The last time: {last}"
    )]
    GaveUp {
        name: String,
        restarts: u32,
        last: Fault,
    },

    #[error("ended at once by a second interrupt; running requests were dropped")]
    Interrupted,

    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl LauncherError {
    /// Exit code of the process: 130 after a second interrupt, as shells do, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}
