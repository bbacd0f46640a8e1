//! Sockets as files, options of theirs that must hold up nobody, and what cannot be resolved.

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use duopoll::{Address, Connection, Dialer, Engine, EventLoop, Limits, Listener, Pollers};
use pollster::block_on;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use support::settled::Settled;
use support::{Family, Peer, Setup, connected, eventually, scaled};

on_every_setup!(a_socket_that_lingers_holds_up_nobody, listeners_of_std_have_the_same_options);

/// A directory of a test's own, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("duopoll-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Directory(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn address(&self, name: &str) -> Address {
        Address::Unix(self.path(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("a directory");
    }
}

#[test]
fn only_the_file_that_was_made_is_removed() {
    let directory = Directory::new();
    let address = directory.address("socket");
    let listener = Listener::bind(&address).expect("bound");
    drop(listener);
    assert!(!directory.path("socket").exists());

    let listener = Listener::bind(&address).expect("bound");
    fs::remove_file(directory.path("socket")).expect("it is there");
    // Somebody else's: another socket, and then a file.
    let other = UnixListener::bind(directory.path("socket")).expect("bound");
    drop(listener);
    assert!(directory.path("socket").exists(), "somebody else listens there");
    drop(other);

    fs::remove_file(directory.path("socket")).expect("it is there");
    let listener = Listener::bind(&address).expect("bound");
    fs::remove_file(directory.path("socket")).expect("it is there");
    fs::write(directory.path("socket"), b"precious").expect("a file");
    drop(listener);
    assert_eq!(fs::read(directory.path("socket")).expect("a file"), b"precious");
}

