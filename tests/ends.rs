//! The table of a connection's ends, line by line: what the peer sees, what this side is told, and what becomes of the bytes
//! that are staged, flushed, or received and not read.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::process::{self, Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Dialer, Engine, Limits, Pollers, Server};
use pollster::block_on;
use socket2::{SockRef, Socket};
use support::settled::Settled;
use support::{Family, PATIENCE, Pattern, Peer, Setup, connected, eventually, poll_once};

on_every_setup!(
    a_close_sends_everything_then_a_fin,
    a_finish_sends_everything_then_a_fin_and_reading_goes_on,
    little_that_is_staged_is_sent_by_a_close_and_a_finish,
    both_halves_dropped_send_what_was_flushed,
    a_dropped_reader_is_not_noticed_by_the_peer,
    a_dropped_writer_sends_what_was_flushed_then_a_fin,
    an_abort_is_a_reset,
    a_detach_sends_everything_and_ends_nothing,
    a_detach_is_told_to_a_writer_that_waits,
    an_idle_timeout_that_cuts_nothing_is_a_fin,
    an_idle_timeout_that_cuts_a_flush_is_a_reset,
    an_idle_timeout_within_a_request_is_a_reset,
    the_write_timeout_of_a_close_is_a_reset,
    a_shutdown_within_the_grace_sends_all_replies,
    a_server_dropped_between_requests_ends_with_a_fin,
    a_server_dropped_within_a_request_ends_with_a_reset,
    a_reply_cut_by_a_dropped_server_is_reset,
    a_reply_cut_by_a_grace_that_is_over_is_reset,
    a_reply_cut_by_the_idle_timeout_is_reset,
    a_reply_cut_by_the_write_timeout_of_a_close_is_reset,
    a_reply_cut_by_an_abort_is_reset,
    a_flush_cut_by_the_end_of_the_pollers_is_reset,
    what_was_flushed_survives_connection_and_pollers,
    what_was_flushed_survives_pollers_under_a_connection,
    what_was_flushed_survives_pollers_while_the_peer_sends,
    what_is_drained_survives_the_process,
    what_the_kernel_has_taken_survives_the_process,
    what_was_flushed_survives_pollers_that_a_process_drops_last,
    a_handler_that_closes_is_not_called_again,
    a_handler_that_aborts_is_not_called_again,
    a_blocking_write_counts_every_byte_once,
);

/// More than the kernel takes for a peer that does not read.
const LARGE: usize = 32 << 20;
const SHORT: Duration = Duration::from_millis(50);

/// What the sender of a pattern sends.
fn payload(bytes: usize) -> Vec<u8> {
    let mut pattern = Pattern::new(61);
    let mut payload = Vec::with_capacity(bytes);
    while payload.len() < bytes {
        payload.extend_from_slice(pattern.next(bytes - payload.len()));
    }
    payload
}

/// How a stream ends for whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// Reads to the end: what came behind so many bytes of the payload, how many of those came, and the end.
fn read_to_the_end(peer: &mut Peer, expected: usize) -> (usize, Vec<u8>, End) {
    let mut pattern = Pattern::new(61);
    let (mut received, mut behind, mut buffer) = (0, Vec::new(), vec![0; 256 << 10]);
    loop {
        let n = match peer.read(&mut buffer) {
            Ok(0) => return (received, behind, End::Fin),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return (received, behind, End::Reset);
            }
            Err(error) => panic!("{error} behind {received} bytes"),
        };
        let (payload, rest) = buffer[..n].split_at(n.min(expected - received));
        assert!(pattern.matches(payload), "wrong bytes behind {received}");
        received += payload.len();
        behind.extend_from_slice(rest);
    }
}

/// All of the payload comes, and this behind it, and a FIN.
fn gets_all(peer: &mut Peer, payload: usize, behind: &[u8]) {
    let (received, rest, end) = read_to_the_end(peer, payload);
    assert_eq!((received, &*rest, end), (payload, behind, End::Fin));
}

