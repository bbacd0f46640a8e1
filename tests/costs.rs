//! What an echo costs in steady state: no allocation, and few system calls.
//!
//! The allocator counts for threads that ask for it, which is those of one test at a time.

#[path = "support/counting.rs"]
mod counting;
mod support;

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use counting::{allocations, alone, count_this_thread, fewest_allocations};
use duopoll::mux::{self, Head, Kind, Plain, Protocol};
use duopoll::udp::{Datagram, Outgoing, UdpServer, UdpSocket};
use duopoll::{Connection, Dialer, Engine, LinkBuffer, Pollers, Server, Slice, Stats};
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup};

const ENGINES: [Engine; 2] = [Engine::Epoll, Engine::Uring];
const CONNECTIONS: usize = 100;
const MESSAGE: [u8; 64] = [b'x'; 64];
/// A message that makes the poller wait at the gate.
const STOP: u8 = b'!';

/// A server whose poller can be held up, so that what the clients send meanwhile is there all at once.
struct Gated {
    server: Server,
    stop: Peer,
    gate: Arc<Gate>,
    clients: Vec<Peer>,
}

/// Lets one through each time that it is opened. Unlike a channel it allocates nothing, whoever comes first.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().expect("no panic") = true;
        self.opened.notify_one();
    }

    fn pass(&self) {
        let open = self.open.lock().expect("no panic");
        *self.opened.wait_while(open, |open| !*open).expect("no panic") = false;
    }
}

impl Gated {
    fn new(setup: Setup) -> Gated {
        let gate = Arc::new(Gate::default());
        let handlers_gate = gate.clone();
        let server = setup.serve(async move |connection: &mut Connection| {
            count_this_thread();
            if connection.peek(1).await?[0] == STOP {
                handlers_gate.pass();
            }
            support::echo(connection).await
        });
        let mut clients: Vec<_> =
            (0..CONNECTIONS).map(|_| Peer::connect(server.local_addr())).collect();
        let stop = Peer::connect(server.local_addr());
        for client in &mut clients {
            client.round_trip(&MESSAGE);
        }
        Gated { server, stop, gate, clients }
    }

    /// One request of every client, all ready at once.
    fn round(&mut self) {
        self.stop.write_all(&[STOP]).expect("sent");
        for client in &mut self.clients {
            client.write_all(&MESSAGE).expect("sent");
        }
        self.gate.open();
        let mut reply = [0; MESSAGE.len()];
        self.stop.read_exact(&mut reply[..1]).expect("a reply");
        for client in &mut self.clients {
            client.read_exact(&mut reply).expect("a reply");
            assert_eq!(reply, MESSAGE);
        }
    }

    /// What so many rounds cost: allocations, and the difference of the counters.
    fn cost(&mut self, rounds: u64) -> (u64, Stats, Stats) {
        // Long enough for each connection to have come to the end of a block, and to have got its second.
        for _ in 0..100 {
            self.round();
        }
        let before = self.server.settled();
        let counted = allocations();
        for _ in 0..rounds {
            self.round();
        }
        let allocations = allocations() - counted;
        (allocations, before, self.server.settled())
    }
}

#[test]
fn an_echo_costs_no_allocation_and_few_system_calls() {
    const ROUNDS: u64 = 50;
    let _alone = alone();
    let engines = [(Engine::Epoll, 2.2), (Engine::Uring, 0.5)];
    let families = [Family::V4, Family::Unix];
    let cells = engines.iter().flat_map(|engine| families.map(|family| (*engine, family)));
    for ((engine, syscalls_max), family) in cells {
        let setup = Setup { engine, family };
        let mut gated = Gated::new(setup);
        // On a busy machine a queue may grow once more. What a request costs it costs every time.
        let mut cost = gated.cost(ROUNDS);
        for _ in 0..4 {
            if cost.0 > 0 {
                cost = gated.cost(ROUNDS);
            }
        }
        let (allocations, before, after) = cost;
        let requests = after.requests - before.requests;
        assert_eq!(requests, ROUNDS * (CONNECTIONS as u64 + 1), "{setup:?}");
        assert_eq!(allocations, 0, "{setup:?}: allocations in {requests} requests");
        let syscalls = (after.syscalls - before.syscalls) as f64 / requests as f64;
        assert!(syscalls <= syscalls_max, "{setup:?}: {syscalls:.2} system calls per echo");
    }
}

