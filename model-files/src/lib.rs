//! Reads the JSON files of model folders as Python's `json` does, which wrote them.
//!
//! Beyond JSON, Python reads and writes `NaN`, `Infinity`, `-Infinity`, numbers of any size, and halves of surrogate
//! pairs. For a repeated key it takes the last value.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses text that Python's `json.loads` accepts. Numbers beyond a double, NaN and infinities are read as `null`, and
/// half a surrogate pair as U+FFFD.
pub fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    // A value keeps the last of two equal keys, while a structure would refuse the second.
    let value = match serde_json::from_slice::<Value>(text) {
        Ok(value) => value,
        Err(error) => match plain(text) {
            Cow::Owned(plain) => serde_json::from_slice(&plain)?,
            Cow::Borrowed(_) => return Err(error),
        },
    };
    serde_json::from_value(value)
}

/// Converts the text to plain JSON; borrowed if nothing changes.
fn plain(text: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        let (read, written): (usize, Cow<'_, [u8]>) = match byte {
            b'"' => string(rest),
            b'N' | b'I' | b'-' | b'0'..=b'9' => number(rest),
            _ => (1, Cow::Borrowed(&rest[..1])),
        };
        out.extend_from_slice(&written);
        at += read;
    }
    if out == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(out)
    }
}

/// Reads the number, or name of one, at the beginning of `text`. Returns its length and replacement.
fn number(text: &[u8]) -> (usize, Cow<'_, [u8]>) {
    for name in [&b"NaN"[..], b"Infinity", b"-Infinity"] {
        if text.starts_with(name) {
            return (name.len(), Cow::Borrowed(b"null"));
        }
    }
    let in_number = |byte: &&u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let length = text.iter().take_while(in_number).count().max(1);
    let digits = &text[..length];
    let overflows = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<f64>().ok())
        .is_some_and(f64::is_infinite);
    let written: &[u8] = if overflows { b"null" } else { digits };
    (length, Cow::Borrowed(written))
}

/// Reads the string at the beginning of `text`, including its quotes.
fn string(text: &[u8]) -> (usize, Cow<'_, [u8]>) {
    let mut out = Vec::new();
    let mut at = 1;
    out.push(b'"');
    while let Some(&byte) = text.get(at) {
        if byte == b'\\' {
            let (read, written) = escape(&text[at..]);
            out.extend_from_slice(written);
            at += read;
            continue;
        }
        out.push(byte);
        at += 1;
        if byte == b'"' {
            break;
        }
    }
    (at, Cow::Owned(out))
}

const REPLACEMENT: &[u8] = br"\ufffd";

/// Reads the escape at the beginning of `text`.
fn escape(text: &[u8]) -> (usize, &[u8]) {
    match code_unit(text) {
        // The second half of a pair may follow.
        Some(0xD800..=0xDBFF) => match text.get(6..).and_then(code_unit) {
            Some(0xDC00..=0xDFFF) => (12, &text[..12]),
            _ => (6, REPLACEMENT),
        },
        Some(0xDC00..=0xDFFF) => (6, REPLACEMENT),
        Some(_) => (6, &text[..6]),
        None => {
            let length = text.len().min(2);
            (length, &text[..length])
        }
    }
}

/// Returns the code of `\uXXXX` at the beginning of `text`.
fn code_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(br"\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_python_writes_beyond_json_is_read() {
        assert_eq!(
            read(r#"{"a": NaN, "b": [Infinity, -Infinity], "c": -1.5e3, "d": "NaN"}"#),
            json!({"a": null, "b": [null, null], "c": -1500.0, "d": "NaN"})
        );
        assert_eq!(read("[1e400, -1e400, 1e30]"), json!([null, null, 1e30]));
        assert_eq!(
            read("1000000000000000019884624838656"),
            json!(1000000000000000019884624838656.0)
        );
    }

    #[test]
    fn halves_of_pairs_are_replaced_and_whole_ones_kept() {
        assert_eq!(
            read(r#"["\ud83d\ude80 \ud83d x \ude80\\ud83d \"\ud83d\""]"#),
            json!(["🚀 \u{fffd} x \u{fffd}\\ud83d \"\u{fffd}\""])
        );
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_in_structures_too() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Settings {
            a: u32,
        }
        assert_eq!(
            from_slice::<Settings>(br#"{"a": 1, "a": 2}"#).unwrap(),
            Settings { a: 2 }
        );
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "",
            "{",
            "nan",
            "[1,]",
            "{'a': 1}",
            "\u{feff}{}",
            "[+1]",
            "[.5]",
            "[1.]",
            "[\"\t\"]",
            "[NaNs]",
            "[\"\\ud83d]",
            "{\"a\": NaN} x",
            "[-]",
            "[\"\\x\", NaN]",
        ] {
            assert!(from_slice::<Value>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
