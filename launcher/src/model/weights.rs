//! Finds the files of a folder that hold the model's weights.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ModelError, bounds, read_json};

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The files of a model's weights.
pub(super) enum WeightFiles {
    Safetensors(Vec<PathBuf>),
    /// Only pickle files, of which this is one.
    Pickle(String),
}

/// Returns the files of the weights in `folder`.
pub(super) fn weight_files(folder: &Path) -> Result<WeightFiles, ModelError> {
    const INDEX: &str = "model.safetensors.index.json";
    const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(WeightFiles::Safetensors(vec![single]));
    }
    if folder.join(INDEX).is_file() {
        return parts(folder, INDEX).map(WeightFiles::Safetensors);
    }
    match by_other_names(folder)? {
        WeightFiles::Pickle(file)
            if !folder.join("pytorch_model.bin").is_file()
                && folder.join(PICKLE_INDEX).is_file() =>
        {
            parts(folder, PICKLE_INDEX)?;
            Ok(WeightFiles::Pickle(file))
        }
        found => Ok(found),
    }
}

/// Returns the files that an index lists, all of which exist.
fn parts(folder: &Path, index: &'static str) -> Result<Vec<PathBuf>, ModelError> {
    let Index { weight_map } = read_json(&folder.join(index))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let mut files = Vec::with_capacity(names.len());
    for file in names {
        if !bounds::is_inside(&file) {
            return Err(ModelError::NameLeadsOut {
                path: folder.join(index),
                key: "weight_map".to_owned(),
                name: file,
            });
        }
        let path = folder.join(&file);
        if !path.is_file() {
            return Err(ModelError::MissingPart {
                folder: folder.to_owned(),
                file,
                index,
            });
        }
        files.push(path);
    }
    Ok(files)
}

/// Accepts any whole safetensors file: some models name their weights in their config, which the shard reads.
fn by_other_names(folder: &Path) -> Result<WeightFiles, ModelError> {
    let unreadable = |source| ModelError::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        names.push(
            entry
                .map_err(unreadable)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    let safetensors: Vec<PathBuf> = names
        .iter()
        .filter(|name| name.ends_with(".safetensors") && !name.starts_with("adapter_"))
        .map(|name| folder.join(name))
        .collect();
    if !safetensors.is_empty() {
        return Ok(WeightFiles::Safetensors(safetensors));
    }
    let pickle = names.into_iter().find(|name| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        matches!(extension, Some("bin" | "pt" | "pth" | "ckpt"))
            && !NOT_WEIGHTS.iter().any(|start| name.starts_with(start))
    });
    match pickle {
        Some(file) => Ok(WeightFiles::Pickle(file)),
        None => Err(ModelError::NoWeights(folder.to_owned())),
    }
}

/// Prefixes of the names of pickle files that trainers leave behind.
const NOT_WEIGHTS: [&str; 6] = [
    "training_args",
    "optimizer",
    "scheduler",
    "rng_state",
    "scaler",
    "adapter_",
];
