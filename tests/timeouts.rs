//! Timeouts and deadlines: they end waits, lose nothing, and are kept to the millisecond from below.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Dialer, Server};
use socket2::SockRef;
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup};

on_every_setup!(
    a_read_timeout_ends_the_wait_and_loses_nothing,
    a_deadline_in_the_past_wakes_the_waiter,
    bytes_that_have_arrived_are_read_past_the_deadline,
    a_later_deadline_revives_the_connection,
    an_expired_wait_does_not_touch_the_next,
    a_write_timeout_ends_a_flush_to_a_peer_that_never_reads,
    an_idle_connection_is_ended,
    traffic_puts_the_idle_timeout_off,
    a_slow_reader_is_not_idle,
    what_was_acknowledged_late_puts_the_idle_timeout_off,
    between_two_requests_no_read_timeout_applies,
    limits_can_be_set_while_somebody_waits,
    limits_without_end_are_none,
);

const SHORT: Duration = Duration::from_millis(50);

/// What a handler reports to the test.
type Report<T> = (Sender<T>, Receiver<T>);

fn report<T>() -> Report<T> {
    mpsc::channel()
}

fn receive<T>(reports: &Receiver<T>) -> T {
    reports.recv_timeout(PATIENCE).expect("a report")
}

/// A server whose handler takes the first byte of a request and then does what the test wants.
fn serve<F>(setup: Setup, handler: F) -> (Server, Peer)
where
    F: AsyncFn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
{
    let server = setup.serve(async move |connection: &mut Connection| {
        connection.read_u8().await?;
        handler(connection).await
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b".").expect("sent");
    (server, peer)
}

fn a_read_timeout_ends_the_wait_and_loses_nothing(setup: Setup) {
    let (reporter, reports) = report();
    let (_server, mut peer) = serve(setup, async move |connection| {
        connection.set_read_timeout(Some(SHORT));
        let start = Instant::now();
        let error = connection.next(4).await.expect_err("only two bytes come");
        let _ = reporter.send((error.kind(), start.elapsed()));
        connection.set_read_timeout(None);
        let all = connection.next(4).await?;
        connection.push(all);
        connection.drain().await
    });
    peer.write_all(b"ab").expect("sent");
    let (kind, waited) = receive(&reports);
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(waited >= SHORT, "timed out after {waited:?} already");
    peer.write_all(b"cd").expect("sent");
    let mut reply = [0; 4];
    peer.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"abcd");
}

/// Starts a read without a limit, and gives the test the handle to set one.
fn waiting_read(setup: Setup) -> (Server, Peer, Control, Receiver<io::Result<usize>>) {
    let (handler, handles) = report();
    let (reporter, reports) = report();
    let (server, peer) = serve(setup, async move |connection| {
        let _ = handler.send(connection.control());
        loop {
            let result = connection.next(1).await.map(|slice| slice.len());
            let timed_out = |error: &io::Error| {
                error.kind() == ErrorKind::TimedOut && error.raw_os_error().is_none()
            };
            let over = result.as_ref().is_err_and(|error| !timed_out(error));
            let _ = reporter.send(result);
            if over {
                return Ok(());
            }
        }
    });
    let control = receive(&handles);
    (server, peer, control, reports)
}

fn a_deadline_in_the_past_wakes_the_waiter(setup: Setup) {
    let (_server, _peer, control, reports) = waiting_read(setup);
    control.set_read_deadline(Some(Instant::now() - Duration::from_secs(1)));
    let error = receive(&reports).expect_err("nothing came");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    control.close();
}

fn a_later_deadline_revives_the_connection(setup: Setup) {
    let (_server, mut peer, control, reports) = waiting_read(setup);
    control.set_read_deadline(Some(Instant::now()));
    assert_eq!(receive(&reports).expect_err("nothing came").kind(), ErrorKind::TimedOut);
    control.set_read_deadline(None);
    peer.write_all(b"x").expect("sent");
    // The reader fails at the old deadline until it sees the new one; then the byte comes.
    loop {
        match receive(&reports) {
            Ok(n) => break assert_eq!(n, 1),
            Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut),
        }
    }
}

