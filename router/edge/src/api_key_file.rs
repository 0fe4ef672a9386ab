//! Files with API keys: a key on each line, and behind it what is set for it alone.
//!
//! ```text
//! # Blank lines and those that begin with # are passed over.
//! 0a1b2c3d4e5f60718293a4b5c6d7e8f9
//! f9e8d7c6b5a493827160f5e4d3c2b1a0  name=batch max-requests=8 max-tokens-per-minute=100000
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use crate::file::{self, FileError};

/// Flag that gives the file.
pub const FLAG: &str = "--api-key-file";

/// A key of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct ListedKey {
    pub key: String,
    /// Name in metrics and logs, which never show the key.
    pub name: Option<String>,
    /// Maximum number of requests at once, in place of the flag's.
    pub max_requests: Option<usize>,
    /// Maximum number of tokens a minute, in place of the flag's.
    pub max_tokens_per_minute: Option<u64>,
}

impl fmt::Debug for ListedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ListedKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A file that gives no keys. Messages show none of its text but names of attributes.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{FLAG} {} has no key: write one on each line", .0.display())]
    Empty(PathBuf),
    #[error("{FLAG} {}, line {line}: {fault}", .path.display())]
    Line {
        path: PathBuf,
        line: usize,
        fault: String,
    },
}

/// Reads the keys of a file.
pub fn read(path: &Path) -> Result<Vec<ListedKey>, KeyFileError> {
    let text = file::read_secret(FLAG, path)?;
    let mut keys: Vec<ListedKey> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fault = |fault: String| KeyFileError::Line {
            path: path.to_owned(),
            line: number,
            fault,
        };
        let key = parse(line).map_err(fault)?;
        let same = |other: &ListedKey| {
            other.key == key.key || (other.name.is_some() && other.name == key.name)
        };
        if keys.iter().any(same) {
            return Err(fault(
                "an earlier line has the same key or the same name".to_owned(),
            ));
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(KeyFileError::Empty(path.to_owned()));
    }
    Ok(keys)
}

fn parse(line: &str) -> Result<ListedKey, String> {
    let mut words = line.split_whitespace();
    let key = words.next().unwrap_or_default();
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "the key has characters that cannot be sent in a header; use visible ASCII only"
                .to_owned(),
        );
    }
    let mut listed = ListedKey {
        key: key.to_owned(),
        name: None,
        max_requests: None,
        max_tokens_per_minute: None,
    };
    for word in words {
        match word.split_once('=') {
            Some(("name", name)) => listed.name = Some(checked_name(name)?),
            Some(("max-requests", number)) => {
                listed.max_requests = Some(positive("max-requests", number)? as usize);
            }
            Some(("max-tokens-per-minute", number)) => {
                listed.max_tokens_per_minute = Some(positive("max-tokens-per-minute", number)?);
            }
            // Not shown: it may be a part of a key.
            _ => {
                return Err(
                    "what follows a key must be name=…, max-requests=… or max-tokens-per-minute=…; a key has no spaces"
                        .to_owned(),
                );
            }
        }
    }
    Ok(listed)
}

/// A name becomes the value of a label in metrics.
fn checked_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
        return Err(
            "name= takes 1 to 64 letters, digits, dots, hyphens and underscores".to_owned(),
        );
    }
    Ok(name.to_owned())
}

fn positive(name: &str, number: &str) -> Result<u64, String> {
    match number.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{name}= takes a number of at least 1")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keys_of(text: &str) -> Result<Vec<ListedKey>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn each_line_is_a_key_with_what_is_set_for_it() {
        let keys = keys_of(
            "# ours\n\nplain\n  other  name=team.b max-requests=3 max-tokens-per-minute=500 \r\n",
        );
        let [plain, other] = &keys.unwrap()[..] else {
            panic!("two keys")
        };
        assert_eq!((plain.key.as_str(), &plain.name), ("plain", &None));
        assert_eq!(other.key, "other");
        assert_eq!(other.name.as_deref(), Some("team.b"));
        assert_eq!(other.max_requests, Some(3));
        assert_eq!(other.max_tokens_per_minute, Some(500));
        assert!(!format!("{other:?}").contains("other"));
    }

    #[test]
    fn a_fault_is_told_with_its_line_and_without_the_key() {
        for (text, line, part) in [
            ("hush1\nhush1", 2, "same key"),
            ("hush1 name=a\nhush2 name=a", 2, "same name"),
            ("hush1 hush2", 1, "no spaces"),
            ("hush1 name=a/b", 1, "letters"),
            ("hush1 max-requests=0", 1, "max-requests="),
            ("hush1 max-tokens-per-minute=many", 1, "at least 1"),
            ("hüsh1", 1, "visible ASCII"),
        ] {
            let message = keys_of(text).unwrap_err();
            assert!(message.contains(&format!("line {line}")), "{message}");
            assert!(message.contains(part), "{message}");
            assert!(!message.contains("hush"), "{message}");
        }
        assert!(keys_of("# nothing\n").unwrap_err().contains("has no key"));
    }
}
