//! A server whose place another process takes: for a new version of a program, without a connection that is refused or reset.
//!
//! The old process sends its listening sockets over a Unix socket, and goes on; the new one serves them, too, says so, and the old
//! one then shuts down in peace. The sockets are the same ones, so what waits in their queues is accepted by whoever is there. If the new
//! process fails before it has confirmed, nothing has happened.
//!
//! ```no_run
//! # use duopoll::{Builder, Server};
//! use duopoll::restart;
//! use std::os::unix::net::{UnixListener, UnixStream};
//! use std::time::Duration;
//!
//! // The old one, when it is asked to, on a thread of its own:
//! # fn old(server: &Server) -> std::io::Result<()> {
//! let (stream, _) = UnixListener::bind("/run/program.handover")?.accept()?;
//! restart::hand_over(server, &stream)?;
//! server.shutdown(Duration::from_secs(30));
//! # Ok(()) }
//!
//! // The new one:
//! # fn new(service: duopoll::Service) -> std::io::Result<()> {
//! let mut taken = restart::take_over(UnixStream::connect("/run/program.handover")?)?;
//! let mut listeners = taken.listeners().into_iter();
//! let server = service.serve(listeners.next().expect("the old one listened"))?;
//! for listener in listeners {
//!     server.listen(listener)?;
//! }
//! taken.confirm()?;
//! # Ok(()) }
//! ```
//!
//! Whoever can connect to that socket can have the listeners: it belongs into a directory of the program's own user.
//!
//! Under systemd a socket unit keeps the sockets instead, across any restart. They come as `LISTEN_FDS`, which the crate `listenfd`
//! gives as listeners of the standard library, of which a [`Listener`] is made by `from`.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use duopoll_core::on_poller_thread;
use pollster::block_on;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use socket2::SockRef;

use crate::address::Address;
use crate::listener::{Listener, Listening, SocketFile};
use crate::poller::deadlock;
use crate::server::RunningServer;

/// What a handover begins with.
const MAGIC: [u8; 8] = *b"duopoll1";
/// What a new process says when it serves.
const CONFIRMED: u8 = b'!';
/// Sockets in one message, at most; the kernel takes 253.
const BATCH: usize = 64;
/// No program listens at more.
const SOCKETS_MAX: usize = 1 << 16;

/// Sends the listening sockets of a server to another process, and waits until that serves them. The server goes on, until it is shut
/// down; its socket files are the other's then. Blocks, also for as long as the other takes: `set_read_timeout` and
/// `set_write_timeout` of the stream bound it.
///
/// # Errors
/// What the stream says; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the other process has ended, or did not confirm. Nothing has
/// changed then. On a poller's thread `EDEADLK`.
pub fn hand_over(server: &RunningServer, to: &UnixStream) -> io::Result<()> {
    if on_poller_thread() {
        return Err(deadlock());
    }
    let sockets = block_on(server.listening())?;
    send(to, &sockets)?;
    let mut answer = [0];
    (&*to).read_exact(&mut answer)?;
    if answer != [CONFIRMED] {
        return Err(invalid("the other process has not said that it serves"));
    }
    server.give_files_up();
    Ok(())
}

/// Listeners of another process, which [hands them over](hand_over). Dropped without a [`confirm`](TakenOver::confirm), it keeps them.
#[derive(Debug)]
#[must_use = "the other process waits"]
pub struct TakenOver {
    stream: UnixStream,
    listeners: Vec<Listener>,
    confirmed: Arc<AtomicBool>,
}

/// Takes the listeners of another process. Blocks until they have come.
///
/// # Errors
/// What the stream says; [`InvalidData`](io::ErrorKind::InvalidData) if what has come is no handover.
pub fn take_over(from: UnixStream) -> io::Result<TakenOver> {
    let sockets = receive(&from)?;
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
    Ok(TakenOver { listeners: listeners.collect(), stream: from, confirmed })
}

impl TakenOver {
    /// The listeners, once: one for each address, with as many sockets as the other process had there.
    pub fn listeners(&mut self) -> Vec<Listener> {
        std::mem::take(&mut self.listeners)
    }

    /// Tells the other process that they are served here, so that it may end.
    ///
    /// # Errors
    /// What the stream says; the other process may have ended.
    pub fn confirm(mut self) -> io::Result<()> {
        self.stream.write_all(&[CONFIRMED])?;
        // Relaxed: it stands for itself.
        self.confirmed.store(true, Ordering::Relaxed);
        Ok(())
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
        sendmsg(to, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
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
        let message = recvmsg(from, vectors, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
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
