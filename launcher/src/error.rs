//! Errors that end the launcher, in words for the person who started it.

use std::io;

use crate::launch::NotUtf8;
use crate::launch::prepare::PrepareError;
use crate::machine::DeviceError;
use crate::model::ModelError;
use crate::process::http_socket::HttpSocketError;
use crate::process::parent::Blame;
use crate::process::programs::ProgramNotFound;
use crate::process::sockets::SocketError;
use crate::supervisor::SupervisorError;

/// Ends the launcher with a non-zero exit code. Shown once, as `error: …`.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    #[error("{0}")]
    Setting(String),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Program(#[from] ProgramNotFound),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    HttpSocket(#[from] HttpSocketError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Path(#[from] NotUtf8),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

impl LauncherError {
    /// Advice for the program that this server is for.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Setting(_) | Self::Device(_) | Self::HttpSocket(_) | Self::Path(_) => {
                Blame::Setting
            }
            Self::Model(_) | Self::Prepare(PrepareError::Model(_)) => Blame::Model,
            Self::Supervisor(error) if error.is_of_model() => Blame::Model,
            Self::Program(_)
            | Self::Socket(_)
            | Self::Prepare(PrepareError::Child(_))
            | Self::Supervisor(_)
            | Self::Io { .. } => Blame::Server,
        }
    }

    /// Exit code of the process: 130 after a second interrupt, as shells do, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Supervisor(SupervisorError::Interrupted) => 130,
            _ => 1,
        }
    }
}
