//! Pollers that are late, since a handler has held them up: what had come by then counts, and nobody is blamed for it.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, EventLoop, Limits, Pollers, Server};
use futures_channel::oneshot;
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, connected, poll_once, scaled};

on_every_setup!(
    bytes_that_came_meanwhile_end_a_read_in_time,
    bytes_that_came_meanwhile_put_off_the_idle_timeout,
    an_end_that_came_meanwhile_ends_a_read_in_time,
    an_end_that_came_meanwhile_comes_before_the_idle_timeout,
    a_handler_that_computes_is_not_idle,
    a_handler_that_waits_for_something_else_is_not_idle,
    a_handler_that_reads_again_was_not_idle,
    the_idle_period_begins_at_the_reply,
    what_is_flushed_late_has_the_write_timeout_in_full,
    a_flush_goes_on_when_there_was_room_meanwhile,
    a_close_has_its_timeout_once_more,
    a_silent_connection_is_ended,
    a_peer_that_takes_nothing_is_ended,
    a_silent_connection_is_ended_after_one_more_period,
    a_resume_after_a_pause_counts,
    a_fill_that_was_left_behind_is_forgotten,
    a_poll_for_more_that_was_left_behind_is_forgotten,
    a_paused_connection_is_not_idle,
);

const TIMEOUT: Duration = Duration::from_millis(300);
const LONGER: Duration = Duration::from_millis(500);
/// More than a turn on epoll looks at, in number and in bytes.
const CONNECTIONS: usize = 80;
const MESSAGE_BYTES: usize = 4 << 10;
/// More than the kernel takes from a writer whose peer does not read.
const MUCH_BYTES: usize = 16 << 20;

/// Runs what is a test only if this side is quick enough, until it was.
fn in_time(mut attempt: impl FnMut() -> Option<()>) {
    let start = Instant::now();
    while attempt().is_none() {
        assert!(start.elapsed() < PATIENCE, "this machine is too slow");
    }
}

/// Whether a timeout that began then has not passed yet.
fn within(since: Instant) -> Option<()> {
    (since.elapsed() < TIMEOUT).then_some(())
}

/// Whether what the peer has sent has come to the kernel's other end before a timeout that began then has passed.
fn arrived_within(peer: &Peer, since: Instant) -> Option<()> {
    if let Peer::Tcp(stream) = peer {
        let mut unacknowledged: libc::c_int = 1;
        while unacknowledged > 0 {
            within(since)?;
            // SAFETY: the number lives longer than the call.
            let asked =
                unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
            assert_eq!(asked, 0, "{}", io::Error::last_os_error());
            if stream.take_error().expect("a socket").is_some() {
                // Whoever expects a reply will say that there is none.
                break;
            }
        }
    }
    within(since)
}

/// A connection of a server of its own, whose handler holds the poller up.
struct Holder {
    release: Sender<()>,
    held: Receiver<()>,
    peer: Peer,
    _server: Server,
}

impl Holder {
    fn new(setup: Setup, pollers: &Pollers) -> Holder {
        let (hold, held) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let gate = Mutex::new((hold, released));
        let service = EventLoop::builder().on(pollers.clone()).on_request(
            async move |connection: &mut Connection| {
                {
                    let gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = gate.0.send(());
                    let _ = gate.1.recv_timeout(PATIENCE);
                }
                support::echo(connection).await
            },
        );
        let server = service.serve(setup.listener()).expect("a server");
        let peer = Peer::connect(server.local_addr());
        Holder { release, held, peer, _server: server }
    }

    /// From now on the poller does nothing. What it was told before it has seen.
    fn hold(&mut self) {
        self.peer.write_all(b"!").expect("sent");
        self.held.recv_timeout(PATIENCE).expect("held");
    }

    /// Lets it go on. Says when that was.
    fn release(&mut self) -> Instant {
        let released = Instant::now();
        self.release.send(()).expect("held");
        self.peer.read_exact(&mut [0]).expect("a reply");
        released
    }
}

fn one_poller(setup: Setup) -> Pollers {
    setup.pollers(1)
}

