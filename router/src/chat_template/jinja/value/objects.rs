//! Values with state or behaviour: ranges, generators, namespaces and callables.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::scope::Scope;
use super::{Items, Value, items_bytes};
use crate::chat_template::jinja::ast::Macro;
use crate::chat_template::jinja::error::{Error, Result};
use crate::chat_template::jinja::meter;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: i128,
    pub stop: i128,
    pub step: i128,
}

impl Range {
    pub fn len(&self) -> usize {
        let span = if self.step > 0 {
            self.stop - self.start
        } else {
            self.start - self.stop
        };
        if span <= 0 {
            return 0;
        }
        let step = self.step.abs();
        usize::try_from((span - 1) / step + 1).unwrap_or(usize::MAX)
    }

    pub fn get(&self, index: usize) -> Value {
        Value::Int(self.start + self.step * index as i128)
    }
}

/// An iterable that can be read once, such as the result of `map`.
#[derive(Debug)]
pub struct Generator {
    /// Remaining items, up to the failure that ends the generator.
    pub rest: RefCell<VecDeque<Result<Value>>>,
    /// Python's name of the type.
    pub type_name: &'static str,
}

impl Generator {
    pub fn value(type_name: &'static str, items: impl IntoIterator<Item = Result<Value>>) -> Value {
        let mut rest = VecDeque::new();
        for item in items {
            let failed = item.is_err();
            rest.push_back(item);
            if failed {
                break;
            }
        }
        meter::made(items_bytes(rest.len()));
        let rest = RefCell::new(rest);
        Value::Generator(Rc::new(Self { rest, type_name }))
    }

    pub fn next(&self) -> Option<Result<Value>> {
        let next = self.rest.borrow_mut().pop_front()?;
        meter::dropped(size_of::<Value>());
        Some(next)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        meter::dropped(items_bytes(self.rest.borrow().len()));
    }
}

/// Result of `namespace()`: attributes that can be assigned.
#[derive(Debug, Default)]
pub struct Namespace {
    pub attributes: RefCell<Vec<(Box<str>, Value)>>,
}

impl Namespace {
    pub fn get(&self, name: &str) -> Option<Value> {
        let attributes = self.attributes.borrow();
        let found = attributes.iter().find(|(key, _)| **key == *name);
        found.map(|(_, value)| value.clone())
    }

    pub fn set(&self, name: &str, value: Value) -> Result<()> {
        if name.starts_with('_') {
            return Err(Error::runtime(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
            )));
        }
        let mut attributes = self.attributes.borrow_mut();
        meter::spend(1 + attributes.len() as u64 / 8)?;
        match attributes.iter_mut().find(|(key, _)| **key == *name) {
            // The old value is dropped after the borrow ends, since dropping it may drop many others.
            Some((_, old)) => {
                let old = std::mem::replace(old, value);
                drop(attributes);
                drop(old);
            }
            None => attributes.push((name.into(), value)),
        }
        Ok(())
    }
}

/// A macro with the scope of its definition.
#[derive(Debug)]
pub struct BoundMacro {
    pub definition: Arc<Macro>,
    pub scope: Rc<Scope>,
}

#[derive(Debug)]
pub struct Cycler {
    pub items: Rc<Items>,
    pub position: RefCell<usize>,
}

#[derive(Debug)]
pub struct Joiner {
    pub separator: Value,
    pub used: RefCell<bool>,
}

/// A bound method.
#[derive(Debug)]
pub struct Method {
    pub owner: Value,
    pub name: Box<str>,
}
