//! Signals by which the launcher is told to end, and the end of the program that it serves.

use std::fmt;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::parent::{Parent, Teller};

/// A reason to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal was closed.
    Hangup,
    /// The program at the other end of stdin has ended, or closed its end.
    ParentGone,
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
            Self::ParentGone => "the program that this server is for has closed its link",
        })
    }
}

/// The signals that arrive after this is made.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Absent under `nohup`, which makes the process ignore it.
    hangup: Option<Signal>,
    /// Present with `--parent-link`, until it was seen to be gone.
    parent: Option<Parent>,
    teller: Teller,
}

impl Signals {
    /// Starts to listen. Must be called inside the runtime.
    pub fn listen(parent: Option<Parent>) -> io::Result<Self> {
        let hangup = if is_ignored(libc::SIGHUP) {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
            teller: parent.as_ref().map(Parent::teller).unwrap_or_default(),
            parent,
        })
    }

    /// Writes to the parent, if there is one.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Request {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let parent_gone = async {
            match &mut self.parent {
                Some(parent) => parent.gone().await,
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            _ = self.interrupt.recv() => Request::Interrupt,
            _ = self.terminate.recv() => Request::Terminate,
            _ = hangup => Request::Hangup,
            () = parent_gone => Request::ParentGone,
        };
        if request == Request::ParentGone {
            self.parent = None;
        }
        request
    }
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: an all-zero sigaction is a valid value to be overwritten, and a null pointer asks without changing
    // anything.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut current) == 0
            && current.sa_sigaction == libc::SIG_IGN
    }
}
