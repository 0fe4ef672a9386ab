//! Formats from `response_template` of tokenizer_config.json, in which a tokenizer tells Transformers how to take
//! answers apart.
//!
//! Its delimiters are literals or regular expressions. Expressions that consist of literals, white space and named
//! groups are translated to markers. Others are not, and then the format is found by rendering the chat template.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::format::{
    Arguments, Body, Calls, Format, Layout, LiteralStyle, Origin, Reasoning, Regions, Tags,
};

#[derive(Debug, Deserialize)]
struct Template {
    #[serde(default)]
    start_anchor: Option<Literals>,
    fields: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Literals {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Field {
    open: Option<Literals>,
    open_pattern: Option<String>,
    close: Option<Literals>,
    close_pattern: Option<String>,
    #[serde(default)]
    content: String,
    #[serde(default)]
    content_args: ContentArguments,
    #[serde(default)]
    transform: Value,
    #[serde(default)]
    transform_each: bool,
}

#[derive(Debug, Default, Deserialize)]
struct ContentArguments {
    #[serde(default)]
    unquoted_keys: bool,
    #[serde(default)]
    string_delims: Vec<(String, String)>,
    tag_pattern: Option<String>,
}

/// A part of a regular expression.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Literal(String),
    Space,
    Group(String),
}

/// Fields that hold reasoning, as in Transformers.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Translates a template; `None` if it has a part that cannot be translated.
pub fn translate(template: &Value) -> Option<Format> {
    let template: Template = serde_json::from_value(template.clone()).ok()?;
    let field = |name: &str| {
        let field = template.fields.get(name)?;
        Some(serde_json::from_value::<Field>(field.clone()).ok())
    };
    let reasoning = match REASONING.iter().find_map(|name| field(name)) {
        Some(field) => Some(reasoning(&field?)?),
        None => None,
    };
    let calls = match field("tool_calls") {
        Some(field) => Some(calls(&field?)?),
        None => None,
    };
    let origin = |found: bool| match found {
        true => Origin::ResponseTemplate,
        false => Origin::Nothing,
    };
    Some(Format {
        calls_from: origin(calls.is_some()),
        reasoning_from: origin(reasoning.is_some()),
        anchor: template
            .start_anchor
            .and_then(Literals::only)
            .unwrap_or_default(),
        layout: Layout::from(Regions {
            reasoning,
            calls,
            content_markers: Vec::new(),
        }),
    })
}

impl Literals {
    /// The only literal; `None` if there are several.
    fn only(self) -> Option<String> {
        match self {
            Self::One(text) => Some(text),
            Self::Several(mut texts) if texts.len() == 1 => texts.pop(),
            Self::Several(_) => None,
        }
    }
}

impl Field {
    fn open(&self) -> Option<Vec<Part>> {
        delimiter(self.open.as_ref(), self.open_pattern.as_deref())
    }

