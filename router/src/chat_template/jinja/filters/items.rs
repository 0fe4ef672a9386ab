//! Items that filters read one by one: the attribute that an item is judged by, and failures that only count once an
//! item is read.

use crate::chat_template::jinja::attributes;
use crate::chat_template::jinja::compare::Iter;
use crate::chat_template::jinja::error::{Error, Kind, Result};
use crate::chat_template::jinja::value::{Generator, Value};

/// Path such as `a.b.0` from an item, as in the `attribute` arguments of filters.
pub(super) enum Path {
    Whole,
    Steps(Vec<Value>),
}

impl Path {
    pub(super) fn new(attribute: Option<Value>) -> Result<Self> {
        Ok(match attribute {
            None | Some(Value::None) => Self::Whole,
            Some(Value::Str(text)) => Self::Steps(
                text.split('.')
                    .map(|step| {
                        let digits = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
                        match step.parse() {
                            Ok(number) if digits => Value::Int(number),
                            _ => Value::str(step),
                        }
                    })
                    .collect(),
            ),
            Some(Value::Int(number)) => Self::Steps(vec![Value::Int(number)]),
            Some(other) => {
                return Err(Error::refused(format!(
                    "an attribute of type {}",
                    other.type_name()
                )));
            }
        })
    }

    /// Returns the value at the path, or `default` where a step is undefined.
    pub(super) fn follow(&self, item: &Value, default: Option<&Value>) -> Result<Value> {
        let Self::Steps(steps) = self else {
            return Ok(item.clone());
        };
        let mut value = item.clone();
        for step in steps {
            value = attributes::item(&value, step)?;
            if let (Value::Undefined(_), Some(default)) = (&value, default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

pub(super) fn flag(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::is_true)
}

/// Returns the next item. A failure ends the results, and is raised when they are iterated.
pub(super) fn next_lazily(
    iter: &mut Iter,
    results: &mut Vec<Result<Value>>,
) -> Result<Option<Value>> {
    match iter.next() {
        Err(error) if error.kind == Kind::Runtime => {
            results.push(Err(error));
            Ok(None)
        }
        next => next,
    }
}

/// Adds an item that is `wanted` to the results. Returns false after a failure, which ends the results as in
/// [`next_lazily`].
pub(super) fn keep_lazily(
    item: Value,
    wanted: Result<bool>,
    results: &mut Vec<Result<Value>>,
) -> Result<bool> {
    match wanted {
        Ok(wanted) => {
            if wanted {
                results.push(Ok(item));
            }
            Ok(true)
        }
        Err(error) => {
            let result = Err(error);
            is_fatal(&result)?;
            results.push(result);
            Ok(false)
        }
    }
}

/// Returns a generator that fails when it is iterated.
pub(super) fn failed(error: Error) -> Value {
    Generator::value("generator", [Err(error)])
}

/// True if the generator ends with this result. Limits and refusals are raised at once.
pub(super) fn is_fatal(result: &Result<Value>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(error) if error.kind == Kind::Runtime => Ok(true),
        Err(error) => Err(error.clone()),
    }
}
