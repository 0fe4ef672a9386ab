//! Scopes: the names that a part of a template can see.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Value;

/// Names set in one body, inside the scopes of the surrounding bodies.
#[derive(Debug, Default)]
pub struct Scope {
    names: RefCell<Vec<(Arc<str>, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub fn within(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            names: RefCell::default(),
            parent: Some(Rc::clone(parent)),
        })
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            let names = here.names.borrow();
            if let Some((_, value)) = names.iter().find(|(key, _)| **key == *name) {
                return Some(value.clone());
            }
            scope = here.parent.as_deref();
        }
        None
    }

    pub fn set(&self, name: &Arc<str>, value: Value) {
        let mut names = self.names.borrow_mut();
        match names.iter_mut().find(|(key, _)| *key == *name) {
            Some((_, old)) => {
                let old = std::mem::replace(old, value);
                drop(names);
                drop(old);
            }
            None => names.push((Arc::clone(name), value)),
        }
    }

    /// Removes all names, since a macro among them would keep this scope alive.
    pub fn clear(&self) {
        let names = self.names.take();
        drop(names);
    }
}
