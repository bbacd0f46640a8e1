//! Tasks on the pollers: they run beside the connections, end with their poller, and tell their handles how.

mod support;

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::task::{self, TaskGroup, spawn_blocking, spawn_local, yield_now};
use duopoll::time::{interval, sleep, timeout};
use duopoll::{Connection, Dialer, EventLoop, Pollers};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, scaled};

on_every_setup!(
    a_handler_spawns_and_awaits,
    a_panic_is_an_error_of_the_handle,
    who_is_told_is_told_last,
    tasks_are_aborted_from_anywhere,
    tasks_end_with_their_poller,
    tasks_that_destructors_start_are_cancelled,
    who_comes_as_a_poller_ends_is_dropped,
    wakers_may_drop_who_waits_for_the_end,
    tasks_are_spawned_from_anywhere,
    blocking_work_holds_up_nobody,
    what_is_always_ready_starves_nobody,
    a_server_waits_for_its_tasks,
    a_server_ends_its_tasks_when_the_grace_is_over,
    the_calling_thread_becomes_a_poller,
    a_guard_lives_as_long_as_its_poller,
    tokio_works_in_handlers,
);

fn a_handler_spawns_and_awaits(setup: Setup) {
    let server = setup.serve(async |connection: &mut Connection| {
        let byte = connection.read_u8().await?;
        let shared = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..byte)
            .map(|number| {
                let shared = shared.clone();
                spawn_local(async move {
                    yield_now().await;
                    shared.set(shared.get() + u32::from(number));
                    number
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += u32::from(task.await?);
        }
        assert_eq!(shared.get(), sum);
        connection.write(&sum.to_be_bytes())
    });
    let mut peer = Peer::connect(server.local_addr());
    let mut reply = [0; 4];
    for number in [0_u8, 1, 10, 100] {
        peer.write_all(&[number]).expect("sent");
        peer.read_exact(&mut reply).expect("a reply");
        let number = u32::from(number);
        assert_eq!(u32::from_be_bytes(reply), number * number.saturating_sub(1) / 2);
    }
    assert_eq!(server.settled().handler_panics, 0);
}

fn a_panic_is_an_error_of_the_handle(setup: Setup) {
    let pollers = setup.pollers(1);
    let error = block_on(pollers.spawn(|| async { panic!("on purpose") })).expect_err("a panic");
    assert!(error.is_panic() && !error.is_cancelled());
    assert_eq!(error.to_string(), "the task has panicked: on purpose");
    let panic = error.try_into_panic().expect("what it was about");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));

    fn not_even_made() -> std::future::Ready<u8> {
        panic!("while it is made")
    }
    let error = block_on(pollers.spawn(not_even_made)).expect_err("a panic");
    assert_eq!(error.to_string(), "the task has panicked: while it is made");

    let error = block_on(spawn_blocking(|| panic!("{} blocks", 1))).expect_err("a panic");
    assert_eq!(error.to_string(), "the task has panicked: 1 blocks");
    assert_eq!(block_on(pollers.spawn(|| async { 42 })).expect("it goes on"), 42);
}

/// A future is gone when its handle says how it has ended, and what it has panicked with may panic, too.
fn who_is_told_is_told_last(setup: Setup) {
    struct Slow {
        _gone: Dropped,
        panics: bool,
    }
    impl Future for Slow {
        type Output = u8;
        fn poll(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<u8> {
            assert!(!self.panics, "on purpose");
            std::task::Poll::Ready(1)
        }
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(2));
        }
    }
    struct Nasty;
    impl Drop for Nasty {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new("as it is dropped"));
        }
    }
    let pollers = setup.pollers(1);
    for panics in [false, true] {
        let gone = Arc::new(AtomicBool::new(false));
        let slow = Slow { _gone: Dropped(gone.clone()), panics };
        let result = block_on(pollers.spawn(move || slow));
        assert!(gone.load(Ordering::SeqCst));
        assert_eq!(result.is_err(), panics);
    }
    let handle = pollers.spawn(|| async { std::panic::resume_unwind(Box::new(Nasty)) });
    let error: Result<(), _> = block_on(handle);
    drop(error.expect_err("a panic"));
    let handle = pollers.spawn(|| async { std::panic::resume_unwind(Box::new(Nasty)) });
    eventually("it is over", || handle.is_finished());
    thread::sleep(Duration::from_millis(1));
    drop::<task::JoinHandle<()>>(handle);
}

