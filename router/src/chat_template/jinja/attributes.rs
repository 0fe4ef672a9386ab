//! `value.name`, `value[key]` and `value[start:stop:step]`.

use super::call::to_index;
use super::error::{Error, Result};
use super::value::{Method, Range, Undefined, Value, View};
use super::{meter, strings};
use std::rc::Rc;

const STR_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const MARKUP_METHODS: [&str; 3] = ["escape", "striptags", "unescape"];
const INT_METHODS: [&str; 6] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "from_bytes",
    "to_bytes",
];
const FLOAT_METHODS: [&str; 5] = [
    "as_integer_ratio",
    "conjugate",
    "fromhex",
    "hex",
    "is_integer",
];
const LIST_METHODS: [&str; 3] = ["copy", "count", "index"];
const LIST_CHANGES: [&str; 8] = [
    "append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove",
];
const TUPLE_METHODS: [&str; 2] = ["count", "index"];
const DICT_METHODS: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Returns the methods of a type that templates may call.
fn methods(value: &Value) -> &'static [&'static str] {
    match value {
        Value::Str(_) | Value::Markup(_) => &STR_METHODS,
        Value::Int(_) | Value::Bool(_) => &INT_METHODS,
        Value::Float(_) => &FLOAT_METHODS,
        Value::List(_) => &LIST_METHODS,
        Value::Tuple(_) | Value::Group(_) | Value::Range(_) => &TUPLE_METHODS,
        Value::Dict(_) => &DICT_METHODS,
        Value::View(View::Keys | View::Items, _) => &["isdisjoint"],
        Value::Generator(generator) if generator.type_name == "generator" => {
            &["close", "send", "throw"]
        }
        Value::Cycler(_) => &["next", "reset"],
        Value::Function("dict") => &["fromkeys"],
        _ => &[],
    }
}

/// Looks up an attribute as Python's `getattr` does, before the sandbox's checks.
fn python_attribute(value: &Value, name: &str) -> Result<Option<Value>> {
    if methods(value).contains(&name)
        || matches!(value, Value::Markup(_)) && MARKUP_METHODS.contains(&name)
    {
        return Ok(Some(Value::Method(Rc::new(Method {
            owner: value.clone(),
            name: name.into(),
        }))));
    }
    Ok(match (value, name) {
        (Value::Int(_) | Value::Bool(_), "real" | "numerator") => value.as_int().map(Value::Int),
        (Value::Int(_) | Value::Bool(_), "imag") => Some(Value::Int(0)),
        (Value::Int(_) | Value::Bool(_), "denominator") => Some(Value::Int(1)),
        (Value::Float(_), "real") => Some(value.clone()),
        (Value::Float(_), "imag") => Some(Value::Float(0.0)),
        (Value::Range(range), "start") => Some(Value::Int(range.start)),
        (Value::Range(range), "stop") => Some(Value::Int(range.stop)),
        (Value::Range(range), "step") => Some(Value::Int(range.step)),
        (Value::Group(items), "grouper") => items.first().cloned(),
        (Value::Group(items), "list") => items.get(1).cloned(),
        (Value::Namespace(namespace), name) => namespace.get(name),
        (Value::Cycler(cycler), "items") => Some(Value::tuple(cycler.items.to_vec())?),
        (Value::Cycler(cycler), "pos") => Some(Value::Int(*cycler.position.borrow() as i128)),
        (Value::Cycler(cycler), "current") => cycler.items.get(*cycler.position.borrow()).cloned(),
        (Value::Joiner(joiner), "sep") => Some(joiner.separator.clone()),
        (Value::Joiner(joiner), "used") => Some(Value::Bool(*joiner.used.borrow())),
        (Value::Macro(bound), name) => {
            let definition = &bound.definition;
            match name {
                "name" => Some(match &definition.name {
                    Some(name) => Value::str(&**name),
                    None => Value::None,
                }),
                "arguments" => {
                    let names = definition.parameters.iter().map(|name| Value::str(&**name));
                    Some(Value::tuple(names.collect())?)
                }
                "catch_kwargs" => Some(Value::Bool(definition.uses_kwargs)),
                "catch_varargs" => Some(Value::Bool(definition.uses_varargs)),
                "caller" => Some(Value::Bool(definition.uses_caller)),
                "explicit_caller" => {
                    let explicit = definition.parameters.iter().any(|name| &**name == "caller");
                    Some(Value::Bool(explicit))
                }
                _ => None,
            }
        }
        (Value::Loop(_), _) => return Err(Error::refused("`loop` within a format")),
        (Value::View(..), "mapping") => return Err(Error::refused("the attribute `mapping`")),
        _ => None,
    })
}

