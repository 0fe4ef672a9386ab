//! Grammars that make a model call functions, in the form in which it writes calls.
//!
//! The rules are llguidance's variant of Lark: `@name` refers to a JSON schema beside the rules, `<[7]>` is the token
//! with that id, a rule with `[lazy]` ends where it first matches, and a name in capitals is a terminal, which may use
//! `&` and `~`.

mod channels;
mod literal;
mod literal_text;
mod section;
mod tagged;
mod terminal;

use serde_json::{Map, Value, json};

use super::format::Layout;
use super::plan::{Plan, Tool};
use super::schema::{Kind, Unclear, Variant, constraints, variants, with_definitions};

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

/// A schema of arguments, or of a part of them.
#[derive(Debug, Clone, PartialEq)]
pub struct CallSchema {
    /// Name by which the rules refer to it.
    pub name: String,
    /// Index of its tool among those of the plan.
    pub tool: usize,
    /// Place in the tool's schema, such as `.properties.city`; empty: the whole schema.
    pub path: String,
    pub schema: Value,
}

/// How calls are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// At least one call of any tool.
    Required,
    /// A call of this tool.
    Named(&'a str),
    /// Text or calls.
    Optional,
    /// Calls, or content that follows the part of this name.
    Content(&'a str),
}

/// A constraint that the model's format cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unenforceable {
    pub tool: usize,
    /// Place in the tool's schema, and the reason.
    pub place: Unclear,
}

