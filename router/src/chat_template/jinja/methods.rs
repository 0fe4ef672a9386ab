//! Calls of methods.

use super::attributes;
use super::call::{CallArguments, given};
use super::compare::{equal, iterate, length};
use super::error::{Error, Result};
use super::str_methods;
use super::value::{Range, Value, View};

/// Evaluates `owner.name(arguments)` for a name that `attributes` knows as a method.
pub fn call(owner: &Value, name: &str, arguments: &CallArguments) -> Result<Value> {
    match owner {
        Value::Str(text) => str_methods::call(text, name, arguments),
        Value::Markup(_) => Err(Error::refused(format!(
            "the method `{name}` of an escaped string"
        ))),
        Value::Int(_) | Value::Bool(_) => int_method(owner, name, arguments),
        Value::Float(number) => float_method(*number, name, arguments),
        Value::List(_) | Value::Tuple(_) | Value::Group(_) => {
            sequence_method(owner, name, arguments)
        }
        Value::Range(range) => range_method(*range, name, arguments),
        Value::Dict(dict) => match name {
            "items" | "keys" | "values" => {
                arguments.positional::<0>(name, 0)?;
                let view = match name {
                    "items" => View::Items,
                    "keys" => View::Keys,
                    _ => View::Values,
                };
                Ok(Value::View(view, dict.clone()))
            }
            "get" => {
                let [key, default] = arguments.positional(name, 1)?;
                let found = match key.unwrap_or(Value::None) {
                    Value::Undefined(_) => None,
                    Value::Str(key) => dict.get_str(&key).cloned(),
                    key => dict.get(&key)?.cloned(),
                };
                Ok(found.or(default).unwrap_or(Value::None))
            }
            "copy" => {
                arguments.positional::<0>(name, 0)?;
                Value::dict(dict.entries().to_vec())
            }
            _ => from_keys(arguments),
        },
        Value::Function("dict") => from_keys(arguments),
        Value::Cycler(cycler) => {
            arguments.positional::<0>(name, 0)?;
            let mut position = cycler.position.borrow_mut();
            if name == "reset" {
                *position = 0;
                return Ok(Value::None);
            }
            let current = cycler.items.get(*position).cloned();
            *position = (*position + 1) % cycler.items.len().max(1);
            Ok(current.unwrap_or(Value::None))
        }
        other => Err(Error::refused(format!(
            "the method `{}.{name}`",
            other.type_name()
        ))),
    }
}

/// Evaluates `dict.fromkeys(keys, value)`.
fn from_keys(arguments: &CallArguments) -> Result<Value> {
    let [keys, value] = arguments.positional("fromkeys", 1)?;
    let value = value.unwrap_or(Value::None);
    let mut keys = iterate(&keys.unwrap_or(Value::None))?;
    let mut entries = Vec::new();
    while let Some(key) = keys.next()? {
        entries.push((key, value.clone()));
    }
    Value::dict(entries)
}

fn int_method(owner: &Value, name: &str, arguments: &CallArguments) -> Result<Value> {
    let number = owner.as_int().unwrap_or_default();
    if matches!(name, "from_bytes" | "to_bytes") {
        return Err(Error::refused(format!("the method `int.{name}`")));
    }
    arguments.positional::<0>(name, 0)?;
    let magnitude = number.unsigned_abs();
    Ok(match name {
        "bit_length" => Value::Int(i128::from(u128::BITS - magnitude.leading_zeros())),
        "bit_count" => Value::Int(i128::from(magnitude.count_ones())),
        "as_integer_ratio" => Value::tuple(vec![Value::Int(number), Value::Int(1)])?,
        _ => Value::Int(number),
    })
}

fn float_method(number: f64, name: &str, arguments: &CallArguments) -> Result<Value> {
    match name {
        "is_integer" => {
            arguments.positional::<0>(name, 0)?;
            Ok(Value::Bool(number.is_finite() && number.fract() == 0.0))
        }
        "conjugate" => {
            arguments.positional::<0>(name, 0)?;
            Ok(Value::Float(number))
        }
        _ => Err(Error::refused(format!("the method `float.{name}`"))),
    }
}

fn sequence_method(owner: &Value, name: &str, arguments: &CallArguments) -> Result<Value> {
    let items = owner.as_items().map(|items| &***items).unwrap_or(&[]);
    match name {
        "copy" => {
            arguments.positional::<0>(name, 0)?;
            Value::list(items.to_vec())
        }
        "count" => {
            let [wanted] = arguments.positional(name, 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let mut count = 0;
            for item in items {
                count += i128::from(equal(item, &wanted)?);
            }
            Ok(Value::Int(count))
        }
        _ => {
            let [wanted, start, stop] = arguments.positional(name, 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let (start, stop) = attributes::text_bounds(&[given(start), given(stop)], items.len())?;
            for (at, item) in items.iter().enumerate().take(stop).skip(start) {
                if equal(item, &wanted)? {
                    return Ok(Value::Int(at as i128));
                }
            }
            Err(Error::runtime(format!(
                "the value is not in the {}",
                owner.type_name()
            )))
        }
    }
}

fn range_method(range: Range, name: &str, arguments: &CallArguments) -> Result<Value> {
    let [wanted] = arguments.positional(name, 1)?;
    let wanted = match wanted.unwrap_or(Value::None) {
        Value::Float(number) => super::numbers::exact_int(number).unwrap_or(range.stop),
        other => match other.as_int() {
            Some(number) => number,
            None if name == "count" => return Ok(Value::Int(0)),
            None => return Err(Error::runtime("sequence.index(x): x not in sequence")),
        },
    };
    let length = length(&Value::Range(range))? as i128;
    let offset = wanted - range.start;
    let at = offset / range.step;
    let inside = offset % range.step == 0 && (0..length).contains(&at);
    match name {
        "count" => Ok(Value::Int(i128::from(inside))),
        _ if inside => Ok(Value::Int(at)),
        _ => Err(Error::runtime(format!("{wanted} is not in range"))),
    }
}
