//! The link to the program that has started the launcher for itself (`--parent-link`): one end of a socket pair at stdin.
//!
//! The launcher writes one line of JSON, an [`Event`], when the server is ready, or why it is not going to be. The link
//! closes when that program ends, however it ends, which ends the server too.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// News for the parent.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The server answers at `socket`.
    Ready {
        socket: &'a Path,
        model_id: &'a str,
        /// Folder of the model.
        model_path: &'a Path,
    },
    /// The server ends.
    Failed { kind: Blame, reason: &'a str },
}

/// Advice on how the next start succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// A flag.
    Setting,
    /// The model, or its name.
    Model,
    /// Neither: programs, sockets, the machine.
    Server,
}

/// The launcher's end of the link.
#[derive(Debug)]
pub struct Parent {
    socket: UnixStream,
    teller: Teller,
}

/// Writes to the parent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Teller(Option<Arc<Socket>>);

impl Teller {
    /// Writes an event, if there is a parent. One that is gone need not be told.
    pub fn tell(&self, event: &Event<'_>) {
        let Some(mut socket) = self.0.as_deref() else {
            return;
        };
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        let _ = socket.write_all(&line);
    }
}

impl Parent {
    /// Takes the link at stdin. Must be called inside the runtime.
    pub fn at_stdin() -> io::Result<Self> {
        let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
        // Anything but a socket fails here, and a listener has no peer.
        socket.peer_addr()?;
        Self::new(socket)
    }

    fn new(socket: Socket) -> io::Result<Self> {
        // The few bytes of an event fit into the empty buffer of a socket.
        socket.set_nonblocking(true)?;
        let teller = Teller(Some(Arc::new(socket.try_clone()?)));
        let socket = UnixStream::from_std(socket)?;
        Ok(Self { socket, teller })
    }

    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Returns when the parent has closed its end. What it writes is ignored.
    pub async fn gone(&mut self) {
        let mut ignored = [0; 64];
        while self
            .socket
            .read(&mut ignored)
            .await
            .is_ok_and(|count| count > 0)
        {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_parent_is_told_and_its_end_is_seen() {
        let (ours, theirs) = Socket::pair().unwrap();
        let mut parent = Parent::new(ours).unwrap();
        let still_there = tokio::time::timeout(Duration::from_millis(50), parent.gone()).await;
        assert!(still_there.is_err());
        let event = Event::Failed {
            kind: Blame::Model,
            reason: "no \"weights\"",
        };
        parent.teller().tell(&event);
        let mut line = String::new();
        let mut lines = BufReader::new(&theirs);
        lines.read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected =
            serde_json::json!({"event": "failed", "kind": "model", "reason": "no \"weights\""});
        assert_eq!(told, expected);
        drop(theirs);
        parent.gone().await;
        // Nobody listens any more, which is no error.
        parent.teller().tell(&event);
    }
}
