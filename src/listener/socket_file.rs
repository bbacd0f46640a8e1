//! The file of a Unix socket, and who may remove it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{self, Path, PathBuf};

/// A socket file of ours: removed when dropped, if it is still the one that was made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// Absolute, since the working directory may change.
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// The one that a bind has just made.
    pub(crate) fn made(path: &Path) -> io::Result<SocketFile> {
        let path = path::absolute(path)?;
        let metadata = fs::symlink_metadata(&path)?;
        Ok(SocketFile { device: metadata.dev(), inode: metadata.ino(), path })
    }

    /// Who may connect, as the permissions of the file.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours {
            // It may be gone already; then there is nothing to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file that nobody listens at any more. Says whether it did.
pub(crate) fn remove_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return false;
    }
    // A listener with a full backlog makes this wait, and so is not refused.
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    UnixStream::connect(path).is_err_and(refused) && fs::remove_file(path).is_ok()
}
