//! A temporary folder that only this user can enter. A later launcher removes it if this one is killed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const PREFIX: &str = "gridwork-";
/// File that the folder's launcher keeps locked as long as it lives.
const LOCK: &str = "lock";
const OWNER_ONLY: u32 = 0o700;

/// The folder. It is removed, with everything in it, when this is dropped.
#[derive(Debug)]
pub struct PrivateFolder {
    folder: tempfile::TempDir,
    lock: Mutex<File>,
}

impl PrivateFolder {
    /// Makes a new folder in `parent`.
    pub fn make(parent: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(OWNER_ONLY))
            .tempdir_in(parent)?;
        close_to_others(folder.path())?;
        let lock = Mutex::new(lock_in(folder.path())?);
        Ok(Self { folder, lock })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the folder again, under the same name, when somebody has removed it.
    pub fn make_again(&self) -> io::Result<()> {
        if self.path().is_dir() {
            return Ok(());
        }
        DirBuilder::new().mode(OWNER_ONLY).create(self.path())?;
        close_to_others(self.path())?;
        let lock = lock_in(self.path())?;
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = lock;
        Ok(())
    }

    /// Removes folders that launchers of this user have left in `parent` because they were killed.
    pub fn remove_left_over(parent: &Path) {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        for entry in entries {
            let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
            let path = entry.path();
            if is_ours && is_left_over(&path) {
                // A folder that cannot be removed harms nobody.
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

/// Sets the permissions of the folder, whatever the umask is.
fn close_to_others(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(OWNER_ONLY))
}

/// Locks the folder's lock file, which has its name only once it is locked.
fn lock_in(folder: &Path) -> io::Result<File> {
    let unlocked = folder.join("unlocked");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unlocked)?;
    if !lock(&file) {
        return Err(io::Error::last_os_error());
    }
    fs::rename(unlocked, folder.join(LOCK))?;
    Ok(file)
}

fn is_left_over(folder: &Path) -> bool {
    // SAFETY: geteuid always succeeds.
    let user = unsafe { libc::geteuid() };
    let is_private = folder
        .symlink_metadata()
        .is_ok_and(|data| data.is_dir() && data.uid() == user && data.mode() & 0o777 == OWNER_ONLY);
    let file: PathBuf = folder.join(LOCK);
    is_private
        && OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)
            .is_ok_and(|file| lock(&file))
}

/// Locks the file, and tells whether nobody else had locked it.
fn lock(file: &File) -> bool {
    // SAFETY: plain system call on a descriptor that is open.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn a_folder_is_private_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::make(parent.path()).unwrap();
        assert_eq!(mode(folder.path()), OWNER_ONLY);
        drop(folder);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_folders_of_the_dead_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let living = PrivateFolder::make(parent.path()).unwrap();
        let dead = PrivateFolder::make(parent.path()).unwrap();
        let dead_path = dead.path().to_owned();
        let PrivateFolder { folder, lock } = dead;
        std::mem::forget(folder);
        drop(lock);
        let others = parent.path().join("gridwork-of-somebody");
        fs::create_dir(&others).unwrap();
        let linked = parent.path().join("gridwork-link");
        std::os::unix::fs::symlink(&dead_path, &linked).unwrap();
        PrivateFolder::remove_left_over(parent.path());
        assert!(living.path().exists() && others.exists());
        assert!(linked.symlink_metadata().is_ok());
        assert!(!dead_path.exists());
    }
}
