//! Sends without a copy: every byte arrives, nothing is written anew before the kernel is done with it, and nothing stays
//! behind.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::thread;
use std::time::Duration;

use duopoll::{Connection, Control, Limits, Pollers, Pool, Slice, Stats};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{
    Family, Pattern, Peer, Random, Setup, eventually, poll_once, sent_mebibytes, wait_until_still,
};

on_every_setup!(
    every_byte_arrives_once,
    a_block_is_kept_until_its_notice,
    small_pieces_go_by_themselves_and_in_order,
    no_more_is_pinned_than_allowed,
    where_the_kernel_copies_it_is_not_asked_again,
    a_peer_that_never_reads_gives_everything_back_at_the_end,
    a_reset_gives_everything_back,
    an_abort_gives_everything_back,
    a_socket_is_detached_without_notices,
);

const THRESHOLD: usize = 4 << 10;
const PIECE: usize = 64 << 10;

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.zerocopy_bytes = Some(THRESHOLD);
    limits
}

/// A connection that sends without a copy; none where that cannot be, which it then says.
fn connected(setup: Setup, limits: Limits) -> Option<(Pollers, Connection, Peer)> {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone()).limits(limits);
    let peer = Peer::connect(&listener.local_addr().expect("bound"));
    match block_on(listener.accept()) {
        Ok(connection) => Some((pollers, connection, peer)),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            let tier = &pollers.engine_reports()[0].tier;
            assert!(!tier.contains("zero-copy-send"), "{tier}: {error}");
            assert!(error.to_string().contains("without a copy"), "{error}");
            None
        }
    }
}

/// Bytes whose sends the kernel has told of.
fn told(stats: &Stats) -> u64 {
    stats.zerocopy_bytes + stats.zerocopy_copied_bytes
}

/// Sends pieces of all sizes and kinds, in memory that is used again as soon as it is free.
fn send_pieces(connection: &mut Connection, bytes: usize, seed: u64) {
    let control = connection.control();
    let (mut random, mut pattern) = (Random::new(seed), Pattern::new(seed));
    let mut left = bytes;
    while left > 0 {
        // Over loopback it would be given up.
        retry(&control);
        for _ in 0..random.between(1, 8) {
            let piece = pattern.next(random.length(4 * PIECE).min(left));
            left -= piece.len();
            match random.between(0, 2) {
                0 => connection.write(piece).expect("memory"),
                1 => connection.push(piece.to_vec()),
                _ => connection.push(Slice::copy_from(piece, Pool::global()).expect("memory")),
            }
        }
        block_on(connection.flush()).expect("flushed");
    }
    block_on(connection.drain()).expect("sent");
}

fn retry(control: &Control) {
    control.set_zerocopy(Some(THRESHOLD)).expect("it could before");
}

fn every_byte_arrives_once(setup: Setup) {
    let bytes = sent_mebibytes() << 20;
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    thread::scope(|scope| {
        // If it fails, its end of the connection is gone, and the sender does not wait.
        scope.spawn(move || {
            let (mut random, mut pattern) = (Random::new(1), Pattern::new(31));
            let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
            while received < bytes {
                // In bits, and in one go.
                let max = random.length(buffer.len());
                let n = peer.read(&mut buffer[..max]).expect("received");
                assert_ne!(n, 0, "ended after {received} bytes");
                assert!(pattern.matches(&buffer[..n]), "wrong bytes behind {received}");
                received += n;
                if random.between(0, 99) == 0 {
                    thread::yield_now();
                }
            }
        });
        send_pieces(&mut connection, bytes, 31);
    });
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
    let stats = pollers.settled();
    let (sends, told) = (stats.zerocopy_sends, told(&stats));
    assert_eq!((sends > 0, told > 0), (setup.family != Family::Unix, setup.family != Family::Unix));
    assert!(told <= stats.sent_bytes && stats.sent_bytes == bytes as u64, "{stats}");
}

