//! Timers on the pollers: never early, never lost, and gone when they are dropped.

mod support;

use std::io::Write;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::task::{spawn_local, yield_now};
use duopoll::time::{MissedTicks, Sleep, interval, sleep, sleep_until, timeout};
use duopoll::{Connection, Pollers, Server};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, poll_once, scaled};

on_every_setup!(
    a_handler_sleeps_and_holds_up_nobody,
    timers_that_are_dropped_are_gone,
    a_sleep_moves_between_threads,
    the_last_waker_counts,
    a_sleep_that_is_reset_ends_at_its_new_time,
    a_timeout_ends_what_takes_too_long,
    what_came_while_the_poller_was_busy_is_in_time,
    what_came_for_many_is_in_time,
    ticks_that_are_always_late_give_way,
    pollers_that_have_ended_are_not_waited_on,
);

const MOMENT: Duration = Duration::from_millis(20);

/// Has a handler do something, and waits for what it says.
fn in_a_handler<T: Send + 'static>(
    setup: Setup,
    act: impl AsyncFn(&mut Connection) -> T + Send + Sync + 'static,
) -> (T, Server) {
    let (tell, told) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        let said = act(connection).await;
        tell.send(said).expect("the test waits");
        support::echo(connection).await
    });
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    drop(peer);
    (told.recv_timeout(PATIENCE).expect("told"), server)
}

fn a_handler_sleeps_and_holds_up_nobody(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        if connection.next(1).await?[..] == b"s"[..] {
            let start = Instant::now();
            sleep(MOMENT).await;
            assert!(start.elapsed() >= MOMENT, "after {:?}", start.elapsed());
        }
        connection.write(b"x")
    });
    let mut sleeper = Peer::connect(server.local_addr());
    let mut other = Peer::connect(server.local_addr());
    std::io::Write::write_all(&mut sleeper, b"s").expect("sent");
    for _ in 0..100 {
        assert_eq!(other.round_trip(b"o"), b"x");
    }
    let mut reply = [0];
    std::io::Read::read_exact(&mut sleeper, &mut reply).expect("a reply");
    assert_eq!(server.settled().handler_panics, 0);
}

fn timers_that_are_dropped_are_gone(setup: Setup) {
    let many = scaled(100_000);
    let ((), server) = in_a_handler(setup, async move |_| {
        for _ in 0..many {
            assert!(poll_once(pin!(sleep(PATIENCE))).is_pending());
        }
        // All at once, too, reset a few times.
        let mut sleeps: Vec<_> = (0..1000).map(|_| sleep(PATIENCE)).collect();
        for round in 1..=3 {
            for sleep in &mut sleeps {
                sleep.reset(Instant::now() + PATIENCE * round);
                assert!(poll_once(Pin::new(sleep)).is_pending());
            }
        }
    });
    assert_eq!(server.settled().timers, 0);
}

/// Set on a poller, awaited elsewhere, and dropped by somebody else; and the other way round.
fn a_sleep_moves_between_threads(setup: Setup) {
    let (sleeps, server) = in_a_handler(setup, async |_| {
        let mut sleeps = [sleep(MOMENT), sleep(PATIENCE), sleep(PATIENCE)];
        for sleep in &mut sleeps {
            // The short one may be over, on a machine that is slow.
            let over = poll_once(Pin::new(&mut *sleep)).is_ready();
            assert!(!over || sleep.is_elapsed());
        }
        sleeps
    });
    // The short one may be over.
    assert!(server.settled().timers >= 2);
    let [short, mut earlier, dropped] = sleeps;
    block_on(short);
    earlier.reset(Instant::now() + MOMENT);
    block_on(earlier);
    drop(dropped);
    assert_eq!(server.settled().timers, 0);

    let start = Instant::now();
    let mut begun_here = sleep_until(start + MOMENT);
    if poll_once(Pin::new(&mut begun_here)).is_ready() {
        // A machine that is slow.
        return assert!(start.elapsed() >= MOMENT);
    }
    let slot = std::sync::Mutex::new(Some(begun_here));
    let (after, _) = in_a_handler(setup, async move |_| {
        let begun: Option<Sleep> = slot.lock().expect("no panic").take();
        if let Some(begun) = begun {
            begun.await;
        }
        start.elapsed()
    });
    assert!(after >= MOMENT, "after {after:?}");
}

fn a_timeout_ends_what_takes_too_long(setup: Setup) {
    let (said, server) = in_a_handler(setup, async |connection| {
        let ready = timeout(MOMENT, async { 7 }).await;
        let late = timeout(MOMENT, connection.next(1000)).await.map(drop);
        (ready, late.map_err(std::io::Error::from).map_err(|error| error.kind()))
    });
    assert_eq!(said.0, Ok(7));
    assert_eq!(said.1, Err(std::io::ErrorKind::TimedOut));
    assert_eq!(server.settled().timers, 0);
}

#[test]
fn a_sleep_outlives_its_pollers() {
    let pollers = Pollers::options().count(1).start().expect("a poller");
    let listener = duopoll::Listener::bind("127.0.0.1:0").expect("bound").pollers(pollers.clone());
    // Somebody who sleeps on a poller that ends is woken, and goes on at another.
    let service = duopoll::EventLoop::builder().on(pollers.clone());
    let (tell, told) = mpsc::channel();
    let service = service.on_request(async move |connection: &mut Connection| {
        let mut sleep = sleep(MOMENT * 10);
        assert!(poll_once(Pin::new(&mut sleep)).is_pending());
        tell.send(sleep).expect("the test waits");
        support::echo(connection).await
    });
    let server = service.serve(listener).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    let sleep = told.recv_timeout(PATIENCE).expect("told");
    let (start, deadline) = (Instant::now(), sleep.deadline());
    let sleeper = thread::spawn(move || block_on(sleep));
    pollers.stop();
    sleeper.join().expect("no panic");
    assert!(Instant::now() >= deadline && start.elapsed() < PATIENCE);
}

