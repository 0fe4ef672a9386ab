//! Tagged arguments, which become JSON while they are written.

use super::coerce::Expected;
use super::cursor::{Cursor, Doubt, Found, Marker, Try, find};
use super::json::escaped;
use super::literal::Status;
use super::markers::TagMarkers;
use crate::tool_calls::plan::Tool;

/// Reads the arguments of one call.
#[derive(Debug)]
pub struct Tagged {
    /// Keys that have been read.
    keys: Vec<String>,
    value: Option<TaggedValue>,
}

/// A value that is being read.
#[derive(Debug)]
struct TaggedValue {
    expected: Expected,
    /// Text of a value that is no string, until it is complete.
    text: String,
    is_text: bool,
    /// JSON that is copied as it is.
    is_json: bool,
    /// True until the white space before the value has been read.
    at_start: bool,
}

/// Text around the arguments of a call.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    pub tags: &'a TagMarkers,
    /// Marker after the call.
    pub close: &'a Marker,
    pub tool: Option<&'a Tool>,
}

/// End of a value.
struct ValueEnd {
    /// Bytes of the value.
    len: usize,
    /// Bytes of its closing tag; 0 where it is missing.
    tag: usize,
}

impl Tagged {
    pub fn new() -> Self {
        Self {
            keys: Vec::new(),
            value: None,
        }
    }

    /// Reads `text` and appends JSON to `out`. Returns the number of bytes read. Done at the marker after the call,
    /// which is not read.
    pub fn advance(
        &mut self,
        (text, end): (&str, bool),
        around: Surroundings<'_>,
        out: &mut String,
    ) -> (usize, Status) {
        let mut cursor = Cursor::new(text, end);
        let mut read = 0;
        loop {
            let step = match &mut self.value {
                Some(value) => match value.advance(&mut cursor, around, &self.keys, out) {
                    Ok(complete) => {
                        if complete {
                            self.value = None;
                        }
                        Ok(None)
                    }
                    Err(doubt) => Err(doubt),
                },
                None => self.key(&mut cursor, around, out),
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
        out.push_str(if self.keys.is_empty() { "{}" } else { "}" });
    }

    /// Reads up to a value, or to the end of the arguments.
    fn key(
        &mut self,
        cursor: &mut Cursor<'_>,
        Surroundings { tags, close, tool }: Surroundings<'_>,
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
        let mut expected = tool.map_or_else(Expected::default, |tool| tool.expected(key));
        let mut is_json = false;
        if !tags.string_mark.is_empty() || !tags.json_mark.is_empty() {
            if cursor.accept(&tags.string_mark)? && !tags.string_mark.is_empty() {
                expected = Expected::default();
            } else if !tags.json_mark.is_empty() && cursor.accept(&tags.json_mark)? {
                is_json = true;
            }
        }
        let is_text = !is_json && expected.is_text();
        let comma = if self.keys.is_empty() { "{" } else { ", " };
        out.push_str(&format!("{comma}\"{}\": ", escaped(key)));
        if is_text {
            out.push('"');
        }
        self.keys.push(key.to_owned());
        self.value = Some(TaggedValue {
            expected,
            text: String::new(),
            is_text,
            is_json,
            at_start: true,
        });
        Ok(None)
    }
}

impl TaggedValue {
    /// Reads more of the value. Returns true at its end. `keys`: those of the call so far.
    fn advance(
        &mut self,
        cursor: &mut Cursor<'_>,
        around: Surroundings<'_>,
        keys: &[String],
        out: &mut String,
    ) -> Try<bool> {
        let tags = around.tags;
        if self.at_start {
            self.at_start = !skip_space_before(cursor, tags)?;
            return Ok(false);
        }
        let rest = cursor.rest();
        match value_end(rest, cursor.is_last(), around, keys)? {
            Ok(ValueEnd { len, tag }) => {
                let text = rest.get(..len).unwrap_or_default();
                self.add(without_space_after(text, tags), out);
                self.end(out);
                cursor.at += len + tag;
                Ok(true)
            }
            Err(clear) => {
                let text = rest.get(..clear).unwrap_or_default();
                let len = match cursor.is_last() {
                    // Text that may be the beginning of a tag that was cut off is no part of the value.
                    true if clear < rest.len() => without_space_after(text, tags).len(),
                    true => text.len(),
                    // White space may belong to the closing tag.
                    false => text.trim_end().len(),
                };
                if len == 0 {
                    if cursor.is_last() {
                        // The answer ends inside the value.
                        out.push_str(&std::mem::take(&mut self.text));
                        cursor.at += rest.len();
                    }
                    return Err(Doubt::More);
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
            out.push_str(&self.expected.coerce(text));
        }
    }
}

/// Skips the white space that belongs to the tag before a value. Returns true when all of it has been read.
fn skip_space_before(cursor: &mut Cursor<'_>, tags: &TagMarkers) -> Try<bool> {
    if tags.trim {
        cursor.space();
        return match cursor.rest().is_empty() {
            true => Err(cursor.doubt()),
            false => Ok(true),
        };
    }
    let space = tags.space_before_value.as_str();
    let rest = cursor.rest();
    if rest.len() < space.len() && space.starts_with(rest) && !cursor.is_last() {
        return Err(Doubt::More);
    }
    if rest.starts_with(space) {
        cursor.at += space.len();
    }
    Ok(true)
}

/// A value without the white space that belongs to the tag after it.
fn without_space_after<'t>(text: &'t str, tags: &TagMarkers) -> &'t str {
    match tags.trim {
        true => text.trim_end(),
        false => text
            .strip_suffix(tags.space_after_value.as_str())
            .unwrap_or(text),
    }
}

/// Finds the end of a value: its closing tag, or where a model forgot that, the tag of another declared parameter or
/// the end of the call. Otherwise returns the number of bytes that are certainly part of the value.
fn value_end(
    text: &str,
    end: bool,
    Surroundings { tags, close, tool }: Surroundings<'_>,
    keys: &[String],
) -> Try<Result<ValueEnd, usize>> {
    // The end of a call in one word may be a part of a text.
    let no_end = Marker::default();
    let call_end = if close.has_words() { close } else { &no_end };
    let markers = [&tags.close, &tags.open, call_end];
    let mut from = 0;
    loop {
        // A cut tag is found as one that may come, at the end of the answer too.
        let rest = text.get(from..).unwrap_or_default();
        let (start, index, len) = match find(rest, &markers, false) {
            Found::At { start, len, index } => (start, index, len),
            Found::Clear(clear) => return Ok(Err(from + clear)),
        };
        let at = from + start;
        if index == 0 {
            return Ok(Ok(ValueEnd { len: at, tag: len }));
        }
        if index == 2 {
            return Ok(Ok(ValueEnd { len: at, tag: 0 }));
        }
        let mut next = Cursor::new(text.get(at + len..).unwrap_or_default(), end);
        let is_next = match next.until(&tags.key_close) {
            Ok(key) => {
                let declared = tool.and_then(|tool| tool.parameters.get("properties")?.get(key));
                declared.is_some() && !keys.iter().any(|known| known == key)
            }
            // A key is short, and a text may have anything.
            Err(Doubt::More) if next.rest().len() <= MAX_KEY_BYTES => return Ok(Err(at)),
            Err(_) => false,
        };
        if is_next {
            return Ok(Ok(ValueEnd { len: at, tag: 0 }));
        }
        from = at + len;
    }
}

/// Longest key of a parameter that is waited for.
const MAX_KEY_BYTES: usize = 256;
