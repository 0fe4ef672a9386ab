//! Reads EBNF with `::=`.

use std::collections::HashMap;

/// Maximum depth of nested groups.
const MAX_DEPTH: usize = 200;

/// Maximum number in a repetition.
const MAX_TIMES: u32 = 100_000;

/// A rule. Rules refer to each other by their index.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub body: Expression,
}

#[derive(Debug)]
pub enum Expression {
    Literal(String),
    /// A regular expression that matches one character.
    Class(String),
    Rule(usize),
    Sequence(Vec<Expression>),
    Choice(Vec<Expression>),
    Repeat(Box<Expression>, u32, Option<u32>),
}

/// Reads the rules of a grammar.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let mut parser = Parser {
        rest: text,
        text,
        indices: HashMap::new(),
        names: Vec::new(),
    };
    let mut bodies: Vec<Option<Expression>> = Vec::new();
    while parser.skip_blank() {
        let name = parser
            .rule_start()
            .ok_or_else(|| parser.error("a rule is written `name ::= …`"))?;
        let index = parser.index_of(&name);
        let body = parser.choice(0)?;
        bodies.resize_with(parser.names.len(), || None);
        if bodies[index].replace(body).is_some() {
            return Err(parser.error(&format!("the rule `{name}` is defined twice")));
        }
    }
    let names = parser.names.iter().zip(bodies);
    names
        .map(|((name, line), body)| match body {
            Some(body) => Ok(Rule {
                name: name.clone(),
                body,
            }),
            None => Err(format!("line {line}: there is no rule `{name}`")),
        })
        .collect()
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    indices: HashMap<String, usize>,
    /// Names of rules, with the line of their first mention.
    names: Vec<(String, usize)>,
}

impl<'a> Parser<'a> {
    fn line(&self) -> usize {
        let read = &self.text[..self.text.len() - self.rest.len()];
        read.matches('\n').count() + 1
    }

    fn error(&self, message: &str) -> String {
        format!("line {}: {message}", self.line())
    }

    fn index_of(&mut self, name: &str) -> usize {
        if let Some(index) = self.indices.get(name) {
            return *index;
        }
        let index = self.names.len();
        self.names.push((name.to_owned(), self.line()));
        self.indices.insert(name.to_owned(), index);
        index
    }

