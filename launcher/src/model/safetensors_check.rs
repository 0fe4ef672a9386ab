//! Checks that a safetensors file is whole, from its header and its size alone. No weights are read.
//!
//! Format: eight bytes with the header's length (little endian), the header (a JSON object from tensor name to dtype,
//! shape and data_offsets; `__metadata__` is free), then the tensors' bytes without gaps.
//! <https://huggingface.co/docs/safetensors/index#format>

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Maximum length of a header in the format, bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A fault of a file. Its text follows the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is truncated: it has {actual} bytes of {expected}")]
    Truncated { actual: u64, expected: u64 },
    #[error("is damaged: {0}")]
    Malformed(String),
    #[error(
        "is a git-lfs pointer and not the weights themselves (`git lfs pull` in the model's folder fetches them)"
    )]
    LfsPointer,
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Tensor(Tensor),
    Other(IgnoredAny),
}

/// Returns the number of tensors in the file at `path`, or what is wrong with it.
pub fn check(path: &Path) -> Result<usize, Damage> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut prefix = [0; 8];
    if size < 8 {
        return Err(Damage::Truncated {
            actual: size,
            expected: 8,
        });
    }
    file.read_exact(&mut prefix)?;
    if prefix == *b"version " {
        return Err(Damage::LfsPointer);
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(Damage::Malformed(
            "it does not begin with a safetensors header".to_owned(),
        ));
    }
    if header_bytes + 8 > size {
        return Err(Damage::Truncated {
            actual: size,
            expected: header_bytes + 8,
        });
    }
    let mut header = Vec::with_capacity(header_bytes as usize);
    file.take(header_bytes).read_to_end(&mut header)?;
    check_header(&header, size - 8 - header_bytes)
}

/// Checks a header against the number of bytes that follow it.
fn check_header(header: &[u8], data_bytes: u64) -> Result<usize, Damage> {
    let entries: HashMap<String, Entry> = serde_json::from_slice(header)
        .map_err(|error| Damage::Malformed(format!("its header is not valid ({error})")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        match entry {
            Entry::Tensor(tensor) => tensors.push((name, tensor)),
            Entry::Other(_) if name == "__metadata__" => {}
            Entry::Other(_) => {
                return Err(Damage::Malformed(format!("{name} has no data_offsets")));
            }
        }
    }
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut end = 0;
    for (name, tensor) in &tensors {
        let (from, to) = tensor.data_offsets;
        if from != end || to < from {
            return Err(Damage::Malformed(format!(
                "{name} does not follow the tensor before it"
            )));
        }
        if let Some(expected) = tensor_bytes(tensor)
            && expected != to - from
        {
            let (dtype, shape) = (&tensor.dtype, &tensor.shape);
            return Err(Damage::Malformed(format!(
                "{name} is {dtype} of {shape:?} but has {} bytes",
                to - from
            )));
        }
        end = to;
    }
    match data_bytes.cmp(&end) {
        std::cmp::Ordering::Equal => Ok(tensors.len()),
        std::cmp::Ordering::Less => Err(Damage::Truncated {
            actual: 8 + header.len() as u64 + data_bytes,
            expected: 8 + header.len() as u64 + end,
        }),
        std::cmp::Ordering::Greater => Err(Damage::Malformed(format!(
            "{} bytes follow its last tensor",
            data_bytes - end
        ))),
    }
}

/// Size of a tensor, or `None` for a dtype not known here.
fn tensor_bytes(tensor: &Tensor) -> Option<u64> {
    let bits: u64 = match tensor.dtype.as_str() {
        "BOOL" | "U8" | "I8" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        dtype if dtype.starts_with("F8_") => 8,
        _ => return None,
    };
    let count = tensor
        .shape
        .iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n))?;
    Some(count.checked_mul(bits)? / 8)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;

    fn file(header: &str, data_bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes())
            .unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(&vec![0; data_bytes]).unwrap();
        file
    }

    #[test]
    fn a_whole_file_passes() {
        assert_eq!(check(file(HEADER, 22).path()).unwrap(), 2);
        assert_eq!(check(file("{}", 0).path()).unwrap(), 0);
    }

    #[test]
    fn a_truncated_file_is_told_wherever_it_ends() {
        let whole = 8 + HEADER.len() + 22;
        for length in [0, 5, 8, 40, 8 + HEADER.len(), whole - 1] {
            let file = file(HEADER, 22);
            file.as_file().set_len(length as u64).unwrap();
            let damage = check(file.path()).unwrap_err();
            assert!(
                matches!(damage, Damage::Truncated { .. }),
                "{length}: {damage}"
            );
        }
    }

    #[test]
    fn a_damaged_file_is_told() {
        for (header, data_bytes) in [
            (HEADER, 23),
            ("not json", 0),
            ("[]", 0),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
                4,
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            (r#"{"a":{"shape":"x"}}"#, 0),
        ] {
            let damage = check(file(header, data_bytes).path()).unwrap_err();
            assert!(matches!(damage, Damage::Malformed(_)), "{header}: {damage}");
        }
    }

    #[test]
    fn other_files_are_not_taken_for_truncated_ones() {
        let mut pointer = tempfile::NamedTempFile::new().unwrap();
        writeln!(
            pointer,
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1"
        )
        .unwrap();
        assert!(matches!(
            check(pointer.path()).unwrap_err(),
            Damage::LfsPointer
        ));
        let mut text = tempfile::NamedTempFile::new().unwrap();
        writeln!(text, "<html>not found</html>").unwrap();
        assert!(matches!(
            check(text.path()).unwrap_err(),
            Damage::Malformed(_)
        ));
    }
}
