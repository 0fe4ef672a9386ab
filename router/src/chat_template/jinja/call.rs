//! Arguments of calls.

use std::sync::Arc;

use super::error::{Error, Result};
use super::value::Value;

/// Evaluated arguments.
#[derive(Debug, Default)]
pub struct CallArguments {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl CallArguments {
    /// Returns the arguments in the order of `names`. `function` is for messages. The first `required` ones must be
    /// present.
    pub fn bind<const N: usize>(
        &self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Error::runtime(format!(
                "{function}() takes at most {N} arguments ({} given)",
                self.positional.len()
            )));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(&self.positional) {
            *slot = Some(value.clone());
        }
        for (name, value) in &self.named {
            let Some(at) = names.iter().position(|known| *known == &**name) else {
                return Err(Error::runtime(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[at].replace(value.clone()).is_some() {
                return Err(Error::runtime(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
        }
        if let Some(missing) = bound[..required].iter().position(Option::is_none) {
            return Err(Error::runtime(format!(
                "{function}() missing required argument: '{}'",
                names[missing]
            )));
        }
        Ok(bound)
    }

    /// Like `bind`, for a function that takes no names.
    pub fn positional<const N: usize>(
        &self,
        function: &str,
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if !self.named.is_empty() {
            return Err(Error::runtime(format!(
                "{function}() takes no keyword arguments"
            )));
        }
        if self.positional.len() > N || self.positional.len() < required {
            return Err(Error::runtime(format!(
                "{function}() takes from {required} to {N} arguments ({} given)",
                self.positional.len()
            )));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(&self.positional) {
            *slot = Some(value.clone());
        }
        Ok(bound)
    }
}

/// Returns a number that must be an integer.
pub fn to_index(value: &Value) -> Result<i128> {
    match value {
        Value::Undefined(undefined) => Err(undefined.error()),
        other => other.as_int().ok_or_else(|| {
            Error::runtime(format!(
                "'{}' object cannot be interpreted as an integer",
                other.type_name()
            ))
        }),
    }
}

/// Returns a text that must be a string. `what` is for the message.
pub fn to_text<'v>(value: &'v Value, what: &str) -> Result<&'v str> {
    match value {
        Value::Str(text) => Ok(text),
        Value::Markup(_) => Err(Error::refused(format!("{what} with an escaped string"))),
        Value::Undefined(undefined) => Err(undefined.error()),
        other => Err(Error::runtime(format!(
            "{what} must be str, not {}",
            other.type_name()
        ))),
    }
}

/// Returns `None` for an argument that is left out or `None`.
pub fn given(argument: Option<Value>) -> Option<Value> {
    argument.filter(|value| !matches!(value, Value::None))
}
