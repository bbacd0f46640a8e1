//! QUIC by quinn on the pollers: its endpoints and connections, as they are.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use common::quic::{bytes, certificate, client_config, echo, round_trip, server_config};
use duopoll::quinn::{Endpoints, PollerRuntime};
use duopoll::udp::UdpSocket as Socket;
use duopoll::{Pollers, task, time};
use pollster::block_on;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, ServerConfig};
use socket2::SockRef;
use support::alone::{beside_others, nobody_beside};
use support::{PATIENCE, Random, Setup, eventually, open_descriptors};

on_every_setup!(
    internet:
    bulk_goes_both_ways,
    many_streams_at_once,
    many_connections,
    a_client_that_moves_is_known,
    what_is_lost_or_overtaken_is_made_good,
    an_end_is_told,
    who_is_not_there_is_found_out,
    an_endpoint_is_made_anywhere,
    a_connection_stays_on_its_poller,
    what_comes_to_another_endpoint_is_forwarded,
    nothing_is_left_behind,
);

/// Runs on a poller, with a server that echoes each stream.
fn run<F, T>(setup: Setup, test: impl FnOnce(Peers) -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let pollers = setup.pollers(1);
    let run = move || async move {
        let peers = Peers::new(setup, &PollerRuntime::here()).expect("endpoints");
        task::spawn_local(accept(peers.server.clone()));
        time::timeout(PATIENCE, test(peers)).await.expect("in time")
    };
    block_on(pollers.spawn(run)).expect("no panic")
}

/// A server, and what knows its certificate.
#[derive(Clone)]
struct Peers {
    server: Endpoint,
    client: Endpoint,
}

impl Peers {
    fn new(setup: Setup, runtime: &PollerRuntime) -> io::Result<Peers> {
        let (config, trusts) = configurations();
        let endpoint = |server| {
            let runtime = Arc::new(runtime.clone());
            Endpoint::new(
                EndpointConfig::default(),
                server,
                UdpSocket::bind(setup.address())?,
                runtime,
            )
        };
        let (server, mut client) = (endpoint(Some(config))?, endpoint(None)?);
        client.set_default_client_config(trusts);
        Ok(Peers { server, client })
    }

    fn address(&self) -> SocketAddr {
        self.server.local_addr().expect("bound")
    }

    async fn connect(&self) -> Connection {
        let connecting = self.client.connect(self.address(), "localhost").expect("a configuration");
        connecting.await.expect("connected")
    }
}

/// Of a server, and of clients that know its certificate.
fn configurations() -> (ServerConfig, ClientConfig) {
    let identity = certificate();
    (server_config(&identity), client_config(identity.cert.der().clone()))
}

async fn accept(server: Endpoint) {
    while let Some(incoming) = server.accept().await {
        task::spawn_local(echo(incoming));
    }
}

fn bulk_goes_both_ways(setup: Setup) {
    let _others = beside_others();
    run(setup, |peers| async move {
        let connection = peers.connect().await;
        let sent = bytes(support::scaled(16 << 20), 1);
        assert!(round_trip(&connection, &sent).await == sent);
    });
}

fn many_streams_at_once(setup: Setup) {
    let _others = beside_others();
    run(setup, |peers| async move {
        let connection = peers.connect().await;
        let trips = (0..500).map(|number| {
            let connection = connection.clone();
            task::spawn_local(async move {
                let sent = bytes(number * 7, number);
                assert!(round_trip(&connection, &sent).await == sent);
            })
        });
        for trip in trips.collect::<Vec<_>>() {
            trip.await.expect("no panic");
        }
    });
}

fn many_connections(setup: Setup) {
    let _others = beside_others();
    run(setup, |peers| async move {
        let mut connections = Vec::new();
        for _ in 0..50 {
            connections.push(peers.connect().await);
        }
        for (number, connection) in connections.iter().enumerate() {
            let sent = bytes(1000, number);
            assert!(round_trip(connection, &sent).await == sent);
        }
        assert_eq!(peers.server.open_connections(), 50);
    });
}

fn a_client_that_moves_is_known(setup: Setup) {
    let _others = beside_others();
    run(setup, move |peers| async move {
        let connection = peers.connect().await;
        assert!(round_trip(&connection, b"here").await == b"here");
        let before = peers.client.local_addr().expect("bound");
        peers.client.rebind(UdpSocket::bind(setup.address()).expect("bound")).expect("moved");
        assert_ne!(peers.client.local_addr().expect("bound"), before);
        assert!(round_trip(&connection, b"there").await == b"there");
    });
}