/// Reads that wait with a limit, on a poller that is held up until it has passed, while their peers do something.
fn late_reads(
    setup: Setup,
    limit: fn(&Connection),
    meanwhile: fn(usize, &mut Peer),
    expected: Result<usize, ErrorKind>,
) {
    in_time(|| {
        let pollers = one_poller(setup);
        let (began, begun) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let service = EventLoop::builder().on(pollers.clone()).on_request(
            async move |connection: &mut Connection| {
                connection.skip(1).await?;
                limit(connection);
                let _ = began.send(Instant::now());
                let read = connection.next(MESSAGE_BYTES).await.map(|message| message.len());
                let _ = tell.send(read.as_ref().copied().map_err(io::Error::kind));
                read.map(|_| ())
            },
        );
        let server = service.serve(setup.listener()).expect("a server");
        let mut holder = Holder::new(setup, &pollers);
        let connect = |_| Peer::connect(server.local_addr());
        let mut peers: Vec<_> = (0..scaled(CONNECTIONS)).map(connect).collect();
        for peer in &mut peers {
            peer.write_all(b".").expect("sent");
        }
        let begun: Vec<_> =
            peers.iter().map(|_| begun.recv_timeout(PATIENCE).expect("waits")).collect();
        holder.hold();
        for (index, peer) in peers.iter_mut().enumerate() {
            meanwhile(index, peer);
        }
        peers.iter().try_for_each(|peer| arrived_within(peer, begun[0]))?;
        thread::sleep(LONGER);
        holder.release();
        let outcomes: Vec<_> =
            peers.iter().map(|_| told.recv_timeout(PATIENCE).expect("an outcome")).collect();
        let other = outcomes.iter().filter(|outcome| **outcome != expected).count();
        assert_eq!(other, 0, "{outcomes:?}");
        assert_eq!(server.settled().idle_timeouts, 0);
        Some(())
    });
}

fn read_timeout(connection: &Connection) {
    connection.set_read_timeout(Some(TIMEOUT));
}

fn idle_timeout(connection: &Connection) {
    connection.set_idle_timeout(Some(TIMEOUT));
}

fn send(_: usize, peer: &mut Peer) {
    peer.write_all(&[7; MESSAGE_BYTES]).expect("sent");
}

/// Every other one has sent something before.
fn end(index: usize, peer: &mut Peer) {
    if index % 2 == 0 {
        peer.write_all(&[7; MESSAGE_BYTES - 1]).expect("sent");
    }
    peer.shutdown(Shutdown::Write);
}

fn bytes_that_came_meanwhile_end_a_read_in_time(setup: Setup) {
    late_reads(setup, read_timeout, send, Ok(MESSAGE_BYTES));
}

fn bytes_that_came_meanwhile_put_off_the_idle_timeout(setup: Setup) {
    late_reads(setup, idle_timeout, send, Ok(MESSAGE_BYTES));
}

fn an_end_that_came_meanwhile_ends_a_read_in_time(setup: Setup) {
    late_reads(setup, read_timeout, end, Err(ErrorKind::UnexpectedEof));
}

fn an_end_that_came_meanwhile_comes_before_the_idle_timeout(setup: Setup) {
    late_reads(setup, idle_timeout, end, Err(ErrorKind::UnexpectedEof));
}

/// Two requests under an idle timeout to a handler that takes its time, the second one so long after the first reply.
fn late_replies<F>(setup: Setup, handle: F, thinks: Duration)
where
    F: AsyncFn() + Clone + Send + Sync + 'static,
{
    in_time(|| {
        let (tell, told) = mpsc::channel();
        let handle = handle.clone();
        let service = setup.builder().idle_timeout(TIMEOUT).on_request(
            async move |connection: &mut Connection| {
                handle().await;
                let _ = tell.send(Instant::now());
                support::echo(connection).await
            },
        );
        let server = service.serve(setup.listener()).expect("a server");
        let mut idle_since = Instant::now();
        let mut peer = Peer::connect(server.local_addr());
        for request in [b"a", b"b"] {
            let sent = peer.write_all(request);
            arrived_within(&peer, idle_since)?;
            sent.expect("sent");
            let mut reply = [0];
            peer.read_exact(&mut reply).expect("a reply");
            assert_eq!(&reply, request);
            idle_since = told.recv_timeout(PATIENCE).expect("replied");
            // Not to wait for something: the pause is the test.
            thread::sleep(thinks);
        }
        assert_eq!(server.settled().requests, 2);
        Some(())
    });
}

