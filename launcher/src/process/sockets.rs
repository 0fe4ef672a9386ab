//! Paths of the shards' sockets, and the file or port at which ranks meet.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::private_folder::PrivateFolder;

/// Maximum length of a unix socket's path: `sun_path` of `struct sockaddr_un`, less the closing zero byte.
pub(super) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// A socket or port that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "port {port} of {hostname} is already in use; stop what listens there, or choose another port with {flag}"
    )]
    PortInUse {
        hostname: String,
        port: u16,
        flag: &'static str,
    },
    #[error("cannot listen on {hostname}:{port}: {source}; check --hostname and {flag}")]
    CannotListen {
        hostname: String,
        port: u16,
        flag: &'static str,
        source: io::Error,
    },
    #[error("cannot make the sockets of the shards in {}: {source}; name another place with --shard-uds-path", .folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error(
        "the socket path {} is {length} bytes long, {limit} are allowed; name a shorter one with --shard-uds-path",
        .path.display()
    )]
    PathTooLong {
        path: PathBuf,
        length: usize,
        limit: usize,
    },
    #[error("{} exists and is not a socket left over by a shard; remove it, or name another place with --shard-uds-path", .0.display())]
    PathTaken(PathBuf),
    #[error(
        "another server uses the socket {}; stop it, or name another place with --shard-uds-path", .0.display()
    )]
    InUse(PathBuf),
    #[error("cannot find a free port for the shards to meet: {0}; name one with --master-port")]
    MasterPort(io::Error),
    #[error(
        "cannot make the file that the shards meet in: {0}; name another place with --shard-uds-path"
    )]
    MeetingFile(io::Error),
    #[error("{} is no address of a shard: {reason}; name another place with --shard-uds-path", .path.display())]
    NoAddress { path: PathBuf, reason: String },
}

/// Meeting point of the ranks of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meeting {
    /// A port of `--master-addr`.
    Port(u16),
    /// A file that only this user can open.
    File(PathBuf),
}

/// The sockets of all shards. They are removed when this is dropped.
#[derive(Debug)]
pub struct Sockets {
    prefix: PathBuf,
    count: u32,
    /// The folder of the sockets, unless the user gave a prefix.
    private: Option<PrivateFolder>,
}

impl Sockets {
    /// Checks that the sockets can be made. `given` is a path that `-0`, `-1`, … are added to; without it, they get a
    /// temporary folder that only this user can enter.
    pub fn prepare(given: Option<&Path>, count: u32) -> Result<Self, SocketError> {
        let (prefix, private) = match given {
            Some(prefix) => (absolute(prefix), None),
            None => {
                let parent = std::env::temp_dir();
                PrivateFolder::remove_left_over(&parent);
                let private =
                    PrivateFolder::make(&parent).map_err(|source| SocketError::Folder {
                        folder: parent,
                        source,
                    })?;
                (private.path().join("shard"), Some(private))
            }
        };
        // Before there is anything to drop: the sockets of another server must survive a refusal.
        check(&prefix, count)?;
        Ok(Self {
            prefix,
            count,
            private,
        })
    }

    /// Path of the socket of `rank`.
    pub fn path(&self, rank: u32) -> PathBuf {
        socket_path(&self.prefix, rank)
    }

    /// Path of the HTTP server's socket, where the user has named none and it has no port.
    pub fn http(&self) -> PathBuf {
        let mut path = self.prefix.as_os_str().to_owned();
        path.push("-http");
        path.into()
    }

    /// Second name of the socket of `rank`, from which its first name can be restored.
    fn kept(&self, rank: u32) -> PathBuf {
        let mut path = self.path(rank).into_os_string();
        path.push(".kept");
        path.into()
    }

    /// Makes the private folder again when it was removed.
    pub fn make_folder(&self) -> io::Result<()> {
        self.private
            .as_ref()
            .map_or(Ok(()), PrivateFolder::make_again)
    }

