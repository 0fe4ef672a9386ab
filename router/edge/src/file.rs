//! Small files that operators write and replace while the server runs.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Maximum size of a file, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Rights that nobody may have on a secret: all of other users', and the group's to write.
const TOO_OPEN: u32 = 0o027;

/// Interval between two looks at a file.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A file that cannot be used, in words for the operator. `flag` is where its path was given.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{flag} {} cannot be read: {source}", .path.display())]
    Unreadable {
        flag: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{flag} {} is no regular file", .path.display())]
    Irregular { flag: &'static str, path: PathBuf },
    #[error("{flag} {} has more than {} bytes; is it the right file?", .path.display(), MAX_BYTES)]
    TooLarge { flag: &'static str, path: PathBuf },
    #[error("{flag} {} is not text (UTF-8)", .path.display())]
    NotText { flag: &'static str, path: PathBuf },
    #[error(
        "{flag} {} holds secrets, and its rights ({mode:04o}) give it to other users of this machine; take them away with \
         `chmod 600`, or mount it with mode 0440", .path.display()
    )]
    TooOpen {
        flag: &'static str,
        path: PathBuf,
        mode: u32,
    },
}

/// Text of a file that anybody may read.
pub fn read(flag: &'static str, path: &Path) -> Result<String, FileError> {
    read_checked(flag, path, |_| Ok(()))
}

/// Text of a file that holds secrets: refused when others may read it, or when its group may change it.
pub fn read_secret(flag: &'static str, path: &Path) -> Result<String, FileError> {
    read_checked(flag, path, |data| {
        let mode = data.permissions().mode() & 0o777;
        if mode & TOO_OPEN == 0 {
            return Ok(());
        }
        Err(FileError::TooOpen {
            flag,
            path: path.to_owned(),
            mode,
        })
    })
}

fn read_checked(
    flag: &'static str,
    path: &Path,
    check: impl FnOnce(&Metadata) -> Result<(), FileError>,
) -> Result<String, FileError> {
    let unreadable = |source| FileError::Unreadable {
        flag,
        path: path.to_owned(),
        source,
    };
    // Looked at first: opening a pipe would wait for its writer.
    let data = fs::metadata(path).map_err(unreadable)?;
    let path = path.to_owned();
    if !data.is_file() {
        return Err(FileError::Irregular { flag, path });
    }
    check(&data)?;
    let file = fs::File::open(&path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLarge { flag, path });
    }
    String::from_utf8(bytes).map_err(|_| FileError::NotText { flag, path })
}

/// Calls `changed` whenever `read` gives something else than the last time. `read` runs on a thread that may block.
pub async fn watch<T, R, C>(first: T, read: R, mut changed: C)
where
    T: PartialEq + Send + 'static,
    R: Fn() -> T + Clone + Send + 'static,
    C: FnMut(&T),
{
    let mut known = first;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Ok(found) = tokio::task::spawn_blocking(read.clone()).await else {
            continue;
        };
        if found != known {
            changed(&found);
            known = found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir, mode: u32) -> PathBuf {
        let path = folder.path().join(format!("{mode:o}"));
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_secret_belongs_to_its_user_and_at_most_its_group_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o400, 0o440, 0o640] {
            assert_eq!(read_secret("--f", &file(&folder, mode)).unwrap(), "text");
        }
        for mode in [0o644, 0o604, 0o660, 0o602, 0o666] {
            let path = file(&folder, mode);
            let message = read_secret("--f", &path).unwrap_err().to_string();
            assert!(message.contains("chmod 600") && message.starts_with("--f /"));
            assert_eq!(read("--f", &path).unwrap(), "text");
        }
    }

    #[test]
    fn what_is_no_small_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| read("--f", path).unwrap_err().to_string();
        let path = folder.path().join("file");
        assert!(refused(&path).contains("cannot be read: No such file"));
        assert!(refused(folder.path()).contains("no regular file"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(refused(&path).contains("not text"));
        fs::write(&path, vec![b'a'; MAX_BYTES as usize + 1]).unwrap();
        assert!(refused(&path).contains("right file"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let reads = {
            let path = path.clone();
            move || fs::read_to_string(&path).unwrap_or_default()
        };
        let (send, mut told) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(String::new(), reads, move |text: &String| {
            let _ = send.send(text.clone());
        }));
        for text in ["one", "two"] {
            fs::write(&path, text).unwrap();
            assert_eq!(told.recv().await.unwrap(), text);
        }
        tokio::time::sleep(10 * LOOK_EVERY).await;
        assert!(told.try_recv().is_err());
        watching.abort();
    }
}