/// The rules for `plan`. The arguments of strict tools and of calls that are required follow their schema; others are
/// free. `special`: names and ids of the tokenizer's special tokens. `None` if no format of calls is known.
///
/// # Errors
///
/// A schema that must be followed has a constraint that the format cannot hold.
pub fn rules(
    plan: &Plan,
    wanted: Wanted<'_>,
    special: &[(String, u32)],
) -> Result<Option<CallRules>, Unenforceable> {
    let mut writer = Writer {
        special,
        requires: matches!(wanted, Wanted::Required | Wanted::Named(_)),
        text: String::new(),
        schemas: Vec::new(),
        num_rules: 0,
    };
    let tools = plan.tools.iter().enumerate();
    let tools: Vec<(usize, &Tool)> = tools
        .filter(|(_, tool)| !matches!(wanted, Wanted::Named(name) if name != tool.name))
        .collect();
    let several = !plan.single_call && !matches!(wanted, Wanted::Named(_));
    match &plan.format.layout {
        Layout::Channels(channels) => writer.channels(channels, &tools, wanted),
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
                let call = writer.call(number, (*index, tool), calls);
                call.map_err(|place| Unenforceable {
                    tool: *index,
                    place,
                })?;
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
    /// True if calls are required, so that the arguments of all tools follow their schemas.
    requires: bool,
    text: String,
    schemas: Vec<CallSchema>,
    /// Number of rules with made-up names.
    num_rules: usize,
}

/// A part of a literal text.
enum LiteralPart {
    /// Text in quotes.
    Text(String),
    /// A special token.
    Token(String),
}

impl Writer<'_> {
    fn end(self) -> CallRules {
        CallRules {
            text: self.text,
            schemas: self.schemas,
        }
    }

    /// True if the tool's arguments must follow its schema.
    fn is_enforced(&self, tool: &Tool) -> bool {
        self.requires || tool.strict
    }

    fn rule(&mut self, name: &str, expression: &str) {
        let expression = match expression.trim() {
            "" => "\"\"",
            expression => expression,
        };
        self.text.push_str(&format!("{name}: {expression}\n"));
    }

    /// A new name that begins with `prefix`.
    fn new_name(&mut self, prefix: &str) -> String {
        self.num_rules += 1;
        format!("{prefix}{}", self.num_rules)
    }

    /// Adds a rule with a new name, which is returned.
    fn new_rule(&mut self, prefix: &str, expression: &str) -> String {
        let name = self.new_name(prefix);
        self.rule(&name, expression);
        name
    }

    /// Expression of a literal text, with the ids of special tokens in it.
    fn literal(&self, text: &str) -> String {
        let parts = self.literal_parts(text).into_iter();
        let parts = parts.map(|part| match part {
            LiteralPart::Text(text) => quoted(&text),
            LiteralPart::Token(token) => token,
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    fn literal_parts(&self, text: &str) -> Vec<LiteralPart> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let first = self
                .special
                .iter()
                .filter_map(|(name, id)| Some((rest.find(name.as_str())?, name, id)))
                .min_by_key(|(at, name, _)| (*at, std::cmp::Reverse(name.len())));
            let Some((at, name, id)) = first.filter(|(_, name, _)| !name.is_empty()) else {
                parts.push(LiteralPart::Text(rest.to_owned()));
                break;
            };
            if at > 0 {
                let before = rest.get(..at).unwrap_or_default();
                parts.push(LiteralPart::Text(before.to_owned()));
            }
            parts.push(LiteralPart::Token(format!("<[{id}]>")));
            rest = rest.get(at + name.len()..).unwrap_or_default();
        }
        parts
    }

    /// Reference to a schema.
    fn schema(&mut self, tool: usize, path: &str, schema: Value) -> String {
        let name = format!("arguments_{}", self.schemas.len());
        let reference = format!("@{name}");
        self.schemas.push(CallSchema {
            name,
            tool,
            path: path.to_owned(),
            schema,
        });
        reference
    }

    /// Expression of the parts in order, those that are not required optional, with `separator` between them.
    fn sequence(&mut self, parts: &[(String, bool)], separator: &str) -> String {
        if parts.is_empty() {
            return String::new();
        }
        let rule = self.new_name("list");
        let end = parts.len();
        for (position, (part, is_required)) in parts.iter().enumerate() {
            let next = position + 1;
            for (kind, before) in [("first", ""), ("next", separator)] {
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
        format!("{rule}_first_0")
    }
}

/// The properties of an object, as far as formats that are no JSON can write them.
struct Members {
    /// Name, schema, and true if it is required.
    declared: Vec<(String, Value, bool)>,
    /// Schema of the properties with other names; `None`: there are none.
    others: Option<Value>,
}

/// The arguments of a tool.
fn members_of_tool(tool: &Tool) -> Result<Members, Unclear> {
    let parameters = whole_schema(tool);
    match variants(&parameters, &parameters)?.as_slice() {
        [Variant::Of(Kind::Object, schema)] => members(schema),
        [Variant::Any] => members(&Map::new()),
        _ => Err(Unclear::new("", "it must be the schema of an object")),
    }
}

/// Reads the schema of an object. Properties that it does not declare are allowed only where it declares none.
fn members(schema: &Map<String, Value>) -> Result<Members, Unclear> {
    let known = ["type", "properties", "required", "additionalProperties"];
    if let Some(key) = constraints(schema).find(|key| !known.contains(key)) {
        let reason = "this model's form of calls cannot follow it";
        return Err(Unclear::new(format!(".{key}"), reason));
    }
    let required: Vec<&str> = match schema.get("required") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut declared: Vec<(String, Value, bool)> = properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            let is_required = required.contains(&name.as_str());
            (name.clone(), schema.clone(), is_required)
        })
        .collect();
    let others = schema.get("additionalProperties").cloned();
    let others = others.unwrap_or(Value::Bool(true));
    for name in required {
        if !declared.iter().any(|(known, ..)| known == name) {
            declared.push((name.to_owned(), others.clone(), true));
        }
    }
    let is_open = properties.is_none() && declared.is_empty() && others != Value::Bool(false);
    Ok(Members {
        declared,
        others: is_open.then_some(others),
    })
}

/// The schema of a tool's arguments: an object.
fn whole_schema(tool: &Tool) -> Value {
    match &tool.parameters {
        Value::Object(schema) if !schema.is_empty() => {
            let mut schema = schema.clone();
            if !schema.contains_key("$ref") {
                schema.entry("type").or_insert_with(|| "object".into());
            }
            Value::Object(schema)
        }
        // A tool without parameters takes none.
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

/// A schema of what `variants` allow, with the definitions of `root`.
fn schema_of(root: &Value, variants: &[&Variant]) -> Value {
    let schemas = variants.iter().map(|variant| match variant {
        Variant::Any => json!({}),
        Variant::Choices(choices) => json!({"enum": choices}),
        Variant::Of(_, schema) => Value::Object(schema.clone()),
    });
    let mut schemas: Vec<Value> = schemas.collect();
    let schema = match schemas.len() {
        1 => schemas.remove(0),
        _ => json!({"anyOf": schemas}),
    };
    with_definitions(root, &schema)
}

/// A string in Lark.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A string in JSON.
fn json_text(text: &str) -> String {
    Value::from(text).to_string()
}