fn bytes_that_have_arrived_are_read_past_the_deadline(setup: Setup) {
    let (reporter, reports) = report();
    let (_server, mut peer) = serve(setup, async move |connection| {
        connection.fill(3).await?;
        connection.set_read_deadline(Some(Instant::now() - SHORT));
        let buffered = connection.next(3).await?;
        let more = connection.next(1).await.expect_err("nothing more has come");
        let _ = reporter.send((buffered, more.kind()));
        Ok(())
    });
    peer.write_all(b"abc").expect("sent");
    let (buffered, more) = receive(&reports);
    assert_eq!(buffered, b"abc");
    assert_eq!(more, ErrorKind::TimedOut);
}

fn an_expired_wait_does_not_touch_the_next(setup: Setup) {
    let (reporter, reports) = report();
    let (_server, _peer) = serve(setup, async move |connection| {
        connection.set_read_timeout(Some(SHORT));
        for _ in 0..3 {
            let start = Instant::now();
            let kind = connection.next(1).await.expect_err("nothing comes").kind();
            let _ = reporter.send((kind, start.elapsed()));
        }
        Ok(())
    });
    for _ in 0..3 {
        let (kind, waited) = receive(&reports);
        assert_eq!(kind, ErrorKind::TimedOut);
        assert!(waited >= SHORT, "an earlier wait's expiry ended this one after {waited:?}");
    }
}

fn a_write_timeout_ends_a_flush_to_a_peer_that_never_reads(setup: Setup) {
    let (reporter, reports) = report();
    let (server, peer) = serve(setup, async move |connection| {
        connection.set_write_timeout(Some(SHORT));
        let piece = vec![7; 1 << 20];
        loop {
            connection.push(piece.clone());
            let start = Instant::now();
            if let Err(error) = connection.flush().await {
                let _ = reporter.send((error.kind(), start.elapsed()));
                return Err(error);
            }
        }
    });
    let (kind, waited) = receive(&reports);
    assert_eq!(kind, ErrorKind::TimedOut);
    assert!(waited >= SHORT, "timed out after {waited:?} already");
    // Its connection goes too, though the peer still does not read.
    support::eventually("the connection is gone", || server.settled().closed == 1);
    drop(peer);
}

fn an_idle_connection_is_ended(setup: Setup) {
    let builder = setup.builder().idle_timeout(SHORT);
    let server = builder.on_request(support::echo).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let start = Instant::now();
    assert_eq!(peer.round_trip(b"x"), b"x");
    assert_eq!(peer.read_rest().expect("the end"), b"");
    assert!(start.elapsed() >= SHORT, "idle for {:?} only", start.elapsed());
    assert_eq!(server.settled().idle_timeouts, 1);
}

fn traffic_puts_the_idle_timeout_off(setup: Setup) {
    let builder = setup.builder().idle_timeout(10 * SHORT);
    let server = builder.on_request(support::echo).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let start = Instant::now();
    while start.elapsed() < 25 * SHORT {
        assert_eq!(peer.round_trip(b"x"), b"x");
        // Not to wait for something: the pause is the test.
        std::thread::sleep(SHORT / 5);
    }
    assert_eq!(server.settled().idle_timeouts, 0);
}

fn what_was_acknowledged_late_puts_the_idle_timeout_off(setup: Setup) {
    if matches!(setup.family, Family::Unix) {
        // Nobody is told when the peer has read.
        return;
    }
    const BYTES: usize = 1 << 20;
    let service = setup
        .builder()
        .idle_timeout(16 * SHORT)
        // The kernel takes all of it at once.
        .on_prepare(|socket| SockRef::from(&socket).set_send_buffer_size(2 * BYTES))
        .on_request(async |connection: &mut Connection| {
            connection.read_u8().await?;
            connection.write(&[b'x'; BYTES])?;
            connection.flush().await
        });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    if let Peer::Tcp(stream) = &peer {
        SockRef::from(stream).set_recv_buffer_size(64 << 10).expect("set");
    }
    peer.write_all(b".").expect("sent");
    // Not to wait for something: it takes the last bytes long after they were sent.
    std::thread::sleep(12 * SHORT);
    peer.read_exact(&mut vec![0; BYTES]).expect("all of it");
    let taken = Instant::now();
    assert_eq!(peer.read_rest().expect("the end"), b"");
    assert!(taken.elapsed() >= 8 * SHORT, "idle for {:?} only", taken.elapsed());
    assert_eq!(server.settled().idle_timeouts, 1);
}

