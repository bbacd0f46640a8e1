//! A server whose place another process takes: for a new version of a program, without a connection that is refused or reset.
//!
//! The old process sends its listening sockets over a Unix socket, and goes on; the new one serves them, too, says so, and the old
//! one then shuts down in peace. The sockets are the same ones, so what waits in their queues is accepted by whoever is there. If the new
//! process fails before it has confirmed, the old one has lost nothing, and serves on; what the new one had accepted by then ends with it.
//!
//! ```no_run
//! # use duopoll::{Builder, Listener, RunningServer, Server, Service};
//! use duopoll::restart;
//! use std::io::{self, ErrorKind};
//! use std::os::unix::net::{UnixListener, UnixStream};
//! use std::time::Duration;
//!
//! const PLACE: &str = "/run/program/next";
//!
//! # fn start(service: Service) -> io::Result<Server> {
//! // When the program starts: what runs already hands over.
//! let last = match UnixStream::connect(PLACE) {
//!     Ok(last) => Some(restart::take_over(last)?),
//!     Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => None,
//!     Err(error) => return Err(error),
//! };
//! let server = match last {
//!     Some(mut taken) => {
//!         let mut listeners = taken.listeners().into_iter();
//!         let server = service.serve(listeners.next().expect("the old one listened"))?;
//!         for listener in listeners {
//!             server.listen(listener)?;
//!         }
//!         // Last of all: from now on the old one goes.
//!         taken.confirm()?;
//!         server
//!     }
//!     None => service.serve(Listener::bind("0.0.0.0:8080")?)?,
//! };
//! # Ok(server) }
//!
//! # fn wait(server: &Server) -> io::Result<()> {
//! // On a thread of its own: waits for the next.
//! let _ = std::fs::remove_file(PLACE);
//! let place = UnixListener::bind(PLACE)?;
//! loop {
//!     let (next, _) = place.accept()?;
//!     // One that says nothing does not hold up the next.
//!     next.set_read_timeout(Some(Duration::from_secs(10)))?;
//!     next.set_write_timeout(Some(Duration::from_secs(10)))?;
//!     match restart::hand_over(&[server], &next) {
//!         Ok(()) => break,
//!         Err(error) => eprintln!("the next process has not taken over: {error}"),
//!     }
//! }
//! drop(place);
//! server.shutdown(Duration::from_secs(30));
//! # Ok(()) }
//! ```
//!
//! Whoever can connect to that socket can have the listeners: it belongs into a directory of the program's own user. The example `proxy`
//! does all of it, and what can go wrong beside: see its `handover.rs`.
//!
//! Under systemd a socket unit keeps the sockets instead, across any restart. They come as `LISTEN_FDS`, which the crate `listenfd`
//! takes; a [`Listener`] is made of each by `try_from`:
//!
//! ```text
//! let mut sockets = listenfd::ListenFd::from_env();
//! while let Some(fd) = sockets.take_raw_fd(index)? {
//!     // SAFETY: nobody else owns it.
//!     let listener = Listener::try_from(unsafe { OwnedFd::from_raw_fd(fd) })?;
//! }
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use duopoll_core::on_poller_thread;
use duopoll_core::syscalls::uninterrupted;
use pollster::block_on;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};
use socket2::SockRef;

use crate::address::Address;
use crate::listener::{Listener, Listening, SocketFile};
use crate::poller::deadlock;
use crate::server::RunningServer;

/// What a handover begins with.
const MAGIC: [u8; 8] = *b"duopoll1";
/// What a new process says when it serves.
const CONFIRMED: u8 = b'!';
/// What the old one says then, before it goes.
const GOES: u8 = b'.';
/// What it says to who has come too late, since another process serves.
const TAKEN: u8 = b'-';
/// Sockets in one message, at most; the kernel takes 253.
const BATCH: usize = 64;
/// No program listens at more.
const SOCKETS_MAX: usize = 1 << 16;

