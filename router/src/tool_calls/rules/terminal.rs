//! Terminals: texts that regular expressions describe.

use super::{ANY, LiteralPart, Writer, quoted};
use crate::tool_calls::schema::escaped;

/// A regular expression between slashes, which Lark and JSON Schema write alike. Digits and words are those of ASCII, as
/// in JSON Schema.
pub fn regex(pattern: &str) -> String {
    match pattern {
        "" => "\"\"".to_owned(),
        pattern => format!("/{}/", llguidance::regex_to_lark(pattern, "dw")),
    }
}

/// Expression of texts that all the patterns match as a whole; any text if there are none.
pub fn all_of(patterns: &[String]) -> String {
    match patterns {
        [] => regex("(?s:.*)"),
        patterns => {
            let patterns: Vec<String> = patterns.iter().map(|pattern| regex(pattern)).collect();
            format!("({})", patterns.join(" & "))
        }
    }
}

/// Terminal expression of texts that contain none of the markers, with any white space between a marker's words.
pub fn without(markers: &[String]) -> String {
    let words = |marker: &String| {
        let words: Vec<String> = marker.split_whitespace().map(escaped).collect();
        words.join(r"\s*")
    };
    let markers: Vec<String> = markers.iter().map(words).collect();
    format!(
        "~{}",
        regex(&format!("(?s:.*)({})(?s:.*)", markers.join("|")))
    )
}

impl Writer<'_> {
    /// Expression of any text that ends with the literal `end`, at its first occurrence.
    pub fn text_until(&mut self, end: &str) -> String {
        match self.literal_parts(end).as_slice() {
            [] => ANY.into(),
            [LiteralPart::Text(text)] => {
                let text = quoted(text);
                self.new_rule_with("text", "[lazy]", &format!("{ANY} {text}"))
            }
            [LiteralPart::Token(token), ..] => {
                // No other token has its text.
                let rest = self.literal(end);
                let rest = rest.strip_prefix(token.as_str()).unwrap_or_default();
                format!("{ANY} {token}{rest}")
            }
            _ => self.value_until(&regex("(?s:.*)"), end),
        }
    }

    /// Expression of a value, which the terminal expression `value` describes, and the literal `end`. The value must
    /// exclude the literal, or its first special token must.
    pub fn value_until(&mut self, value: &str, end: &str) -> String {
        let mut parts = self.literal_parts(end).into_iter().peekable();
        let first = match parts.peek() {
            Some(LiteralPart::Text(text)) => {
                let text = quoted(text);
                parts.next();
                text
            }
            _ => String::new(),
        };
        let terminal = self.new_rule("TEXT", &format!("({value}) {first}"));
        let rest = parts.map(|part| match part {
            LiteralPart::Text(text) => quoted(&text),
            LiteralPart::Token(token) => token,
        });
        let all: Vec<String> = std::iter::once(terminal).chain(rest).collect();
        all.join(" ")
    }

    fn new_rule_with(&mut self, prefix: &str, attributes: &str, expression: &str) -> String {
        let name = self.new_name(prefix);
        self.rule(&format!("{name}{attributes}"), expression);
        name
    }
}
