//! Arguments that are neither JSON nor tagged: keyword arguments, objects with bare keys, and JSON inside a string.

use serde_json::{Map, Value};

use super::terminal::regex;
use super::{Members, Writer, json_text, members, members_of_tool, quoted};
use crate::tool_calls::format::LiteralStyle;
use crate::tool_calls::plan::Tool;
use crate::tool_calls::schema::{Kind, Unclear, Variant, constraints, variants, with_definitions};

/// Maximum depth of objects and lists in a schema.
const MAX_DEPTH: usize = 16;

/// How values are written.
pub struct Style<'a> {
    pub strings: Strings<'a>,
    /// Expressions of the text between items, and between a key and its value.
    pub comma: String,
    pub colon: String,
    /// True, false and null.
    pub words: [&'a str; 3],
    /// Name of the rule of any value, once it is defined.
    any: Option<String>,
}

/// How strings are written.
#[derive(Clone, Copy)]
pub enum Strings<'a> {
    /// As in JSON.
    Json,
    /// In single quotes, with Python's escapes, or as in JSON.
    Python,
    /// Between these marks, without escapes. Keys are bare.
    Marked(&'a str),
    /// As in JSON that is written inside a JSON string.
    Escaped,
}

/// Place of a value in the schema of a tool's arguments.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    index: usize,
    tool: &'a Tool,
    path: &'a str,
    depth: usize,
}

impl<'a> Style<'a> {
    fn of(style: &'a LiteralStyle, strings: Strings<'a>) -> Self {
        Self {
            strings,
            comma: quoted(&style.comma),
            colon: quoted(&style.colon),
            words: [&style.true_word, &style.false_word, &style.null_word],
            any: None,
        }
    }
}

