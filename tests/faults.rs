//! Both engines under a kernel that fails: calls that are cut short, interrupted, put off and refused, at random and one
//! after the other.
//!
//! Built and run by `ci/faults.sh`.

#![cfg(duopoll_faults)]

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Dialer, Engine, Pollers, Pool, Server};
use duopoll_core::faults::{Call, Faults, alone};
use pollster::block_on;
use socket2::SockRef;
use support::settled::Settled;
use support::{Family, PATIENCE, Pattern, Peer, Random, Setup, eventually, open_descriptors};

on_every_setup!(
    a_storm_of_faults_loses_no_byte,
    a_storm_on_a_tiny_ring_loses_no_byte,
    a_storm_on_large_messages_loses_no_byte,
    every_receive_may_fail,
    every_send_may_fail,
    a_refused_send_ends_a_connection_whose_peer_waits,
    every_accept_may_fail,
    every_wait_may_be_interrupted,
    every_poll_may_fail,
    every_registration_may_fail,
    every_wake_up_may_be_interrupted,
    every_shutdown_of_a_direction_may_fail,
    every_step_of_a_dial_may_fail,
    a_refused_start_is_a_clear_error,
    accepting_what_cannot_be_accepted_does_not_spin,
    submitting_what_is_refused_does_not_spin,
    completions_that_overflow_are_not_lost,
    a_connection_without_memory_goes_on_when_there_is_some,
    a_broken_engine_ends_its_connections,
    a_shutdown_while_accepting_fails_is_not_held_up,
    generations_wrap_under_a_server,
);

/// What the ends of all connections were: none for the peer's FIN.
type Ends = Mutex<mpsc::Receiver<Option<i32>>>;

/// A server that sends back what it receives, and says how each connection has ended.
struct Observed {
    server: Server,
    ends: Ends,
}

impl Observed {
    fn start(setup: Setup) -> Observed {
        let (said, ends) = mpsc::channel();
        let said = Mutex::new(said);
        let service = setup
            .builder()
            .idle_timeout(PATIENCE)
            .on_connect(async move |connection: &mut Connection| {
                let result = echo_to_the_end(connection).await;
                let errno = result.as_ref().err().map(|error| error.raw_os_error().unwrap_or(-1));
                let _ = said.lock().expect("no panic").send(errno);
                result
            })
            .on_request(async |_: &mut Connection| Ok(()));
        let server = service.serve(setup.listener()).expect("a server");
        // A new listener is looked at once without the engine, which no fault meets.
        server.pollers().settle();
        Observed { server, ends: Mutex::new(ends) }
    }

    fn connect(&self) -> Peer {
        Peer::connect(self.server.local_addr())
    }

    fn next_end(&self) -> Option<i32> {
        let ends = self.ends.lock().expect("no panic");
        ends.recv_timeout(PATIENCE).expect("every connection ends")
    }

    /// A conversation of which nothing may be lost.
    fn must_serve(&self) {
        converse(&mut self.connect()).expect("served");
        assert_eq!(self.next_end(), None);
    }

    /// Waits until nothing is left of any connection.
    fn settle(&self) {
        eventually("every connection is closed", || {
            let stats = self.server.settled();
            stats.closed == stats.connections
        });
    }

    /// Ends the server. Nothing may be left of it then, whatever has happened.
    fn end(self, before: &Before) {
        self.settle();
        assert_eq!(self.server.shutdown(PATIENCE), 0, "forced");
        drop(self);
        before.must_be_again();
    }
}

/// What the process had before a test.
struct Before {
    descriptors: usize,
    /// Not always 0: a ring that breaks takes the memory with it that the kernel was lent.
    blocks: usize,
}

impl Before {
    fn now() -> Before {
        Before { descriptors: open_descriptors(), blocks: Pool::global().stats().live_blocks }
    }

    fn must_be_again(&self) {
        assert_eq!(open_descriptors(), self.descriptors, "descriptors");
        assert_eq!(Pool::global().stats().live_blocks, self.blocks, "blocks");
    }
}

async fn echo_to_the_end(connection: &mut Connection) -> io::Result<()> {
    while connection.more().await? {
        let (reader, writer) = connection.split();
        writer.append(reader.buffer_mut());
        // Waits for the kernel, so that each failure is seen.
        writer.drain().await?;
    }
    Ok(())
}

