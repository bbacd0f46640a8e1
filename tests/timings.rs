//! What pollers measure of themselves where they are asked to, and that handlers which hold them up are named.

mod support;

use std::future::poll_fn;
use std::io::Write;
use std::mem;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Timings};
use support::settled::Settled;
use support::{Peer, Setup, echo};

on_every_setup!(
    turns_and_handlers_are_measured,
    nothing_is_measured_unless_it_is_asked_for,
    late_timers_are_measured,
    a_handler_that_holds_its_poller_is_named,
);

/// For so long a handler holds its poller.
const HELD: Duration = Duration::from_millis(50);
const BOUND: Duration = Duration::from_millis(20);

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Holds its poller for a while, and answers with the number of the connection.
async fn hold(connection: &mut Connection) -> std::io::Result<()> {
    connection.read_u8().await?;
    thread::sleep(HELD);
    connection.write(&connection.id().to_be_bytes())
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

fn turns_and_handlers_are_measured(setup: Setup) {
    let builder = setup.builder().timings(true);
    let server = builder.on_request(hold).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.round_trip_of(b"?", 8);
    let stats = server.settled();
    let timings = server.pollers().timings().expect("they are measured");
    let Timings { turns, polls, batches, .. } = &timings;
    assert!(turns.quantile(1.0) >= nanos(HELD) && polls.quantile(1.0) >= nanos(HELD));
    assert!(turns.sum() >= polls.sum() && polls.sum() >= nanos(HELD));
    // As many as there are; the turn that tells so is not over.
    assert_eq!(polls.count(), stats.task_polls);
    assert_eq!(batches.sum(), stats.task_polls);
    assert!(turns.count() >= batches.count());
    // The turn that has told the figures may end meanwhile.
    let each = server.pollers().timings_of_each();
    assert_eq!((each.len(), &each[0].polls), (1, polls));
}

fn nothing_is_measured_unless_it_is_asked_for(setup: Setup) {
    let builder = setup.builder().slow_handler(BOUND);
    let server = builder.on_request(echo).serve(setup.listener()).expect("a server");
    Peer::connect(server.local_addr()).round_trip(b"x");
    assert_eq!(server.pollers().timings(), None);
    assert_eq!(server.pollers().timings_of_each(), []);
}

fn late_timers_are_measured(setup: Setup) {
    let builder = setup.builder().timings(true);
    let server = builder.on_request(async |connection: &mut Connection| {
        connection.read_u8().await?;
        let begin = || duopoll::time::sleep(HELD / 5);
        let (mut slept, mut held) = (pin!(begin()), false);
        poll_fn(|cx| {
            while slept.as_mut().poll(cx).is_ready() {
                if held {
                    return Poll::Ready(());
                }
                // It was over before it was polled, and no timer has seen it.
                slept.set(begin());
            }
            if !mem::replace(&mut held, true) {
                thread::sleep(HELD);
            }
            Poll::Pending
        })
        .await;
        connection.write(b"y")
    });
    let server = server.serve(setup.listener()).expect("a server");
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"?"), b"y");
    server.settled();
    let lags = server.pollers().timings().expect("they are measured").lags;
    assert!(lags.quantile(1.0) >= nanos(HELD / 2), "{lags:?}");
}

fn a_handler_that_holds_its_poller_is_named(setup: Setup) {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    let builder = setup.builder().slow_handler(BOUND);
    let server = builder.on_request(hold).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let (mut id, begun) = (None, Instant::now());
    // The second is not told of, if it comes within a second.
    for _ in 0..2 {
        peer.write_all(b"?").expect("sent");
        let mut told = [0; 8];
        std::io::Read::read_exact(&mut peer, &mut told).expect("a number");
        id = Some(u64::from_be_bytes(told));
    }
    server.settled();
    let name = format!("connection {:#x} ", id.expect("a number"));
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let ours: Vec<_> = logged.iter().filter(|line| line.contains(&name)).collect();
    assert!(ours.len() == 1 || begun.elapsed() >= Duration::from_secs(1), "{logged:?}");
    assert!(!ours.is_empty(), "{logged:?}");
    assert!(ours[0].contains("has held its poller for"), "{}", ours[0]);
    if let Peer::Tcp(stream) = &peer {
        let peer = stream.local_addr().expect("bound").to_string();
        assert!(ours[0].contains(&peer), "{}", ours[0]);
    }
}
