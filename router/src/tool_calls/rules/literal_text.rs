//! Strings and constants in arguments that are neither JSON nor tagged.

use serde_json::{Map, Value};

use super::literal::{Place, Strings, Style, escaped_json};
use super::terminal::{all_of, regex, without};
use super::{Writer, json_text, quoted};
use crate::tool_calls::schema::{Unclear, text_rules};

impl Writer<'_> {
    /// Expression of a string that follows the constraints of `schema`.
    pub(super) fn string(
        &mut self,
        style: &Style<'_>,
        place: Place<'_>,
        schema: &Map<String, Value>,
    ) -> Result<String, Unclear> {
        let mut typed = schema.clone();
        typed.insert("type".into(), "string".into());
        if let Strings::Json = style.strings {
            return Ok(self.part(place, &typed));
        }
        let patterns = text_rules(schema)?;
        // A text that constraints hold for is written without escapes.
        let plain = |chars: &str| {
            let mut patterns = patterns.clone();
            patterns.push(format!("[{chars}]*"));
            all_of(&patterns)
        };
        Ok(match style.strings {
            Strings::Json => String::new(),
            Strings::Marked(quote) => {
                let text = format!("{} & {}", all_of(&patterns), without(&[quote.to_owned()]));
                let open = self.literal(quote);
                format!("{open} {}", self.value_until(&text, quote))
            }
            Strings::Python => {
                let text = match patterns.is_empty() {
                    true => regex(PYTHON_TEXT),
                    false => plain(r"^'\\\x00-\x1f"),
                };
                let quote = quoted("'");
                let single = format!("{quote} {}", self.value_until(&text, "'"));
                format!("({single} | {})", self.part(place, &typed))
            }
            Strings::Escaped => {
                let text = match patterns.is_empty() {
                    true => regex(ESCAPED_TEXT),
                    false => plain(r#"^"\\\x00-\x1f"#),
                };
                let quote = r#"\""#;
                format!("{} {}", quoted(quote), self.value_until(&text, quote))
            }
        })
    }

    /// Expression of one value.
    pub(super) fn constant(&self, style: &Style<'_>, value: &Value) -> String {
        let word = |index: usize| quoted(style.words.get(index).copied().unwrap_or_default());
        match value {
            Value::Null => word(2),
            Value::Bool(true) => word(0),
            Value::Bool(false) => word(1),
            Value::Number(number) => quoted(&number.to_string()),
            Value::String(text) => match style.strings {
                Strings::Json => quoted(&json_text(text)),
                Strings::Python => {
                    let plain = text.replace('\\', "\\\\").replace('\'', "\\'");
                    let single = quoted(&format!("'{}'", plain.replace('\n', "\\n")));
                    format!("({single} | {})", quoted(&json_text(text)))
                }
                Strings::Marked(quote) => {
                    let quote = self.literal(quote);
                    format!("{quote} {} {quote}", quoted(text))
                }
                Strings::Escaped => quoted(&escaped_json(&json_text(text))),
            },
            Value::Array(items) => {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| self.constant(style, item))
                    .collect();
                format!("\"[\" {} \"]\"", items.join(&format!(" {} ", style.comma)))
            }
            Value::Object(members) => {
                let members = members.iter().map(|(key, value)| {
                    let key = match style.strings {
                        Strings::Marked(_) => quoted(key),
                        _ => self.constant(style, &Value::from(key.as_str())),
                    };
                    format!("{key} {} {}", style.colon, self.constant(style, value))
                });
                let members: Vec<String> = members.collect();
                format!(
                    "\"{{\" {} \"}}\"",
                    members.join(&format!(" {} ", style.comma))
                )
            }
        }
    }
}

/// The text of a string between single quotes in Python.
const PYTHON_TEXT: &str = r#"([^'\\\x00-\x1f]|\\(['"\\nrtbf]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}))*"#;
/// The text of a JSON string inside another one: its escapes are written with two backslashes.
const ESCAPED_TEXT: &str = r#"([^"\\\x00-\x1f]|\\\\(\\\\|\\"|[bfnrt/]|u[0-9a-fA-F]{4}))*"#;
