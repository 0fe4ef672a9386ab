//! Finds the files of a folder that hold the tokenizer, and tells whether tokenizer.json covers what Transformers reads
//! from them.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Tells whether Transformers may make a tokenizer from the folder. Some need no vocabulary, and have their class
/// in tokenizer_config.json only.
pub(super) fn may_be_made(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name == "tokenizer_config.json"
            || name == "merges.txt"
            || name.starts_with("vocab.")
            || [".model", ".tiktoken", ".spm", ".bpe"]
                .iter()
                .any(|end| name.ends_with(end))
    })
}

/// The part of tokenizer.json that other files may contradict.
#[derive(Debug, Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    /// Present in every tokenizer.
    model: Vocabulary,
}

#[derive(Debug, Deserialize)]
struct Vocabulary {
    #[serde(default)]
    vocab: Entries,
}

/// Number of entries of a map or a list.
#[derive(Debug, Default)]
struct Entries(usize);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Entries(count))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Entries(count))
            }
        }
        deserializer.deserialize_any(Counter)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct AddedToken {
    id: u64,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// Classes that take tokenizer.json as it is; others build their own from its vocabulary.
const PLAIN_CLASSES: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

/// Keys of tokenizer_config.json that do not change the tokens that these classes make of a text, besides those checked
/// below.
const WITHOUT_EFFECT: [&str; 25] = [
    "add_bos_token", // not read beside a tokenizer.json
    "add_eos_token", // the same
    "add_prefix_space",
    "backend",
    "chat_template",
    "clean_up_tokenization_spaces",
    "errors",
    "is_local",
    "legacy",
    "local_files_only",
    "max_length",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "response_schema",
    "split_special_tokens", // read by the router
    "stride",
    "tokenizer_class",
    "truncation_side",
    "truncation_strategy",
    "use_fast",
];

/// Types of models for which Transformers may mend the way in which a text is cut, when the vocabulary is large.
const MENDED_TYPES: [&str; 5] = ["mistral", "mistral3", "voxtral", "ministral", "pixtral"];
const LARGE_VOCABULARY: usize = 100_000;

/// Tells whether Transformers certainly makes the folder's tokenizer.json of the folder. If it is not certain,
/// Transformers has to be asked: classes have defaults of their own, and other files may add tokens. A file that cannot
/// be read is left to the router, which says what is wrong with it.
pub(super) fn is_whole(folder: &Path) -> bool {
    let Some(file) = read::<TokenizerFile>(&folder.join("tokenizer.json")) else {
        return true;
    };
    let Some(settings) = read::<Map<String, Value>>(&folder.join("tokenizer_config.json")) else {
        return false;
    };
    let config: Map<String, Value> = read(&folder.join("config.json")).unwrap_or_default();
    let text = |map: &Map<String, Value>, key: &str| map.get(key)?.as_str().map(str::to_owned);
    let class = text(&settings, "tokenizer_class").or_else(|| text(&config, "tokenizer_class"));
    let is_plain = class.is_some_and(|class| PLAIN_CLASSES.contains(&class.as_str()));
    let is_mended = file.model.vocab.0 + file.added_tokens.len() > LARGE_VOCABULARY
        && text(&config, "model_type")
            .is_none_or(|model_type| MENDED_TYPES.contains(&model_type.as_str()));
    if !is_plain || is_mended || folder.join("tekken.json").is_file() {
        return false;
    }
    let tokens = Tokens::new(file.added_tokens);
    let lists_tokens = settings.contains_key("added_tokens_decoder");
    settings.iter().all(|(key, value)| tokens.allow(key, value))
        && read_or_empty(&folder.join("special_tokens_map.json"))
            .iter()
            .all(|(key, value)| tokens.allow_of_map(key, value, settings.get(key)))
        && (lists_tokens
            || read_or_empty(&folder.join("added_tokens.json"))
                .iter()
                .all(|(content, id)| tokens.has_at(content, id)))
}

/// The added tokens of tokenizer.json.
struct Tokens {
    by_content: HashMap<String, AddedToken>,
}

impl Tokens {
    fn new(tokens: Vec<AddedToken>) -> Self {
        let by_content = tokens
            .into_iter()
            .map(|token| (token.content.clone(), token))
            .collect();
        Self { by_content }
    }

    /// Tells whether an entry of tokenizer_config.json adds nothing.
    fn allow(&self, key: &str, value: &Value) -> bool {
        match (key, value) {
            (_, Value::Null) => true,
            ("added_tokens_decoder", Value::Object(tokens)) => {
                tokens.iter().all(|(id, token)| self.has_same(id, token))
            }
            ("extra_special_tokens" | "additional_special_tokens", value) => self.has_all(value),
            _ if WITHOUT_EFFECT.contains(&key) => true,
            _ => key.ends_with("_token") && self.has(value),
        }
    }

    /// Tells whether an entry of special_tokens_map.json adds nothing to tokenizer_config.json, which has
    /// `configured`.
    fn allow_of_map(&self, key: &str, value: &Value, configured: Option<&Value>) -> bool {
        match key {
            "extra_special_tokens" | "additional_special_tokens" => self.has_all(value),
            _ => {
                self.has(value) && configured.is_some_and(|other| content(other) == content(value))
            }
        }
    }

    fn has(&self, token: &Value) -> bool {
        content(token).is_some_and(|content| self.by_content.contains_key(content))
    }

    fn has_all(&self, tokens: &Value) -> bool {
        match tokens {
            Value::Null => true,
            Value::Array(tokens) => tokens.iter().all(|token| self.has(token)),
            Value::Object(tokens) => tokens.values().all(|token| self.has(token)),
            _ => false,
        }
    }

    fn has_at(&self, content: &str, id: &Value) -> bool {
        let token = self.by_content.get(content);
        token.is_some_and(|token| id.as_u64() == Some(token.id))
    }

    /// Tells whether it also has the same properties.
    fn has_same(&self, id: &str, token: &Value) -> bool {
        let Value::Object(token) = token else {
            return false;
        };
        let mut token = token.clone();
        token.insert("id".to_owned(), id.parse::<u64>().ok().into());
        // Defaults of Transformers for a token's entry.
        let is_special = token.get("special") == Some(&Value::Bool(true));
        token
            .entry("normalized")
            .or_insert(Value::Bool(!is_special));
        serde_json::from_value::<AddedToken>(Value::Object(token))
            .is_ok_and(|token| self.by_content.get(&token.content) == Some(&token))
    }
}

/// The text of a token, given as such or with its properties.
fn content(token: &Value) -> Option<&str> {
    match token {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content")?.as_str(),
        _ => None,
    }
}

fn read_or_empty(path: &Path) -> Map<String, Value> {
    read(path).unwrap_or_default()
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read(path).ok()?;
    // Most files are large and plain JSON: they are read without a copy of their whole content.
    serde_json::from_slice(&text)
        .or_else(|_| gridwork_model_files::from_slice(&text))
        .ok()
}

#[cfg(test)]
#[path = "tokenizer_file_tests.rs"]
mod tests;
