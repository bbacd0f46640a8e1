//! Several pollers, and several ways to spread connections over them.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::thread;
use std::time::Duration;

use duopoll::{Address, Balance, Connection, Engine, EventLoop, Listener, Pollers, Server, Stats};
use support::settled::Settled;
use support::{Family, Peer, Setup, eventually};

on_every_setup!(
    connections_take_turns,
    the_emptiest_poller_gets_the_next,
    random_reaches_every_poller,
    pollers_may_be_added_while_connections_come,
    each_poller_counts_what_it_has_done,
);

fn two_pollers(setup: Setup, balance: Balance) -> Server {
    let builder = setup.builder().pollers(2).balance(balance).on_request(support::echo);
    builder.serve(setup.listener()).expect("a server")
}

fn connect(server: &Server, count: usize) -> Vec<Peer> {
    let connect = |_| {
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"x"), b"x");
        peer
    };
    (0..count).map(connect).collect()
}

fn open_on_each(server: &Server) -> Vec<u64> {
    server.settled_each().iter().map(|stats| stats.connections - stats.closed).collect()
}

fn connections_take_turns(setup: Setup) {
    let server = two_pollers(setup, Balance::RoundRobin);
    let peers = connect(&server, 10);
    assert_eq!(open_on_each(&server), [5, 5]);
    drop(peers);
}

fn the_emptiest_poller_gets_the_next(setup: Setup) {
    let server = two_pollers(setup, Balance::FewestConnections);
    let mut peers = connect(&server, 10);
    assert_eq!(open_on_each(&server), [5, 5]);
    // Every other one is on the same poller; close those.
    let mut kept = Vec::new();
    while let Some(peer) = peers.pop() {
        if peers.len() % 2 == 0 {
            kept.push(peer);
        }
    }
    // As the pollers are balanced by it.
    let open = || server.settled_each().iter().map(|stats| stats.open_connections).sum::<u64>();
    eventually("five are closed", || open() == 5);
    let more = connect(&server, 5);
    assert_eq!(open_on_each(&server), [5, 5]);
    drop((kept, more));
}

fn random_reaches_every_poller(setup: Setup) {
    let server = two_pollers(setup, Balance::Random);
    let peers = connect(&server, 40);
    let open = open_on_each(&server);
    assert!(open.iter().all(|open| *open > 0), "{open:?}");
    drop(peers);
}

fn pollers_may_be_added_while_connections_come(setup: Setup) {
    let server = setup.serve_echo();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| connect(&server, 50));
        }
        scope.spawn(|| (0..8).for_each(|_| server.pollers().grow(1).expect("another")));
    });
    assert_eq!(server.pollers().count(), 9);
    // Whoever has come last is served, too, and in turn.
    let before = server.settled_each();
    let peers = connect(&server, 18);
    let after = server.settled_each();
    for (before, after) in before.iter().zip(after) {
        assert_eq!(after.connections - before.connections, 2);
    }
    drop(peers);
    assert_eq!(server.shutdown(Duration::from_secs(10)), 0);
}

fn each_poller_counts_what_it_has_done(setup: Setup) {
    let server = two_pollers(setup, Balance::RoundRobin);
    let mut peers = connect(&server, 6);
    for (index, peer) in peers.iter_mut().enumerate() {
        // Those on the second poller say more.
        let message = vec![7; 100 + 900 * (index % 2)];
        assert_eq!(peer.round_trip(&message), message);
    }
    let each = server.settled_each();
    let bytes = each.iter().map(|stats| (stats.received_bytes, stats.sent_bytes));
    assert_eq!(bytes.collect::<Vec<_>>(), [(303, 303), (3003, 3003)]);
    for stats in &each {
        assert_eq!((stats.pollers, stats.connections, stats.closed, stats.requests), (1, 3, 0, 6));
        assert!(stats.syscalls >= stats.waits && stats.waits > 0 && stats.task_polls > 0);
    }
    drop(peers);
    eventually("all are over", || server.settled().closed == 6);
    let (sum, each) = (server.settled(), server.settled_each());
    let total = |count: fn(&Stats) -> u64| each.iter().map(count).sum::<u64>();
    assert_eq!((sum.pollers, sum.connections, sum.closed), (2, 6, 6));
    assert_eq!(sum.received_bytes, total(|stats| stats.received_bytes));
    assert_eq!(sum.sends, total(|stats| stats.sends));
    assert!(sum.to_string().contains("\"closed\": 6"), "{sum}");
}

