//! Escapes within string literals, as Python's `unicode-escape` reads them.

use super::error::{Error, Result};

/// Returns the string that `literal` (without its quotes) denotes.
pub fn unescape(literal: &str) -> Result<String> {
    let mut text = String::with_capacity(literal.len());
    let mut chars = literal.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        let Some(escape) = chars.next() else {
            return Err(Error::syntax("\\ at end of string", 0));
        };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => text.push(escape),
            'a' => text.push('\x07'),
            'b' => text.push('\x08'),
            'f' => text.push('\x0c'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            't' => text.push('\t'),
            'v' => text.push('\x0b'),
            'x' => text.push(hex(&mut chars, escape, 2)?),
            'u' => text.push(utf16(&mut chars)?),
            'U' => text.push(hex(&mut chars, escape, 8)?),
            'N' => return Err(Error::refused("the escape `\\N{…}`")),
            '0'..='7' => text.push(octal(&mut chars, escape)),
            _ if escape.is_ascii() => text.extend(['\\', escape]),
            // Jinja2 replaces such a character by an escape before it reads the string's escapes.
            _ => text.push_str(&match u32::from(escape) {
                code @ 0..=0xff => format!("\\x{code:02x}"),
                code @ 0x100..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    Ok(text)
}

fn code(chars: &mut std::str::Chars<'_>, escape: char, digits: usize) -> Result<u32> {
    let mut code = 0u32;
    for _ in 0..digits {
        let digit = chars.next().and_then(|c| c.to_digit(16));
        let digit =
            digit.ok_or_else(|| Error::syntax(format!("truncated \\{escape} escape"), 0))?;
        code = code.wrapping_mul(16).wrapping_add(digit);
    }
    Ok(code)
}

fn hex(chars: &mut std::str::Chars<'_>, escape: char, digits: usize) -> Result<char> {
    let code = code(chars, escape, digits)?;
    char::from_u32(code).ok_or_else(|| match code {
        0xd800..=0xdfff => lone_surrogate(),
        _ => Error::syntax("illegal Unicode character", 0),
    })
}

/// Reads `\uXXXX`. Python keeps the halves of a surrogate pair, which no valid text contains.
fn utf16(chars: &mut std::str::Chars<'_>) -> Result<char> {
    char::from_u32(code(chars, 'u', 4)?).ok_or_else(lone_surrogate)
}

fn lone_surrogate() -> Error {
    Error::refused("an escape of a surrogate (`\\ud800` to `\\udfff`)")
}

/// Reads up to three octal digits; `first` has been read already.
fn octal(chars: &mut std::str::Chars<'_>, first: char) -> char {
    let mut code = first.to_digit(8).unwrap_or_default();
    for _ in 0..2 {
        let mut ahead = chars.clone();
        let Some(digit) = ahead.next().and_then(|c| c.to_digit(8)) else {
            break;
        };
        code = code * 8 + digit;
        *chars = ahead;
    }
    char::from_u32(code).unwrap_or_default()
}