fn what_is_lost_or_overtaken_is_made_good(setup: Setup) {
    let _others = beside_others();
    run(setup, move |peers| async move {
        let network = BadNetwork::start(setup, peers.address());
        let connecting = peers.client.connect(network.address, "localhost");
        let connection = connecting.expect("a configuration").await.expect("connected");
        let sent = bytes(support::scaled(2 << 20), 1);
        assert!(round_trip(&connection, &sent).await == sent);
        assert!(connection.stats().path.lost_packets > 0, "the network is bad");
    });
}

/// Between a client and a server: of a hundred datagrams it loses two, and two are overtaken.
struct BadNetwork {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BadNetwork {
    fn start(setup: Setup, server: SocketAddr) -> BadNetwork {
        let sockets = [(); 2].map(|()| UdpSocket::bind(setup.address()).expect("bound"));
        let [inside, outside] = sockets.map(Arc::new);
        for socket in [&inside, &outside] {
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
        }
        let (address, ends) =
            (inside.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        // Where the client is, which nobody knows before it has sent.
        let client = Arc::new(Mutex::new(None));
        let carry = |from: Arc<UdpSocket>, to: Arc<UdpSocket>, there: bool| {
            let (client, ends) = (client.clone(), ends.clone());
            thread::spawn(move || {
                let (mut random, mut late, mut buffer) = (Random::new(7), None, [0; 2048]);
                while !ends.load(Ordering::Relaxed) {
                    let Ok((len, source)) = from.recv_from(&mut buffer) else { continue };
                    let mut client = client.lock().expect("no panic");
                    let target = if there {
                        *client = Some(source);
                        Some(server)
                    } else {
                        *client
                    };
                    let Some(target) = target else { continue };
                    let luck = random.between(0, 99);
                    if luck < 2 {
                        continue;
                    }
                    if luck < 4 && late.is_none() {
                        late = Some(buffer[..len].to_vec());
                        continue;
                    }
                    let _ = to.send_to(&buffer[..len], target);
                    if let Some(late) = late.take() {
                        let _ = to.send_to(&late, target);
                    }
                }
            })
        };
        let threads =
            vec![carry(inside.clone(), outside.clone(), true), carry(outside, inside, false)];
        BadNetwork { address, ends, threads }
    }
}

impl Drop for BadNetwork {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no panic");
        }
    }
}

fn an_end_is_told(setup: Setup) {
    let _others = beside_others();
    run(setup, |peers| async move {
        let connection = peers.connect().await;
        round_trip(&connection, b"x").await;
        peers.server.close(7u8.into(), b"over");
        let ConnectionError::ApplicationClosed(close) = connection.closed().await else {
            panic!("another end");
        };
        assert_eq!((close.error_code, &close.reason[..]), (7u8.into(), &b"over"[..]));
        peers.server.wait_idle().await;
        peers.client.wait_idle().await;
    });
}

fn who_is_not_there_is_found_out(setup: Setup) {
    let _others = beside_others();
    run(setup, |peers| async move {
        let nowhere = UdpSocket::bind(peers.address()).map(|_| ()).expect_err("it is taken");
        assert_eq!(nowhere.kind(), io::ErrorKind::AddrInUse);
        let gone = UdpSocket::bind(SocketAddr::new(peers.address().ip(), 0)).expect("bound");
        let gone = gone.local_addr().expect("bound");
        let connecting = peers.client.connect(gone, "localhost").expect("a configuration");
        let waited = time::timeout(Duration::from_millis(50), connecting).await;
        assert!(waited.is_err(), "nobody can have answered");
    });
}

fn an_endpoint_is_made_anywhere(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let peers = Peers::new(setup, &PollerRuntime::on(pollers.clone())).expect("endpoints");
    let server = peers.server.clone();
    drop(pollers.spawn(move || accept(server)));
    block_on(async {
        let connection = peers.connect().await;
        let sent = bytes(100_000, 1);
        assert!(round_trip(&connection, &sent).await == sent);
    });
}

/// A server of four endpoints, which says in what thread it serves each connection, and a client of another poller.
struct Several {
    endpoints: Arc<Endpoints>,
    served_on: mpsc::Receiver<ThreadId>,
    client: Endpoint,
    _pollers: [Pollers; 2],
}