/// A few messages to and fro, then one whose sender half-closes behind it. Fails if the connection ends early, panics if a
/// byte is not the one that was sent.
fn converse(peer: &mut Peer) -> io::Result<()> {
    let mut pattern = Pattern::new(11);
    for len in [1, 700, 9000] {
        let message = pattern.next(len);
        peer.write_all(message)?;
        let mut reply = vec![0; message.len()];
        peer.read_exact(&mut reply)?;
        assert!(reply == message, "another reply than was sent");
    }
    let last = pattern.next(3000);
    peer.write_all(last)?;
    peer.shutdown(Shutdown::Write);
    let rest = peer.read_rest()?;
    assert!(last.starts_with(&rest), "another reply than was sent");
    if rest == last { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// What is expected of a connection one of whose calls has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It goes on as if nothing had happened.
    GoesOn,
    /// It ends with that errno.
    Ends,
    /// It ends before it is served.
    IsRefused,
}

/// Lets the first call fail in one run, the second in the next, until there is a run that needs no more calls. Returns
/// how many have failed.
fn sweep(setup: Setup, call: Call, errnos: &[i32], then: Then) -> u64 {
    let turn = alone();
    let before = Before::now();
    let observed = Observed::start(setup);
    observed.must_serve();
    let mut failed = 0;
    for &errno in errnos {
        for n in 1.. {
            turn.set(Faults::none().nth(call, n, errno));
            let what = || format!("{call:?} {n} fails with {errno}");
            // More than one, since the next accept is under way before the first.
            let results: Vec<_> = (0..3).map(|_| converse(&mut observed.connect())).collect();
            let injected = turn.injected();
            turn.set(Faults::none());
            let refused = if then == Then::IsRefused { injected as usize } else { 0 };
            let ends: Vec<_> = (refused..3).map(|_| observed.next_end()).collect();
            let broken: Vec<_> = ends.iter().flatten().copied().collect();
            let lost = results.iter().filter(|result| result.is_err()).count();
            match then {
                Then::Ends if injected == 1 => {
                    assert_eq!(broken, [errno], "{}", what());
                    assert!(lost <= 1, "{}: {results:?}", what());
                }
                Then::IsRefused if injected == 1 => {
                    assert_eq!((lost, broken.len()), (1, 0), "{}: {results:?}", what());
                }
                _ => assert_eq!((lost, broken.len()), (0, 0), "{}: {results:?} {ends:?}", what()),
            }
            observed.must_serve();
            failed += injected;
            if injected == 0 {
                break;
            }
        }
    }
    observed.end(&before);
    failed
}

fn every_receive_may_fail(setup: Setup) {
    // Three connections, each of which receives at least four messages and the end.
    let goes_on = sweep(setup, Call::Receive, &[libc::EINTR, libc::EAGAIN], Then::GoesOn);
    assert!(goes_on >= 2 * 15, "{goes_on} receives failed");
    let errnos =
        [libc::ECONNRESET, libc::ETIMEDOUT, libc::ENOMEM, libc::ENOBUFS, libc::EHOSTUNREACH];
    let ends = sweep(setup, Call::Receive, &errnos, Then::Ends);
    assert!(ends >= 5 * 15, "{ends} receives failed");
}

fn every_send_may_fail(setup: Setup) {
    let goes_on = sweep(setup, Call::Send, &[libc::EINTR, libc::EAGAIN], Then::GoesOn);
    assert!(goes_on >= 2 * 12, "{goes_on} sends failed");
    let errnos = [libc::EPIPE, libc::ECONNRESET, libc::ENOMEM, libc::ENOBUFS, libc::EBADF];
    let ends = sweep(setup, Call::Send, &errnos, Then::Ends);
    assert!(ends >= 5 * 12, "{ends} sends failed");
}

fn a_refused_send_ends_a_connection_whose_peer_waits(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    // Its handler does not wait for the kernel, but for the next request.
    let server = setup.serve_echo();
    for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EPIPE, libc::ECONNRESET, libc::ENOTSOCK] {
        let mut peer = Peer::connect(server.local_addr());
        peer.set_timeout(PATIENCE / 6);
        assert_eq!(peer.round_trip(b"x"), b"x");
        turn.set(Faults::none().nth(Call::Send, 1, errno));
        peer.write_all(b"y").expect("sent");
        match peer.read_rest() {
            Ok(rest) => assert_eq!(rest, b"", "{errno}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{errno}: {error}"),
        }
        assert_eq!(turn.injected(), 1);
    }
    eventually("every connection is closed", || server.settled().closed == 5);
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop(server);
    before.must_be_again();
}