/// Fills what the kernel takes from a sender whose peer does not read; at least so many bytes of it are not copied.
/// Returns how many bytes that were.
fn fill(pollers: &Pollers, connection: &mut Connection, seed: u64) -> usize {
    SockRef::from(&*connection).set_send_buffer_size(4 << 20).expect("a size");
    let mut pattern = Pattern::new(seed);
    let mut bytes = 0;
    while connection.writer_mut().unsent_len() == 0 && bytes < 64 << 20 {
        retry(&connection.control());
        let piece = pattern.next(PIECE);
        connection.push(Slice::copy_from(piece, Pool::global()).expect("memory"));
        bytes += piece.len();
        assert!(poll_once(pin!(connection.flush())).is_ready());
        wait_until_still(pollers);
    }
    bytes
}

fn a_block_is_kept_until_its_notice(setup: Setup) {
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    let bytes = fill(&pollers, &mut connection, 32);
    let pinned = pollers.settled().zerocopy_pinned_bytes;
    assert_eq!(pinned >= PIECE as u64, setup.family != Family::Unix, "{pinned} bytes are pinned");
    // Whatever the pool has is overwritten, more than once.
    for _ in 0..4 {
        let scribble = vec![0xEE; PIECE];
        let slices: Vec<_> = (0..2 * bytes.div_ceil(PIECE))
            .map(|_| Slice::copy_from(&scribble, Pool::global()).expect("memory"))
            .collect();
        drop(slices);
    }
    let mut received = vec![0; bytes];
    peer.read_exact(&mut received).expect("received");
    assert!(Pattern::new(32).matches(&received), "bytes were overwritten");
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
}

fn small_pieces_go_by_themselves_and_in_order(setup: Setup) {
    const ROUNDS: usize = 20;
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    let control = connection.control();
    let mut pattern = Pattern::new(33);
    for _ in 0..ROUNDS {
        retry(&control);
        let body = pattern.next(PIECE);
        connection.write(&(body.len() as u32).to_be_bytes()).expect("memory");
        connection.push(body);
        connection.write(b"end").expect("memory");
        block_on(connection.drain()).expect("sent");
        let mut received = vec![0; 4 + body.len() + 3];
        peer.read_exact(&mut received).expect("received");
        let (len, rest) = received.split_at(4);
        assert_eq!(len, (body.len() as u32).to_be_bytes());
        assert!(rest.starts_with(body) && rest.ends_with(b"end"));
    }
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
    let stats = pollers.settled();
    if setup.family != Family::Unix {
        // The bodies, and nothing else.
        let bodies = Pattern::new(33).take_lengths(ROUNDS, PIECE);
        assert_eq!((told(&stats), stats.zerocopy_fallbacks), (bodies, 0), "{stats}");
    }
}

fn no_more_is_pinned_than_allowed(setup: Setup) {
    const MAX: usize = 3 * PIECE / 2;
    let mut limits = limits();
    limits.zerocopy_pinned_bytes = MAX;
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits) else { return };
    let bytes = fill(&pollers, &mut connection, 34);
    let pinned = pollers.settled().zerocopy_pinned_bytes;
    let expected = if setup.family == Family::Unix { 0 } else { MAX as u64 };
    assert_eq!(pinned, expected);
    let mut received = vec![0; bytes];
    peer.read_exact(&mut received).expect("received");
    assert!(Pattern::new(34).matches(&received));
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
}