/// A reply that is sent and the wait for what comes next are one system call.
#[test]
fn a_ping_pong_on_uring_enters_once() {
    const ROUND_TRIPS: u64 = 100;
    let server = Setup { engine: Engine::Uring, family: Family::V4 }.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    peer.round_trip(&MESSAGE);
    let before = server.settled();
    for _ in 0..ROUND_TRIPS {
        peer.round_trip(&MESSAGE);
    }
    let after = server.settled();
    // The last look at the counters cost a wake-up and a wait.
    let syscalls =
        (after.syscalls - before.syscalls - 2) as f64 / (after.requests - before.requests) as f64;
    // An older kernel looks whether there is something to receive, and then receives.
    let receives_by_itself = server.engine_report().tier.contains("multishot-receive");
    let most = if receives_by_itself { 1.05 } else { 2.05 };
    assert!(syscalls <= most, "{syscalls:.2} system calls per echo");
}

/// That a peer takes what was sent is nothing to wake for.
#[test]
fn a_peer_that_reads_wakes_nobody() {
    const ECHOES: u64 = 100;
    let families = [Family::V4, Family::Unix];
    let cells = families.map(|family| ENGINES.map(|engine| Setup { engine, family }));
    for setup in cells.into_iter().flatten() {
        let server = setup.serve_echo();
        let mut peer = Peer::connect(server.local_addr());
        let mut reply = [0; MESSAGE.len()];
        let mut waits = 0;
        for echo in 0..ECHOES {
            peer.write_all(&MESSAGE).expect("sent");
            support::eventually("the reply is out", || server.settled().sends > echo);
            let before = server.settled().waits;
            peer.read_exact(&mut reply).expect("a reply");
            waits += server.settled().waits - before;
        }
        // The question itself ends a wait, unless it comes while the one before is being answered.
        assert!(waits <= ECHOES, "{setup:?}: {waits} waits");
    }
}

/// Whose own poller has received for it need not wake that.
#[test]
fn the_future_of_block_on_is_woken_without_a_system_call() {
    const ECHOES: u64 = 100;
    /// Those of this thread's poller before and after so many, when one has been there.
    async fn figures_of(mut echo: impl AsyncFnMut()) -> (Stats, Stats) {
        let figures = || Pollers::current().expect("this thread is a poller").stats();
        echo().await;
        let before = figures();
        for _ in 0..ECHOES {
            echo().await;
        }
        (before, figures())
    }
    let families = [Family::V4, Family::V6, Family::Unix];
    let cells = families.map(|family| ENGINES.map(|engine| Setup { engine, family }));
    for setup in cells.into_iter().flatten() {
        let server = setup.serve_echo();
        let client = async {
            let address = server.local_addr().clone();
            let mut connection = Dialer::new().dial_addr(address).await.expect("a connection");
            let (before, after) = figures_of(async || {
                connection.write(&MESSAGE).expect("written");
                connection.flush().await.expect("sent");
                assert_eq!(connection.next(MESSAGE.len()).await.expect("a reply"), MESSAGE);
            })
            .await;
            assert!(after.received_bytes > before.received_bytes, "{setup:?}");
            after.wakeups - before.wakeups
        };
        let wakeups = Pollers::options().engine(setup.engine).block_on(client).expect("an engine");
        assert_eq!(wakeups, 0, "{setup:?}: in {ECHOES} echoes");
    }
    for engine in ENGINES {
        let setup = Setup { engine, family: Family::V4 };
        let peer = std::net::UdpSocket::bind(setup.address()).expect("bound");
        peer.set_read_timeout(Some(PATIENCE)).expect("set");
        let address = peer.local_addr().expect("bound");
        let echoing = thread::spawn(move || {
            let mut bytes = [0; MESSAGE.len()];
            for _ in 0..=ECHOES {
                let (len, from) = peer.recv_from(&mut bytes).expect("received");
                peer.send_to(&bytes[..len], from).expect("sent");
            }
        });
        let client = async {
            let mut socket = UdpSocket::bind(setup.address()).await.expect("bound");
            let (before, after) = figures_of(async || {
                socket.send(Outgoing::to(&MESSAGE[..], address)).await.expect("sent");
                assert_eq!(socket.recv().await.expect("a reply").bytes[..], MESSAGE);
            })
            .await;
            assert!(after.waits > before.waits, "{engine:?}");
            after.wakeups - before.wakeups
        };
        let wakeups = Pollers::options().engine(engine).block_on(client).expect("an engine");
        assert_eq!(wakeups, 0, "{engine:?}: in {ECHOES} datagrams");
        echoing.join().expect("no panic");
    }
}