/// Sets a flag when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn tasks_are_aborted_from_anywhere(setup: Setup) {
    let pollers = setup.pollers(1);
    let gone = Arc::new(AtomicBool::new(false));
    let dropped = Dropped(gone.clone());
    let handle = pollers.spawn(|| async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    });
    let abort = handle.abort_handle();
    assert!(!abort.is_finished());
    abort.abort();
    assert!(block_on(handle).expect_err("aborted").is_cancelled());
    assert!(gone.load(Ordering::SeqCst) && abort.is_finished());
    // Once more, and what is over: nothing.
    abort.abort();
    let handle = pollers.spawn(|| async { 1 });
    eventually("it is over", || handle.is_finished());
    handle.abort();
    assert_eq!(block_on(handle).expect("what it gave before"), 1);

    // By itself, by another task, and before it has begun.
    let aborted = pollers.spawn(|| async {
        let (tell, told) = futures_channel::oneshot::channel::<task::AbortHandle>();
        let itself = spawn_local(async move {
            told.await.expect("told").abort();
            // Not polled again.
            yield_now().await;
            unreachable!("it was aborted");
        });
        tell.send(itself.abort_handle()).expect("it waits");
        let other = spawn_local(std::future::pending::<()>());
        let never = spawn_local(async { unreachable!("it was aborted") });
        other.abort();
        never.abort();
        let (itself, other, never): (_, _, Result<(), _>) =
            (itself.await, other.await, never.await);
        [itself.is_err(), other.is_err(), never.is_err()]
    });
    assert_eq!(block_on(aborted).expect("it goes on"), [true; 3]);
}

fn tasks_end_with_their_poller(setup: Setup) {
    let pollers = setup.pollers(2);
    let gone: Vec<_> = (0..4).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let handles: Vec<_> = gone
        .iter()
        .map(|gone| {
            let dropped = Dropped(gone.clone());
            pollers.spawn(move || async move {
                let _dropped = dropped;
                std::future::pending::<()>().await;
            })
        })
        .collect();
    let clone = pollers.clone();
    pollers.stop();
    assert!(gone.iter().all(|gone| gone.load(Ordering::SeqCst)));
    for handle in handles {
        assert!(block_on(handle).expect_err("its poller has ended").is_cancelled());
    }
    let late = clone.spawn(std::future::pending::<()>);
    assert!(block_on(late).expect_err("too late").is_cancelled());
}

fn tasks_that_destructors_start_are_cancelled(setup: Setup) {
    struct Starts(mpsc::Sender<&'static str>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let tell = self.0.clone();
            let handle = spawn_local(async move { tell.send("it ran").expect("the test waits") });
            self.0.send("dropped").expect("the test waits");
            handle.abort();
        }
    }
    let (tell, told) = mpsc::channel();
    let pollers = setup.pollers(1);
    let handle = pollers.spawn(move || async move {
        let _starts = Starts(tell);
        std::future::pending::<()>().await;
    });
    // It is there.
    block_on(pollers.spawn(|| async {})).expect("after it");
    drop(pollers);
    assert!(block_on(handle).expect_err("its poller has ended").is_cancelled());
    assert_eq!(told.iter().collect::<Vec<_>>(), ["dropped"]);
}

