//! Dials that fail: with the errno of the kernel, or in time, and with nothing left behind.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Dialer, Engine, Pollers};
use pollster::block_on;
use support::full::Full;
use support::settled::Settled;
use support::{Setup, errno, eventually, poll_once};

on_every_setup!(dials_that_hardly_have_time_leave_nothing);

fn pollers(engine: Engine) -> Pollers {
    Pollers::options().engine(engine).count(1).start().expect("a poller")
}

fn on_both_engines(test: impl Fn(Engine)) {
    for engine in [Engine::Epoll, Engine::Uring] {
        test(engine);
    }
}

#[test]
fn an_unanswered_dial_ends_with_the_timeout() {
    on_both_engines(|engine| {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (full, pollers) = (Full::new(address), pollers(engine));
            let timeout = Duration::from_millis(100);
            let dialer = Dialer::new().pollers(pollers.clone()).timeout(timeout);
            let start = Instant::now();
            let error = block_on(dialer.dial_addr(full.address)).expect_err("no answer");
            assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
            assert!(start.elapsed() >= timeout, "after {:?} already", start.elapsed());
            eventually("nothing is left", || pollers.settled().closed == 1);
        }
    });
}

#[test]
fn a_dial_that_the_kernel_gives_up_has_its_errno() {
    on_both_engines(|engine| {
        let full = Full::new("127.0.0.1:0");
        // The first retransmission finds that it has taken too long.
        let dialer = Dialer::new().pollers(pollers(engine));
        let dialer = dialer.user_timeout(Duration::from_millis(100));
        let error = block_on(dialer.dial_addr(full.address)).expect_err("no answer");
        assert_eq!(errno(&error), Some(libc::ETIMEDOUT), "{error}");
    });
}

#[test]
fn an_unanswered_dial_that_is_dropped_leaves_nothing() {
    on_both_engines(|engine| {
        let (full, pollers) = (Full::new("127.0.0.1:0"), pollers(engine));
        let dialer = Dialer::new().pollers(pollers.clone());
        for _ in 0..10 {
            let mut dial = pin!(dialer.dial_addr(full.address));
            let before = pollers.settled().connections;
            assert!(poll_once(dial.as_mut()).is_pending());
            eventually("it is under way", || pollers.settled().connections == before + 1);
            assert!(poll_once(dial.as_mut()).is_pending());
        }
        eventually("nothing is left", || pollers.settled().closed == 10);
    });
}

#[test]
fn what_cannot_be_reached_has_the_errno_of_the_kernel() {
    on_both_engines(|engine| {
        let dialer = Dialer::new().pollers(pollers(engine));
        let dial = |address: &str| {
            let address: Address = address.parse().expect("an address");
            let error = block_on(dialer.dial_addr(address)).expect_err("nobody is there");
            errno(&error).expect("an errno")
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
        let stats = pollers.settled();
        stats.closed == stats.connections
    });
    eventually("nor on the other side", || {
        let stats = server.settled();
        stats.closed == stats.connections
    });
}

#[test]
fn a_dial_that_reaches_its_own_socket_is_refused() {
    on_both_engines(|engine| {
        // "Any" is the same machine, and nobody else.
        for (own, dialed) in [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "::1")]
        {
            let pollers = pollers(engine);
            let [own, dialed] = [own, dialed].map(|ip| ip.parse::<IpAddr>().expect("an address"));
            // Nobody listens at this port, and it is dialed from there.
            let free = TcpListener::bind((own, 0)).expect("a free port");
            let port = free.local_addr().expect("bound").port();
            drop(free);
            let dialer = Dialer::new().pollers(pollers.clone());
            let dialer = dialer.local_addr(SocketAddr::new(own, port)).expect("an address");
            let dial = dialer.dial_addr(SocketAddr::new(dialed, port));
            let error = block_on(dial).expect_err("nobody listens");
            assert_eq!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
            eventually("nothing is left", || {
                let stats = pollers.settled();
                stats.open_connections == 0 && stats.closed == stats.connections
            });
        }
    });
}
