//! Every server of datagrams gives the right answers, and what is lost or wrong is noticed.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use duopoll_benches::process::{self, ServerProcess};
use duopoll_benches::udp::load::{self, Spec};
use duopoll_benches::udp::shape::Ask;
use duopoll_benches::udp::{self, Options, Server, Start};
use duopoll_benches::{golang, sys};

const ASKS: [Ask; 4] = [Ask::Echo, Ask::Receive, Ask::Send, Ask::Bulk];

/// The Go servers, where there is a tool chain that can build them.
fn go() -> Option<&'static Path> {
    static BUILT: OnceLock<Result<std::path::PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(golang::build);
    built.as_deref().inspect_err(|note| eprintln!("{note}")).ok()
}

/// Servers that can be started here and can be asked that.
fn servers(ask: Ask) -> impl Iterator<Item = &'static Server> {
    udp::all().iter().filter(move |server| {
        (server.serves)(ask) && (matches!(server.start, Start::Function(_)) || go().is_some())
    })
}

fn start(server: &Server, ask: Ask, bytes: usize) -> (ServerProcess, SocketAddrV4) {
    let options = Options { listen: process::udp_address().unwrap(), ask, bytes };
    let program = Path::new(env!("CARGO_BIN_EXE_compare"));
    (udp::start(program, go(), server, &options, 0).unwrap(), options.listen)
}

fn spec(target: SocketAddrV4, server_pid: u32, ask: Ask, bytes: usize) -> Spec {
    Spec {
        target,
        server_pid,
        ask,
        bytes,
        peers: 3,
        rate: None,
        warm_ms: 20,
        measure_ms: 100,
        lost_after_ms: 500,
        verify: true,
    }
}

#[test]
fn every_server_answers_what_it_is_asked() {
    for ask in ASKS {
        for server in servers(ask) {
            for bytes in [64, 1200] {
                let (process, listen) = start(server, ask, bytes);
                let outcome = load::run(&spec(listen, process.pid(), ask, bytes));
                let outcome = outcome.unwrap_or_else(|error| {
                    panic!("{}, {ask:?} of {bytes} bytes: {error}", server.name)
                });
                assert!(outcome.requests > 0, "{}, {ask:?}", server.name);
                assert!(outcome.server_cpu_ns > 0, "{}, {ask:?}", server.name);
            }
        }
    }
}

/// A socket of a peer that gives up waiting after a while.
fn peer(server: SocketAddrV4) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// So many datagrams, in no order.
fn receive(socket: &UdpSocket, count: usize, server: &Server) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2000];
    let mut next = |_| {
        let len = socket.recv(&mut buffer).unwrap_or_else(|error| {
            panic!("{}: {error}", server.name);
        });
        buffer[..len].to_vec()
    };
    let mut all: Vec<Vec<u8>> = (0..count).map(&mut next).collect();
    all.sort();
    all
}

#[test]
fn echoes_of_any_length_go_to_their_sender() {
    const LENGTHS: [usize; 10] = [64, 64, 0, 64, 1, 1200, 1200, 63, 1472, 64];
    for server in servers(Ask::Echo) {
        let (_process, listen) = start(server, Ask::Echo, 1200);
        let peers: Vec<UdpSocket> = (0..5).map(|_| peer(listen)).collect();
        let datagram = |number: usize, peer: usize| {
            let byte = |index| (number * 7 + peer * 50 + index) as u8;
            (0..LENGTHS[number]).map(byte).collect::<Vec<u8>>()
        };
        for number in 0..LENGTHS.len() {
            for (index, peer) in peers.iter().enumerate() {
                peer.send(&datagram(number, index)).unwrap();
            }
        }
        for (index, peer) in peers.iter().enumerate() {
            let mut sent: Vec<Vec<u8>> =
                (0..LENGTHS.len()).map(|number| datagram(number, index)).collect();
            sent.sort();
            assert!(receive(peer, sent.len(), server) == sent, "{}", server.name);
        }
    }
}

#[test]
fn a_train_with_a_shorter_end_comes_back() {
    let bytes: Vec<u8> = (0..3 * 1200 + 500).map(|index| (index % 251) as u8).collect();
    let mut sent: Vec<Vec<u8>> = bytes.chunks(1200).map(<[u8]>::to_vec).collect();
    sent.sort();
    for server in servers(Ask::Bulk) {
        let (_process, listen) = start(server, Ask::Bulk, 1200);
        let peer = peer(listen);
        let segment: libc::c_int = 1200;
        sys::set_option(peer.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, segment).unwrap();
        peer.send(&bytes).unwrap();
        assert!(receive(&peer, sent.len(), server) == sent, "{}", server.name);
    }
}

/// A server in this process that does with each datagram what it is told, until the test ends.
fn odd_server(mut answer: impl FnMut(&mut [u8]) -> bool + Send + 'static) -> SocketAddrV4 {
    let listen = process::udp_address().unwrap();
    let socket = UdpSocket::bind(listen).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            if answer(&mut buffer[..len]) {
                let _ = socket.send_to(&buffer[..len], peer);
            }
        }
    });
    listen
}

#[test]
fn what_is_lost_is_counted_and_asked_again() {
    let spec =
        |target| Spec { measure_ms: 1000, ..spec(target, std::process::id(), Ask::Echo, 64) };
    // As many as are under way, so that nothing more comes unless it is asked for again.
    let under_way = 3 * Ask::Echo.depth();
    let mut count = 0;
    let listen = odd_server(move |_| {
        count += 1;
        !(200..200 + under_way).contains(&count)
    });
    let outcome = load::run(&spec(listen)).unwrap();
    assert!(outcome.lost >= Some(under_way as u64), "{:?}", outcome.lost);
    assert!(outcome.requests > 0);
}

#[test]
fn a_changed_echo_is_an_error() {
    let mut count = 0;
    let listen = odd_server(move |datagram| {
        count += 1;
        if count == 50 {
            datagram[40] ^= 1;
        }
        true
    });
    assert!(load::run(&spec(listen, std::process::id(), Ask::Echo, 64)).is_err());
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let server = udp::find("floor-mmsg").unwrap();
    let (process, listen) = start(server, Ask::Echo, 64);
    let rate = Some(5_000.0);
    let outcome = load::run(&Spec { rate, ..spec(listen, process.pid(), Ask::Echo, 64) }).unwrap();
    let rate = outcome.requests as f64 / outcome.seconds;
    // A closed loop would be many times faster; a busy machine may answer some too late for the window.
    assert!((3_000.0..6_000.0).contains(&rate), "{rate} datagrams/s");
}
