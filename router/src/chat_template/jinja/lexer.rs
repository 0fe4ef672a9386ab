//! Splits a template into tokens, with Jinja2's rules for white space around tags (`trim_blocks` and `lstrip_blocks`).

use std::sync::Arc;

use super::error::{Error, Result};
use super::strings::is_space;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    Eof,
}

const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// Returns the tokens of `source`, each with its line.
pub fn tokenize(source: &str) -> Result<Vec<(u32, Token)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        rest: &source,
        line: 1,
        line_starting: true,
        tokens: Vec::new(),
    };
    lexer.root()?;
    let line = lexer.line;
    lexer.tokens.push((line, Token::Eof));
    Ok(lexer.tokens)
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Raw,
    Comment,
    Block,
    Variable,
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    /// True if the last text ended a line.
    line_starting: bool,
    tokens: Vec<(u32, Token)>,
}

impl<'a> Lexer<'a> {
    fn root(&mut self) -> Result<()> {
        while let Some((start, tag)) = next_tag(self.rest) {
            let text = &self.rest[..start];
            let after = &self.rest[start + 2..];
            let sign = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            self.data(text, sign, tag != Tag::Variable);
            self.line += count_lines(text);
            self.skip(start + 2 + sign.map_or(0, char::len_utf8));
            match tag {
                Tag::Raw => self.raw()?,
                Tag::Comment => self.comment()?,
                Tag::Block => self.tag(true)?,
                Tag::Variable => self.tag(false)?,
            }
        }
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.tokens.push((self.line, Token::Data(rest.to_owned())));
            self.line += count_lines(rest);
        }
        Ok(())
    }

    /// Reads the text before a tag, without the white space that the tag strips.
    fn data(&mut self, text: &str, sign: Option<char>, is_block: bool) {
        let mut kept = text;
        if sign == Some('-') {
            kept = text.trim_end_matches(is_space);
        } else if sign.is_none() && is_block {
            let line_start = text.rfind('\n').map_or(0, |at| at + 1);
            let indent = &text[line_start..];
            if (line_start > 0 || self.line_starting)
                && !indent.is_empty()
                && indent.chars().all(is_space)
            {
                kept = &text[..line_start];
            }
        }
        if !kept.is_empty() {
            self.tokens.push((self.line, Token::Data(kept.to_owned())));
        }
    }

    /// Advances by `bytes`, whose lines have been counted.
    fn skip(&mut self, bytes: usize) {
        if bytes > 0 {
            self.line_starting = self.rest[..bytes].ends_with('\n');
        }
        self.rest = &self.rest[bytes..];
    }

    fn advance(&mut self, bytes: usize) {
        self.line += count_lines(&self.rest[..bytes]);
        self.skip(bytes);
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest.find("#}") else {
            return Err(Error::syntax("Missing end of comment tag", self.line));
        };
        let sign = self.rest[..end].chars().next_back();
        let strips = sign == Some('-');
        let keeps = sign == Some('+');
        self.advance(end + 2);
        self.after_end(strips, !keeps);
        Ok(())
    }

    /// Skips white space after the end of a tag: all of it, or one line break.
    fn after_end(&mut self, strips: bool, trims: bool) {
        let mut bytes = 0;
        if strips {
            bytes = self.rest.len() - self.rest.trim_start_matches(is_space).len();
        } else if trims && self.rest.starts_with('\n') {
            bytes = 1;
        }
        self.advance(bytes);
    }

    /// Reads from `raw` of `{% raw %}` to the end of `{% endraw %}`.
    fn raw(&mut self) -> Result<()> {
        let line = self.line;
        let missing = || Error::syntax("Missing end of raw directive", line);
        let (bytes, strips) = raw_begin(self.rest).ok_or_else(missing)?;
        self.advance(bytes);
        if strips {
            self.after_end(true, false);
        }
        let mut from = 0;
        loop {
            let start = from + self.rest[from..].find("{%").ok_or_else(missing)?;
            let after = &self.rest[start + 2..];
            let sign = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            let inner = &after[sign.map_or(0, char::len_utf8)..];
            let Some((inner_bytes, end_sign)) = endraw(inner) else {
                from = start + 2;
                continue;
            };
            let text = &self.rest[..start];
            self.data(text, sign, true);
            let tag_bytes = 2 + sign.map_or(0, char::len_utf8) + inner_bytes;
            self.advance(start + tag_bytes);
            self.after_end(end_sign == Some('-'), end_sign != Some('+'));
            return Ok(());
        }
    }

    /// Reads the content of `{% %}` or `{{ }}`.
    fn tag(&mut self, is_block: bool) -> Result<()> {
        let begin = if is_block {
            Token::BlockBegin
        } else {
            Token::VariableBegin
        };
        self.tokens.push((self.line, begin));
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            if open.is_empty() && self.tag_end(is_block) {
                return Ok(());
            }
            let Some(first) = self.rest.chars().next() else {
                return Ok(());
            };
            if is_space(first) {
                let bytes = self.rest.len() - self.rest.trim_start_matches(is_space).len();
                self.advance(bytes);
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first.is_alphanumeric() || first == '_' {
                let end = self
                    .rest
                    .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(self.rest.len());
                let name = &self.rest[..end];
                self.tokens.push((self.line, Token::Name(name.into())));
                self.advance(end);
            } else if matches!(first, '\'' | '"') && self.string(first)? {
            } else {
                self.operator(first, &mut open)?;
            }
        }
    }

    /// Reads the end of the tag, if it follows.
    fn tag_end(&mut self, is_block: bool) -> bool {
        let (end, token) = if is_block {
            ("%}", Token::BlockEnd)
        } else {
            ("}}", Token::VariableEnd)
        };
        let (sign, rest) = match self.rest.chars().next() {
            Some('-') => (Some('-'), &self.rest[1..]),
            Some('+') if is_block => (Some('+'), &self.rest[1..]),
            _ => (None, self.rest),
        };
        if !rest.starts_with(end) {
            return false;
        }
        self.tokens.push((self.line, token));
        self.advance(2 + usize::from(sign.is_some()));
        self.after_end(sign == Some('-'), is_block && sign.is_none());
        true
    }

    fn operator(&mut self, first: char, open: &mut Vec<&'static str>) -> Result<()> {
        let Some(op) = OPERATORS.iter().find(|op| self.rest.starts_with(**op)) else {
            return Err(Error::syntax(
                format!("unexpected char {first:?}"),
                self.line,
            ));
        };
        match *op {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                None => {
                    return Err(Error::syntax(format!("unexpected '{op}'"), self.line));
                }
                Some(expected) if expected != *op => {
                    return Err(Error::syntax(
                        format!("unexpected '{op}', expected '{expected}'"),
                        self.line,
                    ));
                }
                Some(_) => {}
            },
            _ => {}
        }
        self.tokens.push((self.line, Token::Op(op)));
        self.advance(op.len());
        Ok(())
    }

    /// Reads a number. A digit after a dot (`items.0`) is an integer.
    fn number(&mut self) -> Result<()> {
        let after_dot = matches!(self.tokens.last(), Some((_, Token::Op("."))));
        let bytes = self.rest.as_bytes();
        if let (b'0', Some(base)) = (bytes[0], bytes.get(1).and_then(|b| base_of(*b))) {
            let digits = digits_end(&bytes[2..], true, |b| (b as char).is_digit(base));
            if digits > 0 {
                let text = self.rest[2..2 + digits].replace('_', "");
                return self.integer(&text, base, 2 + digits);
            }
        }
        let whole = digits_end(bytes, false, |b| b.is_ascii_digit());
        if !after_dot && let Some(end) = float_end(bytes, whole) {
            let text = self.rest[..end].replace('_', "");
            let value = text
                .parse()
                .map_err(|_| Error::syntax("not a number", self.line))?;
            self.tokens.push((self.line, Token::Float(value)));
            self.advance(end);
            return Ok(());
        }
        let end = if bytes[0] == b'0' {
            digits_end(bytes, false, |b| b == b'0')
        } else {
            whole
        };
        let text = self.rest[..end].replace('_', "");
        self.integer(&text, 10, end)
    }

    fn integer(&mut self, digits: &str, base: u32, bytes: usize) -> Result<()> {
        let value = i128::from_str_radix(digits, base)
            .map_err(|_| Error::refused("an integer beyond 128 bits").at(self.line))?;
        self.tokens.push((self.line, Token::Int(value)));
        self.advance(bytes);
        Ok(())
    }

    /// Reads a string; `false` when it does not end.
    fn string(&mut self, quote: char) -> Result<bool> {
        let mut escaped = false;
        let end = self.rest[1..].char_indices().find(|(_, c)| {
            let ends = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let Some((length, _)) = end else {
            return Ok(false);
        };
        let text = super::escapes::unescape(&self.rest[1..1 + length])
            .map_err(|error| error.at(self.line))?;
        self.tokens.push((self.line, Token::Str(text)));
        self.advance(length + 2);
        Ok(true)
    }
}

/// Finds the next tag, and where it begins.
fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let mut from = 0;
    loop {
        let start = from + text[from..].find('{')?;
        let tag = match text.as_bytes().get(start + 1) {
            Some(b'{') => Some(Tag::Variable),
            Some(b'#') => Some(Tag::Comment),
            Some(b'%') => {
                let inner = text[start + 2..].trim_start_matches(['-', '+']);
                let signs = text[start + 2..].len() - inner.len();
                let is_raw = signs <= 1 && raw_begin(inner).is_some();
                Some(if is_raw { Tag::Raw } else { Tag::Block })
            }
            _ => None,
        };
        match tag {
            Some(tag) => return Some((start, tag)),
            None => from = start + 1,
        }
    }
}

