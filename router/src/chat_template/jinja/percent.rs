//! The operator `format % values`.

use std::rc::Rc;

use super::error::{Error, Result};
use super::floats::{float_digits, int_digits};
use super::meter;
use super::numbers::{parse_float, truncate};
use super::repr;
use super::strings;
use super::value::{Dict, Items, Value};

/// Evaluates `text % values`.
pub fn format(text: &str, values: &Value) -> Result<String> {
    meter::scan(text.len())?;
    let mut values = Values::new(values);
    let mut out = repr::Out::default();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let (directive, after) = Directive::parse(rest, &mut values)?;
        rest = after;
        directive.write(&mut values, &mut out)?;
    }
    out.push(rest)?;
    values.check_all_used()?;
    Ok(out.take())
}

/// The values of the directives.
struct Values<'a> {
    all: &'a Value,
    tuple: Option<&'a Rc<Items>>,
    dict: Option<&'a Rc<Dict>>,
    used: usize,
    key: Option<Value>,
}

impl<'a> Values<'a> {
    fn new(all: &'a Value) -> Self {
        Self {
            all,
            tuple: match all {
                Value::Tuple(items) | Value::Group(items) => Some(items),
                _ => None,
            },
            dict: match all {
                Value::Dict(dict) => Some(dict),
                _ => None,
            },
            used: 0,
            key: None,
        }
    }

    fn next(&mut self) -> Result<Value> {
        if let Some(value) = self.key.take() {
            return Ok(value);
        }
        let at = self.used;
        self.used += 1;
        let value = match self.tuple {
            Some(items) => items.get(at).cloned(),
            None => (at == 0).then(|| self.all.clone()),
        };
        value.ok_or_else(|| Error::runtime("not enough arguments for format string"))
    }

    fn check_all_used(&self) -> Result<()> {
        let complete = match self.tuple {
            Some(items) => self.used >= items.len(),
            // A dict or list need not be used up: Python treats it as a mapping.
            None => {
                self.used > 0
                    || matches!(
                        self.all,
                        Value::Dict(_)
                            | Value::List(_)
                            | Value::Undefined(_)
                            | Value::Range(_)
                            | Value::Namespace(_)
                    )
            }
        };
        if complete {
            return Ok(());
        }
        Err(Error::runtime(
            "not all arguments converted during string formatting",
        ))
    }
}

/// One directive `%…`.
struct Directive {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    kind: char,
}

