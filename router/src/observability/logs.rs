//! Logs: one JSON object per line on stderr, which the launcher reads, orders and shows.

use std::fmt;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::time::{SystemTime, UNIX_EPOCH};

use gridwork_settings::{LogLevel, utc};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::observability::request_log;
use crate::observability::telemetry::{FLUSH_TIMEOUT_EVENT, Telemetry};

/// Crates whose lines say little about Gridwork. Only their warnings are shown.
const NOISY: [&str; 7] = [
    "h2",
    "hyper",
    "hyper_util",
    "tower",
    "tonic",
    "opentelemetry_sdk",
    "opentelemetry_otlp",
];

/// Returns the filter of events for `level`.
pub fn filter(level: LogLevel) -> EnvFilter {
    let noisy_level = if level == LogLevel::Error {
        "error"
    } else {
        "warn"
    };
    let noisy = NOISY.map(|name| format!("{name}={noisy_level}")).join(",");
    EnvFilter::new(format!("{},{noisy}", level.name()))
}

/// Sends the log of this process to stderr, and its spans to `telemetry`. Must be called once.
pub fn install(level: LogLevel, telemetry: Option<&Telemetry>) {
    // Log lines do not use spans, so that spans cost nothing unless they are traced.
    let filter = filter(level).and(filter_fn(|metadata| {
        metadata.is_event() && metadata.name() != FLUSH_TIMEOUT_EVENT
    }));
    let lines = tracing_subscriber::fmt::layer()
        .event_format(JsonLines)
        .with_writer(std::io::stderr);
    let traces = telemetry.map(Telemetry::layer);
    tracing_subscriber::registry()
        .with(traces)
        .with(lines.with_filter(filter))
        .init();
}

/// Writes an event as `{"timestamp", "level", "target", "message", "fields"}`. Events of a request's task have its ids among
/// the fields.
///
/// Fields of the surrounding spans are left out: they are in the trace.
pub struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some((request_id, trace_id)) = request_log::current_ids() {
            let others = &mut fields.others;
            others
                .entry("request_id")
                .or_insert_with(|| json!(*request_id));
            if let Some(trace_id) = trace_id {
                others.entry("trace_id").or_insert(Value::String(trace_id));
            }
        }
        let metadata = event.metadata();
        let line = line(
            SystemTime::now(),
            metadata.level().as_str(),
            metadata.target(),
            &fields.message,
            fields.others,
            false,
        );
        writeln!(writer, "{}", visible(&line.to_string()))
    }
}

/// Fields of an event, with the message apart.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities, so they are written as text.
        self.insert(
            field,
            if value.is_finite() {
                json!(value)
            } else {
                json!(value.to_string())
            },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, json!(format!("{value:?}")));
    }
}

/// Logs why this process ends with an error, whatever the log level. The caller then exits with code 1.
///
/// `message` tells the user what to do about it.
pub fn fatal(message: &str) {
    let line = line(
        SystemTime::now(),
        "ERROR",
        "gridwork_router",
        message,
        Map::new(),
        true,
    );
    write_line(&line);
}

/// Logs panics of tasks and threads as error lines, since their usual text is not one.
///
/// Writes without the subscriber, which may itself have panicked.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| write_line(&panic_line(panic))));
}

fn panic_line(panic: &PanicHookInfo<'_>) -> Value {
    let text = panic.payload_as_str().unwrap_or("of an unknown kind");
    let mut fields = Map::new();
    if let Some(location) = panic.location() {
        fields.insert("location".to_owned(), json!(location.to_string()));
    }
    if let Some(name) = std::thread::current().name() {
        fields.insert("thread".to_owned(), json!(name));
    }
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        fields.insert("backtrace".to_owned(), json!(backtrace.to_string()));
    }
    let message = format!("a task panicked; this is a bug in Gridwork: {text}");
    line(
        SystemTime::now(),
        "ERROR",
        "gridwork_router",
        &message,
        fields,
        false,
    )
}

/// Ignores a closed stderr, which must not end the router.
fn write_line(line: &Value) {
    let _ = std::io::stderr()
        .lock()
        .write_all(format!("{}\n", visible(&line.to_string())).as_bytes());
}

/// Escapes terminal control characters that JSON writes unescaped: DEL, C1, line
/// separators, marks of writing direction. File names, templates and tokens are untrusted.
fn visible(json: &str) -> std::borrow::Cow<'_, str> {
    let is_obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !json.contains(is_obeyed) {
        return json.into();
    }
    let escape = |c: char| match is_obeyed(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    };
    json.chars().map(escape).collect::<String>().into()
}

fn line(
    at: SystemTime,
    level: &str,
    target: &str,
    message: &str,
    fields: Map<String, Value>,
    is_fatal: bool,
) -> Value {
    let mut line = json!({
        "timestamp": rfc3339(at),
        "level": level,
        "target": target,
        "message": message,
    });
    if !fields.is_empty() {
        line["fields"] = Value::Object(fields);
    }
    if is_fatal {
        line["fatal"] = Value::Bool(true);
    }
    line
}

/// Formats UTC to the microsecond, for example `2026-02-28T23:59:59.000001Z`.
fn rfc3339(at: SystemTime) -> String {
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = utc::to_seconds(since_epoch.as_secs());
    format!("{seconds}.{:06}Z", since_epoch.subsec_micros())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("the text").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Lines that `events` logs on this thread.
    pub(crate) fn logged(level: LogLevel, events: impl FnOnce()) -> Vec<Value> {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(filter(level))
            .with(layer);
        tracing::subscriber::with_default(subscriber, events);
        let text = String::from_utf8(written.0.lock().expect("the text").clone()).expect("UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    }

    #[test]
    fn an_event_is_one_json_object_on_one_line() {
        let lines = logged(LogLevel::Info, || {
            tracing::warn!(target: "t", count = 3, ratio = 0.5, ok = true, text = "a\nb", "said \"so\"\nand so");
        });
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["target"], "t");
        assert_eq!(line["message"], "said \"so\"\nand so");
        assert_eq!(
            line["fields"],
            json!({"count": 3, "ratio": 0.5, "ok": true, "text": "a\nb"})
        );
        assert!(line.get("fatal").is_none());
    }

    #[test]
    fn noise_is_left_out() {
        let lines = logged(LogLevel::Debug, || {
            tracing::debug!(target: "hyper::proto", "noise");
            tracing::debug!(target: "gridwork_router", "shown");
            tracing::trace!(target: "gridwork_router", "too fine");
            tracing::warn!(target: "h2::codec", "shown too");
        });
        let messages: Vec<_> = lines.iter().map(|line| line["message"].clone()).collect();
        assert_eq!(messages, ["shown", "shown too"]);
    }

    #[test]
    fn a_fatal_line_says_so() {
        let line = line(
            UNIX_EPOCH,
            "ERROR",
            "gridwork_router",
            "port 80 is in use",
            Map::new(),
            true,
        );
        assert_eq!(
            line.to_string(),
            r#"{"timestamp":"1970-01-01T00:00:00.000000Z","level":"ERROR","target":"gridwork_router","message":"port 80 is in use","fatal":true}"#
        );
    }

    #[test]
    fn times_are_in_rfc_3339() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(second)), text);
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_written() {
        let nasty = "\x1b[2J\u{9b}\u{7f}\u{202e}\u{2028}";
        let at = SystemTime::UNIX_EPOCH;
        let line = line(at, "INFO", "t", nasty, Map::new(), false).to_string();
        let written = visible(&line);
        assert!(
            written.chars().all(|c| (' '..='~').contains(&c)),
            "{written}"
        );
        let read: Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(read["message"], nasty);
    }
}
