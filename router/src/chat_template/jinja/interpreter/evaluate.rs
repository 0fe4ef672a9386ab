//! Evaluates expressions.

use std::cmp::Ordering;
use std::rc::Rc;

use super::Interpreter;
use crate::chat_template::jinja::ast::{Arguments, CompareOp, Expr, ExprKind};
use crate::chat_template::jinja::call::CallArguments;
use crate::chat_template::jinja::compare::{contains, equal, iterate, order};
use crate::chat_template::jinja::error::{Error, Result};
use crate::chat_template::jinja::repr::{self, Out};
use crate::chat_template::jinja::value::Scope;
use crate::chat_template::jinja::value::{Undefined, Value};
use crate::chat_template::jinja::{
    attributes, filters, globals, is_tests, meter, methods, operators,
};

impl Interpreter<'_> {
    /// Evaluates an expression.
    pub fn evaluate(&mut self, expression: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        meter::spend(1).map_err(|error| error.at(expression.line))?;
        self.value_of(expression, scope)
            .map_err(|error| error.at(expression.line))
    }

    fn value_of(&mut self, expression: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match &expression.kind {
            ExprKind::None => Ok(Value::None),
            ExprKind::Bool(flag) => Ok(Value::Bool(*flag)),
            ExprKind::Int(number) => Ok(Value::Int(*number)),
            ExprKind::Float(number) => Ok(Value::Float(*number)),
            ExprKind::Str(text) => {
                meter::reserve(text.len())?;
                Ok(Value::str(&**text))
            }
            ExprKind::Name(name) => self.lookup(name, scope),
            ExprKind::Attribute(operand, name) => {
                let value = self.evaluate(operand, scope)?;
                self.attribute(&value, name)
            }
            ExprKind::Item(operand, key) => self.item(operand, key, scope),
            ExprKind::Call(function, arguments) => self.call_expression(function, arguments, scope),
            ExprKind::Filter(operand, name, arguments) => {
                let Some(operand) = operand else {
                    return Err(Error::syntax(
                        "a filter without an operand",
                        expression.line,
                    ));
                };
                let value = self.evaluate(operand, scope)?;
                let arguments = self.arguments(arguments, scope)?;
                filters::call(name, &value, &arguments)
            }
            ExprKind::Test(operand, name, arguments) => {
                let value = self.evaluate(operand, scope)?;
                let arguments = self.arguments(arguments, scope)?;
                is_tests::call(name, &value, &arguments).map(Value::Bool)
            }
            ExprKind::Not(operand) => {
                let value = self.evaluate(operand, scope)?;
                Ok(Value::Bool(!value.is_true()))
            }
            ExprKind::And(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() {
                    self.evaluate(right, scope)
                } else {
                    Ok(left)
                }
            }
            ExprKind::Or(left, right) => {
                let left = self.evaluate(left, scope)?;
                if left.is_true() {
                    Ok(left)
                } else {
                    self.evaluate(right, scope)
                }
            }
            ExprKind::Compare(left, rest) => self.compare(left, rest, scope),
            _ => {
                meter::check_depth()?;
                self.compound(expression, scope)
            }
        }
    }

    fn compound(&mut self, expression: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match &expression.kind {
            ExprKind::Binary(op, left, right) => {
                let left = self.evaluate(left, scope)?;
                let right = self.evaluate(right, scope)?;
                operators::binary(*op, &left, &right)
            }
            ExprKind::Neg(operand) => operators::sign(&self.evaluate(operand, scope)?, true),
            ExprKind::Pos(operand) => operators::sign(&self.evaluate(operand, scope)?, false),
            ExprKind::Concat(parts) => {
                let mut out = Out::default();
                for part in parts {
                    let value = self.evaluate(part, scope)?;
                    repr::write_str(&value, &mut out)?;
                }
                Ok(Value::str(out.take()))
            }
            ExprKind::If {
                test,
                then,
                otherwise,
            } => {
                if self.evaluate(test, scope)?.is_true() {
                    return self.evaluate(then, scope);
                }
                match otherwise {
                    Some(otherwise) => self.evaluate(otherwise, scope),
                    None => Ok(Undefined::value(format!(
                        "the inline if-expression on line {} evaluated to false and no else section was defined.",
                        expression.line
                    ))),
                }
            }
            ExprKind::Tuple(items) => Value::tuple(self.all(items, scope)?),
            ExprKind::List(items) => Value::list(self.all(items, scope)?),
            ExprKind::Dict(entries) => {
                let mut pairs = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    pairs.push((self.evaluate(key, scope)?, self.evaluate(value, scope)?));
                }
                Value::dict(pairs)
            }
            ExprKind::Slice(_) => Err(Error::refused("a slice within a tuple of subscripts")),
            _ => Err(Error::runtime("an expression of an unknown kind")),
        }
    }

    fn all(&mut self, expressions: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        expressions
            .iter()
            .map(|expression| self.evaluate(expression, scope))
            .collect()
    }

    fn compare(
        &mut self,
        left: &Expr,
        rest: &[(CompareOp, Expr)],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut left = self.evaluate(left, scope)?;
        for (op, right) in rest {
            let right = self.evaluate(right, scope)?;
            let ordered = |symbol: &str, fits: &[Ordering]| {
                Ok::<_, Error>(
                    order(&left, &right, symbol)?.is_some_and(|order| fits.contains(&order)),
                )
            };
            let holds = match op {
                CompareOp::Eq => equal(&left, &right)?,
                CompareOp::Ne => !equal(&left, &right)?,
                CompareOp::Lt => ordered("<", &[Ordering::Less])?,
                CompareOp::Le => ordered("<=", &[Ordering::Less, Ordering::Equal])?,
                CompareOp::Gt => ordered(">", &[Ordering::Greater])?,
                CompareOp::Ge => ordered(">=", &[Ordering::Greater, Ordering::Equal])?,
                CompareOp::In => contains(&right, &left)?,
                CompareOp::NotIn => !contains(&right, &left)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        match value {
            Value::Loop(id) => self.loop_attribute(*id, name),
            other => attributes::attribute(other, name),
        }
    }

    fn item(&mut self, operand: &Expr, key: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let value = self.evaluate(operand, scope)?;
        if let ExprKind::Slice(bounds) = &key.kind {
            let mut bound = |bound: &Option<Expr>| match bound {
                Some(bound) => self.evaluate(bound, scope),
                None => Ok(Value::None),
            };
            let bounds = [bound(&bounds[0])?, bound(&bounds[1])?, bound(&bounds[2])?];
            return attributes::slice(&value, bounds);
        }
        let key = self.evaluate(key, scope)?;
        match (&value, &key) {
            (Value::Loop(id), Value::Str(name)) => self.loop_attribute(*id, name),
            _ => attributes::item(&value, &key),
        }
    }

    fn call_expression(
        &mut self,
        function: &Expr,
        arguments: &Arguments,
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        // `loop.cycle(…)` needs the loop's state, which only the interpreter has.
        if let ExprKind::Attribute(operand, name) = &function.kind
            && matches!(&**name, "cycle" | "changed")
        {
            let owner = self.evaluate(operand, scope)?;
            if let Value::Loop(id) = owner {
                let arguments = self.arguments(arguments, scope)?;
                let result = self.loop_method(id, name, &arguments)?;
                return Ok(result.unwrap_or(Value::None));
            }
            let function = self.attribute(&owner, name)?;
            let arguments = self.arguments(arguments, scope)?;
            return self.call(&function, &arguments);
        }
        let function = self.evaluate(function, scope)?;
        let arguments = self.arguments(arguments, scope)?;
        self.call(&function, &arguments)
    }

    /// Calls a value.
    pub fn call(&mut self, function: &Value, arguments: &CallArguments) -> Result<Value> {
        match function {
            Value::Undefined(undefined) => Err(undefined.error()),
            Value::Macro(bound) => self.call_macro(bound, arguments),
            Value::Loop(id) => self.call_loop(*id, arguments),
            Value::Function(name) => globals::call(&mut self.namespaces, name, arguments),
            Value::Method(method) => methods::call(&method.owner, &method.name, arguments),
            Value::Joiner(joiner) => {
                arguments.bind::<0>("joiner", [], 0)?;
                if joiner.used.replace(true) {
                    Ok(joiner.separator.clone())
                } else {
                    Ok(Value::str(""))
                }
            }
            other => Err(Error::runtime(format!(
                "'{}' object is not callable",
                other.type_name()
            ))),
        }
    }

    /// Evaluates the arguments of a call.
    pub fn arguments(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<CallArguments> {
        let mut positional = self.all(&arguments.positional, scope)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expression) in &arguments.named {
            if named.iter().any(|(known, _)| known == name) {
                return Err(Error::runtime(format!("keyword argument repeated: {name}")));
            }
            named.push((name.clone(), self.evaluate(expression, scope)?));
        }
        if let Some(star) = &arguments.star {
            let value = self.evaluate(star, scope)?;
            let mut items = iterate(&value)?;
            while let Some(item) = items.next()? {
                meter::reserve(size_of::<Value>())?;
                positional.push(item);
            }
        }
        if let Some(double_star) = &arguments.double_star {
            let Value::Dict(dict) = self.evaluate(double_star, scope)? else {
                return Err(Error::runtime("argument after ** must be a mapping"));
            };
            for (key, value) in dict.entries() {
                let Value::Str(key) = key else {
                    return Err(Error::runtime("keywords must be strings"));
                };
                if named.iter().any(|(known, _)| **known == **key) {
                    return Err(Error::runtime(format!(
                        "got multiple values for keyword argument '{}'",
                        &**key
                    )));
                }
                named.push(((&**key).into(), value.clone()));
            }
        }
        Ok(CallArguments { positional, named })
    }
}
