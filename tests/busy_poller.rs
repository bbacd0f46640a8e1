//! What comes while a poller is busy, and is there all at once: messages that a read stops at, and crowds that leave.

mod support;

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use duopoll::{Address, Connection, Server};
use socket2::SockRef;
use support::peers::sock_addr;
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, eventually, raise_descriptor_limit, scaled};

on_every_setup!(what_lies_behind_a_short_read_is_read, ten_thousand_may_hang_up_at_once,);

/// A server whose poller can be held up, so that what happens meanwhile is there all at once.
struct Held {
    server: Server,
    peer: Peer,
    /// The poller is held.
    entered: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

/// Says that it is there, and waits until it may pass.
fn wait_at(gate: &Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>) {
    let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = gate.0.send(());
    let _ = gate.1.recv_timeout(PATIENCE);
}

const HOLD: u8 = b'!';
/// What is sent back at once, in bytes.
const MESSAGE_BYTES: usize = 6;

impl Held {
    fn start(setup: Setup) -> Held {
        let (enter, entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let gate = Mutex::new((enter, released));
        let server = setup.serve(async move |connection: &mut Connection| {
            if connection.peek(1).await?[0] == HOLD {
                wait_at(&gate);
                return support::echo(connection).await;
            }
            // Nothing is sent before all is there, since sending would have the socket looked at again.
            let message = connection.next(MESSAGE_BYTES).await?;
            connection.push(message);
            connection.flush().await
        });
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"before"), b"before");
        Held { server, peer, entered, release }
    }

    fn hold(&mut self) {
        self.peer.write_all(&[HOLD]).expect("sent");
        self.entered.recv_timeout(PATIENCE).expect("held");
    }

    fn release(&mut self) {
        self.release.send(()).expect("held");
        let mut reply = [0];
        self.peer.read_exact(&mut reply).expect("a reply");
    }
}

fn what_lies_behind_a_short_read_is_read(setup: Setup) {
    let mut held = Held::start(setup);
    let mut peer = Peer::connect(held.server.local_addr());
    peer.set_timeout(PATIENCE / 6);
    assert_eq!(peer.round_trip(b"before"), b"before");
    for round in 0..3 {
        held.hold();
        // A read stops at an urgent byte, and behind a message that carries descriptors.
        match setup.family {
            Family::Unix => {
                let (mut reader, writer) = UnixStream::pair().expect("a pair");
                send_with_descriptor(&peer, b"abc", writer.as_raw_fd());
                drop(writer);
                peer.write_all(b"def").expect("sent");
                held.release();
                // It was sent to somebody who did not ask for it, and is closed.
                assert_eq!(reader.read(&mut [0]).expect("the end"), 0);
            }
            Family::V4 | Family::V6 => {
                peer.write_all(b"abc").expect("sent");
                SockRef::from(tcp(&peer)).send_out_of_band(b"!").expect("sent");
                peer.write_all(b"def").expect("sent");
                held.release();
            }
        }
        let mut reply = [0; MESSAGE_BYTES];
        peer.read_exact(&mut reply).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(&reply, b"abcdef");
    }
}

fn tcp(peer: &Peer) -> &std::net::TcpStream {
    match peer {
        Peer::Tcp(stream) => stream,
        Peer::Unix(_) => panic!("a Unix socket"),
    }
}

fn send_with_descriptor(peer: &Peer, bytes: &[u8], descriptor: RawFd) {
    let Peer::Unix(stream) = peer else { panic!("no Unix socket") };
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0u64; 4];
    // SAFETY: the vector and the control buffer outlive the call, and the buffer is aligned and large enough for one
    // message with one descriptor.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
        libc::sendmsg(stream.as_raw_fd(), &raw const message, 0)
    };
    assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
}

/// As many as there can be descriptors for.
const CROWD: usize = 10_000;

fn ten_thousand_may_hang_up_at_once(setup: Setup) {
    let _alone = crowds();
    let mut held = Held::start(setup);
    let size = scaled(CROWD).min(raise_descriptor_limit() - 1000);
    let crowd = Crowd::gather(held.server.local_addr(), size);
    eventually("all are there", || held.server.settled().connections == 1 + size as u64);
    held.hold();
    crowd.leave();
    held.release();
    eventually("all are gone", || held.server.settled().closed == size as u64);
    let mut peer = Peer::connect(held.server.local_addr());
    assert_eq!(peer.round_trip(b"served"), b"served");
    drop((held.peer, peer));
    assert_eq!(held.server.shutdown(PATIENCE), 0);
}

/// One crowd at a time, since a process has so many descriptors only.
fn crowds() -> MutexGuard<'static, ()> {
    static CROWDS: Mutex<()> = Mutex::new(());
    CROWDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Many connections of one other process, which end with it.
struct Crowd(libc::pid_t);

impl Crowd {
    fn gather(address: &Address, size: usize) -> Crowd {
        let address = sock_addr(address);
        let (mut ready, writer) = UnixStream::pair().expect("a pair");
        let (tell, domain) = (writer.as_raw_fd(), libc::c_int::from(address.family()));
        // SAFETY: what the child does between fork and its end are system calls on memory of its own stack, which are
        // allowed there.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                // What it has of its parent's would keep that open.
                libc::dup2(tell, 3);
                libc::syscall(libc::SYS_close_range, 4, u32::MAX, 0);
                for index in 0..size {
                    let socket = libc::socket(domain, libc::SOCK_STREAM, 0);
                    // Every other one leaves with a reset.
                    let linger = libc::linger { l_onoff: index as i32 % 2, l_linger: 0 };
                    let len = size_of::<libc::linger>() as libc::socklen_t;
                    let value = (&raw const linger).cast();
                    libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, value, len);
                    if libc::connect(socket, address.as_ptr().cast(), address.len()) != 0 {
                        libc::_exit(1);
                    }
                }
                libc::write(3, b"x".as_ptr().cast(), 1);
                libc::pause();
                libc::_exit(0);
            }
            child
        };
        assert!(child > 0, "{}", io::Error::last_os_error());
        let crowd = Crowd(child);
        drop(writer);
        ready.read_exact(&mut [0]).expect("all have connected");
        crowd
    }

    fn leave(self) {
        drop(self);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // SAFETY: the child is ours, and has not been waited for. Its sockets are closed when the wait is over.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}