/// Sends the listening sockets of servers to another process, and waits until that serves them. The servers go on, until they are
/// shut down; their socket files, and who waits in their queues, are the other's then. Blocks, also for as long as the other takes:
/// `set_read_timeout` and `set_write_timeout` of the stream bound it.
///
/// # Errors
/// What the stream says: [`WouldBlock`](io::ErrorKind::WouldBlock) if the other was over time;
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it has ended, or did not confirm. Nothing has changed then.
/// [`NotConnected`](io::ErrorKind::NotConnected) if a server was shut down, or another process has its sockets. On a poller's thread `EDEADLK`.
pub fn hand_over(servers: &[&RunningServer], to: &UnixStream) -> io::Result<()> {
    if on_poller_thread() {
        return Err(deadlock());
    }
    let to = &Arc::new(to.try_clone()?);
    servers.iter().for_each(|server| server.add_rival(to));
    let mut sockets = Vec::new();
    for server in servers {
        sockets.extend(block_on(server.listening())?);
    }
    send(to, &sockets).map_err(gone)?;
    let mut answer = [0];
    (&**to).read_exact(&mut answer).map_err(gone)?;
    if answer != [CONFIRMED] {
        return Err(invalid("the other process has not said that it serves"));
    }
    let begun = servers.iter().take_while(|server| server.begin_handing_over()).count();
    let told = if begun < servers.len() {
        tell_rival(to);
        Err(taken())
    } else {
        (&**to).write_all(&[GOES]).map_err(gone)
    };
    if let Err(error) = told {
        servers[..begun].iter().for_each(|server| server.keep());
        return Err(error);
    }
    for rival in servers.iter().flat_map(|server| server.handed_over()) {
        let rival = rival.upgrade().filter(|rival| !Arc::ptr_eq(rival, to));
        rival.iter().for_each(|rival| tell_rival(rival));
    }
    Ok(())
}

/// Tells a process that wants listeners, and may not have confirmed yet, that another one has them. It reads that when it does, though
/// nobody is there any more by then.
fn tell_rival(rival: &UnixStream) {
    // It is gone, or has read nothing so far: then it has no room for it, and finds the end.
    let _ = rustix::net::send(rival, &[TAKEN], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

fn taken() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "another process has taken over")
}

/// That the other process has ended is one error, in whatever way it was noticed.
fn gone(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => {
            let text = "the other process has ended, or has not gone through with it";
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        }
        _ => error,
    }
}

/// Listeners of another process, which [hands them over](hand_over). Dropped without a [`confirm`](TakenOver::confirm), it keeps them.
#[derive(Debug)]
#[must_use = "the other process waits"]
pub struct TakenOver {
    stream: UnixStream,
    listeners: Vec<Listener>,
    confirmed: Arc<AtomicBool>,
    other: Predecessor,
}

/// Takes the listeners of another process. Blocks until they have come.
///
/// # Errors
/// What the stream says; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the other process has ended, or does not serve any more;
/// [`InvalidData`](io::ErrorKind::InvalidData) if what has come is no handover, `EMFILE` if there are too few descriptors for it.
pub fn take_over(from: UnixStream) -> io::Result<TakenOver> {
    let other = Predecessor::of(&from);
    let sockets = receive(&from).map_err(gone)?;
    let confirmed = Arc::new(AtomicBool::new(false));
    let mut places: Vec<(Address, Vec<OwnedFd>, bool)> = Vec::new();
    for (socket, has_file) in sockets {
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(invalid("a socket does not listen"));
        }
        let address = Address::from_sock_addr(&SockRef::from(&socket).local_addr()?)?;
        match places.iter_mut().find(|(known, ..)| *known == address) {
            Some((_, sockets, _)) => sockets.push(socket),
            None => places.push((address, vec![socket], has_file)),
        }
    }
    let listeners = places.into_iter().map(|(address, mut sockets, has_file)| {
        let file = match &address {
            Address::Unix(path) if has_file => SocketFile::inherited(path, confirmed.clone()).ok(),
            _ => None,
        };
        let first = sockets.remove(0);
        Listener::taken_over(first, sockets, file)
    });
    Ok(TakenOver { listeners: listeners.collect(), stream: from, confirmed, other })
}

