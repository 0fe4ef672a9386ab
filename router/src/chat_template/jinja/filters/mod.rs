//! The filters of Jinja2, by name.

mod items;
mod order;
mod sequence;
mod text;

use super::call::{CallArguments, given, to_index, to_text};
use super::compare::{collect, length};
use super::error::{Error, Result};
use super::numbers::{parse_float, parse_int, round_float, round_int, too_large, truncate};
use super::percent::to_float;
use super::value::{Undefined, Value};
use super::{attributes, json};

/// Evaluates `value|name(arguments)`.
pub fn call(name: &str, value: &Value, arguments: &CallArguments) -> Result<Value> {
    if matches!(value, Value::Loop(_)) && !matches!(name, "default" | "d") {
        return Err(Error::refused(format!("the filter `{name}` on `loop`")));
    }
    match name {
        "default" | "d" => {
            let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
            let boolean = boolean.is_some_and(|boolean| boolean.is_true());
            let takes = matches!(value, Value::Undefined(_)) || boolean && !value.is_true();
            Ok(if takes {
                default.unwrap_or_else(|| Value::str(""))
            } else {
                value.clone()
            })
        }
        "length" | "count" => {
            arguments.positional::<0>(name, 0)?;
            Ok(Value::Int(length(value)? as i128))
        }
        "list" => {
            arguments.bind::<0>(name, [], 0)?;
            Value::list(collect(value)?)
        }
        "tojson" => to_json(value, arguments),
        "int" => to_int(value, arguments),
        "float" => {
            let [default] = arguments.bind(name, ["default"], 0)?;
            match value {
                Value::Undefined(undefined) => Err(undefined.error()),
                Value::Str(text) | Value::Markup(text) if !text.is_ascii() => {
                    non_ascii_digits(text)?;
                    Ok(default.unwrap_or(Value::Float(0.0)))
                }
                other => Ok(match to_float(other) {
                    Ok(number) => Value::Float(number),
                    Err(_) => default.unwrap_or(Value::Float(0.0)),
                }),
            }
        }
        "abs" => {
            arguments.positional::<0>(name, 0)?;
            match value {
                Value::Float(number) => Ok(Value::Float(number.abs())),
                other => match other.as_int() {
                    Some(number) => number.checked_abs().map(Value::Int).ok_or_else(too_large),
                    None => Err(Error::runtime(format!(
                        "bad operand type for abs(): '{}'",
                        other.type_name()
                    ))),
                },
            }
        }
        "round" => round(value, arguments),
        "attr" => {
            let [name] = arguments.bind(name, ["name"], 1)?;
            let name = name.unwrap_or(Value::None);
            attributes::attribute_only(value, to_text(&name, "the attribute's name")?)
        }
        "items" => {
            arguments.bind::<0>(name, [], 0)?;
            items(value)
        }
        "batch" | "dictsort" | "first" | "groupby" | "join" | "last" | "map" | "max" | "min"
        | "reject" | "rejectattr" | "reverse" | "select" | "selectattr" | "slice" | "sort"
        | "sum" | "unique" => sequence::call(name, value, arguments),
        "capitalize" | "center" | "e" | "escape" | "filesizeformat" | "forceescape" | "format"
        | "indent" | "lower" | "replace" | "safe" | "string" | "striptags" | "title" | "trim"
        | "truncate" | "upper" | "urlencode" | "wordcount" | "wordwrap" | "xmlattr" => {
            text::call(name, value, arguments)
        }
        "pprint" | "random" | "urlize" => Err(Error::refused(format!("the filter `{name}`"))),
        other => Err(Error::runtime(format!("No filter named '{other}'."))),
    }
}

fn items(value: &Value) -> Result<Value> {
    match value {
        Value::Undefined(_) => Ok(super::value::Generator::value("generator", [])),
        Value::Dict(dict) => {
            let pairs = dict.entries().iter();
            Ok(super::value::Generator::value(
                "generator",
                pairs.map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])),
            ))
        }
        _ => {
            let error = Error::runtime("Can only get item pairs from a mapping.");
            Ok(super::value::Generator::value("generator", [Err(error)]))
        }
    }
}

