//! Tool calls and reasoning in a model's answer: finds out how the model writes them, and takes them out of its text
//! while the text is generated.

mod format;
mod named;
mod parser;
mod piece;
mod plan;
mod probe;
mod response_template;
mod rules;
mod schema;

pub use format::Format;
pub use named::Choice;
pub use parser::Parser;
pub use piece::Piece;
pub use plan::{Plan, Tool};
pub use rules::{CallRules, Unenforceable, Wanted, rules};

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::chat_template::ChatTemplate;
use named::NamedFormats;

/// How the served model writes calls and reasoning.
#[derive(Debug, Clone)]
pub struct ChatFormat {
    pub format: Arc<Format>,
    /// Special tokens among the markers of calls and reasoning.
    shown_tokens: Arc<[u32]>,
    /// Special tokens among the markers of reasoning.
    shown_without_calls: Arc<[u32]>,
    /// Names and ids of all special tokens, for grammars.
    pub special_tokens: Arc<[(String, u32)]>,
}

impl ChatFormat {
    /// Finds the format. Renders the template several times: call it where that blocks no request.
    pub fn find(
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
        choice: Choice<'_>,
    ) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let names: Vec<String> = added.values().map(|token| token.content.clone()).collect();
        let (format, messages) = find(template, &names, choice);
        for message in messages {
            tracing::warn!("{message}");
        }
        let shown = |with_calls| {
            let markers = format.markers(with_calls);
            let special = added.iter().filter(|(_, token)| {
                token.special && markers.iter().any(|marker| marker.contains(&token.content))
            });
            special.map(|(id, _)| *id).collect()
        };
        Self {
            special_tokens: added
                .iter()
                .filter(|(_, token)| token.special)
                .map(|(id, token)| (token.content.clone(), *id))
                .collect(),
            shown_tokens: shown(true),
            shown_without_calls: shown(false),
            format: Arc::new(format),
        }
    }

    /// Special tokens that the parser of `plan` must see.
    pub fn shown_tokens(&self, plan: &Plan) -> Arc<[u32]> {
        Arc::clone(match plan.tools.is_empty() {
            true => &self.shown_without_calls,
            false => &self.shown_tokens,
        })
    }
}

/// Finds the format of a model. `template`: its chat template, if it has one; `tokens`: tokens added to the tokenizer's
/// vocabulary. Also returns messages for the user about names that are not known.
fn find(
    template: Option<&ChatTemplate>,
    tokens: &[String],
    choice: Choice<'_>,
) -> (Format, Vec<String>) {
    let named = match NamedFormats::read() {
        Ok(named) => named,
        Err(error) => return (Format::plain(), vec![error.to_string()]),
    };
    let mut format = template.map_or_else(Format::plain, |template| {
        let told = template.response_template();
        told.and_then(response_template::translate)
            .or_else(|| named.for_template(template.source_with_tools()))
            .unwrap_or_else(|| probe::find(template, tokens))
    });
    let unknown = named.apply(choice, &mut format);
    (format, unknown)
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod malformed_tests;
#[cfg(test)]
mod response_template_tests;
#[cfg(test)]
pub mod test_families;
