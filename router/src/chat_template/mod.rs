//! Turns a conversation into a prompt: the model's own chat template, rendered as Transformers renders it.

mod adapt;
mod jinja;
mod message;
mod probe;
mod source;

use std::path::Path;

use serde_json::{Map, Value as Json};

use adapt::Forms;
use jinja::{Kind, Limits, Template};
pub use message::{Content, ContentPart, Message};
use source::{NamedTemplate, Source};

/// Errors of rendering a conversation; the message is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatTemplateError {
    #[error(
        "the model has no chat template (neither `chat_template` in tokenizer_config.json nor chat_template.jinja); \
         use /v1/completions with a prompt instead"
    )]
    Missing,
    #[error("the model has chat templates named {}, but none named `default`", .names.join(", "))]
    NoDefault { names: Vec<String> },
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: String, cause: String },
    #[error("the model's chat template does not compile: {0}")]
    Compile(String),
    #[error("{0}")]
    Render(String),
    #[error("{0}")]
    Continue(&'static str),
}

/// Fields of a request, besides the messages, that shape the prompt.
#[derive(Debug, Default)]
pub struct RenderOptions<'a> {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// Further variables for the template (`tools`, `documents`, `enable_thinking`, …).
    pub variables: Option<&'a Map<String, Json>>,
}

/// The chat templates of a model: one, and perhaps another for requests with tools.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Compiled,
    tool_use: Option<Compiled>,
    /// Special tokens of the tokenizer's configuration, such as `bos_token` and `eos_token`.
    special_tokens: Map<String, Json>,
    response_template: Option<Json>,
}

/// One compiled template.
#[derive(Debug)]
struct Compiled {
    template: Template,
    source: String,
    /// File that the template comes from, for messages.
    place: String,
    forms: Forms,
}

/// Marks the end of the last message when it is to be continued.
const END_MARK: &str = "END_OF_FINAL_MESSAGE_4f1d0c ";
/// Name of the template that Transformers uses for requests with tools.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Reads and compiles the templates of the model in `model_path`. `tokenizer_config`, when given, is read instead
    /// of the model's tokenizer_config.json, and its template wins over all others.
    pub fn load(
        model_path: &Path,
        tokenizer_config: Option<&Path>,
    ) -> Result<Self, ChatTemplateError> {
        let source = Source::read(model_path, tokenizer_config)?;
        Ok(Self {
            response_template: source.response_template,
            ..Self::compile_all(source.templates, source.special_tokens)?
        })
    }

    /// Compiles `template`; `special_tokens` become its variables.
    #[cfg(test)]
    pub fn compile(
        template: &str,
        special_tokens: Map<String, Json>,
    ) -> Result<Self, ChatTemplateError> {
        let named = NamedTemplate {
            name: "default".into(),
            template: template.into(),
            place: String::new(),
        };
        Self::compile_all(vec![named], special_tokens)
    }

    fn compile_all(
        mut templates: Vec<NamedTemplate>,
        special_tokens: Map<String, Json>,
    ) -> Result<Self, ChatTemplateError> {
        let tool_use = templates.iter().position(|named| named.name == TOOL_USE);
        let tool_use = match tool_use {
            Some(at) if templates.len() > 1 => Some(templates.remove(at)),
            _ => None,
        };
        let default = match templates.iter().position(|named| named.name == "default") {
            Some(at) => templates.swap_remove(at),
            None if templates.len() == 1 && tool_use.is_none() => templates.swap_remove(0),
            None => {
                let names = templates.into_iter().chain(tool_use);
                return Err(ChatTemplateError::NoDefault {
                    names: names.map(|named| named.name).collect(),
                });
            }
        };
        let compile = |named| Compiled::new(named, &special_tokens);
        Ok(Self {
            default: compile(default)?,
            tool_use: tool_use.map(compile).transpose()?,
            special_tokens,
            response_template: None,
        })
    }

    /// Source of the template for conversations without tools.
    pub fn source(&self) -> &str {
        &self.default.source
    }

    /// `response_template` of the tokenizer's configuration, in which it describes answers for Transformers.
    pub fn response_template(&self) -> Option<&Json> {
        self.response_template
            .as_ref()
            .filter(|value| value.is_object())
    }

    /// Text of the template that renders requests with tools.
    pub fn source_with_tools(&self) -> &str {
        &self.tool_use.as_ref().unwrap_or(&self.default).source
    }

    /// Renders the prompt for `messages`. The template contains the special tokens.
    ///
    /// May run as long as the template's limits allow: call it where that blocks no other request.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, ChatTemplateError> {
        let tools = options.variables.and_then(|given| given.get("tools"));
        let compiled = match &self.tool_use {
            Some(tool_use) if tools.is_some_and(|tools| !tools.is_null()) => tool_use,
            _ => &self.default,
        };
        let mut adapted: Vec<Json> = messages
            .iter()
            .map(|message| compiled.forms.adapt(message))
            .collect();
        let continued = if options.continue_final_message {
            Some(mark_end(&mut adapted)?)
        } else {
            None
        };
        let prompt = compiled.render(&Json::Array(adapted), options, &self.special_tokens)?;
        match continued {
            Some(text) => cut_at_mark(prompt, &text),
            None => Ok(prompt),
        }
    }
}

