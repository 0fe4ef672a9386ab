//! Filters of lists and other iterables.

use super::items::{Path, failed, is_fatal, keep_lazily, next_lazily};
use super::{nothing, order};
use crate::chat_template::jinja::call::{CallArguments, given, to_index, to_text};
use crate::chat_template::jinja::compare::{collect, equal, iterate};
use crate::chat_template::jinja::error::{Error, Kind, Result};
use crate::chat_template::jinja::value::{Generator, Value};
use crate::chat_template::jinja::{is_tests, meter, operators, repr};

pub fn call(name: &str, value: &Value, arguments: &CallArguments) -> Result<Value> {
    match name {
        "first" => {
            arguments.bind::<0>(name, [], 0)?;
            let first = iterate(value)?.next()?;
            Ok(first.unwrap_or_else(|| nothing("No first item, sequence was empty.")))
        }
        "last" => {
            arguments.bind::<0>(name, [], 0)?;
            let last = reversed(value)?.into_iter().next();
            Ok(last.unwrap_or_else(|| nothing("No last item, sequence was empty.")))
        }
        "reverse" => {
            arguments.bind::<0>(name, [], 0)?;
            reverse(value)
        }
        "join" => join(value, arguments),
        "map" => map(value, arguments),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, arguments),
        "sort" => order::sort(value, arguments),
        "dictsort" => order::dict_sort(value, arguments),
        "unique" => order::unique(value, arguments),
        "min" | "max" => order::min_or_max(name, value, arguments),
        "sum" => sum(value, arguments),
        "groupby" => order::group_by(value, arguments),
        "batch" => batch(value, arguments),
        _ => slice(value, arguments),
    }
}

/// Evaluates `list(reversed(value))`.
fn reversed(value: &Value) -> Result<Vec<Value>> {
    if !value.is_reversible() {
        return Err(Error::runtime(format!(
            "'{}' object is not reversible",
            value.type_name()
        )));
    }
    let mut items = collect(value)?;
    items.reverse();
    Ok(items)
}

fn reverse(value: &Value) -> Result<Value> {
    match value {
        Value::Str(text) => {
            meter::reserve(text.len())?;
            Ok(Value::str(text.chars().rev().collect::<String>()))
        }
        Value::Markup(_) => Err(Error::refused("the filter `reverse` on an escaped string")),
        Value::Generator(_) => {
            let mut items = collect(value)?;
            items.reverse();
            Value::list(items)
        }
        other => match reversed(other) {
            Ok(items) => Ok(Generator::value("reversed", items.into_iter().map(Ok))),
            Err(error) if error.kind == Kind::Runtime => {
                Err(Error::runtime("argument must be iterable"))
            }
            Err(error) => Err(error),
        },
    }
}

fn join(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [separator, attribute] = arguments.bind("join", ["d", "attribute"], 0)?;
    let separator = match separator {
        Some(separator) => repr::to_string(&separator)?,
        None => String::new(),
    };
    let path = Path::new(attribute)?;
    let mut out = repr::Out::default();
    let mut iter = iterate(value)?;
    let mut first = true;
    while let Some(item) = iter.next()? {
        if !first {
            out.push(&separator)?;
        }
        first = false;
        repr::write_str(&path.follow(&item, None)?, &mut out)?;
    }
    Ok(Value::str(out.take()))
}

fn map(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let mut results = Vec::new();
    if !value.is_true() {
        return Ok(Generator::value("generator", results));
    }
    let by_attribute = arguments.positional.is_empty()
        && arguments
            .named
            .iter()
            .any(|(name, _)| &**name == "attribute");
    let mut path = Path::Whole;
    let mut default = None;
    let mut filter = Value::None;
    let mut rest = CallArguments::default();
    if by_attribute {
        let [attribute, given_default] = arguments.bind("map", ["attribute", "default"], 0)?;
        path = Path::new(attribute)?;
        default = given(given_default);
    } else {
        let Some((name, more)) = arguments.positional.split_first() else {
            return Ok(failed(Error::runtime("map requires a filter argument")));
        };
        filter = name.clone();
        rest.positional = more.to_vec();
        rest.named = arguments.named.clone();
    }
    let mut iter = match iterate(value) {
        Ok(iter) => iter,
        Err(error) => return Ok(failed(error)),
    };
    while let Some(item) = next_lazily(&mut iter, &mut results)? {
        let result = if by_attribute {
            path.follow(&item, default.as_ref())
        } else {
            to_text(&filter, "the filter's name").and_then(|name| super::call(name, &item, &rest))
        };
        let ends = is_fatal(&result)?;
        results.push(result);
        if ends {
            break;
        }
    }
    Ok(Generator::value("generator", results))
}