/// Loopback copies, and a Unix socket refuses.
fn where_the_kernel_copies_it_is_not_asked_again(setup: Setup) {
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    let mut exchange = || {
        connection.push(vec![7; PIECE]);
        block_on(connection.drain()).expect("sent");
        peer.read_exact(&mut vec![0; PIECE]).expect("received");
        eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
        let Stats { zerocopy_sends, zerocopy_fallbacks, .. } = pollers.settled();
        (zerocopy_sends, zerocopy_fallbacks)
    };
    // A single notice may be mistaken.
    let first = (0..4).map(|_| exchange()).last().expect("four");
    match setup.family {
        Family::Unix => assert_eq!(first, (0, 1)),
        _ => assert!(first.0 >= 1 && first.1 == 0, "{first:?}"),
    }
    for _ in 0..10 {
        assert_eq!(exchange(), first);
    }
    let stats = pollers.settled();
    assert_eq!((stats.zerocopy_bytes, stats.zerocopy_copied_bytes > 0), (0, first.0 > 0));
}

fn a_peer_that_never_reads_gives_everything_back_at_the_end(setup: Setup) {
    let mut limits = limits();
    limits.write_timeout = Some(Duration::from_millis(50));
    let Some((pollers, mut connection, peer)) = connected(setup, limits) else { return };
    fill(&pollers, &mut connection, 35);
    drop(connection);
    eventually("it is over", || pollers.settled().closed == 1);
    assert_eq!(pollers.settled().forced, 1);
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
    drop(peer);
}

fn a_reset_gives_everything_back(setup: Setup) {
    let Some((pollers, mut connection, peer)) = connected(setup, limits()) else { return };
    fill(&pollers, &mut connection, 36);
    peer.reset();
    block_on(connection.drain()).expect_err("a reset");
    drop(connection);
    eventually("it is over", || pollers.settled().closed == 1);
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
}

fn an_abort_gives_everything_back(setup: Setup) {
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    fill(&pollers, &mut connection, 37);
    connection.abort();
    eventually("it is over", || pollers.settled().closed == 1);
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
    // What had arrived is right.
    let mut received = Vec::new();
    let _ = peer.read_to_end(&mut received);
    assert!(Pattern::new(37).matches(&received));
}

/// Whoever gets the socket knows nothing of notices.
fn a_socket_is_detached_without_notices(setup: Setup) {
    let Some((pollers, mut connection, mut peer)) = connected(setup, limits()) else { return };
    for _ in 0..20 {
        retry(&connection.control());
        connection.push(vec![7; PIECE]);
        block_on(connection.flush()).expect("flushed");
        peer.read_exact(&mut vec![0; PIECE]).expect("received");
    }
    let (socket, _) = block_on(connection.detach()).expect("detached");
    assert_eq!(pollers.settled().zerocopy_pinned_bytes, 0);
    let socket = match setup.family {
        Family::Unix => Peer::Unix(socket.into()),
        _ => Peer::Tcp(socket.into()),
    };
    if let Peer::Tcp(stream) = &socket {
        let queued = SockRef::from(stream).recv_with_flags(&mut [], libc::MSG_ERRQUEUE);
        assert_eq!(queued.expect_err("an empty queue").kind(), ErrorKind::WouldBlock);
    }
    peer.write_all(b"x").expect("sent");
    let mut byte = [0];
    eventually("it arrives", || socket.try_clone().read(&mut byte).is_ok_and(|n| n == 1));
}

/// The number of its first notice is not known.
#[test]
fn a_socket_that_has_sent_without_a_copy_before_copies() {
    let pollers = Pollers::options().engine(duopoll::Engine::Epoll).count(1);
    let pollers = pollers.start().expect("a poller");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (socket, _) = listener.accept().expect("accepted");
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: `len` readable bytes.
    let set = unsafe {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        libc::setsockopt(fd, level, name, (&raw const on).cast(), len)
    };
    assert_eq!(set, 0);
    let mut connection = block_on(pollers.adopt(socket)).expect("taken over");
    connection.control().set_zerocopy(Some(1)).expect("a threshold");
    connection.push(vec![7; PIECE]);
    block_on(connection.drain()).expect("sent");
    peer.read_exact(&mut vec![0; PIECE]).expect("received");
    let stats = pollers.settled();
    assert_eq!((stats.zerocopy_sends, stats.zerocopy_fallbacks), (0, 1));
}
