//! Two connections joined, with a peer at each end.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use duopoll::relay::{Relay, Relayed, Side};
use duopoll::task::JoinHandle;
use duopoll::{Connection, Dialer, Limits, Pollers};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{Family, PATIENCE, Pattern, Peer, Random, Setup, eventually, scaled};

on_every_setup!(
    every_byte_goes_both_ways_once,
    an_end_of_one_direction_leaves_the_other,
    what_was_received_before_comes_first,
    a_reset_is_a_reset_on_the_other_side,
    who_does_not_read_holds_up_the_other,
    who_takes_nothing_for_long_ends_both,
    an_idle_pair_ends,
    a_relay_that_is_dropped_sends_what_it_has,
    who_reads_slowly_is_not_over_time,
    an_answer_before_a_reset_arrives,
    the_kernel_moves_large_pieces,
    without_splice_nothing_goes_past_the_poller,
    a_reset_in_bulk_comes_behind_the_bytes,
    who_does_not_read_in_bulk_loses_nothing,
    timeouts_go_on_in_bulk,
    a_relay_that_is_dropped_in_bulk_cuts_nothing,
    whoever_ends_a_connection_in_bulk_ends_it,
    pollers_that_stop_in_bulk_end_both,
    one_direction_of_bulk_does_not_hide_the_other,
    a_pause_is_one_in_bulk,
    an_urgent_byte_holds_up_nobody,
    what_the_kernel_has_needs_no_memory_of_a_budget,
);

/// Two connections on one poller, and their peers.
struct Pair {
    pollers: Pollers,
    connections: (Connection, Connection),
    peers: (Peer, Peer),
}

impl Pair {
    fn new(setup: Setup) -> Pair {
        let pollers = setup.pollers(1);
        let connect = || {
            let mut limits = Limits::default();
            limits.output_high_bytes = 64 << 10;
            let listener = setup.listener().pollers(pollers.clone()).limits(limits);
            let peer = Peer::connect(&listener.local_addr().expect("bound"));
            (block_on(listener.accept()).expect("accepted"), peer)
        };
        let ((first, left), (second, right)) = (connect(), connect());
        Pair { pollers, connections: (first, second), peers: (left, right) }
    }

    /// Relays on the poller.
    fn relayed(self, relay: Relay) -> (Pollers, Peer, Peer, JoinHandle<Relayed>) {
        let (first, second) = self.connections;
        let handle = self.pollers.spawn(move || async move { relay.run(first, second).await });
        (self.pollers, self.peers.0, self.peers.1, handle)
    }
}

fn ended(handle: JoinHandle<Relayed>) -> Relayed {
    block_on(handle).expect("no panic")
}

