//! Listeners of all kinds, and the addresses of what they accept.

mod support;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use duopoll::{Address, Connection, Dialer, Engine, Listener, Pollers};
use pollster::block_on;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    both_ends_know_both_addresses,
    small_messages_are_not_held_back,
    a_listener_of_std_is_served,
    a_storm_of_connections_does_not_starve_an_old_one,
    a_backlog_holds_as_many_as_it_shall,
    accepted_sockets_are_close_on_exec_and_non_blocking,
);

/// A connection, dialed and accepted, and what it lives on.
fn pair(setup: Setup) -> (Pollers, Connection, Connection) {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let dialer = Dialer::new().pollers(pollers.clone());
    block_on(async {
        let address = listener.local_addr().expect("bound");
        let dialed = dialer.dial_addr(address).await.expect("dialed");
        (pollers, dialed, listener.accept().await.expect("accepted"))
    })
}

fn both_ends_know_both_addresses(setup: Setup) {
    let (_pollers, dialed, accepted) = pair(setup);
    assert_eq!(dialed.local_addr().expect("bound"), accepted.peer_addr().expect("connected"));
    assert_eq!(dialed.peer_addr().expect("connected"), accepted.local_addr().expect("bound"));
    let unnamed = dialed.local_addr().expect("bound") == Address::Unnamed;
    assert_eq!(unnamed, setup.family == Family::Unix);
}

fn small_messages_are_not_held_back(setup: Setup) {
    let (_pollers, dialed, accepted) = pair(setup);
    for connection in [dialed, accepted] {
        match setup.family {
            Family::Unix => assert!(SockRef::from(&connection).tcp_nodelay().is_err()),
            _ => assert!(SockRef::from(&connection).tcp_nodelay().expect("TCP")),
        }
    }
}

/// They block, as std's do.
fn a_listener_of_std_is_served(setup: Setup) {
    let listener: Listener = match setup.family {
        Family::V4 => TcpListener::bind("127.0.0.1:0").expect("bound").into(),
        Family::V6 => TcpListener::bind("[::1]:0").expect("bound").into(),
        Family::Unix => {
            let name = format!("duopoll-std-{}-{:?}", std::process::id(), setup.engine);
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
            UnixListener::bind_addr(&address.expect("a name")).expect("bound").into()
        }
    };
    let service = setup.builder().on_request(support::echo);
    let server = service.serve(listener).expect("a server");
    let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"hello"), b"hello");
    }
}

/// The poller is held up until all of it waits: the connections first, and the old one's request behind them.
fn a_storm_of_connections_does_not_starve_an_old_one(setup: Setup) {
    const STORM: usize = 1000;
    let (hold, held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let released = Mutex::new(released);
    let prepared = Arc::new(AtomicUsize::new(0));
    let counter = prepared.clone();
    let service = setup
        .builder()
        .on_prepare(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .on_request(async move |connection: &mut Connection| {
            if connection.read_u8().await? == b'h' {
                hold.send(()).expect("the test waits");
                let _ = released.lock().expect("no panic").recv();
            } else {
                tell.send(prepared.load(Ordering::Relaxed)).expect("the test waits");
            }
            Ok(())
        });
    let server = service.serve(setup.listener()).expect("a server");
    let [mut holder, mut old] = [(); 2].map(|()| Peer::connect(server.local_addr()));
    eventually("both are served", || server.settled().connections == 2);
    holder.write_all(b"h").expect("sent");
    held.recv_timeout(PATIENCE).expect("a request");
    let storm: Vec<_> = (0..STORM).map(|_| Peer::connect(server.local_addr())).collect();
    old.write_all(b"o").expect("sent");
    drop(release);
    let before = told.recv_timeout(PATIENCE).expect("a request") - 2;
    assert!(before <= STORM / 4, "{before} connections went before it");
    eventually("all are served", || server.settled().connections == 2 + STORM as u64);
    drop(storm);
}

fn a_backlog_holds_as_many_as_it_shall(setup: Setup) {
    const BACKLOG: u32 = 3;
    let address = match setup.family {
        Family::V4 => "127.0.0.1:0".into(),
        Family::V6 => "[::1]:0".into(),
        Family::Unix => format!("unix:@duopoll-backlog-{}-{:?}", std::process::id(), setup.engine),
    };
    let listener = Listener::options().backlog(BACKLOG).bind(&address).expect("bound");
    let address = listener.local_addr().expect("bound");
    if let Address::Abstract(name) = &address {
        // One more than it holds is taken, and the next one would wait.
        let path = [b"\0", &name[..]].concat();
        let remote = SockAddr::unix(OsStr::from_bytes(&path)).expect("a name");
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            socket.connect(&remote).map(|()| socket)
        };
        let taken: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
        assert_eq!(taken.len(), BACKLOG as usize + 1);
        return;
    }
    // The kernel tells in `tcpi_sacked`, the eighth number behind eight bytes: see ss(8), "Send-Q".
    let mut info = [0u32; 64];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `len` bytes can be written.
    let asked = unsafe {
        let target = info.as_mut_ptr().cast();
        let socket = listener.as_fd().as_raw_fd();
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, target, &raw mut len)
    };
    assert_eq!((asked, info[7]), (0, BACKLOG));
}

fn accepted_sockets_are_close_on_exec_and_non_blocking(setup: Setup) {
    let (_pollers, dialed, accepted) = pair(setup);
    for connection in [dialed, accepted] {
        let socket = connection.as_fd().as_raw_fd();
        // SAFETY: fcntl(2) takes no memory for these.
        let [descriptor, status] =
            [libc::F_GETFD, libc::F_GETFL].map(|command| unsafe { libc::fcntl(socket, command) });
        assert_ne!(descriptor & libc::FD_CLOEXEC, 0);
        assert_ne!(status & libc::O_NONBLOCK, 0);
    }
}

#[test]
fn a_listener_for_both_families_serves_both() {
    for engine in [Engine::Epoll, Engine::Uring] {
        let listener = Listener::options().only_v6(false).bind("[::]:0").expect("bound");
        let Ok(Address::Tcp(address)) = listener.local_addr() else { panic!("a TCP address") };
        let setup = Setup { engine, family: Family::V6 };
        let service = setup.builder().on_request(async |connection: &mut Connection| {
            connection.skip(1).await?;
            let Address::Tcp(peer) = connection.peer_addr()? else { unreachable!("TCP") };
            connection.write(peer.ip().to_canonical().to_string().as_bytes())
        });
        let server = service.serve(listener).expect("a server");
        for (ip, seen) in [(Ipv4Addr::LOCALHOST.into(), "127.0.0.1"), (LOCALHOST_V6, "::1")] {
            let mut peer = TcpStream::connect(SocketAddr::new(ip, address.port())).expect("taken");
            peer.write_all(b"?").expect("sent");
            let mut reply = vec![0; seen.len()];
            peer.read_exact(&mut reply).expect("a reply");
            assert_eq!(reply, seen.as_bytes());
        }
        drop(server);
    }
}

const LOCALHOST_V6: std::net::IpAddr = std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
