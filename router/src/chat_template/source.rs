//! Where a model keeps its chat template and the special tokens that it uses.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ChatTemplateError;

/// Text of a template and its variables.
#[derive(Debug)]
pub struct Source {
    pub template: String,
    pub special_tokens: Map<String, Value>,
}

/// The part of tokenizer_config.json, chat_template.json and special_tokens_map.json that matters here.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    fn default_template(self) -> Result<String, ChatTemplateError> {
        match self {
            Self::One(template) => Ok(template),
            Self::Named(mut templates) => {
                let names = templates.iter().map(|template| template.name.clone());
                let names: Vec<_> = names.collect();
                let chosen = names.iter().position(|name| name == "default");
                match (chosen, names.len()) {
                    (Some(index), _) => Ok(templates.swap_remove(index).template),
                    (None, 0) => Err(ChatTemplateError::Missing),
                    (None, 1) => Ok(templates.swap_remove(0).template),
                    (None, _) => Err(ChatTemplateError::NoDefault { names }),
                }
            }
        }
    }
}

impl Source {
    /// Looks in this order: `tokenizer_config` when given, chat_template.jinja, tokenizer_config.json,
    /// chat_template.json.
    pub fn read(
        model_path: &Path,
        tokenizer_config: Option<&Path>,
    ) -> Result<Self, ChatTemplateError> {
        let given = match tokenizer_config {
            Some(path) => Some(parse(path)?.ok_or_else(|| unreadable(path, &"no such file"))?),
            None => None,
        };
        let is_given = given.is_some();
        let mut config = match given {
            Some(config) => config,
            None => parse(&model_path.join("tokenizer_config.json"))?.unwrap_or_default(),
        };
        let configured = config.chat_template.take();
        let mut special_tokens = special_tokens(config.rest);
        if let Some(more) = parse(&model_path.join("special_tokens_map.json"))? {
            for (name, token) in self::special_tokens(more.rest) {
                special_tokens.entry(name).or_insert(token);
            }
        }

        let file = read(&model_path.join("chat_template.jinja"))?;
        let template = match (configured, file) {
            (Some(configured), _) if is_given => configured.default_template()?,
            (_, Some(file)) => file,
            (Some(configured), None) => configured.default_template()?,
            (None, None) => parse(&model_path.join("chat_template.json"))?
                .and_then(|file| file.chat_template)
                .ok_or(ChatTemplateError::Missing)?
                .default_template()?,
        };
        Ok(Self {
            template,
            special_tokens,
        })
    }
}

/// Entries whose names end in `_token`; the value is a string or an object with a `content`.
fn special_tokens(config: Map<String, Value>) -> Map<String, Value> {
    let tokens = config.into_iter().filter_map(|(name, value)| {
        let text = match value {
            Value::String(text) => text,
            Value::Object(mut token) => match token.remove("content") {
                Some(Value::String(text)) => text,
                _ => return None,
            },
            _ => return None,
        };
        name.ends_with("_token")
            .then_some((name, Value::String(text)))
    });
    tokens.collect()
}

fn parse(path: &Path) -> Result<Option<TokenizerConfig>, ChatTemplateError> {
    match read(path)? {
        Some(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| unreadable(path, &error)),
        None => Ok(None),
    }
}

/// The file's text; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, ChatTemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, cause: &dyn std::fmt::Display) -> ChatTemplateError {
    ChatTemplateError::Unreadable {
        path: path.display().to_string(),
        cause: cause.to_string(),
    }
}
