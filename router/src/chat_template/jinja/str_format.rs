//! The method `str.format`.

use super::attributes;
use super::call::CallArguments;
use super::error::{Error, Result};
use super::format_spec::format_value;
use super::meter;
use super::repr;
use super::value::Value;

/// Evaluates `text.format(*args, **kwargs)`.
pub fn format(text: &str, arguments: &CallArguments) -> Result<String> {
    let mut formatter = Formatter {
        arguments,
        next: Numbering::Unknown,
    };
    formatter.format(text, 2)
}

enum Numbering {
    Unknown,
    Automatic(usize),
    Manual,
}

struct Formatter<'a> {
    arguments: &'a CallArguments,
    next: Numbering,
}

impl Formatter<'_> {
    fn format(&mut self, text: &str, depth: usize) -> Result<String> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(Error::runtime("Max string recursion exceeded"));
        };
        meter::scan(text.len())?;
        let mut out = repr::Out::default();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push(&rest[..at])?;
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push(brace)?;
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(Error::runtime("Single '}' encountered in format string"));
            }
            let end =
                closing(rest).ok_or_else(|| Error::runtime("expected '}' before end of string"))?;
            let field = self.field(&rest[..end], deeper)?;
            out.push(&field)?;
            rest = &rest[end + 1..];
        }
        out.push(rest)?;
        Ok(out.take())
    }

    /// Writes the field `{name!conversion:spec}`.
    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        let mut brackets = 0;
        let name_end = field
            .find(|c| {
                brackets += i32::from(c == '[') - i32::from(c == ']');
                brackets <= 0 && matches!(c, '!' | ':')
            })
            .unwrap_or(field.len());
        let (name, rest) = field.split_at(name_end);
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(after) => {
                let kind = after
                    .chars()
                    .next()
                    .ok_or_else(|| Error::runtime("unmatched '{' in format spec"))?;
                let after = &after[kind.len_utf8()..];
                if !after.is_empty() && !after.starts_with(':') {
                    return Err(Error::runtime("expected ':' after conversion specifier"));
                }
                (Some(kind), after.strip_prefix(':').unwrap_or(""))
            }
            None => (None, rest.strip_prefix(':').unwrap_or("")),
        };
        let mut value = self.value(name)?;
        match conversion {
            None => {}
            Some('s') => value = Value::str(repr::to_string(&value)?),
            Some('r') => value = Value::str(repr::to_repr(&value)?),
            Some('a') => value = Value::str(repr::ascii(&repr::to_repr(&value)?)),
            Some(other) => {
                return Err(Error::runtime(format!(
                    "Unknown conversion specifier {other}"
                )));
            }
        }
        let spec = if spec.contains(['{', '}']) {
            self.format(spec, depth)?
        } else {
            spec.to_owned()
        };
        format_value(&value, &spec)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let first_end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(first_end);
        let mut value = if first.is_empty() && !path.is_empty() {
            return Err(Error::runtime("''"));
        } else if first.is_empty() {
            let at = match self.next {
                Numbering::Unknown => 0,
                Numbering::Automatic(next) => next,
                Numbering::Manual => {
                    return Err(Error::runtime(
                        "cannot switch from manual field specification to automatic field numbering",
                    ));
                }
            };
            self.next = Numbering::Automatic(at + 1);
            self.positional(at)?
        } else if first.bytes().all(|byte| byte.is_ascii_digit()) {
            if matches!(self.next, Numbering::Automatic(_)) {
                return Err(Error::runtime(
                    "cannot switch from manual field specification to automatic field numbering",
                ));
            }
            self.next = Numbering::Manual;
            self.positional(first.parse().unwrap_or(usize::MAX))?
        } else {
            let named = &self.arguments.named;
            let found = named.iter().find(|(key, _)| **key == *first);
            found
                .map(|(_, value)| value.clone())
                .ok_or_else(|| Error::runtime(format!("'{first}'")))?
        };
        while !path.is_empty() {
            if let Some(after) = path.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                if end == 0 {
                    return Err(Error::runtime("Empty attribute in format string"));
                }
                value = attributes::attribute(&value, &after[..end])?;
                path = &after[end..];
            } else if let Some(after) = path.strip_prefix('[') {
                let end = after
                    .find(']')
                    .ok_or_else(|| Error::runtime("Missing ']' in format string"))?;
                let key = &after[..end];
                let item = match key.parse::<u64>() {
                    Ok(number) => Value::Int(i128::from(number)),
                    Err(_) => Value::str(key),
                };
                value = attributes::item(&value, &item)?;
                path = &after[end + 1..];
            } else {
                return Err(Error::runtime(
                    "Only '.' or '[' may follow ']' in format field specifier",
                ));
            }
        }
        Ok(value)
    }

    fn positional(&self, at: usize) -> Result<Value> {
        let value = self.arguments.positional.get(at).cloned();
        value.ok_or_else(|| {
            Error::runtime("Replacement index out of range for positional args tuple")
        })
    }
}

/// Finds the end of the field at the beginning of `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}