/// One side resets, and the other sees that.
fn a_reset_comes_over(first: bool, peers: (Peer, Peer), handle: JoinHandle<Relayed>) {
    let (resets, mut sees) = if first { peers } else { (peers.1, peers.0) };
    resets.reset();
    let error = sees.read_rest().expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let broken = ended(handle).result.expect_err("it is broken");
    assert_eq!(broken.error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(broken.side == Side::First, first);
}

/// Sends, and then the FIN.
fn send(mut peer: Peer, bytes: usize, seed: u64) {
    let (mut random, mut pattern) = (Random::new(seed), Pattern::new(seed));
    let mut left = bytes;
    while left > 0 {
        let piece = pattern.next(random.length(100_000).min(left));
        left -= piece.len();
        peer.write_all(piece).expect("sent");
    }
    peer.shutdown(Shutdown::Write);
}

/// Reads to the end.
fn receive(mut peer: Peer, seed: u64) -> usize {
    let (mut random, mut pattern) = (Random::new(seed + 1), Pattern::new(seed));
    let (mut buffer, mut seen) = (vec![0; 100_000], 0);
    loop {
        let n = random.length(buffer.len());
        match peer.read(&mut buffer[..n]).expect("read") {
            0 => return seen,
            n => {
                assert!(pattern.matches(&buffer[..n]), "other bytes after {seen}");
                seen += n;
            }
        }
    }
}

fn every_byte_goes_both_ways_once(setup: Setup) {
    let bytes = scaled(16 << 20);
    let (_pollers, left, right, handle) = Pair::new(setup).relayed(Relay::new());
    let others = (left.try_clone(), right.try_clone());
    let sends = [
        thread::spawn(move || send(others.0, bytes, 1)),
        thread::spawn(move || send(others.1, bytes / 2, 2)),
    ];
    let back = thread::spawn(move || receive(left, 2));
    assert_eq!(receive(right, 1), bytes);
    assert_eq!(back.join().expect("no panic"), bytes / 2);
    sends.into_iter().for_each(|send| send.join().expect("no panic"));
    let relayed = ended(handle);
    assert!(relayed.result.is_ok(), "{relayed:?}");
    assert_eq!((relayed.there, relayed.back), (bytes as u64, bytes as u64 / 2));
}

fn an_end_of_one_direction_leaves_the_other(setup: Setup) {
    let (_pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    left.write_all(b"the request").expect("sent");
    left.shutdown(Shutdown::Write);
    assert_eq!(right.read_rest().expect("the end"), b"the request");
    for part in [&b"a"[..], b"long", b"reply"] {
        right.write_all(part).expect("sent");
        let mut seen = vec![0; part.len()];
        left.read_exact(&mut seen).expect("a part");
        assert_eq!(seen, part);
    }
    right.shutdown(Shutdown::Write);
    assert_eq!(left.read_rest().expect("the end"), b"");
    let relayed = ended(handle);
    assert!(relayed.result.is_ok(), "{relayed:?}");
    assert_eq!((relayed.there, relayed.back), (11, 10));
}

fn what_was_received_before_comes_first(setup: Setup) {
    let mut pair = Pair::new(setup);
    pair.peers.0.write_all(b"HEADER and more").expect("sent");
    let first = &mut pair.connections.0;
    assert_eq!(block_on(first.next(7)).expect("a header"), b"HEADER ");
    block_on(first.fill(8)).expect("the rest");
    let (_pollers, left, mut right, handle) = pair.relayed(Relay::new());
    let mut seen = [0; 8];
    right.read_exact(&mut seen).expect("relayed");
    assert_eq!(&seen, b"and more");
    drop((left, right));
    assert_eq!(ended(handle).there, 8);
}

fn a_reset_is_a_reset_on_the_other_side(setup: Setup) {
    if matches!(setup.family, Family::Unix) {
        // They know none.
        return;
    }
    for first in [true, false] {
        let (_pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
        left.write_all(b"x").expect("sent");
        right.read_exact(&mut [0]).expect("relayed");
        a_reset_comes_over(first, (left, right), handle);
    }
}

fn who_does_not_read_holds_up_the_other(setup: Setup) {
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    left.set_timeout(Duration::from_millis(100));
    let piece = vec![7; 64 << 10];
    let mut pushed = 0;
    // The kernel's buffers are full, and ours are bounded.
    let error = loop {
        match left.write(&piece) {
            Ok(n) => pushed += n as u64,
            Err(error) => break error,
        }
        assert!(pushed < 1 << 30, "there is no bound");
    };
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    let stats = pollers.settled();
    let held = stats.received_bytes - stats.sent_bytes;
    // What may be unsent, what was received when that was reached, and what waits behind it.
    assert!(held <= (64 << 10) + (2 << 20) + setup.overrun_bytes(), "{held} bytes");
    left.set_timeout(PATIENCE);
    // The other direction goes on.
    right.write_all(b"back").expect("sent");
    let mut seen = [0; 4];
    left.read_exact(&mut seen).expect("relayed");
    assert_eq!(&seen, b"back");
    left.shutdown(Shutdown::Write);
    assert_eq!(right.read_rest().expect("all of it").len() as u64, pushed);
    drop(right);
    assert_eq!(ended(handle).there, pushed);
}

fn who_takes_nothing_for_long_ends_both(setup: Setup) {
    let relay = Relay::new().write_timeout(Duration::from_millis(200));
    let (_pollers, mut left, right, handle) = Pair::new(setup).relayed(relay);
    let pushes = thread::spawn(move || {
        let piece = vec![7; 64 << 10];
        while left.write_all(&piece).is_ok() {}
    });
    let broken = ended(handle).result.expect_err("it is broken");
    assert_eq!((broken.side, broken.error.kind()), (Side::Second, ErrorKind::TimedOut));
    pushes.join().expect("no panic");
    drop(right);
}

fn an_idle_pair_ends(setup: Setup) {
    let relay = Relay::new().idle_timeout(Duration::from_millis(200));
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(relay);
    left.write_all(b"x").expect("sent");
    right.read_exact(&mut [0]).expect("relayed");
    let broken = ended(handle).result.expect_err("it is over");
    assert_eq!(broken.error.kind(), ErrorKind::TimedOut);
    eventually("both are over", || pollers.settled().open_connections == 0);
    assert_eq!(left.read(&mut [0]).expect("a FIN"), 0);
    assert_eq!(right.read(&mut [0]).expect("a FIN"), 0);

    // Also of a server's connection, that has begun something.
    let upstream = setup.serve(async |connection: &mut Connection| {
        connection.read_u8().await?;
        connection.write(b"y")
    });
    let address = upstream.local_addr().to_string();
    let server = setup.builder().on_connection(async move |client: Connection| {
        let upstream = Dialer::new().dial(&address).await?;
        let relayed = relay.run(client, upstream).await;
        relayed.result.map_err(|broken| broken.error)
    });
    let server = server.serve(setup.listener()).expect("a server");
    let mut client = Peer::connect(server.local_addr());
    assert_eq!(client.round_trip(b"x"), b"y");
    assert_eq!(client.read(&mut [0]).expect("a FIN"), 0);
    // What waits to be sent is cut short.
    if setup.family != Family::Unix {
        let mut limits = Limits::default();
        limits.output_high_bytes = 4 << 10;
        let server =
            setup.builder().limits(limits).on_connection(async move |client: Connection| {
                let (upstream, source) = UnixStream::pair()?;
                let pollers = Pollers::current().expect("a poller");
                let upstream = pollers.adopt(upstream).await?;
                // Until nobody is there any more.
                thread::spawn(move || (&source).write_all(&[7; 32 << 20]));
                let relayed = relay.run(client, upstream).await;
                relayed.result.map_err(|broken| broken.error)
            });
        let server = server.serve(setup.listener()).expect("a server");
        let mut client = Peer::connect(server.local_addr());
        eventually("it is over", || server.stats().closed == 2);
        assert!(client.read_rest().is_err());
    }
}

fn a_relay_that_is_dropped_sends_what_it_has(setup: Setup) {
    let pair = Pair::new(setup);
    let (pollers, mut left, mut right, handle) = pair.relayed(Relay::new());
    left.write_all(&[7; 50_000]).expect("sent");
    eventually("it has come", || pollers.settled().received_bytes == 50_000);
    handle.abort();
    assert_eq!(right.read_rest().expect("the end").len(), 50_000);
    let rest: io::Result<Vec<u8>> = left.read_rest();
    assert_eq!(rest.expect("the end"), b"");
    assert!(block_on(handle).is_err());
}

fn who_reads_slowly_is_not_over_time(setup: Setup) {
    const BYTES: usize = 6 << 20;
    let relays = |splices| {
        let relay = Relay::new().idle_timeout(LATE).write_timeout(LATE).splice(splices);
        let (_pollers, mut left, mut right, handle) = Pair::new(setup).relayed(relay);
        // The kernel on its side could take all of it, and nobody would see it read.
        if let Peer::Tcp(stream) = &right {
            SockRef::from(stream).set_recv_buffer_size(256 << 10).expect("set");
        }
        let pushes = thread::spawn(move || {
            left.write_all(&vec![7; BYTES]).expect("sent");
            left.shutdown(Shutdown::Write);
            left
        });
        let (mut seen, mut some) = (0, vec![0; 64 << 10]);
        while seen < BYTES {
            seen += right.read(&mut some).expect("it is sent to");
            thread::sleep(Duration::from_millis(25));
        }
        drop(right);
        pushes.join().expect("no panic");
        let relayed = ended(handle);
        assert!(relayed.result.is_ok(), "splices {splices}: {relayed:?}");
        assert_eq!(relayed.there, BYTES as u64);
    };
    thread::scope(|scope| {
        scope.spawn(|| relays(true));
        scope.spawn(|| relays(false));
    });
}

/// Longer than a receiver keeps it to itself that it has read, and shorter than it reads. It is over when the last byte has just been taken,
/// half of the time after it was sent.
const LATE: Duration = Duration::from_millis(1200);

fn an_answer_before_a_reset_arrives(setup: Setup) {
    if matches!(setup.family, Family::Unix) {
        return;
    }
    for _ in 0..10 {
        let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
        left.write_all(b"a request").expect("sent");
        right.read_exact(&mut [0; 9]).expect("relayed");
        // What comes now comes at once.
        let (stops, goes) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let stopped = pollers.spawn({
            let (stops, goes) = (stops.clone(), goes.clone());
            move || async move {
                stops.wait();
                goes.wait();
            }
        });
        stops.wait();
        left.write_all(&[7; 1000]).expect("sent");
        right.write_all(b"refused").expect("sent");
        right.reset();
        goes.wait();
        block_on(stopped).expect("no panic");
        let mut seen = [0; 7];
        left.read_exact(&mut seen).expect("the answer");
        assert_eq!(&seen, b"refused");
        assert_eq!(left.read_rest().expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(ended(handle).result.expect_err("it is broken").side, Side::Second);
    }
}

/// How much in large pieces is bulk beyond doubt.
const BULK_BYTES: usize = 8 << 20;

/// Sends large pieces one by one, each when the one before has arrived, until the kernel has moved some of them.
fn begin_bulk(pollers: &Pollers, left: &mut Peer, right: &mut Peer) -> usize {
    let (piece, mut seen) = (vec![7; 64 << 10], vec![0; 64 << 10]);
    let mut sent = 0;
    loop {
        left.write_all(&piece).expect("sent");
        right.read_exact(&mut seen).expect("relayed");
        assert!(seen.iter().all(|&byte| byte == 7));
        sent += piece.len();
        if pollers.settled().received_bytes < sent as u64 {
            return sent;
        }
        assert!(sent < BULK_BYTES, "the kernel moves nothing");
    }
}

fn the_kernel_moves_large_pieces(setup: Setup) {
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    let mut there = begin_bulk(&pollers, &mut left, &mut right);
    let mut back = 0;
    // From one to the other and back.
    for round in 0..3 {
        for (n, piece) in [(20, 100_000), (40, 100)] {
            for i in 0..n {
                let piece = vec![(round + i) as u8; piece];
                let mut seen = vec![0; piece.len()];
                left.write_all(&piece).expect("sent");
                right.read_exact(&mut seen).expect("relayed");
                assert_eq!(seen, piece);
                right.write_all(&piece).expect("sent");
                left.read_exact(&mut seen).expect("relayed");
                assert_eq!(seen, piece);
                (there, back) = (there + piece.len(), back + piece.len());
            }
        }
    }
    drop((left, right));
    let relayed = ended(handle);
    assert!(relayed.result.is_ok(), "{relayed:?}");
    assert_eq!((relayed.there, relayed.back), (there as u64, back as u64));
}

fn without_splice_nothing_goes_past_the_poller(setup: Setup) {
    let (pollers, mut left, mut right, handle) =
        Pair::new(setup).relayed(Relay::new().splice(false));
    let (piece, mut seen) = (vec![7; 64 << 10], vec![0; 64 << 10]);
    for _ in 0..BULK_BYTES / piece.len() {
        left.write_all(&piece).expect("sent");
        right.read_exact(&mut seen).expect("relayed");
    }
    let stats = pollers.settled();
    assert_eq!((stats.received_bytes, stats.sent_bytes), (BULK_BYTES as u64, BULK_BYTES as u64));
    drop((left, right));
    ended(handle);
}

fn a_reset_in_bulk_comes_behind_the_bytes(setup: Setup) {
    if matches!(setup.family, Family::Unix) {
        return;
    }
    for first in [true, false] {
        let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
        begin_bulk(&pollers, &mut left, &mut right);
        a_reset_comes_over(first, (left, right), handle);
    }
}

fn who_does_not_read_in_bulk_loses_nothing(setup: Setup) {
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    let mut pushed = begin_bulk(&pollers, &mut left, &mut right);
    let before = pushed;
    left.set_timeout(Duration::from_millis(300));
    let piece = vec![9; 64 << 10];
    while let Ok(n) = left.write(&piece) {
        pushed += n;
        assert!(pushed < 1 << 30, "there is no bound");
    }
    left.set_timeout(PATIENCE);
    right.write_all(b"back").expect("sent");
    let mut seen = [0; 4];
    left.read_exact(&mut seen).expect("relayed");
    assert_eq!(&seen, b"back");
    left.shutdown(Shutdown::Write);
    let rest = right.read_rest().expect("all of it");
    assert_eq!(rest.len(), pushed - before);
    assert!(rest.iter().all(|&byte| byte == 9));
    drop((left, right));
    let relayed = ended(handle);
    assert!(relayed.result.is_ok(), "{relayed:?}");
    assert_eq!(relayed.there, pushed as u64);
}

fn timeouts_go_on_in_bulk(setup: Setup) {
    let relay = Relay::new().write_timeout(Duration::from_millis(200));
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(relay);
    begin_bulk(&pollers, &mut left, &mut right);
    let pushes = thread::spawn(move || while left.write_all(&[7; 64 << 10]).is_ok() {});
    let broken = ended(handle).result.expect_err("it is broken");
    assert_eq!((broken.side, broken.error.kind()), (Side::Second, ErrorKind::TimedOut));
    pushes.join().expect("no panic");

    let relay = Relay::new().idle_timeout(Duration::from_millis(200));
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(relay);
    begin_bulk(&pollers, &mut left, &mut right);
    let broken = ended(handle).result.expect_err("it is over");
    assert_eq!(broken.error.kind(), ErrorKind::TimedOut);
    assert_eq!(right.read_rest().expect("a FIN"), b"");
    assert_eq!(left.read_rest().expect("a FIN"), b"");
}

fn a_relay_that_is_dropped_in_bulk_cuts_nothing(setup: Setup) {
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    begin_bulk(&pollers, &mut left, &mut right);
    left.write_all(&[7; 10_000]).expect("sent");
    handle.abort();
    // What the relay has not taken is nowhere; whatever it has taken arrives.
    let seen = right.read_rest().expect("the end");
    assert!(seen.len() <= 10_000);
    drop((left, right));
    assert!(block_on(handle).is_err());
    eventually("both are over", || pollers.settled().open_connections == 0);
}

fn whoever_ends_a_connection_in_bulk_ends_it(setup: Setup) {
    for aborts in [true, false] {
        let pair = Pair::new(setup);
        let control = pair.connections.1.control();
        let (pollers, mut left, mut right, handle) = pair.relayed(Relay::new());
        begin_bulk(&pollers, &mut left, &mut right);
        if aborts {
            control.abort()
        } else {
            control.close()
        }
        let broken = ended(handle).result.expect_err("it is broken");
        assert_eq!(broken.side, Side::Second);
        let rest = right.read_rest();
        assert!(aborts || rest.is_ok_and(|rest| rest.is_empty()));
        drop((left, right));
        eventually("both are over", || pollers.settled().open_connections == 0);
    }
}

fn pollers_that_stop_in_bulk_end_both(setup: Setup) {
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    begin_bulk(&pollers, &mut left, &mut right);
    pollers.stop();
    drop(pollers);
    assert!(block_on(handle).is_err());
    assert!(matches!(right.read_rest(), Ok(rest) if rest.is_empty()));
    let _ = left.read_rest();
}

/// One side takes nothing while the other direction goes on: the write timeout is of that one.
fn one_direction_of_bulk_does_not_hide_the_other(setup: Setup) {
    let relay = Relay::new().write_timeout(Duration::from_millis(200));
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(relay);
    begin_bulk(&pollers, &mut left, &mut right);
    let (reads, mut pushes) = (right.try_clone(), right);
    let busy = [
        thread::spawn(move || while left.write_all(&[7; 64 << 10]).is_ok() {}),
        thread::spawn(move || {
            let mut reads = reads;
            while reads.read(&mut [0; 64 << 10]).is_ok_and(|n| n > 0) {}
        }),
        thread::spawn(move || while pushes.write_all(&[7; 64 << 10]).is_ok() {}),
    ];
    let broken = ended(handle).result.expect_err("it is broken");
    assert_eq!((broken.side, broken.error.kind()), (Side::First, ErrorKind::TimedOut));
    busy.into_iter().for_each(|busy| busy.join().expect("no panic"));
}

fn a_pause_is_one_in_bulk(setup: Setup) {
    let pair = Pair::new(setup);
    let control = pair.connections.0.control();
    let (pollers, mut left, mut right, handle) = pair.relayed(Relay::new());
    begin_bulk(&pollers, &mut left, &mut right);
    control.pause();
    left.set_timeout(Duration::from_millis(200));
    let (mut pushed, piece) = (0, vec![7; 64 << 10]);
    while let Ok(n) = left.write(&piece) {
        pushed += n;
        assert!(pushed < 1 << 30, "there is no bound");
    }
    left.set_timeout(PATIENCE);
    right.set_timeout(Duration::from_millis(50));
    let mut came = 0;
    while let Ok(n) = right.read(&mut [0; 64 << 10]) {
        came += n;
    }
    // A piece or two were on their way.
    assert!(came <= 1 << 20, "{came} of {pushed} bytes");
    control.resume();
    right.set_timeout(PATIENCE);
    left.shutdown(Shutdown::Write);
    came += right.read_rest().expect("all of it").len();
    assert_eq!(came, pushed);
    drop((left, right));
    assert!(ended(handle).result.is_ok());
}

/// The kernel splices nothing of what is behind it, while the other direction goes on.
fn an_urgent_byte_holds_up_nobody(setup: Setup) {
    const BYTES: usize = 8 << 20;
    let (pollers, mut left, mut right, handle) = Pair::new(setup).relayed(Relay::new());
    let Peer::Tcp(tcp) = left.try_clone() else { return };
    begin_bulk(&pollers, &mut left, &mut right);
    let (mut takes, mut pushes) = (left.try_clone(), right.try_clone());
    let busy = [
        thread::spawn(move || while takes.read(&mut [0; 64 << 10]).is_ok_and(|n| n > 0) {}),
        thread::spawn(move || while pushes.write_all(&[7; 64 << 10]).is_ok() {}),
    ];
    let sends = thread::spawn(move || {
        left.write_all(&vec![7; BYTES / 2]).expect("sent");
        SockRef::from(&tcp).send_out_of_band(b"!").expect("sent");
        left.write_all(&vec![7; BYTES / 2]).expect("sent");
        left
    });
    // The urgent byte is nobody's.
    right.read_exact(&mut vec![0; BYTES]).expect("all of it");
    let left = sends.join().expect("no panic");
    drop(right);
    handle.abort();
    let _ = block_on(handle);
    drop(left);
    busy.into_iter().for_each(|busy| busy.join().expect("no panic"));
}

/// Both ends of many pairs stop reading for a while, at the same moment: what is in the pipes then comes back to the connections, all of
/// it at once, and is more than the budget has.
fn what_the_kernel_has_needs_no_memory_of_a_budget(setup: Setup) {
    const PAIRS: usize = 12;
    let bytes = scaled(8 << 20);
    // Longer than the kernel goes on by itself.
    const PAUSE: Duration = Duration::from_millis(300);
    let options = Pollers::options().engine(setup.engine).count(1).memory_budget(2 << 20);
    let pollers = options.start().expect("a poller");
    let connect = |pollers: &Pollers| {
        let listener = setup.listener().pollers(pollers.clone());
        let peer = Peer::connect(&listener.local_addr().expect("bound"));
        (block_on(listener.accept()).expect("accepted"), peer)
    };
    let together = Arc::new(Barrier::new(2 * PAIRS));
    let mut threads = Vec::new();
    let mut relays = Vec::new();
    for pair in 0..PAIRS as u64 {
        let ((first, left), (second, right)) = (connect(&pollers), connect(&pollers));
        relays.push(pollers.spawn(move || async move { Relay::new().run(first, second).await }));
        for (peer, sends, receives) in [(left, pair, pair + 100), (right, pair + 100, pair)] {
            let (to, together) = (peer.try_clone(), together.clone());
            threads.push(thread::spawn(move || {
                let sender = thread::spawn(move || send(to, bytes, sends));
                let mut pattern = Pattern::new(receives);
                let (mut peer, mut buffer, mut seen) = (peer, vec![0; 64 << 10], 0);
                while seen < bytes / 2 {
                    let n = peer.read(&mut buffer).expect("read");
                    assert!(n > 0 && pattern.matches(&buffer[..n]), "after {seen}");
                    seen += n;
                }
                together.wait();
                thread::sleep(PAUSE);
                loop {
                    match peer.read(&mut buffer).expect("read") {
                        0 => break,
                        n => assert!(pattern.matches(&buffer[..n]), "after {seen}"),
                    }
                }
                sender.join().expect("no panic");
            }));
        }
    }
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    for relay in relays {
        let relayed = ended(relay);
        assert!(relayed.result.is_ok(), "{relayed:?}");
        assert_eq!((relayed.there, relayed.back), (bytes as u64, bytes as u64));
    }
    assert_eq!(pollers.settled().memory_resets, 0);
}
