//! Number formats that `%` and `str.format` share.

use super::error::{Error, Result};
use super::numbers::exponent_text;

/// Digits of a float's magnitude in style `e`, `f` or `g` (capitals too), without a sign.
pub fn float_digits(value: f64, style: char, precision: usize, alternate: bool) -> Result<String> {
    let magnitude = value.abs();
    let capital = style.is_ascii_uppercase();
    if !magnitude.is_finite() {
        let word = if magnitude.is_nan() { "nan" } else { "inf" };
        return Ok(if capital {
            word.to_uppercase()
        } else {
            word.into()
        });
    }
    if precision > 1000 {
        return Err(Error::refused("a precision of more than 1000 digits"));
    }
    let text = match style.to_ascii_lowercase() {
        'e' => exponential(magnitude, precision, alternate),
        'f' => {
            let mut text = format!("{magnitude:.precision$}");
            if alternate && precision == 0 {
                text.push('.');
            }
            text
        }
        _ => general(magnitude, precision.max(1), alternate, false),
    };
    Ok(if capital { text.to_uppercase() } else { text })
}

fn exponential(magnitude: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{magnitude:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let dot = if alternate && precision == 0 { "." } else { "" };
    format!(
        "{mantissa}{dot}{}",
        exponent_text(exponent.parse().unwrap_or(0))
    )
}

/// Digits in style `g`. With `keep_point`, the style of `str.format` without a type, which shows that it is a float.
pub fn general(magnitude: f64, precision: usize, alternate: bool, keep_point: bool) -> String {
    let text = format!("{magnitude:.*e}", precision - 1);
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let limit = precision as i32 - i32::from(keep_point);
    let trim = |digits: &str| {
        if alternate || !digits.contains('.') {
            return digits.to_owned();
        }
        digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    };
    if exponent < -4 || exponent >= limit.max(i32::from(keep_point)) {
        let mut mantissa = trim(mantissa);
        if alternate && !mantissa.contains('.') {
            mantissa.push('.');
        }
        return format!("{mantissa}{}", exponent_text(exponent));
    }
    let decimals = (precision as i32 - 1 - exponent).max(0) as usize;
    let mut fixed = trim(&format!("{magnitude:.decimals$}"));
    if !fixed.contains('.') {
        if alternate {
            fixed.push('.');
        } else if keep_point {
            fixed.push_str(".0");
        }
    }
    fixed
}

/// Digits of an integer's magnitude in a base, with the prefix that `#` adds.
pub fn int_digits(value: i128, style: char, alternate: bool) -> (&'static str, String) {
    let magnitude = value.unsigned_abs();
    let (prefix, digits) = match style {
        'b' => ("0b", format!("{magnitude:b}")),
        'o' => ("0o", format!("{magnitude:o}")),
        'x' => ("0x", format!("{magnitude:x}")),
        'X' => ("0X", format!("{magnitude:X}")),
        _ => ("", magnitude.to_string()),
    };
    (if alternate { prefix } else { "" }, digits)
}
