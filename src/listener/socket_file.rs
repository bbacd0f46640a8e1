//! The file of a Unix socket, and who may remove it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// A socket file of ours: removed when dropped, if it is still the one that was made.
#[derive(Debug)]
pub(crate) struct SocketFile {
    /// Absolute, since the working directory may change.
    path: PathBuf,
    /// The file itself, which nobody can read: while it is open no other file gets its inode.
    file: File,
    /// Whether it is ours already; another process may still have it.
    ours: Arc<AtomicBool>,
}

impl SocketFile {
    /// The one that a bind has just made.
    pub(crate) fn made(path: &Path) -> io::Result<SocketFile> {
        let path = path::absolute(path)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&path)?;
        Ok(SocketFile { path, file, ours: Arc::new(AtomicBool::new(true)) })
    }

    /// That of another process, which is ours when that is set.
    pub(crate) fn inherited(path: &Path, ours: Arc<AtomicBool>) -> io::Result<SocketFile> {
        let mut file = SocketFile::made(path)?;
        file.ours = ours;
        Ok(file)
    }

    /// Whether it is the one at that path, and ours.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let ours = self.ours.load(Ordering::Relaxed);
        ours && path::absolute(path).is_ok_and(|path| path == self.path)
    }

    /// Another process has it now.
    pub(crate) fn give_up(&self) {
        // Relaxed: it stands for itself.
        self.ours.store(false, Ordering::Relaxed);
    }

    /// Who may connect, as the permissions of the file.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        // By the file, and not by its name.
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mode = fs::Permissions::from_mode(mode);
        match fs::set_permissions(file, mode.clone()) {
            // Where there is no /proc.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::set_permissions(&self.path, mode)
            }
            result => result,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.ours.load(Ordering::Relaxed) {
            return;
        }
        let name = |file: fs::Metadata| (file.dev(), file.ino());
        let (found, ours) = (fs::symlink_metadata(&self.path), self.file.metadata());
        let is_ours = found.is_ok_and(|found| ours.is_ok_and(|ours| name(found) == name(ours)));
        if is_ours {
            // It may be gone already; then there is nothing to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whoever takes over a file: nobody else of the kind does in that directory at the same time.
pub(crate) struct TakingOver {
    _directory: Option<File>,
}

/// How often, and how long apart, somebody asks for his turn to take over a file.
const TURNS: u32 = 100;
const TURN: Duration = Duration::from_millis(1);

impl TakingOver {
    /// Waits for a tenth of a second at most, which is a hundred times what one takes, and goes on then: somebody may hold up
    /// everybody on purpose.
    pub(crate) fn begin(path: &Path) -> TakingOver {
        let directory = path::absolute(path)
            .and_then(|path| File::open(path.parent().unwrap_or(Path::new("/"))));
        let Ok(directory) = directory else { return TakingOver { _directory: None } };
        for _ in 0..TURNS {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => thread::sleep(TURN),
                Err(_) => break,
            }
        }
        TakingOver { _directory: Some(directory) }
    }

    /// Removes a socket file that nobody listens at any more. Says whether it did.
    pub(crate) fn remove_stale(&self, path: &Path) -> io::Result<bool> {
        let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
        if !is_socket {
            return Ok(false);
        }
        // A listener with a full backlog does not refuse, and is not waited for.
        let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        let connected = probe.connect(&SockAddr::unix(path)?);
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        Ok(connected.is_err_and(refused) && fs::remove_file(path).is_ok())
    }
}