fn every_accept_may_fail(setup: Setup) {
    let errnos = [
        libc::EINTR,
        libc::EAGAIN,
        libc::ECONNABORTED,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EPERM,
    ];
    let failed = sweep(setup, Call::Accept, &errnos, Then::GoesOn);
    assert!(failed >= 10 * 3, "{failed} accepts failed");
    // Without accept4(2) there is accept(2).
    let failed = sweep(setup, Call::Accept, &[libc::ENOSYS], Then::GoesOn);
    assert!(failed >= 3, "{failed} accepts failed");
}

fn every_wait_may_be_interrupted(setup: Setup) {
    let failed = sweep(setup, Call::Wait, &[libc::EINTR], Then::GoesOn);
    assert!(failed >= 3, "{failed} waits failed");
    let failed = sweep(setup, Call::Submit, &[libc::EAGAIN, libc::EBUSY], Then::GoesOn);
    assert!(setup.engine == Engine::Epoll || failed >= 3, "{failed} submissions failed");
}

fn every_poll_may_fail(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    let observed = Observed::start(setup);
    // Without a receive or a send that would block, io_uring needs no poll but the waker's.
    for errno in [libc::EINTR, libc::ECANCELED, libc::ENOMEM] {
        for n in 1..8 {
            let faults = Faults::none().nth(Call::Poll, n, errno).nth(Call::WakerPoll, n, errno);
            turn.set(faults.often(Call::Receive, 50, libc::EAGAIN).often(
                Call::Send,
                50,
                libc::EAGAIN,
            ));
            observed.must_serve();
            let polls = turn.calls(Call::Poll);
            assert!(setup.engine == Engine::Epoll || polls > 0, "nothing was polled for");
        }
    }
    turn.set(Faults::none());
    observed.end(&before);
}

fn every_registration_may_fail(setup: Setup) {
    let failed = sweep(setup, Call::Register, &[libc::ENOMEM, libc::ENOSPC], Then::IsRefused);
    assert!(setup.engine == Engine::Uring || failed >= 2 * 3, "{failed} registrations failed");
}

fn every_wake_up_may_be_interrupted(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    let observed = Observed::start(setup);
    turn.set(Faults::none().seed(3).often(Call::Notify, 60, libc::EINTR));
    // Each question is asked from this thread, of a poller that mostly sleeps.
    for _ in 0..100 {
        assert_eq!(observed.server.settled().pollers, 1);
    }
    eventually("a wake-up was interrupted", || {
        assert_eq!(observed.server.settled().pollers, 1);
        turn.injected() > 0
    });
    observed.end(&before);
}

fn every_shutdown_of_a_direction_may_fail(setup: Setup) {
    let failed = sweep(setup, Call::Shutdown, &[libc::ENOTCONN], Then::GoesOn);
    assert!(failed >= 3, "{failed} shutdowns failed");
}

/// A dial, a message to and fro, and the end.
async fn dial(dialer: &Dialer, server: &Server) -> io::Result<()> {
    let mut connection = dialer.dial_addr(server.local_addr().clone()).await?;
    let message = Pattern::new(5).next(10_000);
    connection.push(message);
    connection.flush().await?;
    connection.writer_mut().finish();
    let (mut pattern, mut received) = (Pattern::new(5), 0);
    while connection.more().await? {
        while let Some(chunk) = connection.input_mut().next_chunk(usize::MAX) {
            assert!(pattern.matches(&chunk), "bytes {received}.. are not those that were sent");
            received += chunk.len();
        }
    }
    assert_eq!(received, message.len());
    Ok(())
}

fn pollers(setup: Setup) -> Pollers {
    setup.pollers(1)
}

