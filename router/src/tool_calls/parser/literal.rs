//! Arguments that are no JSON: Python's keyword arguments, and objects with bare keys. Both become JSON while they are
//! written.

use super::cursor::{Cursor, Doubt, Try};
use super::json::escaped;
use super::quoted::copy_text;

/// Translates one list of arguments to JSON. Begins after its opening bracket.
#[derive(Debug, Clone)]
pub struct Literal {
    /// Brackets that are open, outermost first.
    open: Vec<Bracket>,
    next: Next,
    /// Delimiter of strings without escapes; empty if there is none.
    quote: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    /// `name=value, …` until `)`.
    Keywords,
    /// `key: value, …` until `}`.
    Object,
    /// Values until this character.
    List(char),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// A key, or the closing bracket. True for the first of its object.
    Key(bool),
    /// The value of a key.
    Value,
    /// An item of a list, or the closing bracket. True for the first of its list.
    Item(bool),
    /// A comma, or the closing bracket.
    Comma,
    /// The rest of a string up to this delimiter. `key`: a colon follows.
    Text {
        until: String,
        escapes: bool,
        key: bool,
    },
    /// The colon after a key in quotes.
    Colon,
    Done,
}

/// Progress of a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Going,
    Done,
    /// The text is no list of arguments from here on.
    Broken,
}

impl Literal {
    /// Keyword arguments after `(`.
    pub fn keywords() -> Self {
        Self {
            open: vec![Bracket::Keywords],
            next: Next::Key(true),
            quote: String::new(),
        }
    }

    /// An object after `{`, whose strings stand between `quote` and `quote`.
    pub fn bare_keys(quote: &str) -> Self {
        Self {
            open: vec![Bracket::Object],
            next: Next::Key(true),
            quote: quote.to_owned(),
        }
    }

    /// An object or a list.
    pub fn structure() -> Self {
        Self {
            open: Vec::new(),
            next: Next::Value,
            quote: String::new(),
        }
    }

    /// Reads `text` and appends JSON to `out`. Returns the number of bytes read.
    pub fn advance(&mut self, text: &str, end: bool, out: &mut String) -> (usize, Status) {
        let mut cursor = Cursor::new(text, end);
        let mut read = 0;
        while self.next != Next::Done {
            match self.step(&mut cursor, out) {
                Ok(()) => read = cursor.at,
                Err(Doubt::More) => return (read, Status::Going),
                Err(Doubt::No)
                    if end && text.get(read..).is_none_or(|rest| rest.trim().is_empty()) =>
                {
                    return (read, Status::Going);
                }
                Err(Doubt::No) => return (read, Status::Broken),
            }
        }
        (read, Status::Done)
    }

    /// Reads one part, or more of a string. Changes nothing where more text is needed.
    fn step(&mut self, cursor: &mut Cursor<'_>, out: &mut String) -> Try<()> {
        if let Next::Text {
            until,
            escapes,
            key,
        } = &self.next
        {
            let (escapes, key) = (*escapes, *key);
            if copy_text(cursor, until, escapes, out)? {
                out.push('"');
                self.next = if key { Next::Colon } else { Next::Comma };
            }
            return Ok(());
        }
        cursor.space();
        let c = cursor.peek()?;
        match self.next.clone() {
            Next::Key(first) => self.key(c, first, cursor, out),
            Next::Colon => {
                cursor.expect(':')?;
                out.push_str(": ");
                self.next = Next::Value;
                Ok(())
            }
            Next::Value => self.value(c, "", cursor, out),
            Next::Item(first) => {
                if self.close(c, cursor, out) {
                    return Ok(());
                }
                self.value(c, if first { "" } else { ", " }, cursor, out)
            }
            Next::Comma => {
                if self.close(c, cursor, out) {
                    return Ok(());
                }
                cursor.expect(',')?;
                self.next = match self.open.last() {
                    Some(Bracket::List(_)) => Next::Item(false),
                    _ => Next::Key(false),
                };
                Ok(())
            }
            Next::Text { .. } | Next::Done => Ok(()),
        }
    }

    fn key(&mut self, c: char, first: bool, cursor: &mut Cursor<'_>, out: &mut String) -> Try<()> {
        if self.close(c, cursor, out) {
            return Ok(());
        }
        let comma = if first { "" } else { ", " };
        if self.open.last() == Some(&Bracket::Keywords) {
            let name = cursor.word(|c| c.is_alphanumeric() || "_-.".contains(c))?;
            cursor.space();
            cursor.expect('=')?;
            if name.is_empty() || cursor.peek()? == '=' {
                return Err(Doubt::No);
            }
            out.push_str(&format!("{comma}\"{}\": ", escaped(name)));
            self.next = Next::Value;
            return Ok(());
        }
        if let Some(next) = self.opened_text(c, true, cursor)? {
            out.push_str(comma);
            out.push('"');
            self.next = next;
            return Ok(());
        }
        let name = cursor.word(|c| !":,{}[]()\"'<>\n".contains(c))?;
        cursor.expect(':')?;
        if name.trim().is_empty() {
            return Err(Doubt::No);
        }
        out.push_str(&format!("{comma}\"{}\": ", escaped(name.trim())));
        self.next = Next::Value;
        Ok(())
    }

