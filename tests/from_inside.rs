//! What handlers may do to the pollers and servers that they run on: ask for figures, shut down, drop. Nobody waits for himself,
//! nor for somebody who waits for him.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::{Connection, EventLoop, Kind, Listener, Pollers, Server};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, scaled};

on_every_setup!(
    figures_are_there_under_load_and_agree,
    a_server_is_shut_down_by_its_own_handler,
    two_servers_shut_each_other_down,
    what_blocks_does_not_wait_in_a_handler,
    a_shutdown_goes_on_when_its_future_is_dropped,
    pollers_and_servers_are_dropped_in_handlers,
    pollers_grow_in_a_handler,
    pollers_that_are_stopped_start_no_more,
    a_server_listens_at_more_in_a_handler,
    the_last_poller_may_end_while_somebody_waits,
    a_handler_serves_and_asks_its_own_server,
    what_lies_in_a_thread_local_ends_with_its_thread,
);

/// As a metrics endpoint answers.
async fn metrics(
    server: &OnceLock<Arc<Server>>,
    connection: &mut Connection,
) -> std::io::Result<()> {
    let server = server.get().expect("it is set before anybody asks");
    let mut text = String::new();
    for figure in server.stats().figures().chain(server.server_stats().figures()) {
        let kind = if figure.kind == Kind::Counter { "counter" } else { "gauge" };
        text += &format!("# HELP {} {}\n# TYPE {0} {kind}\n", figure.name, figure.help);
        text += &format!("{} {}\n", figure.name, figure.value);
    }
    connection.write(&(text.len() as u32).to_be_bytes())?;
    connection.write(text.as_bytes())?;
    connection.flush().await
}

fn ask_for_metrics(peer: &mut Peer) -> String {
    peer.write_all(b"m").expect("sent");
    let mut length = [0; 4];
    peer.read_exact(&mut length).expect("a length");
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    peer.read_exact(&mut text).expect("the figures");
    String::from_utf8(text).expect("text")
}

fn figure(text: &str, name: &str) -> u64 {
    // The server's own come last.
    let line = text.lines().rfind(|line| line.split(' ').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
    line.split(' ').next_back().and_then(|value| value.parse().ok()).expect("a number")
}

fn figures_are_there_under_load_and_agree(setup: Setup) {
    const THREADS: u64 = 4;
    let requests = scaled(4_000) as u64;
    let itself = Arc::new(OnceLock::new());
    let asked = itself.clone();
    let service = EventLoop::builder().engine(setup.engine).pollers(4).on_request(
        async move |connection: &mut Connection| match connection.next(1).await?[..] {
            [b'm'] => metrics(&asked, connection).await,
            _ => {
                connection.write(b"x")?;
                connection.flush().await
            }
        },
    );
    let server = Arc::new(service.serve(setup.listener()).expect("a server"));
    assert!(itself.set(server.clone()).is_ok());
    let loads = AtomicU64::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut peer = Peer::connect(server.local_addr());
                for _ in 0..requests / THREADS {
                    assert_eq!(peer.round_trip(b"x"), b"x");
                }
                loads.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut peer = Peer::connect(server.local_addr());
                let mut last = 0;
                while loads.load(Ordering::Relaxed) > 0 {
                    let now = figure(&ask_for_metrics(&mut peer), "requests");
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            });
        }
    });
    let mut peer = Peer::connect(server.local_addr());
    let asked = ask_for_metrics(&mut peer);
    let told = server.server_stats();
    // All but this one are over, and this one was counted when it began.
    assert_eq!(figure(&asked, "requests"), told.requests);
    assert_eq!(figure(&asked, "accepts"), THREADS + 3);
    assert!(told.requests > requests / THREADS * THREADS);
    assert_eq!(server.settled().requests, told.requests);
    // Its handlers hold it, which is a circle.
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// A server whose handler does something once.
fn doing(
    setup: Setup,
    pollers: Option<Pollers>,
    act: impl AsyncFn(&mut Connection) -> std::io::Result<()> + Send + Sync + 'static,
) -> Server {
    let mut builder = EventLoop::builder();
    builder = match pollers {
        Some(pollers) => builder.on(pollers),
        None => builder.engine(setup.engine).pollers(2),
    };
    builder.on_request(act).serve(setup.listener()).expect("a server")
}