    fn close(&self) -> Option<Vec<Part>> {
        delimiter(self.close.as_ref(), self.close_pattern.as_deref())
    }
}

fn delimiter(literals: Option<&Literals>, pattern: Option<&str>) -> Option<Vec<Part>> {
    match (literals, pattern) {
        (Some(Literals::One(text)), _) => Some(vec![Part::Literal(text.clone())]),
        (Some(Literals::Several(texts)), _) => match texts.as_slice() {
            [text] => Some(vec![Part::Literal(text.clone())]),
            _ => None,
        },
        (None, Some(pattern)) => parts(pattern),
        (None, None) => None,
    }
}

fn reasoning(field: &Field) -> Option<Reasoning> {
    Some(Reasoning {
        open: text(&field.open()?)?,
        close: text(&field.close()?)?,
        anywhere: true,
    })
}

fn calls(field: &Field) -> Option<Calls> {
    let open = field.open()?;
    let close = text(&field.close()?)?;
    let function = field.transform.get("function").unwrap_or(&field.transform);
    let call = |open: String, list: bool, body: Body| {
        let calls = Calls::without_markers(body);
        match list {
            true => Calls {
                list,
                section_open: open,
                section_close: close.clone(),
                ..calls
            },
            false => Calls {
                open,
                close: close.clone(),
                ..calls
            },
        }
    };
    let group = open.iter().position(|part| matches!(part, Part::Group(_)));
    let Some(group) = group else {
        if field.content != "json" {
            return None;
        }
        let (name, arguments) = match function {
            Value::String(whole) if whole == "{content}" => ("name".into(), "arguments".into()),
            Value::Object(_) => (
                placeholder(function, "name")?,
                placeholder(function, "arguments")?,
            ),
            _ => return None,
        };
        let body = Body::object(&name, &arguments);
        return Some(call(text(&open)?, field.transform_each, body));
    };
    let (before, after) = (open.get(..group)?, open.get(group + 1..)?);
    let is_name = open.get(group) == Some(&Part::Group("name".into()));
    let plain = function.get("name") == Some(&"{name}".into())
        && function.get("arguments") == Some(&"{content}".into());
    if !is_name || !plain {
        return None;
    }
    let arguments = match (field.content.as_str(), &field.content_args) {
        ("json", args) if args.unquoted_keys => {
            let quote = args.string_delims.first().map_or("", |(open, _)| open);
            Arguments::BareKeys {
                quote: quote.to_owned(),
                style: LiteralStyle::bare(),
            }
        }
        ("json", _) => Arguments::Json,
        ("xml-inline", args) => Arguments::Tagged(tags(args.tag_pattern.as_deref()?)?),
        _ => return None,
    };
    let body = Body::Named {
        name_open: String::new(),
        name_close: text(after)?,
        id_open: String::new(),
        numbered: false,
        arguments,
    };
    Some(call(text(before)?, false, body))
}

/// The key in a placeholder such as `{content.name}` or `{name}`.
fn placeholder(function: &Value, key: &str) -> Option<String> {
    let placeholder = function.get(key)?.as_str()?;
    let inner = placeholder.strip_prefix('{')?.strip_suffix('}')?;
    let name = inner.strip_prefix("content.").unwrap_or(inner);
    (!name.is_empty() && !name.contains('.')).then(|| name.to_owned())
}

fn tags(pattern: &str) -> Option<Tags> {
    let parts = parts(pattern)?;
    let place = |name: &str| {
        let group = Part::Group(name.to_owned());
        parts.iter().position(|part| *part == group)
    };
    let (key, value) = (place("key")?, place("value")?);
    let between = parts.get(key + 1..value)?;
    Some(Tags {
        open: text(parts.get(..key)?)?,
        key_close: text(between)?,
        close: text(parts.get(value + 1..)?)?,
        trim: between.last() == Some(&Part::Space),
        ..Tags::default()
    })
}

/// The text of parts without groups; white space becomes a blank.
fn text(parts: &[Part]) -> Option<String> {
    let texts = parts.iter().map(|part| match part {
        Part::Literal(text) => Some(text.as_str()),
        Part::Space => Some(" "),
        Part::Group(_) => None,
    });
    Some(texts.collect::<Option<String>>()?.trim().to_owned())
}

/// Splits a regular expression; `None` if it has more than literals, white space and named groups.
fn parts(pattern: &str) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let mut chars = pattern.chars().peekable();
    let literal = |parts: &mut Vec<Part>, c: char| match parts.last_mut() {
        Some(Part::Literal(text)) => text.push(c),
        _ => parts.push(Part::Literal(c.to_string())),
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                's' => {
                    if matches!(chars.peek(), Some('*' | '+' | '?')) {
                        chars.next();
                    }
                    parts.push(Part::Space);
                }
                'n' => literal(&mut parts, '\n'),
                't' => literal(&mut parts, '\t'),
                c if c.is_alphanumeric() => return None,
                c => literal(&mut parts, c),
            },
            '(' => {
                let group: String = chars.by_ref().take_while(|c| *c != ')').collect();
                let name = group.strip_prefix("?P<")?;
                let (name, inner) = name.split_once('>')?;
                if inner.contains('(') {
                    return None;
                }
                parts.push(Part::Group(name.to_owned()));
            }
            '.' | '*' | '+' | '?' | '[' | ']' | ')' | '{' | '|' | '^' | '$' => return None,
            c => literal(&mut parts, c),
        }
        if matches!(chars.peek(), Some('*' | '+' | '?' | '{')) {
            return None;
        }
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_of_literals_space_and_groups_are_split() {
        let literal = |text: &str| Part::Literal(text.into());
        assert_eq!(
            parts(r"\s*<\|tool>\s*<f=(?P<name>[^>\n]+)>"),
            Some(vec![
                Part::Space,
                literal("<|tool>"),
                Part::Space,
                literal("<f="),
                Part::Group("name".into()),
                literal(">"),
            ])
        );
        for other in ["a*", "(a|b)", "[ab]", r"\w+", "a|b", "a{2}", "(?:a)"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }

    #[test]
    fn a_template_that_cannot_be_translated_is_left() {
        let template = json!({"start_anchor": "a", "fields": {"content": {}, "tool_calls": {
            "open_pattern": "<(?:a|b)>", "close": "</a>", "content": "json"}}});
        assert_eq!(translate(&template), None);
    }
}
