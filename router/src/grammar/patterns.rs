//! Patterns of JSON schemas, which are regular expressions of JavaScript (ECMA-262), in the library's syntax.
//!
//! Most of the syntax is the same. What means something else is written out; what the library does not know, it refuses.

/// White space and line ends, the members of `\s`.
const SPACE: &str =
    r"\t\n\x0b\f\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}";

/// Any character but line ends, the meaning of `.`.
const NO_LINE_END: &str = r"[^\n\r\x{2028}\x{2029}]";

/// Escapes of control characters.
const CONTROL_ESCAPES: [&str; 9] = [
    r"\x0", r"\x1", r"\x7", r"\x{", r"\u00", r"\u{", r"\c", r"\0", r"\v",
];

/// The pattern in the library's syntax.
pub fn translated(pattern: &str) -> String {
    let mut written = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, in_class) {
            ('\\', _) => match characters.next() {
                Some('s') if in_class => written.push_str(SPACE),
                Some('s') => written.push_str(&format!("[{SPACE}]")),
                Some('S') => written.push_str(&format!("[^{SPACE}]")),
                Some(other) => written.extend(['\\', other]),
                None => written.push('\\'),
            },
            ('.', false) => written.push_str(NO_LINE_END),
            ('[', false) => {
                in_class = true;
                written.push('[');
                if let Some(negation) = characters.next_if_eq(&'^') {
                    written.push(negation);
                }
                if characters.next_if_eq(&']').is_some() {
                    // An empty class, which the library has not: nothing, or with `^` anything.
                    written.push_str(r"a&&b]");
                    in_class = false;
                }
            }
            // Operators of the library's classes, plain characters in JavaScript's.
            ('[' | '&' | '~', true) => written.extend(['\\', character]),
            ('-', true) if written.ends_with('-') => written.push_str(r"\-"),
            (']', true) => {
                in_class = false;
                written.push(']');
            }
            _ => written.push(character),
        }
    }
    written
}

/// True if the pattern may name control characters.
pub fn names_control_characters(pattern: &str) -> bool {
    pattern.chars().any(char::is_control)
        || CONTROL_ESCAPES
            .iter()
            .any(|escape| pattern.contains(escape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_else_is_written_out() {
        for (pattern, expected) in [
            (r"^[a-z]{2}\d+$", r"^[a-z]{2}\d+$".to_owned()),
            (r"\.\\.", format!(r"\.\\{NO_LINE_END}")),
            (r"[.\s]", format!("[.{SPACE}]")),
            (r"\S\s", format!("[^{SPACE}][{SPACE}]")),
            (r"[a[&&b~~]]", r"[a\[\&\&b\~\~]]".to_owned()),
            ("[+--]", r"[+-\-]".to_owned()),
            ("[]a[^]", "[a&&b]a[^a&&b]".to_owned()),
            (r"\]\[[\]\[]", r"\]\[[\]\[]".to_owned()),
        ] {
            assert_eq!(translated(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn control_characters_are_found() {
        for pattern in ["a\u{1}", r"\u0001", r"[\x00-\x1f]", r"\v"] {
            assert!(names_control_characters(pattern), "{pattern}");
        }
        assert!(!names_control_characters(r"^\d+\.\w*[a-z]$"));
    }
}
