//! What `--model-id` names, and whether the folder it comes to can be served. Everything here is checked before any process
//! is started, so that a mistake is told within a second.

mod tokenizer_file;
mod weights;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::native_types::NativeTypes;
use crate::safetensors_check::{self, Damage};
use weights::{WeightFiles, weight_files};

/// Why a model cannot be served, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("--model-id {0}: there is no such file or folder. Check the path")]
    NoSuchPath(String),
    #[error(
        "--model-id {0} is neither a folder, nor a .gguf file, nor a name on the Hugging Face hub (`name` or `org/name`)"
    )]
    NotAName(String),
    #[error(
        "{} has no config.json. Give the folder that holds the model's config.json, tokenizer.json and weights", .0.display()
    )]
    NoConfig(PathBuf),
    #[error("{} cannot be read: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not valid JSON ({source}). Download it again", .path.display())]
    BadJson {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is not a JSON object. Download it again", .0.display())]
    NotAnObject(PathBuf),
    #[error(
        "{} has no tokenizer: neither tokenizer.json nor a file that one can be made of (tokenizer.model, vocab.json and \
         merges.txt, vocab.txt, *.tiktoken, tokenizer_config.json). Download the model again", .0.display()
    )]
    NoTokenizer(PathBuf),
    #[error(
        "{} has no weights: neither model.safetensors nor model.safetensors.index.json. Download the model again", .0.display()
    )]
    NoWeights(PathBuf),
    #[error(
        "{} is a pickle file, which can run code when it is loaded. Convert it with \
         `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)` of the transformers package, or pass \
         --allow-pickle-weights to have nothing but tensors read from it", .folder.join(.file).display()
    )]
    OnlyPickle { folder: PathBuf, file: String },
    #[error("{} was prepared and cannot be served yet ({fitness:?}). Remove it, and start again", .folder.display())]
    StillUnfit { folder: PathBuf, fitness: Fitness },
    #[error("{} is missing, and {} lists it. Download it again", .folder.join(.file).display(), .index)]
    MissingPart {
        folder: PathBuf,
        file: String,
        index: &'static str,
    },
    #[error("{} {damage}. Download it again", .path.display())]
    Damaged { path: PathBuf, damage: Damage },
    #[error(
        "the model needs Python code of its own ({} has {key}). If you trust its author, pass --trust-remote-code",
        .path.display()
    )]
    CustomCode { path: PathBuf, key: String },
    #[error("cannot prepare {model_id}: {reason}")]
    Prepare { model_id: String, reason: String },
}

/// Where a model comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine, used as it is.
    Folder(PathBuf),
    /// A .gguf file on this machine, to be converted.
    Gguf(PathBuf),
    /// A name on the hub, to be fetched.
    Hub(String),
}

/// Tells what `model_id` names. What looks like a path is never looked up on the hub.
pub fn locate(model_id: &str) -> Result<Source, ModelError> {
    let path = expand_home(model_id);
    if path.is_dir() {
        return Ok(Source::Folder(path));
    }
    let is_gguf = model_id.to_ascii_lowercase().ends_with(".gguf");
    if path.is_file() {
        return if is_gguf {
            Ok(Source::Gguf(path))
        } else {
            Err(ModelError::NotAName(model_id.to_owned()))
        };
    }
    let like_a_path = model_id.starts_with(['.', '/', '~', '\\'])
        || model_id.ends_with('/')
        || model_id.matches('/').count() > 1
        || is_gguf;
    if like_a_path {
        return Err(ModelError::NoSuchPath(model_id.to_owned()));
    }
    let is_name = model_id.split('/').all(|part| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    });
    if is_name {
        Ok(Source::Hub(model_id.to_owned()))
    } else {
        Err(ModelError::NotAName(model_id.to_owned()))
    }
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// What the user allows a model to do.
#[derive(Debug, Default)]
pub struct Trust {
    /// The user trusts the model's author: its Python code may run.
    pub remote_code: bool,
    /// Weights may be read from pickle files.
    pub pickles: bool,
    /// Types that need no code of the model's own.
    pub native_types: NativeTypes,
}

impl Trust {
    fn allows_code(&self, config: &Value) -> bool {
        let model_type = config.get("model_type").and_then(Value::as_str);
        self.remote_code || model_type.is_some_and(|name| self.native_types.contain(name))
    }
}

/// What a folder without fault still needs before it can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    Ready,
    /// A tokenizer.json must be made of the tokenizer that it has.
    NoTokenizer,
    /// Its weights are pickle files, to be converted.
    Pickled,
    /// It holds an adapter, to be merged onto its base.
    Adapter,
}

impl Fitness {
    /// For a folder that was prepared and still is not fit.
    pub fn error(self, folder: &Path) -> ModelError {
        ModelError::StillUnfit {
            folder: folder.to_owned(),
            fitness: self,
        }
    }
}

/// Files that may hold Python classes for parts of the model.
const CONFIGS: [&str; 4] = [
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
];