/// Says that it was called.
#[derive(Default)]
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A sleep of another thread's poller that is polled with one waker and then with another, until it is over. Whoever polled last
/// and was told to wait is woken.
fn the_last_waker_counts(setup: Setup) {
    let (tell, told) = mpsc::channel();
    let server = setup.serve(async move |connection: &mut Connection| {
        let mut sleep = sleep(Duration::from_millis(1));
        assert!(poll_once(Pin::new(&mut sleep)).is_pending());
        tell.send(sleep).expect("the test waits");
        // Beyond the deadline, so that there is time between it and the timer.
        let busy = Instant::now();
        while busy.elapsed() < Duration::from_millis(3) {}
        support::echo(connection).await
    });
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..scaled(200) {
        std::io::Write::write_all(&mut peer, b"x").expect("sent");
        let mut sleep = told.recv_timeout(PATIENCE).expect("told");
        let wakers = [Arc::new(Called::default()), Arc::new(Called::default())];
        for turn in 0.. {
            let (this, other) = (&wakers[turn % 2], &wakers[1 - turn % 2]);
            this.0.store(false, Ordering::Relaxed);
            let waker = Waker::from(this.clone());
            if Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)).is_ready() {
                break;
            }
            if other.0.load(Ordering::Relaxed) {
                // It went off under the one before, and this one was told to wait.
                support::eventually("it is woken", || this.0.load(Ordering::Relaxed));
                break;
            }
        }
        std::io::Read::read_exact(&mut peer, &mut [0]).expect("a reply");
    }
}

fn a_sleep_that_is_reset_ends_at_its_new_time(setup: Setup) {
    const DAY: Duration = Duration::from_secs(86_400);
    let (took, _server) = in_a_handler(setup, async |_| {
        let start = Instant::now();
        let mut long = pin!(sleep(DAY));
        // What is past has come at once, whatever timer was set before.
        for until in [start - MOMENT, start + DAY, start - MOMENT] {
            long.as_mut().reset(until);
            assert_eq!(poll_once(long.as_mut()).is_ready(), until < start);
        }
        long.as_mut().reset(start + DAY);
        assert!(poll_once(long.as_mut()).is_pending());
        long.as_mut().reset(start + MOMENT);
        long.await;
        start.elapsed()
    });
    assert!((MOMENT..PATIENCE).contains(&took), "{took:?}");
}

/// Has many wait for something that comes while their poller does nothing, until the time of all is over. Gives how many got it.
fn in_time(setup: Setup, count: usize) -> usize {
    let pollers = setup.pollers(1);
    let listener = setup.listener().pollers(pollers.clone());
    let (mut peers, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..count {
        peers.push(Peer::connect(&listener.local_addr().expect("bound")));
        connections.push(block_on(listener.accept()).expect("accepted"));
    }
    let ((busy, is_busy), (go, goes_on)) = (mpsc::channel(), mpsc::channel::<()>());
    let waits = pollers.spawn(move || async move {
        let waits = connections.into_iter().map(|mut connection| {
            spawn_local(async move {
                timeout(2 * MOMENT, connection.next(1000)).await.is_ok_and(|came| came.is_ok())
            })
        });
        let waits: Vec<_> = waits.collect();
        // Behind them, when all wait.
        spawn_local(async move {
            yield_now().await;
            busy.send(()).expect("the test waits");
            goes_on.recv_timeout(PATIENCE).expect("it is told");
            thread::sleep(4 * MOMENT);
        });
        let mut in_time = 0;
        for wait in waits {
            in_time += usize::from(wait.await.expect("no panic"));
        }
        in_time
    });
    is_busy.recv_timeout(PATIENCE).expect("it begins");
    for peer in &mut peers {
        peer.write_all(&[7; 1000]).expect("sent");
    }
    go.send(()).expect("it waits");
    block_on(waits).expect("no panic")
}

fn what_came_while_the_poller_was_busy_is_in_time(setup: Setup) {
    assert_eq!(in_time(setup, 1), 1);
}

/// More than a turn takes: one hears of what came for him many turns later than another.
fn what_came_for_many_is_in_time(setup: Setup) {
    let count = scaled(300);
    assert_eq!(in_time(setup, count), count);
}

fn ticks_that_are_always_late_give_way(setup: Setup) {
    let options = Pollers::options().engine(setup.engine);
    for missed in [MissedTicks::Burst, MissedTicks::Skip, MissedTicks::Delay] {
        let ran = options.clone().block_on(async move {
            let task = spawn_local(async move {
                let mut ticks = interval(Duration::from_millis(1)).missed_ticks(missed);
                loop {
                    ticks.tick().await;
                    thread::sleep(Duration::from_millis(2));
                }
            });
            sleep(MOMENT).await;
            task.abort();
            task.await
        });
        assert!(ran.expect("an engine").expect_err("it goes on for ever").is_cancelled());
    }
}

fn pollers_that_have_ended_are_not_waited_on(setup: Setup) {
    struct Counts(AtomicUsize);
    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let pollers = setup.pollers(1);
    let _entered = pollers.enter();
    pollers.stop();
    let counts = Arc::new(Counts(AtomicUsize::new(0)));
    let waker = Waker::from(counts.clone());
    let mut sleeping = pin!(sleep(2 * MOMENT));
    assert!(sleeping.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    block_on(sleep(MOMENT));
    // When its time has come; somebody who looks for a poller again and again is woken thousands of times.
    assert!(counts.0.load(Ordering::SeqCst) <= 1);
    block_on(sleeping);
}
