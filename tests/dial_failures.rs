//! Dials that fail: with the errno of the kernel, or in time, and with nothing left behind.

mod support;

use std::io::ErrorKind;
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Dialer, Engine, Pollers};
use pollster::block_on;
use socket2::{Domain, SockAddr, Socket, Type};
use support::{Family, Setup, eventually, poll_once};

on_every_setup!(dials_that_hardly_have_time_leave_nothing);

fn pollers(engine: Engine) -> Pollers {
    Pollers::options().engine(engine).count(1).start().expect("a poller")
}

fn on_both_engines(test: impl Fn(Engine)) {
    for engine in [Engine::Epoll, Engine::Uring] {
        test(engine);
    }
}

/// A listener whose backlog is full: what is sent to it is not answered.
struct Full {
    address: Address,
    _sockets: Vec<Socket>,
}

impl Full {
    fn new(family: Family) -> Full {
        let local = if family == Family::V4 { "127.0.0.1:0" } else { "[::1]:0" };
        let local = SockAddr::from(local.parse::<std::net::SocketAddr>().expect("an address"));
        let domain = Domain::from(i32::from(local.family()));
        let listener = Socket::new(domain, Type::STREAM, None).expect("a socket");
        listener.bind(&local).expect("bound");
        listener.listen(0).expect("listening");
        let address = listener.local_addr().expect("bound");
        let mut sockets = vec![listener];
        // Whoever is not established within a moment never is.
        loop {
            assert!(sockets.len() < 100, "the backlog is never full");
            let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
            let connected = socket.connect_timeout(&address, Duration::from_millis(200));
            sockets.push(socket);
            if connected.is_err() {
                break;
            }
        }
        let address = address.as_socket().expect("TCP").into();
        Full { address, _sockets: sockets }
    }
}

#[test]
fn an_unanswered_dial_ends_with_the_timeout() {
    on_both_engines(|engine| {
        for family in [Family::V4, Family::V6] {
            let (full, pollers) = (Full::new(family), pollers(engine));
            let timeout = Duration::from_millis(100);
            let dialer = Dialer::new().pollers(pollers.clone()).timeout(timeout);
            let start = Instant::now();
            let error = block_on(dialer.dial_addr(full.address.clone())).expect_err("no answer");
            assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
            assert!(start.elapsed() >= timeout, "after {:?} already", start.elapsed());
            eventually("nothing is left", || pollers.stats().closed == 1);
        }
    });
}

#[test]
fn a_dial_that_the_kernel_gives_up_has_its_errno() {
    on_both_engines(|engine| {
        let full = Full::new(Family::V4);
        // The first retransmission finds that it has taken too long.
        let dialer = Dialer::new().pollers(pollers(engine));
        let dialer = dialer.user_timeout(Duration::from_millis(100));
        let error = block_on(dialer.dial_addr(full.address.clone())).expect_err("no answer");
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    });
}

#[test]
fn an_unanswered_dial_that_is_dropped_leaves_nothing() {
    on_both_engines(|engine| {
        let (full, pollers) = (Full::new(Family::V4), pollers(engine));
        let dialer = Dialer::new().pollers(pollers.clone());
        for _ in 0..10 {
            let mut dial = pin!(dialer.dial_addr(full.address.clone()));
            let before = pollers.stats().connections;
            assert!(poll_once(dial.as_mut()).is_pending());
            eventually("it is under way", || pollers.stats().connections == before + 1);
            assert!(poll_once(dial.as_mut()).is_pending());
        }
        eventually("nothing is left", || pollers.stats().closed == 10);
    });
}

#[test]
fn what_cannot_be_reached_has_the_errno_of_the_kernel() {
    on_both_engines(|engine| {
        let dialer = Dialer::new().pollers(pollers(engine));
        let dial = |address: &str| {
            let address: Address = address.parse().expect("an address");
            let error = block_on(dialer.dial_addr(address)).expect_err("nobody is there");
            error.raw_os_error().expect("an errno")
        };
        // TCP knows no groups.
        assert_eq!(dial("224.0.0.1:9"), libc::ENETUNREACH);
        assert_eq!(dial("[ff02::1]:9"), libc::ENETUNREACH);
        let name = format!("duopoll-nobody-{}", std::process::id());
        assert_eq!(dial(&format!("unix:@{name}")), libc::ECONNREFUSED);
        let path = std::env::temp_dir().join(name);
        assert_eq!(dial(&format!("unix:{}", path.display())), libc::ENOENT);
        std::fs::write(&path, b"").expect("a file");
        let refused = dial(&format!("unix:{}", path.display()));
        std::fs::remove_file(&path).expect("a file");
        assert_eq!(refused, libc::ECONNREFUSED);
    });
}

fn dials_that_hardly_have_time_leave_nothing(setup: Setup) {
    let server = setup.serve_echo();
    let pollers = pollers(setup.engine);
    let dialer = Dialer::new().pollers(pollers.clone()).timeout(Duration::from_millis(1));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    match block_on(dialer.dial_addr(server.local_addr().clone())) {
                        Ok(connection) => connection.abort(),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
                    }
                }
            });
        }
    });
    eventually("nothing is left", || {
        let stats = pollers.stats();
        stats.closed == stats.connections
    });
    eventually("nor on the other side", || {
        let stats = server.stats();
        stats.closed == stats.connections
    });
}
