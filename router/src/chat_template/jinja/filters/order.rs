//! Filters that order items or look for equal ones.

use std::cmp::Ordering;
use std::collections::HashSet;

use super::items::{Path, failed, flag, keep_lazily, next_lazily};
use super::nothing;
use crate::chat_template::jinja::call::{CallArguments, given, to_index};
use crate::chat_template::jinja::compare::{collect, equal, iterate, order, sort_by_keys};
use crate::chat_template::jinja::error::{Error, Result};
use crate::chat_template::jinja::meter;
use crate::chat_template::jinja::value::{Generator, Key, Value};

pub fn sort(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = ["reverse", "case_sensitive", "attribute"];
    let [reverse, case_sensitive, attribute] = arguments.bind("sort", names, 0)?;
    let case_sensitive = flag(&case_sensitive);
    let paths = match &attribute {
        Some(Value::Str(text)) if text.contains(',') => text
            .split(',')
            .map(|part| Path::new(Some(Value::str(part))))
            .collect::<Result<Vec<_>>>()?,
        _ => vec![Path::new(attribute.clone())?],
    };
    let mut keyed = Vec::new();
    for item in collect(value)? {
        let mut keys = Vec::with_capacity(paths.len());
        for path in &paths {
            keys.push(fold(path.follow(&item, None)?, case_sensitive)?);
        }
        keyed.push((Value::list(keys)?, item));
    }
    Value::list(sort_by_keys(keyed, reverse_flag(reverse)?)?)
}

pub fn dict_sort(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = arguments.bind("dictsort", names, 0)?;
    let by_value = match by.as_ref().map(|by| by.as_str().unwrap_or_default()) {
        None | Some("key") => false,
        Some("value") => true,
        _ => {
            return Err(Error::runtime(
                "You can only sort by either \"key\" or \"value\"",
            ));
        }
    };
    let dict = match value {
        Value::Dict(dict) => dict,
        Value::Undefined(undefined) => return Err(undefined.error()),
        other => {
            return Err(Error::runtime(format!(
                "'{}' object has no attribute 'items'",
                other.type_name()
            )));
        }
    };
    let mut keyed = Vec::new();
    for (key, value) in dict.entries() {
        let by = if by_value { value } else { key };
        let by = fold(by.clone(), flag(&case_sensitive))?;
        keyed.push((by, Value::tuple(vec![key.clone(), value.clone()])?));
    }
    Value::list(sort_by_keys(keyed, reverse_flag(reverse)?)?)
}

pub fn unique(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [case_sensitive, attribute] =
        arguments.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let path = Path::new(attribute)?;
    let mut seen = HashSet::new();
    let mut results = Vec::new();
    let mut iter = match iterate(value) {
        Ok(iter) => iter,
        Err(error) => return Ok(failed(error)),
    };
    while let Some(item) = next_lazily(&mut iter, &mut results)? {
        let key = path
            .follow(&item, None)
            .and_then(|key| Key::of(&fold(key, flag(&case_sensitive))?));
        if !keep_lazily(item, key.map(|key| seen.insert(key)), &mut results)? {
            break;
        }
    }
    Ok(Generator::value("generator", results))
}

pub fn min_or_max(name: &str, value: &Value, arguments: &CallArguments) -> Result<Value> {
    let [case_sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
    let path = Path::new(attribute)?;
    let wanted = if name == "min" {
        Ordering::Less
    } else {
        Ordering::Greater
    };
    let mut best: Option<(Value, Value)> = None;
    let mut iter = iterate(value)?;
    while let Some(item) = iter.next()? {
        let key = fold(path.follow(&item, None)?, flag(&case_sensitive))?;
        let better = match &best {
            None => true,
            Some((best, _)) => {
                let op = if name == "min" { "<" } else { ">" };
                order(&key, best, op)? == Some(wanted)
            }
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(
        || nothing("No aggregated item, sequence was empty."),
        |(_, item)| item,
    ))
}

pub fn group_by(value: &Value, arguments: &CallArguments) -> Result<Value> {
    let names = ["attribute", "default", "case_sensitive"];
    let [attribute, default, case_sensitive] = arguments.bind("groupby", names, 1)?;
    let path = Path::new(attribute)?;
    let default = given(default);
    let case_sensitive = flag(&case_sensitive);
    let mut keyed = Vec::new();
    for item in collect(value)? {
        let key = fold(path.follow(&item, default.as_ref())?, case_sensitive)?;
        keyed.push((key.clone(), Value::tuple(vec![key, item])?));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sort_by_keys(keyed, false)? {
        let Some([key, item]) = pair.as_items().map(|items| &***items) else {
            continue;
        };
        match groups.last_mut() {
            Some((last, items)) if equal(last, key)? => items.push(item.clone()),
            _ => groups.push((key.clone(), vec![item.clone()])),
        }
    }
    let mut results = Vec::new();
    for (_, items) in groups {
        let key = path.follow(&items[0], default.as_ref())?;
        results.push(Value::group(vec![key, Value::list(items)?])?);
    }
    Value::list(results)
}

/// Python's `sorted` takes an integer for `reverse`.
fn reverse_flag(value: Option<Value>) -> Result<bool> {
    value.map_or(Ok(false), |value| Ok(to_index(&value)? != 0))
}

/// Converts strings to lower case if case does not count.
fn fold(value: Value, case_sensitive: bool) -> Result<Value> {
    match &value {
        Value::Str(text) if !case_sensitive => {
            meter::reserve(text.len())?;
            Ok(Value::str(text.to_lowercase()))
        }
        _ => Ok(value),
    }
}
