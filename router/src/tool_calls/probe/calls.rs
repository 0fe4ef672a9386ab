//! Finds how a template writes calls.

use serde_json::{Value, json};

use super::arguments::{self, ArgumentsFound};
use super::conversation::{IDS, KEYS, NAMES, Prober, answer, arguments as given, calls};
use super::frame::Frame;
use super::lexemes::common_suffix;
use super::objects;
use crate::tool_calls::format::{Body, Calls, Reasoning};

/// Finds the format of calls; `None` if the template does not show calls, or not in a form that is known.
pub fn find(prober: &Prober<'_>, reasoning: Option<&Reasoning>) -> Option<Calls> {
    let body = |message: Value| {
        let body = prober.turn(message)?.body;
        Some(without_reasoning(&body, reasoning))
    };
    let ending = body(answer()).unwrap_or_default();
    let ending = ending
        .split_once(super::conversation::CONTENT)
        .map_or("", |(_, ending)| ending);
    let whole = body(calls(&[given(1)]))?;
    let one = cut_ending(&whole, ending);
    let after = whole.get(one.len()..).unwrap_or_default();
    let after = after.get(..after.len() - after.trim_start().len());
    let after = after.unwrap_or_default();
    let two = body(calls(&[
        given(1),
        json!({KEYS[1]: super::conversation::VALUES[1]}),
    ]));
    let two = two.as_deref().map(|two| cut_ending(two, ending));
    let found = objects::find(one, two).or_else(|| {
        let number = body(calls(&[super::conversation::number()]));
        let pair = body(calls(&[given(2)]));
        let nested = body(calls(&[super::conversation::nested()]));
        let probes = arguments::Probes {
            one,
            pair: pair.as_deref().map(|pair| cut_ending(pair, ending)),
            number: number.as_deref(),
            nested: nested.as_deref(),
        };
        named(&probes, two)
    })?;
    Some(Calls {
        after: after.to_owned(),
        ..found
    })
}

/// Markers around content, as a turn without calls has them.
pub fn content_markers(
    prober: &Prober<'_>,
    reasoning: Option<&Reasoning>,
    calls: bool,
) -> Vec<String> {
    let Some(turn) = prober.turn(answer()) else {
        return Vec::new();
    };
    let body = without_reasoning(&turn.body, reasoning);
    let Some((before, after)) = body.split_once(super::conversation::CONTENT) else {
        return Vec::new();
    };
    let ending = calls
        .then(|| prober.turn(super::conversation::calls(&[given(1)])))
        .flatten()
        .map_or(String::new(), |turn| turn.body);
    let shared = common_suffix(after, &ending);
    let after = match ending.is_empty() {
        true => "",
        false => after.get(..after.len() - shared).unwrap_or_default(),
    };
    let is_marker =
        |text: &&str| text.contains(['<', '>', '[', '|']) && !text.contains(char::is_whitespace);
    let markers = [before.trim(), after.trim()].into_iter();
    markers.filter(is_marker).map(str::to_owned).collect()
}

/// Cuts reasoning, perhaps empty, off the beginning of a turn.
fn without_reasoning(body: &str, reasoning: Option<&Reasoning>) -> String {
    let Some(reasoning) = reasoning else {
        return body.to_owned();
    };
    let trimmed = body.trim_start();
    let after_open = trimmed.strip_prefix(reasoning.open.as_str());
    let closed = after_open
        .unwrap_or(trimmed)
        .split_once(reasoning.close.as_str());
    match (after_open, closed) {
        (Some(_), Some((_, rest))) => rest.to_owned(),
        (None, Some((inside, rest))) if inside.trim().is_empty() => rest.to_owned(),
        _ => body.to_owned(),
    }
}

/// Cuts off what ends a turn without calls too.
fn cut_ending<'t>(body: &'t str, ending: &str) -> &'t str {
    let shared = common_suffix(body, ending);
    body.get(..body.len() - shared).unwrap_or_default()
}

/// Text before the name in an identifier that holds it.
const NAME_PREFIX: &str = "functions.";

/// A call whose name stands alone.
fn named(probes: &arguments::Probes<'_>, two: Option<&str>) -> Option<Calls> {
    let one = probes.one;
    let numbered = !one.contains(NAMES[0]) && one.contains(IDS[0]);
    let words = if numbered { IDS } else { NAMES };
    let (before, rest) = one.split_once(words[0])?;
    let found: ArgumentsFound = arguments::find(probes, words[0])?;
    let end = found.arguments_end(rest)?;
    let (mut id_open, mut name_open) = (String::new(), String::new());
    let mut name_close = found.name_close.clone();
    // The template may make the identifier itself.
    let made = before
        .strip_suffix(NAME_PREFIX)
        .zip(name_close.strip_prefix(":0"));
    let (before, numbered, name_close_made) = match made {
        Some((before, close)) => (before, true, Some(close.to_owned())),
        None => (before, numbered, None),
    };
    let is_made = name_close_made.is_some();
    name_close = name_close_made.unwrap_or(name_close);
    if let Some((open, close)) = found.name_close.split_once(IDS[0]) {
        id_open = open.to_owned();
        name_close = close.to_owned();
    }
    let mut before_first = before;
    if let Some((open, between)) = before.split_once(IDS[0]).filter(|_| !numbered) {
        before_first = open;
        name_open = between.to_owned();
    }
    let frame = Frame {
        before_first,
        between: two.and_then(|two| {
            let (_, rest) = two.split_once(words[0])?;
            let end = found.arguments_end(rest)?;
            let start_of_next = rest.find(match name_open.is_empty() {
                true => words[1],
                false => IDS[1],
            })?;
            let between = rest.get(end..start_of_next)?;
            Some(match is_made {
                true => between.strip_suffix(NAME_PREFIX)?,
                false => between,
            })
        }),
        after_last: rest.get(end..)?,
    };
    let body = Body::Named {
        name_open,
        name_close,
        id_open,
        numbered,
        arguments: found.arguments,
    };
    let mut calls = frame.calls(false, body);
    if calls.section_open.trim_end().ends_with('[')
        && calls.section_close.trim_start().starts_with(']')
    {
        calls.list = true;
        let open = calls.section_open.trim_end();
        calls.section_open = open.strip_suffix('[').unwrap_or(open).to_owned();
        let close = calls.section_close.trim_start();
        calls.section_close = close.strip_prefix(']').unwrap_or(close).to_owned();
    }
    Some(calls)
}
