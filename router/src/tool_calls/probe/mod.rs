//! Finds out how a model writes calls and reasoning, by rendering its chat template with unusual words and reading what
//! stands around them.

mod arguments;
mod calls;
mod conversation;
mod frame;
mod lexemes;
mod objects;
mod reasoning;

use serde_json::{Map, Value, json};

use super::format::{Format, Layout, Origin, Regions};
use crate::chat_template::ChatTemplate;
use conversation::Prober;

/// Finds the format of a model with this template. `tokens`: tokens added to the tokenizer's vocabulary.
pub fn find(template: &ChatTemplate, tokens: &[String]) -> Format {
    let mut format = Format::plain();
    let Some(prober) = Prober::new(template, Map::new()) else {
        return format;
    };
    let source = template.source_with_tools();
    let thinking = json!({"enable_thinking": true, "thinking": true});
    let thinking = match thinking {
        Value::Object(variables) => Prober::new(template, variables),
        _ => None,
    };
    let probers = [Some(&prober), thinking.as_ref()];
    let probers = || probers.iter().flatten();
    let rendered = probers().find_map(|prober| reasoning::rendered(prober));
    let opened = || probers().find_map(|prober| reasoning::opened(prober.header()));
    let found = rendered.or_else(opened);
    let (reasoning, reasoning_from) = match found {
        Some(found) => (Some(found), Origin::ChatTemplate),
        None => match reasoning::named(source, tokens) {
            Some(named) => (Some(named), Origin::Tokens),
            None => (None, Origin::Nothing),
        },
    };
    let calls = calls::find(&prober, reasoning.as_ref());
    format.anchor = prober
        .turn(conversation::answer())
        .map(|turn| turn.anchor)
        .unwrap_or_default();
    if let Some(opened) = reasoning
        .as_ref()
        .and_then(|reasoning| format.anchor.find(reasoning.open.as_str()))
    {
        // The template opens the thought for the model.
        format.anchor.truncate(opened);
    }
    format.calls_from = match calls {
        Some(_) => Origin::ChatTemplate,
        None => Origin::Nothing,
    };
    format.reasoning_from = reasoning_from;
    let content_markers = calls::content_markers(&prober, reasoning.as_ref(), calls.is_some());
    format.layout = Layout::from(Regions {
        reasoning,
        calls,
        content_markers,
    });
    format
}
