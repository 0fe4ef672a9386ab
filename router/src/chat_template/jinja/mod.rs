//! Jinja2 as Transformers sets it up for chat templates, with Python's values, and with limits.
//!
//! A template gives what `apply_chat_template` of Transformers gives, or fails by name: what cannot be done as Python
//! does it is refused. `testdata/constructs.json` holds constructs with the answers of Jinja2 itself.

mod ast;
mod attributes;
mod builtins;
mod call;
mod clock;
mod compare;
mod error;
mod escapes;
mod expressions;
mod filters;
mod floats;
mod format_spec;
mod globals;
mod interpreter;
mod is_tests;
mod json;
mod lexer;
mod meter;
mod methods;
mod names;
mod numbers;
mod operators;
mod parser;
mod percent;
mod repr;
mod str_format;
mod str_methods;
mod strings;
mod symbols;
mod value;

pub use error::{Error, Kind};
pub use meter::Limits;
pub use strings::is_space;

use interpreter::Interpreter;
use value::{Scope, Value};

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    body: ast::Body,
}

impl Template {
    /// Parses `source`.
    pub fn parse(source: &str) -> Result<Self, Error> {
        let _guard = meter::Guard::start(&Limits::for_input(source.len()));
        Ok(Self {
            body: parser::parse(source)?,
        })
    }

    /// The text for these variables; a later one of a name wins.
    pub fn render<'v>(
        &self,
        variables: impl IntoIterator<Item = (&'v str, &'v serde_json::Value)>,
        limits: &Limits,
    ) -> Result<String, Error> {
        let _guard = meter::Guard::start(limits);
        let globals = Scope::default();
        for (name, value) in variables {
            globals.set(&name.into(), Value::from_json(value)?);
        }
        let mut interpreter = Interpreter::new(&globals);
        let mut out = repr::Out::default();
        out.limit_to(limits.output_bytes);
        interpreter.run_template(&self.body, &mut out)?;
        Ok(out.take())
    }
}

#[cfg(test)]
mod tests;
