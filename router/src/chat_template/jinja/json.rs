//! The function `json.dumps`.

use super::compare::sort_by_keys;
use super::error::{Error, Result};
use super::meter;
use super::numbers::float_repr;
use super::repr::Out;
use super::value::{Dict, Value};

/// The keyword arguments of `json.dumps` that `tojson` takes.
#[derive(Debug)]
pub struct Options {
    /// Write everything outside ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Indentation of one level; `None`: everything on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

/// Evaluates `json.dumps(value, **options)`.
pub fn dumps(value: &Value, options: &Options) -> Result<String> {
    let mut writer = Writer {
        out: Out::default(),
        options,
        depth: 0,
    };
    writer.value(value)?;
    Ok(writer.out.take())
}

struct Writer<'a> {
    out: Out,
    options: &'a Options,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<()> {
        meter::spend(1)?;
        match value {
            Value::None => self.out.push("null"),
            Value::Bool(true) => self.out.push("true"),
            Value::Bool(false) => self.out.push("false"),
            Value::Int(number) => self.out.push(&number.to_string()),
            Value::Float(number) => self.out.push(&json_float(*number)),
            Value::Str(text) | Value::Markup(text) => self.string(text),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                if items.is_empty() {
                    return self.out.push("[]");
                }
                self.out.push("[")?;
                self.depth += 1;
                for (at, item) in items.iter().enumerate() {
                    self.separate(at)?;
                    self.value(item)?;
                }
                self.end("]")
            }
            Value::Dict(dict) => self.dict(dict),
            other => Err(Error::runtime(format!(
                "Object of type {} is not JSON serializable",
                other.type_name()
            ))),
        }
    }

    fn dict(&mut self, dict: &Dict) -> Result<()> {
        if dict.entries().is_empty() {
            return self.out.push("{}");
        }
        let mut entries: Vec<(Value, Value)> = dict.entries().to_vec();
        if self.options.sort_keys {
            let keyed = entries
                .into_iter()
                .map(|(key, value)| Ok((key.clone(), Value::tuple(vec![key, value])?)))
                .collect::<Result<_>>()?;
            entries = sort_by_keys(keyed, false)?
                .iter()
                .filter_map(|pair| match pair.as_items().map(|items| &***items) {
                    Some([key, value]) => Some((key.clone(), value.clone())),
                    _ => None,
                })
                .collect();
        }
        self.out.push("{")?;
        self.depth += 1;
        for (at, (key, value)) in entries.iter().enumerate() {
            self.separate(at)?;
            match key {
                Value::Str(text) | Value::Markup(text) => self.string(text)?,
                Value::Bool(true) => self.string("true")?,
                Value::Bool(false) => self.string("false")?,
                Value::None => self.string("null")?,
                Value::Int(number) => self.string(&number.to_string())?,
                Value::Float(number) => self.string(&json_float(*number))?,
                other => {
                    return Err(Error::runtime(format!(
                        "keys must be str, int, float, bool or None, not {}",
                        other.type_name()
                    )));
                }
            }
            self.out.push(&self.options.key_separator)?;
            self.value(value)?;
        }
        self.end("}")
    }

    fn separate(&mut self, at: usize) -> Result<()> {
        if at > 0 {
            self.out.push(&self.options.item_separator)?;
        }
        self.new_line()
    }

    fn new_line(&mut self) -> Result<()> {
        if let Some(indent) = &self.options.indent {
            meter::reserve_many(self.depth, indent.len())?;
            self.out.push("\n")?;
            self.out.push(&indent.repeat(self.depth))?;
        }
        Ok(())
    }

    fn end(&mut self, close: &str) -> Result<()> {
        self.depth -= 1;
        self.new_line()?;
        self.out.push(close)
    }

    fn string(&mut self, text: &str) -> Result<()> {
        meter::reserve(text.len())?;
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for c in text.chars() {
            match c {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\x08' => quoted.push_str("\\b"),
                '\x0c' => quoted.push_str("\\f"),
                c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
                c if self.options.ensure_ascii && c > '~' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        quoted.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        self.out.push(&quoted)
    }
}

fn json_float(number: f64) -> String {
    if number.is_nan() {
        "NaN".into()
    } else if number.is_infinite() {
        if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into()
    } else {
        float_repr(number)
    }
}
