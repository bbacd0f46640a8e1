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
    #[cfg(any(feature = "quinn", test))]
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
        let waits_for_room = polled.is_pending() && direction == Direction::Write;
        if waits_for_room && self.kind == Kind::Datagrams && self.readiness.asks_for_room() {
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

#[cfg(all(test, feature = "epoll", feature = "uring"))]
mod tests {
    use std::net::UdpSocket;

    use pollster::block_on;

    use super::*;
    use crate::engine::Engine;

    /// On both engines, a socket for datagrams that has room whenever it is asked.
    fn on_each_engine(test: impl Fn(&Pollers, &UdpSocket, &Watching)) {
        for engine in [Engine::Epoll, Engine::Uring] {
            let pollers = Pollers::options().engine(engine).count(1).start().expect("a poller");
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            let watched = socket.try_clone().expect("duplicated").into();
            let watching = Watching::begin(pollers.choose(), watched, Kind::Datagrams);
            test(&pollers, &socket, &block_on(watching).expect("watched"));
        }
    }

    /// Waits for room once, though there is some.
    fn wait_for_room(watching: &Watching) {
        let mut blocks = true;
        let call = poll_fn(|cx| {
            watching.poll_with(cx, Direction::Write, || match std::mem::take(&mut blocks) {
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(()),
            })
        });
        block_on(call).expect("room");
    }

    /// A datagram that leaves is room, too, though there was some before.
    fn send_some(pollers: &Pollers, socket: &UdpSocket) {
        for _ in 0..100 {
            socket.send_to(b"x", socket.local_addr().expect("bound")).expect("sent");
            pollers.settle();
        }
    }

    #[test]
    fn room_is_told_of_while_somebody_waits_for_it() {
        on_each_engine(|pollers, socket, watching| {
            for _ in 0..3 {
                wait_for_room(watching);
                let before = watching.told(Direction::Write);
                send_some(pollers, socket);
                let told = watching.told(Direction::Write) - before;
                assert!(told <= 2, "{told} times");
            }
        });
    }

    /// A socket with something in its error queue is always said to have room.
    #[test]
    fn who_is_told_of_room_and_finds_none_does_not_spin() {
        on_each_engine(|pollers, _, watching| {
            let mut calls = 0;
            for _ in 0..100 {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                let polled = watching.poll_with(&mut cx, Direction::Write, || -> io::Result<()> {
                    calls += 1;
                    Err(io::ErrorKind::WouldBlock.into())
                });
                assert!(polled.is_pending());
                pollers.settle();
            }
            assert!((2..4).contains(&calls), "{calls} calls");
        });
    }
}
