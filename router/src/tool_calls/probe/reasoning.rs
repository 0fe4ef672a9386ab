//! Finds the markers of reasoning.

use serde_json::json;

use super::conversation::{CONTENT, NAMES, Prober, REASONING, answer, calls, thoughtful_answer};
use super::lexemes::common_suffix;
use crate::tool_calls::format::Reasoning;

/// Finds the markers where the template shows the reasoning of a past turn.
pub fn rendered(prober: &Prober<'_>) -> Option<Reasoning> {
    let plain = prober.turn(answer()).map(|turn| turn.body);
    let before_content = plain
        .as_deref()
        .and_then(|body| body.split_once(CONTENT))
        .map_or("", |(before, _)| before);
    let mut with_call = calls(&[json!({})]);
    if let Some(message) = with_call.as_object_mut() {
        message.insert("reasoning_content".into(), json!(REASONING));
        message.insert("content".into(), json!(CONTENT));
    }
    [thoughtful_answer(), with_call]
        .into_iter()
        .find_map(|message| {
            let turn = prober.turn(message)?;
            let header = prober.header();
            let whole = format!("{}{}", turn.anchor, turn.body);
            let (before, after) = whole.split_once(REASONING)?;
            // The header may open the reasoning, in part or as a whole.
            let open = before
                .rsplit_once(turn.anchor.trim())
                .map_or(before, |(_, open)| open);
            let open = match open.trim() {
                "" => opening_of(header)?,
                open => open,
            };
            let (between, _) = after.split_once(CONTENT)?;
            // A template may show the content after the call.
            let between = match between.contains(NAMES[0]) {
                true => super::lexemes::lexemes(between.trim()).first().copied()?,
                false => between,
            };
            let close = closing(between, before_content, open);
            (!close.is_empty()).then(|| markers(open, close))
        })
}

fn markers(open: &str, close: &str) -> Reasoning {
    Reasoning {
        open: open.trim().to_owned(),
        close: close.trim().to_owned(),
        anywhere: false,
    }
}

/// The marker between reasoning and content, without the one that opens the content.
fn closing<'a>(between: &'a str, before_content: &str, open: &str) -> &'a str {
    // A template may write empty reasoning before content that has none.
    let shared = match before_content.contains(open) {
        true => 0,
        false => common_suffix(between, before_content),
    };
    let close = between.get(..between.len() - shared).unwrap_or_default();
    match close.trim() {
        "" => between.trim(),
        close => close,
    }
}

/// Finds the markers where the template opens reasoning for the model: its last line is a tag.
pub fn opened(header: &str) -> Option<Reasoning> {
    let open = opening_of(header)?;
    let close = partner(open)?;
    Some(markers(open, &close))
}

/// The marker at the end of a header that opens reasoning.
fn opening_of(header: &str) -> Option<&str> {
    let open = super::lexemes::lexemes(header.trim_end()).pop()?;
    partner(open).map(|_| open)
}

/// Finds the markers where the template's source or the tokenizer's tokens name them. `tokens`: all added tokens.
pub fn named(source: &str, tokens: &[String]) -> Option<Reasoning> {
    let found = tokens.iter().find_map(|open| {
        let close = partner(open)?;
        let known = tokens.contains(&close) || source.contains(&close);
        known.then(|| markers(open, &close))
    });
    found.or_else(|| {
        super::lexemes::lexemes(source)
            .into_iter()
            .find_map(|open| {
                let close = partner(open)?;
                let known = source.contains(&close);
                known.then(|| markers(open, &close))
            })
    })
}

/// The marker that closes what `open` opens, if `open` has the form of a marker of reasoning.
fn partner(open: &str) -> Option<String> {
    let lower = open.to_lowercase();
    let about_reasoning = ["think", "reason", "thought"]
        .iter()
        .any(|word| lower.contains(word));
    if !about_reasoning || open.contains(['/', ' ', '\'', '"']) {
        return None;
    }
    for (from, to) in [
        ("START", "END"),
        ("begin", "end"),
        ("BEGIN", "END"),
        ("start", "end"),
    ] {
        if open.contains(from) {
            return Some(open.replace(from, to));
        }
    }
    for bracket in ["<|", "<", "["] {
        if let Some(rest) = open.strip_prefix(bracket)
            && (rest.ends_with('>') || rest.ends_with(']'))
        {
            return Some(format!("{bracket}/{rest}"));
        }
    }
    None
}