fn to_json(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort_keys] = arguments.bind("tojson", names, 0)?;
    let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match given(indent) {
        None => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(number) => {
            let spaces = usize::try_from(to_index(&number)?.max(0)).unwrap_or(usize::MAX);
            super::meter::reserve(spaces)?;
            Some(" ".repeat(spaces))
        }
    };
    let (item_separator, key_separator) = match given(separators) {
        None => {
            let item = if indent.is_some() { "," } else { ", " };
            (item.to_owned(), ": ".to_owned())
        }
        Some(pair) => match collect(&pair)?.as_slice() {
            [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
            _ => return Err(Error::runtime("tojson: `separators` must be two strings")),
        },
    };
    let options = json::Options {
        ensure_ascii: flag(ascii),
        indent,
        item_separator,
        key_separator,
        sort_keys: flag(sort_keys),
    };
    json::dumps(value, &options).map(Value::str)
}

/// Refuses digits beyond ASCII, which Python would read.
fn non_ascii_digits(text: &str) -> Result<()> {
    if text.chars().any(|c| !c.is_ascii() && c.is_numeric()) {
        return Err(Error::refused("a number in digits beyond ASCII"));
    }
    Ok(())
}

fn to_int(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [default, base] = arguments.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    match value {
        Value::Undefined(undefined) => Err(undefined.error()),
        Value::Str(text) | Value::Markup(text) => {
            non_ascii_digits(text)?;
            let base = base.map_or(Ok(10), |base| to_index(&base))?;
            // An invalid base fails like a text that is not a number.
            let parsed = u32::try_from(base).map_or(Ok(None), |base| {
                if base == 1 || base > 36 {
                    Ok(None)
                } else {
                    parse_int(text, base)
                }
            })?;
            if let Some(number) = parsed {
                return Ok(Value::Int(number));
            }
            match parse_float(text) {
                Some(number) if number.is_finite() => truncate(number).map(Value::Int),
                _ => Ok(default),
            }
        }
        Value::Float(number) if number.is_nan() => Ok(default),
        Value::Float(number) if number.is_infinite() => {
            Err(Error::runtime("cannot convert float infinity to integer"))
        }
        Value::Float(number) => truncate(*number).map(Value::Int),
        other => Ok(other.as_int().map_or(default, Value::Int)),
    }
}

fn round(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [precision, method] = arguments.bind("round", ["precision", "method"], 0)?;
    let precision = precision.unwrap_or(Value::Int(0));
    let method = method.unwrap_or_else(|| Value::str("common"));
    let method = method.as_str().unwrap_or_default();
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::runtime("method must be common, ceil or floor"));
    }
    if let Value::Undefined(undefined) = value {
        return Err(undefined.error());
    }
    if method == "common" {
        if matches!(precision, Value::None) {
            return match value {
                Value::Float(number) => truncate(round_float(*number, 0)?).map(Value::Int),
                other => to_index(other).map(Value::Int),
            };
        }
        let digits = to_index(&precision)?;
        return match value {
            Value::Float(number) => round_float(*number, digits).map(Value::Float),
            other => match other.as_int() {
                Some(number) => round_int(number, digits).map(Value::Int),
                None => Err(Error::runtime(format!(
                    "type {} doesn't define __round__ method",
                    other.type_name()
                ))),
            },
        };
    }
    let digits = to_index(&precision)?;
    let power = super::operators::binary(
        super::ast::BinaryOp::Pow,
        &Value::Int(10),
        &Value::Int(digits),
    )?;
    let scaled = super::operators::binary(super::ast::BinaryOp::Mul, value, &power)?;
    let whole = match scaled {
        Value::Float(number) if method == "ceil" => truncate(number.ceil())?,
        Value::Float(number) => truncate(number.floor())?,
        other => to_index(&other)?,
    };
    super::operators::binary(super::ast::BinaryOp::Div, &Value::Int(whole), &power)
}

/// The undefined value that an empty sequence gives.
pub fn nothing(message: &str) -> Value {
    Undefined::value(message)
}