/// As [`gets_all`], while the peer sends all the time, which is dropped and no reason for a reset.
fn gets_all_though_it_sends(peer: &mut Peer, payload: usize, behind: &[u8]) {
    let (mut sender, over) = (peer.try_clone(), AtomicBool::new(false));
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // It may be reset when it has got all.
            while !over.load(Ordering::Relaxed) && sender.write_all(b"too late").is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        eventually("it sends", || sent.load(Ordering::Relaxed) > 100);
        let seen = read_to_the_end(peer, payload);
        over.store(true, Ordering::Relaxed);
        assert_eq!(seen, (payload, behind.to_vec(), End::Fin));
    });
}

/// How a reset looks to the peer: Unix sockets know none.
fn reset(setup: Setup) -> End {
    if setup.family == Family::Unix { End::Fin } else { End::Reset }
}

/// The beginning of the payload comes, and then a reset.
fn is_cut_short(setup: Setup, peer: &mut Peer) {
    let (received, rest, end) = read_to_the_end(peer, LARGE);
    assert!(received > 0 && received < LARGE && rest.is_empty(), "{received} bytes");
    assert_eq!(end, reset(setup), "behind {received} bytes");
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    let error = result.expect_err("it has ended");
    error.raw_os_error().unwrap_or_else(|| panic!("{error:?}"))
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.expect_err("it has ended").kind()
}

/// A connection of ours that has received bytes which nobody has read, has more to send than its peer takes, and something
/// staged.
fn in_use(setup: Setup, limits: Limits) -> (Pollers, Connection, Peer) {
    let (pollers, mut connection, mut peer) = connected(setup, limits);
    receives_unread(&pollers, &mut peer);
    flushes_much(&mut connection);
    (pollers, connection, peer)
}

fn receives_unread(pollers: &Pollers, peer: &mut Peer) {
    let before = pollers.settled().received_bytes;
    peer.write_all(b"unread").expect("sent");
    eventually("it is received", || pollers.settled().received_bytes == before + 6);
}

fn flushes_much(connection: &mut Connection) {
    connection.push(payload(LARGE));
    assert!(poll_once(pin!(connection.flush())).is_pending());
    connection.write(b"staged").expect("staged");
}

/// What was received before the end is still there, and then comes the end.
fn still_reads_what_was_unread(connection: &mut Connection, end: i32) {
    assert_eq!(block_on(connection.next(6)).expect("it stays"), b"unread");
    assert_eq!(errno(block_on(connection.next(1))), end);
}

fn sends_nothing_more(connection: &mut Connection, end: i32) {
    assert_eq!(errno(block_on(connection.flush())), end);
    assert_eq!(errno(block_on(connection.drain())), end);
}

/// Notes that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Begins a wait.
fn begin_to_wait<F: Future>(future: Pin<&mut F>) -> Arc<Woken> {
    let woken = Arc::new(Woken::default());
    assert!(future.poll(&mut Context::from_waker(&woken.clone().into())).is_pending());
    woken
}

fn is_woken(woken: &Woken) {
    eventually("whoever waits is told", || woken.0.load(Ordering::Relaxed));
}

fn is_over(pollers: &Pollers) {
    eventually("it is over", || pollers.settled().closed == 1);
}

fn a_close_sends_everything_then_a_fin(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    peer.write_all(b"handed over").expect("sent");
    block_on(connection.fill(11)).expect("received");
    receives_unread(&pollers, &mut peer);
    flushes_much(&mut connection);
    connection.close();
    assert_eq!(connection.writer_mut().staged_len(), 0);
    assert_eq!(block_on(connection.next(11)).expect("it was here"), b"handed over");
    assert_eq!(kind(block_on(connection.next(1))), ErrorKind::NotConnected);
    gets_all_though_it_sends(&mut peer, LARGE, b"staged");
    assert_eq!(kind(block_on(connection.next(1))), ErrorKind::NotConnected);
    block_on(connection.drain()).expect("all was sent");
    connection.write(b"x").expect("staged");
    assert_eq!(kind(block_on(connection.flush())), ErrorKind::NotConnected);
    assert_eq!(kind(block_on(connection.drain())), ErrorKind::NotConnected);
    drop(peer);
    is_over(&pollers);
    assert_eq!(pollers.settled().forced, 0);
}

