//! The spellings of grammars in requests: those of OpenAI, vLLM, SGLang, text-generation-inference, llama.cpp and
//! Ollama. A request may use one of them.

use serde_json::{Map, Value, json};

use super::json_schema::with_option;
use super::structural_tag::structural_tag;
use super::{Grammar, gbnf, literal, wrong};
use crate::error::ApiError;

/// A grammar, or none where the value asks for any text.
type Read = Result<Option<Grammar>, ApiError>;

/// Reads a grammar from the value of the field with this path.
type Reader = fn(&Value, &str) -> Read;

/// Fields of a request that ask for a grammar, and what each holds.
const SPELLINGS: [(&str, Reader); 12] = [
    ("response_format", response_format),
    ("structured_outputs", structured_outputs),
    ("guided_json", schema),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", grammar),
    ("json_schema", schema),
    ("regex", regex),
    ("ebnf", grammar),
    ("structural_tag", structural),
    ("grammar", tagged_or_text),
    ("format", format),
];

/// Members of `structured_outputs`.
const STRUCTURED_OUTPUTS: [(&str, Reader); 6] = [
    ("json", schema),
    ("regex", regex),
    ("choice", choice),
    ("grammar", grammar),
    ("json_object", json_object),
    ("structural_tag", structural),
];

/// Options of `structured_outputs` that do not change what may be written, or that are read beside the grammar.
const WHITESPACE_PATTERN: &str = "whitespace_pattern";
const NO_WHITESPACE: &str = "disable_any_whitespace";
const NO_ADDITIONAL: &str = "disable_additional_properties";

/// Reads the grammar that a request asks for. `fields`: the fields that may ask for one, by name; `null` is left out.
pub fn read<'a>(
    fields: impl IntoIterator<Item = (&'static str, Option<&'a Value>)>,
) -> Result<Option<Grammar>, ApiError> {
    let given = fields.into_iter();
    one_of(
        given.filter_map(|(name, value)| Some((name, value?))),
        "",
        &SPELLINGS,
    )
}

/// Reads the only grammar among members of an object at `path`.
fn one_of<'a>(
    given: impl Iterator<Item = (&'a str, &'a Value)>,
    path: &str,
    readers: &[(&str, Reader)],
) -> Read {
    let mut found: Option<(String, Grammar)> = None;
    for (name, value) in given.filter(|(_, value)| !value.is_null()) {
        let Some((_, read)) = readers.iter().find(|(known, _)| *known == name) else {
            continue;
        };
        let field = if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        };
        let Some(grammar) = read(value, &field)? else {
            continue;
        };
        if let Some((first, _)) = &found {
            return Err(ApiError::validation(
                &field,
                format!(
                    "`{first}` and `{field}` exclude each other: an answer follows one grammar"
                ),
            ));
        }
        found = Some((field, grammar));
    }
    Ok(found.map(|(_, grammar)| grammar))
}

fn schema(value: &Value, field: &str) -> Read {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| wrong(field, &format!("is no JSON: {error}")))?,
        other => other.clone(),
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => {
            Ok(Some(Grammar::from_json_schema(field.to_owned(), schema)))
        }
        _ => Err(wrong(
            field,
            "must be a JSON schema: an object, or its text",
        )),
    }
}

fn json_object(value: &Value, field: &str) -> Read {
    match value {
        Value::Bool(true) => Ok(Some(any_object(field))),
        Value::Bool(false) => Ok(None),
        _ => Err(wrong(field, "must be a boolean")),
    }
}

fn any_object(field: &str) -> Grammar {
    Grammar::from_json_schema(field.to_owned(), json!({"type": "object"}))
}

fn regex(value: &Value, field: &str) -> Read {
    let pattern = text(value, field)?;
    let backslashes = pattern.len() - pattern.trim_end_matches('\\').len();
    if backslashes % 2 == 1 {
        return Err(wrong(field, "ends with a backslash that escapes nothing"));
    }
    Ok(Some(Grammar::from_regex(field.to_owned(), pattern)))
}

fn choice(value: &Value, field: &str) -> Read {
    let must = "must be an array of one or more texts";
    let choices = value.as_array().filter(|list| !list.is_empty());
    let choices = choices.ok_or_else(|| wrong(field, must))?;
    let mut options = Vec::with_capacity(choices.len());
    for (index, choice) in choices.iter().enumerate() {
        let place = format!("{field}[{index}]");
        options.push(literal(text(choice, &place)?));
    }
    let lark = format!("start: {}\n", options.join(" | "));
    Ok(Some(Grammar::from_lark(field.to_owned(), lark)))
}

/// Reads a grammar in Lark, or in EBNF with `::=`.
fn grammar(value: &Value, field: &str) -> Read {
    let text = text(value, field)?;
    let lark = if text.contains("::=") {
        gbnf::to_lark(text)
            .map_err(|error| wrong(field, &format!("is no EBNF grammar: {error}")))?
    } else {
        text.to_owned()
    };
    Ok(Some(Grammar::from_lark(field.to_owned(), lark)))
}

fn structural(value: &Value, field: &str) -> Read {
    let parsed = match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| wrong(field, &format!("is no JSON: {error}")))?,
        other => other.clone(),
    };
    structural_tag(&parsed, field).map(Some)
}

