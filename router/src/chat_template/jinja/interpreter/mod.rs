//! Runs the statements of a template.

mod evaluate;
mod loops;

use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Body, Expr, ExprKind, Macro, Name, Stmt, StmtKind, Target};
use super::call::CallArguments;
use super::compare::iterate;
use super::error::{Error, Result};
use super::meter;
use super::repr::{self, Out};
use super::value::{BoundMacro, Namespace, Scope, Undefined, Value};
use loops::{LoopFrame, Loops};

/// End of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Next,
    Break,
    Continue,
}

fn undefined(name: &str) -> Value {
    Undefined::value(format!("'{name}' is undefined"))
}

fn hide(body: &Body, scope: &Scope) {
    for name in &body.hidden {
        scope.set(name, undefined(name));
    }
}

/// State of one rendering.
pub struct Interpreter<'a> {
    variables: &'a Scope,
    loops: Loops,
    /// Namespaces and scopes of macros. They may reference each other, so they are emptied at the end.
    namespaces: Vec<Rc<Namespace>>,
    macro_scopes: Vec<Rc<Scope>>,
}

impl Drop for Interpreter<'_> {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let attributes = namespace.attributes.take();
            drop(attributes);
        }
        for scope in &self.macro_scopes {
            scope.clear();
        }
    }
}

impl<'a> Interpreter<'a> {
    pub fn new(variables: &'a Scope) -> Self {
        Self {
            variables,
            loops: Loops::default(),
            namespaces: Vec::new(),
            macro_scopes: Vec::new(),
        }
    }

    /// Looks up a name.
    pub fn lookup(&self, name: &str, scope: &Scope) -> Result<Value> {
        let found = scope.get(name).or_else(|| self.variables.get(name));
        match found.or_else(|| super::globals::get(name)) {
            Some(value) => Ok(value),
            None if name == "self" => Err(Error::refused("the variable `self`")),
            None => Ok(undefined(name)),
        }
    }

    /// Makes the scope of a body.
    fn enter(&self, body: &Body, parent: &Rc<Scope>) -> Rc<Scope> {
        let scope = Scope::within(parent);
        hide(body, &scope);
        scope
    }

    /// Runs a template.
    pub fn run_template(&mut self, body: &Body, out: &mut Out) -> Result<()> {
        let scope = Rc::new(Scope::default());
        hide(body, &scope);
        self.run(&body.statements, &scope, out)?;
        Ok(())
    }

