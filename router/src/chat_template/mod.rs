//! From a conversation to a prompt: the model's own chat template, rendered as Transformers renders it.

mod environment;
mod message;
mod python_json;
mod source;

use std::path::Path;

use minijinja::value::{Serde, merge_maps};
use minijinja::{Environment, Value, context};
use serde_json::{Map, Value as Json};

pub use message::{Content, ContentPart, Message};
use source::Source;

/// Why there is no prompt for a conversation; the message is for the client.
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

/// What of a request, besides the messages, shapes the prompt.
#[derive(Debug, Default)]
pub struct RenderOptions<'a> {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End inside the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables for the template (`enable_thinking`, …).
    pub variables: Option<&'a Map<String, Json>>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, … as the tokenizer's configuration has them.
    special_tokens: Map<String, Json>,
    content: ContentForm,
    /// Whether the template tells `developer` messages from others.
    knows_developer: bool,
}

/// How the template wants `content`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    /// A string only: it prints or concatenates `message.content`.
    Text,
    /// A list of parts only: it loops over `message.content` without asking whether it is a string.
    Parts,
    /// Whatever the client sent.
    Either,
}

/// Marks the end of the last message while it is rendered to be continued.
const END_MARK: &str = "END_OF_FINAL_MESSAGE_4f1d0c ";
const PROBE: &str = "probe-7c0e51";

impl ChatTemplate {
    /// Reads and compiles the template of the model in `model_path`. `tokenizer_config`, when given, is read instead of
    /// the model's tokenizer_config.json, and its template wins over all others.
    pub fn load(
        model_path: &Path,
        tokenizer_config: Option<&Path>,
    ) -> Result<Self, ChatTemplateError> {
        let source = Source::read(model_path, tokenizer_config)?;
        Self::compile(&source.template, source.special_tokens)
    }

    /// Compiles `template`; `special_tokens` become its variables.
    pub fn compile(
        template: &str,
        special_tokens: Map<String, Json>,
    ) -> Result<Self, ChatTemplateError> {
        let environment = environment::compile(template)
            .map_err(|error| ChatTemplateError::Compile(describe(&error)))?;
        let mut compiled = Self {
            environment,
            special_tokens,
            content: ContentForm::Either,
            knows_developer: template.contains("developer"),
        };
        compiled.content = compiled.probe_content_form();
        Ok(compiled)
    }

    /// The prompt for `messages`. The template brings the special tokens itself.
    pub fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, ChatTemplateError> {
        let mut messages: Vec<Message> =
            messages.iter().map(|message| self.adapt(message)).collect();
        if !options.continue_final_message {
            return self.render_adapted(&messages, options);
        }
        let text = messages.last_mut().and_then(Message::last_text_mut).ok_or(
            ChatTemplateError::Continue(
                "`continue_final_message` is set, but the last message has no text to continue",
            ),
        )?;
        text.push_str(END_MARK);
        let mut prompt = self.render_adapted(&messages, options)?;
        let mark = END_MARK.trim_end();
        let end = prompt.rfind(mark).ok_or(ChatTemplateError::Continue(
            "`continue_final_message` is set, but the model's chat template does not show the last message",
        ))?;
        // A template that trims contents has trimmed what was before the mark as little as the mark's own space.
        if prompt[end..].starts_with(END_MARK) {
            prompt.truncate(end);
        } else {
            prompt.truncate(prompt[..end].trim_end().len());
        }
        Ok(prompt)
    }

    /// `message` in the form that the template understands: its content, and OpenAI's newer name of the system role.
    fn adapt(&self, message: &Message) -> Message {
        let mut message = message.clone();
        if message.role == "developer" && !self.knows_developer {
            message.role = "system".into();
        }
        message.content = match (message.content, self.content) {
            (Some(Content::Parts(parts)), ContentForm::Text) => {
                let texts = parts.into_iter().filter_map(|part| part.text);
                Some(Content::Text(texts.collect()))
            }
            (Some(Content::Text(text)), ContentForm::Parts) => {
                Some(Content::Parts(vec![ContentPart::text(text)]))
            }
            (content, _) => content,
        };
        message
    }

    fn render_adapted(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<String, ChatTemplateError> {
        let render = || {
            self.environment
                .get_template(environment::TEMPLATE)?
                .render(merge_maps([
                    Value::from(Serde(&self.special_tokens)),
                    context! { documents => (), tools => () },
                    Value::from(Serde(options.variables.unwrap_or(&Map::new()))),
                    context! {
                        messages => Serde(messages),
                        add_generation_prompt => options.add_generation_prompt,
                    },
                ]))
        };
        render().map_err(|error| ChatTemplateError::Render(describe(&error)))
    }

    /// Finds out what the template does with both forms of content by giving them to it.
    fn probe_content_form(&self) -> ContentForm {
        let shown = |content: Content| {
            let message = Message {
                role: "user".into(),
                content: Some(content),
                extra: Map::new(),
            };
            let options = RenderOptions {
                add_generation_prompt: true,
                ..RenderOptions::default()
            };
            self.render_adapted(&[message], &options)
                .is_ok_and(|prompt| {
                    // A list that was merely printed shows the name of its field too.
                    prompt.contains(PROBE)
                        && !prompt.contains("'text'")
                        && !prompt.contains("\"text\"")
                })
        };
        let parts = shown(Content::Parts(vec![ContentPart::text(PROBE.into())]));
        match (shown(Content::Text(PROBE.into())), parts) {
            (true, true) => ContentForm::Either,
            (false, true) => ContentForm::Parts,
            _ => ContentForm::Text,
        }
    }
}

/// The template's own message first, with the line it comes from.
fn describe(error: &minijinja::Error) -> String {
    let mut text = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    match error.line() {
        Some(line) => format!("{text} (line {line} of the chat template)"),
        None => text,
    }
}

#[cfg(test)]
mod tests;