fn a_handler_that_computes_is_not_idle(setup: Setup) {
    late_replies(setup, async || thread::sleep(LONGER), Duration::ZERO);
}

fn a_handler_that_waits_for_something_else_is_not_idle(setup: Setup) {
    late_replies(setup, wait_elsewhere, Duration::ZERO);
}

/// Waits for another thread.
async fn wait_elsewhere() {
    let (wake, woken) = oneshot::channel();
    thread::spawn(move || {
        thread::sleep(LONGER);
        wake.send(())
    });
    woken.await.expect("woken");
}

/// No byte moves when it reads again.
fn a_handler_that_reads_again_was_not_idle(setup: Setup) {
    in_time(|| {
        let (tell, told) = mpsc::channel();
        let service = setup.builder().on_request(async move |connection: &mut Connection| {
            connection.skip(1).await?;
            connection.set_idle_timeout(Some(TIMEOUT));
            wait_elsewhere().await;
            let _ = tell.send(Instant::now());
            connection.fill(1).await?;
            support::echo(connection).await
        });
        let server = service.serve(setup.listener()).expect("a server");
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b".").expect("sent");
        let reads = told.recv_timeout(PATIENCE).expect("reads");
        // Not to wait for something: the pause is the test.
        thread::sleep(TIMEOUT / 2);
        let sent = peer.write_all(b"x");
        arrived_within(&peer, reads)?;
        sent.expect("sent");
        let mut reply = [0];
        peer.read_exact(&mut reply).expect("a reply");
        assert_eq!(&reply, b"x");
        Some(())
    });
}

/// Each of the two is shorter than the timeout, and both together are longer.
fn the_idle_period_begins_at_the_reply(setup: Setup) {
    late_replies(setup, async || thread::sleep(TIMEOUT * 2 / 3), TIMEOUT * 2 / 3);
}

/// Reads to the end, with pauses. Gives how many bytes came before it.
fn read_slowly(peer: &mut Peer) -> io::Result<usize> {
    const PIECE_BYTES: usize = 1 << 20;
    let (mut received, mut pauses) = (0, 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match peer.read(&mut piece)? {
            0 => return Ok(received),
            n => received += n,
        }
        if received / PIECE_BYTES > pauses {
            pauses += 1;
            thread::sleep(TIMEOUT / 100);
        }
    }
}

fn what_is_flushed_late_has_the_write_timeout_in_full(setup: Setup) {
    in_time(|| {
        let (tell, told) = mpsc::channel();
        let (report, flushed) = mpsc::channel();
        let service = setup.builder().write_timeout(TIMEOUT).on_request(
            async move |connection: &mut Connection| {
                connection.skip(1).await?;
                thread::sleep(LONGER);
                connection.push(vec![7; MUCH_BYTES]);
                let _ = tell.send(Instant::now());
                let _ = report.send(connection.flush().await);
                connection.close();
                Ok(())
            },
        );
        let server = service.serve(setup.listener()).expect("a server");
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b".").expect("sent");
        let began = told.recv_timeout(PATIENCE).expect("flushes");
        let received = read_slowly(&mut peer);
        // Neither the flush nor the close has had its time.
        within(began)?;
        assert_eq!(received.expect("the end"), MUCH_BYTES);
        flushed.recv_timeout(PATIENCE).expect("over").expect("flushed");
        Some(())
    });
}

/// A connection of ours under some limits, its peer, and what holds its poller up.
fn holdable(setup: Setup, limits: Limits) -> (Holder, Pollers, Connection, Peer) {
    let (pollers, connection, peer) = connected(setup, limits);
    (Holder::new(setup, &pollers), pollers, connection, peer)
}

