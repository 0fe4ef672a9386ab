//! Errors of templates.

/// Kinds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The template is not Jinja.
    Syntax,
    /// A feature of Jinja2 that this interpreter refuses by name, rather than deviate from it.
    Refused,
    /// A limit on work, memory, depth or time was reached.
    Limit,
    /// The template called `raise_exception`.
    Raised,
    /// Jinja2 fails here too: a wrong type, something undefined, …
    Runtime,
}

/// A failure with the template's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    /// Line of the template, from 1; 0 while it is not known.
    pub line: u32,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            line: 0,
        }
    }

    pub fn syntax(message: impl Into<String>, line: u32) -> Self {
        Self::new(Kind::Syntax, message).at(line)
    }

    /// `what` is the construct's name: "filter `random`".
    pub fn refused(what: impl std::fmt::Display) -> Self {
        Self::new(
            Kind::Refused,
            format!("{what} is not supported in chat templates"),
        )
    }

    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(Kind::Limit, message)
    }

    pub fn raised(message: impl Into<String>) -> Self {
        Self::new(Kind::Raised, message)
    }

    pub fn runtime(message: impl Into<String>) -> Self {
        Self::new(Kind::Runtime, message)
    }

    /// Adds the line, unless an inner line is known already.
    pub fn at(mut self, line: u32) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "{} (line {line} of the chat template)", self.message),
        }
    }
}

impl std::error::Error for Error {}