    /// Makes a new, empty file for ranks to meet in.
    pub fn meeting_file(&self) -> io::Result<PathBuf> {
        let path = self.meeting_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn meeting_path(&self) -> PathBuf {
        let mut path = self.prefix.as_os_str().to_owned();
        path.push("-meeting");
        path.into()
    }

    /// Gives the socket of `rank`, which must exist, its second name.
    pub fn keep(&self, rank: u32) -> io::Result<()> {
        let kept = self.kept(rank);
        if is_socket(&kept) {
            fs::remove_file(&kept)?;
        }
        fs::hard_link(self.path(rank), kept)
    }

    /// Restores the socket of `rank` if it was removed, and tells whether it was. An error: it cannot be restored.
    pub fn put_back(&self, rank: u32) -> io::Result<bool> {
        let (path, kept) = (self.path(rank), self.kept(rank));
        let inode = |path: &Path| path.symlink_metadata().map(|data| (data.dev(), data.ino()));
        match (inode(&path), inode(&kept)) {
            (Err(error), _) if error.kind() == ErrorKind::NotFound => {
                fs::hard_link(kept, path).map(|()| true)
            }
            (Ok(found), Ok(kept)) if found != kept => {
                Err(io::Error::other("something else stands in its place"))
            }
            // Where there are no second names, a socket in its place is taken for it.
            _ => Ok(false),
        }
    }

    /// Removes sockets left over by shards that have ended.
    pub fn remove_stale(&self) {
        for rank in 0..self.count {
            for path in [self.path(rank), self.kept(rank)] {
                if is_socket(&path) {
                    // A socket that stays makes the shard's own bind fail, with a clear error of its own.
                    let _ = fs::remove_file(path);
                }
            }
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.remove_stale();
        // A single rank has none.
        let _ = fs::remove_file(self.meeting_path());
    }
}

fn socket_path(prefix: &Path, rank: u32) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{rank}"));
    path.into()
}

fn check(prefix: &Path, count: u32) -> Result<(), SocketError> {
    let folder = prefix.parent().unwrap_or(Path::new("/"));
    check_writable(folder).map_err(|source| SocketError::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    for rank in 0..count {
        let path = socket_path(prefix, rank);
        let length = path.as_os_str().as_bytes().len();
        if length > MAX_SOCKET_PATH_BYTES {
            return Err(SocketError::PathTooLong {
                path,
                length,
                limit: MAX_SOCKET_PATH_BYTES,
            });
        }
        if UnixStream::connect(&path).is_ok() {
            return Err(SocketError::InUse(path));
        }
        if path.symlink_metadata().is_ok() && !is_socket(&path) {
            return Err(SocketError::PathTaken(path));
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

pub(super) fn is_socket(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|data| data.file_type().is_socket())
}

/// Makes a file and removes it again: permissions are no answer for root and on read-only mounts.
pub(super) fn check_writable(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(".gridwork-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?;
    fs::remove_file(probe)
}

/// Checks that the router will be able to listen, by listening for a moment. `flag`: where the port was given.
pub fn check_port(hostname: &str, port: u16, flag: &'static str) -> Result<(), SocketError> {
    let host = hostname.trim_start_matches('[').trim_end_matches(']');
    let cannot = |source| SocketError::CannotListen {
        hostname: hostname.to_owned(),
        port,
        flag,
        source,
    };
    let addresses: Vec<_> = (host, port).to_socket_addrs().map_err(cannot)?.collect();
    match TcpListener::bind(&addresses[..]) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(SocketError::PortInUse {
            hostname: hostname.to_owned(),
            port,
            flag,
        }),
        Err(error) => Err(cannot(error)),
    }
}

/// Returns a port of this machine that nobody listens on now.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn two_launchers_never_share_a_socket_and_leave_nothing() {
        let (one, two) = (
            Sockets::prepare(None, 2).unwrap(),
            Sockets::prepare(None, 2).unwrap(),
        );
        assert_ne!(one.path(0), two.path(0));
        assert_ne!(one.path(0), one.path(1));
        let folder = one.path(0).parent().unwrap().to_owned();
        drop(UnixListener::bind(one.path(0)).unwrap());
        drop(one);
        assert!(!folder.exists());
    }

    #[test]
    fn a_stale_socket_is_removed_and_one_in_use_refused() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("s");
        let listener = UnixListener::bind(folder.path().join("s-1")).unwrap();
        assert!(matches!(
            Sockets::prepare(Some(&prefix), 2),
            Err(SocketError::InUse(_))
        ));
        drop(listener);
        assert!(folder.path().join("s-1").exists());
        let sockets = Sockets::prepare(Some(&prefix), 2).unwrap();
        sockets.remove_stale();
        assert!(!folder.path().join("s-1").exists());
    }

    #[test]
    fn a_socket_that_was_removed_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let prefix = folder.path().join("s");
        let sockets = Sockets::prepare(Some(&prefix), 1).unwrap();
        let path = sockets.path(0);
        let listener = UnixListener::bind(&path).unwrap();
        sockets.keep(0).unwrap();
        assert!(!sockets.put_back(0).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(sockets.put_back(0).unwrap());
        assert!(UnixStream::connect(&path).is_ok(), "it is the same socket");
        drop(listener);
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(sockets.put_back(0).is_err(), "another one");
        sockets.remove_stale();
        assert!(sockets.put_back(0).is_err(), "no name is left");
        drop(sockets);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn ranks_meet_in_a_new_file_of_this_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::prepare(Some(&folder.path().join("s")), 2).unwrap();
        let path = sockets.meeting_file().unwrap();
        fs::write(&path, "of the last start").unwrap();
        assert_eq!(sockets.meeting_file().unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_folder_that_was_removed_is_made_again() {
        let sockets = Sockets::prepare(None, 1).unwrap();
        let folder = sockets.path(0).parent().unwrap().to_owned();
        fs::remove_dir_all(&folder).unwrap();
        sockets.make_folder().unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        drop(sockets);
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("s-0"), "mine").unwrap();
        let prefix = folder.path().join("s");
        assert!(matches!(
            Sockets::prepare(Some(&prefix), 1),
            Err(SocketError::PathTaken(_))
        ));
        assert!(folder.path().join("s-0").exists());
    }

    #[test]
    fn impossible_places_are_refused() {
        assert!(matches!(
            Sockets::prepare(Some(Path::new("/no/such/folder/s")), 1),
            Err(SocketError::Folder { .. })
        ));
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(100));
        assert!(matches!(
            Sockets::prepare(Some(&long), 1),
            Err(SocketError::PathTooLong { .. })
        ));
    }

    #[test]
    fn a_port_in_use_is_told_from_a_bad_host() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(matches!(
            check_port("127.0.0.1", port, "--port"),
            Err(SocketError::PortInUse { .. })
        ));
        assert!(matches!(
            check_port("no such host", port, "--port"),
            Err(SocketError::CannotListen { .. })
        ));
        check_port("127.0.0.1", free_port().unwrap(), "--port").unwrap();
    }
}
