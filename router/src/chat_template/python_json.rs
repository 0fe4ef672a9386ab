//! JSON as Python's `json.dumps` writes it, which is what chat templates were written against.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// The keyword arguments of `json.dumps` that chat templates use.
#[derive(Debug, Default)]
pub struct Options {
    /// Write everything outside ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Spaces of one level; `None`: everything on one line.
    pub indent: Option<usize>,
    /// Between items, and between a key and its value; `None`: Python's defaults.
    pub separators: Option<(String, String)>,
    pub sort_keys: bool,
}

/// Writes `value` as `json.dumps(value, **options)` does.
pub fn dumps(value: &Value, options: Options) -> Result<String, serde_json::Error> {
    let sorted = options.sort_keys.then(|| sort_keys(value));
    let (item, key) = options.separators.unwrap_or_else(|| {
        let item = if options.indent.is_some() { "," } else { ", " };
        (item.to_owned(), ": ".to_owned())
    });
    let formatter = PythonFormatter {
        ensure_ascii: options.ensure_ascii,
        indent: options.indent,
        item_separator: item,
        key_separator: key,
        depth: 0,
        has_value: false,
    };
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, formatter);
    sorted
        .as_ref()
        .unwrap_or(value)
        .serialize(&mut serializer)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn sort_keys(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sort_keys).collect(),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(k, v)| (k.clone(), sort_keys(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        other => other.clone(),
    }
}

struct PythonFormatter {
    ensure_ascii: bool,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    depth: usize,
    /// Whether the container that ends now had anything in it: an empty one stays on its line.
    has_value: bool,
}

impl PythonFormatter {
    fn begin<W: ?Sized + io::Write>(&mut self, writer: &mut W, open: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        writer.write_all(open)
    }

    fn separate<W: ?Sized + io::Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn end<W: ?Sized + io::Write>(&mut self, writer: &mut W, close: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.new_line(writer)?;
        }
        self.has_value = true;
        writer.write_all(close)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        for _ in 0..self.depth * indent {
            writer.write_all(b" ")?;
        }
        Ok(())
    }
}

impl Formatter for PythonFormatter {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii || fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for unit in fragment.encode_utf16() {
            match u8::try_from(unit).ok().filter(u8::is_ascii) {
                Some(byte) => writer.write_all(&[byte])?,
                None => write!(writer, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}

/// `repr(value)` of Python: exponents from 1e16 up and below 1e-4, two digits at least.
fn python_float(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn writes_what_python_writes() {
        let value = json!({"b": "é<&'\"\n😀", "a": [1, 2.0, 1e20, 0.00001, true, null, {}, []]});
        assert_eq!(
            dumps(&value, Options::default()).unwrap(),
            r#"{"b": "é<&'\"\n😀", "a": [1, 2.0, 1e+20, 1e-05, true, null, {}, []]}"#
        );
    }

    #[test]
    fn ensure_ascii_writes_surrogate_pairs() {
        let options = Options {
            ensure_ascii: true,
            ..Options::default()
        };
        assert_eq!(
            dumps(&json!("aé😀"), options).unwrap(),
            r#""a\u00e9\ud83d\ude00""#
        );
    }

    #[test]
    fn indents_as_python_does() {
        let options = Options {
            indent: Some(2),
            ..Options::default()
        };
        assert_eq!(
            dumps(&json!({"a": [1, 2], "b": {}, "c": []}), options).unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n  \"c\": []\n}"
        );
    }

    #[test]
    fn sorts_keys_and_takes_separators() {
        let options = Options {
            sort_keys: true,
            separators: Some((",".into(), ":".into())),
            ..Options::default()
        };
        assert_eq!(
            dumps(&json!({"b": {"d": 1, "c": 2}, "a": 0}), options).unwrap(),
            r#"{"a":0,"b":{"c":2,"d":1}}"#
        );
    }
}
