//! Time that stands still for a test, and jumps to what is due next.

mod support;

use std::cell::RefCell;
use std::io::ErrorKind;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use duopoll::task::{spawn_blocking, spawn_local};
use duopoll::time::{self, MissedTicks, interval, now, sleep, timeout};
use duopoll::{Connection, Dialer, EventLoop, Pollers, Server};
use support::{PATIENCE, Setup};

on_every_setup!(
    a_day_of_keepalives_takes_a_moment,
    an_idle_connection_ends_in_time,
    timers_go_off_in_order,
    time_is_moved_timer_by_timer,
    ticks_come_in_time,
    time_goes_on_from_where_it_stood,
    blocking_work_holds_time_up,
    a_move_does_not_wait_for_blocking_work,
    a_move_does_not_wait_for_who_is_always_ready,
    several_moves_end_one_by_one,
    elsewhere_a_sleep_is_as_long_as_it_says,
    a_grace_passes_in_paused_time,
    time_belongs_to_a_single_poller,
);

const HOUR: Duration = Duration::from_secs(3600);

/// Runs a test on a poller whose time stands.
fn paused<F: Future>(setup: Setup, test: F) -> F::Output {
    let begun = Instant::now();
    let options = Pollers::options().engine(setup.engine);
    let output = options.block_on(async {
        time::pause().expect("there is one poller");
        test.await
    });
    assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
    output.expect("an engine")
}

async fn serve(setup: Setup, builder: impl FnOnce(duopoll::Builder) -> duopoll::Builder) -> Server {
    let pollers = Pollers::current().expect("this thread is a poller");
    let service = builder(EventLoop::builder().on(pollers)).on_request(support::echo);
    service.serve_async(setup.listener()).await.expect("it listens")
}

async fn dial(server: &Server) -> Connection {
    Dialer::new().dial_addr(server.local_addr().clone()).await.expect("a connection")
}

fn a_day_of_keepalives_takes_a_moment(setup: Setup) {
    paused(setup, async {
        let server = serve(setup, |builder| builder.idle_timeout(Duration::from_secs(60))).await;
        let mut connection = dial(&server).await;
        let begun = now();
        let mut ticks = interval(Duration::from_secs(59));
        while now() - begun < 24 * HOUR {
            ticks.tick().await;
            connection.write(b"ping").expect("written");
            connection.flush().await.expect("sent");
            assert_eq!(&connection.next(4).await.expect("a reply")[..], b"ping");
        }
        assert_eq!(server.server_stats().requests, 24 * 3600 / 59 + 2);
        // A second more is too much.
        sleep(Duration::from_secs(61)).await;
        assert!(!connection.more().await.expect("its end"));
    });
}

fn an_idle_connection_ends_in_time(setup: Setup) {
    paused(setup, async {
        let server = serve(setup, |builder| builder.idle_timeout(HOUR)).await;
        let mut connection = dial(&server).await;
        let begun = now();
        assert!(!connection.more().await.expect("its end"));
        let took = now() - begun;
        assert!((HOUR..HOUR + Duration::from_millis(20)).contains(&took), "{took:?}");
        // A read's own.
        let mut connection = dial(&server).await;
        connection.set_read_timeout(Some(HOUR / 2));
        let begun = now();
        let error = connection.next(1).await.expect_err("nothing comes");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let took = now() - begun;
        assert!((HOUR / 2..HOUR / 2 + Duration::from_millis(20)).contains(&took), "{took:?}");
    });
}

