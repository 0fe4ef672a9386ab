//! Faults of the router and the shards.

use std::io;
use std::path::PathBuf;

use crate::process::sockets::SocketError;
use crate::process::{ChildError, Exit};

/// Errors of starting processes.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot make a socket for the router: {0}")]
    RouterLink(io::Error),
}

/// Faults of running processes.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{}", .0.reason())]
    Ended(Box<Exit>),
    #[error("{tag}: {message}")]
    Failed { tag: String, message: String },
    #[error("{tag} has not answered for {seconds} s ({flag})")]
    Hung {
        tag: String,
        seconds: u64,
        flag: &'static str,
    },
    #[error("{0}")]
    Overdue(String),
    #[error("{}: the socket of {tag} is lost and cannot be put back: {source}", .path.display())]
    SocketLost {
        tag: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("not ready after {seconds} s (--startup-timeout); {states}")]
    NotReady { seconds: u64, states: String },
    #[error(transparent)]
    NotStarted(#[from] StartError),
}

/// Reason why the server ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("not ready after {seconds} s (--startup-timeout); {states}")]
    StartupTimeout { seconds: u64, states: String },
    #[error(
        "{name} did not become ready in {restarts} restarts in a row (--max-restarts); the last time: {last}"
    )]
    GaveUp {
        name: String,
        restarts: u32,
        last: Fault,
    },
    #[error("ended at once by a second interrupt; running requests were dropped")]
    Interrupted,
}

impl SupervisorError {
    /// True if a shard has said why it cannot serve the model.
    pub fn is_of_model(&self) -> bool {
        match self {
            Self::Fault(fault) | Self::GaveUp { last: fault, .. } => match fault {
                Fault::Failed { .. } => true,
                Fault::Ended(exit) => exit.fatal.is_some(),
                _ => false,
            },
            Self::StartupTimeout { .. } | Self::Interrupted => false,
        }
    }
}