impl Directive {
    fn parse<'t>(text: &'t str, values: &mut Values<'_>) -> Result<(Self, &'t str)> {
        let incomplete = || Error::runtime("incomplete format");
        let mut directive = Self {
            left: false,
            plus: false,
            space: false,
            alternate: false,
            zero: false,
            width: 0,
            precision: None,
            kind: '%',
        };
        let mut rest = text;
        if let Some(after) = rest.strip_prefix('(') {
            let mut depth = 1;
            let end = after.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let end = end.ok_or_else(|| Error::runtime("incomplete format key"))?;
            let dict = values
                .dict
                .ok_or_else(|| Error::runtime("format requires a mapping"))?;
            let key = &after[..end];
            let value = dict
                .get_str(key)
                .ok_or_else(|| Error::runtime(format!("'{key}'")))?;
            values.key = Some(value.clone());
            rest = &after[end + 1..];
        }
        loop {
            match rest.as_bytes().first() {
                Some(b'-') => directive.left = true,
                Some(b'+') => directive.plus = true,
                Some(b' ') => directive.space = true,
                Some(b'#') => directive.alternate = true,
                Some(b'0') => directive.zero = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        let (width, after) = count(rest, values)?;
        rest = after;
        if let Some(width) = width {
            directive.left |= width < 0;
            directive.width = bounded(width.unsigned_abs())?;
        }
        if let Some(after) = rest.strip_prefix('.') {
            let (precision, after) = count(after, values)?;
            directive.precision = Some(bounded(precision.unwrap_or(0).max(0) as u128)?);
            rest = after;
        }
        if let Some(b'h' | b'l' | b'L') = rest.as_bytes().first() {
            rest = &rest[1..];
        }
        directive.kind = rest.chars().next().ok_or_else(incomplete)?;
        let after = &rest[directive.kind.len_utf8()..];
        Ok((directive, after))
    }

    fn write(&self, values: &mut Values<'_>, out: &mut repr::Out) -> Result<()> {
        if self.kind == '%' {
            if values.key.is_some() || self.width > 0 || self.precision.is_some() {
                return Err(Error::refused("`%%` with a width, precision or key"));
            }
            return out.push("%");
        }
        let text = match self.kind {
            's' | 'r' | 'a' => {
                let value = values.next()?;
                if matches!(value, Value::Markup(_)) && self.kind == 's' {
                    return Err(Error::refused("formatting an escaped string"));
                }
                let text = match self.kind {
                    's' => repr::to_string(&value)?,
                    'r' => repr::to_repr(&value)?,
                    _ => repr::ascii(&repr::to_repr(&value)?),
                };
                return match self.precision {
                    Some(precision) => {
                        self.pad("", strings::slice(&text, 0, precision), false, out)
                    }
                    None => self.pad("", &text, false, out),
                };
            }
            'c' => match values.next()? {
                Value::Str(text) if strings::length(&text) == 1 => text.to_string(),
                Value::Str(_) => return Err(Error::runtime("%c requires int or char")),
                other => {
                    let code = other
                        .as_int()
                        .ok_or_else(|| Error::runtime("%c requires int or char"))?;
                    let code = u32::try_from(code).ok().and_then(char::from_u32);
                    code.ok_or_else(|| Error::runtime("%c arg not in range(0x110000)"))?
                        .to_string()
                }
            },
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let value = values.next()?;
                let number = match &value {
                    Value::Float(number) if matches!(self.kind, 'd' | 'i' | 'u') => {
                        truncate(*number)?
                    }
                    other => other
                        .as_int()
                        .ok_or_else(|| self.wrong_type("a real number", other))?,
                };
                let (prefix, mut digits) = int_digits(number, self.kind, self.alternate);
                if let Some(precision) = self.precision {
                    meter::reserve(precision)?;
                    digits = format!("{digits:0>precision$}");
                }
                let sign = self.sign(number < 0);
                return self.pad(&format!("{sign}{prefix}"), &digits, true, out);
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let value = values.next()?;
                let number = match &value {
                    Value::Float(number) => *number,
                    Value::Str(_) | Value::Markup(_) => {
                        return Err(self.wrong_type("real number", &value));
                    }
                    other => other
                        .as_int()
                        .map(|number| number as f64)
                        .ok_or_else(|| self.wrong_type("real number", other))?,
                };
                let precision = self.precision.unwrap_or(6);
                let digits = float_digits(number, self.kind, precision, self.alternate)?;
                let sign = self.sign(number.is_sign_negative() && !number.is_nan());
                return self.pad(sign, &digits, true, out);
            }
            other => {
                return Err(Error::runtime(format!(
                    "unsupported format character '{other}'"
                )));
            }
        };
        self.pad("", &text, false, out)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn pad(&self, prefix: &str, text: &str, number: bool, out: &mut repr::Out) -> Result<()> {
        let length = strings::length(prefix) + strings::length(text);
        let missing = self.width.saturating_sub(length);
        meter::reserve(missing)?;
        let zeros = number && self.zero && !self.left;
        if missing > 0 && !self.left && !zeros {
            out.push(&" ".repeat(missing))?;
        }
        out.push(prefix)?;
        if zeros {
            out.push(&"0".repeat(missing))?;
        }
        out.push(text)?;
        if missing > 0 && self.left {
            out.push(&" ".repeat(missing))?;
        }
        Ok(())
    }

    fn wrong_type(&self, wanted: &str, value: &Value) -> Error {
        Error::runtime(format!(
            "%{} format: {wanted} is required, not {}",
            self.kind,
            value.type_name()
        ))
    }
}

/// Parses digits, or `*` for a value.
fn count<'t>(text: &'t str, values: &mut Values<'_>) -> Result<(Option<i128>, &'t str)> {
    if let Some(rest) = text.strip_prefix('*') {
        let value = values.next()?;
        let number = value
            .as_int()
            .ok_or_else(|| Error::runtime("* wants int"))?;
        return Ok((Some(number), rest));
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number = text[..end].parse().ok();
    Ok((number, &text[end..]))
}

fn bounded(number: u128) -> Result<usize> {
    usize::try_from(number)
        .ok()
        .filter(|number| *number < 1 << 31)
        .ok_or_else(|| Error::runtime("width too big"))
}

/// Evaluates `float(value)`.
pub fn to_float(value: &Value) -> Result<f64> {
    match value {
        Value::Float(number) => Ok(*number),
        Value::Undefined(undefined) => Err(undefined.error()),
        Value::Str(text) | Value::Markup(text) => parse_float(text).ok_or_else(|| {
            Error::runtime(format!(
                "could not convert string to float: {}",
                repr::quote(text)
            ))
        }),
        other => other.as_int().map(|number| number as f64).ok_or_else(|| {
            Error::runtime(format!(
                "float() argument must be a string or a real number, not '{}'",
                other.type_name()
            ))
        }),
    }
}