fn a_finish_sends_everything_then_a_fin_and_reading_goes_on(setup: Setup) {
    let (_pollers, mut connection, mut peer) = in_use(setup, Limits::default());
    connection.finish();
    gets_all(&mut peer, LARGE, b"staged");
    block_on(connection.drain()).expect("all was sent");
    peer.write_all(b" and more").expect("sent");
    assert_eq!(block_on(connection.next(15)).expect("received"), b"unread and more");
    connection.write(b"x").expect("staged");
    assert_eq!(kind(block_on(connection.flush())), ErrorKind::NotConnected);
    drop(peer);
    assert!(!block_on(connection.more()).expect("the end"));
}

fn little_that_is_staged_is_sent_by_a_close_and_a_finish(setup: Setup) {
    let ends: [fn(&mut Connection); 3] = [
        |connection| connection.close(),
        |connection| connection.finish(),
        |connection| {
            connection.close();
            connection.finish();
        },
    ];
    for end in ends {
        let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
        connection.write(b"bye").expect("staged");
        end(&mut connection);
        drop(connection);
        gets_all(&mut peer, 0, b"bye");
    }
}

fn both_halves_dropped_send_what_was_flushed(setup: Setup) {
    for reader_first in [true, false] {
        let (pollers, connection, mut peer) = in_use(setup, Limits::default());
        let (reader, writer) = connection.into_split();
        if reader_first {
            drop(reader);
            drop(writer);
        } else {
            drop(writer);
            drop(reader);
        }
        gets_all_though_it_sends(&mut peer, LARGE, b"");
        drop(peer);
        is_over(&pollers);
        assert_eq!(pollers.settled().forced, 0);
    }
}

fn a_dropped_reader_is_not_noticed_by_the_peer(setup: Setup) {
    // Nothing more is received while a byte waits to be read.
    let mut limits = Limits::default();
    limits.input_high_bytes = 1;
    let (pollers, connection, mut peer) = in_use(setup, limits);
    let (reader, mut writer) = connection.into_split();
    drop(reader);
    // All that comes is dropped, or this would have to wait for a reader.
    peer.write_all(&payload(LARGE)).expect("sent");
    thread::scope(|scope| {
        scope.spawn(|| block_on(writer.drain()).expect("sent"));
        let mut received = vec![0; LARGE + 6];
        peer.read_exact(&mut received).expect("received");
        assert!(received == [&payload(LARGE)[..], b"staged"].concat());
    });
    writer.write(b"still here").expect("staged");
    drop(writer);
    gets_all(&mut peer, 0, b"");
    drop(peer);
    is_over(&pollers);
}

fn a_dropped_writer_sends_what_was_flushed_then_a_fin(setup: Setup) {
    let (_pollers, connection, mut peer) = in_use(setup, Limits::default());
    let (mut reader, writer) = connection.into_split();
    drop(writer);
    gets_all(&mut peer, LARGE, b"");
    peer.write_all(b" and more").expect("sent");
    assert_eq!(block_on(reader.next(15)).expect("received"), b"unread and more");
    drop(peer);
    assert!(!block_on(reader.more()).expect("the end"));
}

fn an_abort_is_a_reset(setup: Setup) {
    let (pollers, mut connection, mut peer) = in_use(setup, Limits::default());
    let control = connection.control();
    {
        let (reader, writer) = connection.split();
        let mut read = pin!(reader.next(100));
        assert!(poll_once(read.as_mut()).is_pending());
        // These are not handed over to anybody.
        peer.write_all(b"unread").expect("sent");
        eventually("it is received", || pollers.settled().received_bytes == 12);
        let mut drain = pin!(writer.drain());
        let woken = begin_to_wait(drain.as_mut());
        control.abort();
        is_woken(&woken);
        assert_eq!(errno(block_on(read)), libc::ECONNABORTED);
        assert_eq!(errno(block_on(drain)), libc::ECONNABORTED);
    }
    is_over(&pollers);
    is_cut_short(setup, &mut peer);
    assert_eq!(block_on(connection.next(6)).expect("it stays"), b"unread");
    still_reads_what_was_unread(&mut connection, libc::ECONNABORTED);
    sends_nothing_more(&mut connection, libc::ECONNABORTED);
}

fn a_detach_sends_everything_and_ends_nothing(setup: Setup) {
    let (_pollers, connection, mut peer) = in_use(setup, Limits::default());
    let (socket, mut rest) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut received = vec![0; LARGE + 6];
            peer.read_exact(&mut received).expect("received");
            assert!(received == [&payload(LARGE)[..], b"staged"].concat());
        });
        block_on(connection.detach()).expect("detached")
    });
    assert_eq!(rest.read_bytes(rest.len()).expect("readable"), b"unread");
    let mut socket = Socket::from(socket);
    socket.write_all(b"still here").expect("open");
    drop(socket);
    gets_all(&mut peer, 0, b"still here");
}

