//! The function `format(value, spec)`, which writes the fields of `str.format`.

use super::error::{Error, Result};
use super::floats::{float_digits, general, int_digits};
use super::value::Value;
use super::{meter, repr, strings};

/// Evaluates `format(value, spec)`.
pub fn format_value(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return repr::to_string(value);
    }
    let spec = Spec::parse(spec, value)?;
    match value {
        Value::Str(text) => spec.string(text),
        Value::Int(number) => spec.int(*number),
        Value::Bool(flag) => spec.int(i128::from(*flag)),
        Value::Float(number) => spec.float(*number, None),
        Value::Markup(_) => Err(Error::refused("formatting an escaped string")),
        other => Err(Error::runtime(format!(
            "unsupported format string passed to {}.__format__",
            other.type_name()
        ))),
    }
}

/// Parsed form of `[[fill]align][sign][z][#][0][width][grouping][.precision][type]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    no_negative_zero: bool,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str, value: &Value) -> Result<Self> {
        let mut chars: Vec<char> = text.chars().collect();
        chars.reverse();
        let is_align = |c: &char| matches!(c, '<' | '>' | '=' | '^');
        let mut spec = Self {
            fill: ' ',
            align: None,
            sign: '-',
            no_negative_zero: false,
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        };
        let mut has_fill = false;
        if chars.len() >= 2 && is_align(&chars[chars.len() - 2]) {
            spec.fill = chars.pop().unwrap_or(' ');
            spec.align = chars.pop();
            has_fill = true;
        } else if chars.last().is_some_and(is_align) {
            spec.align = chars.pop();
        }
        if let Some(sign) = chars.pop_if(|c| matches!(c, '+' | '-' | ' ')) {
            spec.sign = sign;
        }
        spec.no_negative_zero = chars.pop_if(|c| *c == 'z').is_some();
        spec.alternate = chars.pop_if(|c| *c == '#').is_some();
        if !has_fill && chars.pop_if(|c| *c == '0').is_some() {
            spec.fill = '0';
            if spec.align.is_none() && !matches!(value, Value::Str(_)) {
                spec.align = Some('=');
            }
        }
        if let Some(width) = digits(&mut chars)? {
            spec.width = width;
        }
        spec.grouping = chars.pop_if(|c| matches!(c, ',' | '_'));
        if chars.pop_if(|c| *c == '.').is_some() {
            let precision = digits(&mut chars)?;
            spec.precision = Some(
                precision.ok_or_else(|| Error::runtime("Format specifier missing precision"))?,
            );
        }
        spec.kind = chars.pop();
        if !chars.is_empty() {
            return Err(Error::runtime("Invalid format specifier"));
        }
        Ok(spec)
    }

    fn string(&self, text: &str) -> Result<String> {
        let fits = matches!(self.kind, None | Some('s'))
            && self.align != Some('=')
            && self.sign == '-'
            && !self.alternate
            && !self.no_negative_zero
            && self.grouping.is_none();
        if !fits {
            return Err(Error::runtime("Format specifier not allowed for strings"));
        }
        let text = match self.precision {
            Some(precision) => strings::slice(text, 0, precision),
            None => text,
        };
        self.pad("", text, '<')
    }

    fn int(&self, number: i128) -> Result<String> {
        if let Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') = self.kind {
            return self.float(number as f64, self.kind);
        }
        if self.precision.is_some() {
            return Err(Error::runtime(
                "Precision not allowed in integer format specifier",
            ));
        }
        if self.no_negative_zero {
            return Err(Error::runtime(
                "Negative zero coercion (z) not allowed in format specifier with integer format code",
            ));
        }
        let kind = self.kind.unwrap_or('d');
        match kind {
            'c' => {
                let c = u32::try_from(number).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| Error::runtime("%c arg not in range(0x110000)"))?;
                self.pad("", &c.to_string(), '<')
            }
            'n' => Err(Error::refused("the format type `n`")),
            'b' | 'o' | 'x' | 'X' | 'd' => {
                if self.grouping == Some(',') && kind != 'd' {
                    return Err(Error::runtime("Cannot specify ',' with this format"));
                }
                let (prefix, digits) = int_digits(number, kind, self.alternate);
                let size = if kind == 'd' { 3 } else { 4 };
                let prefix = format!("{}{prefix}", self.sign_of(number < 0));
                let digits = self.group(&prefix, &digits, "", size)?;
                self.pad(&prefix, &digits, '>')
            }
            other => Err(Error::runtime(format!(
                "Unknown format code '{other}' for object of type 'int'"
            ))),
        }
    }

    fn float(&self, number: f64, kind: Option<char>) -> Result<String> {
        let kind = kind.or(self.kind);
        let magnitude = number.abs();
        let digits = match kind {
            None => match self.precision {
                None if !number.is_finite() => float_digits(number, 'f', 0, false)?,
                None => super::numbers::float_repr(magnitude),
                Some(_) if !number.is_finite() => float_digits(number, 'f', 0, false)?,
                Some(precision) if precision > 1000 => float_digits(number, 'g', precision, false)?,
                Some(precision) => general(magnitude, precision.max(1), self.alternate, true),
            },
            Some('%') => {
                let mut digits = float_digits(
                    number * 100.0,
                    'f',
                    self.precision.unwrap_or(6),
                    self.alternate,
                )?;
                digits.push('%');
                digits
            }
            Some('e' | 'E' | 'f' | 'F' | 'g' | 'G') => float_digits(
                number,
                kind.unwrap_or('g'),
                self.precision.unwrap_or(6),
                self.alternate,
            )?,
            Some('n') => return Err(Error::refused("the format type `n`")),
            Some(other) => {
                return Err(Error::runtime(format!(
                    "Unknown format code '{other}' for object of type 'float'"
                )));
            }
        };
        let is_zero = digits.chars().all(|c| matches!(c, '0' | '.' | '%'));
        let negative =
            number.is_sign_negative() && !number.is_nan() && !(self.no_negative_zero && is_zero);
        let prefix = self.sign_of(negative);
        let whole_end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        let (whole, rest) = digits.split_at(whole_end);
        let whole = self.group(prefix, whole, rest, 3)?;
        self.pad(prefix, &format!("{whole}{rest}"), '>')
    }

    fn sign_of(&self, negative: bool) -> &'static str {
        match (negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        }
    }

    /// Puts separators between groups of digits, and zeros before them if the width needs zeros.
    fn group(&self, prefix: &str, digits: &str, rest: &str, size: usize) -> Result<String> {
        let Some(separator) = self.grouping else {
            return Ok(digits.to_owned());
        };
        let mut digits = digits.to_owned();
        if self.fill == '0' && self.align == Some('=') {
            let wanted = self.width.saturating_sub(prefix.len() + rest.len());
            meter::reserve(wanted)?;
            while digits.len() + (digits.len() - 1) / size < wanted {
                meter::spend(1)?;
                digits.insert(0, '0');
            }
        }
        let first = digits.len() % size;
        let mut grouped = digits[..first].to_owned();
        for chunk in digits.as_bytes()[first..].chunks(size) {
            if !grouped.is_empty() {
                grouped.push(separator);
            }
            grouped.push_str(std::str::from_utf8(chunk).unwrap_or_default());
        }
        Ok(grouped)
    }

    fn pad(&self, prefix: &str, text: &str, default_align: char) -> Result<String> {
        let length = strings::length(prefix) + strings::length(text);
        let missing = self.width.saturating_sub(length);
        meter::reserve_many(missing, self.fill.len_utf8())?;
        let fill = |count: usize| self.fill.to_string().repeat(count);
        Ok(match self.align.unwrap_or(default_align) {
            '<' => format!("{prefix}{text}{}", fill(missing)),
            '^' => format!(
                "{}{prefix}{text}{}",
                fill(missing / 2),
                fill(missing - missing / 2)
            ),
            '=' => format!("{prefix}{}{text}", fill(missing)),
            _ => format!("{}{prefix}{text}", fill(missing)),
        })
    }
}

fn digits(reversed: &mut Vec<char>) -> Result<Option<usize>> {
    let mut number = None;
    while let Some(digit) = reversed.pop_if(|c| c.is_ascii_digit()) {
        let digit = digit.to_digit(10).unwrap_or_default() as usize;
        let next = number.unwrap_or(0usize) * 10 + digit;
        if next >= 1 << 31 {
            return Err(Error::runtime("Too many decimal digits in format string"));
        }
        number = Some(next);
    }
    Ok(number)
}