impl TakenOver {
    /// The listeners, once: one for each address, with as many sockets as the other process had there.
    pub fn listeners(&mut self) -> Vec<Listener> {
        std::mem::take(&mut self.listeners)
    }

    /// Tells the other process that they are served here, and waits until it has heard that and goes. One that has ended by itself
    /// needs not be told. Blocks for as long as the other takes, unless `set_read_timeout` of the stream bounds it.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) if another process has taken over. Others: the other process serves on, or may, since
    /// this one has come too late, or the other does not answer in time. Then this one is to end: two would serve, and one of them could
    /// not be replaced.
    pub fn confirm(mut self) -> io::Result<()> {
        if let Err(error) = self.tell() {
            // Only if it has ended by itself: it may have ended since another process has taken over.
            if error.kind() == io::ErrorKind::NotConnected || !self.other.has_ended() {
                return Err(error);
            }
        }
        // Relaxed: it stands for itself.
        self.confirmed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn tell(&mut self) -> io::Result<()> {
        let confirmed = self.stream.write_all(&[CONFIRMED]);
        let mut answer = [0];
        // Also if nobody is there who could have been told.
        let answered = self.stream.read_exact(&mut answer);
        if answered.is_ok() && answer == [TAKEN] {
            return Err(taken());
        }
        confirmed.and(answered).map_err(gone)?;
        if answer == [GOES] {
            Ok(())
        } else {
            Err(invalid("the other process has not said that it goes"))
        }
    }
}

/// The process at the other end, as far as it can be known: not from another namespace.
#[derive(Debug)]
struct Predecessor(Option<(Pid, Option<OwnedFd>)>);

impl Predecessor {
    fn of(stream: &UnixStream) -> Predecessor {
        let pid = sockopt::socket_peercred(stream).ok().map(|peer| peer.pid);
        // An old kernel has none; then its number has to do.
        let pidfd = |pid| pidfd_open(pid, PidfdFlags::empty()).ok();
        Predecessor(pid.map(|pid| (pid, pidfd(pid))))
    }

    fn has_ended(&self) -> bool {
        match &self.0 {
            None => false,
            Some((_, Some(process))) => {
                let mut ended = [PollFd::new(process, PollFlags::IN)];
                poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
            }
            Some((pid, None)) => test_kill_process(*pid) == Err(Errno::SRCH),
        }
    }
}

fn send(mut to: &UnixStream, sockets: &[Listening]) -> io::Result<()> {
    let count = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
    let mut head = MAGIC.to_vec();
    head.extend(count.to_be_bytes());
    head.extend(sockets.iter().map(|(_, has_file)| u8::from(*has_file)));
    to.write_all(&head)?;
    for batch in sockets.chunks(BATCH) {
        let sockets: Vec<_> = batch.iter().map(|(socket, _)| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
        // Descriptors need a byte to go with.
        let byte = &[IoSlice::new(&[0])];
        uninterrupted(|| Ok(sendmsg(to, byte, &mut ancillary, SendFlags::NOSIGNAL)?))?;
    }
    Ok(())
}

fn receive(mut from: &UnixStream) -> io::Result<Vec<Listening>> {
    let mut head = [0; MAGIC.len() + size_of::<u32>()];
    from.read_exact(&mut head)?;
    let (magic, count) = head.split_at(MAGIC.len());
    let count = count.iter().fold(0, |count, byte| count << 8 | usize::from(*byte));
    if magic != MAGIC || count > SOCKETS_MAX {
        return Err(invalid("this is no handover of listeners"));
    }
    let mut have_files = vec![0; count];
    from.read_exact(&mut have_files)?;
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let vectors = &mut [IoSliceMut::new(&mut byte)];
        let message =
            uninterrupted(|| Ok(recvmsg(from, vectors, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?))?;
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            // Those that have come are closed; nobody knows which these are.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let before = sockets.len();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                sockets.extend(received);
            }
        }
        if sockets.len() == before {
            return Err(invalid("sockets are missing: too many descriptors are open?"));
        }
    }
    let have_files = have_files.into_iter().map(|has_file| has_file != 0);
    Ok(sockets.into_iter().zip(have_files).collect())
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
