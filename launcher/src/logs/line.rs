//! Lines of a child. A log record is parsed; all lines are shown in the same form.

use gridwork_settings::LogLevel;
use serde_json::{Value, json};

use super::escape::{visible, visible_json};
use super::{Fields, Format, time};

/// A log line in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Time, as RFC 3339.
    pub timestamp: String,
    pub level: LogLevel,
    /// Module that logged it; may be empty.
    pub target: String,
    pub message: String,
    pub fields: Fields,
}

/// A parsed line of output.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Record(Record),
    /// Text that is not a JSON log line: prints of custom code, warnings of libraries, panics.
    Plain(String),
}

impl Line {
    /// Parses a line; the flag tells whether its process ends because of it.
    pub fn parse(text: &str) -> (Self, bool) {
        match parse_record(text) {
            Some((record, fatal)) => (Self::Record(record), fatal),
            None => (Self::Plain(text.to_owned()), false),
        }
    }
}

/// Parses a JSON object with `level` and `message`; unknown members become fields.
fn parse_record(text: &str) -> Option<(Record, bool)> {
    if !text.starts_with('{') {
        return None;
    }
    let Value::Object(mut object) = serde_json::from_str(text).ok()? else {
        return None;
    };
    let level = LogLevel::from_name(object.get("level")?.as_str()?)?;
    let Value::String(message) = object.get("message")?.clone() else {
        return None;
    };
    let mut take = |name: &str| match object.get(name) {
        Some(Value::String(_)) => match object.shift_remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    };
    let timestamp = take("timestamp").map_or_else(time::now, time::tidy);
    let target = take("target").unwrap_or_default();
    let fatal = object.shift_remove("fatal") == Some(Value::Bool(true));
    object.shift_remove("level");
    object.shift_remove("message");
    let mut fields = match object.shift_remove("fields") {
        Some(Value::Object(fields)) => fields,
        Some(other) => Fields::from_iter([("fields".to_owned(), other)]),
        None => Fields::new(),
    };
    fields.extend(object);
    let record = Record {
        timestamp,
        level,
        target,
        message,
        fields,
    };
    Some((record, fatal))
}

impl Record {
    /// Returns the record as it is written, with its newline.
    pub fn render(&self, tag: &str, format: Format) -> String {
        if format.json {
            return self.render_json(tag);
        }
        let paint = Paint(format.colour);
        let (name, colour) = level_style(self.level);
        let mut text = format!(
            "{} {} {}",
            paint.with("2", &visible(&self.timestamp, false)),
            paint.with(colour, name),
            paint.with("1", tag)
        );
        if !self.target.is_empty() {
            text.push(' ');
            text.push_str(&paint.with("2", &visible(&self.target, false)));
        }
        text.push_str(": ");
        // Fields stand behind the first line, where they are found together with it.
        let message = visible(self.message.trim_end(), true);
        let (first, rest) = match message.split_once('\n') {
            Some((first, rest)) => (first, Some(rest)),
            None => (&*message, None),
        };
        text.push_str(first);
        for (key, value) in &self.fields {
            let value = match value {
                Value::String(text) if is_plain_word(text) => text.clone(),
                other => other.to_string(),
            };
            text.push(' ');
            text.push_str(&paint.with("2", &visible(&format!("{key}="), false)));
            text.push_str(&visible(&value, false));
        }
        // A traceback stays readable and cannot be taken for lines of their own.
        if let Some(rest) = rest {
            text.push_str(&format!("\n{rest}").replace('\n', "\n    "));
        }
        text.push('\n');
        text
    }

    fn render_json(&self, tag: &str) -> String {
        let level = level_style(self.level).0.trim();
        let mut object = json!({"timestamp": self.timestamp, "level": level, "tag": tag});
        if !self.target.is_empty() {
            object["target"] = json!(self.target);
        }
        object["message"] = json!(self.message);
        if !self.fields.is_empty() {
            object["fields"] = Value::Object(self.fields.clone());
        }
        format!("{}\n", visible_json(&object.to_string()))
    }
}

/// Returns plain text as it is written, with its newline.
pub fn render_plain(tag: &str, text: &str, format: Format) -> String {
    if format.json {
        let record = Record {
            timestamp: time::now(),
            level: LogLevel::Info,
            target: "output".to_owned(),
            message: text.to_owned(),
            fields: Fields::new(),
        };
        return record.render_json(tag);
    }
    format!(
        "{} {}\n",
        Paint(format.colour).with("1", &format!("{tag} |")),
        visible(text, false)
    )
}