#[test]
fn a_shared_port_gives_each_poller_its_own_listener() {
    for engine in [Engine::Epoll, Engine::Uring] {
        let listener = Listener::options().reuse_port(true).bind("127.0.0.1:0").expect("bound");
        let builder = EventLoop::builder().engine(engine).pollers(2).on_request(support::echo);
        let server = builder.serve(listener).expect("a server");
        let peers = connect(&server, 200);
        let accepts: Vec<_> = server.settled_each().iter().map(|stats| stats.accepts).collect();
        assert_eq!(accepts.iter().sum::<u64>(), 200);
        assert!(accepts.iter().all(|accepts| *accepts > 20), "the kernel's hash: {accepts:?}");
        let opened: Vec<_> = server.settled_each().iter().map(|stats| stats.connections).collect();
        assert_eq!(accepts, opened, "each keeps what it accepts");
        drop(peers);
    }
}

#[test]
fn a_unix_socket_cannot_share_its_address() {
    let error = Listener::options().reuse_port(true).bind("unix:@duopoll-shared");
    assert_eq!(error.expect_err("not on Unix sockets").kind(), ErrorKind::Unsupported);
}

#[test]
fn pinned_pollers_run_on_one_processor_each() {
    let setup = Setup { engine: Engine::Epoll, family: Family::V4 };
    let server = setup.builder().pinned(true).on_request(async |connection: &mut Connection| {
        connection.skip(1).await?;
        let allowed = std::fs::read_to_string("/proc/thread-self/status")?;
        let line = allowed.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
        connection.write(line.unwrap_or_default().as_bytes())?;
        connection.write(b"\n")
    });
    let server = server.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    peer.shutdown(std::net::Shutdown::Write);
    let line = String::from_utf8(peer.read_rest().expect("a reply")).expect("text");
    let list = line.trim().trim_start_matches("Cpus_allowed_list:").trim();
    assert!(list.parse::<usize>().is_ok(), "not one processor: {line}");
}

#[test]
fn an_ipv6_listener_takes_ipv4_unless_told_not_to() {
    for (only, taken) in [(false, true), (true, false)] {
        let listener = Listener::options().only_v6(only).bind("[::]:0").expect("bound");
        let Ok(Address::Tcp(address)) = listener.local_addr() else { panic!("a TCP address") };
        let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port()));
        assert_eq!(connected.is_ok(), taken, "only_v6({only})");
    }
}

#[test]
fn no_poller_is_an_error() {
    let error = Pollers::options().count(0).start().expect_err("0 pollers do nothing");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let setup = Setup { engine: Engine::Epoll, family: Family::V4 };
    let service = EventLoop::builder().pollers(0).on_request(support::echo);
    let error = service.serve(setup.listener()).expect_err("0 pollers do nothing");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_socket_file_goes_with_its_server() {
    let path = std::env::temp_dir().join(format!("duopoll-{}.sock", std::process::id()));
    let address = Address::Unix(path.clone());
    let setup = Setup { engine: Engine::Epoll, family: Family::Unix };
    let service = setup.builder().on_request(support::echo);
    let server = service.serve(Listener::bind(&address).expect("bound")).expect("a server");
    assert!(std::fs::metadata(&path).expect("a file").file_type().is_socket());
    let mut peer = Peer::connect(&address);
    assert_eq!(peer.round_trip(b"x"), b"x");
    let error = Listener::bind(&address).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    drop(server);
    assert!(!path.exists());
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
}
