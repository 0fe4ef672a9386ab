//! Grammars that make a model call functions, in the form in which it writes calls.
//!
//! The rules are llguidance's variant of Lark: `@name` refers to a JSON schema beside the rules, `<[7]>` is the token
//! with that id, and a rule with `[lazy]` ends where it first matches.

use serde_json::{Map, Value, json};

use super::format::{Arguments, Body, Calls, Channels, Layout, Tags};
use super::plan::{Plan, Tool};

/// Any text.
const ANY: &str = r"/(.|\n)*/";
/// White space between parts.
const SPACE: &str = r"/[ \n]{0,4}/";
/// An identifier that the model makes up.
const IDENTIFIER: &str = "/[A-Za-z0-9]{9}/";

/// Rules, and the schemas that they refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRules {
    /// Lark with the rule `start`.
    pub text: String,
    pub schemas: Vec<CallSchema>,
}

/// A schema of arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct CallSchema {
    /// Name by which the rules refer to it.
    pub name: String,
    /// Index of its tool among those of the plan.
    pub tool: usize,
    /// Property of the tool's schema; `None`: the whole schema.
    pub property: Option<String>,
    pub schema: Value,
}

/// How calls are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// At least one call of any tool.
    Required,
    /// One call of this tool.
    Named(&'a str),
    /// Text or calls, whose arguments fit.
    Optional,
    /// Calls, or content that follows the part of this name.
    Content(&'a str),
}

/// A constraint that the model's format cannot hold, and its place in the tool's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unenforceable {
    pub tool: usize,
    pub property: String,
}

/// The rules for `plan`. `special`: names and ids of the tokenizer's special tokens. `None` if no format of calls is
/// known, or if calls cannot be told from text before they begin.
///
/// # Errors
///
/// A strict tool has a constraint that the format cannot hold.
pub fn rules(
    plan: &Plan,
    wanted: Wanted<'_>,
    special: &[(String, u32)],
) -> Result<Option<CallRules>, Unenforceable> {
    let mut writer = Writer {
        special,
        text: String::new(),
        schemas: Vec::new(),
    };
    let tools = plan.tools.iter().enumerate();
    let tools: Vec<(usize, &Tool)> = tools
        .filter(|(_, tool)| !matches!(wanted, Wanted::Named(name) if name != tool.name))
        .collect();
    let several = !plan.single_call && !matches!(wanted, Wanted::Named(_));
    match &plan.format.layout {
        Layout::Channels(channels) => {
            if wanted == Wanted::Optional {
                return Ok(None);
            }
            writer.channels(channels, &tools, wanted);
        }
        Layout::Regions(regions) => {
            let Some(calls) = regions.calls.as_ref().filter(|_| !tools.is_empty()) else {
                let Wanted::Content(content) = wanted else {
                    return Ok(None);
                };
                let thought = writer.thought(plan);
                writer.rule("start", &format!("{thought} @{content}"));
                return Ok(Some(writer.end()));
            };
            for (number, (index, tool)) in tools.iter().enumerate() {
                writer.call(number, (*index, tool), calls)?;
            }
            let names = (0..tools.len()).map(|number| format!("body_{number}"));
            writer.rule("body", &names.collect::<Vec<_>>().join(" | "));
            writer.section(calls, several);
            writer.start(plan, wanted, calls);
        }
    }
    Ok(Some(writer.end()))
}

/// Writes the rules of one grammar.
struct Writer<'a> {
    special: &'a [(String, u32)],
    text: String,
    schemas: Vec<CallSchema>,
}