/// True if Python has the attribute and the sandbox hides it.
fn is_hidden(value: &Value, name: &str) -> bool {
    let changes: &[&str] = match value {
        Value::List(_) => &LIST_CHANGES,
        Value::Dict(_) => &DICT_CHANGES,
        Value::Generator(_) => &[
            "gi_frame",
            "gi_code",
            "gi_running",
            "gi_yieldfrom",
            "gi_suspended",
        ],
        _ => &[],
    };
    changes.contains(&name) || name.starts_with("__") && name.ends_with("__")
}

fn unsafe_attribute(value: &Value, name: &str) -> Value {
    Undefined::value(format!(
        "access to attribute '{name}' of '{}' object is unsafe.",
        value.type_name()
    ))
}

fn missing(value: &Value, key: &Value) -> Result<Value> {
    let kind = value.type_name();
    Ok(Undefined::value(match key {
        Value::Str(name) => format!("'{kind} object' has no attribute '{}'", &**name),
        Value::Int(number) => format!("{kind} object has no element {number}"),
        other => format!("{kind} object has no such element ({})", other.type_name()),
    }))
}

/// Evaluates `value.name`: the attribute, or else the item.
pub fn attribute(value: &Value, name: &str) -> Result<Value> {
    if let Value::Undefined(undefined) = value {
        return Err(undefined.error());
    }
    if let Some(found) = python_attribute(value, name)? {
        return Ok(found);
    }
    let entry = match value {
        Value::Dict(dict) => dict.get_str(name),
        _ => None,
    };
    if is_hidden(value, name) {
        // Each type has some of these names in Python; a key of the same name counts only for other types.
        if entry.is_some() && name.starts_with("__") {
            return Err(Error::refused(format!("the attribute `{name}`")));
        }
        return Ok(unsafe_attribute(value, name));
    }
    match entry {
        Some(entry) => Ok(entry.clone()),
        None => missing(value, &Value::str(name)),
    }
}

/// Evaluates `value|attr(name)`: the attribute only, never an item.
pub fn attribute_only(value: &Value, name: &str) -> Result<Value> {
    if let Value::Undefined(undefined) = value {
        return Err(undefined.error());
    }
    match python_attribute(value, name)? {
        Some(found) => Ok(found),
        None if is_hidden(value, name) => Ok(unsafe_attribute(value, name)),
        None => missing(value, &Value::str(name)),
    }
}

/// Evaluates `value[key]`: the item, or else the attribute.
pub fn item(value: &Value, key: &Value) -> Result<Value> {
    match value {
        Value::Undefined(undefined) => return Err(undefined.error()),
        Value::Dict(dict) => {
            let found = match key {
                Value::Str(name) => dict.get_str(name),
                Value::List(_) | Value::Dict(_) | Value::Undefined(_) => None,
                other => dict.get(other)?,
            };
            if let Some(found) = found {
                return Ok(found.clone());
            }
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            if let Some(index) = key.as_int() {
                return match position(index, items.len()) {
                    Some(at) => Ok(items[at].clone()),
                    None => missing(value, key),
                };
            }
        }
        Value::Range(range) => {
            if let Some(index) = key.as_int() {
                return match position(index, range.len()) {
                    Some(at) => Ok(range.get(at)),
                    None => missing(value, key),
                };
            }
        }
        Value::Str(text) | Value::Markup(text) => {
            if let Some(index) = key.as_int() {
                if !text.is_ascii() {
                    meter::scan(text.len())?;
                }
                let Some(at) = position(index, strings::length(text)) else {
                    return missing(value, key);
                };
                let found = strings::slice(text, at, at + 1);
                return Ok(match value {
                    Value::Markup(_) => Value::markup(found),
                    _ => Value::str(found),
                });
            }
        }
        _ => {}
    }
    let Value::Str(name) = key else {
        return missing(value, key);
    };
    match python_attribute(value, name)? {
        Some(found) => Ok(found),
        None if is_hidden(value, name) => Ok(unsafe_attribute(value, name)),
        None => missing(value, key),
    }
}

