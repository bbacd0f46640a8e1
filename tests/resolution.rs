//! Dialing names: with a resolver of this test's own, which says what a name means, and when.

mod support;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{mem, ptr};

use duopoll::{Address, Connection, Dialer, Engine, Pollers};
use pollster::block_on;
use support::full::Full;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, poll_once};

on_every_setup!(resolving_holds_up_no_poller);

/// What names mean; none: it is not known yet.
static NAMES: Mutex<Option<HashMap<String, Option<Vec<IpAddr>>>>> = Mutex::new(None);
static KNOWN: Condvar = Condvar::new();

/// From now on the name means this. Whoever has asked for it waits until it means something.
fn define(name: &str, addresses: Option<&[&str]>) {
    let parse = |address: &&str| address.parse().expect("an address");
    let addresses = addresses.map(|addresses| addresses.iter().map(parse).collect());
    let mut names = NAMES.lock().expect("no panic");
    names.get_or_insert_default().insert(name.into(), addresses);
    KNOWN.notify_all();
}

fn look_up(name: &str) -> Option<Vec<IpAddr>> {
    let mut names = NAMES.lock().expect("no panic");
    loop {
        match names.get_or_insert_default().get(name)? {
            Some(addresses) => return Some(addresses.clone()),
            None => names = KNOWN.wait(names).expect("no panic"),
        }
    }
}

/// One element of the list that the C library would have given.
#[repr(C)]
struct Entry {
    info: libc::addrinfo,
    address: libc::sockaddr_storage,
}

/// In place of the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getaddrinfo(
    name: *const c_char,
    _service: *const c_char,
    _hints: *const libc::addrinfo,
    list: *mut *mut libc::addrinfo,
) -> c_int {
    // SAFETY: std passes a string.
    let name = unsafe { CStr::from_ptr(name) }.to_str().expect("a name");
    let Some(addresses) = look_up(name) else { return libc::EAI_NONAME };
    let mut first = ptr::null_mut();
    for address in addresses.into_iter().rev() {
        let address = socket2::SockAddr::from(SocketAddr::new(address, 0));
        // SAFETY: all fields may be zero.
        let mut entry: Box<Entry> = Box::new(unsafe { mem::zeroed() });
        entry.info.ai_family = address.family().into();
        entry.info.ai_socktype = libc::SOCK_STREAM;
        entry.info.ai_addrlen = address.len();
        entry.info.ai_next = first;
        let entry = Box::leak(entry);
        // SAFETY: there is room for an address of any family.
        unsafe {
            let target = (&raw mut entry.address).cast::<u8>();
            ptr::copy_nonoverlapping(address.as_ptr().cast(), target, address.len() as usize);
        }
        entry.info.ai_addr = (&raw mut entry.address).cast();
        first = (&raw mut *entry).cast();
    }
    // SAFETY: std passes the place of a pointer.
    unsafe { *list = first };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn freeaddrinfo(mut list: *mut libc::addrinfo) {
    while !list.is_null() {
        // SAFETY: an element of a list that was made above, where the information comes first.
        let entry = unsafe { Box::from_raw(list.cast::<Entry>()) };
        list = entry.info.ai_next;
    }
}

fn on_both_engines(test: impl Fn(&Pollers, Dialer)) {
    for engine in [Engine::Epoll, Engine::Uring] {
        let pollers = Pollers::options().engine(engine).count(1).start().expect("a poller");
        test(&pollers, Dialer::new().pollers(pollers.clone()));
    }
}

/// Somebody who accepts at an address, and nobody at any other address with this port.
fn listener(ip: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip, 0)).expect("bound");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn peer_of(connection: &Connection) -> IpAddr {
    let Ok(Address::Tcp(address)) = connection.peer_addr() else { panic!("a TCP address") };
    address.ip()
}

/// How long an address may take before the next one is tried.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

#[test]
fn an_address_that_does_not_answer_is_overtaken() {
    let (_listener, port) = listener("::1");
    let full = ["127.0.0.2", "127.0.0.3"];
    let _full = full.map(|ip| Full::new(&format!("{ip}:{port}")));
    define("slow.test", Some(&[full[0], full[1], "::1"]));
    on_both_engines(|pollers, dialer| {
        let start = Instant::now();
        let connection = block_on(dialer.dial(&format!("slow.test:{port}"))).expect("connected");
        assert_eq!(peer_of(&connection).to_string(), "::1");
        let elapsed = start.elapsed();
        assert!(elapsed >= ATTEMPT_DELAY, "after {elapsed:?} already");
        // The families take turns, so the one that answers comes second.
        assert_eq!(pollers.settled().connections, 2);
        eventually("the other attempt is given up", || pollers.settled().closed == 1);
    });
}

