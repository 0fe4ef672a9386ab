//! Checks that a model's folder refers only to files inside it: a folder from a stranger could otherwise have any file
//! of this machine read, and shown in an answer or an error.
//!
//! Links inside the hub's cache, whose snapshots consist of links to `blobs`, stay in the repository's folder.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::ModelError;

/// Maximum depth and number of files of a folder.
const MAX_DEPTH: usize = 16;
const MAX_ENTRIES: usize = 100_000;

/// Checks every file and link of `folder`.
pub(super) fn check_links(folder: &Path) -> Result<(), ModelError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Unreadable { path, source }
    };
    let real = folder.canonicalize().map_err(unreadable(folder))?;
    let root = repository(&real).unwrap_or(&real);
    let mut folders = vec![(folder.to_owned(), 0)];
    let mut num_entries = 0;
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(unreadable(&folder))? {
            let entry = entry.map_err(unreadable(&folder))?;
            let path = entry.path();
            num_entries += 1;
            if num_entries > MAX_ENTRIES || depth > MAX_DEPTH {
                return Err(ModelError::TooManyFiles(path));
            }
            let kind = entry.file_type().map_err(unreadable(&path))?;
            if kind.is_dir() {
                folders.push((path, depth + 1));
            } else if kind.is_symlink() {
                check_link(path, root)?;
            } else if !kind.is_file() {
                return Err(ModelError::NotAFile(path));
            }
        }
    }
    Ok(())
}

/// Checks a link. One that leads nowhere counts as a missing file.
fn check_link(path: PathBuf, root: &Path) -> Result<(), ModelError> {
    let Ok(target) = path.canonicalize() else {
        return Ok(());
    };
    if !target.starts_with(root) {
        return Err(ModelError::LeadsOut { path, target });
    }
    match target.metadata() {
        Ok(data) if !data.is_file() && !data.is_dir() => Err(ModelError::NotAFile(path)),
        _ => Ok(()),
    }
}

/// Returns the folder that links of `…/models--org--name/snapshots/REVISION` may lead to.
fn repository(snapshot: &Path) -> Option<&Path> {
    let snapshots = snapshot.parent()?;
    let repository = snapshots.parent()?;
    (snapshots.file_name()? == "snapshots" && repository.join("blobs").is_dir())
        .then_some(repository)
}

/// Tells whether a file name in a JSON file stays in the folder.
pub(super) fn is_inside(name: &str) -> bool {
    let path = Path::new(name);
    let mut parts = path.components();
    parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Checks the folders that `modules.json` of sentence-transformers names.
pub(super) fn check_modules(folder: &Path) -> Result<(), ModelError> {
    let path = folder.join("modules.json");
    if !path.is_file() {
        return Ok(());
    }
    let modules: Value = super::read_json(&path)?;
    for module in modules.as_array().into_iter().flatten() {
        if let Some(name) = module.get("path").and_then(Value::as_str)
            && !is_inside(name)
        {
            return Err(ModelError::NameLeadsOut {
                path,
                key: "path".to_owned(),
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// Returns the first class of an `auto_map` that comes from neither the folder nor a repository on the hub.
pub(super) fn foreign_code(config: &Value) -> Option<&str> {
    match config {
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            if key == "auto_map" {
                strings(value).into_iter().find(|name| !is_reference(name))
            } else {
                foreign_code(value)
            }
        }),
        Value::Array(items) => items.iter().find_map(foreign_code),
        _ => None,
    }
}

fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(map) => map.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

/// Accepts `file.Class`, or `repository--file.Class` with a name on the hub.
fn is_reference(reference: &str) -> bool {
    let (repository, class) = match reference.split_once("--") {
        Some((repository, class)) => (Some(repository), class),
        None => (None, reference),
    };
    let is_name = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    repository.is_none_or(|name| name.matches('/').count() <= 1 && name.split('/').all(is_name))
        && is_inside(class)
        && !class.contains("..")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    #[test]
    fn links_that_lead_out_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("model");
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(folder.join("a"), "").unwrap();
        fs::write(parent.path().join("secret"), "").unwrap();
        symlink("../a", folder.join("inner/fine")).unwrap();
        symlink("nowhere", folder.join("dangling")).unwrap();
        check_links(&folder).unwrap();
        for target in ["/proc/self/environ", "../../secret", "/etc", "../.."] {
            let link = folder.join("inner/link");
            symlink(target, &link).unwrap();
            let error = check_links(&folder).unwrap_err();
            assert!(matches!(error, ModelError::LeadsOut { .. }), "{target}");
            assert!(error.to_string().contains("inner/link"), "{error}");
            fs::remove_file(link).unwrap();
        }
    }

    #[test]
    fn the_hubs_cache_may_link_to_its_blobs_and_no_further() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(repository.join("blobs")).unwrap();
        fs::write(repository.join("blobs/1"), "").unwrap();
        symlink("../../blobs/1", snapshot.join("config.json")).unwrap();
        check_links(&snapshot).unwrap();
        symlink(&snapshot, cache.path().join("by-link")).unwrap();
        check_links(&cache.path().join("by-link")).unwrap();
        fs::create_dir(cache.path().join("models--other")).unwrap();
        symlink("../../../models--other", snapshot.join("other")).unwrap();
        assert!(check_links(&snapshot).is_err());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        let error = check_links(folder.path()).unwrap_err();
        assert!(matches!(error, ModelError::NotAFile(_)));
    }

    #[test]
    fn names_that_lead_out_are_told() {
        for inside in ["model.safetensors", "a/b", "./a", "", "1_Pooling"] {
            assert!(is_inside(inside), "{inside}");
        }
        for outside in ["/etc/passwd", "../a", "a/../../b", "a/../b"] {
            assert!(!is_inside(outside), "{outside}");
        }
    }

    #[test]
    fn code_comes_from_the_folder_or_the_hub() {
        let found = |reference: &str| {
            let config = json!({"text_config": {"auto_map": {"AutoModel": [reference, null]}}});
            foreign_code(&config).is_some()
        };
        for fine in [
            "modeling.Class",
            "sub/modeling.Class",
            "org/name--modeling.Class",
        ] {
            assert!(!found(fine), "{fine}");
        }
        for foreign in [
            "/tmp/evil.Class",
            "../evil.Class",
            "/tmp/evil--modeling.Class",
            "../evil--modeling.Class",
            "org/name--/tmp/evil.Class",
            "a/b/c--modeling.Class",
        ] {
            assert!(found(foreign), "{foreign}");
        }
    }
}
