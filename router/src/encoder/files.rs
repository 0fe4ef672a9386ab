//! What the router needs of an encoder's folder besides its tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::inputs::Normalization;
use crate::error::ApiError;

/// Prompts, the token that is filled in, and what is done to texts.
#[derive(Debug, Default)]
pub struct EncoderFiles {
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    /// Id and text.
    pub mask: Option<(u32, String)>,
    pub normalization: Normalization,
}

/// What the operator puts before texts, in place of the model's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultPrompt {
    Text(String),
    /// Of one of the model's prompts.
    Name(String),
}

/// The folders to read, and the operator's wish.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    pub model: &'a Path,
    pub tokenizer: &'a Path,
    pub default_prompt: Option<&'a DefaultPrompt>,
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
struct SentenceTransformers {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

/// `sentence_bert_config.json`, of sentence-transformers' Transformer module.
#[derive(Debug, Default, Deserialize)]
struct TransformerModule {
    do_lower_case: Option<bool>,
}

/// Names of that file, of which the first that is there counts.
const TRANSFORMER_MODULES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
struct SpecialTokens {
    mask_token: Option<SpecialToken>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Described { content: String },
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            SpecialToken::Text(text) | SpecialToken::Described { content: text } => text,
        }
    }
}

impl EncoderFiles {
    /// Reads what there is; a file that is missing says nothing, and one that cannot be read is warned of. The error is
    /// for the user.
    pub fn read(sources: Sources<'_>, tokenizer: &Tokenizer) -> Result<Self, String> {
        let folder = sources.model;
        let config: SentenceTransformers = read(&folder.join("config_sentence_transformers.json"));
        let prompts: BTreeMap<String, String> = config
            .prompts
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, prompt)| prompt.map(|prompt| (name, prompt)))
            .collect();
        let default_prompt = match sources.default_prompt {
            Some(DefaultPrompt::Text(text)) => Some(text.clone()),
            Some(DefaultPrompt::Name(name)) => Some(prompts.get(name).cloned().ok_or_else(|| {
                let known = prompts.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>();
                format!(
                    "--default-prompt-name {name}: {} names {}; choose another, or give the text itself with \
                     --default-prompt",
                    folder.join("config_sentence_transformers.json").display(),
                    match known.is_empty() {
                        true => "no prompts".to_owned(),
                        false => known.join(", "),
                    }
                )
            })?),
            None => config.default_prompt_name.and_then(|name| {
                let found = prompts.get(&name).cloned();
                if found.is_none() {
                    tracing::warn!("no prompt is put before texts: the model's default, `{name}`, is not among its prompts");
                }
                found
            }),
        };
        let mask = ["tokenizer_config.json", "special_tokens_map.json"]
            .into_iter()
            .find_map(|file| read::<SpecialTokens>(&sources.tokenizer.join(file)).mask_token)
            .map(SpecialToken::into_text)
            .and_then(|text| tokenizer.token_to_id(&text).map(|id| (id, text)));
        let module = TRANSFORMER_MODULES
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.is_file())
            .map_or_else(TransformerModule::default, |path| read(&path));
        Ok(EncoderFiles {
            prompts,
            default_prompt,
            mask,
            normalization: Normalization {
                strips: folder.join("modules.json").is_file(),
                lower_cases: module.do_lower_case.unwrap_or(false),
            },
        })
    }

    /// The prompt of a name; without a name the default one, if any.
    pub fn prompt(&self, name: Option<&str>) -> Result<Option<String>, ApiError> {
        let Some(name) = name else {
            return Ok(self.default_prompt.clone());
        };
        if let Some(prompt) = self.prompts.get(name) {
            return Ok(Some(prompt.clone()));
        }
        let known: Vec<_> = self
            .prompts
            .keys()
            .map(|name| format!("`{name}`"))
            .collect();
        let known = if known.is_empty() {
            "the model has none".to_owned()
        } else {
            format!("the model has {}", known.join(", "))
        };
        Err(ApiError::validation(
            "prompt_name",
            format!("`prompt_name` must be the name of a prompt; {known}. Given: `{name}`"),
        ))
    }
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> T {
    let Ok(text) = std::fs::read(path) else {
        return T::default();
    };
    gridwork_model_files::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("{} is not used: {error}", path.display());
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use tokenizers::models::wordlevel::WordLevel;

    use super::*;

    fn files(content: &[(&str, &str)]) -> EncoderFiles {
        files_with(content, None).expect("files")
    }

    fn files_with(
        content: &[(&str, &str)],
        default_prompt: Option<&DefaultPrompt>,
    ) -> Result<EncoderFiles, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in content {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let vocabulary = [("<mask>".to_owned(), 7)].into_iter().collect();
        let model = WordLevel::builder()
            .vocab(vocabulary)
            .build()
            .expect("a model");
        let sources = Sources {
            model: folder.path(),
            tokenizer: folder.path(),
            default_prompt,
        };
        EncoderFiles::read(sources, &Tokenizer::new(model))
    }

    #[test]
    fn the_operators_default_prompt_replaces_the_models() {
        let config = r#"{"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}"#;
        let content = [("config_sentence_transformers.json", config)];
        let default = |wish: DefaultPrompt| {
            files_with(&content, Some(&wish)).map(|files| files.prompt(None).expect("a prompt"))
        };
        let name = |name: &str| DefaultPrompt::Name(name.to_owned());
        assert_eq!(default(name("passage")), Ok(Some("passage: ".to_owned())));
        assert_eq!(
            default(DefaultPrompt::Text("x ".to_owned())),
            Ok(Some("x ".to_owned()))
        );
        let error = default(name("other")).expect_err("unknown");
        assert!(error.contains("`passage`, `query`"), "{error}");
        let broken = r#"{"prompts": {}, "default_prompt_name": "query"}"#;
        let files = files(&[("config_sentence_transformers.json", broken)]);
        assert_eq!(files.prompt(None), Ok(None));
    }

    #[test]
    fn texts_are_lower_cased_and_stripped_where_the_files_say_so() {
        let normalization = |content: &[(&str, &str)]| files(content).normalization;
        assert_eq!(normalization(&[]), Normalization::default());
        let lower = ("sentence_roberta_config.json", r#"{"do_lower_case": true}"#);
        assert!(normalization(&[lower]).lower_cases);
        let first = ("sentence_bert_config.json", r#"{"max_seq_length": 9}"#);
        assert!(!normalization(&[lower, first]).lower_cases);
        assert!(normalization(&[("modules.json", "[]")]).strips);
    }

    #[test]
    fn prompts_are_found_by_name_or_are_the_default() {
        let config =
            r#"{"prompts": {"query": "query: ", "none": null}, "default_prompt_name": "query"}"#;
        let files = files(&[("config_sentence_transformers.json", config)]);
        assert_eq!(files.prompt(None), Ok(Some("query: ".to_owned())));
        assert_eq!(files.prompt(Some("query")), Ok(Some("query: ".to_owned())));
        let error = files.prompt(Some("passage")).expect_err("unknown");
        assert!(error.message.contains("`query`"), "{error}");
    }

    #[test]
    fn a_model_without_files_has_no_prompts() {
        assert_eq!(files(&[]).prompt(None), Ok(None));
        assert!(files(&[]).prompt(Some("query")).is_err());
    }

    #[test]
    fn the_mask_token_is_a_text_or_an_object() {
        for content in [
            ("tokenizer_config.json", r#"{"mask_token": "<mask>"}"#),
            (
                "special_tokens_map.json",
                r#"{"mask_token": {"content": "<mask>", "lstrip": true}}"#,
            ),
        ] {
            assert_eq!(files(&[content]).mask, Some((7, "<mask>".to_owned())));
        }
        assert_eq!(files(&[]).mask, None);
    }
}