    fn value(
        &mut self,
        c: char,
        comma: &str,
        cursor: &mut Cursor<'_>,
        out: &mut String,
    ) -> Try<()> {
        if let Some(next) = self.opened_text(c, false, cursor)? {
            out.push_str(comma);
            out.push('"');
            self.next = next;
            return Ok(());
        }
        let opened = match c {
            '{' => Some((Bracket::Object, '{', Next::Key(true))),
            '[' => Some((Bracket::List(']'), '[', Next::Item(true))),
            '(' => Some((Bracket::List(')'), '[', Next::Item(true))),
            _ => None,
        };
        if let Some((bracket, json, next)) = opened {
            cursor.skip(c);
            out.push_str(comma);
            out.push(json);
            self.open.push(bracket);
            self.next = next;
            return Ok(());
        }
        let word = cursor.word(|c| !",{}[]()\"'<>:=\n".contains(c) && !c.is_whitespace())?;
        if word.is_empty() {
            return Err(Doubt::No);
        }
        out.push_str(comma);
        out.push_str(&constant(word));
        self.next = Next::Comma;
        Ok(())
    }

    /// Reads an opening quote, if one is next.
    fn opened_text(&self, c: char, key: bool, cursor: &mut Cursor<'_>) -> Try<Option<Next>> {
        let text = |until: &str, escapes| Next::Text {
            until: until.to_owned(),
            escapes,
            key,
        };
        if !self.quote.is_empty() && self.quote.starts_with(c) {
            if cursor.rest().starts_with(&self.quote) {
                cursor.at += self.quote.len();
                return Ok(Some(text(&self.quote, false)));
            }
            if self.quote.starts_with(cursor.rest()) {
                return Err(cursor.doubt());
            }
        }
        if c != '"' && c != '\'' {
            return Ok(None);
        }
        let triple = c.to_string().repeat(3);
        let rest = cursor.rest();
        if rest.starts_with(&triple) {
            cursor.at += 3;
            return Ok(Some(text(&triple, true)));
        }
        // Two quotes may be an empty string, or the beginning of three.
        if triple.starts_with(rest) && rest.len() == 2 && !cursor.is_last() {
            return Err(Doubt::More);
        }
        if rest.len() == 1 && !cursor.is_last() {
            return Err(Doubt::More);
        }
        cursor.skip(c);
        Ok(Some(text(&c.to_string(), true)))
    }

    /// Reads the bracket that closes the innermost one, if it is next.
    fn close(&mut self, c: char, cursor: &mut Cursor<'_>, out: &mut String) -> bool {
        let (closing, json) = match self.open.last() {
            Some(Bracket::Keywords) => (')', '}'),
            Some(Bracket::Object) => ('}', '}'),
            Some(Bracket::List(closing)) => (*closing, ']'),
            None => return false,
        };
        if c != closing {
            return false;
        }
        cursor.skip(c);
        out.push(json);
        self.open.pop();
        self.next = if self.open.is_empty() {
            Next::Done
        } else {
            Next::Comma
        };
        true
    }
}

/// JSON of a bare word: a constant, a number, or else a string.
fn constant(word: &str) -> String {
    match word {
        "True" | "true" => "true".into(),
        "False" | "false" => "false".into(),
        "None" | "null" => "null".into(),
        _ => match serde_json::from_str::<serde_json::Number>(word) {
            Ok(_) => word.into(),
            Err(_) => format!("\"{}\"", escaped(word)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON, the text that is left, and the status, with the text cut at each of its bytes in turn.
    fn translate(literal: &Literal, text: &str) -> (String, String, Status) {
        let whole = {
            let mut out = String::new();
            let (read, status) = literal.clone().advance(text, true, &mut out);
            (out, text[read..].to_owned(), status)
        };
        for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let mut literal = literal.clone();
            let mut out = String::new();
            let (read, _) = literal.advance(&text[..cut], false, &mut out);
            let (more, status) = literal.advance(&text[read..], true, &mut out);
            let rest = text[read + more..].to_owned();
            assert_eq!((out, rest, status), whole, "cut at {cut} of {text}");
        }
        whole
    }

    #[test]
    fn keyword_arguments_become_json() {
        for (text, json) in [
            (")", "}"),
            ("a=1, b='x'),", r#""a": 1, "b": "x"}"#),
            (
                r#"a="it's \"so\"\n", b=[True, None, -1.5e3], c={'k': (1, 2), "l": {}}, )"#,
                r#""a": "it's \"so\"\n", "b": [true, null, -1.5e3], "c": {"k": [1, 2], "l": {}}}"#,
            ),
            (
                r#"a = """x "y" z""", b='')"#,
                r#""a": "x \"y\" z", "b": ""}"#,
            ),
            (r"a='\ud83d\ude00\xe9\q')", "\"a\": \"😀é\\\\q\"}"),
            ("a=word)", r#""a": "word"}"#),
        ] {
            let (out, _, status) = translate(&Literal::keywords(), text);
            assert_eq!((out.as_str(), status), (json, Status::Done), "{text}");
        }
    }

    #[test]
    fn bare_keys_become_json() {
        let literal = Literal::bare_keys("<|q|>");
        let (out, rest, status) = translate(
            &literal,
            "a:<|q|>x \"y\" \\n<|q|>,b:{c:[1,<|q|>é<|q|>,true]},d:null}<end>",
        );
        assert_eq!(
            out,
            r#""a": "x \"y\" \\n", "b": {"c": [1, "é", true]}, "d": null}"#
        );
        assert_eq!((rest.as_str(), status), ("<end>", Status::Done));
    }

    #[test]
    fn what_is_no_argument_is_left() {
        for (text, left) in [("1, 2)", "1, 2)"), ("a=1 b=2)", " b=2)"), ("a=)", ")")] {
            let (_, rest, status) = translate(&Literal::keywords(), text);
            assert_eq!((rest.as_str(), status), (left, Status::Broken), "{text}");
        }
        for cut in ["a=1", "a='x", "a=[1,", "a='x\\", "a=''"] {
            let (_, _, status) = translate(&Literal::keywords(), cut);
            assert_eq!(status, Status::Going, "{cut}");
        }
    }
}
