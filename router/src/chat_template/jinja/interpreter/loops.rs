//! The statement `for` and its variable `loop`.

use std::rc::Rc;
use std::sync::Arc;

use super::Interpreter;
use crate::chat_template::jinja::ast::For;
use crate::chat_template::jinja::call::CallArguments;
use crate::chat_template::jinja::compare::{Iter, equal, iterate, length};
use crate::chat_template::jinja::error::{Error, Result};
use crate::chat_template::jinja::repr::Out;
use crate::chat_template::jinja::value::Scope;
use crate::chat_template::jinja::value::{Undefined, Value};

/// Running loops by number.
#[derive(Default)]
pub struct Loops {
    frames: Vec<(usize, LoopFrame)>,
    next_id: usize,
}

impl Loops {
    pub fn enter(&mut self, frame: LoopFrame) -> usize {
        let id = self.next_id;
        self.next_id += 1;
        self.frames.push((id, frame));
        id
    }

    pub fn leave(&mut self, id: usize) {
        self.frames.retain(|(other, _)| *other != id);
    }

    fn frame(&mut self, id: usize) -> Result<&mut LoopFrame> {
        let found = self.frames.iter_mut().rev().find(|(other, _)| *other == id);
        found
            .map(|(_, frame)| frame)
            .ok_or_else(|| Error::refused("`loop` after its loop has ended"))
    }
}

/// State of one loop.
pub struct LoopFrame {
    node: Arc<For>,
    scope: Rc<Scope>,
    items: Iter,
    /// Number of items, if it is known without iterating.
    length: Option<usize>,
    depth: usize,
    /// Number of iterations that have begun.
    begun: usize,
    previous: Option<Value>,
    current: Option<Value>,
    /// Item that was read ahead of its iteration; `Some(None)` is the end.
    ahead: Option<Option<Value>>,
    changed: Option<Vec<Value>>,
    /// True if `items` holds only items that have passed the test.
    tested: bool,
}

impl LoopFrame {
    pub fn new(node: &Arc<For>, items: &Value, scope: &Rc<Scope>, depth: usize) -> Result<Self> {
        let known = node.test.is_none() && !matches!(items, Value::Generator(_));
        Ok(Self {
            node: Arc::clone(node),
            scope: Rc::clone(scope),
            items: iterate(items)?,
            length: if known { Some(length(items)?) } else { None },
            depth,
            begun: 0,
            previous: None,
            current: None,
            ahead: None,
            changed: None,
            tested: false,
        })
    }
}