fn tasks_are_spawned_from_anywhere(setup: Setup) {
    let pollers = setup.pollers(2);
    let count = scaled(1000);
    let threads: Vec<_> = (0..2)
        .map(|index| {
            let pollers = pollers.clone();
            thread::spawn(move || {
                let handles: Vec<_> = (0..count)
                    .map(|number| {
                        let make = move || async move {
                            let not_send = Rc::new(number);
                            yield_now().await;
                            *not_send
                        };
                        match number % 2 {
                            0 => pollers.spawn(make),
                            _ => pollers.spawn_on(index, make),
                        }
                    })
                    .collect();
                handles.into_iter().map(|handle| block_on(handle).expect("run")).sum::<usize>()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().expect("no panic"), count * (count - 1) / 2);
    }
    let on = |index| {
        let name = || async { thread::current().name().map(str::to_owned) };
        block_on(pollers.spawn_on(index, name)).expect("run")
    };
    assert_ne!(on(0), on(1));
    // Within one: its own pollers.
    let same = pollers.clone();
    let current = move || async move { Pollers::current().map(|current| current.count()) };
    assert_eq!(block_on(same.spawn(current)).expect("run"), Some(2));
    assert!(Pollers::current().is_none());
}

fn blocking_work_holds_up_nobody(setup: Setup) {
    let meeting = Arc::new(Barrier::new(2));
    let blocks = meeting.clone();
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.read_u8().await? == b'b' {
            let blocks = blocks.clone();
            let on = spawn_blocking(move || {
                blocks.wait();
                thread::current().id()
            });
            assert_ne!(on.await?, thread::current().id());
        }
        connection.write(b"x")
    });
    let mut blocked = Peer::connect(server.local_addr());
    let mut other = Peer::connect(server.local_addr());
    blocked.write_all(b"b").expect("sent");
    for _ in 0..100 {
        assert_eq!(other.round_trip(b"o"), b"x");
    }
    meeting.wait();
    let mut reply = [0];
    blocked.read_exact(&mut reply).expect("a reply");
}