fn is_plain_word(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"' || c == '=')
}

/// Returns the name, padded to one width, and the ANSI colour.
fn level_style(level: LogLevel) -> (&'static str, &'static str) {
    match level {
        LogLevel::Trace => ("TRACE", "35"),
        LogLevel::Debug => ("DEBUG", "34"),
        LogLevel::Info => (" INFO", "32"),
        LogLevel::Warn => (" WARN", "33"),
        LogLevel::Error => ("ERROR", "31"),
    }
}

struct Paint(bool);

impl Paint {
    /// Returns `text` in an ANSI style when colour is on.
    fn with(&self, style: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRETTY: Format = Format {
        json: false,
        colour: false,
    };
    const JSON: Format = Format {
        json: true,
        colour: false,
    };

    fn show(text: &str, format: Format) -> String {
        match Line::parse(text).0 {
            Line::Record(record) => record.render("shard-0", format),
            Line::Plain(text) => render_plain("shard-0", &text, format),
        }
    }

    #[test]
    fn a_record_is_shown_with_tag_target_and_fields() {
        let text = r#"{"timestamp":"T","level":"info","target":"a.b","message":"hi","fields":{"n":1,"s":"x y"},"z":true}"#;
        assert_eq!(
            show(text, PRETTY),
            "T  INFO shard-0 a.b: hi n=1 s=\"x y\" z=true\n"
        );
        let json: Value = serde_json::from_str(&show(text, JSON)).unwrap();
        assert_eq!(
            json,
            json!({"timestamp":"T","level":"INFO","tag":"shard-0","target":"a.b","message":"hi",
                   "fields":{"n":1,"s":"x y","z":true}})
        );
    }

    #[test]
    fn anything_else_is_shown_as_it_is() {
        for text in [
            "hello",
            "",
            "{not json}",
            "{\"a\":1}",
            "[1]",
            r#"{"level":"LOUD","message":"x"}"#,
            r#"{"level":"INFO","message":7}"#,
        ] {
            assert_eq!(show(text, PRETTY), format!("shard-0 | {text}\n"));
            let json: Value = serde_json::from_str(&show(text, JSON)).unwrap();
            assert_eq!(json["message"], text);
            assert_eq!(json["tag"], "shard-0");
        }
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_shown() {
        let record = r#"{"timestamp":"\u001b[1A","level":"info","target":"\u0007","message":"a\u001b[2J\r","f\u009b":"\u202e"}"#;
        for (text, format) in [
            (record, PRETTY),
            (record, JSON),
            ("\x1b]0;owned\x07 \u{9b}", PRETTY),
            ("\x1b]0;owned\x07 \u{9b}", JSON),
        ] {
            let shown = show(text, format);
            let line = shown.strip_suffix('\n').unwrap();
            let obeyed = |c: char| c.is_control() || c == '\u{202e}';
            assert!(!line.contains(obeyed), "{line:?}");
        }
    }

    #[test]
    fn a_fatal_line_is_recognised() {
        let (line, fatal) = Line::parse(r#"{"level":"ERROR","fatal":true,"message":"no memory"}"#);
        assert!(fatal);
        let Line::Record(record) = line else {
            panic!("not a record");
        };
        assert_eq!(record.message, "no memory");
        assert!(record.fields.is_empty());
        assert!(!Line::parse(r#"{"level":"ERROR","message":"x"}"#).1);
    }

    #[test]
    fn a_message_of_several_lines_is_indented() {
        let text = r#"{"timestamp":"T","level":"ERROR","message":"a\nb\n"}"#;
        assert_eq!(show(text, PRETTY), "T ERROR shard-0: a\n    b\n");
        let text =
            r#"{"timestamp":"T","level":"ERROR","message":"a\nb\nc","fields":{"request_id":"r"}}"#;
        let expected = "T ERROR shard-0: a request_id=r\n    b\n    c\n";
        assert_eq!(show(text, PRETTY), expected);
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        let record = match Line::parse(r#"{"level":"WARN","message":"m"}"#).0 {
            Line::Record(record) => record,
            Line::Plain(_) => panic!("not a record"),
        };
        let colour = Format {
            json: false,
            colour: true,
        };
        assert!(record.render("router", colour).contains("\x1b[33m"));
        assert!(!record.render("router", PRETTY).contains('\x1b'));
    }
}