    /// Skips whitespace and comments. Returns false at the end of the text.
    fn skip_blank(&mut self) -> bool {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.find('\n').map_or("", |end| &comment[end..]),
                None => return !self.rest.is_empty(),
            }
        }
    }

    /// Reads `name ::=`, or nothing.
    fn rule_start(&mut self) -> Option<String> {
        let (name, rest) = split_name(self.rest)?;
        let rest = rest.trim_start().strip_prefix("::=")?;
        self.rest = rest;
        Some(name.to_owned())
    }

    fn choice(&mut self, depth: usize) -> Result<Expression, String> {
        if depth > MAX_DEPTH {
            return Err(self.error("groups are nested too deeply"));
        }
        let mut options = vec![self.sequence(depth)?];
        while self.skip_blank() {
            let Some(rest) = self.rest.strip_prefix('|') else {
                break;
            };
            self.rest = rest;
            options.push(self.sequence(depth)?);
        }
        Ok(one_or(options, Expression::Choice))
    }

    fn sequence(&mut self, depth: usize) -> Result<Expression, String> {
        let mut items = Vec::new();
        while self.skip_blank() && !self.rest.starts_with(['|', ')']) && !self.starts_rule() {
            let item = self.item(depth)?;
            items.push(self.repeated(item)?);
        }
        Ok(one_or(items, Expression::Sequence))
    }

    fn starts_rule(&self) -> bool {
        split_name(self.rest).is_some_and(|(_, rest)| rest.trim_start().starts_with("::="))
    }

    fn item(&mut self, depth: usize) -> Result<Expression, String> {
        let mut characters = self.rest.chars();
        match characters.next() {
            Some('"') => self.literal(),
            Some('[') => self.class(),
            Some('.') => {
                self.rest = characters.as_str();
                Ok(Expression::Class("(?s:.)".to_owned()))
            }
            Some('(') => {
                self.rest = characters.as_str();
                let inside = self.choice(depth + 1)?;
                self.skip_blank();
                let rest = self.rest.strip_prefix(')');
                self.rest = rest.ok_or_else(|| self.error("`)` is missing"))?;
                Ok(inside)
            }
            _ => match split_name(self.rest) {
                Some((name, rest)) => {
                    let index = self.index_of(name);
                    self.rest = rest;
                    Ok(Expression::Rule(index))
                }
                None => {
                    let found: String = self.rest.chars().take(10).collect();
                    Err(self.error(&format!("`{found}` is not expected")))
                }
            },
        }
    }

    fn literal(&mut self) -> Result<Expression, String> {
        let mut text = String::new();
        let mut rest = &self.rest[1..];
        loop {
            let mut characters = rest.chars();
            match characters.next() {
                None | Some('\n') => return Err(self.error("a text is not closed")),
                Some('"') => {
                    self.rest = characters.as_str();
                    return Ok(Expression::Literal(text));
                }
                Some('\\') => text.push(self.escaped(&mut characters)?),
                Some(character) => text.push(character),
            }
            rest = characters.as_str();
        }
    }

    /// Reads a class as a regular expression in Rust's syntax.
    fn class(&mut self) -> Result<Expression, String> {
        let mut characters = self.rest[1..].chars();
        let mut regex = "[".to_owned();
        if let Some(rest) = characters.as_str().strip_prefix('^') {
            regex.push('^');
            characters = rest.chars();
        }
        loop {
            let character = match characters.next() {
                None => return Err(self.error("a class is not closed")),
                Some(']') => break,
                Some('-') => {
                    regex.push('-');
                    continue;
                }
                Some('\\') => self.escaped(&mut characters)?,
                Some(character) => character,
            };
            if character.is_ascii_alphanumeric() || character == ' ' || !character.is_ascii() {
                regex.push(character);
            } else {
                regex.push_str(&escaped_in_class(character));
            }
        }
        self.rest = characters.as_str();
        if regex == "[" || regex == "[^" {
            return Err(self.error("a class is empty"));
        }
        regex.push(']');
        Ok(Expression::Class(regex))
    }

    /// Reads the rest of an escaped character.
    fn escaped(&self, characters: &mut std::str::Chars<'a>) -> Result<char, String> {
        let by_number = |characters: &mut std::str::Chars<'a>, digits: usize| {
            let (number, rest) = characters.as_str().split_at_checked(digits)?;
            *characters = rest.chars();
            char::from_u32(u32::from_str_radix(number, 16).ok()?)
        };
        let found = match characters.next() {
            Some('n') => Some('\n'),
            Some('t') => Some('\t'),
            Some('r') => Some('\r'),
            Some('x') => by_number(characters, 2),
            Some('u') => by_number(characters, 4),
            Some('U') => by_number(characters, 8),
            Some(character) if !character.is_alphanumeric() => Some(character),
            _ => None,
        };
        found.ok_or_else(|| self.error("an escaped character is not valid"))
    }

    fn repeated(&mut self, mut item: Expression) -> Result<Expression, String> {
        loop {
            let (min, max, rest) = match self.rest.chars().next() {
                Some('*') => (0, None, &self.rest[1..]),
                Some('+') => (1, None, &self.rest[1..]),
                Some('?') => (0, Some(1), &self.rest[1..]),
                Some('{') => self.bounds()?,
                _ => return Ok(item),
            };
            self.rest = rest;
            item = Expression::Repeat(Box::new(item), min, max);
        }
    }

    /// Reads `{3}`, `{3,}` or `{3,5}`.
    fn bounds(&self) -> Result<(u32, Option<u32>, &'a str), String> {
        let wrong = || self.error("a repetition is written `{3}`, `{3,}` or `{3,5}`");
        let number = |text: &str| {
            let number = text.trim().parse::<u32>().ok();
            number
                .filter(|number| *number <= MAX_TIMES)
                .ok_or_else(wrong)
        };
        let (inside, rest) = self.rest[1..].split_once('}').ok_or_else(wrong)?;
        let (min, max) = match inside.split_once(',') {
            None => (number(inside)?, Some(number(inside)?)),
            Some((min, "")) => (number(min)?, None),
            Some((min, max)) => (number(min)?, Some(number(max)?)),
        };
        if max.is_some_and(|max| max < min) {
            return Err(wrong());
        }
        Ok((min, max, rest))
    }
}

/// Splits a rule's name from a text that begins with it.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A character as it is written in a class of a regular expression that stands between slashes.
fn escaped_in_class(character: char) -> String {
    match character {
        '\n' => r"\n".to_owned(),
        '\t' => r"\t".to_owned(),
        '\r' => r"\r".to_owned(),
        c if c.is_ascii_control() => format!(r"\x{:02x}", u32::from(c)),
        c => format!(r"\{c}"),
    }
}

/// The only item, or all of them.
fn one_or(mut items: Vec<Expression>, all: impl Fn(Vec<Expression>) -> Expression) -> Expression {
    match (items.len(), items.pop()) {
        (1, Some(only)) => only,
        (_, Some(last)) => {
            items.push(last);
            all(items)
        }
        (_, None) => all(items),
    }
}
