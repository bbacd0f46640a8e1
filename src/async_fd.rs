//! Descriptors of any kind, on a poller.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use duopoll_core::{Direction, Kind, Readiness, Token};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{FileType, fstat};
use rustix::io::ioctl_fionbio;

use crate::poller::{Handle, Poller, over};
use crate::pollers::Pollers;

/// A descriptor that a poller watches: a pipe, a timerfd, a pidfd, a socket of a kind that this library does not know. What is done with
/// it is yours; this says when.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use duopoll::AsyncFd;
/// use std::io::Read;
/// use std::process::{Command, Stdio};
///
/// let mut child = Command::new("date").stdout(Stdio::piped()).spawn()?;
/// let mut output = AsyncFd::new(child.stdout.take().unwrap()).await?;
/// let mut bytes = [0; 64];
/// let n = output.read_with(|output| output.read(&mut bytes)).await?;
/// println!("{}", String::from_utf8_lossy(&bytes[..n]));
/// child.wait()?;
/// # Ok(()) }
/// ```
///
/// The poller has a duplicate of it, and lets go of that a moment after this is dropped: only then the other end of a pipe or a socket
/// sees that it is closed. Connections are not for this: they have a poller already.
#[derive(Debug)]
pub struct AsyncFd<T> {
    io: T,
    watching: Watching,
}

/// What a poller watches for somebody, until it is dropped.
pub(crate) struct Watching {
    poller: Arc<Handle>,
    token: Token,
    readiness: Arc<Readiness>,
    kind: Kind,
}

impl<T: AsFd> AsyncFd<T> {
    /// Has it watched by the poller of this thread, elsewhere by one of those that the thread has [entered](Pollers::enter), or else by a
    /// [global one](Pollers::global). It is made non-blocking, and so are its duplicates.
    ///
    /// # Errors
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) (`EPERM`) for what is always ready: files and directories, whatever the disk
    /// does, and devices such as `/dev/null`; what the engine says; [`NotConnected`](io::ErrorKind::NotConnected) if the pollers have ended.
    pub async fn new(io: T) -> io::Result<AsyncFd<T>> {
        check_pollable(io.as_fd())?;
        ioctl_fionbio(&io, true)?;
        let watching = Watching::nearby(io.as_fd().try_clone_to_owned()?, Kind::Watched).await?;
        Ok(AsyncFd { io, watching })
    }

    /// What is watched.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// The same, to change it.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// It is not watched any more, and stays non-blocking.
    pub fn into_inner(self) -> T {
        self.io
    }

    /// Calls, and again when it may be readable, as long as the call says that it [would block](io::ErrorKind::WouldBlock). Dropping the
    /// future loses nothing that a call has not taken.
    ///
    /// # Errors
    /// What the call says; [`NotConnected`](io::ErrorKind::NotConnected) if the poller has ended.
    pub async fn read_with<R>(
        &mut self,
        mut call: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        poll_fn(|cx| self.poll_read_with(cx, &mut call)).await
    }

    /// The same for writing.
    ///
    /// # Errors
    /// As for [`read_with`](AsyncFd::read_with).
    pub async fn write_with<R>(
        &mut self,
        mut call: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        poll_fn(|cx| self.poll_write_with(cx, &mut call)).await
    }

    /// [`read_with`](AsyncFd::read_with) as a poll. The task that polled last is woken; one may wait to read and another to write.
    ///
    /// # Errors
    /// As there.
    pub fn poll_read_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(&mut T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.watching.poll_with(cx, Direction::Read, || call(&mut self.io))
    }

    /// [`write_with`](AsyncFd::write_with) as a poll.
    ///
    /// # Errors
    /// As there.
    pub fn poll_write_with<R>(
        &mut self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(&mut T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.watching.poll_with(cx, Direction::Write, || call(&mut self.io))
    }
}

/// Refuses what cannot be waited for, as epoll does: io_uring would find it ready again and again.
fn check_pollable(fd: BorrowedFd<'_>) -> io::Result<()> {
    if matches!(FileType::from_raw_mode(fstat(fd)?.st_mode), FileType::Socket | FileType::Fifo) {
        return Ok(());
    }
    let judge = epoll::create(CreateFlags::CLOEXEC)?;
    Ok(epoll::add(judge, fd, EventData::new_u64(0), EventFlags::IN)?)
}

impl Watching {
    /// Has the poller of this thread watch a duplicate, or elsewhere a global one.
    pub(crate) async fn nearby(fd: OwnedFd, kind: Kind) -> io::Result<Watching> {
        let poller = match Handle::current() {
            Some(poller) => poller,
            None => Pollers::nearest()?.choose(),
        };
        Watching::begin(poller, fd, kind).await
    }

    /// Has a poller watch a duplicate.
    pub(crate) async fn begin(
        poller: Arc<Handle>,
        fd: OwnedFd,
        kind: Kind,
    ) -> io::Result<Watching> {
        let handle = poller.clone();
        let watch = move |poller: &mut Poller| {
            let (token, readiness) = poller.watch(fd, kind)?;
            Ok(Watching { poller: handle, token, readiness, kind })
        };
        poller.ask(watch).await.map_err(|_| over())?
    }

    /// An error if the poller has ended.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.readiness.is_over() { Err(over()) } else { Ok(()) }
    }

    /// As dropping it, and returns when the poller has let go of its duplicate.
    pub(crate) async fn end(self) {
        let (poller, token) = (self.poller.clone(), self.token);
        drop(self);
        // Looked at once a turn; an engine needs few of them.
        while poller.ask(move |poller| poller.watches(token)).await == Ok(true) {}
    }

    #[cfg(feature = "quinn")]
    pub(crate) fn may_be_ready(&self, direction: Direction) -> bool {
        self.readiness.may_be_ready(direction)
    }

    /// What [`clear`](Watching::clear) is given after a call that would have blocked.
    #[cfg(feature = "quinn")]
    pub(crate) fn told(&self, direction: Direction) -> u32 {
        self.readiness.told(direction)
    }

    #[cfg(feature = "quinn")]
    pub(crate) fn clear(&self, direction: Direction, told: u32) {
        self.readiness.clear(direction, told);
    }

    pub(crate) fn poll_with<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        call: impl FnMut() -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let polled = self.readiness.poll_with(cx, direction, call);
        if polled.is_pending() && direction == Direction::Write && self.kind == Kind::Datagrams {
            let token = self.token;
            self.poller.call(move |poller| poller.watch_room(token));
        }
        polled.map(|result| result.unwrap_or_else(|| Err(over())))
    }

    /// See [`Readiness::poll_drain`].
    pub(crate) fn poll_drain<R>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        call: impl FnMut() -> io::Result<(R, bool)>,
    ) -> Poll<io::Result<R>> {
        let polled = self.readiness.poll_drain(cx, direction, call);
        polled.map(|result| result.unwrap_or_else(|| Err(over())))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let token = self.token;
        self.poller.call(move |poller| poller.unwatch(token));
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.readiness.fmt(f)
    }
}