fn select(name: &str, value: &Value, arguments: &CallArguments) -> Result<Value> {
    let mut results = Vec::new();
    if !value.is_true() {
        return Ok(Generator::value("generator", results));
    }
    let mut positional = arguments.positional.as_slice();
    let mut path = Path::Whole;
    if name.ends_with("attr") {
        let Some((attribute, rest)) = positional.split_first() else {
            return Ok(failed(Error::runtime(
                "Missing parameter for attribute name",
            )));
        };
        path = Path::new(Some(attribute.clone()))?;
        positional = rest;
    }
    let (test, rest) = match positional.split_first() {
        Some((test, rest)) => (Some(test.clone()), rest.to_vec()),
        None => (None, Vec::new()),
    };
    let rest = CallArguments {
        positional: rest,
        named: arguments.named.clone(),
    };
    let wanted = name.starts_with("select");
    let mut iter = match iterate(value) {
        Ok(iter) => iter,
        Err(error) => return Ok(failed(error)),
    };
    while let Some(item) = next_lazily(&mut iter, &mut results)? {
        let fits = path.follow(&item, None).and_then(|found| match &test {
            None => Ok(found.is_true()),
            Some(test) => {
                let test = to_text(test, "the test's name")?;
                is_tests::call(test, &found, &rest)
            }
        });
        if !keep_lazily(item, fits.map(|fits| fits == wanted), &mut results)? {
            break;
        }
    }
    Ok(Generator::value("generator", results))
}

fn sum(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [attribute, start] = arguments.bind("sum", ["attribute", "start"], 0)?;
    let path = Path::new(attribute)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if matches!(total, Value::Str(_) | Value::Markup(_)) {
        return Err(Error::runtime(
            "sum() can't sum strings [use ''.join(seq) instead]",
        ));
    }
    let mut iter = iterate(value)?;
    while let Some(item) = iter.next()? {
        let item = path.follow(&item, None)?;
        total = operators::binary(
            crate::chat_template::jinja::ast::BinaryOp::Add,
            &total,
            &item,
        )?;
    }
    Ok(total)
}

fn batch(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [count, fill] = arguments.bind("batch", ["linecount", "fill_with"], 1)?;
    let count = count.unwrap_or(Value::None);
    let fill = given(fill);
    let fits = |length: usize| -> Result<bool> { equal(&Value::Int(length as i128), &count) };
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut iter = match iterate(value) {
        Ok(iter) => iter,
        Err(error) => return Ok(failed(error)),
    };
    while let Some(item) = next_lazily(&mut iter, &mut rows)? {
        if fits(row.len())? {
            rows.push(Value::list(std::mem::take(&mut row)));
        }
        row.push(item);
    }
    if !row.is_empty() {
        if let Some(fill) = fill {
            let missing = match to_index(&count) {
                Ok(count) => (count - row.len() as i128).max(0),
                Err(error) => {
                    rows.push(Err(error));
                    return Ok(Generator::value("generator", rows));
                }
            };
            let missing = usize::try_from(missing).unwrap_or(usize::MAX);
            meter::reserve_many(missing, size_of::<Value>())?;
            row.extend(std::iter::repeat_n(fill, missing));
        }
        rows.push(Value::list(row));
    }
    Ok(Generator::value("generator", rows))
}

fn slice(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [slices, fill] = arguments.bind("slice", ["slices", "fill_with"], 1)?;
    let fill = given(fill);
    let items = match collect(value) {
        Ok(items) => items,
        Err(error) if error.kind == Kind::Runtime => return Ok(failed(error)),
        Err(error) => return Err(error),
    };
    let slices = match to_index(&slices.unwrap_or(Value::None)) {
        Ok(slices) => slices,
        Err(error) => return Ok(failed(error)),
    };
    if slices == 0 {
        return Ok(failed(Error::runtime("integer division or modulo by zero")));
    }
    let slices = usize::try_from(slices.max(0)).unwrap_or(usize::MAX);
    meter::reserve_many(slices, 128)?;
    let (per_slice, extra) = (items.len() / slices.max(1), items.len() % slices.max(1));
    let mut columns = Vec::new();
    let mut start = 0;
    for number in 0..slices {
        let end = start + per_slice + usize::from(number < extra);
        let mut column = items[start..end].to_vec();
        if let Some(fill) = &fill
            && number >= extra
        {
            column.push(fill.clone());
        }
        columns.push(Value::list(column));
        start = end;
    }
    Ok(Generator::value("generator", columns))
}
