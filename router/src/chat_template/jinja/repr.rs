//! The functions `str(value)` and `repr(value)`.

use super::error::{Error, Result};
use super::meter;
use super::numbers::float_repr;
use super::strings::is_printable;
use super::value::{Dict, Value, View};

/// Text being written, paid for as it grows.
#[derive(Debug, Default)]
pub struct Out {
    text: String,
    /// Maximum number of bytes, for a text with its own limit.
    limit: Option<usize>,
}

impl Out {
    pub fn limit_to(&mut self, bytes: usize) {
        self.limit = Some(bytes);
    }

    pub fn push(&mut self, text: &str) -> Result<()> {
        if self
            .limit
            .is_some_and(|limit| self.text.len() + text.len() > limit)
        {
            return Err(Error::limit(
                "the prompt is longer than a chat template may make it",
            ));
        }
        meter::reserve(text.len())?;
        meter::made(text.len());
        self.text.push_str(text);
        Ok(())
    }

    pub fn take(mut self) -> String {
        meter::dropped(self.text.len());
        std::mem::take(&mut self.text)
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        meter::dropped(self.text.len());
    }
}

/// Writes `str(value)`.
pub fn write_str(value: &Value, out: &mut Out) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) | Value::Markup(text) => out.push(text),
        other => write_repr(other, out),
    }
}

pub fn to_string(value: &Value) -> Result<String> {
    let mut out = Out::default();
    write_str(value, &mut out)?;
    Ok(out.take())
}

pub fn to_repr(value: &Value) -> Result<String> {
    let mut out = Out::default();
    write_repr(value, &mut out)?;
    Ok(out.take())
}

/// Writes `repr(value)`.
pub fn write_repr(value: &Value, out: &mut Out) -> Result<()> {
    meter::spend(1)?;
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(true) => out.push("True"),
        Value::Bool(false) => out.push("False"),
        Value::Int(number) => out.push(&number.to_string()),
        Value::Float(number) => out.push(&float_repr(*number)),
        Value::Str(text) => {
            meter::reserve(text.len())?;
            out.push(&quote(text))
        }
        Value::Markup(text) => {
            out.push("Markup(")?;
            out.push(&quote(text))?;
            out.push(")")
        }
        Value::List(items) => sequence("[", items, "]", out),
        Value::Tuple(items) | Value::Group(items) if items.len() == 1 => {
            sequence("(", items, ",)", out)
        }
        Value::Tuple(items) | Value::Group(items) => sequence("(", items, ")", out),
        Value::Dict(dict) => write_dict(dict, out),
        Value::View(view, dict) => write_view(*view, dict, out),
        Value::Range(range) if range.step == 1 => {
            out.push(&format!("range({}, {})", range.start, range.stop))
        }
        Value::Range(range) => out.push(&format!(
            "range({}, {}, {})",
            range.start, range.stop, range.step
        )),
        Value::Macro(bound) => match &bound.definition.name {
            Some(name) => out.push(&format!("<Macro {}>", quote(name))),
            None => out.push("<Macro anonymous>"),
        },
        // Python prints an address or other internals here.
        other => Err(Error::refused(format!(
            "printing a value of type {}",
            other.type_name()
        ))),
    }
}

fn sequence(open: &str, items: &[Value], close: &str, out: &mut Out) -> Result<()> {
    out.push(open)?;
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(", ")?;
        }
        write_repr(item, out)?;
    }
    out.push(close)
}

fn write_dict(dict: &Dict, out: &mut Out) -> Result<()> {
    out.push("{")?;
    for (at, (key, value)) in dict.entries().iter().enumerate() {
        if at > 0 {
            out.push(", ")?;
        }
        write_repr(key, out)?;
        out.push(": ")?;
        write_repr(value, out)?;
    }
    out.push("}")
}

fn write_view(view: View, dict: &Dict, out: &mut Out) -> Result<()> {
    out.push(match view {
        View::Keys => "dict_keys([",
        View::Values => "dict_values([",
        View::Items => "dict_items([",
    })?;
    for (at, (key, value)) in dict.entries().iter().enumerate() {
        if at > 0 {
            out.push(", ")?;
        }
        match view {
            View::Keys => write_repr(key, out)?,
            View::Values => write_repr(value, out)?,
            View::Items => {
                out.push("(")?;
                write_repr(key, out)?;
                out.push(", ")?;
                write_repr(value, out)?;
                out.push(")")?;
            }
        }
    }
    out.push("])")
}

/// Writes `repr` of a string: in single quotes, unless it contains single quotes and no double ones.
pub fn quote(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut result = String::with_capacity(text.len() + 2);
    result.push(quote);
    for c in text.chars() {
        match c {
            '\\' => result.push_str("\\\\"),
            '\n' => result.push_str("\\n"),
            '\r' => result.push_str("\\r"),
            '\t' => result.push_str("\\t"),
            c if c == quote => result.extend(['\\', c]),
            c if is_printable(c) => result.push(c),
            c => result.push_str(&escape(c)),
        }
    }
    result.push(quote);
    result
}

/// Converts a text that `repr` wrote to `ascii(value)`.
pub fn ascii(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            result.push(c);
        } else {
            result.push_str(&escape(c));
        }
    }
    result
}

fn escape(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}
