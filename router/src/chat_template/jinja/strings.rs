//! Python's rules for characters and lines.

use super::error::{Error, Result};

/// Evaluates `str.isspace` of one character.
pub fn is_space(c: char) -> bool {
    matches!(c, '\x1c'..='\x1f') || c.is_whitespace()
}

/// True for characters at which `str.splitlines` breaks lines.
fn is_line_break(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// Evaluates `str.splitlines(keepends)`.
pub fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_line_break).unwrap_or(rest.len());
        let break_bytes = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end + break_bytes } else { end }]);
        rest = &rest[end + break_bytes..];
    }
    lines
}

/// Returns the number of characters, which is Python's length.
pub fn length(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        text.chars().count()
    }
}

/// Returns the byte offset of character `index`, or the end if there are fewer.
pub fn byte_offset(text: &str, index: usize) -> usize {
    if text.is_ascii() {
        return index.min(text.len());
    }
    text.char_indices()
        .nth(index)
        .map_or(text.len(), |(at, _)| at)
}

/// Returns characters `start..end`.
pub fn slice(text: &str, start: usize, end: usize) -> &str {
    if start >= end {
        return "";
    }
    let from = byte_offset(text, start);
    let to = from + byte_offset(&text[from..], end - start);
    &text[from..to]
}

/// Evaluates `str.upper`.
pub fn upper(text: &str) -> String {
    text.to_uppercase()
}

/// Evaluates `str.lower`.
pub fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// Evaluates `str.capitalize`.
pub fn capitalize(text: &str) -> Result<String> {
    let mut chars = text.chars();
    let Some(first) = chars.next() else {
        return Ok(String::new());
    };
    let mut result = String::with_capacity(text.len());
    push_title(first, &mut result)?;
    // The form of a final sigma depends on the text before it. So the whole text is lowered, then its first character
    // dropped.
    let lowered = text.to_lowercase();
    let skipped: usize = first.to_lowercase().map(char::len_utf8).sum();
    result.push_str(&lowered[skipped..]);
    Ok(result)
}

/// Evaluates `str.title`.
pub fn title(text: &str) -> Result<String> {
    if !text.is_ascii() && text.contains('Σ') {
        return Err(Error::refused("`title` of a text with a capital sigma"));
    }
    let mut result = String::with_capacity(text.len());
    let mut after_cased = false;
    for c in text.chars() {
        if after_cased {
            result.extend(c.to_lowercase());
        } else {
            push_title(c, &mut result)?;
        }
        after_cased = is_cased(c);
    }
    Ok(result)
}

fn push_title(c: char, result: &mut String) -> Result<()> {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        // Letters whose title case is neither their upper case nor a single character.
        (Some(_), Some(_)) => Err(Error::refused(format!("the title case of `{c}`"))),
        _ if matches!(c, '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}' | '\u{10d0}'..='\u{10ff}') => {
            Err(Error::refused(format!("the title case of `{c}`")))
        }
        (Some(single), None) => {
            result.push(single);
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

pub fn is_cased(c: char) -> bool {
    c.is_lowercase()
        || c.is_uppercase()
        || matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

/// Evaluates `str.islower` (or `str.isupper`).
pub fn is_all(text: &str, wanted: fn(char) -> bool) -> bool {
    let mut cased = false;
    for c in text.chars() {
        if is_cased(c) {
            if !wanted(c) {
                return false;
            }
            cased = true;
        }
    }
    cased
}

/// Evaluates `str.swapcase`.
pub fn swap_case(text: &str) -> Result<String> {
    if text.contains('Σ') {
        return Err(Error::refused("`swapcase` of a text with a capital sigma"));
    }
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            result.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            result.extend(c.to_uppercase());
        } else {
            result.push(c);
        }
    }
    Ok(result)
}

/// Evaluates `str.isalpha` of one character, for scripts where Rust's and Python's tables agree.
pub fn is_letter(c: char) -> Result<bool> {
    if c.is_ascii() || !c.is_alphabetic() {
        return Ok(c.is_ascii_alphabetic());
    }
    let known = matches!(
        c,
        '\u{aa}'..='\u{2ff}'
            | '\u{370}'..='\u{52f}'
            | '\u{1e00}'..='\u{1fff}'
            | '\u{3041}'..='\u{3096}'
            | '\u{30a1}'..='\u{30fa}'
            | '\u{4e00}'..='\u{9fff}'
            | '\u{ac00}'..='\u{d7a3}'
    );
    if known {
        Ok(true)
    } else {
        Err(Error::refused(format!("telling whether `{c}` is a letter")))
    }
}

/// True if `repr` shows the character unescaped.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // After a letter, `escape_debug` leaves marks alone, as Python does.
    let mut pair = String::from("a");
    pair.push(c);
    pair.escape_debug().nth(1) == Some(c)
}

/// Evaluates `str.strip` with characters to strip, or white space.
pub fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let mut text = text;
    if left {
        text = text.trim_start_matches(strips);
    }
    if right {
        text = text.trim_end_matches(strips);
    }
    text
}
