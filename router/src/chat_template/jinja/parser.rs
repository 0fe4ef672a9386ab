//! Parses tokens into statements.

use std::sync::Arc;

use super::ast::{Arguments, Body, Expr, ExprKind, For, Macro, Name, Stmt, StmtKind, Target};
use super::error::{Error, Result};
use super::lexer::{Token, tokenize};
use super::names::uses;
use super::{meter, symbols};

/// Parses a whole template.
pub fn parse(source: &str) -> Result<Body> {
    let mut parser = Parser {
        tokens: tokenize(source)?,
        at: 0,
        loops: 0,
        macros: 0,
    };
    let mut body = Body::from(parser.body(&[])?.0);
    symbols::resolve(&mut body)?;
    Ok(body)
}

pub struct Parser {
    tokens: Vec<(u32, Token)>,
    at: usize,
    /// Number of open loops.
    loops: usize,
    /// Number of open bodies of macros and calls.
    macros: usize,
}

/// Maximum depth of nested macros and calls. Each searches its whole body for the names that it reads.
const MAX_MACROS: usize = 50;

/// Tags of Jinja2 that need other templates, and tags of extensions that chat templates do not use.
const REFUSED_TAGS: [&str; 5] = ["include", "import", "from", "extends", "block"];
const END_TAGS: [&str; 3] = ["else", "elif", "endif"];

