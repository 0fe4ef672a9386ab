//! Which files of a folder hold the tokenizer.

use std::fs;
use std::path::Path;

/// Whether there is something that Transformers may make a tokenizer of. Some need no vocabulary, and have their class
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
