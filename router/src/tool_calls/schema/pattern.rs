//! Regular expressions of JSON Schema, which are searched for, as expressions that match a whole text.

/// Any text.
const ANY: &str = "(?s:.*)";

/// An expression that matches exactly the texts in which `pattern` is found; `None` if it has an anchor or a word
/// boundary elsewhere than at the ends of its alternatives, which grammars cannot express.
pub fn whole(pattern: &str) -> Option<String> {
    let alternatives = alternatives(pattern);
    let whole: Option<Vec<String>> = alternatives.into_iter().map(whole_alternative).collect();
    Some(format!("(?:{})", whole?.join("|")))
}

fn whole_alternative(pattern: &str) -> Option<String> {
    let (before, pattern) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => (ANY, pattern),
    };
    let is_anchored = pattern.ends_with('$') && !is_escaped(pattern, pattern.len() - 1);
    let (pattern, after) = match pattern.strip_suffix('$').filter(|_| is_anchored) {
        Some(rest) => (rest, ""),
        None => (pattern, ANY),
    };
    // A group around all may hold the anchors.
    if let Some(inner) = only_group(pattern).filter(|_| !before.is_empty() && !after.is_empty())
        && has_anchor(inner)
    {
        return whole(inner);
    }
    (!has_anchor(pattern)).then(|| format!("{before}(?:{pattern}){after}"))
}

/// The inside of a group that is the whole pattern.
fn only_group(pattern: &str) -> Option<&str> {
    let inner = pattern.strip_prefix('(')?.strip_suffix(')')?;
    let inner = inner.strip_prefix("?:").unwrap_or(inner);
    let mut depth = 0_i32;
    let closes_early = places(inner).any(|(_, c)| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    (!closes_early && depth == 0 && !inner.starts_with('?')).then_some(inner)
}

/// The alternatives at the top of a pattern.
fn alternatives(pattern: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in places(pattern) {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if c == '|' && depth == 0 {
            parts.push(pattern.get(start..at).unwrap_or_default());
            start = at + 1;
        }
    }
    parts.push(pattern.get(start..).unwrap_or_default());
    parts
}

/// Characters that stand for themselves neither by a backslash before them nor in a class.
fn places(pattern: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut escaped, mut in_class, mut class_start) = (false, false, 0);
    pattern.char_indices().filter(move |(at, c)| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        if *c == '\\' {
            escaped = true;
            return false;
        }
        if in_class {
            // A bracket right after the opening one is an item of the class.
            in_class = *c != ']' || *at == class_start;
            return false;
        }
        if *c == '[' {
            in_class = true;
            let inside = pattern.get(at + 1..).unwrap_or_default();
            class_start = at + 1 + usize::from(inside.starts_with('^'));
        }
        true
    })
}

fn is_escaped(pattern: &str, at: usize) -> bool {
    let before = pattern.get(..at).unwrap_or_default();
    let backslashes = before.len() - before.trim_end_matches('\\').len();
    backslashes % 2 == 1
}

fn has_anchor(pattern: &str) -> bool {
    let anchors = places(pattern).any(|(_, c)| c == '^' || c == '$');
    let boundary = |(at, c): (usize, char)| "bBAzZ".contains(c) && is_escaped(pattern, at);
    anchors || pattern.char_indices().any(boundary)
}

/// A text as a regular expression that matches it alone.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_becomes_a_match_of_the_whole_text() {
        for (pattern, expected) in [
            ("^a+$", "(?:(?:a+))"),
            ("a", "(?:(?s:.*)(?:a)(?s:.*))"),
            ("^a|b$", "(?:(?:a)(?s:.*)|(?s:.*)(?:b))"),
            ("^(a|b)$", "(?:(?:(a|b)))"),
            ("^(?:^a$|b)$", "none"),
            ("(^a$|^b$)", "(?:(?:(?:a)|(?:b)))"),
            (r"^[^|\]$]+\$", r"(?:(?:[^|\]$]+\$)(?s:.*))"),
            (r"^a\\$", r"(?:(?:a\\))"),
            (r"\ba", "none"),
            (r"^[]^]$", "(?:(?:[]^]))"),
        ] {
            let found = whole(pattern);
            assert_eq!(found.as_deref().unwrap_or("none"), expected, "{pattern}");
        }
    }

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escaped("</a.b>\né|"), "</a\\.b>\né\\|");
    }
}
