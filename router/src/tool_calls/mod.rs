//! Tool calls and reasoning in a model's answer: finds out how the model writes them, and takes them out of its text
//! while the text is generated.

mod format;
mod named;
mod parser;
mod piece;
mod plan;
mod probe;

pub use format::Format;
pub use named::Choice;
pub use parser::Parser;
pub use piece::Piece;
pub use plan::{Plan, Tool};

use crate::chat_template::ChatTemplate;
use named::NamedFormats;

/// Finds the format of a model. `template`: its chat template, if it has one; `tokens`: tokens added to the tokenizer's
/// vocabulary. Also returns messages for the user about names that are not known.
///
/// Renders the template several times: call it where that blocks no request.
pub fn find(
    template: Option<&ChatTemplate>,
    tokens: &[String],
    choice: Choice<'_>,
) -> (Format, Vec<String>) {
    let named = match NamedFormats::read() {
        Ok(named) => named,
        Err(error) => return (Format::plain(), vec![error.to_string()]),
    };
    let mut format = template.map_or_else(Format::plain, |template| {
        let known = named.for_template(template.source_with_tools());
        known.unwrap_or_else(|| probe::find(template, tokens))
    });
    let unknown = named.apply(choice, &mut format);
    (format, unknown)
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod malformed_tests;
#[cfg(test)]
mod test_families;
