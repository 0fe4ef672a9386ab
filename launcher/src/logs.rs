//! One log out of many: the launcher's own lines and those of its children, each with a tag that tells whose it is.
//!
//! A thread of its own writes to stdout, so that a stalled terminal or pipe stalls the children's logging (their pipes
//! fill up) but never the supervision.

mod line;
mod reader;
mod time;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cli::LogLevel;

pub use line::{Line, Record};
pub use reader::{Output, read_output};

/// Lines of children that may wait to be written before their readers wait too.
const MAX_WAITING_LINES: usize = 4096;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub json: bool,
    pub colour: bool,
}

impl Format {
    /// Colour only on a terminal whose user has not set `NO_COLOR` (<https://no-color.org>).
    pub fn for_stdout(json: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            colour: !json && !no_color && std::io::stdout().is_terminal(),
        }
    }
}

enum Message {
    /// With its place among the waiting lines, given back once it is written. The launcher's own lines need none.
    Line(String, Option<OwnedSemaphorePermit>),
    End(std_mpsc::Sender<()>),
}

/// Where lines are sent to. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    lines: mpsc::UnboundedSender<Message>,
    places: Arc<Semaphore>,
    least: LogLevel,
    format: Format,
}

impl Log {
    /// Starts the writing thread. `least`: least severe of the launcher's own lines to show.
    pub fn start(
        least: LogLevel,
        format: Format,
        out: impl Write + Send + 'static,
    ) -> std::io::Result<Self> {
        let (lines, waiting) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_lines(waiting, out))?;
        Ok(Self {
            lines,
            places: Arc::new(Semaphore::new(MAX_WAITING_LINES)),
            least,
            format,
        })
    }

    pub fn debug(&self, message: impl Into<String>) {
        self.own(LogLevel::Debug, message.into());
    }

    pub fn info(&self, message: impl Into<String>) {
        self.own(LogLevel::Info, message.into());
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.own(LogLevel::Warn, message.into());
    }

    pub fn error(&self, message: impl Into<String>) {
        self.own(LogLevel::Error, message.into());
    }

    fn own(&self, level: LogLevel, message: String) {
        if level >= self.least {
            let record = Record {
                timestamp: time::now(),
                level,
                target: String::new(),
                message,
                fields: Map::new(),
            };
            let text = record.render("launcher", self.format);
            // Fails only when the writing thread is gone; there is nowhere left to say so.
            let _ = self.lines.send(Message::Line(text, None));
        }
    }

    /// Shows a line of a child. Waits while too many lines are waiting to be written.
    pub async fn child(&self, tag: &str, line: &Line) {
        let text = match line {
            Line::Record(record) => record.render(tag, self.format),
            Line::Plain(text) => line::render_plain(tag, text, self.format),
        };
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let _ = self.lines.send(Message::Line(text, place));
    }

    /// Shows a line of a child that was held back, without waiting.
    pub fn held_back(&self, tag: &str, record: &Record) {
        let _ = self
            .lines
            .send(Message::Line(record.render(tag, self.format), None));
    }

    /// Waits until everything sent so far is written, or `timeout` is over.
    pub fn flush(&self, timeout: Duration) {
        let (done, written) = std_mpsc::channel();
        if self.lines.send(Message::End(done)).is_ok() {
            let _ = written.recv_timeout(timeout);
        }
    }
}

/// A reader that went away (`gridwork | head`) must not end the server: errors of writing are ignored.
fn write_lines(mut waiting: mpsc::UnboundedReceiver<Message>, mut out: impl Write) {
    while let Some(message) = waiting.blocking_recv() {
        match message {
            Message::Line(text, place) => {
                let _ = out.write_all(text.as_bytes());
                if waiting.is_empty() {
                    let _ = out.flush();
                }
                drop(place);
            }
            Message::End(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

/// Fields of a log line, as JSON.
pub type Fields = Map<String, Value>;