/// Reads `{"type": …}` as in `response_format`, or the text of a grammar as llama.cpp has it.
fn tagged_or_text(value: &Value, field: &str) -> Read {
    match value {
        Value::String(_) => grammar(value, field),
        _ => response_format(value, field),
    }
}

/// Reads Ollama's `format`: `json`, or a schema.
fn format(value: &Value, field: &str) -> Read {
    match value.as_str() {
        Some("") => Ok(None),
        Some("json") => Ok(Some(any_object(field))),
        Some(_) => Err(wrong(field, "must be \"json\" or a JSON schema")),
        None => schema(value, field),
    }
}

/// Reads `{"type": …}` at `field`, with the value in a member whose name depends on the server that it was made for.
pub fn response_format(value: &Value, field: &str) -> Read {
    let object = value.as_object();
    let kind = object.and_then(|object| object.get("type"));
    let (Some(object), Some(kind)) = (object, kind.and_then(Value::as_str)) else {
        return Err(wrong(field, "must be an object with a `type`"));
    };
    match kind {
        "text" => Ok(None),
        "json_object" | "json" => match member(object, &["schema", "value"]) {
            Some((name, value)) => schema(value, &format!("{field}.{name}")),
            None if kind == "json_object" => Ok(Some(any_object(field))),
            None => Err(wrong(field, "needs a `value`: the JSON schema")),
        },
        "json_schema" => nested_schema(object, field),
        "regex" => named(object, &["value", "pattern", "regex"], field, regex),
        "choice" => named(object, &["value", "choice"], field, choice),
        "grammar" | "ebnf" | "lark" => named(object, &["value", "grammar"], field, grammar),
        "structural_tag" => match member(object, &["structural_tag"]) {
            Some((name, inner)) => structural(inner, &format!("{field}.{name}")),
            None => structural(value, field),
        },
        other => Err(wrong(
            &format!("{field}.type"),
            &format!(
                "is \"{other}\"; use one of text, json_object, json_schema, regex, choice, grammar, structural_tag"
            ),
        )),
    }
}

/// Reads `{"json_schema": {"name", "schema"}}` as OpenAI has it, or a schema in `value` or `schema`.
fn nested_schema(object: &Map<String, Value>, field: &str) -> Read {
    let Some((name, value)) = member(object, &["json_schema", "value", "schema"]) else {
        return Err(wrong(field, "needs a `json_schema` with a `schema`"));
    };
    let path = format!("{field}.{name}");
    let inner = value.as_object().and_then(|inner| inner.get("schema"));
    match inner.filter(|inner| name != "schema" && !inner.is_null()) {
        Some(inner) => schema(inner, &format!("{path}.schema")),
        None if name == "json_schema" && value.get("name").is_some() => {
            Err(wrong(&path, "needs a `schema`"))
        }
        None => schema(value, &path),
    }
}

/// Reads the value in one of these members, the first of which is named when there is none.
fn named(object: &Map<String, Value>, names: &[&str], field: &str, read: Reader) -> Read {
    match member(object, names) {
        Some((name, value)) => read(value, &format!("{field}.{name}")),
        None => Err(wrong(
            field,
            &format!("needs a `{}`", names.first().unwrap_or(&"value")),
        )),
    }
}

/// The first of these members that is there, with its name.
fn member<'a>(object: &'a Map<String, Value>, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
    let mut found = names.iter().map(|name| (*name, object.get(*name)));
    found.find_map(|(name, value)| Some((name, value.filter(|value| !value.is_null())?)))
}

/// Reads vLLM's `structured_outputs`.
fn structured_outputs(value: &Value, field: &str) -> Read {
    let Some(object) = value.as_object() else {
        return Err(wrong(field, "must be an object"));
    };
    let members = object.iter().map(|(name, value)| (name.as_str(), value));
    let found = one_of(members, field, &STRUCTURED_OUTPUTS)?;
    let Some(mut found) = found else {
        if object
            .values()
            .all(|value| value.is_null() || value == false)
        {
            return Ok(None);
        }
        let known: Vec<&str> = STRUCTURED_OUTPUTS.iter().map(|(name, _)| *name).collect();
        return Err(wrong(field, &format!("needs one of {}", known.join(", "))));
    };
    if object.get(NO_ADDITIONAL) == Some(&Value::Bool(true)) {
        return Err(wrong(
            &format!("{field}.{NO_ADDITIONAL}"),
            "is not supported; write `additionalProperties: false` into the schema",
        ));
    }
    if object.get(NO_WHITESPACE) == Some(&Value::Bool(true)) {
        found =
            found.map_schemas(|schema| with_option(schema, "whitespace_flexible", false.into()));
    }
    match object
        .get(WHITESPACE_PATTERN)
        .filter(|value| !value.is_null())
    {
        Some(pattern) => {
            whitespace(found, pattern, &format!("{field}.{WHITESPACE_PATTERN}")).map(Some)
        }
        None => Ok(Some(found)),
    }
}

/// Sets the whitespace between the parts of a JSON document, a regular expression.
pub fn whitespace(grammar: Grammar, pattern: &Value, field: &str) -> Result<Grammar, ApiError> {
    let pattern = text(pattern, field)?;
    Ok(grammar.map_schemas(|schema| with_option(schema, "whitespace_pattern", pattern.into())))
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str, ApiError> {
    value.as_str().ok_or_else(|| wrong(field, "must be a text"))
}

#[cfg(test)]
#[path = "spelling_tests.rs"]
mod tests;
