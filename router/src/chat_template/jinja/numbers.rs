//! Numbers: how Python writes, reads, rounds and compares them.

use std::cmp::Ordering;

use super::error::{Error, Result};
use super::strings::is_space;

/// Evaluates `repr(value)`: the shortest digits, with an exponent from 1e16 up and below 1e-4.
pub fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{mantissa}{}", exponent_text(exponent.parse().unwrap_or(0)));
    }
    format!("{value:?}")
}

/// Writes an exponent such as `e+05`: a sign and at least two digits.
pub fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.unsigned_abs())
}

/// Returns the integer that a float equals.
pub fn exact_int(value: f64) -> Option<i128> {
    (value.is_finite() && value.fract() == 0.0 && value.abs() < 1.7e38).then_some(value as i128)
}

/// Evaluates `int(value)` of a float.
pub fn truncate(value: f64) -> Result<i128> {
    if value.is_nan() {
        return Err(Error::runtime("cannot convert float NaN to integer"));
    }
    if value.is_infinite() {
        return Err(Error::runtime("cannot convert float infinity to integer"));
    }
    exact_int(value.trunc()).ok_or_else(too_large)
}

pub fn too_large() -> Error {
    Error::refused("an integer beyond 128 bits")
}

/// Compares an integer and a float exactly; `None` with NaN.
pub fn compare_int_float(left: i128, right: f64) -> Option<Ordering> {
    if right.is_nan() {
        return None;
    }
    if right >= 1.7e38 {
        return Some(Ordering::Less);
    }
    if right <= -1.7e38 {
        return Some(Ordering::Greater);
    }
    let whole = right.floor();
    let order = left.cmp(&(whole as i128));
    Some(if order == Ordering::Equal && right > whole {
        Ordering::Less
    } else {
        order
    })
}

/// Evaluates `float(text)`.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let digits = without_underscores(text)?;
    let unsigned = digits.trim_start_matches(['+', '-']);
    if digits.len() - unsigned.len() > 1 {
        return None;
    }
    let word = unsigned.to_ascii_lowercase();
    let starts = unsigned.as_bytes().first()?;
    if !matches!(word.as_str(), "inf" | "infinity" | "nan") && !matches!(starts, b'0'..=b'9' | b'.')
    {
        return None;
    }
    digits.parse().ok()
}

/// Evaluates `int(text, base)`.
pub fn parse_int(text: &str, base: u32) -> Result<Option<i128>> {
    if base != 0 && !(2..=36).contains(&base) {
        return Err(Error::runtime("int() base must be >= 2 and <= 36, or 0"));
    }
    let text = text.trim_matches(is_space);
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let prefix = unsigned.get(..2).map(str::to_ascii_lowercase);
    let (base, digits, prefixed) = match (prefix.as_deref(), base) {
        (Some("0x"), 0 | 16) => (16, &unsigned[2..], true),
        (Some("0o"), 0 | 8) => (8, &unsigned[2..], true),
        (Some("0b"), 0 | 2) => (2, &unsigned[2..], true),
        (_, 0) => {
            let zero = unsigned.trim_matches(['0', '_']).is_empty();
            if unsigned.starts_with('0') && !zero {
                return Ok(None);
            }
            (10, unsigned, false)
        }
        (_, base) => (base, unsigned, false),
    };
    let digits = match digits.strip_prefix('_') {
        Some(digits) if prefixed => digits,
        _ => digits,
    };
    if !digits.is_ascii() {
        return if digits.chars().any(|c| c.is_numeric()) {
            Err(Error::refused("an integer in digits beyond ASCII"))
        } else {
            Ok(None)
        };
    }
    let Some(digits) = without_underscores(digits) else {
        return Ok(None);
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    let value = i128::from_str_radix(&digits, base).map_err(|_| too_large())?;
    Ok(Some(if negative { -value } else { value }))
}

/// Removes underscores between digits; `None` if one stands elsewhere.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
        if *byte == b'_' && !(at > 0 && digit(at - 1) && digit(at + 1)) {
            return None;
        }
    }
    Some(text.replace('_', ""))
}

/// Evaluates `round(value, digits)` of a float.
pub fn round_float(value: f64, digits: i128) -> Result<f64> {
    if !value.is_finite() || value == 0.0 || digits > 330 {
        return Ok(value);
    }
    if digits < -310 {
        return Ok(0.0_f64.copysign(value));
    }
    if digits >= 0 {
        let text = format!("{value:.*}", digits as usize);
        return text.parse().map_err(|_| Error::runtime("cannot round"));
    }
    let whole = truncate(value)?;
    let rounded = if value.fract() == 0.0 {
        round_int(whole, digits)?
    } else {
        // A fraction breaks the tie that the integer part alone would have.
        let doubled = whole.checked_mul(10).ok_or_else(too_large)? + value.signum() as i128;
        round_int(doubled, digits - 1)? / 10
    };
    Ok((rounded as f64).copysign(value))
}

/// Evaluates `round(value, digits)` of an integer: halves round to even.
pub fn round_int(value: i128, digits: i128) -> Result<i128> {
    if digits >= 0 {
        return Ok(value);
    }
    let Some(unit) = u32::try_from(-digits)
        .ok()
        .and_then(|digits| 10_i128.checked_pow(digits))
    else {
        return Ok(0);
    };
    let low = value.div_euclid(unit);
    let rest = value.rem_euclid(unit);
    let up = match (rest * 2).cmp(&unit) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal => low % 2 != 0,
    };
    (low + i128::from(up))
        .checked_mul(unit)
        .ok_or_else(too_large)
}