impl Writer<'_> {
    fn end(self) -> CallRules {
        CallRules {
            text: self.text,
            schemas: self.schemas,
        }
    }

    fn rule(&mut self, name: &str, expression: &str) {
        let expression = match expression.trim() {
            "" => "\"\"",
            expression => expression,
        };
        self.text.push_str(&format!("{name}: {expression}\n"));
    }

    /// Expression of a literal text, with the ids of special tokens in it.
    fn literal(&self, text: &str) -> String {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let first = self
                .special
                .iter()
                .filter_map(|(name, id)| Some((rest.find(name.as_str())?, name, id)))
                .min_by_key(|(at, name, _)| (*at, std::cmp::Reverse(name.len())));
            let Some((at, name, id)) = first.filter(|(_, name, _)| !name.is_empty()) else {
                parts.push(quoted(rest));
                break;
            };
            if at > 0 {
                parts.push(quoted(rest.get(..at).unwrap_or_default()));
            }
            parts.push(format!("<[{id}]>"));
            rest = rest.get(at + name.len()..).unwrap_or_default();
        }
        parts.join(" ")
    }

    /// Expression of any text that ends with the literal `end`. Defines a rule with this name.
    fn text_until(&mut self, rule: &str, end: &str) -> String {
        let literal = self.literal(end);
        let first = literal.split(" <[").next().unwrap_or_default();
        if literal.is_empty() {
            return ANY.into();
        }
        if literal.starts_with('<') {
            return format!("{ANY} {literal}");
        }
        let after = literal.get(first.len()..).unwrap_or_default().to_owned();
        self.rule(&format!("{rule}[lazy]"), &format!("{ANY} {first}"));
        format!("{rule}{after}")
    }

    /// Reference to a schema.
    fn schema(&mut self, tool: usize, property: Option<String>, schema: Value) -> String {
        let name = format!("arguments_{}", self.schemas.len());
        let reference = format!("@{name}");
        self.schemas.push(CallSchema {
            name,
            tool,
            property,
            schema,
        });
        reference
    }

    fn call(
        &mut self,
        number: usize,
        (index, tool): (usize, &Tool),
        calls: &Calls,
    ) -> Result<(), Unenforceable> {
        let name = json_text(&tool.name);
        let body = match &calls.body {
            Body::Object {
                name: name_key,
                arguments,
                wrapper,
                ..
            } => {
                let mut before = format!(
                    "{{{}: {name}, {}: ",
                    json_text(name_key),
                    json_text(arguments)
                );
                let mut after = "}".to_owned();
                if !wrapper.is_empty() {
                    before = format!("{{{}: {before}", json_text(wrapper));
                    after.push('}');
                }
                let schema = self.schema(index, None, whole_schema(tool));
                format!("{} {schema} {}", quoted(&before), quoted(&after))
            }
            Body::NameAsKey => {
                let schema = self.schema(index, None, whole_schema(tool));
                format!("{} {schema} \"}}\"", quoted(&format!("{{{name}: ")))
            }
            Body::Named {
                name_open,
                name_close,
                id_open,
                numbered,
                arguments,
            } => {
                let mut parts = Vec::new();
                if !name_open.is_empty() {
                    parts.extend([IDENTIFIER.to_owned(), self.literal(name_open)]);
                }
                match numbered {
                    true => parts.extend([
                        quoted(&format!("functions.{}:", tool.name)),
                        "/[0-9]{1,3}/".into(),
                    ]),
                    false => parts.push(quoted(&tool.name)),
                }
                if !id_open.is_empty() {
                    parts.extend([self.literal(id_open), IDENTIFIER.into()]);
                }
                parts.push(self.literal(name_close));
                parts.push(self.arguments(number, (index, tool), arguments)?);
                parts.join(" ")
            }
        };
        let close = self.literal(&calls.close);
        self.rule(&format!("body_{number}"), &format!("{body} {close}"));
        Ok(())
    }

    fn arguments(
        &mut self,
        number: usize,
        (index, tool): (usize, &Tool),
        arguments: &Arguments,
    ) -> Result<String, Unenforceable> {
        if *arguments == Arguments::Json {
            return Ok(self.schema(index, None, whole_schema(tool)));
        }
        let none = Map::new();
        let properties = tool.parameters.get("properties");
        let properties = properties.and_then(Value::as_object).unwrap_or(&none);
        let required = tool.parameters.get("required").and_then(Value::as_array);
        let mut parts = Vec::new();
        for (position, (key, schema)) in properties.iter().enumerate() {
            let rule = format!("value_{number}_{position}");
            let value = match arguments {
                Arguments::Tagged(tags) => {
                    self.tagged(&rule, (index, tool), (key, schema), tags)?
                }
                Arguments::BareKeys { quote } if is_plain_text(schema) => {
                    let text = self.text_until(&rule, quote);
                    check_text(index, tool, key, schema)?;
                    let quote = self.literal(quote);
                    format!("{} {quote} {text}", quoted(&format!("{key}:")))
                }
                Arguments::BareKeys { .. } => {
                    let schema = property_schema(tool, schema);
                    let value = self.schema(index, Some(key.clone()), schema);
                    format!("{} {value}", quoted(&format!("{key}:")))
                }
                Arguments::Keywords | Arguments::Json => {
                    let schema = property_schema(tool, schema);
                    let value = self.schema(index, Some(key.clone()), schema);
                    format!("{} {value}", quoted(&format!("{key}=")))
                }
            };
            let is_required = required.is_some_and(|keys| keys.iter().any(|name| name == key));
            parts.push((value, is_required));
        }
        let (open, separator, close) = match arguments {
            Arguments::Keywords => ("(", ", ", ")"),
            Arguments::BareKeys { .. } => ("{", ",", "}"),
            Arguments::Tagged(_) | Arguments::Json => ("", "", ""),
        };
        let list = self.sequence(&format!("list_{number}"), &parts, separator);
        let quote = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                quoted(text)
            }
        };
        Ok(format!("{} {list} {}", quote(open), quote(close)))
    }

    fn tagged(
        &mut self,
        rule: &str,
        (index, tool): (usize, &Tool),
        (key, schema): (&str, &Value),
        tags: &Tags,
    ) -> Result<String, Unenforceable> {
        let before = format!("{}{key}{}", tags.open, tags.key_close);
        if is_plain_text(schema) {
            let before = self.literal(&format!("{before}{}", tags.string_mark));
            if let Some(choices) = text_choices(schema) {
                let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
                let close = self.literal(&tags.close);
                return Ok(format!("{before} ({}) {close}", choices.join(" | ")));
            }
            check_text(index, tool, key, schema)?;
            let value = self.text_until(rule, &tags.close);
            return Ok(format!("{before} {value}"));
        }
        let before = self.literal(&format!("{before}{}", tags.json_mark));
        let schema = property_schema(tool, schema);
        let value = self.schema(index, Some(key.to_owned()), schema);
        Ok(format!("{before} {value} {}", self.literal(&tags.close)))
    }

    /// Expression of the parts in order, those that are not required optional, with `separator` between them. Defines
    /// rules with names that begin with `rule`.
    fn sequence(&mut self, rule: &str, parts: &[(String, bool)], separator: &str) -> String {
        let comma = if separator.is_empty() {
            String::new()
        } else {
            quoted(separator)
        };
        let end = parts.len();
        for (position, (part, is_required)) in parts.iter().enumerate() {
            let next = position + 1;
            for (kind, before) in [("first", ""), ("next", comma.as_str())] {
                let rest = if next == end {
                    String::new()
                } else {
                    format!("{rule}_next_{next}")
                };
                let mut expression = format!("{before} {part} {rest}");
                if !is_required {
                    let skipped = match next == end {
                        true => "\"\"".to_owned(),
                        false => format!("{rule}_{kind}_{next}"),
                    };
                    expression = format!("{expression} | {skipped}");
                }
                if kind == "first" || position > 0 {
                    self.rule(&format!("{rule}_{kind}_{position}"), &expression);
                }
            }
        }
        if parts.is_empty() {
            String::new()
        } else {
            format!("{rule}_first_0")
        }
    }

    /// Rules `calls`, all calls with the markers around them, and `calls_rest`, without the first marker.
    fn section(&mut self, calls: &Calls, several: bool) {
        let bracket = |bracket| {
            if calls.list {
                quoted(bracket)
            } else {
                String::new()
            }
        };
        let separator = match (calls.list, calls.separator.as_str()) {
            (true, _) => quoted(", "),
            (false, separator) => self.literal(separator),
        };
        let more = if several {
            format!("({separator} call)*")
        } else {
            String::new()
        };
        let open = self.literal(&calls.open);
        self.rule("call", &format!("{open} body"));
        let (first, after_first) = match calls.section_open.trim() {
            "" => (calls.open.as_str(), "body"),
            _ => (calls.section_open.as_str(), "call"),
        };
        let marker = first.trim();
        // White space before the first marker is left to the model.
        let after = first.trim_start().strip_prefix(marker).unwrap_or_default();
        let (before, after) = (self.literal(marker), self.literal(after));
        let close = self.literal(&calls.section_close);
        let rest = format!(
            "{after} {} {after_first} {more} {} {close}",
            bracket("["),
            bracket("]")
        );
        self.rule("calls_rest", &rest);
        self.rule("calls", &format!("{before} calls_rest"));
    }

    fn start(&mut self, plan: &Plan, wanted: Wanted<'_>, calls: &Calls) {
        let thought = self.thought(plan);
        match wanted {
            Wanted::Required | Wanted::Named(_) => {
                self.rule("start", &format!("{thought} calls"));
            }
            Wanted::Content(content) => {
                self.rule("start", &format!("{thought} (calls | @{content})"));
            }
            // A text that begins like a call is one.
            Wanted::Optional if calls.is_bare() => {
                self.rule("start", &format!("{thought} (calls | free)"));
                self.rule("free", r"/([^{\[](.|\n)*)?/");
            }
            Wanted::Optional => {
                let marker = match calls.section_open.trim() {
                    "" => calls.open.trim(),
                    open => open,
                };
                let before = self.text_until("before_calls", marker);
                self.rule("start", &format!("{thought} ({before} calls_rest)* {ANY}"));
            }
        }
    }

    /// Expression of the reasoning before the answer.
    fn thought(&mut self, plan: &Plan) -> String {
        let Layout::Regions(regions) = &plan.format.layout else {
            return String::new();
        };
        let Some(reasoning) = &regions.reasoning else {
            return String::new();
        };
        let close = self.text_until("thought", reasoning.close.trim());
        if plan.begins_in_reasoning() {
            return format!("{close} {SPACE}");
        }
        let open = self.literal(reasoning.open.trim());
        format!("({open} {close} {SPACE})?")
    }

    fn channels(&mut self, channels: &Channels, tools: &[(usize, &Tool)], wanted: Wanted<'_>) {
        let thought = format!(
            "{}{}{}",
            channels.channel, channels.reasoning, channels.message
        );
        let thought = self.literal(&thought);
        let end = channels.ends.first().map_or("", String::as_str);
        let thought_end = self.text_until("thought", end);
        let next = self.literal(&format!("{}assistant", channels.start));
        let mut names = Vec::new();
        for (number, (index, tool)) in tools.iter().enumerate() {
            let header = format!(
                "{}commentary{}{}{} <|constrain|>json{}",
                channels.channel,
                channels.recipient,
                channels.name_prefix,
                tool.name,
                channels.message
            );
            let header = self.literal(&header);
            let schema = self.schema(*index, None, whole_schema(tool));
            self.rule(&format!("call_{number}"), &format!("{header} {schema}"));
            names.push(format!("call_{number}"));
        }
        if let Wanted::Content(content) = wanted {
            let header = format!("{}final{}", channels.channel, channels.message);
            names.push(format!("{} @{content}", self.literal(&header)));
        }
        self.rule("call", &names.join(" | "));
        self.rule("start", &format!("({thought} {thought_end} {next})? call"));
    }
}

