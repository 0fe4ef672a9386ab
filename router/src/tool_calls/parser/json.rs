//! JSON inside an answer, copied while it is written.

use super::cursor::{Cursor, Doubt, Marker, Try};

/// Copies one JSON value. Only its end is looked for: what the model writes inside is not changed.
#[derive(Debug, Clone, Default)]
pub struct JsonCopy {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// True inside a number or a name at the top level.
    scalar: bool,
}

/// Progress of a copy, with the number of bytes that belong to the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    Going(usize),
    Done(usize),
    /// A marker outside of strings ends the value before it is complete.
    Stopped(usize),
}

impl JsonCopy {
    /// Goes on with `text`. `end`: no more text comes.
    pub fn advance(&mut self, text: &str, stop: &[Marker], end: bool) -> Copied {
        for (at, c) in text.char_indices() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if c == '\\' {
                    self.escaped = true;
                } else if c == '"' {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Copied::Done(at + 1);
                    }
                }
                continue;
            }
            for marker in stop.iter().filter(|marker| marker.first() == Some(c)) {
                match marker.fit(text.get(at..).unwrap_or_default(), end) {
                    Ok(_) => return Copied::Stopped(at),
                    Err(Doubt::More) => return Copied::Going(at),
                    Err(Doubt::No) => {}
                }
            }
            match c {
                '"' if self.scalar => return Copied::Done(at),
                '"' => self.in_string = true,
                '{' | '[' if self.scalar => return Copied::Done(at),
                '{' | '[' => self.depth += 1,
                '}' | ']' if self.depth == 0 => return Copied::Done(at),
                '}' | ']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Copied::Done(at + 1);
                    }
                }
                ',' if self.depth == 0 => return Copied::Done(at),
                c if self.depth == 0 && c.is_whitespace() => {
                    if self.scalar {
                        return Copied::Done(at);
                    }
                }
                _ => self.scalar |= self.depth == 0,
            }
        }
        if end && self.scalar && self.depth == 0 {
            return Copied::Done(text.len());
        }
        Copied::Going(text.len())
    }

    /// Markers that may end a value early: those that no JSON text outside of strings contains.
    pub fn stops<'a>(markers: impl IntoIterator<Item = &'a Marker>) -> Vec<Marker> {
        let no_json = |c: char| !c.is_alphanumeric() && !"{}[],:\"+-.".contains(c);
        let markers = markers.into_iter();
        markers
            .filter(|marker| marker.first().is_some_and(no_json))
            .cloned()
            .collect()
    }
}

impl<'a> Cursor<'a> {
    /// Skips a JSON value and returns its text.
    pub fn json_value(&mut self) -> Try<&'a str> {
        let rest = self.rest();
        match JsonCopy::default().advance(rest, &[], self.is_last()) {
            Copied::Done(0) => Err(Doubt::No),
            Copied::Done(len) => {
                self.at += len;
                Ok(rest.get(..len).unwrap_or_default())
            }
            Copied::Going(_) | Copied::Stopped(_) => Err(self.doubt()),
        }
    }

    /// Reads a JSON string.
    pub fn json_string(&mut self) -> Try<String> {
        if self.peek()? != '"' {
            return Err(Doubt::No);
        }
        let text = self.json_value()?;
        serde_json::from_str(text).map_err(|_| Doubt::No)
    }
}

/// Copies the text of a JSON string, without its escapes.
#[derive(Debug, Clone, Default)]
pub struct StringCopy;

impl StringCopy {
    /// Appends the string's text to `out`, and escapes that are no JSON as they are. Returns the bytes read, and true at the closing quote, which is read too.
    pub fn advance(text: &str, end: bool, out: &mut String) -> (usize, bool) {
        let bytes = text.as_bytes();
        let mut at = 0;
        let mut closed = false;
        while let Some(byte) = bytes.get(at) {
            let len = match byte {
                b'"' => {
                    closed = true;
                    break;
                }
                b'\\' => escape_bytes(bytes.get(at..).unwrap_or_default()),
                _ => {
                    let rest = text.get(at..).unwrap_or_default();
                    rest.find(['"', '\\']).unwrap_or(rest.len())
                }
            };
            if at + len > bytes.len() && !end {
                break;
            }
            let raw = text
                .get(at..at + len)
                .or(text.get(at..))
                .unwrap_or_default();
            match raw.starts_with('\\') {
                true => {
                    let plain = serde_json::from_str::<String>(&format!("\"{raw}\"")).ok();
                    out.push_str(plain.as_deref().unwrap_or(raw));
                }
                false => out.push_str(raw),
            }
            at += raw.len();
        }
        (at + usize::from(closed), closed)
    }
}

/// Number of bytes of the escape at the beginning of `bytes`, with the second half of a surrogate pair. Larger than
/// `bytes` when it is cut off.
fn escape_bytes(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'u') => {
            let is_high = matches!(bytes.get(2), Some(b'd' | b'D'))
                && matches!(bytes.get(3), Some(b'8' | b'9' | b'a' | b'b' | b'A' | b'B'));
            let pair_follows = matches!(
                (bytes.get(6), bytes.get(7)),
                (None, _) | (Some(b'\\'), None | Some(b'u'))
            );
            if is_high && pair_follows { 12 } else { 6 }
        }
        // No escape of JSON: the backslash stands alone.
        Some(128..) => 1,
        _ => 2,
    }
}

/// The text of a JSON string without its quotes.
pub fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let inner = quoted
        .strip_prefix('"')
        .and_then(|inner| inner.strip_suffix('"'));
    inner.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_where_its_brackets_do() {
        let done = |text: &str| JsonCopy::default().advance(text, &[], false);
        assert_eq!(done(r#"{"a}": [1, "]"]} x"#), Copied::Done(16));
        assert_eq!(done(r#""a\"b" x"#), Copied::Done(6));
        assert_eq!(done("12, 3"), Copied::Done(2));
        assert_eq!(done("12"), Copied::Going(2));
        assert_eq!(done("}"), Copied::Done(0));
    }

    #[test]
    fn a_marker_outside_of_strings_ends_a_value() {
        let stop = JsonCopy::stops([&Marker::new("</t>"), &Marker::new("]")]);
        assert_eq!(stop.len(), 1);
        let advance = |text| JsonCopy::default().advance(text, &stop, false);
        assert_eq!(advance(r#"{"a": </t>"#), Copied::Stopped(6));
        assert_eq!(advance(r#"{"a": <"#), Copied::Going(6));
        assert_eq!(advance(r#"{"</t>": 1}"#), Copied::Done(11));
    }

    #[test]
    fn a_string_is_copied_without_escapes() {
        let copy = |text: &str| {
            let mut out = String::new();
            let read = StringCopy::advance(text, false, &mut out);
            (out, read)
        };
        assert_eq!(copy(r#"a\"b\u00e9" x"#), ("a\"bé".into(), (11, true)));
        assert_eq!(copy(r"a\ud83d\ude00b"), ("a😀b".into(), (14, false)));
        for cut in [r"a\ud83d", r"a\ud83d\", r"a\ud83d\ude", r"a\", r"a\u00"] {
            assert_eq!(copy(cut), ("a".into(), (1, false)), "{cut}");
        }
        assert_eq!(copy(r"a\q"), (r"a\q".into(), (3, false)));
        assert_eq!(copy("\\é"), ("\\é".into(), (3, false)));
    }
}
