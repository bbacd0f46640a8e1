//! What the kernel refuses is a clear error, and leaves no descriptor behind.
//!
//! The tests run one after the other, since they count the descriptors of the process and lower its limit.

mod support;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, mpsc};
use std::thread;

use duopoll::{Address, Connection, Dialer, Limits, Listener, Pollers};
use pollster::block_on;
use support::alone::alone;
use support::sandbox::without;
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, connected, eventually, open_descriptors};

on_every_setup!(
    every_step_of_a_dial_may_be_refused,
    every_step_of_binding_may_be_refused,
    every_step_of_taking_over_may_be_refused,
    a_refused_first_accept_can_be_repeated,
    a_detach_without_a_descriptor_closes_the_connection,
    without_descriptors_everything_is_a_clear_error,
    without_accept4_connections_are_accepted_all_the_same,
    who_waits_at_a_shutdown_without_descriptors_is_served,
);

fn pollers(setup: Setup) -> Pollers {
    setup.pollers(1)
}

/// What the machine may be short of.
const SHORTAGES: [i32; 4] = [libc::ENOMEM, libc::ENOBUFS, libc::EMFILE, libc::ENFILE];

/// Refuses each of the calls in turn: it must fail with the errno, and leave nothing behind.
fn sweep<T>(calls: &[libc::c_long], attempt: impl Fn() -> io::Result<T> + Sync) {
    let descriptors = open_descriptors();
    for &call in calls {
        for errno in SHORTAGES {
            let error = without(call, errno, || attempt().err());
            let error = error.unwrap_or_else(|| panic!("without call {call} nothing has failed"));
            assert_eq!(support::errno(&error), Some(errno), "call {call}: {error}");
            eventually("nothing is left", || open_descriptors() == descriptors);
        }
    }
}

fn every_step_of_a_dial_may_be_refused(setup: Setup) {
    let _alone = alone();
    let listener = setup.listener();
    let address = listener.local_addr().expect("bound");
    let dialer = Dialer::new().pollers(pollers(setup));
    let dial = || block_on(dialer.dial_addr(address.clone()));
    let descriptors = open_descriptors();
    drop(dial().expect("connected"));
    eventually("it is over", || open_descriptors() == descriptors);
    sweep(&[libc::SYS_socket, libc::SYS_connect], dial);
    let local = match setup.family {
        Family::V4 => "127.0.0.1:0",
        Family::V6 => "[::1]:0",
        Family::Unix => "unix:@duopoll-refused",
    };
    let from_here = dialer.clone().local_addr(local).expect("an address");
    sweep(&[libc::SYS_bind], || block_on(from_here.dial_addr(address.clone())));
    if setup.family != Family::Unix {
        sweep(&[libc::SYS_setsockopt], dial);
    }
    // It was not the dialer's fault.
    dial().expect("connected");
}

fn every_step_of_binding_may_be_refused(setup: Setup) {
    let _alone = alone();
    let path = std::env::temp_dir().join(format!("duopoll-refused-{}.sock", std::process::id()));
    let address = match setup.family {
        Family::V4 => "127.0.0.1:0".parse().expect("an address"),
        Family::V6 => "[::1]:0".parse().expect("an address"),
        Family::Unix => Address::Unix(path.clone()),
    };
    let bind = || Listener::bind(&address);
    sweep(&[libc::SYS_socket, libc::SYS_bind, libc::SYS_listen], bind);
    if setup.family != Family::Unix {
        sweep(&[libc::SYS_setsockopt], bind);
    }
    assert!(!path.exists(), "a socket file is left");
    drop(bind().expect("bound"));
}

fn every_step_of_taking_over_may_be_refused(setup: Setup) {
    let _alone = alone();
    let listener = setup.listener();
    let address = listener.local_addr().expect("bound");
    let pollers = pollers(setup);
    // Its type, its peer, and its mode.
    let calls = [libc::SYS_getsockopt, libc::SYS_getpeername, libc::SYS_fcntl];
    sweep(&calls, || match Peer::connect(&address) {
        Peer::Tcp(stream) => block_on(pollers.adopt(stream)),
        Peer::Unix(stream) => block_on(pollers.adopt(stream)),
    });
}

fn a_refused_first_accept_can_be_repeated(setup: Setup) {
    let _alone = alone();
    let listener = setup.listener().pollers(pollers(setup));
    sweep(&[libc::SYS_fcntl], || block_on(listener.accept()));
    let mut peer = Peer::connect(&listener.local_addr().expect("bound"));
    let mut connection = block_on(listener.accept()).expect("accepted");
    peer.write_all(b"x").expect("sent");
    assert_eq!(block_on(connection.next(1)).expect("received"), b"x");
}

fn a_detach_without_a_descriptor_closes_the_connection(setup: Setup) {
    let _alone = alone();
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.write(b"flushed before").expect("staged");
    let error = without(libc::SYS_fcntl, libc::EMFILE, || {
        block_on(async {
            connection.flush().await?;
            connection.detach().await
        })
    });
    assert_eq!(error.expect_err("refused").raw_os_error(), Some(libc::EMFILE));
    assert_eq!(peer.read_rest().expect("the end"), b"flushed before");
    drop(peer);
    eventually("it is over", || pollers.settled().closed == 1);
}

/// No descriptor is left for this process, until this is dropped.
struct Exhausted {
    before: libc::rlimit,
    files: Vec<File>,
}