impl Parser {
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(0, |(line, _)| *line)
    }

    pub fn peek(&self) -> &Token {
        self.tokens
            .get(self.at)
            .map_or(&Token::Eof, |(_, token)| token)
    }

    pub fn peek_second(&self) -> &Token {
        self.tokens
            .get(self.at + 1)
            .map_or(&Token::Eof, |(_, token)| token)
    }

    pub fn skip(&mut self) {
        self.at += 1;
    }

    pub fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::syntax(message, self.line()))
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    pub fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) {
            return Ok(());
        }
        self.fail(format!("expected token '{op}', got {}", self.describe()))
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if &**found == name)
    }

    pub fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub fn expect_name(&mut self) -> Result<Name> {
        let Token::Name(name) = self.peek() else {
            return self.fail(format!("expected a name, got {}", self.describe()));
        };
        let name = Arc::clone(name);
        self.skip();
        Ok(name)
    }

    fn expect_block_end(&mut self) -> Result<()> {
        if *self.peek() == Token::BlockEnd {
            self.skip();
            return Ok(());
        }
        self.fail(format!(
            "expected the end of the tag, got {}",
            self.describe()
        ))
    }

    /// Describes the current token, for messages.
    pub fn describe(&self) -> String {
        match self.peek() {
            Token::Data(_) => "template text".into(),
            Token::VariableBegin => "'{{'".into(),
            Token::VariableEnd => "'}}'".into(),
            Token::BlockBegin => "'{%'".into(),
            Token::BlockEnd => "'%}'".into(),
            Token::Name(name) => format!("'{name}'"),
            Token::Str(text) => format!("the string {text:?}"),
            Token::Int(number) => number.to_string(),
            Token::Float(number) => number.to_string(),
            Token::Op(op) => format!("'{op}'"),
            Token::Eof => "the end of the template".into(),
        }
    }

    /// Parses statements up to one of the tags `ends`, whose name is read too; without any, up to the end of the
    /// template.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Name)> {
        meter::check_depth()?;
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.peek() {
                Token::Eof if ends.is_empty() => return Ok((body, "".into())),
                Token::Data(text) => {
                    let kind = StmtKind::Text(text.clone());
                    body.push(Stmt { line, kind });
                    self.skip();
                }
                Token::VariableBegin => {
                    self.skip();
                    let expression = self.tuple(true, &[])?;
                    if *self.peek() != Token::VariableEnd {
                        return self.fail(format!(
                            "expected token 'end of print statement', got {}",
                            self.describe()
                        ));
                    }
                    self.skip();
                    let kind = StmtKind::Print(vec![expression]);
                    body.push(Stmt { line, kind });
                }
                Token::BlockBegin => {
                    self.skip();
                    let Token::Name(tag) = self.peek() else {
                        return self.fail("tag name expected");
                    };
                    let tag = Arc::clone(tag);
                    if ends.contains(&&*tag) {
                        self.skip();
                        return Ok((body, tag));
                    }
                    let line = self.line();
                    let kind = self.statement(&tag, ends)?;
                    self.expect_block_end()?;
                    body.push(Stmt { line, kind });
                }
                _ => {
                    return self.fail(format!(
                        "Unexpected end of template. Jinja was looking for the following tags: {}.",
                        ends.join(" or ")
                    ));
                }
            }
        }
    }

    /// Parses the body of a statement, from the end of its first tag on.
    fn statements(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, Name)> {
        self.skip_op(":");
        self.expect_block_end()?;
        self.body(ends)
    }

    fn statement(&mut self, tag: &str, ends: &[&str]) -> Result<StmtKind> {
        self.skip();
        match tag {
            "set" => self.set(),
            "for" => self.for_loop(),
            "if" => self.conditional(),
            "with" => self.with(),
            "macro" => self.macro_definition(),
            "call" => self.call_block(),
            "filter" => {
                let filter = self.filter_chain(None, true)?;
                let (body, _) = self.statements(&["endfilter"])?;
                match filter {
                    Some(filter) => Ok(StmtKind::FilterBlock(filter, body.into())),
                    None => self.fail("expected a filter"),
                }
            }
            "print" => {
                let mut expressions = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !expressions.is_empty() {
                        self.expect_op(",")?;
                    }
                    expressions.push(self.expression()?);
                }
                Ok(StmtKind::Print(expressions))
            }
            "generation" => {
                let body = self.own_body("endgeneration")?;
                let body = new_macro(None, Vec::new(), Vec::new(), body);
                Ok(StmtKind::Generation(Arc::new(body)))
            }
            "autoescape" => {
                let on = self.expression()?;
                let (body, _) = self.statements(&["endautoescape"])?;
                Ok(match on.kind {
                    ExprKind::Bool(false) => StmtKind::Scoped(body.into()),
                    _ => StmtKind::Refused("the tag `autoescape` (but for `false`)".into()),
                })
            }
            "break" | "continue" if self.loops == 0 => {
                self.fail(format!("`{tag}` outside of a loop"))
            }
            "break" => Ok(StmtKind::Break),
            "continue" => Ok(StmtKind::Continue),
            _ if REFUSED_TAGS.contains(&tag) => self.refused_tag(tag),
            _ if END_TAGS.contains(&tag) || tag.starts_with("end") => self.fail(format!(
                "Encountered unknown tag '{tag}'. Jinja was looking for the following tags: {}.",
                ends.join(" or ")
            )),
            _ => self.fail(format!("Encountered unknown tag '{tag}'.")),
        }
    }

    /// Skips a tag and its body. The tag is refused when it is reached.
    fn refused_tag(&mut self, tag: &str) -> Result<StmtKind> {
        while !matches!(self.peek(), Token::BlockEnd | Token::Eof) {
            self.skip();
        }
        if tag == "block" {
            self.expect_block_end()?;
            self.body(&["endblock"])?;
            // The block's name may follow its end tag.
            if matches!(self.peek(), Token::Name(_)) {
                self.skip();
            }
        }
        Ok(StmtKind::Refused(format!("the tag `{tag}`")))
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_op("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[])?));
        }
        let filter = self.filter_chain(None, false)?;
        let (body, _) = self.statements(&["endset"])?;
        Ok(StmtKind::SetBlock(target, filter, body.into()))
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_name("in") {
            return self.fail(format!("expected token 'in', got {}", self.describe()));
        }
        let iter = self.tuple(false, &["recursive"])?;
        let test = if self.skip_name("if") {
            Some(self.expression()?)
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        self.loops += 1;
        let (body, end) = self.statements(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if &*end == "else" {
            self.statements(&["endfor"])?.0
        } else {
            Vec::new()
        };
        Ok(StmtKind::For(Arc::new(For {
            target,
            iter,
            test,
            recursive,
            body: body.into(),
            otherwise: otherwise.into(),
        })))
    }

    fn conditional(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match &*end {
                "elif" => {}
                "else" => {
                    let (otherwise, _) = self.statements(&["endif"])?;
                    return Ok(StmtKind::If(branches, otherwise));
                }
                _ => return Ok(StmtKind::If(branches, Vec::new())),
            }
        }
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut assignments = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !assignments.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_op("=")?;
            assignments.push((target, self.expression()?));
        }
        let (body, _) = self.statements(&["endwith"])?;
        Ok(StmtKind::With(assignments, body.into()))
    }

    fn macro_definition(&mut self) -> Result<StmtKind> {
        let name = self.expect_name()?;
        let (parameters, defaults) = self.signature()?;
        let body = self.own_body("endmacro")?;
        self.check_caller(&parameters, &defaults, &body)?;
        Ok(StmtKind::Macro(Arc::new(new_macro(
            Some(name),
            parameters,
            defaults,
            body,
        ))))
    }

    fn call_block(&mut self) -> Result<StmtKind> {
        let (parameters, defaults) = if self.is_op("(") {
            self.signature()?
        } else {
            (Vec::new(), Vec::new())
        };
        let call = self.expression()?;
        if !matches!(call.kind, ExprKind::Call(..)) {
            return self.fail("expected call");
        }
        let body = self.own_body("endcall")?;
        self.check_caller(&parameters, &defaults, &body)?;
        let caller = new_macro(None, parameters, defaults, body);
        Ok(StmtKind::Call(call, Arc::new(caller)))
    }

    /// Parses a body that runs elsewhere: surrounding loops are not its own.
    fn own_body(&mut self, end: &str) -> Result<Vec<Stmt>> {
        let loops = std::mem::take(&mut self.loops);
        self.macros += 1;
        if self.macros > MAX_MACROS {
            return self.fail(format!(
                "more than {MAX_MACROS} macros and calls within each other"
            ));
        }
        let (body, _) = self.statements(&[end])?;
        self.macros -= 1;
        self.loops = loops;
        Ok(body)
    }

    fn check_caller(&self, parameters: &[Name], defaults: &[Expr], body: &[Stmt]) -> Result<()> {
        let at = parameters.iter().position(|name| &**name == "caller");
        if at.is_some_and(|at| at < parameters.len() - defaults.len()) && uses(body, "caller") {
            return self.fail(
                "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.",
            );
        }
        Ok(())
    }

    fn signature(&mut self) -> Result<(Vec<Name>, Vec<Expr>)> {
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            parameters.push(self.expect_name()?);
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
        }
        self.expect_op(")")?;
        Ok((parameters, defaults))
    }

    /// Parses an assignment target: a name, a namespace's attribute, or several in a tuple.
    fn target(&mut self, ends: &[&str], with_namespace: bool) -> Result<Target> {
        let target = |parser: &mut Self| parser.single_target(with_namespace);
        self.one_or_tuple(ends, target, Target::Tuple)
    }

    fn single_target(&mut self, with_namespace: bool) -> Result<Target> {
        meter::check_depth()?;
        if self.skip_op("(") {
            let target = self.target(&[], with_namespace)?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let line = self.line();
        let name = self.expect_name()?;
        if with_namespace && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?, line));
        }
        if matches!(
            &*name,
            "true" | "false" | "none" | "True" | "False" | "None"
        ) {
            return self.fail(format!("can't assign to '{name}'"));
        }
        Ok(Target::Name(name))
    }

    /// Parses filters after `|`, for a block's text. With `inline`, the first has no `|`.
    fn filter_chain(&mut self, operand: Option<Expr>, inline: bool) -> Result<Option<Expr>> {
        let mut node = operand;
        let mut inline = inline;
        while inline || self.is_op("|") {
            if !inline {
                self.skip();
            }
            inline = false;
            node = Some(self.filter(node)?);
        }
        Ok(node)
    }

    /// Parses one filter: its name and arguments.
    pub fn filter(&mut self, operand: Option<Expr>) -> Result<Expr> {
        let line = self.line();
        let name = self.dotted_name()?;
        let arguments = if self.is_op("(") {
            self.call_arguments()?
        } else {
            Arguments::default()
        };
        let kind = ExprKind::Filter(operand.map(Box::new), name, arguments);
        self.check(Expr::new(line, kind))
    }

    pub fn dotted_name(&mut self) -> Result<Name> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }
}

fn new_macro(
    name: Option<Name>,
    parameters: Vec<Name>,
    defaults: Vec<Expr>,
    body: Vec<Stmt>,
) -> Macro {
    let own = |wanted: &str| {
        let is_parameter = parameters.iter().any(|name| &**name == wanted);
        uses(&body, wanted) && (!is_parameter || wanted == "caller")
    };
    Macro {
        uses_caller: own("caller"),
        uses_varargs: own("varargs"),
        uses_kwargs: own("kwargs"),
        name,
        parameters,
        defaults,
        body: body.into(),
    }
}