fn every_step_of_a_dial_may_fail(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    // On the other engine than the dialer, so that some calls are the dialer's alone.
    let other = if setup.engine == Engine::Epoll { Engine::Uring } else { Engine::Epoll };
    let observed = Observed::start(Setup { engine: other, ..setup });
    let dialers = pollers(setup);
    let dialer = Dialer::new().pollers(dialers.clone());
    block_on(dial(&dialer, &observed.server)).expect("served");
    let mut failed = 0;
    let steps = [
        (Call::ConnectResult, libc::ECONNREFUSED),
        (Call::ConnectResult, libc::ETIMEDOUT),
        (Call::ConnectResult, libc::ENOBUFS),
        (Call::ConnectPoll, libc::EINTR),
        (Call::ConnectPoll, libc::ECANCELED),
        (Call::ConnectPoll, libc::ENOMEM),
    ];
    for (call, errno) in steps {
        turn.set(Faults::none().nth(call, 1, errno));
        let result = block_on(dial(&dialer, &observed.server));
        let injected = turn.injected();
        turn.set(Faults::none());
        failed += injected;
        let fatal = injected > 0 && !matches!(errno, libc::EINTR | libc::ECANCELED);
        match result {
            Ok(()) => assert!(!fatal, "{call:?} has failed with {errno}, and nobody knows"),
            Err(error) => {
                assert!(fatal && support::errno(&error) == Some(errno), "{call:?}: {error}")
            }
        }
        block_on(dial(&dialer, &observed.server)).expect("served");
    }
    let expected = match (setup.family, setup.engine) {
        // A Unix socket is connected at once, or not at all.
        (Family::Unix, _) => 0,
        (_, Engine::Uring) => 6,
        _ => 3,
    };
    assert_eq!(failed, expected);
    drop((dialer, dialers));
    observed.end(&before);
}

fn a_refused_start_is_a_clear_error(setup: Setup) {
    let turn = alone();
    // Whatever is made once per process is made now.
    drop(setup.serve_echo());
    let before = Before::now();
    let start = |engine| {
        let builder = setup.builder().engine(engine);
        builder.on_request(support::echo).serve(setup.listener())
    };
    let mut failed = 0;
    for call in [Call::Setup, Call::EventFd, Call::Register] {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            for n in 1.. {
                // A ring is made smaller while there is no memory for it.
                let last = if call == Call::Setup { u64::MAX } else { n };
                turn.set(Faults::none().counted(call, n, last, errno));
                let result = start(setup.engine);
                let injected = turn.injected();
                turn.set(Faults::none());
                failed += injected.min(1);
                match result {
                    Ok(server) => {
                        assert_eq!(injected, 0, "{call:?} {n} has failed and nobody knows");
                        let peer = &mut Peer::connect(server.local_addr());
                        assert_eq!(peer.round_trip(b"x"), b"x");
                        break;
                    }
                    Err(error) => {
                        let text = error.to_string();
                        let errno_text = io::Error::from_raw_os_error(errno).to_string();
                        assert!(injected > 0 && text.contains(&errno_text), "{text}");
                        if setup.engine == Engine::Uring {
                            assert!(text.contains("remedy"), "{text}");
                        }
                    }
                }
            }
            before.must_be_again();
        }
    }
    assert!(failed >= 3 * if setup.engine == Engine::Epoll { 4 } else { 2 }, "{failed}");

    if setup.engine == Engine::Uring && std::env::var_os("DUOPOLL_ENGINE").is_none() {
        turn.set(Faults::none().nth(Call::Setup, 1, libc::EMFILE));
        let server = start(Engine::Auto).expect("a server on epoll");
        assert_eq!(server.engine_report().engine, "epoll");
        let reason = server.engine_report().fallback.clone().expect("a reason");
        assert!(reason.contains("io_uring_setup") && reason.contains("remedy"), "{reason}");
        assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
        // With a little less memory there is a smaller ring.
        turn.set(Faults::none().counted(Call::Setup, 1, 2, libc::ENOMEM));
        let server = start(Engine::Auto).expect("a server");
        assert_eq!(server.engine_report().engine, "uring");
        assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    }
}

/// What is long enough for thousands of calls of a poller that does not sleep.
const LONG: Duration = Duration::from_millis(200);

