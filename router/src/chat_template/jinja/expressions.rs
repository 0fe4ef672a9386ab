//! Parses tokens into expressions.

use super::ast::{Arguments, BinaryOp, CompareOp, Expr, ExprKind};
use super::error::Result;
use super::lexer::Token;
use super::meter;
use super::parser::Parser;

/// Maximum depth of nested expressions. Python's parser does not allow more either.
const MAX_DEPTH: u32 = 600;

fn expr(line: u32, kind: ExprKind) -> Expr {
    Expr::new(line, kind)
}

impl Parser {
    pub fn expression(&mut self) -> Result<Expr> {
        meter::check_depth()?;
        let mut line = self.line();
        let mut node = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let otherwise = if self.skip_name("else") {
                Some(Box::new(self.expression()?))
            } else {
                None
            };
            let kind = ExprKind::If {
                test: Box::new(test),
                then: Box::new(node),
                otherwise,
            };
            node = self.check(expr(line, kind))?;
            line = self.line();
        }
        Ok(node)
    }

    /// Refuses an expression beyond the maximum depth, since traversing and dropping it uses stack.
    pub fn check(&self, node: Expr) -> Result<Expr> {
        if node.depth > MAX_DEPTH {
            return self.fail(format!(
                "more than {MAX_DEPTH} operators or brackets within each other"
            ));
        }
        Ok(node)
    }

    fn or(&mut self) -> Result<Expr> {
        let or = |parser: &mut Self| parser.skip_name("or").then_some(());
        self.chain(Self::and, or, |(), left, right| ExprKind::Or(left, right))
    }

    fn and(&mut self) -> Result<Expr> {
        let and = |parser: &mut Self| parser.skip_name("and").then_some(());
        self.chain(Self::not, and, |(), left, right| ExprKind::And(left, right))
    }

    /// Parses operands with operators between them, which apply from left to right. `operator` skips one, if it stands
    /// next.
    fn chain<Op>(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expr>,
        operator: impl Fn(&mut Self) -> Option<Op>,
        kind: impl Fn(Op, Box<Expr>, Box<Expr>) -> ExprKind,
    ) -> Result<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some(op) = operator(self) {
            let right = operand(self)?;
            left = self.check(expr(line, kind(op, Box::new(left), Box::new(right))))?;
        }
        Ok(left)
    }

    /// Skips one of these operators, if it stands next.
    fn skip_one_of(&mut self, operators: &[(&str, BinaryOp)]) -> Option<BinaryOp> {
        let found = operators.iter().find(|(sign, _)| self.skip_op(sign))?;
        Some(found.1)
    }

    fn not(&mut self) -> Result<Expr> {
        meter::check_depth()?;
        let line = self.line();
        if self.skip_name("not") {
            return Ok(expr(line, ExprKind::Not(Box::new(self.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        let line = self.line();
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Token::Op("==") => CompareOp::Eq,
                Token::Op("!=") => CompareOp::Ne,
                Token::Op("<") => CompareOp::Lt,
                Token::Op("<=") => CompareOp::Le,
                Token::Op(">") => CompareOp::Gt,
                Token::Op(">=") => CompareOp::Ge,
                Token::Name(name) if &**name == "in" => CompareOp::In,
                Token::Name(name)
                    if &**name == "not"
                        && matches!(self.peek_second(), Token::Name(next) if &**next == "in") =>
                {
                    self.skip();
                    CompareOp::NotIn
                }
                _ => break,
            };
            self.skip();
            rest.push((op, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(left);
        }
        Ok(expr(line, ExprKind::Compare(Box::new(left), rest)))
    }

    fn sum(&mut self) -> Result<Expr> {
        const OPERATORS: &[(&str, BinaryOp)] = &[("+", BinaryOp::Add), ("-", BinaryOp::Sub)];
        let operator = |parser: &mut Self| parser.skip_one_of(OPERATORS);
        self.chain(Self::concat, operator, ExprKind::Binary)
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(expr(line, ExprKind::Concat(parts)))
    }

    fn product(&mut self) -> Result<Expr> {
        const OPERATORS: &[(&str, BinaryOp)] = &[
            ("*", BinaryOp::Mul),
            ("/", BinaryOp::Div),
            ("//", BinaryOp::FloorDiv),
            ("%", BinaryOp::Mod),
        ];
        let operator = |parser: &mut Self| parser.skip_one_of(OPERATORS);
        self.chain(Self::power, operator, ExprKind::Binary)
    }

    fn power(&mut self) -> Result<Expr> {
        let operand = |parser: &mut Self| parser.unary(true);
        let operator = |parser: &mut Self| parser.skip_one_of(&[("**", BinaryOp::Pow)]);
        self.chain(operand, operator, ExprKind::Binary)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        meter::check_depth()?;
        let line = self.line();
        let mut node = if self.skip_op("-") {
            expr(line, ExprKind::Neg(Box::new(self.unary(false)?)))
        } else if self.skip_op("+") {
            expr(line, ExprKind::Pos(Box::new(self.unary(false)?)))
        } else {
            self.primary()?
        };
        node = self.postfix(node)?;
        if with_filters {
            node = self.filters_and_tests(node)?;
        }
        self.check(node)
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let kind = match self.peek().clone() {
            Token::Name(name) => {
                self.skip();
                match &*name {
                    "true" | "True" => ExprKind::Bool(true),
                    "false" | "False" => ExprKind::Bool(false),
                    "none" | "None" => ExprKind::None,
                    _ => ExprKind::Name(name),
                }
            }
            Token::Str(mut text) => {
                self.skip();
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.skip();
                }
                ExprKind::Str(text.into())
            }
            Token::Int(number) => {
                self.skip();
                ExprKind::Int(number)
            }
            Token::Float(number) => {
                self.skip();
                ExprKind::Float(number)
            }
            Token::Op("(") => {
                self.skip();
                let node = self.tuple_or_nothing()?;
                self.expect_op(")")?;
                return Ok(node);
            }
            Token::Op("[") => {
                self.skip();
                let mut items = Vec::new();
                while !self.is_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                    }
                    if self.is_op("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect_op("]")?;
                ExprKind::List(items)
            }
            Token::Op("{") => {
                self.skip();
                let mut entries = Vec::new();
                while !self.is_op("}") {
                    if !entries.is_empty() {
                        self.expect_op(",")?;
                    }
                    if self.is_op("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    entries.push((key, self.expression()?));
                }
                self.expect_op("}")?;
                ExprKind::Dict(entries)
            }
            _ => return self.fail(format!("unexpected {}", self.describe())),
        };
        Ok(expr(line, kind))
    }

    /// Parses the content of parentheses: a tuple, which may be empty, or an expression.
    fn tuple_or_nothing(&mut self) -> Result<Expr> {
        if self.is_op(")") {
            return Ok(expr(self.line(), ExprKind::Tuple(Vec::new())));
        }
        self.tuple(true, &[])
    }

    /// Parses a tuple or a single expression: expressions with commas between them are a tuple.
    pub fn tuple(&mut self, with_condition: bool, ends: &[&str]) -> Result<Expr> {
        let line = self.line();
        let item = |parser: &mut Self| {
            if with_condition {
                parser.expression()
            } else {
                parser.or()
            }
        };
        self.one_or_tuple(ends, item, |items| expr(line, ExprKind::Tuple(items)))
    }

    /// Parses one item, or several with commas between them, of which `tuple` makes one.
    pub fn one_or_tuple<T>(
        &mut self,
        ends: &[&str],
        item: impl Fn(&mut Self) -> Result<T>,
        tuple: impl FnOnce(Vec<T>) -> T,
    ) -> Result<T> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            let ended = match self.peek() {
                Token::VariableEnd | Token::BlockEnd | Token::Op(")") => true,
                Token::Name(name) => ends.contains(&&**name),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(item(self)?);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(tuple(items));
        }
        match items.pop() {
            Some(item) => Ok(item),
            None => self.fail(format!("Expected an expression, got {}", self.describe())),
        }
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            match self.peek() {
                Token::Op(".") => node = self.attribute(node)?,
                Token::Op("[") => node = self.subscript(node)?,
                Token::Op("(") => {
                    let arguments = self.call_arguments()?;
                    node = expr(line, ExprKind::Call(Box::new(node), arguments));
                }
                _ => return Ok(node),
            }
            node = self.check(node)?;
        }
    }

    fn filters_and_tests(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            if self.skip_op("|") {
                node = self.filter(Some(node))?;
            } else if self.is_name("is") {
                node = self.test(node)?;
            } else if self.is_op("(") {
                let arguments = self.call_arguments()?;
                node = expr(line, ExprKind::Call(Box::new(node), arguments));
            } else {
                return Ok(node);
            }
            node = self.check(node)?;
        }
    }

    fn attribute(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.expect_op(".")?;
        let kind = match self.peek().clone() {
            Token::Name(name) => ExprKind::Attribute(Box::new(node), name),
            Token::Int(number) => {
                let key = expr(self.line(), ExprKind::Int(number));
                ExprKind::Item(Box::new(node), Box::new(key))
            }
            _ => return self.fail("expected name or number"),
        };
        self.skip();
        Ok(expr(line, kind))
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        let line = self.line();
        self.expect_op("[")?;
        let mut keys = Vec::new();
        while !self.is_op("]") {
            if !keys.is_empty() {
                self.expect_op(",")?;
            }
            keys.push(self.subscribed()?);
        }
        self.expect_op("]")?;
        let key = match (keys.pop(), keys.is_empty()) {
            (Some(key), true) => key,
            (last, _) => {
                keys.extend(last);
                expr(line, ExprKind::Tuple(keys))
            }
        };
        Ok(expr(line, ExprKind::Item(Box::new(node), Box::new(key))))
    }

    /// Parses the content of brackets: an expression or a slice.
    fn subscribed(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut bounds = [None, None, None];
        if !self.is_op(":") {
            let first = self.expression()?;
            if !self.is_op(":") {
                return Ok(first);
            }
            bounds[0] = Some(first);
        }
        self.expect_op(":")?;
        if !(self.is_op(":") || self.is_op("]") || self.is_op(",")) {
            bounds[1] = Some(self.expression()?);
        }
        if self.skip_op(":") && !(self.is_op("]") || self.is_op(",")) {
            bounds[2] = Some(self.expression()?);
        }
        Ok(expr(line, ExprKind::Slice(Box::new(bounds))))
    }

    pub fn call_arguments(&mut self) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        self.expect_op("(")?;
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            let starred = arguments.star.is_some() || arguments.double_star.is_some();
            let named =
                matches!(self.peek(), Token::Name(_)) && *self.peek_second() == Token::Op("=");
            let allowed = if self.is_op("*") {
                !starred
            } else if self.is_op("**") || named {
                arguments.double_star.is_none()
            } else {
                !starred && arguments.named.is_empty()
            };
            if !allowed {
                return self.fail("invalid syntax for function call expression");
            }
            if self.skip_op("*") {
                arguments.star = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                arguments.double_star = Some(Box::new(self.expression()?));
            } else if named {
                let name = self.expect_name()?;
                self.expect_op("=")?;
                arguments.named.push((name, self.expression()?));
            } else {
                arguments.positional.push(self.expression()?);
            }
        }
        self.expect_op(")")?;
        Ok(arguments)
    }

    fn test(&mut self, operand: Expr) -> Result<Expr> {
        let line = self.line();
        self.skip();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        if self.is_op("(") {
            arguments = self.call_arguments()?;
        } else if self.starts_argument() {
            if self.is_name("is") {
                return self.fail("You cannot chain multiple tests with is");
            }
            let argument = self.primary()?;
            arguments.positional.push(self.postfix(argument)?);
        }
        let node = expr(line, ExprKind::Test(Box::new(operand), name, arguments));
        Ok(if negated {
            expr(line, ExprKind::Not(Box::new(node)))
        } else {
            node
        })
    }

    /// True if an argument of a test without parentheses follows.
    fn starts_argument(&self) -> bool {
        match self.peek() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            Token::Op(op) => matches!(*op, "[" | "{"),
            _ => false,
        }
    }
}