fn a_server_is_shut_down_by_its_own_handler(setup: Setup) {
    let itself = Arc::new(OnceLock::<Arc<Server>>::new());
    let known = itself.clone();
    let server = doing(setup, None, async move |connection: &mut Connection| {
        let len = connection.input_mut().len();
        connection.skip(len).await?;
        // Begun when it is called; nobody waits for it here.
        drop(known.get().expect("set").shutdown_async(PATIENCE));
        connection.write(b"bye")?;
        connection.flush().await
    });
    let server = Arc::new(server);
    assert!(itself.set(server.clone()).is_ok());
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"x").expect("sent");
    assert_eq!(peer.read_rest().expect("the end"), b"bye");
    drop(peer);
    assert_eq!(server.shutdown(PATIENCE), 0);
}

fn two_servers_shut_each_other_down(setup: Setup) {
    let servers = Arc::new(Mutex::new(Vec::<Arc<Server>>::new()));
    let act = |other: usize| {
        let servers = servers.clone();
        doing(setup, None, async move |connection: &mut Connection| {
            let len = connection.input_mut().len();
            connection.skip(len).await?;
            let other = servers.lock().expect("no panic")[other].clone();
            let over = other.shutdown_async(Duration::from_millis(50));
            drop(other);
            over.await;
            connection.write(b"over")?;
            connection.flush().await
        })
    };
    let (one, two) = (Arc::new(act(1)), Arc::new(act(0)));
    servers.lock().expect("no panic").extend([one.clone(), two.clone()]);
    let mut peers = [Peer::connect(one.local_addr()), Peer::connect(two.local_addr())];
    peers.iter_mut().for_each(|peer| peer.write_all(b"x").expect("sent"));
    // Whoever is first cuts the other one off; neither hangs.
    peers.iter_mut().for_each(|peer| drop(peer.read_rest()));
    for server in [one, two] {
        server.shutdown(PATIENCE);
    }
}

fn what_blocks_does_not_wait_in_a_handler(setup: Setup) {
    let itself = Arc::new(OnceLock::<Arc<Server>>::new());
    let (known, (tell, told)) = (itself.clone(), mpsc::channel());
    let server = doing(setup, None, async move |connection: &mut Connection| {
        let server = known.get().expect("set");
        let listener = Listener::bind("127.0.0.1:0")?;
        let refused = server.listen(listener).expect_err("it would wait").kind();
        tell.send((refused, server.shutdown(PATIENCE))).expect("the test waits");
        support::echo(connection).await
    });
    let server = Arc::new(server);
    assert!(itself.set(server.clone()).is_ok());
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), (ErrorKind::Deadlock, 0));
    // It was begun, and nobody has waited for it.
    assert_eq!(peer.read_rest().expect("the end"), b"");
    drop(peer);
    assert_eq!(server.shutdown(PATIENCE), 0);
}

fn a_shutdown_goes_on_when_its_future_is_dropped(setup: Setup) {
    let server = setup.serve_echo();
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"x"), b"x");
    drop(server.shutdown_async(PATIENCE));
    assert_eq!(peer.read_rest().expect("the end"), b"");
    drop(peer);
    let other = setup.serve_echo();
    assert_eq!(block_on(other.shutdown_async(PATIENCE)), 0);
}

fn pollers_and_servers_are_dropped_in_handlers(setup: Setup) {
    for count in [1, 2] {
        let pollers = Pollers::options().engine(setup.engine).count(count).start();
        let pollers = pollers.expect("pollers");
        // The last handle of other pollers, a server on these ones, and a listener on these ones.
        let others = setup.pollers(2);
        let inner = doing(setup, Some(pollers.clone()), support::echo);
        let listener = setup.listener().pollers(pollers.clone());
        let slot = Mutex::new(Some((others, inner, listener)));
        let dropped = Arc::new(AtomicBool::new(false));
        let done = dropped.clone();
        let server = doing(setup, Some(pollers), async move |connection: &mut Connection| {
            let taken = slot.lock().expect("no panic").take();
            if let Some((others, inner, listener)) = taken {
                let accepting = support::poll_once(std::pin::pin!(listener.accept()));
                assert!(accepting.is_pending());
                drop((others, inner, listener));
                done.store(true, Ordering::Relaxed);
            }
            support::echo(connection).await
        });
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"x"), b"x");
        assert!(dropped.load(Ordering::Relaxed));
        assert_eq!(peer.round_trip(b"y"), b"y");
    }
}

