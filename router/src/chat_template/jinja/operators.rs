//! Arithmetic, as Python does it.

use super::ast::BinaryOp;
use super::error::{Error, Result};
use super::meter;
use super::numbers::too_large;
use super::value::Value;

/// Evaluates `left op right`.
pub fn binary(op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    if op == BinaryOp::Mod
        && let Value::Str(format) = left
    {
        return super::percent::format(format, right).map(Value::str);
    }
    for side in [left, right] {
        match side {
            Value::Undefined(undefined) => return Err(undefined.error()),
            Value::Markup(_) => {
                return Err(Error::refused(format!(
                    "the operator {} with an escaped string",
                    symbol(op)
                )));
            }
            _ => {}
        }
    }
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return of_ints(op, left, right);
    }
    if let (Some(left), Some(right)) = (number(left), number(right)) {
        return of_floats(op, left, right);
    }
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(left), Value::Str(right)) => {
            meter::reserve(left.len() + right.len())?;
            Ok(Value::str([&**left, &**right].concat()))
        }
        (BinaryOp::Add, Value::List(left), Value::List(right)) => {
            meter::reserve_many(left.len() + right.len(), size_of::<Value>())?;
            Value::list([&***left, &***right].concat())
        }
        (
            BinaryOp::Add,
            Value::Tuple(left) | Value::Group(left),
            Value::Tuple(right) | Value::Group(right),
        ) => {
            meter::reserve_many(left.len() + right.len(), size_of::<Value>())?;
            Value::tuple([&***left, &***right].concat())
        }
        (BinaryOp::Mul, sequence, times) | (BinaryOp::Mul, times, sequence)
            if times.as_int().is_some() && is_sequence(sequence) =>
        {
            repeat(sequence, times.as_int().unwrap_or_default())
        }
        (BinaryOp::Sub, Value::View(..), _) => Err(Error::refused("arithmetic on views of dicts")),
        _ => Err(Error::runtime(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            symbol(op),
            left.type_name(),
            right.type_name()
        ))),
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "**",
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        other => other.as_int().map(|number| number as f64),
    }
}

fn is_sequence(value: &Value) -> bool {
    matches!(
        value,
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_)
    )
}

fn repeat(sequence: &Value, times: i128) -> Result<Value> {
    let times = usize::try_from(times.max(0)).map_err(|_| too_large())?;
    if let Value::Str(text) = sequence {
        meter::reserve_many(times, text.len())?;
        return Ok(Value::str(text.repeat(times)));
    }
    let items = sequence.as_items().map(|items| &***items).unwrap_or(&[]);
    meter::reserve_many(times, size_of_val(items))?;
    let total = items.len().saturating_mul(times);
    let repeated = items.iter().cycle().take(total).cloned().collect();
    match sequence {
        Value::List(_) => Value::list(repeated),
        _ => Value::tuple(repeated),
    }
}

fn of_ints(op: BinaryOp, left: i128, right: i128) -> Result<Value> {
    let zero = |message: &str| Err(Error::runtime(message));
    let result = match op {
        BinaryOp::Add => left.checked_add(right),
        BinaryOp::Sub => left.checked_sub(right),
        BinaryOp::Mul => left.checked_mul(right),
        BinaryOp::Div if right == 0 => return zero("division by zero"),
        BinaryOp::Div => {
            let exact = |number: i128| number.unsigned_abs() <= 1 << 53;
            if !(exact(left) && exact(right)) {
                return Err(Error::refused("dividing integers beyond 53 bits"));
            }
            return Ok(Value::Float(left as f64 / right as f64));
        }
        BinaryOp::FloorDiv | BinaryOp::Mod if right == 0 => {
            return zero("integer division or modulo by zero");
        }
        BinaryOp::FloorDiv => left
            .checked_div(right)
            .map(|quotient| quotient - i128::from(left % right != 0 && (left < 0) != (right < 0))),
        BinaryOp::Mod => left.checked_rem(right).map(|rest| {
            if rest != 0 && (rest < 0) != (right < 0) {
                rest + right
            } else {
                rest
            }
        }),
        BinaryOp::Pow if right < 0 => return of_floats(op, left as f64, right as f64),
        BinaryOp::Pow => match (left, u32::try_from(right)) {
            (0 | 1, _) => Some(if right == 0 { 1 } else { left }),
            (-1, _) => Some(if right % 2 == 0 { 1 } else { -1 }),
            (_, Ok(exponent)) => left.checked_pow(exponent),
            (_, Err(_)) => None,
        },
    };
    result.map(Value::Int).ok_or_else(too_large)
}

fn of_floats(op: BinaryOp, left: f64, right: f64) -> Result<Value> {
    if right == 0.0 {
        let message = match op {
            BinaryOp::Div => Some("float division by zero"),
            BinaryOp::FloorDiv => Some("float floor division by zero"),
            BinaryOp::Mod => Some("float modulo"),
            _ => None,
        };
        if let Some(message) = message {
            return Err(Error::runtime(message));
        }
    }
    Ok(Value::Float(match op {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => left * right,
        BinaryOp::Div => left / right,
        BinaryOp::FloorDiv => divide(left, right).0,
        BinaryOp::Mod => divide(left, right).1,
        BinaryOp::Pow => {
            if left == 0.0 && right < 0.0 {
                return Err(Error::runtime("0.0 cannot be raised to a negative power"));
            }
            let power = left.powf(right);
            if power.is_nan() && !left.is_nan() && !right.is_nan() {
                return Err(Error::refused("complex numbers"));
            }
            if power.is_infinite() && left.is_finite() && right.is_finite() {
                return Err(Error::runtime("(34, 'Numerical result out of range')"));
            }
            power
        }
    }))
}

/// Evaluates `divmod(left, right)` of floats: the remainder has the sign of the divisor.
fn divide(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest != 0.0 {
        if (right < 0.0) != (rest < 0.0) {
            rest += right;
            quotient -= 1.0;
        }
    } else {
        rest = 0.0_f64.copysign(right);
    }
    let floor = if quotient == 0.0 {
        0.0_f64.copysign(left / right)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 {
            floor + 1.0
        } else {
            floor
        }
    };
    (floor, rest)
}

/// Evaluates `-value` or `+value`.
pub fn sign(value: &Value, negative: bool) -> Result<Value> {
    match value {
        Value::Float(number) => Ok(Value::Float(if negative { -number } else { *number })),
        Value::Undefined(undefined) => Err(undefined.error()),
        other => match other.as_int() {
            Some(number) if negative => number.checked_neg().map(Value::Int).ok_or_else(too_large),
            Some(number) => Ok(Value::Int(number)),
            None => Err(Error::runtime(format!(
                "bad operand type for unary {}: '{}'",
                if negative { '-' } else { '+' },
                other.type_name()
            ))),
        },
    }
}
