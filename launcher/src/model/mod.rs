//! Finds the model that `--model-id` names, and checks whether its folder can be served, before any process
//! is started: a mistake is reported within a second.

mod bounds;
mod native_types;
mod safetensors_check;
mod tokenizer_file;
pub mod verdict;
mod weights;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use native_types::NativeTypes;
use safetensors_check::Damage;
use weights::{WeightFiles, weight_files};

/// A model that cannot be served. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("--model-id {0}: there is no such file or folder; check the path")]
    NoSuchPath(String),
    #[error(
        "--model-id {0} is neither a folder, nor a .gguf file, nor a name on the Hugging Face hub (`name` or `org/name`)"
    )]
    NotAName(String),
    #[error(
        "{} has no config.json; give the folder that holds the model's config.json, tokenizer.json and weights", .0.display()
    )]
    NoConfig(PathBuf),
    #[error("{} cannot be read: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not valid JSON ({source}); download it again", .path.display())]
    BadJson {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} is not a JSON object; download it again", .0.display())]
    NotAnObject(PathBuf),
    #[error(
        "{} has no tokenizer: neither tokenizer.json nor a file that one can be made of (tokenizer.model, vocab.json and \
         merges.txt, vocab.txt, *.tiktoken, tokenizer_config.json); download the model again", .0.display()
    )]
    NoTokenizer(PathBuf),
    #[error(
        "{} has no weights: neither model.safetensors nor model.safetensors.index.json; download the model again", .0.display()
    )]
    NoWeights(PathBuf),
    #[error(
        "{} is a pickle file, which can run code when it is loaded; convert it with \
         `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)` of the transformers package, or pass \
         --allow-pickle-weights to have nothing but tensors read from it", .folder.join(.file).display()
    )]
    OnlyPickle { folder: PathBuf, file: String },
    #[error("{} was prepared and cannot be served yet ({fitness:?}); remove it, and start again", .folder.display())]
    StillUnfit { folder: PathBuf, fitness: Fitness },
    #[error("{} is missing, and {} lists it; download it again", .folder.join(.file).display(), .index)]
    MissingPart {
        folder: PathBuf,
        file: String,
        index: &'static str,
    },
    #[error("{} {damage}; download it again", .path.display())]
    Damaged { path: PathBuf, damage: Damage },
    #[error(
        "{} leads out of the model's folder, to {}; only links inside the folder are followed: put the file itself there",
        .path.display(), .target.display()
    )]
    LeadsOut { path: PathBuf, target: PathBuf },
    #[error("{} is neither a file nor a folder; remove it from the model's folder", .0.display())]
    NotAFile(PathBuf),
    #[error("{}: a model's folder has at most 100,000 files, 16 folders deep; give the folder of one model", .0.display())]
    TooManyFiles(PathBuf),
    #[error(
        "{}, {key}: `{name}` leads out of the model's folder; names in it must be of files in the folder", .path.display()
    )]
    NameLeadsOut {
        path: PathBuf,
        key: String,
        name: String,
    },
    #[error(
        "{}, auto_map: `{name}` is neither code of the folder (`file.Class`) nor of a repository on the hub \
         (`org/name--file.Class`)", .path.display()
    )]
    ForeignCode { path: PathBuf, name: String },
    #[error(
        "the model needs Python code of its own ({} has {key}); if you trust its author, pass --trust-remote-code",
        .path.display()
    )]
    CustomCode { path: PathBuf, key: String },
    #[error("cannot prepare {model_id}: {reason}")]
    Prepare { model_id: String, reason: String },
}

/// Source of a model.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine, used as it is.
    Folder(PathBuf),
    /// A .gguf file on this machine, to be converted.
    Gguf(PathBuf),
    /// A name on the hub, to be fetched.
    Hub(String),
}

/// Finds the source that `model_id` names. A name that looks like a path is never looked up on the hub.
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

/// Permissions that the user gives a model.
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

/// Preparation that a sound folder still needs before it can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    Ready,
    /// A tokenizer.json must be made of the tokenizer that it has.
    NoTokenizer,
    /// Its tokenizer.json may not be what Transformers makes of the folder.
    UnsureTokenizer,
    /// Its weights are pickle files, to be converted.
    Pickled,
    /// It holds an adapter, to be merged onto its base.
    Adapter,
}

impl Fitness {
    /// Returns the error for a folder that was prepared and still is not ready.
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
    if folder.is_dir() {
        bounds::check_links(folder)?;
    }
    let is_model = folder.join("config.json").is_file();
    if !is_model && !folder.join("adapter_config.json").is_file() {
        return Err(ModelError::NoConfig(folder.to_owned()));
    }
    for path in CONFIGS.map(|name| folder.join(name)) {
        if path.is_file() {
            check_config(path, trust)?;
        }
    }
    bounds::check_modules(folder)?;
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
        Ok(match tokenizer_file::is_whole(folder) {
            true => Fitness::Ready, // what else is in it, the router finds out as it starts
            false => Fitness::UnsureTokenizer,
        })
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
    if let Some(name) = bounds::foreign_code(&value) {
        let name = name.to_owned();
        return Err(ModelError::ForeignCode { path, name });
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
    gridwork_model_files::from_slice(&text).map_err(|source| ModelError::BadJson {
        path: path.to_owned(),
        source,
    })
}

/// Returns where a config, or a config inside it, names classes of its own: `text_config.auto_map`.
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

/// Reads `"file.Class"`, or for tokenizers `["file.Slow", null]`.
fn names_a_class(value: &Value) -> bool {
    match value {
        Value::String(name) => !name.is_empty(),
        Value::Array(items) => items.iter().any(names_a_class),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
