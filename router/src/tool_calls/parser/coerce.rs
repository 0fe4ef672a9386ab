//! Values that a model writes as plain text, in the type that the tool's schema declares. Follows
//! `ResponseParser._coerce` of Transformers, and beyond it references, unions in unions and listed values.

use serde_json::Value;

use super::json::escaped;
use super::literal::Literal;
use crate::tool_calls::plan::Tool;
use crate::tool_calls::schema::{Kind, Variant, likely_variants};

/// Facts that a property's schema tells about its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Kinds of values, in order. Empty: a string.
    kinds: Vec<Kind>,
    /// Strings that the schema lists.
    texts: Vec<String>,
}

impl Tool {
    /// Facts that the tool's schema tells about the value of `key`.
    pub fn expected(&self, key: &str) -> Expected {
        let properties = self.parameters.get("properties");
        let schema = properties.and_then(|properties| properties.get(key));
        schema.map_or_else(Expected::default, |schema| {
            Expected::new(&self.parameters, schema)
        })
    }
}

impl Expected {
    /// `root`: the schema that references in `schema` are resolved in. Nothing is expected of a schema that is not
    /// understood.
    fn new(root: &Value, schema: &Value) -> Self {
        let mut expected = Self::default();
        for variant in likely_variants(root, schema) {
            match variant {
                Variant::Any => expected.add(Kind::String),
                Variant::Of(kind, _) => expected.add(kind),
                Variant::Choices(choices) => {
                    for choice in choices {
                        expected.add(Kind::of(&choice));
                        if let Value::String(text) = choice {
                            expected.texts.push(text);
                        }
                    }
                }
            }
        }
        expected
    }

    fn add(&mut self, kind: Kind) {
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
    }

    /// True if the value is a string, whatever it says.
    pub fn is_text(&self) -> bool {
        self.kinds.iter().all(|kind| *kind == Kind::String)
    }

    /// JSON of `raw` in the first of the kinds that it fits; a string if it fits none.
    pub fn coerce(&self, raw: &str) -> String {
        let is_listed = self.texts.iter().any(|text| text == raw);
        let fitting = self.kinds.iter().find_map(|kind| fit(raw, *kind));
        let fitting = fitting.filter(|_| !is_listed);
        fitting.unwrap_or_else(|| format!("\"{}\"", escaped(raw)))
    }
}

fn fit(raw: &str, kind: Kind) -> Option<String> {
    let trimmed = raw.trim();
    match kind {
        Kind::Integer => integer(trimmed).or_else(|| {
            let number = float(trimmed)?;
            (number.fract() == 0.0).then(|| format!("{number:.0}"))
        }),
        Kind::Number => {
            let number = float(trimmed)?;
            if number.fract() == 0.0 && !raw.contains('.') {
                return integer(trimmed).or_else(|| Some(format!("{number:.0}")));
            }
            serde_json::Number::from_f64(number).map(|number| number.to_string())
        }
        Kind::Boolean => match trimmed.to_lowercase().as_str() {
            "true" | "1" => Some("true".into()),
            "false" | "0" => Some("false".into()),
            _ => None,
        },
        Kind::Null => matches!(trimmed, "null" | "None").then(|| "null".into()),
        Kind::Object => structure(trimmed, '{'),
        Kind::Array => structure(trimmed, '['),
        Kind::String => None,
    }
}

/// JSON of an object or an array, which a model may write as Python does too.
fn structure(text: &str, open: char) -> Option<String> {
    if !text.starts_with(open) {
        return None;
    }
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        return Some(text.to_owned());
    }
    let mut json = String::new();
    let (read, _) = Literal::structure().advance(text, true, &mut json);
    let is_whole =
        read == text.len() && serde_json::from_str::<serde::de::IgnoredAny>(&json).is_ok();
    is_whole.then_some(json)
}

/// A whole number as Python's `int` reads it, without leading zeros.
fn integer(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some(match digits {
        "" => "0".into(),
        digits => format!("{sign}{digits}"),
    })
}

/// A finite number as Python's `float` reads it.
fn float(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    number.is_finite().then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_get_the_declared_type() {
        let definitions = json!({"$defs": {
            "count": {"type": "integer"}, "place": {"type": "object", "properties": {}},
            "color": {"enum": ["red", "none", "7"]},
        }});
        for (schema, raw, expected) in [
            (json!({"type": "integer"}), " 7 ", "7"),
            (json!({"type": "integer"}), "3.0", "3"),
            (json!({"type": "integer"}), "3.5", "\"3.5\""),
            (
                json!({"type": "integer"}),
                "12345678901234567890123",
                "12345678901234567890123",
            ),
            (json!({"type": "number"}), "2", "2"),
            (json!({"type": "number"}), "2.50", "2.5"),
            (json!({"type": "number"}), "nan", "\"nan\""),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "boolean"}), "yes", "\"yes\""),
            (json!({"type": ["string", "null"]}), "None", "null"),
            (
                json!({"type": ["string", "null"]}),
                "weather",
                "\"weather\"",
            ),
            (json!({"type": "string"}), "12", "\"12\""),
            (json!({}), "12", "\"12\""),
            (json!({"type": "object"}), "{\"a\": [1]}", "{\"a\": [1]}"),
            (
                json!({"type": "object"}),
                "{'a': [True, None, 'it\\'s']}",
                "{\"a\": [true, null, \"it's\"]}",
            ),
            (json!({"type": "array"}), "['a', 'b'", "\"['a', 'b'\""),
            (
                json!({"type": "array"}),
                "{\"a\": [1]}",
                "\"{\\\"a\\\": [1]}\"",
            ),
            (
                json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
                "null",
                "null",
            ),
            (json!({"type": "integer", "nullable": true}), "None", "null"),
            (json!({"$ref": "#/$defs/count"}), "7", "7"),
            (json!({"allOf": [{"$ref": "#/$defs/place"}]}), "{}", "{}"),
            (
                json!({"anyOf": [{"$ref": "#/$defs/color"}, {"type": "integer"}, {"type": "null"}]}),
                "7",
                "\"7\"",
            ),
            (json!({"enum": [1, 2]}), "2", "2"),
            (json!({"enum": ["None", null]}), "None", "\"None\""),
            (json!({"not": {}}), "2", "\"2\""),
        ] {
            let expected_of = Expected::new(&definitions, &schema);
            assert_eq!(expected_of.coerce(raw), expected, "{schema} {raw}");
        }
    }
}
