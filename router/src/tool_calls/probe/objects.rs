//! Finds how a template writes calls that are JSON objects.

use serde_json::Value;

use super::conversation::{IDS, KEYS, NAMES};
use super::frame::Frame;
use crate::tool_calls::format::{Body, Calls, Spelled};

/// A call as JSON object, in a list or not.
pub fn find(one: &str, two: Option<&str>) -> Option<Calls> {
    let (first, end, value) = json_with(one, NAMES[0], 0)?;
    let (item, list) = match &value {
        Value::Array(items) => (items.first()?, true),
        item => (item, false),
    };
    let body = object_body(item)?;
    let text = one.get(first..end)?;
    let (item_start, item_end) = match list {
        true => json_object_in(text)?,
        false => (0, text.len()),
    };
    let between = two.and_then(|two| {
        let (_, end, _) = json_with(two, NAMES[0], 0)?;
        if list {
            let items = two.get(json_with(two, NAMES[0], 0)?.0..end)?;
            let (_, end) = json_object_in(items)?;
            let rest = items.get(end..)?;
            return rest.get(..json_object_in(rest)?.0);
        }
        let (next, _, _) = json_with(two, NAMES[1], end)?;
        two.get(end..next)
    });
    let frame = Frame {
        before_first: one.get(..first)?,
        between: between.filter(|_| !list),
        after_last: one.get(end..)?,
    };
    let mut calls = frame.calls(list, spelled(body, text.get(item_start..item_end)?));
    if list {
        calls.list_open = text.get(1..item_start)?.to_owned();
        calls.list_close = text.get(item_end..text.len() - 1)?.to_owned();
        calls.separator = between.unwrap_or_default().to_owned();
    }
    Some(calls)
}

/// Beginning and end of the first JSON object in `text`.
fn json_object_in(text: &str) -> Option<(usize, usize)> {
    let start = text.find('{')?;
    Some((start, value_end(text, start)?))
}

/// End of the JSON value that begins at `start`.
fn value_end(text: &str, start: usize) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_str(text.get(start..)?).into_iter::<Value>();
    values.next()?.ok()?;
    Some(start + values.byte_offset())
}

/// `body` with the spelling of its object, which is `text`. Without one if the parts are not found.
fn spelled(mut body: Body, text: &str) -> Body {
    if let Body::Object { spelling, .. } = &mut body {
        *spelling = spelling_of(text).unwrap_or_default();
    }
    body
}

fn spelling_of(text: &str) -> Option<Vec<Spelled>> {
    let name = text.find(&format!("\"{}\"", NAMES[0]))? + 1;
    let mut parts = vec![(name, name + NAMES[0].len(), Spelled::Name)];
    let brace = text.get(..text.find(KEYS[0])?)?.rfind('{')?;
    let in_string = text.get(..brace)?.ends_with('"');
    let arguments = brace - usize::from(in_string);
    parts.push((arguments, value_end(text, arguments)?, Spelled::Arguments));
    let numbers = text.match_indices("\"0\"");
    parts.extend(numbers.map(|(at, _)| (at + 1, at + 2, Spelled::Number)));
    let ids = text.match_indices(IDS[0]);
    parts.extend(ids.map(|(at, id)| (at, at + id.len(), Spelled::Id)));
    parts.sort_by_key(|(start, ..)| *start);
    let mut spelling = Vec::new();
    let mut written = 0;
    for (start, end, part) in parts {
        let before = text.get(written..start)?;
        if !before.is_empty() {
            spelling.push(Spelled::Text(before.to_owned()));
        }
        spelling.push(part);
        written = end;
    }
    spelling.push(Spelled::Text(text.get(written..)?.to_owned()));
    Some(spelling)
}

/// The first JSON value from `start` on that contains `name`: its beginning, end and value.
fn json_with(text: &str, name: &str, start: usize) -> Option<(usize, usize, Value)> {
    let tail = text.get(start..)?;
    let brackets = tail.match_indices(['{', '[']);
    brackets.map(|(at, _)| at).find_map(|at| {
        let mut values = serde_json::Deserializer::from_str(tail.get(at..)?).into_iter::<Value>();
        let value = values.next()?.ok()?;
        let end = at + values.byte_offset();
        contains(&value, name).then_some((start + at, start + end, value))
    })
}

fn contains(value: &Value, name: &str) -> bool {
    match value {
        Value::String(text) => text == name,
        Value::Array(items) => items.iter().any(|item| contains(item, name)),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key == name || contains(value, name)),
        _ => false,
    }
}

fn object_body(item: &Value) -> Option<Body> {
    let object = item.as_object()?;
    let is_arguments = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        value.get(KEYS[0]).is_some()
            || serde_json::from_str::<Value>(text).is_ok_and(|inner| inner.get(KEYS[0]).is_some())
    };
    if object.get(NAMES[0]).is_some_and(is_arguments) {
        return Some(Body::NameAsKey);
    }
    let key_of = |fits: &dyn Fn(&Value) -> bool| {
        let found = object.iter().find(|(_, value)| fits(value));
        found.map(|(key, _)| key.clone())
    };
    let id = key_of(&|value| value == IDS[0]).unwrap_or_default();
    if let Some(name) = key_of(&|value| value == NAMES[0]) {
        let arguments = key_of(&|value| is_arguments(value))?;
        let arguments_in_string = object.get(&arguments).is_some_and(Value::is_string);
        return Some(Body::Object {
            name,
            arguments,
            wrapper: String::new(),
            id,
            arguments_in_string,
            spelling: Vec::new(),
        });
    }
    let wrapper = key_of(&|value| value.is_object() && contains(value, NAMES[0]))?;
    match object_body(object.get(&wrapper)?)? {
        Body::Object {
            name,
            arguments,
            arguments_in_string,
            ..
        } => Some(Body::Object {
            name,
            arguments,
            wrapper,
            id,
            arguments_in_string,
            spelling: Vec::new(),
        }),
        _ => None,
    }
}
