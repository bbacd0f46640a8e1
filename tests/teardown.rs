//! Pollers that go while very much is in flight leave nothing behind.
//!
//! One test in a process of its own, since it counts the process's descriptors and blocks. `ci/asan.sh` has a memory
//! checker watch it.

mod support;

use std::os::unix::net::UnixStream;
use std::pin::pin;

use duopoll::uring::Features;
use duopoll::{Connection, Engine, Pollers, Pool};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{eventually, open_descriptors, poll_once, raise_descriptor_limit};

/// Each has a receive and a send in flight.
const CONNECTIONS: usize = 5_000;
/// Descriptors for what is not a connection.
const OTHERS: usize = 200;

/// What each connection sends, to a peer that does not read.
static BYTES: [u8; 256 << 10] = [7; 256 << 10];

#[test]
fn pollers_go_with_ten_thousand_operations_in_flight() {
    let connections = CONNECTIONS.min((raise_descriptor_limit() - OTHERS) / 2);
    // Of what a small machine has, each could hold less than it sends here.
    Pool::global().set_max_live_bytes(usize::MAX);
    for (engine, features) in [
        (Engine::Epoll, Features::ALL),
        (Engine::Uring, Features::BASE),
        (Engine::Uring, Features::ALL),
    ] {
        let (blocks, descriptors) = (Pool::global().stats().live_blocks, open_descriptors());
        let pollers = Pollers::options().engine(engine).uring(features).count(1).start();
        let pollers = pollers.expect("a poller");
        let (mut ours, peers): (Vec<_>, Vec<_>) = (0..connections).map(|_| open(&pollers)).unzip();
        eventually("all are in flight", || {
            let stats = pollers.settled();
            stats.sends >= connections as u64 && stats.short_sends >= connections as u64
        });
        pollers.stop();
        for connection in &mut ours {
            let error = block_on(connection.more()).expect_err("nobody polls");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
        }
        drop((ours, peers, pollers));
        eventually("all is given back", || {
            open_descriptors() == descriptors && Pool::global().stats().live_blocks == blocks
        });
    }
}

/// A connection that sends more than its peer's kernel takes.
fn open(pollers: &Pollers) -> (Connection, UnixStream) {
    let (ours, peer) = UnixStream::pair().expect("descriptors");
    // The least that there can be.
    SockRef::from(&ours).set_send_buffer_size(1).expect("a size");
    let mut connection = block_on(pollers.adopt(ours)).expect("adopted");
    connection.push(&BYTES[..]);
    assert!(poll_once(pin!(connection.flush())).is_ready());
    (connection, peer)
}
