//! Reads a model's chat templates and the special tokens that they use.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ChatTemplateError;

/// Folder of further templates, each in a file with its name.
const FOLDER: &str = "additional_chat_templates";

/// Texts of the templates and their variables.
#[derive(Debug)]
pub struct Source {
    pub templates: Vec<NamedTemplate>,
    pub special_tokens: Map<String, Value>,
    /// Description of answers for Transformers.
    pub response_template: Option<Value>,
}

/// A named template. A model's only template is named `default`.
#[derive(Debug, Deserialize)]
pub struct NamedTemplate {
    pub name: String,
    pub template: String,
    /// File that the template comes from, for messages.
    #[serde(skip)]
    pub place: String,
}

/// The keys of tokenizer_config.json, chat_template.json and special_tokens_map.json that are used here.
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
    ByName(Map<String, Value>),
}

impl Templates {
    /// Returns the templates of the file `place`.
    fn into_named(self, place: &str) -> Result<Vec<NamedTemplate>, ChatTemplateError> {
        let unnamed = |name: &str, template: String| NamedTemplate {
            name: name.into(),
            template,
            place: place.into(),
        };
        Ok(match self {
            Self::One(template) => vec![unnamed("default", template)],
            Self::Named(templates) => templates
                .into_iter()
                .map(|named| NamedTemplate {
                    place: format!("`{}` in {place}", named.name),
                    ..named
                })
                .collect(),
            Self::ByName(templates) => templates
                .into_iter()
                .map(|(name, template)| match template {
                    Value::String(template) => Ok(NamedTemplate {
                        place: format!("`{name}` in {place}"),
                        name,
                        template,
                    }),
                    _ => Err(ChatTemplateError::Unreadable {
                        path: place.into(),
                        cause: format!("the chat template `{name}` is no string"),
                    }),
                })
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Source {
    /// Reads the first of these that has a template: `tokenizer_config` if given, chat_template.jinja with
    /// additional_chat_templates, tokenizer_config.json, chat_template.json.
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
        let place = match tokenizer_config.and_then(Path::file_name) {
            Some(name) => name.to_string_lossy().into_owned(),
            None => "tokenizer_config.json".into(),
        };
        let configured = config.chat_template.take();
        let response_template = config.rest.get("response_template").cloned();
        let special_tokens = read_special_tokens(model_path, config.rest)?;

        let files = template_files(model_path)?;
        let templates = match configured {
            Some(configured) if is_given => configured.into_named(&place)?,
            _ if !files.is_empty() => files,
            Some(configured) => configured.into_named(&place)?,
            None => parse(&model_path.join("chat_template.json"))?
                .and_then(|file| file.chat_template)
                .ok_or(ChatTemplateError::Missing)?
                .into_named("chat_template.json")?,
        };
        if templates.is_empty() {
            return Err(ChatTemplateError::Missing);
        }
        Ok(Self {
            templates,
            special_tokens,
            response_template,
        })
    }
}

/// Reads chat_template.jinja and the files of additional_chat_templates.
fn template_files(model_path: &Path) -> Result<Vec<NamedTemplate>, ChatTemplateError> {
    let mut templates = Vec::new();
    if let Some(template) = read(&model_path.join("chat_template.jinja"))? {
        templates.push(NamedTemplate {
            name: "default".into(),
            template,
            place: "chat_template.jinja".into(),
        });
    }
    let folder = model_path.join(FOLDER);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(templates);
    };
    for entry in entries {
        let file = entry
            .map_err(|error| unreadable(&folder, &error))?
            .file_name();
        let file = file.to_string_lossy();
        let Some(name) = file.strip_suffix(".jinja") else {
            continue;
        };
        if let Some(template) = read(&folder.join(&*file))? {
            templates.push(NamedTemplate {
                name: name.into(),
                template,
                place: format!("{FOLDER}/{file}"),
            });
        }
    }
    Ok(templates)
}

/// Returns the named special tokens. As in Transformers, special_tokens_map.json counts only for folders older than
/// `added_tokens_decoder`, and there it takes precedence.
fn read_special_tokens(
    model_path: &Path,
    config: Map<String, Value>,
) -> Result<Map<String, Value>, ChatTemplateError> {
    let is_legacy = !config.contains_key("added_tokens_decoder");
    let mut tokens = special_tokens(config);
    if is_legacy && let Some(more) = parse(&model_path.join("special_tokens_map.json"))? {
        tokens.extend(special_tokens(more.rest));
    }
    Ok(tokens)
}

/// Returns entries whose names end in `_token`, and named tokens of `extra_special_tokens`.
fn special_tokens(mut config: Map<String, Value>) -> Map<String, Value> {
    let extra = match config.remove("extra_special_tokens") {
        Some(Value::Object(extra)) => extra,
        _ => Map::new(),
    };
    let own = config
        .into_iter()
        .filter(|(name, _)| name.ends_with("_token"));
    own.chain(extra)
        .filter_map(|(name, token)| Some((name, token_text(token)?)))
        .collect()
}

/// Returns the text of a token: a string, or an object with a `content`.
fn token_text(token: Value) -> Option<Value> {
    match token {
        Value::String(_) => Some(token),
        Value::Object(mut token) => token.remove("content").filter(Value::is_string),
        _ => None,
    }
}

fn parse(path: &Path) -> Result<Option<TokenizerConfig>, ChatTemplateError> {
    match read(path)? {
        Some(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| unreadable(path, &error)),
        None => Ok(None),
    }
}

/// Reads the file; `None` if it does not exist.
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