fn accepting_what_cannot_be_accepted_does_not_spin(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EPERM] {
        let observed = Observed::start(setup);
        turn.set(Faults::none().counted(Call::Accept, 1, u64::MAX, errno));
        let mut peers = [observed.connect(), observed.connect()];
        eventually("an accept fails", || turn.injected() > 0);
        // Not to wait for something: how often it is tried meanwhile is the test.
        thread::sleep(LONG);
        let tries = turn.calls(Call::Accept);
        assert!(tries < 20, "tried {tries} times within {LONG:?}, with {errno}");
        turn.set(Faults::none());
        for peer in &mut peers {
            converse(peer).expect("accepted when it can be");
            assert_eq!(observed.next_end(), None);
        }
        drop(peers);
        observed.end(&before);
    }
}

fn submitting_what_is_refused_does_not_spin(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    let observed = Observed::start(setup);
    let mut peer = observed.connect();
    assert_eq!(peer.round_trip(b"x"), b"x");
    turn.set(Faults::none().counted(Call::Submit, 1, u64::MAX, libc::EAGAIN));
    peer.write_all(b"y").expect("sent");
    if setup.engine == Engine::Uring {
        eventually("a submission is refused", || turn.injected() > 0);
        // Not to wait for something: how often it is tried meanwhile is the test.
        thread::sleep(LONG);
        let (submits, waits) = (turn.calls(Call::Submit), turn.calls(Call::Wait));
        assert!(submits + waits < 200, "{submits} submissions, {waits} waits within {LONG:?}");
    }
    turn.set(Faults::none());
    let mut reply = [0];
    peer.read_exact(&mut reply).expect("a reply when it can be sent");
    drop(peer);
    assert_eq!(observed.next_end(), None);
    observed.end(&before);
}

fn completions_that_overflow_are_not_lost(setup: Setup) {
    const PEERS: u64 = 200;
    let turn = alone();
    let before = Before::now();
    // With room for 32 completions.
    turn.set(Faults::none().ring_entries(2));
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.peek(1).await?[0] == b'!' {
            let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        }
        support::echo(connection).await
    });
    turn.set(Faults::none());
    let mut peers: Vec<_> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"x"), b"x");
    }
    // While the poller waits for us all of them say something, and half of them leave.
    let (mut last, mut others) = (peers.pop().expect("one"), peers);
    let (left, stay) = others.split_at_mut(PEERS as usize / 2);
    last.write_all(b"!").expect("sent");
    for peer in left.iter_mut().chain(&mut *stay) {
        peer.write_all(b"y").expect("sent");
    }
    for peer in left.iter() {
        peer.shutdown(Shutdown::Both);
    }
    release.send(()).expect("held");
    for peer in stay {
        peer.read_exact(&mut [0]).expect("a reply");
    }
    let overflows = server.settled().completion_overflows;
    assert!(setup.engine == Engine::Epoll || overflows > 0, "nothing has overflowed");
    drop((last, others));
    eventually("every connection is closed", || server.settled().closed == PEERS);
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop(server);
    before.must_be_again();
}

fn a_connection_without_memory_goes_on_when_there_is_some(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    // It has an idle timeout, whose timer is far off.
    let observed = Observed::start(setup);
    turn.set(Faults::none().counted(Call::Block, 1, 5, libc::ENOMEM));
    let mut peer = observed.connect();
    peer.set_timeout(PATIENCE / 6);
    converse(&mut peer).expect("served, a little later");
    assert_eq!(observed.next_end(), None);
    assert!(turn.injected() > 0, "no block was asked for");
    // And when it runs out in the middle.
    for n in 1..6 {
        let mut peer = observed.connect();
        peer.set_timeout(PATIENCE / 6);
        assert_eq!(peer.round_trip(b"x"), b"x");
        turn.set(Faults::none().counted(Call::Block, n, n + 2, libc::ENOMEM));
        converse(&mut peer).expect("served, a little later");
        assert_eq!(observed.next_end(), None);
    }
    drop(peer);
    observed.end(&before);
}