fn a_detach_is_told_to_a_writer_that_waits(setup: Setup) {
    let (_pollers, connection, _peer) = in_use(setup, Limits::default());
    let (mut reader, mut writer) = connection.into_split();
    let mut drain = pin!(writer.drain());
    let woken = begin_to_wait(drain.as_mut());
    block_on(std::future::poll_fn(|cx| reader.poll_detach(cx))).expect("detached");
    is_woken(&woken);
    assert_eq!(kind(block_on(drain)), ErrorKind::NotConnected);
    assert_eq!(reader.buffer_mut().read_bytes(6).expect("readable"), b"unread");
}

fn an_idle_timeout_that_cuts_nothing_is_a_fin(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    receives_unread(&pollers, &mut peer);
    connection.write(b"staged").expect("staged");
    connection.set_idle_timeout(Some(SHORT));
    assert_eq!(errno(block_on(connection.next(100))), libc::ETIMEDOUT);
    gets_all(&mut peer, 0, b"");
    assert_eq!(pollers.settled().idle_timeouts, 1);
    still_reads_what_was_unread(&mut connection, libc::ETIMEDOUT);
    sends_nothing_more(&mut connection, libc::ETIMEDOUT);
}

fn an_idle_timeout_that_cuts_a_flush_is_a_reset(setup: Setup) {
    let (pollers, mut connection, mut peer) = in_use(setup, Limits::default());
    connection.set_idle_timeout(Some(SHORT));
    is_over(&pollers);
    is_cut_short(setup, &mut peer);
    assert_eq!(pollers.settled().idle_timeouts, 1);
    still_reads_what_was_unread(&mut connection, libc::ETIMEDOUT);
    sends_nothing_more(&mut connection, libc::ETIMEDOUT);
}

fn an_idle_timeout_within_a_request_is_a_reset(setup: Setup) {
    let (_server, mut peer, told) = within_a_request(setup, Some(SHORT));
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), libc::ETIMEDOUT);
    assert_eq!(read_to_the_end(&mut peer, 0), (0, Vec::new(), reset(setup)));
}

/// A server whose handler waits for the rest of a request, with half a reply staged. It tells what its wait ended with, if
/// the part that came is still there then.
fn within_a_request(
    setup: Setup,
    idle_timeout: Option<Duration>,
) -> (Server, Peer, mpsc::Receiver<i32>) {
    let (entered, enters) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.write(b"staged")?;
        connection.set_idle_timeout(idle_timeout);
        entered.send(()).expect("the test waits");
        let end = connection.next(100).await;
        assert_eq!(connection.next(6).await?, b"unread");
        tell.send(errno(end)).expect("the test waits");
        Ok(())
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"unread").expect("sent");
    enters.recv_timeout(PATIENCE).expect("a request");
    (server, peer, told)
}

fn the_write_timeout_of_a_close_is_a_reset(setup: Setup) {
    let mut limits = Limits::default();
    limits.write_timeout = Some(SHORT);
    let (pollers, mut connection, mut peer) = in_use(setup, limits);
    connection.close();
    is_over(&pollers);
    is_cut_short(setup, &mut peer);
    assert_eq!(pollers.settled().forced, 1);
    assert_eq!(kind(block_on(connection.next(1))), ErrorKind::NotConnected);
    sends_nothing_more(&mut connection, libc::ETIMEDOUT);
}

/// How a handler replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// It waits until most of it is sent.
    Waits,
    /// It leaves that to the connection, and the next request may come.
    Leaves,
}

/// A server that replies with much, to a peer that has received nothing of it yet.
struct Replying {
    server: Server,
    peer: Peer,
    control: Control,
}

fn replying(setup: Setup, how: Reply) -> Replying {
    let (begun, begins) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.skip(1).await?;
        connection.push(payload(LARGE));
        if how == Reply::Leaves {
            connection.writer_mut().submit()?;
            return begun.send(connection.control()).map_err(io::Error::other);
        }
        assert!(poll_once(pin!(connection.flush())).is_pending());
        begun.send(connection.control()).map_err(io::Error::other)?;
        connection.flush().await?;
        connection.write(b"staged")
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    let control = begins.recv_timeout(PATIENCE).expect("a request");
    eventually("a part is sent", || server.settled().sent_bytes > 0);
    Replying { server, peer, control }
}