/// A string in Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A string in JSON.
fn json_text(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema of a tool's arguments: an object.
fn whole_schema(tool: &Tool) -> Value {
    match &tool.parameters {
        Value::Object(schema) if !schema.is_empty() => {
            let mut schema = schema.clone();
            schema.entry("type").or_insert_with(|| "object".into());
            Value::Object(schema)
        }
        // A tool without parameters takes none.
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

/// The schema of a property, with the definitions that it may refer to.
fn property_schema(tool: &Tool, schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(own) = schema.as_object_mut() {
        for definitions in ["$defs", "definitions"] {
            if let Some(shared) = tool.parameters.get(definitions) {
                own.entry(definitions).or_insert_with(|| shared.clone());
            }
        }
    }
    schema
}

/// True if the property is a string, which is written without quotes.
fn is_plain_text(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "string") || text_choices(schema).is_some()
}

/// The strings that a property may have.
fn text_choices(schema: &Value) -> Option<Vec<String>> {
    let choices = match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(choices)), _) => choices.clone(),
        (_, Some(only)) => vec![only.clone()],
        _ => return None,
    };
    let choices = choices
        .iter()
        .map(|choice| Some(choice.as_str()?.to_owned()));
    choices.collect()
}

/// Refuses constraints on the text of a strict tool's strings.
fn check_text(index: usize, tool: &Tool, key: &str, schema: &Value) -> Result<(), Unenforceable> {
    let constraints = ["pattern", "format", "minLength", "maxLength"];
    let constrained = constraints.iter().any(|name| schema.get(name).is_some());
    if tool.strict && constrained {
        return Err(Unenforceable {
            tool: index,
            property: key.to_owned(),
        });
    }
    Ok(())
}