/// Returns the length of ` raw %}`, and true if a dash strips the white space after it.
fn raw_begin(text: &str) -> Option<(usize, bool)> {
    let rest = text.trim_start_matches(is_space).strip_prefix("raw")?;
    let rest = rest.trim_start_matches(is_space);
    let (rest, strips) = match rest.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let rest = rest.strip_prefix("%}")?;
    Some((text.len() - rest.len(), strips))
}

/// Returns the length of ` endraw %}` and the sign at its end.
fn endraw(text: &str) -> Option<(usize, Option<char>)> {
    let rest = text.trim_start_matches(is_space).strip_prefix("endraw")?;
    let rest = rest.trim_start_matches(is_space);
    let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
    let rest = rest[sign.map_or(0, char::len_utf8)..].strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign))
}

fn base_of(letter: u8) -> Option<u32> {
    match letter {
        b'b' | b'B' => Some(2),
        b'o' | b'O' => Some(8),
        b'x' | b'X' => Some(16),
        _ => None,
    }
}

/// Returns the end of digits with single underscores between them. With `leading`, an underscore may precede the first.
fn digits_end(bytes: &[u8], leading: bool, is_digit: impl Fn(u8) -> bool) -> usize {
    let mut end = 0;
    loop {
        let underscore = usize::from(bytes.get(end) == Some(&b'_') && (end > 0 || leading));
        match bytes.get(end + underscore) {
            Some(byte) if is_digit(*byte) => end += underscore + 1,
            _ => return end,
        }
    }
}

/// Returns the end of a float whose whole part ends at `whole`; `None` for an integer.
fn float_end(bytes: &[u8], whole: usize) -> Option<usize> {
    let digits = |from: usize| digits_end(&bytes[from..], false, |b| b.is_ascii_digit());
    let mut end = whole;
    if bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let from = end + 1 + sign;
        if from <= bytes.len() && digits(from) > 0 {
            end = from + digits(from);
        }
    }
    (end > whole).then_some(end)
}

fn count_lines(text: &str) -> u32 {
    text.bytes().filter(|byte| *byte == b'\n').count() as u32
}