fn a_shutdown_within_the_grace_sends_all_replies(setup: Setup) {
    for (how, behind) in [(Reply::Waits, &b"staged"[..]), (Reply::Leaves, b"")] {
        let Replying { server, mut peer, .. } = replying(setup, how);
        let mut idle = Peer::connect(server.local_addr());
        eventually("it is served", || server.settled().connections == 2);
        thread::scope(|scope| {
            let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
            // It has begun.
            gets_all(&mut idle, 0, b"");
            drop(idle);
            gets_all(&mut peer, LARGE, behind);
            drop(peer);
            assert_eq!(shutdown.join().expect("no panic"), 0);
        });
    }
}

fn a_server_dropped_between_requests_ends_with_a_fin(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    drop(server);
    gets_all(&mut peer, 0, b"");
}

fn a_server_dropped_within_a_request_ends_with_a_reset(setup: Setup) {
    let (server, mut peer, told) = within_a_request(setup, None);
    drop(server);
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), libc::ECONNABORTED);
    assert_eq!(read_to_the_end(&mut peer, 0), (0, Vec::new(), reset(setup)));
}

fn a_reply_cut_by_a_dropped_server_is_reset(setup: Setup) {
    for how in [Reply::Waits, Reply::Leaves] {
        let Replying { server, mut peer, .. } = replying(setup, how);
        drop(server);
        is_cut_short(setup, &mut peer);
    }
}

fn a_reply_cut_by_a_grace_that_is_over_is_reset(setup: Setup) {
    for how in [Reply::Waits, Reply::Leaves] {
        let Replying { server, mut peer, .. } = replying(setup, how);
        assert_eq!(server.shutdown(SHORT), 1, "{how:?}");
        is_cut_short(setup, &mut peer);
    }
}

fn a_reply_cut_by_the_idle_timeout_is_reset(setup: Setup) {
    for how in [Reply::Waits, Reply::Leaves] {
        let Replying { server, mut peer, control } = replying(setup, how);
        control.set_idle_timeout(Some(SHORT));
        eventually("it is over", || server.settled().closed == 1);
        is_cut_short(setup, &mut peer);
        assert_eq!(server.settled().idle_timeouts, 1, "{how:?}");
    }
}

fn a_reply_cut_by_the_write_timeout_of_a_close_is_reset(setup: Setup) {
    for how in [Reply::Waits, Reply::Leaves] {
        let Replying { server, mut peer, control } = replying(setup, how);
        control.set_write_timeout(Some(SHORT));
        control.close();
        eventually("it is over", || server.settled().closed == 1);
        is_cut_short(setup, &mut peer);
        assert_eq!(server.settled().forced, 1, "{how:?}");
    }
}

fn a_reply_cut_by_an_abort_is_reset(setup: Setup) {
    for how in [Reply::Waits, Reply::Leaves] {
        let Replying { server, mut peer, control } = replying(setup, how);
        control.abort();
        eventually("it is over", || server.settled().closed == 1);
        is_cut_short(setup, &mut peer);
    }
}

fn a_flush_cut_by_the_end_of_the_pollers_is_reset(setup: Setup) {
    for dropped in [false, true] {
        let (pollers, connection, mut peer) = in_use(setup, Limits::default());
        let connection = (!dropped).then_some(connection);
        pollers.stop();
        is_cut_short(setup, &mut peer);
        if let Some(mut connection) = connection {
            still_reads_what_was_unread(&mut connection, libc::ECONNABORTED);
            sends_nothing_more(&mut connection, libc::ECONNABORTED);
        }
    }
}

/// Somebody who listens, for connections that are dialed.
struct Answering(duopoll::Listener);

impl Answering {
    fn new(setup: Setup) -> Answering {
        let listener = setup.listener();
        let socket = SockRef::from(&listener);
        socket.set_nonblocking(false).expect("a socket");
        // An accept keeps to it, too.
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Answering(listener)
    }

    fn address(&self) -> duopoll::Address {
        self.0.local_addr().expect("bound")
    }