#[test]
fn an_address_that_refuses_is_passed_over_at_once() {
    let (_listener, port) = listener("127.0.0.1");
    define("refused.test", Some(&["::1", "127.0.0.1"]));
    on_both_engines(|_, dialer| {
        // One of them must be quicker than the wait for the next address.
        let mut took = (0..20).map(|_| {
            let start = Instant::now();
            let connection = block_on(dialer.dial(&format!("refused.test:{port}")));
            assert_eq!(peer_of(&connection.expect("connected")).to_string(), "127.0.0.1");
            start.elapsed()
        });
        assert!(took.any(|took| took < ATTEMPT_DELAY), "a refusal is waited for");
    });
}

#[test]
fn the_last_refusal_is_the_error() {
    let port = listener("127.0.0.1").1;
    define("nobody.test", Some(&["::1", "127.0.0.1", "127.0.0.2"]));
    on_both_engines(|_, dialer| {
        let error = block_on(dialer.dial(&format!("nobody.test:{port}"))).expect_err("nobody");
        assert_eq!(support::errno(&error), Some(libc::ECONNREFUSED), "{error}");
    });
}

#[test]
fn the_timeout_is_for_all_addresses() {
    const TIMEOUT: Duration = Duration::from_millis(600);
    let first = Full::new("127.0.0.4:0");
    let port = first.address.port();
    let ips = ["127.0.0.5", "127.0.0.6"];
    let _full = ips.map(|ip| Full::new(&format!("{ip}:{port}")));
    define("silent.test", Some(&["127.0.0.4", ips[0], ips[1]]));
    on_both_engines(|pollers, dialer| {
        let dialer = dialer.timeout(TIMEOUT);
        let start = Instant::now();
        let error = block_on(dialer.dial(&format!("silent.test:{port}"))).expect_err("no answer");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
        let elapsed = start.elapsed();
        assert!(elapsed >= TIMEOUT, "after {elapsed:?} already");
        assert!(elapsed < 10 * TIMEOUT, "after {elapsed:?} only");
        eventually("nothing is left", || {
            let stats = pollers.settled();
            stats.closed == stats.connections
        });
    });
}

#[test]
fn the_timeout_is_for_the_resolution_too() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    define("unresolved.test", None);
    on_both_engines(|_, dialer| {
        let start = Instant::now();
        let error = block_on(dialer.clone().timeout(TIMEOUT).dial("unresolved.test:0"));
        assert_eq!(error.expect_err("no answer").kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= TIMEOUT);
        // One that is given up leaves nothing to wait for either.
        assert!(poll_once(pin!(dialer.dial("unresolved.test:0"))).is_pending());
    });
    define("unresolved.test", Some(&[]));
}

#[test]
fn a_name_that_means_nothing_is_an_error() {
    define("empty.test", Some(&[]));
    define("v6.test", Some(&["::1"]));
    on_both_engines(|_, dialer| {
        let error = block_on(dialer.dial("unknown.test:80")).expect_err("unknown");
        assert!(error.to_string().contains("Name or service not known"), "{error}");
        let dialer = dialer.local_addr("127.0.0.1:0").expect("an address");
        for name in ["empty.test:80", "v6.test:80"] {
            let error = block_on(dialer.dial(name)).expect_err("no suitable address");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
        }
    });
}

/// A handler dials, and its poller serves others before the name is known.
fn resolving_holds_up_no_poller(setup: Setup) {
    let name = format!("late-{:?}-{:?}.test", setup.engine, setup.family);
    define(&name, None);
    let (_listener, port) = listener("127.0.0.1");
    let (tell, told) = mpsc::channel();
    let target = format!("{name}:{port}");
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'!' {
            let dialed = Dialer::new().dial(&target).await?;
            tell.send(peer_of(&dialed)).expect("the test waits");
        }
        support::echo(connection).await
    });
    let mut dials = Peer::connect(server.local_addr());
    std::io::Write::write_all(&mut dials, b"!").expect("sent");
    eventually("it dials", || server.settled().requests == 1);
    let mut other = Peer::connect(server.local_addr());
    for _ in 0..3 {
        assert_eq!(other.round_trip(b"served"), b"served");
    }
    assert!(told.try_recv().is_err(), "nobody knows the name");
    define(&name, Some(&["127.0.0.1"]));
    let peer = told.recv_timeout(PATIENCE).expect("it has dialed");
    assert_eq!(peer.to_string(), "127.0.0.1");
}
