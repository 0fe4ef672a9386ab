//! Model types that the installed Transformers supports with its own code.
//!
//! Many models on the hub still carry the Python code that they were first published with, though Transformers has long
//! adopted them; they need no trust. Only names of folders are read here. Even if the answer is wrong, no code of a
//! model runs: the shard loads without trust, and refuses.

use std::fs;
use std::path::{Path, PathBuf};

/// The model types of one installation.
#[derive(Debug, Default)]
pub struct NativeTypes {
    /// The folders `transformers/models` of the installation.
    folders: Vec<PathBuf>,
}

impl NativeTypes {
    /// Searches the Python environment of the shards' program.
    pub fn of_server(server: &[String]) -> Self {
        let Some(environment) = server
            .first()
            .and_then(|program| Path::new(program).parent()?.parent())
        else {
            return Self::default();
        };
        let versions = fs::read_dir(environment.join("lib"));
        let folders = versions
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .flat_map(|entry| ["site-packages", "dist-packages"].map(|at| entry.path().join(at)))
            .map(|packages| packages.join("transformers/models"))
            .filter(|folder| folder.is_dir())
            .collect();
        Self { folders }
    }

    /// Tells whether the installation is of this version of Transformers.
    pub fn are_of_version(&self, version: &str) -> bool {
        let name = format!("../../transformers-{version}.dist-info");
        let is_plain = !version.contains('/') && !self.folders.is_empty();
        is_plain
            && self
                .folders
                .iter()
                .all(|folder| folder.join(&name).is_dir())
    }

    /// Tells whether Transformers' own code loads models of this type.
    pub fn contain(&self, model_type: &str) -> bool {
        let name = model_type.replace('-', "_");
        let plain = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        plain
            && self.folders.iter().any(|folder| {
                let code = folder.join(&name).join(format!("modeling_{name}.py"));
                code.is_file()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_beside_the_server() {
        let root = tempfile::tempdir().unwrap();
        let models = root
            .path()
            .join("lib/python3.12/site-packages/transformers/models");
        fs::create_dir_all(models.join("gpt_neox")).unwrap();
        fs::write(models.join("gpt_neox/modeling_gpt_neox.py"), "").unwrap();
        let server = root.path().join("bin/gridwork-server");
        let types = NativeTypes::of_server(&[server.to_str().unwrap().to_owned()]);
        assert!(types.contain("gpt-neox"));
        for unknown in ["", "..", "gpt", "gpt_neox/../gpt_neox"] {
            assert!(!types.contain(unknown), "{unknown}");
        }
        assert!(!NativeTypes::of_server(&[]).contain("gpt_neox"));
    }
}
