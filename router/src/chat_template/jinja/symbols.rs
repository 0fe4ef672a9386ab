//! Finds the variables that a body hides from its start.
//!
//! Jinja2 decides before a template runs where each name of a body comes from. A name that the body sets before it
//! reads it is undefined until then, also in its loops and macros, and even if the template got a variable of that
//! name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ast::{Body, Expr, Name, Stmt, StmtKind, Target};
use super::error::Result;
use super::meter;
use super::names::each_name;

/// Finds the hidden names of a template's bodies.
pub fn resolve(body: &mut Body) -> Result<()> {
    frame(body, &[], &mut Vec::new())
}

/// Origin of a name's value when the body begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Undefined,
    Given,
}

#[derive(Debug, Default, Clone)]
struct Symbols {
    origins: HashMap<Name, Origin>,
    stored: HashSet<Name>,
}

type Outer = Vec<HashSet<Name>>;

fn frame(body: &mut Body, parameters: &[Name], outer: &mut Outer) -> Result<()> {
    let mut symbols = Symbols::default();
    for name in parameters {
        symbols.origins.insert(Arc::clone(name), Origin::Given);
        symbols.stored.insert(Arc::clone(name));
    }
    symbols.visit(&body.statements, outer)?;
    let hidden = symbols
        .origins
        .iter()
        .filter(|(_, origin)| **origin == Origin::Undefined);
    body.hidden = hidden.map(|(name, _)| Arc::clone(name)).collect();
    outer.push(symbols.origins.into_keys().collect());
    inner_frames(&mut body.statements, outer)?;
    outer.pop();
    Ok(())
}

fn inner_frames(statements: &mut [Stmt], outer: &mut Outer) -> Result<()> {
    for statement in statements {
        match &mut statement.kind {
            StmtKind::SetBlock(_, _, body)
            | StmtKind::FilterBlock(_, body)
            | StmtKind::Scoped(body) => frame(body, &[], outer)?,
            StmtKind::With(assignments, body) => {
                let mut parameters = Vec::new();
                for (target, _) in assignments {
                    target_names(target, &mut parameters);
                }
                frame(body, &parameters, outer)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (_, body) in branches {
                    inner_frames(body, outer)?;
                }
                inner_frames(otherwise, outer)?;
            }
            StmtKind::For(node) => {
                if let Some(node) = Arc::get_mut(node) {
                    let mut parameters = vec!["loop".into()];
                    target_names(&node.target, &mut parameters);
                    frame(&mut node.body, &parameters, outer)?;
                    frame(&mut node.otherwise, &[], outer)?;
                }
            }
            StmtKind::Macro(definition)
            | StmtKind::Call(_, definition)
            | StmtKind::Generation(definition) => {
                if let Some(definition) = Arc::get_mut(definition) {
                    let mut parameters = definition.parameters.clone();
                    parameters.extend(["caller", "varargs", "kwargs"].map(Name::from));
                    frame(&mut definition.body, &parameters, outer)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn target_names(target: &Target, names: &mut Vec<Name>) {
    match target {
        Target::Name(name) => names.push(Arc::clone(name)),
        Target::Attribute(..) => {}
        Target::Tuple(targets) => {
            for target in targets {
                target_names(target, names);
            }
        }
    }
}

fn is_outer(name: &Name, outer: &Outer) -> bool {
    outer.iter().any(|names| names.contains(name))
}

impl Symbols {
    fn visit(&mut self, statements: &[Stmt], outer: &Outer) -> Result<()> {
        for statement in statements {
            match &statement.kind {
                StmtKind::Text(_)
                | StmtKind::Break
                | StmtKind::Continue
                | StmtKind::Refused(_)
                | StmtKind::Generation(_)
                | StmtKind::Scoped(_) => {}
                StmtKind::Print(expressions) => {
                    for expression in expressions {
                        self.load(expression, outer);
                    }
                }
                StmtKind::Set(target, value) => {
                    self.load(value, outer);
                    self.store_target(target, outer);
                }
                StmtKind::SetBlock(target, _, _) => self.store_target(target, outer),
                StmtKind::For(node) => self.load(&node.iter, outer),
                StmtKind::If(branches, otherwise) => self.branches(branches, otherwise, outer)?,
                StmtKind::With(assignments, _) => {
                    for (_, value) in assignments {
                        self.load(value, outer);
                    }
                }
                StmtKind::Macro(definition) => {
                    if let Some(name) = &definition.name {
                        self.store(name, outer);
                    }
                }
                StmtKind::Call(call, _) => self.load(call, outer),
                StmtKind::FilterBlock(filter, _) => self.load(filter, outer),
            }
        }
        Ok(())
    }

    fn load(&mut self, expression: &Expr, outer: &Outer) {
        each_name(expression, &mut |name| self.load_name(name, outer));
    }

    fn load_name(&mut self, name: &Name, outer: &Outer) {
        if !self.origins.contains_key(name) && !is_outer(name, outer) {
            self.origins.insert(Arc::clone(name), Origin::Given);
        }
    }

    fn store(&mut self, name: &Name, outer: &Outer) {
        self.stored.insert(Arc::clone(name));
        if !self.origins.contains_key(name) {
            let origin = if is_outer(name, outer) {
                Origin::Given
            } else {
                Origin::Undefined
            };
            self.origins.insert(Arc::clone(name), origin);
        }
    }

    fn store_target(&mut self, target: &Target, outer: &Outer) {
        match target {
            Target::Name(name) => self.store(name, outer),
            Target::Attribute(namespace, ..) => self.load_name(namespace, outer),
            Target::Tuple(targets) => {
                for target in targets {
                    self.store_target(target, outer);
                }
            }
        }
    }

    /// Merges branches: a name that only one branch sets keeps its outer value in the others.
    fn branches(
        &mut self,
        branches: &[(Expr, Vec<Stmt>)],
        otherwise: &[Stmt],
        outer: &Outer,
    ) -> Result<()> {
        let Some(((test, body), rest)) = branches.split_first() else {
            return Ok(());
        };
        // The copies below count as steps.
        meter::spend(1 + self.origins.len() as u64)?;
        self.load(test, outer);
        let mut taken = self.clone();
        taken.visit(body, outer)?;
        // Each `elif` is a separate `if` within the shared branch.
        let mut elifs = self.clone();
        for branch in rest {
            elifs.branches(std::slice::from_ref(branch), &[], outer)?;
        }
        let mut last = self.clone();
        last.visit(otherwise, outer)?;
        let before = self.stored.clone();
        for branch in [taken, elifs, last] {
            self.origins.extend(branch.origins);
            self.stored.extend(branch.stored);
        }
        for name in self.stored.difference(&before) {
            self.origins.insert(Arc::clone(name), Origin::Given);
        }
        Ok(())
    }
}
