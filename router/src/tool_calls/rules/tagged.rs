//! Arguments in tags. Strings stand there without quotes, so that their constraints become terminals; other values are
//! JSON.

use serde_json::Value;

use super::terminal::{all_of, regex, without};
use super::{Members, Writer, members_of_tool, quoted, schema_of};
use crate::tool_calls::format::Tags;
use crate::tool_calls::plan::Tool;
use crate::tool_calls::schema::{Kind, Unclear, Variant, constraints, text_rules, variants};

/// A number in JSON.
const NUMBER: &str = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?";
const INTEGER: &str = "-?(0|[1-9][0-9]*)";
/// Texts that a parser takes for numbers.
const LIKE_NUMBER: &str = r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*";

impl Writer<'_> {
    pub(super) fn tagged_arguments(
        &mut self,
        (index, tool): (usize, &Tool),
        tags: &Tags,
    ) -> Result<String, Unclear> {
        let Members { declared, others } = members_of_tool(tool)?;
        // A parameter that begins inside a value ends it, where a model forgot the closing tag.
        let begins = declared.iter();
        let begins = begins.map(|(key, ..)| format!("{} {key} {}", tags.open, tags.key_close));
        let markers: Vec<String> = std::iter::once(tags.close.clone()).chain(begins).collect();
        let mut excluded = without(&markers);
        if tags.trim {
            excluded = format!("{excluded} & ~{}", regex(r"(?s:\s.*|.*\s)"));
        }
        let excluded = self.new_rule("TEXT", &excluded);
        let mut parts = Vec::new();
        for (key, schema, is_required) in &declared {
            let path = format!(".properties.{key}");
            let found = variants(&tool.parameters, schema).map_err(|error| error.below(&path))?;
            let place = Place {
                tool: (index, tool),
                path: &path,
                tags,
                excluded: &excluded,
            };
            let value = self.tagged_value(&place, &found);
            let value = value.map_err(|error| error.below(&path))?;
            let before = self.literal(&format!("{}{key}{}", tags.open, tags.key_close));
            parts.push((format!("{before} {value}"), *is_required));
        }
        let list = self.sequence(&parts, "");
        let Some(others) = others else {
            return Ok(list);
        };
        let found = variants(&tool.parameters, &others)
            .map_err(|error| error.below(".additionalProperties"))?;
        let is_text =
            |variant: &Variant| matches!(variant, Variant::Any | Variant::Of(Kind::String, _));
        if !found.iter().all(is_text) {
            let reason = "this model's form of calls allows only strings";
            return Err(Unclear::new(".additionalProperties", reason));
        }
        let path = ".additionalProperties";
        let place = Place {
            tool: (index, tool),
            path,
            tags,
            excluded: &excluded,
        };
        let value = self.tagged_value(&place, &found);
        let value = value.map_err(|error| error.below(path))?;
        let (open, key_close) = (self.literal(&tags.open), self.literal(&tags.key_close));
        let key = regex(r#"[^\s<>"'=]{1,64}"#);
        Ok(format!("({open} {key} {key_close} {value})*"))
    }

    /// Expression of a value and its closing tag.
    fn tagged_value(&mut self, place: &Place<'_>, found: &[Variant]) -> Result<String, Unclear> {
        let tags = place.tags;
        let has_marks = !tags.string_mark.is_empty() || !tags.json_mark.is_empty();
        let is_text = |variant: &Variant| match variant {
            Variant::Any | Variant::Of(Kind::String, _) => true,
            Variant::Choices(choices) => choices.iter().any(Value::is_string),
            Variant::Of(..) => false,
        };
        if !found.iter().any(is_text) {
            return Ok(self.without_text(place, found));
        }
        let split = split(found);
        let mut texts = Vec::new();
        for variant in &split.texts {
            texts.push(match variant {
                Variant::Of(_, schema) => all_of(&text_rules(schema)?),
                Variant::Choices(choices) => one_of(choices),
                Variant::Any => all_of(&[]),
            });
        }
        if has_marks {
            let mark = self.literal(&tags.string_mark);
            let text = self.until_close(place, &texts.join(" | "), &[]);
            if split.others.is_empty() {
                return Ok(format!("{mark} {text}"));
            }
            let others: Vec<&Variant> = split.others.iter().collect();
            let json = self.json_value(place, &others);
            return Ok(format!("({mark} {text} | {json})"));
        }
        let mut unlike = Vec::new();
        let mut structures = Vec::new();
        let mut plain = Vec::new();
        for variant in &split.others {
            match variant {
                Variant::Of(Kind::Object | Kind::Array, _) => {
                    unlike.push(regex(r"(?s:\s*[{\[].*)"));
                    structures.push(variant);
                }
                Variant::Of(kind, schema) => {
                    if let Some(key) = constraints(schema).find(|key| *key != "type") {
                        let reason = "beside a string, this model's form of calls cannot hold it";
                        return Err(Unclear::new(format!(".{key}"), reason));
                    }
                    let (own, like) = forms(*kind);
                    plain.push(regex(own));
                    unlike.push(regex(like));
                }
                Variant::Choices(choices) => {
                    plain.push(one_of(choices));
                    for choice in choices {
                        let (_, like) = forms(Kind::of(choice));
                        unlike.push(regex(like));
                    }
                }
                Variant::Any => {}
            }
        }
        let is_any = found.contains(&Variant::Any);
        let unlike = if is_any { Vec::new() } else { unlike };
        // Text that the parser would take for another kind is no text.
        let listed = split
            .texts
            .iter()
            .all(|text| matches!(text, Variant::Choices(_)));
        let unlike: Vec<String> = match listed {
            true => Vec::new(),
            false => unlike.iter().map(|like| format!("~{like}")).collect(),
        };
        let mut text = format!("({})", texts.join(" | "));
        if !unlike.is_empty() {
            text = format!("({text} & {})", unlike.join(" & "));
        }
        let text = self.until_close(place, &text, &plain);
        if structures.is_empty() || is_any {
            return Ok(text);
        }
        let json = self.json_value(place, &structures);
        Ok(format!("({text} | {json})"))
    }

    /// Expression of a value that is no string, and its closing tag.
    fn without_text(&mut self, place: &Place<'_>, found: &[Variant]) -> String {
        let is_word = |variant: &&Variant| {
            let has_mark = !place.tags.json_mark.is_empty();
            !has_mark && matches!(variant, Variant::Of(Kind::Boolean | Kind::Null, _))
        };
        let (words, others): (Vec<&Variant>, Vec<&Variant>) = found.iter().partition(is_word);
        let mut options = Vec::new();
        if !others.is_empty() {
            options.push(self.json_value(place, &others));
        }
        let words = words.into_iter().filter_map(|variant| match variant {
            Variant::Of(kind, _) => Some(regex(forms(*kind).0)),
            _ => None,
        });
        let words: Vec<String> = words.collect();
        if !words.is_empty() {
            options.push(self.value_until(&words.join(" | "), &place.tags.close));
        }
        format!("({})", options.join(" | "))
    }

    /// Expression of a text or of one of the `plain` forms, and the closing tag.
    fn until_close(&mut self, place: &Place<'_>, text: &str, plain: &[String]) -> String {
        let mut options = vec![format!("(({text}) & {})", place.excluded)];
        options.extend_from_slice(plain);
        self.value_until(&options.join(" | "), &place.tags.close)
    }

    /// Expression of a value in JSON and its closing tag.
    fn json_value(&mut self, place: &Place<'_>, found: &[&Variant]) -> String {
        let mark = self.literal(&place.tags.json_mark);
        let (index, tool) = place.tool;
        let schema = schema_of(&tool.parameters, found);
        let value = self.schema(index, place.path, schema);
        let close = self.literal(&place.tags.close);
        format!("{mark} {value} {close}")
    }
}