fn write_limits() -> Limits {
    let mut limits = Limits::default();
    limits.write_timeout = Some(TIMEOUT);
    limits
}

fn idle_limits() -> Limits {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(TIMEOUT);
    limits
}

fn is_writable(socket: &impl AsRawFd) -> bool {
    let fd = socket.as_raw_fd();
    let mut asked = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the structure lives longer than the call.
    unsafe { libc::poll(&raw mut asked, 1, 0) == 1 }
}

fn a_flush_goes_on_when_there_was_room_meanwhile(setup: Setup) {
    in_time(|| {
        let (mut holder, _pollers, mut connection, mut peer) = holdable(setup, write_limits());
        let socket = connection.as_fd().try_clone_to_owned().expect("a descriptor");
        connection.push(vec![7; MUCH_BYTES]);
        let began = Instant::now();
        let mut flush = pin!(connection.flush());
        assert!(poll_once(flush.as_mut()).is_pending(), "the kernel has taken all of it");
        holder.hold();
        within(began)?;
        thread::scope(|scope| {
            // Takes what the kernel has, and what comes later.
            let reading = scope.spawn(move || {
                let mut rest = vec![0; MUCH_BYTES];
                peer.read_exact(&mut rest)
            });
            thread::sleep(LONGER);
            let had_room = is_writable(&socket);
            let released = holder.release();
            let flushed = block_on(flush);
            let received = reading.join().expect("reads");
            if !had_room {
                return None;
            }
            within(released)?;
            flushed.expect("flushed");
            received.expect("received");
            Some(())
        })
    });
}

fn a_close_has_its_timeout_once_more(setup: Setup) {
    in_time(|| {
        let (mut holder, _pollers, mut connection, mut peer) = holdable(setup, write_limits());
        connection.push(vec![7; MUCH_BYTES]);
        connection.writer_mut().submit().expect("flushed");
        let closed = Instant::now();
        drop(connection);
        holder.hold();
        within(closed)?;
        thread::sleep(LONGER);
        let released = holder.release();
        let received = peer.read_rest();
        within(released)?;
        assert_eq!(received.expect("the end").len(), MUCH_BYTES);
        Some(())
    });
}

fn assert_idle(error: &io::Error, pollers: &Pollers) {
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    assert_eq!(pollers.settled().idle_timeouts, 1);
}

fn a_silent_connection_is_ended(setup: Setup) {
    let (pollers, mut connection, _peer) = connected(setup, idle_limits());
    connection.set_read_deadline(Some(Instant::now() + PATIENCE));
    // It waits for nothing before.
    let start = Instant::now();
    let error = block_on(connection.next(1)).expect_err("nothing comes");
    assert!(start.elapsed() >= TIMEOUT, "idle for {:?} only", start.elapsed());
    assert_idle(&error, &pollers);
}

fn a_peer_that_takes_nothing_is_ended(setup: Setup) {
    let (pollers, mut connection, _peer) = connected(setup, idle_limits());
    connection.set_write_deadline(Some(Instant::now() + PATIENCE));
    connection.push(vec![7; MUCH_BYTES]);
    let start = Instant::now();
    let error = block_on(connection.drain()).expect_err("the peer takes nothing");
    assert!(start.elapsed() >= TIMEOUT, "idle for {:?} only", start.elapsed());
    assert_idle(&error, &pollers);
}

fn a_silent_connection_is_ended_after_one_more_period(setup: Setup) {
    in_time(|| {
        let (mut holder, pollers, mut connection, _peer) = holdable(setup, idle_limits());
        connection.set_read_deadline(Some(Instant::now() + PATIENCE));
        let began = Instant::now();
        let mut read = pin!(connection.next(1));
        assert!(poll_once(read.as_mut()).is_pending());
        holder.hold();
        within(began)?;
        thread::sleep(LONGER);
        let released = holder.release();
        let error = block_on(read).expect_err("nothing comes");
        let idle = released.elapsed();
        assert!(idle >= TIMEOUT, "ended {idle:?} after a delay of the poller");
        assert_idle(&error, &pollers);
        Some(())
    });
}

