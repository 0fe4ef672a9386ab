//! The tests of Jinja2 (`value is name`).

use super::ast::BinaryOp;
use super::call::CallArguments;
use super::compare::{contains, equal, is_same, iterate, order};
use super::error::{Error, Kind, Result};
use super::value::{Value, View};
use super::{builtins, operators, repr, strings};
use std::cmp::Ordering;

/// Evaluates `value is name(arguments)`.
pub fn call(name: &str, value: &Value, arguments: &CallArguments) -> Result<bool> {
    match name {
        "divisibleby" | "sameas" | "in" | "==" | "eq" | "equalto" | "!=" | "ne" | ">" | "gt"
        | "greaterthan" | "ge" | ">=" | "<" | "lt" | "lessthan" | "<=" | "le" => {
            let parameter = match name {
                "divisibleby" => "num",
                "sameas" => "other",
                "in" => "seq",
                _ => "b",
            };
            let [other] = arguments.bind(name, [parameter], 1)?;
            with_other(name, value, &other.unwrap_or(Value::None))
        }
        _ => {
            arguments.bind::<0>(name, [], 0)?;
            alone(name, value)
        }
    }
}

fn with_other(name: &str, value: &Value, other: &Value) -> Result<bool> {
    let ordered = |op: &str, fits: &[Ordering]| {
        Ok(order(value, other, op)?.is_some_and(|order| fits.contains(&order)))
    };
    match name {
        "divisibleby" => remainder_is(value, other, 0),
        "sameas" => is_same(value, other).ok_or_else(|| {
            Error::refused(format!(
                "the test `sameas` on values of type {}",
                value.type_name()
            ))
        }),
        "in" => contains(other, value),
        "==" | "eq" | "equalto" => equal(value, other),
        "!=" | "ne" => equal(value, other).map(|equal| !equal),
        ">" | "gt" | "greaterthan" => ordered(">", &[Ordering::Greater]),
        "ge" | ">=" => ordered(">=", &[Ordering::Greater, Ordering::Equal]),
        "<" | "lt" | "lessthan" => ordered("<", &[Ordering::Less]),
        _ => ordered("<=", &[Ordering::Less, Ordering::Equal]),
    }
}

fn remainder_is(value: &Value, divisor: &Value, wanted: i128) -> Result<bool> {
    equal(
        &operators::binary(BinaryOp::Mod, value, divisor)?,
        &Value::Int(wanted),
    )
}

fn alone(name: &str, value: &Value) -> Result<bool> {
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => value.as_str().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => {
            let has_length = !matches!(value, Value::Undefined(_) | Value::View(..));
            (has_length && value.is_reversible()) || is_empty_undefined(value)?
        }
        "iterable" => matches!(value, Value::Loop(_)) || is_iterable(value)?,
        "callable" => matches!(
            value,
            Value::Macro(_)
                | Value::Loop(_)
                | Value::Joiner(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Undefined(_)
        ),
        "escaped" => matches!(value, Value::Markup(_)),
        "odd" => remainder_is(value, &Value::Int(2), 1)?,
        "even" => remainder_is(value, &Value::Int(2), 0)?,
        "lower" => strings::is_all(&repr::to_string(value)?, char::is_lowercase),
        "upper" => strings::is_all(&repr::to_string(value)?, char::is_uppercase),
        "filter" => known(value, &builtins::FILTERS)?,
        "test" => known(value, &builtins::TESTS)?,
        other => return Err(Error::runtime(format!("No test named '{other}'."))),
    })
}

fn known(value: &Value, names: &[&str]) -> Result<bool> {
    if matches!(
        value,
        Value::List(_) | Value::Dict(_) | Value::View(View::Keys | View::Items, _)
    ) {
        super::value::Key::of(value)?;
    }
    Ok(value.as_str().is_some_and(|name| names.contains(&name)))
}

/// True for an undefined value: it has a length and can be subscripted, even if only to fail.
fn is_empty_undefined(value: &Value) -> Result<bool> {
    Ok(matches!(value, Value::Undefined(_)))
}

fn is_iterable(value: &Value) -> Result<bool> {
    match iterate(value) {
        Ok(_) => Ok(true),
        Err(error) if error.kind == Kind::Runtime => Ok(false),
        Err(error) => Err(error),
    }
}
