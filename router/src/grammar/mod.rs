//! Grammars that an answer must follow: their spellings in the APIs, and their compilation when a request is admitted.
//!
//! Router and shard compile the same serialised grammar with the same library, the router to refuse what cannot be
//! enforced, the shard to compute the tokens that may come next.

pub mod compile;
pub mod spelling;
pub mod texts;

mod check;
mod closed;
#[cfg(test)]
mod fuzz_tests;
mod gbnf;
mod gbnf_parser;
mod json_schema;
mod patterns;
mod place;
mod structural_tag;
mod tightened;
mod work_clock;

use std::borrow::Cow;
use std::sync::Arc;

use gridwork_engine::TokenTable;
use serde_json::{Value, json};

use crate::error::ApiError;

/// A grammar for the text of an answer. It consists of parts that may refer to each other; the text follows the first.
///
/// Rules are written in llguidance's variant of Lark. `@name` refers to another part, `<[7]>` is the token with that
/// id, and `<|name|>` the special token of that name.
#[derive(Debug, Clone, PartialEq)]
pub struct Grammar {
    parts: Vec<Part>,
}

/// Rules under a name, and the field of the request that they were made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub name: Cow<'static, str>,
    /// Path in the request, which errors name.
    pub field: Cow<'static, str>,
    pub rules: Rules,
}

/// Rules of a part.
#[derive(Debug, Clone, PartialEq)]
pub enum Rules {
    /// A JSON document that a schema accepts.
    JsonSchema(Value),
    /// The rule `start` of a Lark grammar.
    Lark(String),
    /// The rule `start` of a Lark grammar in which [`placeholder`]s stand for texts that may contain special tokens.
    Template(String, Vec<String>),
}

impl Grammar {
    /// A text that follows the rule `start` of a Lark grammar. Errors name `field`.
    pub fn from_lark(field: impl Into<Cow<'static, str>>, text: String) -> Self {
        Self::single(field, Rules::Lark(text))
    }

    /// A JSON document that `schema` accepts. Errors name `field`.
    pub fn from_json_schema(field: impl Into<Cow<'static, str>>, schema: Value) -> Self {
        Self::single(field, Rules::JsonSchema(schema))
    }

    /// A text that a regular expression matches as a whole, in the syntax of Rust's `regex`. Errors name `field`.
    pub fn from_regex(field: impl Into<Cow<'static, str>>, pattern: &str) -> Self {
        Self::from_lark(field, format!("start: {}\n", regex_literal(pattern)))
    }

    /// Adds parts, to which the rules may refer by `@name`.
    pub fn with(mut self, parts: impl IntoIterator<Item = Part>) -> Self {
        self.parts.extend(parts);
        self
    }

    /// Changes the schemas of all parts.
    pub fn map_schemas(mut self, change: impl Fn(Value) -> Value) -> Self {
        for part in &mut self.parts {
            if let Rules::JsonSchema(schema) = &mut part.rules {
                *schema = change(std::mem::take(schema));
            }
        }
        self
    }

    /// The field of the request that asks for the grammar.
    pub fn field(&self) -> &str {
        self.parts.first().map_or("", |part| &part.field)
    }

    /// The parts, the first of which the text follows.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The form that router and shard compile: the library's own JSON.
    pub fn serialized(&self, tokens: &TokenTable) -> Arc<str> {
        let own = self.parts.iter().map(|part| match &part.rules {
            Rules::JsonSchema(schema) => {
                json!({"name": part.name, "json_schema": json_schema::prepared(schema)})
            }
            Rules::Lark(text) => json!({"name": part.name, "lark_grammar": text}),
            Rules::Template(text, literals) => {
                json!({"name": part.name, "lark_grammar": filled(text, literals, tokens)})
            }
        });
        let root = json!({"name": ROOT, "lark_grammar": self.root()});
        let parts: Vec<Value> = std::iter::once(root).chain(own).collect();
        json!({ "grammars": parts }).to_string().into()
    }

    /// The part that refers to the first one. Its options let the model choose between the tokens of a text that the
    /// grammar forces: the library would prescribe them, and needs a tokenizer for that.
    fn root(&self) -> String {
        let first = self.parts.first().map_or("", |part| &part.name);
        let options = r#"%llguidance {"no_forcing": true}"#;
        format!("{options}\nstart: @{first}\n")
    }

    fn single(field: impl Into<Cow<'static, str>>, rules: Rules) -> Self {
        Grammar {
            parts: vec![Part {
                name: "answer".into(),
                field: field.into(),
                rules,
            }],
        }
    }
}

/// Name of the part that the others are reached from.
const ROOT: &str = "root";

/// Encloses the index of a text in a template: a character that Unicode leaves to private use.
const PLACEHOLDER: char = '\u{E000}';

/// Stands for the text with this index in a [`Rules::Template`].
fn placeholder(index: usize) -> String {
    format!("{PLACEHOLDER}{index}{PLACEHOLDER}")
}

/// A template with its texts.
fn filled(template: &str, literals: &[String], tokens: &TokenTable) -> String {
    let mut written = template.to_owned();
    for (index, text) in literals.iter().enumerate() {
        written = written.replace(&placeholder(index), &text_with_tokens(text, tokens));
    }
    written
}

/// A text in a Lark grammar. Where it contains the name of a special token, the model writes that token, since no other
/// tokens have its text.
pub fn text_with_tokens(text: &str, tokens: &TokenTable) -> String {
    let ids = 0..tokens.len() as u32;
    let special: Vec<(u32, &[u8])> = ids
        .filter(|id| tokens.is_special(*id))
        .map(|id| (id, tokens.text(id)))
        .filter(|(_, name)| !name.is_empty())
        .collect();
    let mut items = Vec::new();
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(character) = rest.chars().next() {
        let here = special
            .iter()
            .filter(|(_, name)| rest.as_bytes().starts_with(name));
        let Some((id, name)) = here.max_by_key(|(_, name)| name.len()) else {
            plain.push(character);
            rest = &rest[character.len_utf8()..];
            continue;
        };
        if !plain.is_empty() {
            items.push(literal(&std::mem::take(&mut plain)));
        }
        items.push(format!("<[{id}]>"));
        rest = &rest[name.len()..];
    }
    if !plain.is_empty() || items.is_empty() {
        items.push(literal(&plain));
    }
    items.join(" ")
}

/// A literal text in a Lark grammar.
pub fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression in a Lark grammar.
pub fn regex_literal(pattern: &str) -> String {
    if pattern.is_empty() {
        return literal("");
    }
    format!("/{}/", llguidance::regex_to_lark(pattern, ""))
}

/// Error of a value at `field` that is no grammar.
fn wrong(field: &str, what: &str) -> ApiError {
    ApiError::validation(field, format!("`{field}` {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_the_first_part() {
        let grammar = Grammar::from_lark("tools", "start: \"a\"".to_owned());
        let root = |grammar: &Grammar| {
            let serialized: Value =
                serde_json::from_str(&grammar.serialized(&TokenTable::default())).unwrap();
            let parts = serialized["grammars"].as_array().unwrap();
            assert_eq!(
                parts[1],
                json!({"name": "answer", "lark_grammar": "start: \"a\""})
            );
            let text = parts[0]["lark_grammar"].as_str().unwrap();
            text.split_once('\n').unwrap().1.to_owned()
        };
        assert_eq!(root(&grammar), "start: @answer\n");
    }

    #[test]
    fn literals_are_quoted() {
        assert_eq!(literal("a\"\n\\"), r#""a\"\n\\""#);
    }
}
