//! What the outside can do to a process: signals, crowds that leave at once, peers with unusual messages, and code that
//! closes descriptors which are not its own.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Connection, Dialer, Engine, Pollers, Server};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use support::{Family, PATIENCE, Pattern, Peer, Setup, eventually, raise_descriptor_limit, scaled};

on_every_setup!(
    signals_interrupt_nothing,
    what_lies_behind_a_short_read_is_read,
    ten_thousand_may_hang_up_at_once,
    a_shutdown_while_clients_come_leaves_none_waiting,
    a_shutdown_ends_a_dial_that_is_under_way,
    a_connection_whose_descriptor_is_replaced_ends_with_an_error,
    an_idle_connection_whose_descriptor_is_replaced_does_not_hold_up_a_shutdown,
    a_listener_whose_descriptor_is_replaced_harms_nobody,
);

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

fn signals_interrupt_nothing(setup: Setup) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing. Without SA_RESTART, so that calls are interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let server = setup.serve_echo();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                signal_pollers();
            }
        });
        scope.spawn(|| {
            let mut peer = Peer::connect(server.local_addr());
            let mut pattern = Pattern::new(3);
            for round in 0..300 {
                let message = pattern.next(1 + round * 100);
                assert!(peer.round_trip(message) == message, "another reply than was sent");
            }
            over.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// Sends a signal to every poller's thread of this process.
fn signal_pollers() {
    for task in fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let thread = task.file_name().to_string_lossy().parse::<i32>().expect("a number");
        if name.starts_with("duopoll-") {
            // SAFETY: takes no memory. The thread may be gone by now.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
        }
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
    eventually("all are there", || held.server.stats().connections == 1 + size as u64);
    held.hold();
    crowd.leave();
    held.release();
    eventually("all are gone", || held.server.stats().closed == size as u64);
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
        let address = raw(address);
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

fn a_shutdown_while_clients_come_leaves_none_waiting(setup: Setup) {
    for round in 0..5 {
        let server = setup.serve_echo();
        let address = server.local_addr().clone();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(mut peer) = connect(&address) {
                        // Whoever was not accepted is told by a reset, or by the end.
                        let mut reply = [0];
                        let sent = peer.write_all(b"x").and_then(|()| peer.read(&mut reply));
                        match sent {
                            Ok(1) => assert_eq!(&reply, b"x"),
                            Ok(_) => {}
                            Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "waits"),
                        }
                    }
                });
            }
            eventually("many have come", || server.stats().requests >= 20 * (round + 1));
            assert_eq!(server.shutdown(PATIENCE), 0);
            let stats = server.stats();
            assert_eq!((stats.connections, stats.accepts), (stats.closed, stats.connections));
        });
    }
}

fn connect(address: &Address) -> io::Result<Peer> {
    use std::os::linux::net::SocketAddrExt;
    let peer = match address {
        Address::Tcp(address) => Peer::Tcp(std::net::TcpStream::connect(address)?),
        Address::Abstract(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            Peer::Unix(UnixStream::connect_addr(&address)?)
        }
        other => panic!("{other} is no address to connect to"),
    };
    peer.set_timeout(PATIENCE / 6);
    Ok(peer)
}

fn a_shutdown_ends_a_dial_that_is_under_way(setup: Setup) {
    // A listener whose backlog is full answers nobody, or makes a Unix socket wait.
    let full = setup.listener();
    let address = full.local_addr().expect("bound");
    SockRef::from(&full).listen(0).expect("listening");
    let _waiting = fill(&address);

    let dialers = Pollers::options().engine(setup.engine).count(1).start().expect("pollers");
    let dialer = Dialer::new().pollers(dialers.clone());
    let (said, dials) = mpsc::channel();
    let said = Mutex::new(said);
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        let _ = said.lock().expect("no panic").send(());
        let dialed = dialer.dial_addr(address.clone()).await;
        panic!("nobody accepts: {dialed:?}");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    dials.recv_timeout(PATIENCE).expect("a dial");
    if setup.family != Family::Unix {
        eventually("the dial is under way", || dialers.stats().connections == 1);
    }
    let start = Instant::now();
    assert_eq!(server.shutdown(Duration::ZERO), 1, "the one that dials");
    assert!(start.elapsed() < PATIENCE / 6, "held up for {:?}", start.elapsed());
    drop(server);
    eventually("the dial is over", || dialers.stats().closed == dialers.stats().connections);
    let end = peer.read_rest();
    assert!(end.is_err() || end.is_ok_and(|rest| rest.is_empty()));
}

