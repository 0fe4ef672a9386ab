//! Reads the tokenizer of a folder, and the settings of tokenizer_config.json beside it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

/// Failure to read tokenizer.json; the message is for the user.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFileError {
    #[error("{} has no tokenizer.json; take a model whose folder has one", .0.display())]
    Missing(PathBuf),
    #[error("{} cannot be read: {cause}; download it again", .path.display())]
    Damaged { path: PathBuf, cause: String },
}

/// Keys of tokenizer_config.json and special_tokens_map.json that tokenizer.json lacks.
#[derive(Debug, Default, Deserialize)]
struct Settings {
    eos_token: Option<Value>,
    /// True if the texts of special tokens are split like any other text.
    #[serde(default)]
    split_special_tokens: Option<Value>,
}

/// Reads tokenizer.json.
pub fn read(folder: &Path) -> Result<Tokenizer, TokenizerFileError> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        return Err(TokenizerFileError::Missing(folder.to_owned()));
    }
    let mut tokenizer =
        Tokenizer::from_file(&path).map_err(|error| TokenizerFileError::Damaged {
            path: path.clone(),
            cause: error.to_string(),
        })?;
    // A saved tokenizer may truncate or pad. Both are turned off: the router checks lengths itself.
    let _ = tokenizer.with_truncation(None);
    tokenizer.with_padding(None);
    let settings = settings(folder, "tokenizer_config.json");
    tokenizer.set_encode_special_tokens(settings.split_special_tokens == Some(Value::Bool(true)));
    Ok(tokenizer)
}

/// Returns the tokenizer's end-of-sequence token. It ends an answer like those of the generation config.
pub fn eos_token_id(folder: &Path, tokenizer: &Tokenizer) -> Option<u32> {
    let token = settings(folder, "tokenizer_config.json")
        .eos_token
        .or_else(|| settings(folder, "special_tokens_map.json").eos_token)?;
    let text = match &token {
        Value::String(text) => text.as_str(),
        Value::Object(token) => token.get("content")?.as_str()?,
        _ => return None,
    };
    tokenizer.token_to_id(text)
}

/// Reads a file's keys. A missing or damaged file has none.
fn settings(folder: &Path, name: &str) -> Settings {
    std::fs::read(folder.join(name))
        .ok()
        .and_then(|text| gridwork_model_files::from_slice(&text).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "added_tokens": [{"id": 3, "content": "<e>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "model": {"type": "WordLevel", "vocab": {"<": 0, "e": 1, ">": 2, "<e>": 3}, "unk_token": "<"}
        });
        for (name, content) in files.iter().chain([&("tokenizer.json", tokenizer)]) {
            std::fs::write(folder.path().join(name), content.to_string()).expect("a file");
        }
        folder
    }

    fn eos(files: &[(&str, Value)]) -> Option<u32> {
        let folder = folder(files);
        let tokenizer = read(folder.path()).expect("a tokenizer");
        eos_token_id(folder.path(), &tokenizer)
    }

    #[test]
    fn the_end_of_a_sequence_is_found_in_either_file_and_form() {
        let config = |token: Value| ("tokenizer_config.json", json!({"eos_token": token}));
        let map = ("special_tokens_map.json", json!({"eos_token": "<e>"}));
        assert_eq!(eos(&[config(json!("<e>"))]), Some(3));
        assert_eq!(eos(&[config(json!({"content": "<e>"}))]), Some(3));
        assert_eq!(eos(&[config(json!("e")), map.clone()]), Some(1));
        assert_eq!(eos(&[config(Value::Null), map]), Some(3));
        assert_eq!(eos(&[config(json!("unknown"))]), None);
        assert_eq!(eos(&[]), None);
    }

    #[test]
    fn special_tokens_are_cut_where_the_config_says_so() {
        let encode = |split: bool| {
            let config = json!({"split_special_tokens": split});
            let folder = folder(&[("tokenizer_config.json", config)]);
            let tokenizer = read(folder.path()).expect("a tokenizer");
            tokenizer
                .encode("<e>", false)
                .expect("tokens")
                .get_ids()
                .to_vec()
        };
        assert_eq!(encode(false), [3]);
        assert_ne!(encode(true), [3]);
    }
}