impl Writer<'_> {
    /// Keyword arguments in parentheses.
    pub(super) fn keywords(
        &mut self,
        (index, tool): (usize, &Tool),
        style: &LiteralStyle,
    ) -> Result<String, Unclear> {
        let strings = match style.quote.as_str() {
            "'" => Strings::Python,
            _ => Strings::Json,
        };
        let mut style = Style::of(style, strings);
        let members = self.free_or_own(tool)?;
        let key = |key: &str| quoted(&format!("{key}="));
        let any_key = regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}=");
        let list = self.members(&mut style, root(index, tool), members, &key, &any_key)?;
        Ok(format!("\"(\" {list} \")\""))
    }

    /// An object with bare keys.
    pub(super) fn bare_keys(
        &mut self,
        (index, tool): (usize, &Tool),
        quote: &str,
        style: &LiteralStyle,
    ) -> Result<String, Unclear> {
        let mut style = Style::of(style, Strings::Marked(quote));
        let members = self.free_or_own(tool)?;
        self.braces(&mut style, root(index, tool), members)
    }

    /// A JSON object inside a JSON string.
    pub(super) fn json_in_string(
        &mut self,
        (index, tool): (usize, &Tool),
    ) -> Result<String, Unclear> {
        let mut style = Style {
            strings: Strings::Escaped,
            comma: regex(", ?"),
            colon: regex(": ?"),
            words: ["true", "false", "null"],
            any: None,
        };
        let members = self.free_or_own(tool)?;
        let object = self.braces(&mut style, root(index, tool), members)?;
        let quote = quoted("\"");
        Ok(format!("{quote} {object} {quote}"))
    }

    fn free_or_own(&self, tool: &Tool) -> Result<Members, Unclear> {
        match self.is_enforced(tool) {
            true => members_of_tool(tool),
            false => Ok(Members {
                declared: Vec::new(),
                others: Some(Value::Bool(true)),
            }),
        }
    }

    /// An object in braces.
    fn braces(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        members: Members,
    ) -> Result<String, Unclear> {
        let colon = style.colon.clone();
        let strings = style.strings;
        let key = |key: &str| match strings {
            Strings::Marked(_) => format!("{} {colon}", quoted(key)),
            Strings::Escaped => format!("{} {colon}", quoted(&escaped_json(&json_text(key)))),
            Strings::Json => format!("{} {colon}", quoted(&json_text(key))),
            Strings::Python => {
                let single = quoted(&format!("'{key}'"));
                format!("({single} | {}) {colon}", quoted(&json_text(key)))
            }
        };
        let any_key = match strings {
            Strings::Marked(_) => regex(r#"[^:,{}\[\]()"'<>\s][^:,{}\[\]()"'<>\n]{0,63}"#),
            _ => self.string(style, place, &Map::new())?,
        };
        let any_key = format!("{any_key} {colon}");
        let list = self.members(style, place, members, &key, &any_key)?;
        Ok(format!("\"{{\" {list} \"}}\""))
    }

    /// The members of an object. `key`: expression of a key and what separates it from its value.
    fn members(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        Members { declared, others }: Members,
        key: &dyn Fn(&str) -> String,
        any_key: &str,
    ) -> Result<String, Unclear> {
        let mut parts = Vec::new();
        for (name, schema, is_required) in &declared {
            let path = format!(".properties.{name}");
            let value = self.value_below(style, place, &path, schema)?;
            parts.push((format!("{} {value}", key(name)), *is_required));
        }
        let comma = style.comma.clone();
        let list = self.sequence(&parts, &comma);
        let Some(others) = others else {
            return Ok(list);
        };
        let value = self.value_below(style, place, ".additionalProperties", &others)?;
        let member = self.new_rule("member", &format!("{any_key} {value}"));
        Ok(format!("({member} ({comma} {member})*)?"))
    }

    fn value_below(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        path: &str,
        schema: &Value,
    ) -> Result<String, Unclear> {
        let whole = format!("{}{path}", place.path);
        let place = Place {
            path: &whole,
            depth: place.depth + 1,
            ..place
        };
        if place.depth > MAX_DEPTH {
            let reason =
                "it is nested too deeply, or refers to itself, for this model's form of calls";
            return Err(Unclear::new(path, reason));
        }
        let value = self.value(style, place, schema);
        value.map_err(|error| error.below(path))
    }

    /// Expression of a value that fits `schema`. Paths of errors are relative to it.
    fn value(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        schema: &Value,
    ) -> Result<String, Unclear> {
        let mut options = Vec::new();
        for variant in variants(&place.tool.parameters, schema)? {
            options.push(match &variant {
                Variant::Any => self.any(style, place)?,
                Variant::Choices(choices) => {
                    let written = choices.iter().map(|choice| self.constant(style, choice));
                    format!("({})", written.collect::<Vec<_>>().join(" | "))
                }
                Variant::Of(kind, schema) => self.of_kind(style, place, *kind, schema)?,
            });
        }
        match options.len() {
            1 => Ok(options.remove(0)),
            _ => Ok(format!("({})", options.join(" | "))),
        }
    }

    fn of_kind(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        kind: Kind,
        schema: &Map<String, Value>,
    ) -> Result<String, Unclear> {
        match kind {
            Kind::String => self.string(style, place, schema),
            Kind::Integer | Kind::Number => Ok(self.part(place, schema)),
            Kind::Boolean => {
                let [yes, no, _] = style.words;
                Ok(format!("({} | {})", quoted(yes), quoted(no)))
            }
            Kind::Null => Ok(quoted(style.words[2])),
            Kind::Object => self.braces(style, place, members(schema)?),
            Kind::Array => self.list(style, place, schema),
        }
    }

    /// A value that is written as in JSON.
    pub(super) fn part(&mut self, place: Place<'_>, schema: &Map<String, Value>) -> String {
        let schema = with_definitions(&place.tool.parameters, &Value::Object(schema.clone()));
        self.schema(place.index, place.path, schema)
    }

    fn list(
        &mut self,
        style: &mut Style<'_>,
        place: Place<'_>,
        schema: &Map<String, Value>,
    ) -> Result<String, Unclear> {
        let known = ["type", "items", "minItems", "maxItems"];
        let other = constraints(schema).find(|key| !known.contains(key));
        let is_tuple = schema.get("items").is_some_and(Value::is_array);
        if let Some(key) = other.or(is_tuple.then_some("items")) {
            let reason = "this model's form of calls cannot follow it";
            return Err(Unclear::new(format!(".{key}"), reason));
        }
        let any = Value::Bool(true);
        let items = schema.get("items").unwrap_or(&any);
        let item = self.value_below(style, place, ".items", items)?;
        let item = self.new_rule("item", &item);
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let (min, max) = (count("minItems").unwrap_or(0), count("maxItems"));
        let comma = &style.comma;
        let more = match max {
            None => format!("{{{},}}", min.saturating_sub(1)),
            Some(max) if max < min => {
                return Err(Unclear::new(".maxItems", "it is less than `minItems`"));
            }
            Some(max) => format!("{{{},{}}}", min.saturating_sub(1), max.saturating_sub(1)),
        };
        let items = match (min, max) {
            (_, Some(0)) => String::new(),
            (0, None) => format!("({item} ({comma} {item})*)?"),
            (0, _) => format!("({item} ({comma} {item}){more})?"),
            _ => format!("{item} ({comma} {item}){more}"),
        };
        Ok(format!("\"[\" {items} \"]\""))
    }

    /// Rule of any value.
    fn any(&mut self, style: &mut Style<'_>, place: Place<'_>) -> Result<String, Unclear> {
        if let Some(name) = &style.any {
            return Ok(name.clone());
        }
        let name = self.new_name("any");
        style.any = Some(name.clone());
        let place = Place { depth: 0, ..place };
        let none = Map::new();
        let number = Map::from_iter([("type".to_owned(), Value::from("number"))]);
        let options = [
            self.string(style, place, &none)?,
            self.of_kind(style, place, Kind::Number, &number)?,
            self.of_kind(style, place, Kind::Boolean, &none)?,
            self.of_kind(style, place, Kind::Null, &none)?,
            self.list(style, place, &none)?,
            self.of_kind(style, place, Kind::Object, &none)?,
        ];
        self.rule(&name, &options.join(" | "));
        Ok(name)
    }
}

fn root(index: usize, tool: &Tool) -> Place<'_> {
    Place {
        index,
        tool,
        path: "",
        depth: 0,
    }
}

/// JSON inside a JSON string.
pub fn escaped_json(json: &str) -> String {
    let quoted = json_text(json);
    let inner = quoted
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'));
    inner.unwrap_or_default().to_owned()
}
