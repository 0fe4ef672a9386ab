//! Verdicts of `gridwork-server prepare` on a folder's tokenizer, so that it need not be started again.
//!
//! `server/gridwork_server/prepare/tokenizer_choice.py` writes these files, and describes them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::native_types::NativeTypes;

/// Version of the files. It must be raised with the writer's.
const FORMAT: u32 = 1;

/// Suffixes of files that a tokenizer does not depend on.
const WEIGHTS_AND_SUCH: [&str; 18] = [
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".ot",
    ".npz",
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".svg",
    ".pdf",
];

/// A verdict, and the state of the folder that it holds for.
#[derive(Debug, Deserialize)]
struct Verdict {
    format: u32,
    folder: PathBuf,
    /// Name, size in bytes, and nanoseconds of the last change of each file.
    files: Vec<(String, u64, i128)>,
    transformers: String,
    trust_remote_code: bool,
    code_revision: Option<String>,
    tokenizer_path: Option<PathBuf>,
    tokenizer_encodes: bool,
}

/// Tokenizer to use.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// The folder's tokenizer.json.
    Own,
    /// A tokenizer that was made.
    Made { path: PathBuf, encodes: bool },
}

/// Returns the verdict on `folder`, an absolute path; `None` without one, or when a file has changed since. `cache` is
/// the hub's.
pub fn read(
    folder: &Path,
    cache: &Path,
    trust_remote_code: bool,
    code_revision: Option<&str>,
    types: &NativeTypes,
) -> Option<Known> {
    let name = format!("{:016x}.json", fnv1a(folder.as_os_str().as_encoded_bytes()));
    let path = cache.join("gridwork/tokenizers/verdicts").join(name);
    let verdict: Verdict = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let holds = verdict.format == FORMAT
        && verdict.folder == folder
        && verdict.trust_remote_code == trust_remote_code
        && verdict.code_revision.as_deref() == code_revision
        && types.are_of_version(&verdict.transformers)
        && verdict.files == tokenizer_files(folder)?;
    if !holds {
        return None;
    }
    match verdict.tokenizer_path {
        None => folder
            .join("tokenizer.json")
            .is_file()
            .then_some(Known::Own),
        Some(path) => {
            let is_whole = ["tokenizer.json", "gridwork.json"]
                .iter()
                .all(|name| path.join(name).is_file());
            is_whole.then_some(Known::Made {
                path,
                encodes: verdict.tokenizer_encodes,
            })
        }
    }
}

fn tokenizer_files(folder: &Path) -> Option<Vec<(String, u64, i128)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name().to_str()?.to_owned();
        let end = Path::new(&name)
            .extension()
            .map(|end| format!(".{}", end.to_string_lossy().to_lowercase()));
        if end.is_some_and(|end| WEIGHTS_AND_SUCH.contains(&end.as_str())) {
            continue;
        }
        // A link's target counts.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        if metadata.is_file() {
            let nanoseconds =
                i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            files.push((name, metadata.len(), nanoseconds));
        }
    }
    files.sort();
    Some(files)
}

/// Returns the hub's cache folder, as its library finds it. `given` is that of the command line.
pub fn hub_cache(given: Option<&Path>) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    if let Some(folder) = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
        return Some(folder.into());
    }
    let home = variable("HF_HOME").map(PathBuf::from).or_else(|| {
        let cache = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")));
        Some(cache?.join("huggingface"))
    });
    Some(home?.join("hub"))
}

/// The 64-bit FNV-1a hash.
fn fnv1a(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |value, byte| {
        (value ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The text that the Python program writes.
    fn write(folder: &Path, cache: &Path, changes: &[(&str, Value)]) {
        let mut verdict = json!({
            "format": FORMAT, "folder": folder, "transformers": "1.2.3", "trust_remote_code": false,
            "code_revision": null, "tokenizer_path": null, "tokenizer_encodes": true,
            "files": tokenizer_files(folder).unwrap(),
        });
        for (key, value) in changes {
            verdict[key] = value.clone();
        }
        let verdicts = cache.join("gridwork/tokenizers/verdicts");
        fs::create_dir_all(&verdicts).unwrap();
        let name = format!("{:016x}.json", fnv1a(folder.as_os_str().as_encoded_bytes()));
        fs::write(verdicts.join(name), verdict.to_string()).unwrap();
    }

    #[test]
    fn a_verdict_holds_until_something_changes() {
        let root = tempfile::tempdir().unwrap();
        let (folder, cache) = (root.path().join("model"), root.path().join("cache"));
        let packages = root.path().join("env/lib/python3.11/site-packages");
        fs::create_dir_all(packages.join("transformers/models")).unwrap();
        fs::create_dir_all(packages.join("transformers-1.2.3.dist-info")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("tokenizer.json"), "{}").unwrap();
        fs::write(folder.join("model.safetensors"), "x").unwrap();
        let program = root.path().join("env/bin/gridwork-server");
        let types = NativeTypes::of_server(&[program.to_string_lossy().into_owned()]);
        let known = || read(&folder, &cache, false, None, &types);
        assert_eq!(known(), None);
        write(&folder, &cache, &[]);
        assert_eq!(known(), Some(Known::Own));
        fs::write(folder.join("model.safetensors"), "other weights").unwrap();
        assert_eq!(known(), Some(Known::Own));
        for (key, value) in [
            ("format", json!(FORMAT + 1)),
            ("folder", json!("/elsewhere")),
            ("transformers", json!("1.2.4")),
            ("trust_remote_code", json!(true)),
            ("code_revision", json!("main")),
            ("files", json!([])),
            ("tokenizer_path", json!("/no/such/folder")),
        ] {
            write(&folder, &cache, &[(key, value)]);
            assert_eq!(known(), None, "{key}");
        }
        let made = root.path().join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join("tokenizer.json"), "{}").unwrap();
        fs::write(made.join("gridwork.json"), "{}").unwrap();
        write(
            &folder,
            &cache,
            &[
                ("tokenizer_path", json!(made)),
                ("tokenizer_encodes", json!(false)),
            ],
        );
        let expected = Known::Made {
            path: made,
            encodes: false,
        };
        assert_eq!(known(), Some(expected));
        fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
        assert_eq!(known(), None);
    }

    #[test]
    fn the_hash_is_the_same_in_python() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