    fn accept(&self, setup: Setup) -> Peer {
        let (socket, _) = SockRef::from(&self.0).accept().expect("somebody dials");
        let peer = match setup.family {
            Family::Unix => Peer::Unix(socket.into()),
            _ => Peer::Tcp(socket.into()),
        };
        peer.set_timeout(PATIENCE);
        peer
    }
}

fn dial(pollers: &Pollers, address: duopoll::Address) -> Connection {
    block_on(Dialer::new().pollers(pollers.clone()).dial_addr(address)).expect("connected")
}

fn pollers(setup: Setup) -> Pollers {
    setup.pollers(1)
}

const SOME: usize = 256 << 10;

fn flushes_some(connection: &mut Connection) {
    connection.push(payload(SOME));
    assert!(poll_once(pin!(connection.flush())).is_ready());
    connection.write(b"staged").expect("staged");
}

fn what_was_flushed_survives_connection_and_pollers(setup: Setup) {
    let listener = Answering::new(setup);
    for _ in 0..20 {
        let pollers = pollers(setup);
        let mut connection = dial(&pollers, listener.address());
        let mut peer = listener.accept(setup);
        thread::scope(|scope| {
            scope.spawn(|| gets_all(&mut peer, SOME, b""));
            flushes_some(&mut connection);
            drop(connection);
            drop(pollers);
        });
    }
}

/// What it sends meanwhile is dropped, and no reason to lose what is on the way to it.
fn what_was_flushed_survives_pollers_while_the_peer_sends(setup: Setup) {
    let listener = Answering::new(setup);
    for held in [false, true].repeat(10) {
        let pollers = pollers(setup);
        let mut connection = dial(&pollers, listener.address());
        let mut peer = listener.accept(setup);
        let (mut sender, sent) = (peer.try_clone(), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while sender.write_all(b"too late").is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            eventually("it sends", || sent.load(Ordering::Relaxed) > 100);
            flushes_some(&mut connection);
            let reads = scope.spawn(|| {
                // When it has all, a reset does no harm.
                let (received, rest, _) = read_to_the_end(&mut peer, SOME);
                peer.shutdown(Shutdown::Both);
                (received, rest.len())
            });
            let _connection = held.then_some(connection);
            let begun = Instant::now();
            pollers.stop();
            // It goes on for a second, which machines may need that are slow.
            let in_time = begun.elapsed() < Duration::from_millis(900);
            let read = reads.join().expect("no panic");
            assert!(!in_time || read == (SOME, 0), "{read:?}");
        });
    }
}

fn what_was_flushed_survives_pollers_under_a_connection(setup: Setup) {
    let listener = Answering::new(setup);
    for _ in 0..20 {
        let pollers = pollers(setup);
        let mut connection = dial(&pollers, listener.address());
        let mut peer = listener.accept(setup);
        receives_unread(&pollers, &mut peer);
        thread::scope(|scope| {
            scope.spawn(|| gets_all(&mut peer, SOME, b""));
            flushes_some(&mut connection);
            let mut read = pin!(connection.next(100));
            let woken = begin_to_wait(read.as_mut());
            pollers.stop();
            is_woken(&woken);
            assert_eq!(errno(block_on(read)), libc::ECONNABORTED);
        });
        still_reads_what_was_unread(&mut connection, libc::ECONNABORTED);
        sends_nothing_more(&mut connection, libc::ECONNABORTED);
    }
}

/// Tells a child process that it is one, and whom to dial.
const DIALS: &str = "DUOPOLL_TEST_DIALS";

/// Runs a test of this file in a process of its own, which dials.
fn run_alone(setup: Setup, test: &str, listener: &Answering) -> Child {
    let engine = if setup.engine == Engine::Epoll { "epoll" } else { "uring" };
    let family = match setup.family {
        Family::V4 => "v4",
        Family::V6 => "v6",
        Family::Unix => "unix",
    };
    let mut command = Command::new(std::env::current_exe().expect("the test has a path"));
    command.args(["--exact", &format!("{engine}_{family}::{test}")]);
    command.env(DIALS, listener.address().to_string()).spawn().expect("it starts")
}

/// Whom to dial, in such a process.
fn to_be_dialed() -> Option<duopoll::Address> {
    let address = std::env::var(DIALS).ok()?;
    Some(address.parse().expect("an address"))
}

