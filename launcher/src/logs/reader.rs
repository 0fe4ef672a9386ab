//! Reads the output of a child as it arrives.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gridwork_settings::LogLevel;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Line, Log, Record};

/// Maximum length of a line; a longer one is shown in pieces.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Minimum time between two lines of a progress bar, which redraws itself many times a second.
const REDRAW_EVERY: Duration = Duration::from_secs(1);

/// The part of a child's output that explains its end.
#[derive(Debug, Default, Clone)]
pub struct Output(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    fatal: Option<Record>,
    last: String,
}

impl Output {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the log line with the reason of the process's end. It has not been shown: the report of the end shows it.
    pub fn take_fatal(&self) -> Option<Record> {
        self.kept().fatal.take()
    }

    /// Returns the last line if it may explain the end: plain text, a warning or an error.
    pub fn last_line(&self) -> String {
        self.kept().last.clone()
    }

    /// Remembers a line. Returns whether to show it now: the first fatal one is held back.
    fn keep(&self, text: &str, line: &Line, fatal: bool) -> bool {
        let mut kept = self.kept();
        if let (true, Line::Record(record), None) = (fatal, line, &kept.fatal) {
            kept.fatal = Some(record.clone());
            return false;
        }
        match line {
            Line::Plain(_) if text.trim().is_empty() => {}
            Line::Plain(_) => kept.last = text.to_owned(),
            Line::Record(record) if record.level >= LogLevel::Warn => {
                kept.last.clone_from(&record.message);
            }
            // All was well after whatever came before.
            Line::Record(_) => kept.last.clear(),
        }
        true
    }
}

/// Shows every line of `stream` as `tag`'s until it ends. Bytes that are not UTF-8 are shown as U+FFFD.
///
/// Lines end with `\n`, `\r\n` or, as progress bars end theirs, `\r`; of the latter at most one a second is shown.
pub async fn read_output(
    mut stream: impl AsyncRead + Unpin,
    tag: String,
    log: Log,
    output: Output,
) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 1 << 16];
    let mut redrawn: Option<Instant> = None;
    loop {
        let (ended, count) = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => (true, 0),
            Ok(count) => (false, count),
        };
        let mut found = Vec::new();
        lines.push(&buffer[..count], &mut found);
        if ended {
            lines.finish(&mut found);
        }
        for (bytes, end) in found {
            if end == End::Redraw {
                if redrawn.is_some_and(|at| at.elapsed() < REDRAW_EVERY) || bytes.is_empty() {
                    continue;
                }
                redrawn = Some(Instant::now());
            }
            let text = String::from_utf8_lossy(&bytes);
            let (line, fatal) = Line::parse(&text);
            if output.keep(&text, &line, fatal) {
                log.child(&tag, &line);
            }
        }
        if ended {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Newline,
    /// `\r` alone: the next text is to replace this one.
    Redraw,
}

/// Splits bytes into lines, whatever pieces they arrive in.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
    after_cr: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], found: &mut Vec<(Vec<u8>, End)>) {
        for &byte in bytes {
            if self.after_cr {
                self.after_cr = false;
                let end = if byte == b'\n' {
                    End::Newline
                } else {
                    End::Redraw
                };
                found.push((std::mem::take(&mut self.partial), end));
                if byte == b'\n' {
                    continue;
                }
            }
            match byte {
                b'\n' => found.push((std::mem::take(&mut self.partial), End::Newline)),
                b'\r' => self.after_cr = true,
                byte => {
                    self.partial.push(byte);
                    if self.partial.len() >= MAX_LINE_BYTES {
                        found.push((std::mem::take(&mut self.partial), End::Newline));
                    }
                }
            }
        }
    }

    /// Bytes after the end of the last line.
    fn finish(&mut self, found: &mut Vec<(Vec<u8>, End)>) {
        if !self.partial.is_empty() {
            found.push((std::mem::take(&mut self.partial), End::Newline));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(String, End)> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            lines.push(piece, &mut found);
        }
        lines.finish(&mut found);
        found
            .into_iter()
            .map(|(bytes, end)| (String::from_utf8_lossy(&bytes).into_owned(), end))
            .collect()
    }

    #[test]
    fn lines_are_found_in_whatever_pieces_they_come() {
        use End::{Newline, Redraw};
        let expected = [
            ("a".to_owned(), Newline),
            (String::new(), Newline),
            ("b".to_owned(), Newline),
            ("1%".to_owned(), Redraw),
            ("2%".to_owned(), Newline),
            ("end".to_owned(), Newline),
        ];
        assert_eq!(split(&[b"a\n\nb\r\n1%\r2%\nend"]), expected);
        assert_eq!(
            split(&[b"a", b"\n\n", b"b\r", b"\n1%", b"\r", b"2%\ne", b"nd"]),
            expected
        );
    }

    #[test]
    fn a_very_long_line_is_not_lost() {
        let long = vec![b'x'; MAX_LINE_BYTES * 2 + 3];
        let found = split(&[&long, b"\n"]);
        let total: usize = found.iter().map(|(text, _)| text.len()).sum();
        assert_eq!(total, long.len());
    }

    #[test]
    fn invalid_utf8_survives() {
        assert_eq!(split(&[b"a\xffb\n"])[0].0, "a\u{fffd}b");
    }

    #[test]
    fn the_first_fatal_line_is_held_back() {
        let output = Output::default();
        let text = r#"{"level":"ERROR","fatal":true,"message":"why"}"#;
        let (line, fatal) = Line::parse(text);
        assert!(!output.keep(text, &line, fatal));
        assert!(output.keep(text, &line, fatal));
        assert_eq!(output.take_fatal().unwrap().message, "why");
        assert!(output.take_fatal().is_none());
    }

    #[test]
    fn a_last_line_is_kept_only_when_it_may_tell_something() {
        let output = Output::default();
        for (text, expected) in [
            ("Segmentation fault", "Segmentation fault"),
            ("", "Segmentation fault"),
            (r#"{"level":"INFO","message":"loaded"}"#, ""),
            (r#"{"level":"WARN","message":"careful"}"#, "careful"),
        ] {
            let (line, fatal) = Line::parse(text);
            output.keep(text, &line, fatal);
            assert_eq!(output.last_line(), expected);
        }
    }
}