/// Checks that `folder` holds a model that can be served, and tells what it still needs. Reads configs and headers, not
/// weights.
pub fn check_folder(folder: &Path, trust: &Trust) -> Result<Fitness, ModelError> {
    let is_model = folder.join("config.json").is_file();
    if !is_model && !folder.join("adapter_config.json").is_file() {
        return Err(ModelError::NoConfig(folder.to_owned()));
    }
    for path in CONFIGS.map(|name| folder.join(name)) {
        if path.is_file() {
            check_config(path, trust)?;
        }
    }
    if !is_model {
        return Ok(Fitness::Adapter);
    }
    let weights = match weight_files(folder)? {
        WeightFiles::Safetensors(files) => files,
        WeightFiles::Pickle(_) if trust.pickles => return Ok(Fitness::Pickled),
        WeightFiles::Pickle(file) => {
            return Err(ModelError::OnlyPickle {
                folder: folder.to_owned(),
                file,
            });
        }
    };
    for path in weights {
        safetensors_check::check(&path).map_err(|damage| ModelError::Damaged { path, damage })?;
    }
    if folder.join("tokenizer.json").is_file() {
        Ok(Fitness::Ready) // what is in it, the router finds out as it starts
    } else if tokenizer_file::may_be_made(folder) {
        Ok(Fitness::NoTokenizer)
    } else {
        Err(ModelError::NoTokenizer(folder.to_owned()))
    }
}