/// Appends the mark to the last text of the last message, and returns that text.
fn mark_end(messages: &mut [Json]) -> Result<String, ChatTemplateError> {
    let content = messages
        .last_mut()
        .and_then(|message| message.get_mut("content"));
    let text = match content {
        Some(Json::String(text)) => Some(text),
        Some(Json::Array(parts)) => {
            let texts = parts.iter_mut().rev();
            texts
                .filter_map(|part| part.get_mut("text"))
                .find_map(|text| match text {
                    Json::String(text) => Some(text),
                    _ => None,
                })
        }
        _ => None,
    };
    let text = text.ok_or(ChatTemplateError::Continue(
        "`continue_final_message` is set, but the last message has no text to continue",
    ))?;
    let before = text.clone();
    text.push_str(END_MARK);
    Ok(before)
}

/// Cuts the prompt at the mark after `text`.
fn cut_at_mark(mut prompt: String, text: &str) -> Result<String, ChatTemplateError> {
    let end = prompt.rfind(END_MARK.trim_end());
    let end = end.filter(|_| prompt.contains(text.trim_matches(jinja::is_space)));
    let end = end.ok_or(ChatTemplateError::Continue(
        "`continue_final_message` is set, but the model's chat template does not show the last message as it is",
    ))?;
    // A template that trims contents leaves the text before the mark untrimmed, and also the mark's own space.
    if prompt[end..].starts_with(END_MARK) {
        prompt.truncate(end);
    } else {
        prompt.truncate(prompt[..end].trim_end_matches(jinja::is_space).len());
    }
    Ok(prompt)
}

impl Compiled {
    fn new(
        named: NamedTemplate,
        special_tokens: &Map<String, Json>,
    ) -> Result<Self, ChatTemplateError> {
        let template = Template::parse(&named.template)
            .map_err(|error| ChatTemplateError::Compile(describe(&error, &named.place)))?;
        let forms = probe::forms(&named.template, |messages| {
            let documents = Json::Null;
            let prompt = Json::Bool(true);
            let own = [
                ("documents", &documents),
                ("tools", &documents),
                ("messages", messages),
                ("add_generation_prompt", &prompt),
            ];
            template.render(strs(special_tokens).chain(own), &probe::limits())
        })
        .map_err(|error| ChatTemplateError::Compile(describe(&error, &named.place)))?;
        Ok(Self {
            template,
            source: named.template,
            place: named.place,
            forms,
        })
    }

    fn render(
        &self,
        messages: &Json,
        options: &RenderOptions<'_>,
        special_tokens: &Map<String, Json>,
    ) -> Result<String, ChatTemplateError> {
        let none = Json::Null;
        let prompt = Json::Bool(options.add_generation_prompt);
        let nothing = Map::new();
        let given = options.variables.unwrap_or(&nothing);
        let before = [("documents", &none), ("tools", &none)];
        let after = [("messages", messages), ("add_generation_prompt", &prompt)];
        let variables = strs(special_tokens)
            .chain(before)
            .chain(strs(given))
            .chain(after);
        let input = text_bytes(messages) + given.values().map(text_bytes).sum::<usize>();
        let limits = Limits::for_input(input + self.source.len());
        self.template
            .render(variables, &limits)
            .map_err(|error| ChatTemplateError::Render(describe(&error, &self.place)))
    }
}

fn strs(map: &Map<String, Json>) -> impl Iterator<Item = (&str, &Json)> {
    map.iter().map(|(name, value)| (name.as_str(), value))
}

/// Estimates the number of bytes of `value` as JSON.
fn text_bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => 8 + items.iter().map(text_bytes).sum::<usize>(),
        Json::Object(map) => {
            let entries = map.iter();
            8 + entries
                .map(|(name, value)| name.len() + text_bytes(value))
                .sum::<usize>()
        }
        _ => 8,
    }
}

/// Puts the template's own message first, then its line and file.
fn describe(error: &jinja::Error, place: &str) -> String {
    let message = match error.message.as_str() {
        "" => "the chat template raised an error without a message",
        message => message,
    };
    let file = if place.is_empty() {
        String::new()
    } else {
        format!(", {place}")
    };
    match (error.line, error.kind) {
        (0, Kind::Raised) => message.to_owned(),
        (0, _) => format!("{message} (in the chat template{file})"),
        (line, _) => format!("{message} (line {line} of the chat template{file})"),
    }
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;
