//! JSON schemas made exact: what the library would enforce only in part is written out, or refused with its place.

use serde_json::{Map, Number, Value, json};

use super::patterns;

/// Key under which llguidance reads a schema's options.
pub const OPTIONS: &str = "x-guidance";

/// Keywords whose value is an object of schemas under names of its own.
pub const OF_MAP: [&str; 5] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "$defs",
    "definitions",
];

/// Keywords whose value is data.
pub const OF_DATA: [&str; 5] = ["const", "enum", "default", "examples", OPTIONS];

/// Calls `visit` with every schema inside `value` and its path. Any object may be one, as `$ref` leads anywhere.
fn visit<E>(
    value: &Value,
    path: &str,
    visitor: &mut impl FnMut(&Map<String, Value>, &str) -> Result<(), E>,
) -> Result<(), E> {
    match value {
        Value::Object(schema) => {
            visitor(schema, path)?;
            for (key, part) in schema {
                let path = format!("{path}.{key}");
                match part {
                    Value::Object(named) if OF_MAP.contains(&key.as_str()) => {
                        for (name, part) in named {
                            visit(part, &format!("{path}.{name}"), visitor)?;
                        }
                    }
                    _ if OF_DATA.contains(&key.as_str()) => {}
                    part => visit(part, &path, visitor)?,
                }
            }
        }
        Value::Array(parts) => {
            for (index, part) in parts.iter().enumerate() {
                visit(part, &format!("{path}[{index}]"), visitor)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Calls `change` with every schema inside `value`, the outer ones last.
fn change(value: &mut Value, changer: &impl Fn(&mut Map<String, Value>)) {
    match value {
        Value::Object(schema) => {
            for (key, part) in schema.iter_mut() {
                match part {
                    Value::Object(named) if OF_MAP.contains(&key.as_str()) => {
                        named.values_mut().for_each(|part| change(part, changer));
                    }
                    _ if OF_DATA.contains(&key.as_str()) => {}
                    part => change(part, changer),
                }
            }
            changer(schema);
        }
        Value::Array(parts) => parts.iter_mut().for_each(|part| change(part, changer)),
        _ => {}
    }
}

/// A day of the proleptic Gregorian calendar (RFC 3339, appendix C).
const DATE: &str = concat!(
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
);

/// A time of RFC 3339. A leap second is written in UTC, where it is the last second of a day: in other zones its hour
/// and minute depend on the offset.
const TIME: &str = concat!(
    r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
    r"|23:59:60(?:\.[0-9]+)?(?:[zZ]|[+-]00:00))"
);

/// Regular expression of a format of which the library allows more than the format does.
fn exact_format(name: &str) -> Option<String> {
    match name {
        "date" => Some(format!("^{DATE}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{DATE}[tT]{TIME}$")),
        _ => None,
    }
}

/// The schema with formats written out and patterns in the library's syntax.
pub fn tightened(mut schema: Value) -> Value {
    change(&mut schema, &|schema| {
        translate_patterns(schema);
        let format = schema.get("format").and_then(Value::as_str);
        let Some(pattern) = format.and_then(exact_format) else {
            return;
        };
        if !schema.contains_key("pattern") {
            schema.insert("pattern".to_owned(), pattern.into());
            return;
        }
        let both = schema.entry("allOf").or_insert_with(|| json!([]));
        if let Value::Array(both) = both {
            both.push(json!({"pattern": pattern}));
        }
    });
    schema
}

fn translate_patterns(schema: &mut Map<String, Value>) {
    if let Some(Value::String(pattern)) = schema.get_mut("pattern") {
        *pattern = patterns::translated(pattern);
    }
    if let Some(Value::Object(named)) = schema.get_mut("patternProperties") {
        let parts = std::mem::take(named).into_iter();
        named.extend(parts.map(|(pattern, part)| (patterns::translated(&pattern), part)));
    }
}

/// True if an object may have keys beside those that a schema names. Such a key must not spell a named one with
/// escapes, for which the named one's schema would not count.
pub fn leaves_keys_free(schema: &Value) -> bool {
    let names = ["properties", "required", "patternProperties"];
    let free = visit(schema, "", &mut |schema, _| {
        let is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
        let has_names = names.iter().any(|name| schema.contains_key(*name));
        let is_free = has_names && (!is_closed || schema.contains_key("patternProperties"));
        if is_free { Err(()) } else { Ok(()) }
    });
    free.is_err()
}

/// Refuses what the library would enforce inexactly without saying so. The error is the place in the schema, and the
/// reason.
pub fn check(schema: &Value) -> Result<(), (String, String)> {
    let mut divisors = Vec::new();
    let mut combines = false;
    let keys_are_free = leaves_keys_free(schema);
    visit(schema, "", &mut |schema, path| {
        combines |= ["allOf", "anyOf", "oneOf", "$ref"]
            .iter()
            .any(|key| schema.contains_key(*key));
        divisors.extend(schema.get("multipleOf").and_then(Value::as_f64));
        check_draft(schema)
            .and_then(|()| check_numbers(schema))
            .and_then(|()| check_min_properties(schema))
            .and_then(|()| match keys_are_free {
                true => check_control_characters(schema),
                false => Ok(()),
            })
            .map_err(|(key, reason)| (format!("{path}.{key}"), reason))
    })?;
    if combines && !is_small(&divisors) {
        let reason = "the least common multiple of the schema's `multipleOf` is too large";
        return Err((String::new(), reason.to_owned()));
    }
    Ok(())
}

/// A keyword, and the reason for which its value is refused.
type Fault = (&'static str, String);

fn check_draft(schema: &Map<String, Value>) -> Result<(), Fault> {
    let too_old = |name: &str| (0..=3).any(|draft| name.contains(&format!("/draft-0{draft}/")));
    match schema.get("$schema") {
        Some(Value::String(name)) if too_old(name) => Err((
            "$schema",
            "drafts before draft 4 are not supported".to_owned(),
        )),
        Some(Value::String(_) | Value::Object(_) | Value::Bool(_)) | None => Ok(()),
        Some(_) => Err(("$schema", "it must be a text".to_owned())),
    }
}

/// Numbers below this one are exact as doubles, and so is their successor.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Limit of the library's integers.
const LARGEST: f64 = 9_223_372_036_854_775_807.0;

fn check_numbers(schema: &Map<String, Value>) -> Result<(), Fault> {
    let number = |key: &str| schema.get(key).and_then(Value::as_number);
    let fits = |key: &str| -> bool {
        let Some(bound) = number(key) else {
            return true;
        };
        let value = bound.as_f64().unwrap_or(f64::NAN);
        match key {
            // Above the largest integer, the library's bound is the largest integer itself.
            "maximum" => value >= LARGEST || is_exact(bound) && value > -LARGEST,
            "minimum" => is_exact(bound) && value.abs() < LARGEST,
            _ => value.abs() < EXACT,
        }
    };
    for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
        if !fits(key) {
            let reason = "the number is too large to be compared exactly; write a smaller one";
            return Err((key, reason.to_owned()));
        }
    }
    for key in ["const", "enum"] {
        if schema.get(key).is_some_and(|value| !is_exact_data(value)) {
            let reason = "a number in it is too large to be written exactly; write it as a text";
            return Err((key, reason.to_owned()));
        }
    }
    Ok(())
}

fn is_exact(number: &Number) -> bool {
    let integer = number.as_i128();
    match (integer, number.as_f64()) {
        (Some(integer), Some(value)) => value as i128 == integer,
        (None, Some(value)) => value.is_finite(),
        (_, None) => false,
    }
}

fn is_exact_data(value: &Value) -> bool {
    match value {
        Value::Number(number) => is_exact(number),
        Value::Array(items) => items.iter().all(is_exact_data),
        Value::Object(members) => members.values().all(is_exact_data),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

fn check_min_properties(schema: &Map<String, Value>) -> Result<(), Fault> {
    let least = schema.get("minProperties").and_then(Value::as_u64);
    let required = schema.get("required").and_then(Value::as_array);
    let named = required.map_or(0, Vec::len) as u64;
    if least.unwrap_or(0) > named + 1 {
        let reason = "it may exceed the number of `required` by one only, since a free key may be written twice";
        return Err(("minProperties", reason.to_owned()));
    }
    Ok(())
}

/// Refuses control characters beside free keys, where the library has no escape to write them with.
fn check_control_characters(schema: &Map<String, Value>) -> Result<(), Fault> {
    let has_pattern = |pattern: &Value| {
        let pattern = pattern.as_str();
        pattern.is_some_and(patterns::names_control_characters)
    };
    let named = |key: &'static str| {
        let value = schema.get(key)?;
        let is_at_fault = match key {
            "pattern" => has_pattern(value),
            "patternProperties" => value.as_object().is_some_and(|named| {
                named
                    .keys()
                    .any(|pattern| patterns::names_control_characters(pattern))
            }),
            _ => has_control_characters(value),
        };
        is_at_fault.then_some(key)
    };
    match ["const", "enum", "pattern", "patternProperties"]
        .into_iter()
        .find_map(named)
    {
        None => Ok(()),
        Some(key) => Err((
            key,
            "control characters are not supported in a schema whose objects may have further keys; write \
             `additionalProperties: false`"
                .to_owned(),
        )),
    }
}

fn has_control_characters(value: &Value) -> bool {
    match value {
        Value::String(text) => text
            .chars()
            .any(|c| c.is_ascii_control() && !"\u{8}\t\n\u{c}\r".contains(c)),
        Value::Array(items) => items.iter().any(has_control_characters),
        Value::Object(members) => members.iter().any(|(name, value)| {
            has_control_characters(value) || has_control_characters(&Value::from(name.as_str()))
        }),
        _ => false,
    }
}

/// True if the library can compute a number that all of these divide.
fn is_small(divisors: &[f64]) -> bool {
    let limit = f64::from(u32::MAX);
    let exponent = divisors.iter().map(|divisor| decimals(*divisor)).max();
    let scale = 10_f64.powi(exponent.unwrap_or(0));
    let mut seen: Vec<f64> = Vec::new();
    for divisor in divisors
        .iter()
        .map(|divisor| (divisor.abs() * scale).round())
    {
        if !seen.contains(&divisor) {
            seen.push(divisor);
        }
    }
    seen.len() < 2 || seen.iter().product::<f64>() <= limit
}

/// Number of digits behind the decimal point.
fn decimals(value: f64) -> i32 {
    (0..20)
        .find(|digits| (value * 10_f64.powi(*digits)).fract() == 0.0)
        .unwrap_or(20)
}

#[cfg(test)]
#[path = "tightened_tests.rs"]
mod tests;