/// Pauses a connection and has it resume, one of the two by another thread. Blocks until both are done.
fn pause_and_resume(control: &Control, resumes_here: bool) {
    let elsewhere = |act: fn(&Control)| {
        let control = control.clone();
        thread::spawn(move || act(&control)).join().expect("done");
    };
    if resumes_here {
        elsewhere(Control::pause);
        control.resume();
    } else {
        control.pause();
        elsewhere(Control::resume);
    }
}

/// On the poller's thread, in the handler of another connection and in its own.
fn a_resume_after_a_pause_counts(setup: Setup) {
    let first: Mutex<Option<Control>> = Mutex::new(None);
    let server = setup.serve(async move |connection: &mut Connection| {
        let control = {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| connection.control()).clone()
        };
        match connection.peek(1).await?[0] {
            b'r' => pause_and_resume(&control, true),
            b'p' => pause_and_resume(&control, false),
            _ => {}
        }
        support::echo(connection).await
    });
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"."), b".");
    let mut other = Peer::connect(server.local_addr());
    for round in 0..scaled(200) {
        let how = if round % 2 == 0 { b"r" } else { b"p" };
        assert_eq!(other.round_trip(how), how);
        assert_eq!(peer.round_trip(b"."), b".");
        // With bytes on their way.
        peer.write_all(b".").expect("sent");
        assert_eq!(other.round_trip(how), how);
        let mut reply = [0];
        peer.read_exact(&mut reply).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(peer.round_trip(how), how);
    }
}

/// Tells when it was called.
struct Bell(Sender<Instant>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(Instant::now());
    }
}

fn bell() -> (Waker, Receiver<Instant>) {
    let (ring, rung) = mpsc::channel();
    (Waker::from(Arc::new(Bell(ring))), rung)
}

/// For how long an end is kept for the poll that was left behind, and more.
const FORGOTTEN: Duration = Duration::from_millis(50);

/// `poll`: whether the read goes on to wait.
fn left_behind(setup: Setup, poll: fn(&mut Connection, &mut Context<'_>) -> bool) {
    let mut limits = Limits::default();
    limits.read_timeout = Some(TIMEOUT);
    let (_pollers, mut connection, mut peer) = connected(setup, limits);
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    for round in 0..3 {
        let began = Instant::now();
        assert!(poll(&mut connection, &mut cx), "an earlier wait's end, in round {round}");
        let expired = rung.recv_timeout(PATIENCE).expect("expired");
        let waited = expired - began;
        assert!(waited >= TIMEOUT, "expired after {waited:?} already, in round {round}");
        // Not to wait for something: the end of the wait is to be old.
        thread::sleep(FORGOTTEN);
    }
    peer.write_all(b"x").expect("sent");
    connection.set_read_timeout(None);
    assert_eq!(block_on(connection.next(1)).expect("received"), b"x");
}

fn a_fill_that_was_left_behind_is_forgotten(setup: Setup) {
    left_behind(setup, |connection, cx| connection.reader_mut().poll_fill(cx, 1).is_pending());
}

fn a_poll_for_more_that_was_left_behind_is_forgotten(setup: Setup) {
    left_behind(setup, |connection, cx| connection.reader_mut().poll_more(cx).is_pending());
}

fn a_paused_connection_is_not_idle(setup: Setup) {
    in_time(|| {
        let (pollers, mut connection, mut peer) = connected(setup, idle_limits());
        let control = connection.control();
        let began = Instant::now();
        let mut read = pin!(connection.next(1));
        assert!(poll_once(read.as_mut()).is_pending());
        control.pause();
        within(began)?;
        // Not to wait for something: the pause is the test.
        thread::sleep(LONGER);
        assert!(control.is_active());
        assert_eq!(pollers.settled().idle_timeouts, 0);
        peer.write_all(b"x").expect("sent");
        control.resume();
        assert_eq!(block_on(read).expect("received"), b"x");
        Some(())
    });
}
