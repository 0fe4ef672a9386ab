//! Which files of a folder hold the model's weights.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ModelError, read_json};

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The safetensors files that make up the model in `folder`.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    const INDEX: &str = "model.safetensors.index.json";
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        let index: Index = read_json(&index)?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        let mut files = Vec::with_capacity(names.len());
        for file in names {
            let path = folder.join(&file);
            if !path.is_file() {
                return Err(ModelError::MissingPart {
                    folder: folder.to_owned(),
                    file,
                    index: INDEX,
                });
            }
            files.push(path);
        }
        return Ok(files);
    }
    weights_by_other_names(folder)
}

/// Some models name their weights in their config; any whole safetensors file will do here, the shard knows better.
fn weights_by_other_names(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
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
        return Ok(safetensors);
    }
    let pickle = names.into_iter().find(|name| {
        let extension = Path::new(name).extension().and_then(|e| e.to_str());
        matches!(extension, Some("bin" | "pt" | "pth" | "ckpt"))
            && !name.starts_with("training_args")
    });
    Err(match pickle {
        Some(file) => ModelError::OnlyPickle {
            folder: folder.to_owned(),
            file,
        },
        None => ModelError::NoWeights(folder.to_owned()),
    })
}