#[test]
fn what_is_no_path_is_an_error() {
    let directory = Directory::new();
    for path in [PathBuf::new(), directory.path("a\0b")] {
        let error = Listener::bind(Address::Unix(path)).expect_err("no path");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(fs::read_dir(&directory.0).expect("a directory").count(), 0);
}

#[test]
fn a_stale_file_is_taken_over_if_it_is_asked_for() {
    let directory = Directory::new();
    let address = directory.address("socket");
    // As a server leaves it that was killed.
    drop(UnixListener::bind(directory.path("socket")).expect("bound"));
    let error = Listener::bind(&address).expect_err("there is a file");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("take_over_stale"), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    let options = Listener::options().take_over_stale(true);
    let listener = options.bind(&address).expect("taken over");
    // Not from somebody who listens.
    let error = options.bind(&address).expect_err("somebody listens");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    drop(listener);
    // Nor what is no socket.
    fs::write(directory.path("socket"), b"precious").expect("a file");
    options.bind(&address).expect_err("a file");
    assert_eq!(fs::read(directory.path("socket")).expect("a file"), b"precious");
}

/// A rolling restart: the old server has stopped listening, and is dropped when the new one listens at the path.
#[test]
fn a_server_that_was_shut_down_leaves_its_successors_file() {
    let directory = Directory::new();
    let address = directory.address("socket");
    let options = Listener::options().take_over_stale(true);
    let serve = || {
        let service = EventLoop::builder().pollers(1).on_request(support::echo);
        service.serve(options.bind(&address).expect("bound")).expect("a server")
    };
    let mut old = serve();
    for _ in 0..20 {
        assert_eq!(old.shutdown(Duration::ZERO), 0);
        let new = serve();
        drop(old);
        assert_eq!(Peer::connect(&address).round_trip(b"x"), b"x");
        old = new;
    }
    drop(old);
    assert!(!directory.path("socket").exists());
}

#[test]
fn of_those_who_take_a_file_over_one_has_it() {
    let directory = Directory::new();
    let address = directory.address("socket");
    let options = Listener::options().take_over_stale(true);
    for _ in 0..scaled(500) {
        drop(UnixListener::bind(directory.path("socket")).expect("bound"));
        let meeting = Barrier::new(3);
        let bound: Vec<_> = thread::scope(|scope| {
            let bind = || {
                meeting.wait();
                options.bind(&address)
            };
            let threads = [0; 3].map(|_| scope.spawn(bind));
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        for error in bound.iter().filter_map(|bound| bound.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
        }
    }
}

#[test]
fn a_listener_without_room_is_not_waited_for() {
    let directory = Directory::new();
    let address = directory.address("socket");
    let full = Listener::options().backlog(1).bind(&address).expect("bound");
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).expect("a socket");
        let to = SockAddr::unix(directory.path("socket")).expect("a path");
        match socket.connect(&to) {
            Ok(()) => waiting.push(socket),
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    let error = Listener::options().take_over_stale(true).bind(&address).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    drop(full);
}

#[test]
fn a_mode_says_who_may_connect() {
    let directory = Directory::new();
    let options = Listener::options().mode(0o620);
    let listener = options.bind(directory.address("socket")).expect("bound");
    let metadata = fs::metadata(directory.path("socket")).expect("a file");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o620);
    drop(listener);
    for (address, options) in [
        ("127.0.0.1:0", Listener::options().mode(0o600)),
        ("unix:@duopoll-no-file", Listener::options().take_over_stale(true)),
    ] {
        let error = options.bind(address).expect_err("no file");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn a_local_path_goes_with_its_connection() {
    let directory = Directory::new();
    let server = UnixListener::bind(directory.path("server")).expect("bound");
    for engine in [Engine::Epoll, Engine::Uring] {
        let pollers = Pollers::options().engine(engine).count(1).start().expect("a poller");
        let dialer = Dialer::new().pollers(pollers);
        let dialer = dialer.local_addr(directory.address("client")).expect("an address");
        for _ in 0..3 {
            let dialed = block_on(dialer.dial_addr(directory.address("server")));
            let connection = dialed.expect("connected");
            assert!(directory.path("client").exists());
            drop((connection, server.accept().expect("accepted")));
            eventually("its file is gone", || !directory.path("client").exists());
        }
        block_on(dialer.dial_addr(directory.address("nobody"))).expect_err("nobody listens");
        assert!(!directory.path("client").exists());
    }
}

/// The kernel has taken all of it, the peer reads nothing and does not close: after a second the socket is closed.
fn a_socket_that_lingers_holds_up_nobody(setup: Setup) {
    if setup.family == Family::Unix {
        return;
    }
    let (pollers, mut connection, _peer) = connected(setup, Limits::default());
    let socket = SockRef::from(&connection);
    socket.set_linger(Some(support::PATIENCE * 2)).expect("an option");
    socket.set_send_buffer_size(400_000).expect("an option");
    connection.push(vec![1; 350_000]);
    block_on(connection.drain()).expect("the kernel takes it");
    drop(connection);
    eventually("it is closed", || pollers.settled().closed == 1);
}

fn listeners_of_std_have_the_same_options(setup: Setup) {
    let address = match setup.family {
        Family::V4 => "127.0.0.1:0",
        Family::V6 => "[::1]:0",
        Family::Unix => return,
    };
    let listener = std::net::TcpListener::bind(address).expect("bound");
    let address: SocketAddr = listener.local_addr().expect("bound");
    let service = setup.builder().on_request(async |connection: &mut Connection| {
        let delays = !SockRef::from(&connection.as_fd()).tcp_nodelay()?;
        connection.input_mut().clear();
        connection.write(&[u8::from(delays)])
    });
    let server = service.serve(listener.into()).expect("a server");
    assert_eq!(Peer::connect(&address.into()).round_trip(b"x"), [0]);
    drop(server);
}

/// A resolver of one's own, that never answers: no thread waits for it.
#[test]
fn a_resolver_of_ones_own_is_asked() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = server.local_addr().expect("bound");
    let pollers = Pollers::options().count(1).start().expect("a poller");
    let dialer = Dialer::new().pollers(pollers).resolver(move |host, port| async move {
        match &*host {
            "good.test" => Ok(vec![SocketAddr::new(address.ip(), port)]),
            "bad.test" => Err(std::io::Error::other("no such name")),
            _ => std::future::pending().await,
        }
    });
    let good = block_on(dialer.dial(&format!("good.test:{}", address.port())));
    assert_eq!(good.expect("connected").peer_addr().expect("remembered"), address.into());
    let error = block_on(dialer.dial("bad.test:80")).expect_err("no such name");
    assert_eq!(error.to_string(), "cannot connect to bad.test:80: no such name");
    let dialer = dialer.timeout(Duration::from_millis(10));
    let error = block_on(dialer.dial("silent.test:80")).expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
