//! Tagged arguments, which become JSON while they are written.

use super::begin::TagMarkers;
use super::coerce;
use super::cursor::{Cursor, Doubt, Found, Marker, Try, find};
use super::json::escaped;
use super::literal::Status;
use crate::tool_calls::plan::Tool;

/// Reads the arguments of one call.
#[derive(Debug)]
pub struct Tagged {
    started: bool,
    value: Option<TaggedValue>,
}

/// A value that is being read.
#[derive(Debug)]
struct TaggedValue {
    /// Declared types. Empty: a string.
    types: Vec<String>,
    /// Text of a value that is no string, until it is complete.
    text: String,
    is_text: bool,
    /// JSON that is copied as it is.
    is_json: bool,
    /// True until the white space before the value has been read.
    at_start: bool,
}

impl Tagged {
    pub fn new() -> Self {
        Self {
            started: false,
            value: None,
        }
    }

    /// Reads `text` and appends JSON to `out`. Returns the number of bytes read. Done at the marker `close`, which is
    /// not read.
    pub fn advance(
        &mut self,
        (text, end): (&str, bool),
        tags: &TagMarkers,
        close: &Marker,
        tool: Option<&Tool>,
        out: &mut String,
    ) -> (usize, Status) {
        let mut cursor = Cursor::new(text, end);
        let mut read = 0;
        loop {
            let step = match &mut self.value {
                Some(value) => match value.advance(&mut cursor, tags, out) {
                    Ok(complete) => {
                        if complete {
                            self.value = None;
                        }
                        Ok(None)
                    }
                    Err(doubt) => Err(doubt),
                },
                None => self.key(&mut cursor, tags, close, tool, out),
            };
            match step {
                Ok(None) => read = cursor.at,
                Ok(Some(status)) => return (read, status),
                Err(Doubt::More) => return (read, Status::Going),
                Err(Doubt::No)
                    if end && text.get(read..).is_none_or(|rest| rest.trim().is_empty()) =>
                {
                    return (read, Status::Going);
                }
                Err(Doubt::No) => {
                    self.end(out);
                    return (read, Status::Broken);
                }
            }
        }
    }

    fn end(&mut self, out: &mut String) {
        out.push_str(if self.started { "}" } else { "{}" });
    }

    /// Reads up to a value, or to the end of the arguments.
    fn key(
        &mut self,
        cursor: &mut Cursor<'_>,
        tags: &TagMarkers,
        close: &Marker,
        tool: Option<&Tool>,
        out: &mut String,
    ) -> Try<Option<Status>> {
        cursor.space();
        cursor.peek()?;
        if !cursor.accept(&tags.open)? {
            let rest = cursor.rest();
            let closes = match close.fit_some(rest, cursor.is_last()) {
                Ok(_) => true,
                Err(Doubt::More) => return Err(Doubt::More),
                Err(Doubt::No) => close.is_empty(),
            };
            if !closes {
                return Err(Doubt::No);
            }
            self.end(out);
            return Ok(Some(Status::Done));
        }
        let key = cursor.until(&tags.key_close)?.trim();
        if key.is_empty() || key.contains(['\n', '<', '>']) {
            return Err(Doubt::No);
        }
        let schema = tool.and_then(|tool| tool.parameters.get("properties")?.get(key));
        let mut types: Vec<String> = schema
            .map(coerce::types)
            .unwrap_or_default()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let mut is_json = false;
        if !tags.string_mark.is_empty() || !tags.json_mark.is_empty() {
            if cursor.accept(&tags.string_mark)? && !tags.string_mark.is_empty() {
                types.clear();
            } else if !tags.json_mark.is_empty() && cursor.accept(&tags.json_mark)? {
                is_json = true;
            }
        }
        let names: Vec<&str> = types.iter().map(String::as_str).collect();
        let is_text = !is_json && coerce::is_text(&names);
        let comma = if self.started { ", " } else { "{" };
        out.push_str(&format!("{comma}\"{}\": ", escaped(key)));
        if is_text {
            out.push('"');
        }
        self.started = true;
        self.value = Some(TaggedValue {
            types,
            text: String::new(),
            is_text,
            is_json,
            at_start: true,
        });
        Ok(None)
    }
}

impl TaggedValue {
    /// Reads more of the value. Returns true at its end.
    fn advance(
        &mut self,
        cursor: &mut Cursor<'_>,
        tags: &TagMarkers,
        out: &mut String,
    ) -> Try<bool> {
        let space = tags.space_before_value.as_str();
        if self.at_start {
            if tags.trim {
                cursor.space();
                self.at_start = cursor.rest().is_empty();
                return match self.at_start {
                    true => Err(cursor.doubt()),
                    false => Ok(false),
                };
            }
            let rest = cursor.rest();
            if rest.len() < space.len() && space.starts_with(rest) && !cursor.is_last() {
                return Err(Doubt::More);
            }
            if rest.starts_with(space) {
                cursor.at += space.len();
            }
            self.at_start = false;
            return Ok(false);
        }
        let rest = cursor.rest();
        match find(rest, &[&tags.close], cursor.is_last()) {
            Found::At { start, len, .. } => {
                let text = rest.get(..start).unwrap_or_default();
                let text = match tags.trim {
                    true => text.trim_end(),
                    false => text
                        .strip_suffix(tags.space_after_value.as_str())
                        .unwrap_or(text),
                };
                self.add(text, out);
                self.end(out);
                cursor.at += start + len;
                Ok(true)
            }
            Found::Clear(clear) => {
                let text = rest.get(..clear).unwrap_or_default();
                let len = match cursor.is_last() {
                    true => text.len(),
                    // White space may belong to the closing tag.
                    false => text.trim_end().len(),
                };
                if len == 0 {
                    if cursor.is_last() {
                        // The answer ends inside the value.
                        out.push_str(&std::mem::take(&mut self.text));
                    }
                    return Err(cursor.doubt());
                }
                self.add(text.get(..len).unwrap_or_default(), out);
                cursor.at += len;
                Ok(false)
            }
        }
    }

    fn add(&mut self, text: &str, out: &mut String) {
        if self.is_text {
            out.push_str(&escaped(text));
        } else {
            self.text.push_str(text);
        }
    }

    fn end(&mut self, out: &mut String) {
        let text = self.text.as_str();
        if self.is_text {
            out.push('"');
        } else if self.is_json {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            match is_json {
                true => out.push_str(text.trim()),
                false => out.push_str(&format!("\"{}\"", escaped(text))),
            }
        } else {
            let types: Vec<&str> = self.types.iter().map(String::as_str).collect();
            out.push_str(&coerce::coerce(text, &types));
        }
    }
}
