//! The unix socket of the HTTP server (`--uds`).

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::sockets::{MAX_SOCKET_PATH_BYTES, check_writable, is_socket};

/// A path that the HTTP server cannot listen on.
#[derive(Debug, thiserror::Error)]
pub enum HttpSocketError {
    #[error("cannot listen on {}: {source}; choose another --uds", .path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("--uds {} is {length} bytes long, {limit} are allowed; choose a shorter path", .path.display())]
    PathTooLong {
        path: PathBuf,
        length: usize,
        limit: usize,
    },
    #[error("--uds {} exists and is not a socket left over by a server; remove it, or choose another path", .0.display())]
    PathTaken(PathBuf),
    #[error("another server listens on {}; stop it, or choose another --uds", .0.display())]
    InUse(PathBuf),
}

/// The path, once it is known that the router can listen there. The socket is removed when this is dropped.
#[derive(Debug)]
pub struct HttpSocket(PathBuf);

impl HttpSocket {
    pub fn prepare(path: &Path) -> Result<Self, HttpSocketError> {
        let length = path.as_os_str().as_bytes().len();
        let path = path.to_owned();
        if length > MAX_SOCKET_PATH_BYTES {
            let limit = MAX_SOCKET_PATH_BYTES;
            return Err(HttpSocketError::PathTooLong {
                path,
                length,
                limit,
            });
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if let Err(source) = check_writable(folder) {
            return Err(HttpSocketError::Folder { path, source });
        }
        if UnixStream::connect(&path).is_ok() {
            return Err(HttpSocketError::InUse(path));
        }
        if path.symlink_metadata().is_ok() && !is_socket(&path) {
            return Err(HttpSocketError::PathTaken(path));
        }
        Ok(Self(path))
    }
}

impl Drop for HttpSocket {
    fn drop(&mut self) {
        if is_socket(&self.0) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_left_over_socket_is_taken_and_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        drop(UnixListener::bind(&path).unwrap());
        drop(HttpSocket::prepare(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn impossible_paths_are_refused_by_flag() {
        let folder = tempfile::tempdir().unwrap();
        let (used, file) = (folder.path().join("used"), folder.path().join("file"));
        let _listener = UnixListener::bind(&used).unwrap();
        std::fs::write(&file, "mine").unwrap();
        let long = folder.path().join("x".repeat(100));
        for path in [&used, &file, &long, Path::new("/no/such/folder/http")] {
            let message = HttpSocket::prepare(path).unwrap_err().to_string();
            assert!(message.contains("--uds"), "{message}");
            assert!(message.contains(&*path.to_string_lossy()), "{message}");
        }
        assert!(used.exists() && file.exists());
    }
}