fn what_is_always_ready_starves_nobody(setup: Setup) {
    let spinning = Arc::new(AtomicU64::new(0));
    let turns = spinning.clone();
    let server = setup.builder().pollers(1).on_connect(async move |_: &mut Connection| {
        let turns = turns.clone();
        spawn_local(async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        Ok(())
    });
    let server = server.on_request(support::echo).serve(setup.listener()).expect("it listens");
    let mut peer = Peer::connect(server.local_addr());
    // A connection that always has something to do, too.
    let mut flood = Peer::connect(server.local_addr());
    let flooding = thread::spawn(move || {
        let mut sink = flood.try_clone();
        let drained = thread::spawn(move || std::io::copy(&mut sink, &mut std::io::sink()));
        let piece = vec![7; 64 << 10];
        while flood.write_all(&piece).is_ok() {}
        drop(drained.join());
    });
    for _ in 0..scaled(200) {
        let before = spinning.load(Ordering::Relaxed);
        assert_eq!(peer.round_trip(b"x"), b"x");
        eventually("the task has its turn", || spinning.load(Ordering::Relaxed) > before);
    }
    drop(server);
    flooding.join().expect("no panic");
}

fn a_server_waits_for_its_tasks(setup: Setup) {
    let (tasks, done) = (TaskGroup::new(), Arc::new(AtomicUsize::new(0)));
    let (spawn, count) = (tasks.clone(), done.clone());
    let service = setup.builder().tasks(&tasks).on_request(async move |connection| {
        connection.read_u8().await?;
        let (group, count) = (spawn.clone(), count.clone());
        spawn.spawn_local(async move {
            group.closing().await;
            assert!(group.is_closing());
            // Work that is left.
            sleep(Duration::from_millis(20)).await;
            count.fetch_add(1, Ordering::SeqCst);
        });
        connection.write(b"x")
    });
    let server = service.serve(setup.listener()).expect("it listens");
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..5 {
        assert_eq!(peer.round_trip(b"x"), b"x");
    }
    assert_eq!((tasks.len(), tasks.is_closing()), (5, false));
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(done.load(Ordering::SeqCst), 5);
    assert!(tasks.is_empty());
    block_on(tasks.wait());
}

fn a_server_ends_its_tasks_when_the_grace_is_over(setup: Setup) {
    let tasks = TaskGroup::new();
    let service = setup.builder().tasks(&tasks).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("it listens");
    // Each is counted once, by however many pollers.
    server.pollers().grow(3).expect("three more");
    let gone = Arc::new(AtomicBool::new(false));
    let dropped = Dropped(gone.clone());
    let handle = tasks.spawn(server.pollers(), move || async move {
        let _dropped = dropped;
        std::future::pending::<()>().await;
    });
    // On other pollers, too.
    let elsewhere = setup.pollers(1);
    let other = tasks.spawn(&elsewhere, std::future::pending::<()>);
    assert_eq!(server.shutdown(Duration::from_millis(50)), 2);
    assert!(gone.load(Ordering::SeqCst));
    assert!(block_on(handle).expect_err("aborted").is_cancelled());
    assert!(block_on(other).expect_err("aborted").is_cancelled());
    let late = tasks.spawn(&elsewhere, std::future::pending::<()>);
    assert!(block_on(late).expect_err("the group is over").is_cancelled());
}

fn the_calling_thread_becomes_a_poller(setup: Setup) {
    let options = || Pollers::options().engine(setup.engine);
    let borrowed = String::from("borrowed");
    let length = options().block_on(async {
        let pollers = Pollers::current().expect("this thread is a poller");
        let service = EventLoop::builder().on(pollers).on_request(support::echo);
        let server = service.serve_async(setup.listener()).await.expect("it listens");
        let address = server.local_addr().clone();
        let mut connection = Dialer::new().dial_addr(address).await.expect("a connection");
        connection.write(borrowed.as_bytes()).expect("written");
        connection.flush().await.expect("sent");
        let reply = connection.next(borrowed.len()).await.expect("a reply");
        assert_eq!(&reply[..], borrowed.as_bytes());
        let nested = duopoll::task::block_on(async {}).expect_err("it is a poller already");
        assert_eq!(nested.kind(), ErrorKind::Deadlock);
        drop(connection);
        assert_eq!(server.shutdown_async(PATIENCE).await, 0);
        spawn_local(async move { reply.len() }).await.expect("run")
    });
    assert_eq!(length.expect("an engine"), borrowed.len());
    assert!(Pollers::current().is_none());
    // Once more on this thread, with others beside it; and what is left is cancelled.
    let gone = Arc::new(AtomicBool::new(false));
    let dropped = Dropped(gone.clone());
    let counted = options().count(2).block_on(async {
        spawn_local(async move {
            let _dropped = dropped;
            std::future::pending::<()>().await;
        });
        let pollers = Pollers::current().expect("this thread is a poller");
        let there = pollers.spawn_on(1, || async { thread::current().id() }).await.expect("run");
        assert_ne!(there, thread::current().id());
        pollers.count()
    });
    assert_eq!(counted.expect("an engine"), 2);
    assert!(gone.load(Ordering::SeqCst));
    let panicked = std::panic::catch_unwind(|| options().block_on(async { panic!("on purpose") }));
    assert_eq!(panicked.expect_err("its panic").downcast_ref::<&str>(), Some(&"on purpose"));
}

fn a_guard_lives_as_long_as_its_poller(setup: Setup) {
    struct Guard(mpsc::Sender<(&'static str, thread::ThreadId)>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.send(("over", thread::current().id())).expect("the test waits");
        }
    }
    let (tell, told) = mpsc::channel();
    let enter = tell.clone();
    let options = Pollers::options().engine(setup.engine).count(1).on_thread_start(move || {
        enter.send(("begun", thread::current().id())).expect("the test waits");
        Guard(enter.clone())
    });
    let pollers = options.clone().start().expect("an engine");
    let last = tell.clone();
    let task = pollers.spawn(move || async move {
        struct Last(mpsc::Sender<(&'static str, thread::ThreadId)>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.send(("task", thread::current().id())).expect("the test waits");
            }
        }
        let _last = Last(last);
        std::future::pending::<()>().await;
    });
    block_on(pollers.spawn(|| async {})).expect("after it");
    drop(pollers);
    assert!(block_on(task).is_err());
    let (words, threads): (Vec<_>, Vec<_>) = told.try_iter().unzip();
    assert_eq!(words, ["begun", "task", "over"]);
    assert!(threads.iter().all(|thread| *thread == threads[0]), "{threads:?}");

    options.block_on(async {}).expect("an engine");
    assert_eq!(told.try_iter().map(|(word, _)| word).collect::<Vec<_>>(), ["begun", "over"]);

    let options = Pollers::options().engine(setup.engine).count(1);
    let failed = options.on_thread_start(|| -> () { panic!("on purpose") }).start();
    assert_eq!(failed.expect_err("no poller").to_string(), "on_thread_start has panicked");
}

fn tokio_works_in_handlers(setup: Setup) {
    use tokio::runtime::Runtime;
    let runtime: &'static Runtime = Box::leak(Box::new(Runtime::new().expect("a runtime")));
    let service = setup.builder().on_thread_start(|| runtime.enter());
    let service = service.on_request(async |connection: &mut Connection| {
        let number = connection.read_u8().await?;
        let answer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            number + 1
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        connection.write(&[answer.await?])
    });
    let server = service.serve(setup.listener()).expect("it listens");
    let mut peer = Peer::connect(server.local_addr());
    for number in 0..10 {
        assert_eq!(peer.round_trip(&[number]), [number + 1]);
    }
    assert_eq!(server.settled().handler_panics, 0);
    drop((peer, server));
    // And the other way round: its timers on ours.
    runtime.block_on(async {
        let elapsed = timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
        assert!(elapsed.is_err());
        let mut ticks = interval(Duration::from_millis(1));
        for _ in 0..3 {
            tokio::select! {
                _ = ticks.tick() => {}
                () = std::future::pending() => {}
            }
        }
    });
}

/// Tasks that are started by what is dropped last: the guard of a thread, and the owner of bytes that are not sent.
fn who_comes_as_a_poller_ends_is_dropped(setup: Setup) {
    struct Late(mpsc::Sender<task::JoinHandle<()>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let _ = self.0.send(spawn_local(async { yield_now().await }));
        }
    }
    struct Bytes(Late);
    impl AsRef<[u8]> for Bytes {
        fn as_ref(&self) -> &[u8] {
            let _ = &self.0;
            &[7; 1 << 20]
        }
    }
    let (tell, told) = mpsc::channel();
    let late = tell.clone();
    let options = Pollers::options().engine(setup.engine).count(1);
    let options = options.on_thread_start(move || Late(late.clone()));
    let pollers = options.clone().start().expect("an engine");
    let listener = setup.listener();
    let dialer = Dialer::new().pollers(pollers.clone());
    let dialed = dialer.dial_addr(listener.local_addr().expect("bound"));
    let mut connection = block_on(dialed).expect("connected");
    // More than anybody takes who does not read.
    for _ in 0..8 {
        connection.push(bytes::Bytes::from_owner(Bytes(Late(tell.clone()))));
    }
    let flushed = pollers.spawn(move || async move { connection.flush().await });
    eventually("they are flushed", || pollers.settled().sent_bytes > 0);
    pollers.stop();
    drop(block_on(flushed));
    let handles = (0..9).map(|_| told.recv_timeout(PATIENCE).expect("dropped"));
    let ran: Vec<_> = handles.map(|handle| block_on(handle).is_ok()).collect();
    // Some bytes were sent before. What is dropped last is the guard.
    assert_eq!(ran.iter().rev().position(|ran| *ran).unwrap_or(9).min(2), 2, "{ran:?}");
    // Nothing is left to the next poller of a thread.
    for _ in 0..2 {
        options.clone().block_on(async {}).expect("an engine");
        let handle = told.recv_timeout(PATIENCE).expect("dropped");
        assert!(block_on(handle).expect_err("it never ran").is_cancelled());
    }
}

fn wakers_may_drop_who_waits_for_the_end(_: Setup) {
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Wake, Waker};
    type Waits = Pin<Box<dyn Future<Output = ()> + Send>>;
    struct Drops(Mutex<Option<Waits>>);
    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().expect("no panic").take());
        }
    }
    let group = TaskGroup::new();
    let wait = || {
        let group = group.clone();
        let mut waits: Waits = Box::pin(async move { group.closing().await });
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        waits
    };
    let waker = Waker::from(Arc::new(Drops(Mutex::new(Some(wait())))));
    let mut first = wait();
    assert!(first.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let other = wait();
    group.close();
    block_on(async { (first.await, other.await) });
    assert!(group.is_closing());
}