impl Exhausted {
    fn new() -> Exhausted {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit(2) writes to the structure.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) }, 0);
        set(libc::rlimit { rlim_cur: before.rlim_cur.min(500), ..before });
        let mut exhausted = Exhausted { before, files: Vec::new() };
        exhausted.fill();
        exhausted
    }

    fn fill(&mut self) {
        self.files.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        set(self.before);
    }
}

fn set(limit: libc::rlimit) {
    // SAFETY: setrlimit(2) reads the structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn must_be_exhausted<T>(what: &str, result: io::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} needs no descriptor"));
    let text = error.to_string();
    let expected = io::Error::from_raw_os_error(libc::EMFILE).to_string();
    assert!(text.contains(&expected), "{what}: {text}");
}

fn without_descriptors_everything_is_a_clear_error(setup: Setup) {
    let _alone = alone();
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let server = setup.serve_echo();
    let listener = setup.listener().pollers(pollers.clone());
    let dialer = Dialer::new().pollers(pollers.clone());
    let descriptors = open_descriptors();
    let exhausted = Exhausted::new();
    must_be_exhausted("binding", Listener::bind(listener.local_addr().expect("bound")));
    must_be_exhausted("dialing", block_on(dialer.dial_addr(server.local_addr().clone())));
    must_be_exhausted("the first accept", block_on(listener.accept()));
    must_be_exhausted(
        "a poller",
        Pollers::options().engine(setup.engine).count(1).start().map(drop),
    );
    must_be_exhausted("growing", pollers.grow(1));
    assert_eq!(pollers.count(), 1);
    // What is open goes on.
    peer.write_all(b"x").expect("sent");
    assert_eq!(block_on(connection.next(1)).expect("received"), b"x");
    drop(exhausted);
    assert_eq!(open_descriptors(), descriptors);
    let mut dialed = block_on(dialer.dial_addr(server.local_addr().clone())).expect("connected");
    dialed.write(b"y").expect("staged");
    block_on(dialed.flush()).expect("flushed");
    assert_eq!(block_on(dialed.next(1)).expect("echoed"), b"y");
}

/// Close-on-exec and non-blocking, both.
fn flags_of(socket: BorrowedFd<'_>) -> (bool, bool) {
    // SAFETY: fcntl(2) takes no memory for these.
    let [descriptor, status] = [libc::F_GETFD, libc::F_GETFL]
        .map(|command| unsafe { libc::fcntl(socket.as_raw_fd(), command) });
    (descriptor & libc::FD_CLOEXEC != 0, status & libc::O_NONBLOCK != 0)
}

/// The last few are accepted at the shutdown, from the backlog.
fn without_accept4_connections_are_accepted_all_the_same(setup: Setup) {
    let _alone = alone();
    let (hold, held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (tell, told) = mpsc::channel();
    let service = setup
        .builder()
        .on_prepare(move |socket| {
            tell.send(flags_of(socket)).expect("the test waits");
            Ok(())
        })
        .on_request(async move |connection: &mut Connection| {
            if connection.peek(1).await?[0] == b'!' {
                hold.send(()).expect("the test waits");
                let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
            }
            support::echo(connection).await
        });
    let listener = setup.listener();
    // Its poller is a thread of the thread that lacks the call.
    let server = without(libc::SYS_accept4, libc::ENOSYS, || service.serve(listener));
    let server = server.expect("a server");
    let mut peers: Vec<_> = (0..5).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"hello"), b"hello");
    }
    peers[0].write_all(b"!").expect("sent");
    held.recv_timeout(PATIENCE).expect("the poller is held");
    let mut late: Vec<_> = (0..5).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut late {
        peer.write_all(b"late").expect("sent");
    }
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        release.send(()).expect("held");
        for peer in late {
            let mut peer = peer;
            assert_eq!(peer.read_rest().expect("an answer"), b"late");
        }
        drop(peers);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(true, true); 10]);
}

fn who_waits_at_a_shutdown_without_descriptors_is_served(setup: Setup) {
    let _alone = alone();
    let server = setup.serve_echo();
    let address = server.local_addr().clone();
    // Its descriptor is there before there are none.
    let mut peers: Vec<_> = (0..6).map(|_| Unconnected::new(&address)).collect();
    let mut exhausted = Exhausted::new();
    for peer in &mut peers {
        // Other threads may still close what earlier tests had.
        exhausted.fill();
        peer.connect(&address);
    }
    eventually("accepting is put off, or they are served", || {
        let stats = server.settled();
        stats.accept_backoffs > 0 || stats.requests == 6
    });
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        thread::sleep(std::time::Duration::from_millis(50));
        drop(exhausted);
        for peer in peers {
            assert_eq!(peer.reply(), b"hello");
        }
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

/// A socket that is not connected yet.
struct Unconnected(socket2::Socket);

impl Unconnected {
    fn new(address: &Address) -> Unconnected {
        let domain = support::peers::sock_addr(address).domain();
        Unconnected(socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket"))
    }

    /// Connects, and sends a request.
    fn connect(&mut self, address: &Address) {
        self.0.connect(&support::peers::sock_addr(address)).expect("there is room in the backlog");
        self.0.write_all(b"hello").expect("sent");
    }

    fn reply(mut self) -> Vec<u8> {
        self.0.set_read_timeout(Some(PATIENCE)).expect("an option");
        self.0.shutdown(std::net::Shutdown::Write).expect("connected");
        let mut reply = Vec::new();
        io::Read::read_to_end(&mut self.0, &mut reply).expect("a reply, and the end");
        reply
    }
}
