//! Structural tags: free text with tagged parts, whose content follows a grammar. The two forms are the list of
//! `structures` and `triggers` of SGLang and early vLLM, and the tree of formats of later ones.

use serde_json::Value;

use super::{Grammar, Part, Rules, gbnf, placeholder, regex_literal, wrong};
use crate::error::ApiError;

/// Maximum depth of formats within formats.
const MAX_DEPTH: usize = 64;

/// Any text, and the name of its terminal.
const ANY_TEXT: &str = "ANY_TEXT: /(?s:.*)/\n";

/// Reads a structural tag at `field`.
pub fn structural_tag(value: &Value, field: &str) -> Result<Grammar, ApiError> {
    let mut writer = Writer::default();
    let start = if let Some(format) = value.get("format") {
        writer.format(format, &format!("{field}.format"), 0)?
    } else if value.get("structures").is_some() {
        writer.structures(value, field)?
    } else {
        return Err(wrong(
            field,
            "needs a `format`, or `structures` and `triggers`",
        ));
    };
    let lark = format!("start: {start}\n{ANY_TEXT}{}", writer.rules);
    let template = Rules::Template(lark, writer.literals);
    Ok(Grammar::single(field.to_owned(), template).with(writer.parts))
}

/// Collects rules and parts.
#[derive(Default)]
struct Writer {
    rules: String,
    num_rules: usize,
    parts: Vec<Part>,
    /// Texts that may contain special tokens.
    literals: Vec<String>,
}

/// A tag: texts around a content.
struct Tag {
    begin: String,
    content: Content,
    end: Vec<String>,
}

enum Content {
    /// Any text up to the end of the tag.
    Any,
    /// A Lark expression.
    Expression(String),
}

