//! What the router needs of an encoder's folder besides its tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use crate::error::ApiError;

/// Prompts, and the token that is filled in.
#[derive(Debug, Default)]
pub struct EncoderFiles {
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    /// Id and text.
    pub mask: Option<(u32, String)>,
}

/// `config_sentence_transformers.json`.
#[derive(Debug, Default, Deserialize)]
struct SentenceTransformers {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

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
    /// Reads what there is; a file that is missing says nothing, and one that cannot be read is warned of.
    pub fn read(folder: &Path, tokenizer: &Tokenizer) -> Self {
        let config: SentenceTransformers = read(&folder.join("config_sentence_transformers.json"));
        let prompts: BTreeMap<String, String> = config
            .prompts
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, prompt)| prompt.map(|prompt| (name, prompt)))
            .collect();
        let default_prompt = config
            .default_prompt_name
            .and_then(|name| prompts.get(&name).cloned());
        let mask = ["tokenizer_config.json", "special_tokens_map.json"]
            .into_iter()
            .find_map(|file| read::<SpecialTokens>(&folder.join(file)).mask_token)
            .map(SpecialToken::into_text)
            .and_then(|text| tokenizer.token_to_id(&text).map(|id| (id, text)));
        EncoderFiles {
            prompts,
            default_prompt,
            mask,
        }
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
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("{} is not used: {error}", path.display());
        T::default()
    })
}

#[cfg(test)]
mod tests {
    use tokenizers::models::wordlevel::WordLevel;

    use super::*;

    fn files(content: &[(&str, &str)]) -> EncoderFiles {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in content {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let vocabulary = [("<mask>".to_owned(), 7)].into_iter().collect();
        let model = WordLevel::builder()
            .vocab(vocabulary)
            .build()
            .expect("a model");
        EncoderFiles::read(folder.path(), &Tokenizer::new(model))
    }

    #[test]
    fn prompts_are_found_by_name_and_by_default() {
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
    fn the_mask_token_is_found_in_either_form() {
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