fn timers_go_off_in_order(setup: Setup) {
    paused(setup, async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let begun = now();
        let tasks: Vec<_> = [5, 3, 20, 1, 8]
            .into_iter()
            .map(|days| {
                let order = order.clone();
                spawn_local(async move {
                    sleep(24 * HOUR * days).await;
                    order.borrow_mut().push((days, now() - begun));
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        let exact = [1, 3, 5, 8, 20].map(|days| (days, 24 * HOUR * days));
        let order = order.take();
        for ((days, after), (expected, due)) in order.iter().zip(exact) {
            let late = *after - due;
            assert_eq!(*days, expected);
            assert_eq!(late, Duration::ZERO, "{days} days");
        }
        let elapsed = timeout(HOUR, std::future::pending::<()>()).await;
        assert!(elapsed.is_err());
    });
}

fn time_is_moved_timer_by_timer(setup: Setup) {
    paused(setup, async {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (ticks, begun) = (seen.clone(), now());
        let ticker = spawn_local(async move {
            let mut interval = interval(Duration::from_secs(1));
            loop {
                interval.tick().await;
                ticks.borrow_mut().push((now() - begun).as_secs());
            }
        });
        time::advance(Duration::from_millis(4500)).await.expect("it stands");
        let passed = now() - begun;
        assert_eq!(passed, Duration::from_millis(4500));
        assert_eq!(seen.borrow()[..], [0, 1, 2, 3, 4]);
        ticker.abort();
        time::resume().expect("there is one poller");
        let error = time::advance(HOUR).await.expect_err("it runs");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

fn ticks_come_in_time(setup: Setup) {
    const PERIOD: Duration = Duration::from_secs(10);
    paused(setup, async {
        for missed in [MissedTicks::Burst, MissedTicks::Delay, MissedTicks::Skip] {
            let mut ticks = interval(PERIOD).missed_ticks(missed);
            let first = ticks.tick().await;
            // It misses two.
            time::advance(PERIOD * 5 / 2).await.expect("it stands");
            let second = ticks.tick().await;
            let third = ticks.tick().await;
            // Polled and dropped, no tick is lost.
            let polled = support::poll_once(pin!(ticks.tick()));
            let fourth = match polled {
                Poll::Ready(due) => due,
                Poll::Pending => ticks.tick().await,
            };
            assert!(now() >= fourth);
            let apart = [second - first, third - second, fourth - third];
            let expected = match missed {
                MissedTicks::Burst => [PERIOD; 3],
                // From when the late one came, and in step with the first.
                MissedTicks::Delay => [PERIOD, PERIOD * 5 / 2, PERIOD],
                MissedTicks::Skip => [PERIOD, PERIOD * 2, PERIOD],
                other => panic!("{other:?} is not known here"),
            };
            for (apart, expected) in apart.into_iter().zip(expected) {
                let late = apart.abs_diff(expected);
                assert!(late < Duration::from_millis(2), "{missed:?}: {apart:?}, {expected:?}");
            }
        }
    });
}

fn time_goes_on_from_where_it_stood(setup: Setup) {
    paused(setup, async {
        let begun = now();
        sleep(HOUR).await;
        // Real time that passes meanwhile is not made up for.
        let stood = now();
        std::thread::sleep(Duration::from_millis(300));
        time::resume().expect("there is one poller");
        assert!(now() - stood < Duration::from_millis(250));
        let (real, virtual_) = (Instant::now(), now());
        sleep(Duration::from_millis(20)).await;
        assert!(real.elapsed() >= Duration::from_millis(20));
        assert!(now() - virtual_ >= Duration::from_millis(20));
        assert!(now() - begun >= HOUR);
        time::pause().expect("there is one poller");
        let stands = now();
        assert_eq!(now(), stands);
        sleep(HOUR).await;
        assert!(now() - begun >= 2 * HOUR);
    });
}

fn blocking_work_holds_time_up(setup: Setup) {
    paused(setup, async {
        let begun = now();
        let (go, wait) = mpsc::channel::<()>();
        let work = spawn_blocking(move || wait.recv().expect("it is told"));
        let asleep = Rc::new(RefCell::new(true));
        let awake = asleep.clone();
        let sleeper = spawn_local(async move {
            sleep(HOUR).await;
            *awake.borrow_mut() = false;
        });
        // Turns in which nobody has anything to do but wait.
        for _ in 0..100 {
            duopoll::task::yield_now().await;
        }
        assert_eq!((now(), *asleep.borrow()), (begun, true));
        go.send(()).expect("it waits");
        work.await.expect("no panic");
        sleeper.await.expect("no panic");
        assert!(now() - begun >= HOUR);
    });
}

/// Nor does a move that was given up go on.
fn a_move_does_not_wait_for_blocking_work(setup: Setup) {
    paused(setup, async {
        let begun = now();
        let (go, wait) = mpsc::channel::<()>();
        let work = spawn_blocking(move || wait.recv().expect("it is told"));
        time::advance(Duration::from_micros(100_500)).await.expect("it stands");
        assert_eq!(now() - begun, Duration::from_millis(101));
        assert!(support::poll_once(pin!(time::advance(HOUR))).is_pending());
        for _ in 0..100 {
            duopoll::task::yield_now().await;
        }
        assert!(now() - begun < HOUR);
        go.send(()).expect("it waits");
        work.await.expect("no panic");
    });
}

fn a_grace_passes_in_paused_time(setup: Setup) {
    paused(setup, async {
        let server = serve(setup, |builder| builder).await;
        let held = Arc::new(AtomicUsize::new(0));
        let holds = held.clone();
        let pollers = Pollers::current().expect("this thread is a poller");
        let service = EventLoop::builder().on(pollers).on_request(async move |connection| {
            connection.next(1).await?;
            holds.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        });
        let stubborn = service.serve_async(setup.listener()).await.expect("it listens");
        let mut connection = dial(&stubborn).await;
        connection.write(b"x").expect("written");
        connection.flush().await.expect("sent");
        while held.load(Ordering::SeqCst) == 0 {
            duopoll::task::yield_now().await;
        }
        let begun = now();
        assert_eq!(stubborn.shutdown_async(HOUR).await, 1);
        assert!(now() - begun >= HOUR);
        assert_eq!(server.shutdown_async(HOUR).await, 0);
    });
}

fn time_belongs_to_a_single_poller(setup: Setup) {
    let nowhere = time::pause().expect_err("there is no poller here");
    assert_eq!(nowhere.kind(), ErrorKind::Unsupported);
    let options = Pollers::options().engine(setup.engine).count(2);
    let several = options.block_on(async { time::pause().expect_err("there are two") });
    assert_eq!(several.expect("an engine").kind(), ErrorKind::Unsupported);
}

fn a_move_does_not_wait_for_who_is_always_ready(setup: Setup) {
    paused(setup, async {
        let busy = spawn_local(async {
            loop {
                duopoll::task::yield_now().await;
            }
        });
        let begun = now();
        time::advance(HOUR).await.expect("it stands");
        assert_eq!(now() - begun, HOUR);
        busy.abort();
    });
}

fn several_moves_end_one_by_one(setup: Setup) {
    paused(setup, async {
        let (go, wait) = mpsc::channel::<()>();
        // Nothing but the moves has the time go on.
        let work = spawn_blocking(move || wait.recv().expect("it is told"));
        let begun = now();
        let moves = [1, 2, 3].map(|hours| spawn_local(time::advance(hours * HOUR)));
        for (hours, moved) in (1..).zip(moves) {
            moved.await.expect("no panic").expect("it stands");
            assert!(now() - begun >= hours * HOUR);
        }
        assert_eq!(now() - begun, 3 * HOUR);
        go.send(()).expect("it waits");
        work.await.expect("no panic");
    });
}

fn elsewhere_a_sleep_is_as_long_as_it_says(setup: Setup) {
    let pollers = setup.pollers(1);
    // It has jumped.
    let jumps = pollers.spawn(|| async {
        time::pause()?;
        time::advance(HOUR).await?;
        time::resume()
    });
    pollster::block_on(jumps).expect("no panic").expect("it stood");
    let _entered = pollers.enter();
    let begun = Instant::now();
    let mut sleeping = time::sleep(Duration::from_millis(30));
    pollster::block_on(&mut sleeping);
    assert!(begun.elapsed() >= Duration::from_millis(30));
    // And when it is used again.
    let begun = Instant::now();
    sleeping.reset(begun + Duration::from_millis(30));
    pollster::block_on(&mut sleeping);
    assert!(begun.elapsed() >= Duration::from_millis(30));
    let mut ticks = time::interval(Duration::from_millis(10));
    let first = pollster::block_on(ticks.tick());
    let second = pollster::block_on(ticks.tick());
    assert_eq!(second - first, Duration::from_millis(10));
    assert!(second <= Instant::now());
}