impl Interpreter<'_> {
    /// Returns the item of the next iteration.
    pub(super) fn next_item(&mut self, id: usize) -> Result<Option<Value>> {
        let item = match self.loops.frame(id)?.ahead.take() {
            Some(item) => item,
            None => self.fetch(id)?,
        };
        let frame = self.loops.frame(id)?;
        if let Some(item) = &item {
            frame.begun += 1;
            frame.previous = frame.current.replace(item.clone());
        }
        Ok(item)
    }

    /// Returns the next item that passes the loop's test.
    fn fetch(&mut self, id: usize) -> Result<Option<Value>> {
        loop {
            let frame = self.loops.frame(id)?;
            let Some(item) = frame.items.next()? else {
                return Ok(None);
            };
            if frame.tested || frame.node.test.is_none() {
                return Ok(Some(item));
            }
            let node = Arc::clone(&frame.node);
            let Some(test) = &node.test else {
                return Ok(Some(item));
            };
            let scope = Scope::within(&frame.scope);
            self.assign(&node.target, item.clone(), &scope)?;
            if self.evaluate(test, &scope)?.is_true() {
                return Ok(Some(item));
            }
        }
    }

    fn peek(&mut self, id: usize) -> Result<Option<Value>> {
        if let Some(ahead) = &self.loops.frame(id)?.ahead {
            return Ok(ahead.clone());
        }
        let item = self.fetch(id)?;
        self.loops.frame(id)?.ahead = Some(item.clone());
        Ok(item)
    }

    fn loop_length(&mut self, id: usize) -> Result<usize> {
        if let Some(length) = self.loops.frame(id)?.length {
            return Ok(length);
        }
        let ahead = self.peek(id)?;
        let mut rest = Vec::new();
        while let Some(item) = self.fetch(id)? {
            rest.push(item);
        }
        let frame = self.loops.frame(id)?;
        let total = frame.begun + usize::from(ahead.is_some()) + rest.len();
        frame.length = Some(total);
        // The remaining items have passed the test, and are iterated from a list.
        frame.items = iterate(&Value::list(rest)?)?;
        frame.tested = true;
        Ok(total)
    }

    /// Evaluates `loop.name`.
    pub(super) fn loop_attribute(&mut self, id: usize, name: &str) -> Result<Value> {
        let frame = self.loops.frame(id)?;
        let begun = frame.begun as i128;
        Ok(match name {
            "index" => Value::Int(begun),
            "index0" => Value::Int(begun - 1),
            "first" => Value::Bool(begun == 1),
            "depth" => Value::Int(frame.depth as i128 + 1),
            "depth0" => Value::Int(frame.depth as i128),
            "last" => Value::Bool(self.peek(id)?.is_none()),
            "length" => Value::Int(self.loop_length(id)? as i128),
            "revindex" => Value::Int(self.loop_length(id)? as i128 - begun + 1),
            "revindex0" => Value::Int(self.loop_length(id)? as i128 - begun),
            "previtem" => match &frame.previous {
                Some(item) if begun > 1 => item.clone(),
                _ => Undefined::value("there is no previous item"),
            },
            "nextitem" => match self.peek(id)? {
                Some(item) => item,
                None => Undefined::value("there is no next item"),
            },
            "cycle" | "changed" => {
                return Err(Error::refused("a method of `loop` that is not called"));
            }
            other => Undefined::value(format!("'LoopContext object' has no attribute '{other}'")),
        })
    }

    /// Evaluates `loop.cycle(…)` and `loop.changed(…)`.
    pub(super) fn loop_method(
        &mut self,
        id: usize,
        name: &str,
        arguments: &CallArguments,
    ) -> Result<Option<Value>> {
        if !matches!(name, "cycle" | "changed") {
            return Ok(None);
        }
        if !arguments.named.is_empty() {
            return Err(Error::runtime(format!(
                "{name}() takes no keyword arguments"
            )));
        }
        let values = &arguments.positional;
        let frame = self.loops.frame(id)?;
        if name == "cycle" {
            if values.is_empty() {
                return Err(Error::runtime("no items for cycling given"));
            }
            return Ok(Some(values[(frame.begun - 1) % values.len()].clone()));
        }
        let same = match &frame.changed {
            Some(last) => equal(&Value::list(last.clone())?, &Value::list(values.clone())?)?,
            None => false,
        };
        if !same {
            frame.changed = Some(values.clone());
        }
        Ok(Some(Value::Bool(!same)))
    }

    /// Evaluates `loop(items)`: runs a recursive loop's body over other items.
    pub(super) fn call_loop(&mut self, id: usize, arguments: &CallArguments) -> Result<Value> {
        let [items] = arguments.bind("loop", ["iterable"], 1)?;
        let frame = self.loops.frame(id)?;
        if !frame.node.recursive {
            return Err(Error::runtime(
                "The loop must have the 'recursive' marker to be called recursively.",
            ));
        }
        let (node, scope, depth) = (
            Arc::clone(&frame.node),
            Rc::clone(&frame.scope),
            frame.depth + 1,
        );
        let mut out = Out::default();
        self.run_for(
            &node,
            &items.unwrap_or(Value::None),
            &scope,
            depth,
            &mut out,
        )?;
        Ok(Value::str(out.take()))
    }
}
