//! Comparison of rendered texts part by part, so that a common beginning never ends inside a tag or a word.

/// Splits text into tags in angle brackets, markers like `[NAME]`, words, and other characters.
pub fn lexemes(text: &str) -> Vec<&str> {
    let mut lexemes = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = lexeme_bytes(rest, c);
        let (lexeme, more) = rest.split_at(len);
        lexemes.push(lexeme);
        rest = more;
    }
    lexemes
}

fn lexeme_bytes(text: &str, first: char) -> usize {
    let inner = text.get(first.len_utf8()..).unwrap_or_default();
    let len = match first {
        '<' => match inner.find(['<', '>']) {
            Some(end) if inner.get(end..).is_some_and(|rest| rest.starts_with('>')) => end + 1,
            Some(end) => end,
            None => inner.len(),
        },
        '[' => {
            let in_name = |c: char| c.is_ascii_uppercase() || "_/".contains(c);
            let name = inner.find(|c| !in_name(c)).unwrap_or(inner.len());
            match inner.get(name..) {
                Some(rest) if name > 0 && rest.starts_with(']') => name + 1,
                _ => 0,
            }
        }
        c if is_word(c) => inner.find(|c| !is_word(c)).unwrap_or(inner.len()),
        _ => 0,
    };
    first.len_utf8() + len
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length in bytes of the beginning that both texts have in common.
pub fn common_prefix(a: &str, b: &str) -> usize {
    let (a, b) = (lexemes(a), lexemes(b));
    let shared = a.iter().zip(&b).take_while(|(a, b)| a == b);
    shared.map(|(a, _)| a.len()).sum()
}

/// Length in bytes of the end that both texts have in common.
pub fn common_suffix(a: &str, b: &str) -> usize {
    let (a, b) = (lexemes(a), lexemes(b));
    let shared = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(a, b)| a == b);
    shared.map(|(a, _)| a.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_markers_stay_whole() {
        assert_eq!(
            lexemes("\n<a b=\"c\">[ARGS]f_1({<|x|>"),
            ["\n", "<a b=\"c\">", "[ARGS]", "f_1", "(", "{", "<|x|>"]
        );
        assert_eq!(lexemes("<p=<q>[1"), ["<p=", "<q>", "[", "1"]);
        assert_eq!(common_prefix("<|a|>x", "<|b|>x"), 0);
        assert_eq!(common_prefix("a\n\n<b>", "a\n<b>"), 2);
        assert_eq!(common_suffix("<|END_A|><|E|>", "<|END_B|><|E|>"), 5);
    }
}
