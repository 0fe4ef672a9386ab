//! Merges the launcher's own log lines with those of its children. The tag of each line names its process.
//!
//! A thread of its own writes to stdout. When nobody reads there (a stalled terminal, a full pipe), lines are dropped
//! and counted: neither the children nor the supervision ever wait for a reader.

mod escape;
mod line;
mod reader;
mod time;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use gridwork_settings::LogLevel;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

pub use escape::visible;
pub use line::{Line, Record};
pub use reader::{Output, read_output};

/// Maximum number of bytes of waiting lines: first of the children, then of the launcher itself.
const MAX_WAITING_BYTES: usize = 8 << 20;
const MAX_OWN_WAITING_BYTES: usize = 1 << 20;

/// Form of written lines.
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
    /// A line, with its share of the waiting bytes, which is given back once it is written.
    Line(String, OwnedSemaphorePermit),
    End(std_mpsc::Sender<()>),
}

/// Sender of log lines. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    lines: mpsc::UnboundedSender<Message>,
    places: Arc<Semaphore>,
    own_places: Arc<Semaphore>,
    /// Number of dropped lines since the last one that was written.
    dropped: Arc<AtomicU64>,
    least: LogLevel,
    format: Format,
}

impl Log {
    /// Starts the writing thread. `least` is the minimum severity of the launcher's own lines.
    pub fn start(
        least: LogLevel,
        format: Format,
        out: impl Write + Send + 'static,
    ) -> std::io::Result<Self> {
        let (lines, waiting) = mpsc::unbounded_channel();
        let dropped = Arc::new(AtomicU64::new(0));
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn({
                let dropped = Arc::clone(&dropped);
                move || write_lines(waiting, out, &dropped, format)
            })?;
        Ok(Self {
            lines,
            places: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            own_places: Arc::new(Semaphore::new(MAX_OWN_WAITING_BYTES)),
            dropped,
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
            self.send(own_line(level, message, self.format), &self.own_places);
        }
    }

    fn send(&self, text: String, places: &Arc<Semaphore>) {
        let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
        match Arc::clone(places).try_acquire_many_owned(bytes) {
            // Fails only when the writing thread is gone; there is nowhere left to say so.
            Ok(place) => drop(self.lines.send(Message::Line(text, place))),
            Err(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Shows a line of a child, or drops and counts it if too many bytes wait.
    pub fn child(&self, tag: &str, line: &Line) {
        let text = match line {
            Line::Record(record) => record.render(tag, self.format),
            Line::Plain(text) => line::render_plain(tag, text, self.format),
        };
        self.send(text, &self.places);
    }

    /// Shows a line of a child that was held back.
    pub fn held_back(&self, tag: &str, record: &Record) {
        self.send(record.render(tag, self.format), &self.own_places);
    }

    /// Waits until everything sent so far is written, or `timeout` is over.
    pub fn flush(&self, timeout: Duration) {
        let (done, written) = std_mpsc::channel();
        if self.lines.send(Message::End(done)).is_ok() {
            let _ = written.recv_timeout(timeout);
        }
    }
}

/// Writes one of the launcher's own lines.
fn own_line(level: LogLevel, message: String, format: Format) -> String {
    let record = Record {
        timestamp: time::now(),
        level,
        target: String::new(),
        message,
        fields: Map::new(),
    };
    record.render("launcher", format)
}

/// A reader that went away (`gridwork | head`) must not end the server: errors of writing are ignored.
fn write_lines(
    mut waiting: mpsc::UnboundedReceiver<Message>,
    mut out: impl Write,
    dropped: &AtomicU64,
    format: Format,
) {
    while let Some(message) = waiting.blocking_recv() {
        match message {
            Message::Line(text, place) => {
                let _ = out.write_all(text.as_bytes());
                let num_dropped = dropped.swap(0, Ordering::Relaxed);
                if num_dropped > 0 {
                    let message = format!("{num_dropped} lines were dropped: nobody read the log");
                    let line = own_line(LogLevel::Warn, message, format);
                    let _ = out.write_all(line.as_bytes());
                }
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

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// A pipe that nobody reads until it is told to be read.
    #[derive(Clone, Default)]
    struct Stuck(Arc<Pipe>);

    #[derive(Default)]
    struct Pipe {
        /// True if it is read, and what was written.
        state: Mutex<(bool, Vec<u8>)>,
        read: Condvar,
    }

    impl Stuck {
        fn release(&self) {
            self.0.state.lock().unwrap().0 = true;
            self.0.read.notify_all();
        }
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let state = self.0.state.lock().unwrap();
            let mut state = self.0.read.wait_while(state, |state| !state.0).unwrap();
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_keeps_nobody_waiting() {
        let out = Stuck::default();
        let format = Format {
            json: false,
            colour: false,
        };
        let log = Log::start(LogLevel::Info, format, out.clone()).unwrap();
        let line = Line::Plain("x".repeat(1 << 20));
        for _ in 0..20 {
            log.child("shard-0", &line);
        }
        log.info("still told");
        out.release();
        log.flush(Duration::from_secs(10));
        let written = String::from_utf8(out.0.state.lock().unwrap().1.clone()).unwrap();
        assert_eq!(written.matches("shard-0 |").count(), 7);
        assert!(written.contains("13 lines were dropped"));
        assert!(written.contains("still told"));
    }
}