fn check_config(path: PathBuf, trust: &Trust) -> Result<(), ModelError> {
    let value: Value = read_json(&path)?;
    if !value.is_object() {
        return Err(ModelError::NotAnObject(path));
    }
    match custom_code_key(&value) {
        Some(key) if !trust.allows_code(&value) => Err(ModelError::CustomCode { path, key }),
        _ => Ok(()),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = fs::read(path).map_err(|source| ModelError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| ModelError::BadJson {
        path: path.to_owned(),
        source,
    })
}

/// Where a config, or a config inside it, names classes of its own: `text_config.auto_map`.
fn custom_code_key(config: &Value) -> Option<String> {
    let nested = |name: String, value: &Value| Some(format!("{name}.{}", custom_code_key(value)?));
    match config {
        Value::Object(map) => map.iter().find_map(|(key, value)| match value {
            Value::Object(classes) if key == "auto_map" => {
                let names = classes.values().any(names_a_class);
                names.then(|| key.clone())
            }
            // The old form, of tokenizers.
            Value::Array(_) if key == "auto_map" => names_a_class(value).then(|| key.clone()),
            _ => nested(key.clone(), value),
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| nested(index.to_string(), item)),
        _ => None,
    }
}

/// `"file.Class"`, or for tokenizers `["file.Slow", null]`.
fn names_a_class(value: &Value) -> bool {
    match value {
        Value::String(name) => !name.is_empty(),
        Value::Array(items) => items.iter().any(names_a_class),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: &str = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;

    fn weights() -> Vec<u8> {
        [
            &(WEIGHTS.len() as u64).to_le_bytes()[..],
            WEIGHTS.as_bytes(),
            &[0; 4],
        ]
        .concat()
    }

    /// A folder that passes, for each test to break.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        put(&folder, "config.json", r#"{"model_type":"llama"}"#);
        put(
            &folder,
            "tokenizer_config.json",
            r#"{"tokenizer_class":"X"}"#,
        );
        put(&folder, "tokenizer.json", "{}");
        put(&folder, "model.safetensors", weights());
        folder
    }

    fn put(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) {
        fs::write(folder.path().join(name), content).unwrap();
    }

    fn remove(folder: &tempfile::TempDir, name: &str) {
        fs::remove_file(folder.path().join(name)).unwrap();
    }

    fn refusal(folder: &tempfile::TempDir) -> String {
        check_folder(folder.path(), &Trust::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_whole_model_passes() {
        check_folder(folder().path(), &Trust::default()).unwrap();
    }

    #[test]
    fn a_model_in_parts_passes_and_a_missing_part_is_named() {
        let folder = folder();
        remove(&folder, "model.safetensors");
        put(
            &folder,
            "model.safetensors.index.json",
            r#"{"metadata":{},"weight_map":{"a":"x-1.safetensors","b":"x-2.safetensors"}}"#,
        );
        put(&folder, "x-1.safetensors", weights());
        put(&folder, "x-2.safetensors", weights());
        check_folder(folder.path(), &Trust::default()).unwrap();
        remove(&folder, "x-2.safetensors");
        assert!(refusal(&folder).contains("x-2.safetensors is missing"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (file, expected) in [
            ("config.json", "has no config.json"),
            ("model.safetensors", "has no weights"),
        ] {
            let folder = folder();
            remove(&folder, file);
            let message = refusal(&folder);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_truncated_file_is_named_with_what_to_do() {
        let folder = folder();
        put(&folder, "model.safetensors", &weights()[..60]);
        let message = refusal(&folder);
        assert!(
            message.contains("model.safetensors is truncated"),
            "{message}"
        );
        assert!(message.contains("Download it again"), "{message}");
    }

    #[test]
    fn pickled_weights_need_a_flag() {
        for file in ["pytorch_model.bin", "model.pt"] {
            let folder = folder();
            remove(&folder, "model.safetensors");
            put(&folder, file, "");
            put(&folder, "training_args.bin", "");
            let message = refusal(&folder);
            for expected in [
                file,
                "is a pickle file",
                "--allow-pickle-weights",
                "save_pretrained",
            ] {
                assert!(message.contains(expected), "{message}");
            }
            let trust = Trust {
                pickles: true,
                ..Trust::default()
            };
            let fitness = check_folder(folder.path(), &trust).unwrap();
            assert_eq!(fitness, Fitness::Pickled);
        }
    }

    #[test]
    fn an_adapter_is_to_be_merged() {
        let folder = folder();
        remove(&folder, "config.json");
        put(&folder, "adapter_config.json", "{}");
        let fitness = check_folder(folder.path(), &Trust::default()).unwrap();
        assert_eq!(fitness, Fitness::Adapter);
    }

    #[test]
    fn a_tokenizer_is_made_of_what_there_is() {
        for file in [
            "tokenizer.model",
            "vocab.txt",
            "qwen.tiktoken",
            "tokenizer_config.json",
        ] {
            let folder = folder();
            remove(&folder, "tokenizer.json");
            remove(&folder, "tokenizer_config.json");
            assert!(refusal(&folder).contains("has no tokenizer"));
            put(&folder, file, "{}");
            let fitness = check_folder(folder.path(), &Trust::default()).unwrap();
            assert_eq!(fitness, Fitness::NoTokenizer);
        }
    }

    #[test]
    fn custom_code_needs_trust_and_the_file_is_named() {
        for (file, key, content) in [
            (
                "config.json",
                "auto_map",
                r#"{"auto_map":{"AutoConfig":"c.Config"}}"#,
            ),
            (
                "config.json",
                "text_config.auto_map",
                r#"{"text_config":{"auto_map":{"AutoModel":"m.M"}}}"#,
            ),
            (
                "config.json",
                "auto_map",
                r#"{"auto_map":{"AutoConfig":"org/other--c.Config"}}"#,
            ),
            (
                "tokenizer_config.json",
                "auto_map",
                r#"{"auto_map":{"AutoTokenizer":["t.T",null]}}"#,
            ),
            (
                "tokenizer_config.json",
                "auto_map",
                r#"{"auto_map":["t.T",null]}"#,
            ),
            (
                "processor_config.json",
                "image_processor.auto_map",
                r#"{"image_processor":{"auto_map":{"AutoImageProcessor":"p.P"}}}"#,
            ),
            (
                "preprocessor_config.json",
                "auto_map",
                r#"{"auto_map":{"AutoProcessor":"p.P"}}"#,
            ),
        ] {
            let folder = folder();
            put(&folder, file, content);
            let message = refusal(&folder);
            assert!(
                message.contains(&format!("{file} has {key})"))
                    && message.contains("--trust-remote-code"),
                "{message}"
            );
            let trust = Trust {
                remote_code: true,
                ..Trust::default()
            };
            check_folder(folder.path(), &trust).unwrap();
        }
    }

    #[test]
    fn an_empty_auto_map_asks_for_nothing() {
        let folder = folder();
        put(
            &folder,
            "config.json",
            r#"{"auto_map":{},"x":{"auto_map":null}}"#,
        );
        check_folder(folder.path(), &Trust::default()).unwrap();
    }

    #[test]
    fn a_broken_config_is_named() {
        let folder = folder();
        put(&folder, "config.json", "{");
        assert!(refusal(&folder).contains("config.json is not valid JSON"));
        put(&folder, "config.json", "[]");
        assert!(refusal(&folder).contains("config.json is not a JSON object"));
    }

    #[test]
    fn ids_are_told_apart() {
        let folder = folder();
        let path = folder.path().to_str().unwrap();
        assert_eq!(
            locate(path).unwrap(),
            Source::Folder(folder.path().to_owned())
        );
        put(&folder, "m.GGUF", "");
        let gguf = format!("{path}/m.GGUF");
        assert_eq!(locate(&gguf).unwrap(), Source::Gguf(PathBuf::from(&gguf)));
        assert_eq!(locate("gpt2").unwrap(), Source::Hub("gpt2".to_owned()));
        assert_eq!(
            locate("org/Name-1.5_x").unwrap(),
            Source::Hub("org/Name-1.5_x".to_owned())
        );
    }

    #[test]
    fn what_looks_like_a_path_is_not_looked_up_on_the_hub() {
        for id in [
            "./model",
            "../model",
            "/no/model",
            "~/no-such-model",
            "model/",
            "a/b/c",
            "model.gguf",
        ] {
            let error = locate(id).unwrap_err();
            assert!(matches!(error, ModelError::NoSuchPath(_)), "{id}: {error}");
        }
        for id in ["", "a b", "org//name"] {
            assert!(locate(id).is_err(), "{id}");
        }
    }
}