fn raw(address: &Address) -> SockAddr {
    match address {
        Address::Tcp(address) => SockAddr::from(*address),
        Address::Abstract(name) => {
            let path = [b"\0", &name[..]].concat();
            SockAddr::unix(OsStr::from_bytes(&path)).expect("a name")
        }
        other => panic!("{other} is no address to connect to"),
    }
}

/// Connects until a connect has to wait.
fn fill(address: &Address) -> Vec<Socket> {
    let remote = raw(address);
    let domain = Domain::from(i32::from(remote.family()));
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
        let result = socket.connect_timeout(&remote, Duration::from_millis(100));
        sockets.push(socket);
        if result.is_err() {
            return sockets;
        }
    }
    panic!("the backlog is never full");
}

/// What somebody else does who closes a descriptor that is not his, before another file gets its number.
fn replace(descriptor: RawFd) {
    let other = File::open("/dev/null").expect("a file");
    // SAFETY: takes no memory. The number stays taken, so that whoever owns it closes a file of this test.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), descriptor) }, descriptor);
}

/// How long it takes until the kernel has given back what it holds of a socket that nobody can shut down.
const GUARDED: Duration = Duration::from_secs(8);

fn a_connection_whose_descriptor_is_replaced_ends_with_an_error(setup: Setup) {
    let (said, error) = mpsc::channel();
    let said = Mutex::new(said);
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'!' {
            replace(connection.as_fd().as_raw_fd());
            let result = support::echo(connection).await.and(connection.drain().await);
            let _ = said.lock().expect("no panic").send(result);
            // It waits for more, and is told.
            connection.next(2).await?;
        }
        support::echo(connection).await
    });
    let mut other = Peer::connect(server.local_addr());
    let mut peer = Peer::connect(server.local_addr());
    let start = Instant::now();
    peer.write_all(b"!").expect("sent");
    let error = error.recv_timeout(PATIENCE).expect("told").expect_err("it cannot be sent");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK), "{error}");
    assert_eq!(peer.read_rest().expect("the end"), b"");
    eventually("the connection is over", || server.stats().closed == 1);
    assert!(start.elapsed() < GUARDED, "over after {:?}", start.elapsed());
    assert_eq!(other.round_trip(b"x"), b"x");
}

fn an_idle_connection_whose_descriptor_is_replaced_does_not_hold_up_a_shutdown(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        support::echo(connection).await?;
        connection.drain().await?;
        replace(connection.as_fd().as_raw_fd());
        Ok(())
    });
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    eventually("the request is over", || server.stats().requests == 1);
    let start = Instant::now();
    thread::scope(|scope| {
        // Wakes the poller once, in the middle, which must not make it wait longer.
        let (end, ended) = mpsc::channel::<()>();
        let server = &server;
        scope.spawn(move || ended.recv_timeout(GUARDED / 2).is_err().then(|| server.stats()));
        assert_eq!(server.shutdown(PATIENCE), 0);
        drop(end);
    });
    assert!(start.elapsed() < GUARDED, "held up for {:?}", start.elapsed());
    assert_eq!(peer.read_rest().expect("the end"), b"");
}

fn a_listener_whose_descriptor_is_replaced_harms_nobody(setup: Setup) {
    let listener = setup.listener();
    let descriptor = listener.as_fd().as_raw_fd();
    let server = setup.builder().on_request(support::echo).serve(listener).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    replace(descriptor);
    // io_uring may have an accept under way, which holds the listener.
    let last = connect(server.local_addr()).and_then(|mut last| {
        last.write_all(b"y")?;
        last.read(&mut [0])
    });
    assert!(setup.engine == Engine::Uring || last.is_err(), "nobody listens");
    let waits = server.stats().waits;
    // Not to wait for something: how often the poller looks meanwhile is the test.
    thread::sleep(Duration::from_millis(200));
    let waits = server.stats().waits - waits;
    assert!(waits < 100, "{waits} waits for nothing");
    assert_eq!(peer.round_trip(b"z"), b"z");
    assert_eq!(server.shutdown(PATIENCE), 0);
}