fn a_broken_engine_ends_its_connections(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    // EBADR: a completion is lost, for lack of memory.
    let errno = if setup.engine == Engine::Uring { libc::EBADR } else { libc::EBADF };
    for n in 1..8 {
        // Full at once, so that it is not only entered to wait.
        turn.set(Faults::none().ring_entries(2));
        let server = setup.serve_echo();
        let mut peers: Vec<_> = (0..6).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut peers {
            assert_eq!(peer.round_trip(b"x"), b"x");
        }
        turn.set(Faults::none().nth(Call::Wait, n, errno));
        while turn.injected() == 0 {
            for peer in &mut peers {
                let _ = peer.write_all(b"y");
            }
        }
        // It ends, and with it whatever it served; some of it may have been answered before.
        for peer in &mut peers {
            match peer.read_rest() {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
            }
        }
        // Whoever asks is answered.
        assert_eq!(server.settled().connections, 6);
        assert_eq!(server.shutdown(PATIENCE), 0);
    }

    turn.set(Faults::none());
    let listener = setup.listener();
    let peer = Peer::connect(&listener.local_addr().expect("bound"));
    let pollers = pollers(setup);
    SockRef::from(&listener).set_nonblocking(false).expect("a mode");
    let socket = SockRef::from(&listener).accept().expect("accepted").0;
    let mut connection = block_on(pollers.adopt(socket)).expect("adopted");
    turn.set(Faults::none().nth(Call::Wait, 1, errno));
    let told = thread::spawn(move || block_on(connection.next(1)).expect_err("nobody polls"));
    // Wakes the poller, if it sleeps.
    pollers.settled();
    let error = told.join().expect("no panic");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    drop((pollers, peer, listener));
    assert_eq!(open_descriptors(), before.descriptors);
}

fn a_shutdown_while_accepting_fails_is_not_held_up(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    let server = setup.serve_echo();
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    turn.set(Faults::none().counted(Call::Accept, 1, u64::MAX, libc::EMFILE));
    let mut peers: Vec<_> = (0..2).map(|_| Peer::connect(server.local_addr())).collect();
    eventually("an accept fails", || turn.injected() > 0);
    let start = Instant::now();
    // One of them may have been accepted before, and is between two requests.
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert!(start.elapsed() < PATIENCE / 6, "held up for {:?}", start.elapsed());
    drop(server);
    for peer in &mut peers {
        let end = peer.read_rest();
        assert!(end.is_err() || end.is_ok_and(|rest| rest.is_empty()), "served all the same");
    }
    drop(peers);
    before.must_be_again();
}

fn generations_wrap_under_a_server(setup: Setup) {
    let turn = alone();
    let before = Before::now();
    turn.set(Faults::none().generation((1 << 24) - 100));
    let (handles, controls) = mpsc::channel();
    let handles = Mutex::new(handles);
    let service = setup
        .builder()
        .on_connect(async move |connection: &mut Connection| {
            let _ = handles.lock().expect("no panic").send(connection.control());
            Ok(())
        })
        .on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut gone: Vec<Control> = Vec::new();
    for _ in 0..70 {
        let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut peers {
            assert_eq!(peer.round_trip(b"x"), b"x");
        }
        // Whoever still has a handle on those whose slots these have taken ends nothing with it.
        gone.iter().for_each(Control::abort);
        // In another order than they came.
        for peer in peers.iter_mut().rev() {
            converse(peer).expect("served");
        }
        gone = controls.try_iter().collect();
        assert_eq!(gone.len(), 3);
        drop(peers);
        eventually("every connection is closed", || {
            let stats = server.settled();
            stats.closed == stats.connections
        });
    }
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop((server, gone, controls));
    before.must_be_again();
}

const CLIENTS: u64 = 4;
const CONNECTIONS: u64 = 25;
const BYTES_MAX: usize = 30_000;
/// Some of which io_uring receives by system calls.
const LARGE_BYTES_MAX: usize = 1_000_000;

fn a_storm_of_faults_loses_no_byte(setup: Setup) {
    for seed in 0..3 {
        storm(setup, storm_faults(seed), seed, BYTES_MAX);
    }
}

fn a_storm_on_a_tiny_ring_loses_no_byte(setup: Setup) {
    if setup.engine == Engine::Epoll {
        // There every wait reports few events instead.
        return storm(setup, storm_faults(7).short(100), 7, BYTES_MAX);
    }
    for seed in 3..5 {
        storm(setup, storm_faults(seed).ring_entries(2), seed, BYTES_MAX);
    }
}