fn a_slow_reader_is_not_idle(setup: Setup) {
    const BYTES: usize = 1 << 20;
    let server = setup
        .builder()
        .idle_timeout(10 * SHORT)
        .on_prepare(|socket| socket2::SockRef::from(&socket).set_send_buffer_size(16 << 10))
        .on_request(async |connection: &mut Connection| {
            connection.skip(1).await?;
            connection.push(vec![7; BYTES]);
            connection.drain().await
        });
    let server = server.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    let start = Instant::now();
    let mut received = 0;
    let mut buffer = vec![0; 16 << 10];
    while received < BYTES {
        let n = peer.read(&mut buffer).expect("received");
        assert_ne!(n, 0, "ended after {received} bytes and {:?}", start.elapsed());
        received += n;
        // Not to wait for something: the pause is the test.
        std::thread::sleep(SHORT / 5);
    }
    assert!(start.elapsed() > 11 * SHORT, "too fast to be a test");
}

fn between_two_requests_no_read_timeout_applies(setup: Setup) {
    let builder = setup.builder().read_timeout(SHORT);
    let server = builder.on_request(support::echo).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    // Not to wait for something: the pause is the test.
    std::thread::sleep(3 * SHORT);
    assert_eq!(peer.round_trip(b"y"), b"y");
}

/// Each of them, for a wait that has begun without any.
fn limits_can_be_set_while_somebody_waits(setup: Setup) {
    let (_server, _peer, control, reports) = waiting_read(setup);
    let start = Instant::now();
    control.set_read_timeout(Some(SHORT));
    assert_eq!(receive(&reports).expect_err("nothing came").kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= SHORT, "timed out after {:?} already", start.elapsed());
    // One that is put off again and again.
    control.set_read_timeout(None);
    let _ = reports.try_iter().count();
    for _ in 0..10 {
        control.set_read_deadline(Some(Instant::now() + 20 * SHORT));
        // Not to wait for something: the pause is the test.
        std::thread::sleep(SHORT);
    }
    let last = Instant::now() + 2 * SHORT;
    let early = reports.try_iter().count();
    control.set_read_deadline(Some(last));
    assert_eq!(receive(&reports).expect_err("nothing came").kind(), ErrorKind::TimedOut);
    assert!(Instant::now() >= last && early <= 1, "{early} timeouts before");
    // From here on nothing is limited but how long it may be idle, which ends it.
    control.set_read_deadline(None);
    let start = Instant::now();
    control.set_idle_timeout(Some(SHORT));
    let error = reports.iter().find(|report| {
        report.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ETIMEDOUT))
    });
    assert!(error.is_some(), "it is never idle");
    assert!(start.elapsed() < PATIENCE && !control.is_active());
}

fn limits_without_end_are_none(setup: Setup) {
    let forever = Duration::MAX;
    let builder = setup.builder().read_timeout(forever).write_timeout(forever);
    let service = builder.idle_timeout(forever).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let dialer = Dialer::new().timeout(forever);
    let dialed = pollster::block_on(dialer.dial_addr(server.local_addr().clone()));
    let mut connection = dialed.expect("connected");
    connection.set_read_timeout(Some(forever));
    connection.write(b"x").expect("staged");
    pollster::block_on(connection.flush()).expect("flushed");
    assert_eq!(pollster::block_on(connection.next(1)).expect("echoed"), b"x");
    drop(connection);
    assert_eq!(server.shutdown(forever), 0);
}