fn pollers_grow_in_a_handler(setup: Setup) {
    let pollers = setup.pollers(1);
    let own = pollers.clone();
    let server = doing(setup, Some(pollers.clone()), async move |connection: &mut Connection| {
        own.grow(1)?;
        support::echo(connection).await
    });
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    assert_eq!(pollers.count(), 2);
}

fn a_server_listens_at_more_in_a_handler(setup: Setup) {
    let itself = Arc::new(OnceLock::<Arc<Server>>::new());
    let (known, (tell, told)) = (itself.clone(), mpsc::channel());
    let server = doing(setup, None, async move |connection: &mut Connection| {
        if connection.input_mut().len() == 1 {
            let more = known.get().expect("set").listen_async(setup.listener()).await?;
            tell.send(more).expect("the test waits");
        }
        support::echo(connection).await
    });
    let server = Arc::new(server);
    assert!(itself.set(server.clone()).is_ok());
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
    let more = told.recv_timeout(PATIENCE).expect("it listens");
    assert_eq!(Peer::connect(&more).round_trip(b"xy"), b"xy");
    server.shutdown(PATIENCE);
}

/// One is open, others wait for their turn, and the engine breaks.
fn the_last_poller_may_end_while_somebody_waits(setup: Setup) {
    let pollers = setup.pollers(1);
    let builder = EventLoop::builder().on(pollers.clone()).max_connections(1);
    let server = builder.on_request(support::echo).serve(setup.listener()).expect("a server");
    let mut open = Peer::connect(server.local_addr());
    assert_eq!(open.round_trip(b"x"), b"x");
    let mut waiting: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
    eventually("somebody waits", || server.server_stats().waiting_connections > 0);
    pollers.stop();
    assert_eq!(server.stats().open_connections, 0);
    server.shutdown(PATIENCE);
    drop(server);
    let _ = open.read_rest();
    waiting.iter_mut().for_each(|peer| drop(peer.read_rest()));
}

fn pollers_that_are_stopped_start_no_more(setup: Setup) {
    for _ in 0..scaled(8) {
        let pollers = setup.pollers(1);
        thread::scope(|scope| {
            let grows = scope.spawn(|| {
                let refused = (0..1000).find_map(|_| pollers.grow(1).err());
                refused.expect("they are stopped").kind()
            });
            eventually("some are started", || pollers.count() > 2);
            pollers.stop();
            assert_eq!(grows.join().expect("no panic"), ErrorKind::NotConnected);
        });
    }
}

fn a_handler_serves_and_asks_its_own_server(setup: Setup) {
    let builder = setup.builder();
    let weak = builder.weak_server();
    let handler = async move |connection: &mut Connection| {
        connection.next(1).await?;
        let server = weak.upgrade().expect("it runs");
        // Another one, on the same pollers.
        let service = EventLoop::builder().on(server.pollers().clone());
        let blocking = service.clone().on_request(support::echo).serve(setup.listener());
        assert_eq!(blocking.expect_err("it would wait").kind(), ErrorKind::Deadlock);
        let other = service.on_request(support::echo).serve_async(setup.listener()).await?;
        let address = other.local_addr().clone();
        let mut dialed = duopoll::Dialer::new().dial_addr(address).await?;
        dialed.write(b"hello")?;
        dialed.flush().await?;
        assert_eq!(&dialed.next(5).await?[..], b"hello");
        assert_eq!((server.open_connections(), other.open_connections()), (1, 1));
        connection.write(b"y")
    };
    // As often as it is served, one after the other.
    for _ in 0..2 {
        let service = builder.clone().on_request(handler.clone());
        let server = service.serve(setup.listener()).expect("a server");
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"x"), b"y");
        assert_eq!(server.settled().handler_panics, 0);
    }
}

fn what_lies_in_a_thread_local_ends_with_its_thread(setup: Setup) {
    thread_local! {
        static KEPT: std::cell::RefCell<Vec<Box<dyn std::any::Any>>> =
            const { std::cell::RefCell::new(Vec::new()) };
    }
    let server = setup.serve_echo();
    let address = server.local_addr().clone();
    let pollers = server.pollers().clone();
    let keep = pollers.clone();
    let kept = pollers.spawn(move || async move {
        KEPT.with_borrow_mut(|kept| {
            kept.push(Box::new(server));
            kept.push(Box::new(keep));
        });
    });
    block_on(kept).expect("no panic");
    assert_eq!(Peer::connect(&address).round_trip(b"x"), b"x");
    pollers.stop();
}