/// Resolves an index. Negative indices count from the end.
fn position(index: i128, length: usize) -> Option<usize> {
    let at = if index < 0 {
        index + length as i128
    } else {
        index
    };
    usize::try_from(at).ok().filter(|at| *at < length)
}

/// `value[start:stop:step]`.
pub fn slice(value: &Value, bounds: [Value; 3]) -> Result<Value> {
    let length = match value {
        Value::Undefined(undefined) => return Err(undefined.error()),
        Value::Str(text) | Value::Markup(text) => {
            meter::scan(text.len())?;
            strings::length(text)
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.len(),
        Value::Range(range) => range.len(),
        // Jinja2 fails here, except for constants, which become undefined values.
        other => {
            return Err(Error::refused(format!(
                "a slice of a value of type {}",
                other.type_name()
            )));
        }
    };
    if !bounds
        .iter()
        .all(|bound| matches!(bound, Value::None) || bound.as_int().is_some())
    {
        return Err(Error::runtime(
            "slice indices must be integers or None or have an __index__ method",
        ));
    }
    let Slice {
        start,
        stop,
        step,
        count,
    } = Slice::new(&bounds, length)?;
    match value {
        Value::Str(text) | Value::Markup(text) => {
            meter::reserve(text.len().min(count * 4))?;
            let start = usize::try_from(start).unwrap_or(0);
            let sliced = if step == 1 {
                strings::slice(text, start, start + count).to_owned()
            } else if step < 0 {
                let skipped = length.saturating_sub(1).saturating_sub(start);
                let chars = text.chars().rev().skip(skipped);
                let step = usize::try_from(-step).unwrap_or(usize::MAX);
                chars.step_by(step).take(count).collect()
            } else {
                let step = usize::try_from(step).unwrap_or(usize::MAX);
                text.chars().skip(start).step_by(step).take(count).collect()
            };
            Ok(match value {
                Value::Markup(_) => Value::markup(sliced),
                _ => Value::str(sliced),
            })
        }
        Value::Range(range) => Ok(Value::Range(Range {
            start: range.start + range.step * start,
            stop: range.start + range.step * stop,
            step: range.step * step,
        })),
        other => {
            let items = other.as_items().map(|items| &***items).unwrap_or(&[]);
            meter::reserve_many(count, size_of::<Value>())?;
            let at = |index: usize| (start + step * index as i128) as usize;
            let picked = (0..count).map(|index| items[at(index)].clone()).collect();
            match other {
                Value::List(_) => Value::list(picked),
                _ => Value::tuple(picked),
            }
        }
    }
}

/// Indices that a slice visits: `count` of them, from `start` on.
struct Slice {
    start: i128,
    stop: i128,
    step: i128,
    count: usize,
}

impl Slice {
    fn new(bounds: &[Value; 3], length: usize) -> Result<Self> {
        let length = length as i128;
        let step = bounds[2].as_int().unwrap_or(1).clamp(-(1 << 62), 1 << 62);
        if step == 0 {
            return Err(Error::runtime("slice step cannot be zero"));
        }
        let (low, high) = if step > 0 {
            (0, length)
        } else {
            (-1, length - 1)
        };
        let clamp = |bound: &Value, default: i128| match bound.as_int() {
            None => default,
            Some(index) if index < 0 => index.saturating_add(length).clamp(low, high),
            Some(index) => index.clamp(low, high),
        };
        let (start, stop) = if step > 0 {
            (clamp(&bounds[0], low), clamp(&bounds[1], high))
        } else {
            (clamp(&bounds[0], high), clamp(&bounds[1], low))
        };
        let span = if step > 0 { stop - start } else { start - stop };
        let count = if span <= 0 {
            0
        } else {
            (span - 1) / step.abs() + 1
        };
        Ok(Self {
            start,
            stop,
            step,
            count: count as usize,
        })
    }
}

/// Returns the start and end of `find(part, start, end)` in a text of `length` characters.
pub fn text_bounds(bounds: &[Option<Value>; 2], length: usize) -> Result<(usize, usize)> {
    let mut found = [0, length];
    for (found, bound) in found.iter_mut().zip(bounds) {
        let Some(bound) = bound.as_ref().filter(|bound| !matches!(bound, Value::None)) else {
            continue;
        };
        let index = to_index(bound)?;
        let index = if index < 0 {
            index.saturating_add(length as i128).max(0)
        } else {
            index
        };
        *found = usize::try_from(index).unwrap_or(usize::MAX);
    }
    Ok((found[0], found[1].min(length)))
}