fn several(setup: Setup) -> Several {
    let pollers = [setup.pollers(4), setup.pollers(1)];
    let (config, trusts) = configurations();
    let bind = Endpoints::bind;
    let (options, address) = (Socket::options(), setup.address());
    let endpoints = bind(&pollers[0], options, &address, EndpointConfig::default(), Some(config));
    let endpoints = Arc::new(endpoints.expect("endpoints"));
    let (served, served_on) = mpsc::channel();
    endpoints.serve(async move |incoming| {
        served.send(thread::current().id()).expect("the test looks");
        echo(incoming).await;
    });
    let clients = bind(&pollers[1], options, &address, EndpointConfig::default(), None);
    let mut client = clients.expect("an endpoint").each()[0].clone();
    client.set_default_client_config(trusts);
    Several { endpoints, served_on, client, _pollers: pollers }
}

impl Several {
    /// Connects often, moves, and says how many threads have served.
    async fn connect_and_move(&self, setup: Setup) -> usize {
        let mut connections = Vec::new();
        for number in 0..80 {
            let server = self.endpoints.local_addr();
            let connecting = self.client.connect(server, "localhost").expect("a configuration");
            let connection = connecting.await.expect("connected");
            let sent = bytes(10_000, number);
            assert!(round_trip(&connection, &sent).await == sent);
            connections.push(connection);
        }
        for _ in 0..3 {
            self.client.rebind(UdpSocket::bind(setup.address()).expect("bound")).expect("moved");
            for (number, connection) in connections.iter().enumerate() {
                let sent = bytes(3_000, number);
                assert!(round_trip(connection, &sent).await == sent);
            }
        }
        let each = self.endpoints.each().iter();
        assert_eq!(each.map(Endpoint::open_connections).sum::<usize>(), 80);
        self.endpoints.close(0u8.into(), b"");
        self.endpoints.wait_idle().await;
        self.served_on.try_iter().collect::<HashSet<_>>().len()
    }
}

fn a_connection_stays_on_its_poller(setup: Setup) {
    let _others = beside_others();
    let several = several(setup);
    let threads = block_on(time::timeout(PATIENCE, several.connect_and_move(setup)));
    assert_eq!(threads.expect("in time"), 4);
    assert_eq!(several.endpoints.forwarded_datagrams(), 0, "the kernel has delivered them");
}

fn what_comes_to_another_endpoint_is_forwarded(setup: Setup) {
    let _alone = nobody_beside();
    let several = several(setup);
    detach_program(bound_to(several.endpoints.local_addr()).as_fd());
    let threads = block_on(time::timeout(PATIENCE, several.connect_and_move(setup)));
    assert_eq!(threads.expect("in time"), 4);
    assert!(several.endpoints.forwarded_datagrams() > 0);
    assert_eq!(several.endpoints.lost_datagrams(), 0);
}

/// A duplicate of one of this process's sockets that are bound to an address.
fn bound_to(address: SocketAddr) -> OwnedFd {
    let open = fs::read_dir("/proc/self/fd").expect("this process's descriptors");
    let mut numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_one = |fd: &OwnedFd| {
        let local = SockRef::from(fd).local_addr().ok();
        local.and_then(|local| local.as_socket()) == Some(address)
    };
    // SAFETY: no other thread closes descriptors meanwhile.
    let duplicate = |fd: RawFd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok();
    numbers.find_map(|number| duplicate(number).filter(is_one)).expect("one is bound")
}

/// The kernel chooses among the sockets of the port as if nobody had told it how.
fn detach_program(socket: BorrowedFd<'_>) {
    let (nothing, name) = (0_i32, libc::SO_DETACH_REUSEPORT_BPF);
    // SAFETY: the kernel reads an int.
    let set = unsafe {
        let value = (&raw const nothing).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, value, 4)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

fn nothing_is_left_behind(setup: Setup) {
    let _alone = nobody_beside();
    let before = open_descriptors();
    for _ in 0..3 {
        run(setup, |peers| async move {
            round_trip(&peers.connect().await, b"x").await;
            peers.client.close(0u8.into(), b"");
            peers.client.wait_idle().await;
        });
    }
    eventually("all are closed", || open_descriptors() <= before);
}
