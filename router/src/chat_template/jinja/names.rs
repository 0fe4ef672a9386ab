//! Finds the names that a body reads.

use super::ast::{Arguments, Expr, ExprKind, Name, Stmt, StmtKind};

/// True if `body` reads `name` anywhere, including its own macros.
pub fn uses(body: &[Stmt], name: &str) -> bool {
    body.iter().any(|statement| statement_uses(statement, name))
}

fn statement_uses(statement: &Stmt, name: &str) -> bool {
    let reads = |expression: &Expr| {
        let mut found = false;
        each_name(expression, &mut |read| found |= **read == *name);
        found
    };
    match &statement.kind {
        StmtKind::Text(_) | StmtKind::Break | StmtKind::Continue | StmtKind::Refused(_) => false,
        StmtKind::Print(expressions) => expressions.iter().any(reads),
        StmtKind::Set(_, value) => reads(value),
        StmtKind::SetBlock(_, filter, body) => {
            filter.as_ref().is_some_and(reads) || uses(&body.statements, name)
        }
        StmtKind::For(node) => {
            reads(&node.iter)
                || node.test.as_ref().is_some_and(reads)
                || uses(&node.body.statements, name)
                || uses(&node.otherwise.statements, name)
        }
        StmtKind::If(branches, otherwise) => {
            branches
                .iter()
                .any(|(test, body)| reads(test) || uses(body, name))
                || uses(otherwise, name)
        }
        StmtKind::With(assignments, body) => {
            assignments.iter().any(|(_, value)| reads(value)) || uses(&body.statements, name)
        }
        StmtKind::Macro(definition) => {
            definition.defaults.iter().any(reads) || uses(&definition.body.statements, name)
        }
        StmtKind::Call(call, caller) => {
            reads(call) || caller.defaults.iter().any(reads) || uses(&caller.body.statements, name)
        }
        StmtKind::Generation(definition) => uses(&definition.body.statements, name),
        StmtKind::FilterBlock(filter, body) => reads(filter) || uses(&body.statements, name),
        StmtKind::Scoped(body) => uses(&body.statements, name),
    }
}

/// Calls `visit` with each name that the expression reads.
pub fn each_name(expression: &Expr, visit: &mut dyn FnMut(&Name)) {
    match &expression.kind {
        ExprKind::None
        | ExprKind::Bool(_)
        | ExprKind::Int(_)
        | ExprKind::Float(_)
        | ExprKind::Str(_) => {}
        ExprKind::Name(name) => visit(name),
        ExprKind::Tuple(items) | ExprKind::List(items) | ExprKind::Concat(items) => {
            for item in items {
                each_name(item, visit);
            }
        }
        ExprKind::Dict(entries) => {
            for (key, value) in entries {
                each_name(key, visit);
                each_name(value, visit);
            }
        }
        ExprKind::Binary(_, left, right)
        | ExprKind::And(left, right)
        | ExprKind::Or(left, right)
        | ExprKind::Item(left, right) => {
            each_name(left, visit);
            each_name(right, visit);
        }
        ExprKind::Neg(operand)
        | ExprKind::Pos(operand)
        | ExprKind::Not(operand)
        | ExprKind::Attribute(operand, _) => each_name(operand, visit),
        ExprKind::Compare(left, rest) => {
            each_name(left, visit);
            for (_, right) in rest {
                each_name(right, visit);
            }
        }
        ExprKind::If {
            test,
            then,
            otherwise,
        } => {
            each_name(test, visit);
            each_name(then, visit);
            if let Some(otherwise) = otherwise {
                each_name(otherwise, visit);
            }
        }
        ExprKind::Slice(bounds) => {
            for bound in bounds.iter().flatten() {
                each_name(bound, visit);
            }
        }
        ExprKind::Call(function, arguments) => {
            each_name(function, visit);
            each_argument(arguments, visit);
        }
        ExprKind::Filter(operand, _, arguments) => {
            if let Some(operand) = operand {
                each_name(operand, visit);
            }
            each_argument(arguments, visit);
        }
        ExprKind::Test(operand, _, arguments) => {
            each_name(operand, visit);
            each_argument(arguments, visit);
        }
    }
}

fn each_argument(arguments: &Arguments, visit: &mut dyn FnMut(&Name)) {
    for value in &arguments.positional {
        each_name(value, visit);
    }
    for (_, value) in &arguments.named {
        each_name(value, visit);
    }
    for value in [&arguments.star, &arguments.double_star]
        .into_iter()
        .flatten()
    {
        each_name(value, visit);
    }
}
