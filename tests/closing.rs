//! Connections that are closed while something else of theirs is due.

mod support;

use std::future::pending;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Limits};
use futures_channel::oneshot;
use pollster::block_on;
use support::{Family, PATIENCE, Peer, Setup, connected, eventually, poll_once};

on_every_setup!(
    a_wait_for_a_request_that_is_dropped_is_not_idle,
    a_poller_that_ends_alone_resets_who_is_within_a_request,
    a_close_in_the_tick_of_a_timer_sends_everything,
);

fn a_wait_for_a_request_that_is_dropped_is_not_idle(setup: Setup) {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(Duration::from_millis(50));
    let (_pollers, mut connection, mut peer) = connected(setup, limits);
    assert!(poll_once(pin!(connection.next_request())).is_pending());
    let mut other = connected(setup, limits);
    // The other one waits, and is idle.
    let error = block_on(other.1.next(1)).expect_err("nothing comes");
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    std::io::Write::write_all(&mut peer, b"x").expect("it is open");
    assert_eq!(block_on(connection.next(1)).expect("it was not idle"), b"x");
}

/// What is to end the server panics, while a handler has sent half of a reply.
fn a_poller_that_ends_alone_resets_who_is_within_a_request(setup: Setup) {
    let (listens, address) = mpsc::channel();
    let (end, told) = oneshot::channel::<()>();
    let server = thread::spawn(move || {
        let service = setup.builder().pollers(1).on_request(async |connection: &mut Connection| {
            connection.next(7).await?;
            connection.write(b"half a rep")?;
            connection.drain().await?;
            pending().await
        });
        service.serve_here(setup.listener(), |server| {
            listens.send(server.local_addr().clone()).expect("somebody waits");
            async {
                let _ = told.await;
                std::panic::resume_unwind(Box::new("as wanted"))
            }
        })
    });
    let mut peer = Peer::connect(&address.recv_timeout(PATIENCE).expect("it listens"));
    std::io::Write::write_all(&mut peer, b"request").expect("sent");
    let mut half = [0; 10];
    std::io::Read::read_exact(&mut peer, &mut half).expect("half of it");
    end.send(()).expect("somebody waits");
    let rest = peer.read_rest();
    server.join().expect("no panic").expect_err("it has ended by itself");
    match setup.family {
        Family::Unix => assert_eq!(rest.expect("the end"), b""),
        _ => assert_eq!(rest.expect_err("cut short").kind(), ErrorKind::ConnectionReset),
    }
}

/// A waker that closes a connection, on the poller.
struct Closes(Control, AtomicBool);

impl Wake for Closes {
    fn wake(self: Arc<Self>) {
        self.0.close();
        self.1.store(true, Ordering::Relaxed);
    }
}

/// The timer of one connection closes another, whose own timer is due in the same tick: before the poller has begun to close
/// it. At once after the poller has begun, when no time has passed yet, and later.
fn a_close_in_the_tick_of_a_timer_sends_everything(setup: Setup) {
    const BYTES: usize = 8 << 20;
    for age in [Duration::ZERO, Duration::from_millis(30)] {
        let pollers = setup.pollers(1);
        let listener = setup.listener().pollers(pollers.clone());
        let address = listener.local_addr().expect("bound");
        let accept = || (Peer::connect(&address), block_on(listener.accept()).expect("accepted"));
        let (_one_peer, mut one) = accept();
        let (mut other_peer, mut other) = accept();
        other.push(vec![7; BYTES]);
        other.writer_mut().submit().expect("it is open");
        let closes = Arc::new(Closes(other.control(), AtomicBool::new(false)));
        let waker = Waker::from(closes.clone());
        let at = Instant::now() + age + Duration::from_millis(2);
        one.set_read_deadline(Some(at));
        other.set_read_deadline(Some(at));
        let begun = one.reader_mut().poll_fill(&mut Context::from_waker(&waker), 1).is_pending()
            & other.reader_mut().poll_fill(&mut Context::from_waker(Waker::noop()), 1).is_pending();
        if !begun {
            // The machine is too slow for this one.
            continue;
        }
        eventually("it is closed", || closes.1.load(Ordering::Relaxed));
        assert_eq!(other_peer.read_rest().expect("the end").len(), BYTES);
    }
}
