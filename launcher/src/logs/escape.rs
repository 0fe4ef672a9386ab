//! Escapes characters that control a terminal or change the order of its text: file names, configs and
//! tokens come from strangers.

use std::borrow::Cow;
use std::fmt::Write;

/// Control characters (C0, DEL, C1), line separators, and marks of writing direction.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes text for a terminal: `\u{1b}`. Tabs and, where the caller indents them, newlines stay.
pub fn visible(text: &str, keeps_newlines: bool) -> Cow<'_, str> {
    let stays = |c: char| !is_obeyed(c) || c == '\t' || (keeps_newlines && c == '\n');
    replaced(text, stays, |out, c| {
        let _ = write!(out, "{}", c.escape_unicode());
    })
}

/// Escapes JSON, whose own escapes cover only some of these characters.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    replaced(
        json,
        |c| !is_obeyed(c),
        |out, c| {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        },
    )
}

fn replaced(
    text: &str,
    stays: impl Fn(char) -> bool,
    escape: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    if text.chars().all(&stays) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) {
            out.push(c);
        } else {
            escape(&mut out, c);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        assert_eq!(visible("plain ü 漢 \t", false), "plain ü 漢 \t");
        let nasty = "a\x1b]0;title\x07\r\u{9b}2J\u{202e}\x7f\nb";
        assert_eq!(
            visible(nasty, false),
            r"a\u{1b}]0;title\u{7}\u{d}\u{9b}2J\u{202e}\u{7f}\u{a}b"
        );
        assert!(visible(nasty, true).ends_with("\\u{7f}\nb"));
        let json = serde_json::to_string(nasty).unwrap();
        let shown = visible_json(&json);
        assert!(shown.chars().all(|c| !is_obeyed(c)), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), nasty);
    }
}
