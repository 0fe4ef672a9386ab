//! Comparison (`==`, `<`, `in`) and iteration of values.

use std::cmp::Ordering;
use std::rc::Rc;

use super::error::{Error, Result};
use super::meter;
use super::numbers::compare_int_float;
use super::value::{Value, View};

/// Evaluates `left == right`.
pub fn equal(left: &Value, right: &Value) -> Result<bool> {
    meter::spend(1)?;
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(left == right);
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Float(left), Value::Float(right)) => left == right,
        (Value::Float(float), other) | (other, Value::Float(float)) => match other.as_int() {
            Some(int) => compare_int_float(int, *float) == Some(Ordering::Equal),
            None => false,
        },
        (Value::Str(_) | Value::Markup(_), Value::Str(_) | Value::Markup(_)) => {
            let (left, right) = (left.as_str(), right.as_str());
            meter::scan(left.map_or(0, str::len))?;
            left == right
        }
        (Value::List(left), Value::List(right)) => items_equal(left, right)?,
        (Value::Tuple(left) | Value::Group(left), Value::Tuple(right) | Value::Group(right)) => {
            items_equal(left, right)?
        }
        (Value::Dict(left), Value::Dict(right)) => {
            if Rc::ptr_eq(left, right) {
                return Ok(true);
            }
            if left.entries().len() != right.entries().len() {
                return Ok(false);
            }
            for (key, value) in left.entries() {
                match right.get(key)? {
                    Some(other) if same_or_equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(left), Value::Range(right)) => {
            let length = left.len();
            length == right.len()
                && (length == 0
                    || left.start == right.start && (length == 1 || left.step == right.step))
        }
        (Value::Namespace(left), Value::Namespace(right)) => Rc::ptr_eq(left, right),
        (Value::Generator(left), Value::Generator(right)) => Rc::ptr_eq(left, right),
        (Value::Macro(left), Value::Macro(right)) => Rc::ptr_eq(left, right),
        (Value::Cycler(left), Value::Cycler(right)) => Rc::ptr_eq(left, right),
        (Value::Joiner(left), Value::Joiner(right)) => Rc::ptr_eq(left, right),
        (Value::Function(left), Value::Function(right)) => left == right,
        (Value::Loop(left), Value::Loop(right)) => left == right,
        (Value::View(..), Value::View(..)) | (Value::Method(_), Value::Method(_)) => {
            return Err(Error::refused(format!(
                "comparing two values of type {}",
                left.type_name()
            )));
        }
        _ => false,
    })
}

fn items_equal(left: &[Value], right: &[Value]) -> Result<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    if std::ptr::eq(left, right) {
        return Ok(true);
    }
    for (left, right) in left.iter().zip(right) {
        if !same_or_equal(left, right)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares as containers do: an object equals itself, even a NaN.
fn same_or_equal(left: &Value, right: &Value) -> Result<bool> {
    Ok(is_same(left, right) == Some(true) || equal(left, right)?)
}

/// Evaluates `left is right`; `None` where the result depends on how Python stores its objects.
pub fn is_same(left: &Value, right: &Value) -> Option<bool> {
    match (left, right) {
        (Value::None, Value::None) => Some(true),
        (Value::Bool(left), Value::Bool(right)) => Some(left == right),
        (Value::Int(left), Value::Int(right)) if left != right => Some(false),
        // Python keeps one object for each small integer.
        (Value::Int(left), Value::Int(_)) if (-5..=256).contains(left) => Some(true),
        (Value::List(left), Value::List(right)) => Some(Rc::ptr_eq(left, right)),
        (Value::Dict(left), Value::Dict(right)) => Some(Rc::ptr_eq(left, right)),
        (Value::Namespace(left), Value::Namespace(right)) => Some(Rc::ptr_eq(left, right)),
        (Value::Macro(left), Value::Macro(right)) => Some(Rc::ptr_eq(left, right)),
        (Value::Undefined(left), Value::Undefined(right)) if Rc::ptr_eq(left, right) => Some(true),
        _ if left.type_name() != right.type_name() => Some(false),
        (Value::Str(left), Value::Str(right)) if **left != **right => Some(false),
        (Value::Float(left), Value::Float(right)) if left != right => Some(false),
        _ => None,
    }
}

/// Returns the order of two values; `None` with NaN. Fails for types that Python does not order; `op` is for the
/// message.
pub fn order(left: &Value, right: &Value, op: &str) -> Result<Option<Ordering>> {
    meter::spend(1)?;
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        return Ok(Some(left.cmp(&right)));
    }
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => return Ok(left.partial_cmp(right)),
        (Value::Float(left), _) => {
            if let Some(right) = right.as_int() {
                return Ok(compare_int_float(right, *left).map(Ordering::reverse));
            }
        }
        (_, Value::Float(right)) => {
            if let Some(left) = left.as_int() {
                return Ok(compare_int_float(left, *right));
            }
        }
        (Value::Str(_) | Value::Markup(_), Value::Str(_) | Value::Markup(_)) => {
            let (left, right) = (
                left.as_str().unwrap_or_default(),
                right.as_str().unwrap_or_default(),
            );
            meter::scan(left.len().min(right.len()))?;
            return Ok(Some(left.cmp(right)));
        }
        (Value::List(left), Value::List(right))
        | (Value::Tuple(left) | Value::Group(left), Value::Tuple(right) | Value::Group(right)) => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !same_or_equal(left, right)? {
                    return order(left, right, op);
                }
            }
            return Ok(Some(left.len().cmp(&right.len())));
        }
        (Value::Undefined(undefined), _) | (_, Value::Undefined(undefined)) => {
            return Err(undefined.error());
        }
        (Value::View(..), Value::View(..)) => {
            return Err(Error::refused("ordering views of dicts"));
        }
        _ => {}
    }
    Err(Error::runtime(format!(
        "'{op}' not supported between instances of '{}' and '{}'",
        left.type_name(),
        right.type_name()
    )))
}