    /// Runs a body.
    pub fn run(&mut self, body: &[Stmt], scope: &Rc<Scope>, out: &mut Out) -> Result<Flow> {
        meter::check_depth()?;
        for statement in body {
            meter::spend(1).map_err(|error| error.at(statement.line))?;
            let flow = self
                .statement(statement, scope, out)
                .map_err(|error| error.at(statement.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Stmt, scope: &Rc<Scope>, out: &mut Out) -> Result<Flow> {
        match &statement.kind {
            StmtKind::Text(text) => out.push(text)?,
            StmtKind::Print(expressions) => {
                for expression in expressions {
                    let value = self.evaluate(expression, scope)?;
                    repr::write_str(&value, out).map_err(|error| error.at(expression.line))?;
                }
            }
            StmtKind::Set(target, expression) => {
                let value = self.evaluate(expression, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let inner = self.enter(body, scope);
                let (text, flow) = self.capture(&body.statements, &inner)?;
                let value = match filter {
                    Some(filter) => self.filtered(filter, text, &inner)?,
                    None => text,
                };
                self.assign(target, value, scope)?;
                return Ok(flow);
            }
            StmtKind::If(branches, otherwise) => {
                for (test, body) in branches {
                    if self.evaluate(test, scope)?.is_true() {
                        return self.run(body, scope, out);
                    }
                }
                return self.run(otherwise, scope, out);
            }
            StmtKind::For(node) => {
                let items = self.evaluate(&node.iter, scope)?;
                return self.run_for(node, &items, scope, 0, out);
            }
            StmtKind::With(assignments, body) => {
                let inner = self.enter(body, scope);
                for (target, expression) in assignments {
                    // Jinja2 evaluates all values in the outer scope, so later values do not see earlier names.
                    let value = self.evaluate(expression, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.run(&body.statements, &inner, out);
            }
            StmtKind::Macro(definition) => {
                let bound = self.bind_macro(definition, scope);
                if let Some(name) = &definition.name {
                    scope.set(name, bound);
                }
            }
            StmtKind::Call(call, caller) => {
                let caller = self.bind_macro(caller, scope);
                let ExprKind::Call(function, arguments) = &call.kind else {
                    return Err(Error::syntax("expected call", call.line));
                };
                let function = self.evaluate(function, scope)?;
                let mut arguments = self.arguments(arguments, scope)?;
                arguments.named.push(("caller".into(), caller));
                let value = self
                    .call(&function, &arguments)
                    .map_err(|error| error.at(call.line))?;
                repr::write_str(&value, out)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let inner = self.enter(body, scope);
                let (text, flow) = self.capture(&body.statements, &inner)?;
                let value = self.filtered(filter, text, &inner)?;
                repr::write_str(&value, out)?;
                return Ok(flow);
            }
            StmtKind::Generation(definition) => {
                let bound = BoundMacro {
                    definition: Arc::clone(definition),
                    scope: Rc::clone(scope),
                };
                let text = self.call_macro(&bound, &CallArguments::default())?;
                repr::write_str(&text, out)?;
            }
            StmtKind::Scoped(body) => {
                let inner = self.enter(body, scope);
                return self.run(&body.statements, &inner, out);
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
            StmtKind::Refused(what) => return Err(Error::refused(what)),
        }
        Ok(Flow::Next)
    }

    /// Runs a body and returns its text.
    fn capture(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Result<(Value, Flow)> {
        let mut out = Out::default();
        let flow = self.run(body, scope, &mut out)?;
        if flow != Flow::Next {
            return Err(Error::refused(
                "`break` or `continue` out of a block whose text is captured",
            ));
        }
        Ok((Value::str(out.take()), flow))
    }

    /// Applies the filters of a block to its text.
    fn filtered(&mut self, filter: &Expr, text: Value, scope: &Rc<Scope>) -> Result<Value> {
        let ExprKind::Filter(operand, name, arguments) = &filter.kind else {
            return Err(Error::syntax("expected a filter", filter.line));
        };
        let value = match operand {
            Some(operand) => self.filtered(operand, text, scope)?,
            None => text,
        };
        let arguments = self.arguments(arguments, scope)?;
        super::filters::call(name, &value, &arguments).map_err(|error| error.at(filter.line))
    }

    pub fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(namespace, name, line) => {
                match self.lookup(namespace, scope)? {
                    Value::Namespace(namespace) => namespace.set(name, value),
                    _ => Err(Error::runtime(
                        "cannot assign attribute on non-namespace object",
                    )),
                }
                .map_err(|error| error.at(*line))?;
            }
            Target::Tuple(targets) => {
                let mut items = iterate(&value).map_err(|error| match &value {
                    Value::Undefined(_) => error,
                    other => Error::runtime(format!(
                        "cannot unpack non-iterable {} object",
                        other.type_name()
                    )),
                })?;
                let mut values = Vec::with_capacity(targets.len());
                while let Some(item) = items.next()? {
                    values.push(item);
                    if values.len() > targets.len() {
                        return Err(Error::runtime(format!(
                            "too many values to unpack (expected {})",
                            targets.len()
                        )));
                    }
                }
                if values.len() < targets.len() {
                    return Err(Error::runtime(format!(
                        "not enough values to unpack (expected {}, got {})",
                        targets.len(),
                        values.len()
                    )));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    fn bind_macro(&mut self, definition: &Arc<Macro>, scope: &Rc<Scope>) -> Value {
        let kept = self.macro_scopes.last();
        if !kept.is_some_and(|kept| Rc::ptr_eq(kept, scope)) {
            meter::made(64);
            self.macro_scopes.push(Rc::clone(scope));
        }
        Value::Macro(Rc::new(BoundMacro {
            definition: Arc::clone(definition),
            scope: Rc::clone(scope),
        }))
    }

    /// Calls a macro and returns its text.
    pub fn call_macro(&mut self, bound: &BoundMacro, arguments: &CallArguments) -> Result<Value> {
        meter::check_depth()?;
        let definition = &bound.definition;
        let shown = definition.name.as_deref().unwrap_or("caller");
        let scope = self.enter(&definition.body, &bound.scope);
        let mut named = arguments.named.clone();
        let mut given: Vec<Option<Value>> =
            arguments.positional.iter().cloned().map(Some).collect();
        let rest = given.split_off(given.len().min(definition.parameters.len()));
        let mut found_caller = false;
        if given.len() == definition.parameters.len() {
            found_caller = definition.parameters.iter().any(|name| &**name == "caller");
        }
        for name in &definition.parameters[given.len()..] {
            found_caller |= &**name == "caller";
            let at = named.iter().position(|(key, _)| key == name);
            given.push(at.map(|at| named.remove(at).1));
        }
        if definition.uses_caller && !found_caller {
            let at = named.iter().position(|(key, _)| &**key == "caller");
            let caller = at.map(|at| named.remove(at).1);
            let caller = caller.filter(|caller| !matches!(caller, Value::None));
            let caller = caller.unwrap_or_else(|| Undefined::value("No caller defined"));
            scope.set(&"caller".into(), caller);
        }
        if definition.uses_kwargs {
            let entries = named
                .into_iter()
                .map(|(name, value)| (Value::str(&*name), value));
            scope.set(&"kwargs".into(), Value::dict(entries)?);
        } else if let Some((name, _)) = named.first() {
            return Err(Error::runtime(format!(
                "macro '{shown}' takes no keyword argument '{name}'"
            )));
        }
        if definition.uses_varargs {
            scope.set(
                &"varargs".into(),
                Value::tuple(rest.into_iter().flatten().collect())?,
            );
        } else if !rest.is_empty() {
            return Err(Error::runtime(format!(
                "macro '{shown}' takes not more than {} argument(s)",
                definition.parameters.len()
            )));
        }
        self.bind_parameters(definition, given, &scope)?;
        let mut out = Out::default();
        match self.run(&definition.body.statements, &scope, &mut out)? {
            Flow::Next => Ok(Value::str(out.take())),
            Flow::Break | Flow::Continue => {
                Err(Error::refused("`break` or `continue` out of a macro"))
            }
        }
    }

    fn bind_parameters(
        &mut self,
        definition: &Macro,
        given: Vec<Option<Value>>,
        scope: &Rc<Scope>,
    ) -> Result<()> {
        let first_default = definition.parameters.len() - definition.defaults.len();
        for (at, (name, value)) in definition.parameters.iter().zip(given).enumerate() {
            let value = match value {
                Some(value) => value,
                None if at >= first_default => {
                    self.evaluate(&definition.defaults[at - first_default], scope)?
                }
                None => Undefined::value(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        Ok(())
    }

    /// Runs a loop; `depth` counts from 0 within recursive ones.
    pub fn run_for(
        &mut self,
        node: &Arc<super::ast::For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut Out,
    ) -> Result<Flow> {
        meter::check_depth()?;
        let id = self.loops.enter(LoopFrame::new(node, items, scope, depth)?);
        let result = self.rounds(node, id, scope, out);
        self.loops.leave(id);
        result
    }

    fn rounds(
        &mut self,
        node: &Arc<super::ast::For>,
        id: usize,
        scope: &Rc<Scope>,
        out: &mut Out,
    ) -> Result<Flow> {
        let loop_name: Name = "loop".into();
        let mut ran = false;
        while let Some(item) = self.next_item(id)? {
            let inner = self.enter(&node.body, scope);
            self.assign(&node.target, item, &inner)?;
            inner.set(&loop_name, Value::Loop(id));
            match self.run(&node.body.statements, &inner, out)? {
                Flow::Next => ran = true,
                Flow::Break => break,
                Flow::Continue => {}
            }
        }
        // Jinja2 counts iterations that reach their end.
        if !ran {
            let inner = self.enter(&node.otherwise, scope);
            return self.run(&node.otherwise.statements, &inner, out);
        }
        Ok(Flow::Next)
    }
}