fn a_storm_on_large_messages_loses_no_byte(setup: Setup) {
    // Not one of the storms without memory: in those, whoever waits for a peer that is slow to read may be refused.
    for seed in [8, 10] {
        storm(setup, storm_faults(seed).short(20), seed, LARGE_BYTES_MAX);
    }
}

fn storm_faults(seed: u64) -> Faults {
    let mut faults = Faults::none().seed(seed).short(60);
    for call in [Call::Receive, Call::Send, Call::Accept] {
        faults = faults.often(call, 20, libc::EINTR).often(call, 20, libc::EAGAIN);
    }
    let faults = faults
        .often(Call::Accept, 10, libc::ECONNABORTED)
        .often(Call::Accept, 5, libc::EMFILE)
        .often(Call::Wait, 10, libc::EINTR)
        .often(Call::Submit, 10, libc::EAGAIN)
        .often(Call::Submit, 10, libc::EBUSY)
        .often(Call::Poll, 10, libc::ENOMEM)
        .often(Call::WakerPoll, 30, libc::ENOMEM)
        .often(Call::ConnectPoll, 30, libc::EINTR)
        .often(Call::Notify, 20, libc::EINTR);
    // Without memory, connections are accepted one by one with 80 ms between them: a third of the storms is enough of that.
    if seed % 3 == 0 { faults.often(Call::Block, 10, libc::ENOMEM) } else { faults }
}

fn storm(setup: Setup, faults: Faults, seed: u64, bytes_max: usize) {
    let turn = alone();
    // The self-test is for calmer weather, that of what the environment allows, too.
    assert_eq!(duopoll::uring::probe(duopoll::uring::Features::ALL).unavailable, None);
    drop(pollers(setup));
    let before = Before::now();
    turn.set(faults);
    let observed = Observed::start(setup);
    let dialers = pollers(setup);
    let dialer = Dialer::new().pollers(dialers.clone());
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let observed = &observed;
            scope.spawn(move || {
                let mut random = Random::new(seed << 8 | client);
                for _ in 0..CONNECTIONS {
                    weather(observed.connect(), &mut random, bytes_max);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                block_on(dial(&dialer, &observed.server)).expect("served");
            }
        });
    });
    assert!(turn.injected() > 500, "{} faults are no storm", turn.injected());
    let (mut cleanly, mut broken) = (0, 0);
    for _ in 0..(CLIENTS + 1) * CONNECTIONS {
        match observed.next_end() {
            None => cleanly += 1,
            // Those that the peer has reset.
            Some(libc::ECONNRESET | libc::EPIPE) => broken += 1,
            Some(errno) => panic!("a connection ended with {errno}"),
        }
    }
    assert!(cleanly >= CONNECTIONS, "{cleanly} ended cleanly, {broken} by reset");
    drop((dialer, dialers));
    observed.end(&before);
}

/// One connection of a storm: so many bytes, checked, and one of several ends.
fn weather(mut peer: Peer, random: &mut Random, bytes_max: usize) {
    let bytes = random.length(bytes_max);
    let (mut there, mut back) = (Pattern::new(bytes as u64), Pattern::new(bytes as u64));
    let mut receiver = peer.try_clone();
    let resets = random.between(0, 3) == 0;
    thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut left = bytes;
            while left > 0 {
                let piece = there.next(random.length(left));
                peer.write_all(piece).expect("sent");
                left -= piece.len();
            }
            if !resets {
                peer.shutdown(Shutdown::Write);
            }
        });
        let mut received = 0;
        let mut buffer = vec![0; 4096];
        while received < bytes {
            let n = receiver.read(&mut buffer).expect("received");
            assert!(n > 0, "the end after {received} of {bytes} bytes");
            assert!(back.matches(&buffer[..n]), "bytes {received}.. are not those that were sent");
            received += n;
        }
        assert_eq!(received, bytes);
        sent.join().expect("no panic");
    });
    drop(receiver);
    if resets {
        // With a reply on its way, which is lost.
        peer.write_all(b"and then").expect("sent");
        peer.reset();
    } else {
        assert_eq!(peer.read_rest().expect("the end"), b"");
    }
}