/// Evaluates `item in container`.
pub fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Str(_) | Value::Markup(_) => {
            let text = container.as_str().unwrap_or_default();
            match item {
                Value::Str(part) | Value::Markup(part) => {
                    meter::scan(text.len())?;
                    Ok(text.contains(&**part))
                }
                other => Err(Error::runtime(format!(
                    "'in <string>' requires string as left operand, not {}",
                    other.type_name()
                ))),
            }
        }
        Value::Dict(dict) | Value::View(View::Keys, dict) => match item {
            Value::Undefined(_) => Ok(false),
            Value::Str(key) => Ok(dict.get_str(key).is_some()),
            other => Ok(dict.get(other)?.is_some()),
        },
        Value::Range(range) => match item {
            Value::Int(_) | Value::Bool(_) => {
                let number = item.as_int().unwrap_or_default();
                let inside = if range.step > 0 {
                    range.start <= number && number < range.stop
                } else {
                    range.stop < number && number <= range.start
                };
                Ok(inside && (number - range.start) % range.step == 0)
            }
            other => search(container, other),
        },
        other => search(other, item),
    }
}

fn search(container: &Value, item: &Value) -> Result<bool> {
    let mut items = iterate(container).map_err(|error| match container {
        Value::Undefined(_) => error,
        other if error.kind == super::error::Kind::Runtime => Error::runtime(format!(
            "argument of type '{}' is not iterable",
            other.type_name()
        )),
        _ => error,
    })?;
    while let Some(other) = items.next()? {
        if same_or_equal(&other, item)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Iterator over the items of a value, as in `for`.
#[derive(Debug)]
pub struct Iter {
    source: Value,
    position: usize,
}

/// Evaluates `iter(value)`.
pub fn iterate(value: &Value) -> Result<Iter> {
    match value {
        Value::Loop(_) => Err(Error::refused("going over `loop`")),
        _ if value.is_reversible() || matches!(value, Value::Generator(_)) => Ok(Iter {
            source: value.clone(),
            position: 0,
        }),
        other => Err(Error::runtime(format!(
            "'{}' object is not iterable",
            other.type_name()
        ))),
    }
}

impl Iter {
    pub fn next(&mut self) -> Result<Option<Value>> {
        meter::spend(1)?;
        let at = self.position;
        self.position += 1;
        Ok(match &self.source {
            Value::Str(_) | Value::Markup(_) => {
                let text = self.source.as_str().unwrap_or_default();
                let Some(c) = text[at..].chars().next() else {
                    self.position = at;
                    return Ok(None);
                };
                self.position = at + c.len_utf8();
                Some(Value::str(c))
            }
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                items.get(at).cloned()
            }
            Value::Dict(dict) | Value::View(View::Keys, dict) => {
                dict.entries().get(at).map(|(key, _)| key.clone())
            }
            Value::View(View::Values, dict) => {
                dict.entries().get(at).map(|(_, value)| value.clone())
            }
            Value::View(View::Items, dict) => match dict.entries().get(at) {
                Some((key, value)) => Some(Value::tuple(vec![key.clone(), value.clone()])?),
                None => None,
            },
            Value::Range(range) => (at < range.len()).then(|| range.get(at)),
            Value::Generator(generator) => generator.next().transpose()?,
            _ => None,
        })
    }
}

/// Evaluates `list(value)`.
pub fn collect(value: &Value) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut iter = iterate(value)?;
    while let Some(item) = iter.next()? {
        meter::reserve(size_of::<Value>() * (items.len() & 1023 == 0) as usize * 1024)?;
        items.push(item);
    }
    Ok(items)
}

/// Evaluates `len(value)`.
pub fn length(value: &Value) -> Result<usize> {
    Ok(match value {
        Value::Undefined(_) => 0,
        Value::Str(text) | Value::Markup(text) => {
            meter::scan(text.len())?;
            super::strings::length(text)
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.len(),
        Value::Dict(dict) | Value::View(_, dict) => dict.entries().len(),
        Value::Range(range) => range.len(),
        Value::Loop(_) => return Err(Error::refused("the length of `loop`")),
        other => {
            return Err(Error::runtime(format!(
                "object of type '{}' has no len()",
                other.type_name()
            )));
        }
    })
}

/// Sorts by the keys as `sorted` does; stable, also when reversed.
pub fn sort_by_keys(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut failure = None;
    if reverse {
        keyed.reverse();
    }
    keyed.sort_by(|(left, _), (right, _)| {
        if failure.is_some() {
            return Ordering::Equal;
        }
        match order(left, right, "<") {
            Ok(Some(order)) => order,
            Ok(None) => {
                failure = Some(Error::refused("sorting with NaN"));
                Ordering::Equal
            }
            Err(error) => {
                failure = Some(error);
                Ordering::Equal
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let mut items: Vec<Value> = keyed.into_iter().map(|(_, value)| value).collect();
    if reverse {
        items.reverse();
    }
    Ok(items)
}