impl Writer {
    /// Adds a rule, and returns its name.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("t{}", self.num_rules);
        self.num_rules += 1;
        self.rules
            .push_str(&format!("{name}{attributes}: {body}\n"));
        name
    }

    /// Stands for a text.
    fn literal(&mut self, text: &str) -> String {
        self.literals.push(text.to_owned());
        placeholder(self.literals.len() - 1)
    }

    /// Adds a part, and returns the reference to it.
    fn part(&mut self, field: String, rules: Rules) -> String {
        let name = format!("content_{}", self.parts.len());
        let reference = format!("@{name}");
        self.parts.push(Part {
            name: name.into(),
            field: field.into(),
            rules,
        });
        reference
    }

    /// The older form.
    fn structures(&mut self, value: &Value, field: &str) -> Result<String, ApiError> {
        let mut tags = Vec::new();
        for (index, structure) in list(value, "structures", field)?.iter().enumerate() {
            let place = format!("{field}.structures[{index}]");
            let schema = structure
                .get("schema")
                .cloned()
                .unwrap_or(Value::Bool(true));
            tags.push(Tag {
                begin: text(structure, "begin", &place)?.to_owned(),
                content: Content::Expression(
                    self.part(format!("{place}.schema"), Rules::JsonSchema(schema)),
                ),
                end: vec![text(structure, "end", &place)?.to_owned()],
            });
        }
        let triggers = texts(value, "triggers", field)?;
        self.triggered(&tags, &triggers, field, Occurrences::default())
    }

    /// The expression of a format.
    fn format(&mut self, value: &Value, field: &str, depth: usize) -> Result<String, ApiError> {
        if depth > MAX_DEPTH {
            return Err(wrong(field, "is nested too deeply"));
        }
        match text(value, "type", field)? {
            "const_string" => Ok(self.literal(text(value, "value", field)?)),
            "json_schema" => {
                let schema = value.get("json_schema").cloned();
                let schema = schema.ok_or_else(|| wrong(field, "needs a `json_schema`"))?;
                Ok(self.part(format!("{field}.json_schema"), Rules::JsonSchema(schema)))
            }
            "any_text" => match value.get("excludes").and_then(Value::as_array) {
                Some(excluded) if !excluded.is_empty() => Err(wrong(
                    &format!("{field}.excludes"),
                    "is not supported; leave it out",
                )),
                _ => Ok("ANY_TEXT".to_owned()),
            },
            "regex" => Ok(regex_literal(text(value, "pattern", field)?)),
            "grammar" => {
                let place = format!("{field}.grammar");
                let given = text(value, "grammar", field)?;
                let lark = if given.contains("::=") {
                    gbnf::to_lark(given).map_err(|error| wrong(&place, &error))?
                } else {
                    given.to_owned()
                };
                Ok(self.part(place, Rules::Lark(lark)))
            }
            "sequence" => Ok(self.elements(value, field, depth)?.join(" ")),
            "or" => Ok(format!(
                "({})",
                self.elements(value, field, depth)?.join(" | ")
            )),
            "tag" => {
                let tag = self.tag(value, field, depth)?;
                Ok(self.written(&tag, &tag.begin))
            }
            "triggered_tags" => {
                let tags = self.tags(value, field, depth)?;
                let triggers = texts(value, "triggers", field)?;
                self.triggered(&tags, &triggers, field, Occurrences::of(value))
            }
            "tags_with_separator" => self.separated(value, field, depth),
            other => Err(wrong(
                &format!("{field}.type"),
                &format!("is \"{other}\", which is not supported"),
            )),
        }
    }

    fn elements(
        &mut self,
        value: &Value,
        field: &str,
        depth: usize,
    ) -> Result<Vec<String>, ApiError> {
        let elements = list(value, "elements", field)?.iter().enumerate();
        elements
            .map(|(index, element)| {
                self.format(element, &format!("{field}.elements[{index}]"), depth + 1)
            })
            .collect()
    }

    fn tags(&mut self, value: &Value, field: &str, depth: usize) -> Result<Vec<Tag>, ApiError> {
        let tags = list(value, "tags", field)?.iter().enumerate();
        tags.map(|(index, tag)| self.tag(tag, &format!("{field}.tags[{index}]"), depth))
            .collect()
    }

    fn tag(&mut self, value: &Value, field: &str, depth: usize) -> Result<Tag, ApiError> {
        let begin = text(value, "begin", field)?.to_owned();
        let end = match value.get("end") {
            Some(Value::String(end)) => vec![end.clone()],
            _ => texts(value, "end", field)?,
        };
        let place = format!("{field}.content");
        let content = value
            .get("content")
            .ok_or_else(|| wrong(field, "needs a `content`"))?;
        let expression = self.format(content, &place, depth + 1)?;
        let content = match expression.as_str() {
            "ANY_TEXT" => Content::Any,
            _ => Content::Expression(expression),
        };
        Ok(Tag {
            begin,
            content,
            end,
        })
    }

    /// The expression of a tag, of whose begin `rest` has not been written yet.
    fn written(&mut self, tag: &Tag, rest: &str) -> String {
        let ends: Vec<String> = tag.end.iter().map(|end| self.literal(end)).collect();
        let end = format!("({})", ends.join(" | "));
        let has_end = tag.end.iter().any(|end| !end.is_empty());
        match &tag.content {
            Content::Any if has_end => {
                let up_to_end = self.rule("[lazy]", &format!("ANY_TEXT {end}"));
                format!("{} {up_to_end}", self.literal(rest))
            }
            Content::Any => format!("{} ANY_TEXT", self.literal(rest)),
            Content::Expression(content) => format!("{} {content} {end}", self.literal(rest)),
        }
    }

    /// Free text in which a trigger begins one of its tags.
    fn triggered(
        &mut self,
        tags: &[Tag],
        triggers: &[String],
        field: &str,
        occurrences: Occurrences,
    ) -> Result<String, ApiError> {
        let mut options = Vec::new();
        let mut is_used = vec![false; tags.len()];
        for (index, trigger) in triggers.iter().enumerate() {
            if trigger.is_empty() {
                let place = format!("{field}.triggers[{index}]");
                return Err(wrong(&place, "must not be empty"));
            }
            let mut bodies = Vec::new();
            for (tag, used) in tags.iter().zip(&mut is_used) {
                if let Some(rest) = tag.begin.strip_prefix(trigger.as_str()).filter(|_| !*used) {
                    *used = true;
                    bodies.push(self.written(tag, rest));
                }
            }
            if !bodies.is_empty() {
                let end = self.literal(trigger);
                let text = self.rule("[lazy]", &format!("ANY_TEXT {end}"));
                options.push(format!("{text} ({})", bodies.join(" | ")));
            }
        }
        if let Some(index) = is_used.iter().position(|used| !used) {
            return Err(wrong(
                field,
                &format!(
                    "has a tag with the begin \"{}\", which no trigger begins",
                    tags[index].begin
                ),
            ));
        }
        if options.is_empty() {
            return Err(wrong(field, "needs at least one tag"));
        }
        let tag = self.rule("", &options.join(" | "));
        Ok(
            match (occurrences.at_least_one, occurrences.stop_after_first) {
                (true, true) => tag,
                (false, true) => format!("({tag} | ANY_TEXT)"),
                (true, false) => format!("{tag}+ ANY_TEXT"),
                (false, false) => format!("{tag}* ANY_TEXT"),
            },
        )
    }

    /// Tags with a text between them.
    fn separated(&mut self, value: &Value, field: &str, depth: usize) -> Result<String, ApiError> {
        let separator = self.literal(text(value, "separator", field)?);
        let tags = self.tags(value, field, depth)?;
        let bodies: Vec<String> = tags
            .iter()
            .map(|tag| self.written(tag, &tag.begin))
            .collect();
        if bodies.is_empty() {
            return Err(wrong(field, "needs at least one tag"));
        }
        let tag = self.rule("", &bodies.join(" | "));
        let occurrences = Occurrences::of(value);
        Ok(
            match (occurrences.at_least_one, occurrences.stop_after_first) {
                (true, true) => tag,
                (false, true) => format!("{tag}?"),
                (true, false) => format!("{tag} ({separator} {tag})*"),
                (false, false) => format!("({tag} ({separator} {tag})*)?"),
            },
        )
    }
}

/// How often tags occur.
#[derive(Default)]
struct Occurrences {
    at_least_one: bool,
    stop_after_first: bool,
}

impl Occurrences {
    fn of(value: &Value) -> Self {
        let is_set = |name| value.get(name) == Some(&Value::Bool(true));
        Occurrences {
            at_least_one: is_set("at_least_one"),
            stop_after_first: is_set("stop_after_first"),
        }
    }
}

fn text<'a>(value: &'a Value, name: &str, field: &str) -> Result<&'a str, ApiError> {
    let found = value.get(name).and_then(Value::as_str);
    found.ok_or_else(|| wrong(field, &format!("needs a text `{name}`")))
}

fn list<'a>(value: &'a Value, name: &str, field: &str) -> Result<&'a [Value], ApiError> {
    let found = value.get(name).and_then(Value::as_array);
    found
        .map(Vec::as_slice)
        .ok_or_else(|| wrong(field, &format!("needs an array `{name}`")))
}

fn texts(value: &Value, name: &str, field: &str) -> Result<Vec<String>, ApiError> {
    let items = list(value, name, field)?.iter();
    let read = items.map(|item| item.as_str().map(str::to_owned));
    let found: Option<Vec<String>> = read.collect();
    found.filter(|texts| !texts.is_empty()).ok_or_else(|| {
        wrong(
            &format!("{field}.{name}"),
            "must be an array of one or more texts",
        )
    })
}
