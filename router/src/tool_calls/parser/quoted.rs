//! Texts in quotes inside arguments that are no JSON, with Python's escapes or without.

use super::cursor::{Cursor, Doubt, Try};
use super::json::escaped;

/// Copies text up to the delimiter `until`, as JSON. Returns true at the delimiter, which is read too; otherwise all
/// that is certain was copied.
pub fn copy_text(
    cursor: &mut Cursor<'_>,
    until: &str,
    escapes: bool,
    out: &mut String,
) -> Try<bool> {
    let before = cursor.at;
    loop {
        let rest = cursor.rest();
        if rest.starts_with(until) {
            cursor.at += until.len();
            return Ok(true);
        }
        if rest.is_empty() || (until.starts_with(rest) && !cursor.is_last()) {
            break;
        }
        if escapes && rest.starts_with('\\') {
            match python_escape(rest, cursor.is_last()) {
                Ok((len, text)) => {
                    out.push_str(&escaped(&text));
                    cursor.at += len;
                    continue;
                }
                Err(_) => break,
            }
        }
        let plain = rest
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == '\\' || until.starts_with(*c));
        let len = plain.map_or(rest.len(), |(at, _)| at);
        out.push_str(&escaped(rest.get(..len).unwrap_or_default()));
        cursor.at += len;
    }
    if cursor.at > before {
        // The caller keeps what was read so far.
        return Ok(false);
    }
    Err(cursor.doubt())
}

/// The escape at the beginning of `text`: its length, and what it stands for.
fn python_escape(text: &str, end: bool) -> Try<(usize, String)> {
    let missing = if end { Doubt::No } else { Doubt::More };
    let mut chars = text.chars().skip(1);
    let Some(c) = chars.next() else {
        return if end {
            Ok((1, "\\".into()))
        } else {
            Err(missing)
        };
    };
    let digits = match c {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let code: String = chars.take(digits).collect();
        let cut = code.len() < digits && code.chars().all(|c| c.is_ascii_hexdigit());
        if cut && !end {
            return Err(missing);
        }
        let high = u32::from_str_radix(&code, 16).ok();
        if digits == 4 && high.is_some_and(|high| (0xD800..0xDC00).contains(&high)) {
            return surrogates(text, end);
        }
        let decoded = high
            .filter(|_| code.len() == digits)
            .and_then(char::from_u32);
        return Ok(match decoded {
            Some(decoded) => (2 + digits, decoded.to_string()),
            None => (1, "\\".into()),
        });
    }
    let plain = match c {
        'n' => "\n",
        't' => "\t",
        'r' => "\r",
        'b' => "\u{8}",
        'f' => "\u{c}",
        '0' => "\0",
        '\\' => "\\",
        '\'' => "'",
        '"' => "\"",
        '\n' => "",
        // Python keeps the backslash of an escape that it does not know.
        _ => return Ok((1, "\\".into())),
    };
    Ok((1 + c.len_utf8(), plain.into()))
}

/// A pair of `\u` escapes, as JSON writes characters beyond the first plane.
fn surrogates(text: &str, end: bool) -> Try<(usize, String)> {
    match text.get(..12) {
        Some(pair) => match serde_json::from_str::<String>(&format!("\"{pair}\"")) {
            Ok(decoded) => Ok((12, decoded)),
            Err(_) => Ok((6, char::REPLACEMENT_CHARACTER.to_string())),
        },
        None if end || !text.is_ascii() => Ok((6, char::REPLACEMENT_CHARACTER.to_string())),
        None => Err(Doubt::More),
    }
}