/// Place of a value.
struct Place<'a> {
    tool: (usize, &'a Tool),
    /// Path in the tool's schema.
    path: &'a str,
    tags: &'a Tags,
    /// Terminal of the texts that a value may be.
    excluded: &'a str,
}

/// Forms of a value that are strings, and those that are not.
struct Split {
    texts: Vec<Variant>,
    others: Vec<Variant>,
}

fn split(found: &[Variant]) -> Split {
    let mut split = Split {
        texts: Vec::new(),
        others: Vec::new(),
    };
    for variant in found {
        match variant {
            Variant::Choices(choices) => {
                let (texts, others): (Vec<Value>, Vec<Value>) =
                    choices.iter().cloned().partition(Value::is_string);
                if !texts.is_empty() {
                    split.texts.push(Variant::Choices(texts));
                }
                if !others.is_empty() {
                    split.others.push(Variant::Choices(others));
                }
            }
            Variant::Any | Variant::Of(Kind::String, _) => split.texts.push(variant.clone()),
            Variant::Of(..) => split.others.push(variant.clone()),
        }
    }
    split
}

/// Terminal expression of one of the values, strings without quotes.
fn one_of(choices: &[Value]) -> String {
    let texts = choices.iter().map(|choice| match choice {
        Value::String(text) => quoted(text),
        other => quoted(&other.to_string()),
    });
    format!("({})", texts.collect::<Vec<_>>().join(" | "))
}

/// Regular expressions of the values of a kind, and of the texts that a parser takes for such values.
fn forms(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Integer => (INTEGER, LIKE_NUMBER),
        Kind::Number => (NUMBER, LIKE_NUMBER),
        // Templates write these words as JSON or as Python does.
        Kind::Boolean => (
            "true|false|True|False",
            r"(?i:\s*(true|false)\s*)|\s*[01]\s*",
        ),
        Kind::Null => ("null|None", r"\s*(null|None)\s*"),
        Kind::Object | Kind::Array => ("", r"(?s:\s*[{\[].*)"),
        Kind::String => ("", ""),
    }
}