fn what_is_drained_survives_the_process(setup: Setup) {
    if let Some(address) = to_be_dialed() {
        let pollers = pollers(setup);
        let mut connection = dial(&pollers, address);
        connection.push(payload(SOME));
        block_on(connection.drain()).expect("sent");
        process::exit(0);
    }
    let listener = Answering::new(setup);
    let mut child = run_alone(setup, "what_is_drained_survives_the_process", &listener);
    let mut peer = listener.accept(setup);
    gets_all(&mut peer, SOME, b"");
    assert!(child.wait().expect("an end").success());
}

/// Nobody can reset it any more.
fn what_the_kernel_has_taken_survives_the_process(setup: Setup) {
    if let Some(address) = to_be_dialed() {
        let pollers = pollers(setup);
        let mut connection = dial(&pollers, address);
        flushes_much(&mut connection);
        eventually("a part is sent", || pollers.settled().sent_bytes > 0);
        process::exit(0);
    }
    let listener = Answering::new(setup);
    let test = "what_the_kernel_has_taken_survives_the_process";
    let mut child = run_alone(setup, test, &listener);
    let mut peer = listener.accept(setup);
    assert!(child.wait().expect("an end").success());
    let (received, rest, end) = read_to_the_end(&mut peer, LARGE);
    assert!(received > 0 && received < LARGE && rest.is_empty(), "{received} bytes");
    assert_eq!(end, End::Fin);
}

/// Many of them, so that on io_uring much is queued that the kernel has not seen.
fn what_was_flushed_survives_pollers_that_a_process_drops_last(setup: Setup) {
    const CONNECTIONS: usize = 20;
    if let Some(address) = to_be_dialed() {
        let pollers = pollers(setup);
        let dialed = (0..CONNECTIONS).map(|_| dial(&pollers, address.clone()));
        let mut connections: Vec<_> = dialed.collect();
        connections.iter_mut().for_each(flushes_some);
        pollers.stop();
        process::exit(0);
    }
    let listener = Answering::new(setup);
    let test = "what_was_flushed_survives_pollers_that_a_process_drops_last";
    let mut child = run_alone(setup, test, &listener);
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            let mut peer = listener.accept(setup);
            scope.spawn(move || gets_all(&mut peer, SOME, b""));
        }
    });
    assert!(child.wait().expect("an end").success());
}

/// A server whose handler takes one of the requests that have come together, and ends the connection in this way. Gives what
/// the peer sees; the others are not handled.
fn ended_by_its_handler(setup: Setup, end: fn(&mut Connection)) -> (Vec<u8>, End) {
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.fill(5).await?;
        connection.skip(1).await?;
        connection.write(b"bye")?;
        end(connection);
        Ok(())
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"12345").expect("sent");
    let (_, received, end) = read_to_the_end(&mut peer, 0);
    drop(peer);
    eventually("it is over", || server.settled().closed == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(server.settled().requests, 1);
    (received, end)
}

fn a_handler_that_closes_is_not_called_again(setup: Setup) {
    let seen = ended_by_its_handler(setup, |connection| connection.close());
    assert_eq!(seen, (b"bye".to_vec(), End::Fin));
}

fn a_handler_that_aborts_is_not_called_again(setup: Setup) {
    let seen = ended_by_its_handler(setup, |connection| connection.abort());
    assert_eq!(seen, (Vec::new(), reset(setup)));
}

fn a_blocking_write_counts_every_byte_once(setup: Setup) {
    let (_pollers, connection, mut peer) = connected(setup, Limits::default());
    connection.set_write_timeout(Some(SHORT));
    let mut blocking = connection.into_blocking();
    let bytes = payload(LARGE);
    let (stall, stalled) = mpsc::channel();
    thread::scope(|scope| {
        let peer = &mut peer;
        scope.spawn(move || {
            // It reads late.
            for _ in 0..3 {
                stalled.recv_timeout(PATIENCE).expect("a timeout");
            }
            gets_all(peer, LARGE, b"");
        });
        let mut written = 0;
        while written < LARGE {
            match blocking.write(&bytes[written..]) {
                Ok(n) => written += n,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                    stall.send(()).expect("it reads to the end");
                }
            }
        }
        drop(blocking);
    });
}