/// Sixteen calls at once on one connection, half of which wait for a moment: their places are there from the calls before, and
/// timers cost nothing either.
#[test]
fn a_call_among_many_costs_no_allocation() {
    const CALLS: usize = 16;
    const ROUNDS: usize = 200;
    let _alone = alone();
    for engine in ENGINES {
        let setup = Setup { engine, family: Family::V4 };
        let service = setup.builder().on_connection(async |connection: Connection| {
            mux::serve(connection, Plain, mux::CALLS_MAX, async |request: Slice| {
                count_this_thread();
                if request[0] % 2 == 1 {
                    duopoll::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(LinkBuffer::from(request))
            })
            .await
        });
        let server = service.serve(setup.listener()).expect("a server");
        let mut peer = Peer::connect(server.local_addr());
        let mut requests = Vec::new();
        for call in 0..CALLS {
            let head = Head { kind: Kind::Request, number: call as u64, body_bytes: 64 };
            let mut header = [0; Plain::HEADER_BYTES];
            Plain.write(head, &mut header).expect("a header");
            requests.extend_from_slice(&header);
            requests.extend_from_slice(&[call as u8; 64]);
        }
        let mut replies = vec![0; requests.len()];
        let mut rounds = |rounds: usize| {
            for _ in 0..rounds {
                peer.write_all(&requests).expect("sent");
                peer.read_exact(&mut replies).expect("replies");
            }
        };
        rounds(100);
        let fewest = fewest_allocations(|| rounds(ROUNDS));
        assert_eq!(fewest, 0, "{engine:?}: in {} calls", ROUNDS * CALLS);
    }
}

/// A server that echoes datagrams, and a peer of it.
fn datagrams(setup: Setup) -> (Pollers, UdpServer, std::net::UdpSocket) {
    let (pollers, options) = (setup.pollers(1), UdpSocket::options());
    let echo = async |socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>| {
        count_this_thread();
        for datagram in datagrams.drain(..) {
            socket.stage(Outgoing::reply(datagram.bytes.clone(), &datagram));
        }
    };
    let server = UdpServer::serve(&pollers, options, setup.address(), echo).expect("a server");
    let peer = std::net::UdpSocket::bind(setup.address()).expect("bound");
    peer.connect(server.local_addr()).expect("connected");
    peer.set_read_timeout(Some(PATIENCE)).expect("set");
    (pollers, server, peer)
}

/// The kernel could tell of room as each reply leaves.
#[test]
fn a_datagram_is_waited_for_once() {
    const ROUND_TRIPS: u64 = 100;
    for engine in ENGINES {
        let (pollers, _server, peer) = datagrams(Setup { engine, family: Family::V4 });
        let round_trip = || {
            peer.send(&MESSAGE).expect("sent");
            assert_eq!(peer.recv(&mut [0; MESSAGE.len() + 1]).expect("a reply"), MESSAGE.len());
        };
        round_trip();
        let before = pollers.settled();
        (0..ROUND_TRIPS).for_each(|_| round_trip());
        let after = pollers.settled();
        let waits = (after.syscalls - before.syscalls) as f64 / ROUND_TRIPS as f64;
        // A look at the counters costs a wake-up and a wait.
        assert!((1.0..1.05).contains(&waits), "{engine:?}: {waits:.2} system calls per datagram");
    }
}

#[test]
fn a_datagram_costs_no_allocation() {
    let _alone = alone();
    for engine in ENGINES {
        let (_pollers, _server, peer) = datagrams(Setup { engine, family: Family::V4 });
        let round = || {
            for _ in 0..CONNECTIONS {
                peer.send(&MESSAGE).expect("sent");
            }
            let mut reply = [0; MESSAGE.len() + 1];
            for _ in 0..CONNECTIONS {
                assert_eq!(peer.recv(&mut reply).expect("a reply"), MESSAGE.len());
            }
        };
        // Long enough for what grows to have grown.
        (0..100).for_each(|_| round());
        assert_eq!(fewest_allocations(|| (0..50).for_each(|_| round())), 0, "{engine:?}");
    }
}
