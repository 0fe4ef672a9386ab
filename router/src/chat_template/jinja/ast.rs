//! A parsed template.

use std::sync::Arc;

pub type Name = Arc<str>;

#[derive(Debug)]
pub struct Expr {
    pub line: u32,
    pub kind: ExprKind,
    /// Depth of nested expressions, including this one.
    pub depth: u32,
}

impl Expr {
    pub fn new(line: u32, kind: ExprKind) -> Self {
        let depth = 1 + kind.inner_depth();
        Self { line, kind, depth }
    }
}

#[derive(Debug)]
pub enum ExprKind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Name),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    Concat(Vec<Expr>),
    If {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    /// Occurs only within brackets.
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Arguments),
    /// The operand is absent in filter blocks and set blocks, which filter the block's text.
    Filter(Option<Box<Expr>>, Name, Arguments),
    Test(Box<Expr>, Name, Arguments),
}

impl ExprKind {
    fn inner_depth(&self) -> u32 {
        let deepest = |expressions: &[Expr]| expressions.iter().map(|e| e.depth).max().unwrap_or(0);
        match self {
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Str(_)
            | Self::Name(_) => 0,
            Self::Tuple(items) | Self::List(items) | Self::Concat(items) => deepest(items),
            Self::Dict(entries) => {
                let depths = entries
                    .iter()
                    .map(|(key, value)| key.depth.max(value.depth));
                depths.max().unwrap_or(0)
            }
            Self::Binary(_, left, right)
            | Self::And(left, right)
            | Self::Or(left, right)
            | Self::Item(left, right) => left.depth.max(right.depth),
            Self::Neg(operand)
            | Self::Pos(operand)
            | Self::Not(operand)
            | Self::Attribute(operand, _) => operand.depth,
            Self::Compare(left, rest) => {
                let depths = rest.iter().map(|(_, right)| right.depth);
                left.depth.max(depths.max().unwrap_or(0))
            }
            Self::If {
                test,
                then,
                otherwise,
            } => {
                let otherwise = otherwise.as_ref().map_or(0, |otherwise| otherwise.depth);
                test.depth.max(then.depth).max(otherwise)
            }
            Self::Slice(bounds) => {
                let depths = bounds.iter().flatten().map(|bound| bound.depth);
                depths.max().unwrap_or(0)
            }
            Self::Call(operand, arguments) | Self::Test(operand, _, arguments) => {
                operand.depth.max(arguments.depth())
            }
            Self::Filter(operand, _, arguments) => {
                let operand = operand.as_ref().map_or(0, |operand| operand.depth);
                operand.max(arguments.depth())
            }
        }
    }
}

impl Arguments {
    fn depth(&self) -> u32 {
        let positional = self.positional.iter().map(|value| value.depth);
        let named = self.named.iter().map(|(_, value)| value.depth);
        let starred = [&self.star, &self.double_star].into_iter().flatten();
        let depths = positional
            .chain(named)
            .chain(starred.map(|value| value.depth));
        depths.max().unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub star: Option<Box<Expr>>,
    pub double_star: Option<Box<Expr>>,
}

/// Statements with their own scope.
#[derive(Debug, Default)]
pub struct Body {
    pub statements: Vec<Stmt>,
    /// Names that are undefined until the body sets them, even if the template got variables of these names.
    pub hidden: Vec<Name>,
}

impl From<Vec<Stmt>> for Body {
    fn from(statements: Vec<Stmt>) -> Self {
        Self {
            statements,
            hidden: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub struct Stmt {
    pub line: u32,
    pub kind: StmtKind,
}

#[derive(Debug)]
pub enum StmtKind {
    Text(String),
    Print(Vec<Expr>),
    Set(Target, Expr),
    /// Assigns the body's text, filtered if there are filters.
    SetBlock(Target, Option<Expr>, Body),
    For(Arc<For>),
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Body),
    Macro(Arc<Macro>),
    /// `{% call %}`: the call, and the macro that becomes its `caller`.
    Call(Expr, Arc<Macro>),
    FilterBlock(Expr, Body),
    /// `{% generation %}`: Transformers calls its body as a macro.
    Generation(Arc<Macro>),
    /// A body with its own scope: `{% autoescape false %}`.
    Scoped(Body),
    Break,
    Continue,
    /// Name of a feature of Jinja2 that this interpreter refuses.
    Refused(String),
}

/// Target of an assignment.
#[derive(Debug)]
pub enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attribute(Name, Name, u32),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub iter: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Body,
    pub otherwise: Body,
}

#[derive(Debug)]
pub struct Macro {
    /// `None` for the body of a `{% call %}`.
    pub name: Option<Name>,
    pub parameters: Vec<Name>,
    /// Default values of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Body,
    /// True if the body uses these names. A call may then pass more arguments than the macro has parameters.
    pub uses_caller: bool,
    pub uses_varargs: bool,
    pub uses_kwargs: bool,
}
