//! Servers as a whole: several listeners, pollers shared with others, and handlers that run elsewhere.

mod support;

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::{Blocking, Connection, Dialer, EventLoop, Job, Listener, Pollers, Server};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    every_listener_is_served,
    a_listener_can_be_added_until_the_shutdown,
    servers_share_pollers_and_end_alone,
    new_pollers_get_connections,
    what_the_backlog_holds_is_answered_at_a_shutdown,
    waiting_for_admission_counts_as_forced,
    a_proxy_dials_on_its_own_poller,
    a_blocking_handler_answers_and_holds_up_nobody,
    a_blocking_handler_that_panics_ends_its_own_connection_only,
    a_job_that_is_dropped_closes_its_connection,
    a_connection_is_served_on_another_executor,
    a_connection_elsewhere_ends_between_requests_at_a_shutdown,
    a_handler_elsewhere_that_fails_or_panics_gives_its_place_back,
);

const GRACE: Duration = Duration::from_secs(10);

fn pollers(setup: Setup, count: usize) -> Pollers {
    setup.pollers(count)
}

fn serve_on(setup: Setup, pollers: &Pollers) -> Server {
    let service = EventLoop::builder().on(pollers.clone()).on_request(support::echo);
    service.serve(setup.listener()).expect("a server")
}

fn every_listener_is_served(setup: Setup) {
    let server = setup.serve_echo();
    let second = server.listen(setup.listener()).expect("another listener");
    assert_eq!(server.local_addrs(), [server.local_addr().clone(), second.clone()]);
    let third = server.listen(Listener::bind("127.0.0.1:0").expect("bound")).expect("a third");
    for address in [server.local_addr(), &second, &third] {
        assert_eq!(Peer::connect(address).round_trip(b"hello"), b"hello");
    }
    assert_eq!(server.settled().accepts, 3);
}

fn a_listener_can_be_added_until_the_shutdown(setup: Setup) {
    let server = setup.serve_echo();
    server.shutdown(GRACE);
    let refused = server.listen(setup.listener()).expect_err("too late");
    assert_eq!(refused.kind(), ErrorKind::NotConnected);
}

fn servers_share_pollers_and_end_alone(setup: Setup) {
    let pollers = pollers(setup, 2);
    let one = serve_on(setup, &pollers);
    let two = serve_on(setup, &pollers);
    let mut peers: Vec<_> = (0..4).map(|_| Peer::connect(one.local_addr())).collect();
    let mut others: Vec<_> = (0..4).map(|_| Peer::connect(two.local_addr())).collect();
    for peer in peers.iter_mut().chain(&mut others) {
        assert_eq!(peer.round_trip(b"hello"), b"hello");
    }
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| one.shutdown(GRACE));
        for mut peer in peers {
            assert_eq!(peer.read_rest().expect("the end"), b"");
        }
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    for peer in &mut others {
        assert_eq!(peer.round_trip(b"still"), b"still");
    }
    drop(one);
    assert_eq!(Peer::connect(two.local_addr()).round_trip(b"new"), b"new");
    drop(two);
    let mut third = Peer::connect(serve_on(setup, &pollers).local_addr());
    assert_eq!(third.read_rest().expect("the end"), b"", "served by a server that is gone");
    assert_eq!(pollers.settled().failed_pollers, 0);
}

fn new_pollers_get_connections(setup: Setup) {
    let server = setup.serve_echo();
    server.pollers().grow(2).expect("more pollers");
    assert_eq!(server.pollers().count(), 3);
    let mut peers: Vec<_> = (0..9).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"hello"), b"hello");
    }
    let each = server.settled_each();
    assert_eq!(each.iter().map(|stats| stats.connections).collect::<Vec<_>>(), [3, 3, 3]);
    drop(peers);
    assert_eq!(server.shutdown(GRACE), 0);
}

/// The poller is held up while connections are established and requests arrive.
fn what_the_backlog_holds_is_answered_at_a_shutdown(setup: Setup) {
    let (held, holds) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Mutex::new(released);
    let server = setup.serve(async move |connection: &mut Connection| {
        if connection.read_u8().await? == b'!' {
            held.send(()).expect("the test waits");
            let released = released.lock().expect("no panic").recv_timeout(PATIENCE);
            released.expect("the test goes on");
        }
        connection.write(b".")
    });
    let mut holder = Peer::connect(server.local_addr());
    holder.write_all(b"!").expect("sent");
    holds.recv_timeout(PATIENCE).expect("the poller is held up");
    let mut peers: Vec<_> = (0..300).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.write_all(b"?").expect("sent");
    }
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(GRACE));
        release.send(()).expect("the handler waits");
        for mut peer in peers.into_iter().chain([holder]) {
            assert_eq!(peer.read_rest().expect("an answer"), b".");
        }
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    assert_eq!(server.settled().requests, 301);
}

fn waiting_for_admission_counts_as_forced(setup: Setup) {
    let service = setup.builder().max_connections(1).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let mut first = Peer::connect(server.local_addr());
    first.write_all(b"x").expect("sent");
    let mut second = Peer::connect(server.local_addr());
    eventually("both are accepted", || server.settled().accepts == 2);
    assert!(server.shutdown(Duration::ZERO) >= 1);
    // A reset or an end, but no answer.
    assert_eq!(second.read(&mut [0; 1]).unwrap_or(0), 0);
}

fn a_proxy_dials_on_its_own_poller(setup: Setup) {
    let upstream = setup.serve_echo();
    let address = upstream.local_addr().clone();
    let proxy = setup.serve(async move |connection: &mut Connection| {
        let mut onward = Dialer::new().dial_addr(address.clone()).await?;
        onward.append(connection.input_mut());
        onward.flush().await?;
        let reply = onward.next(5).await?;
        connection.push(reply);
        Ok(())
    });
    let mut peer = Peer::connect(proxy.local_addr());
    assert_eq!(peer.round_trip(b"hello"), b"hello");
    // The accepted one, and the one that was dialed.
    assert_eq!(proxy.settled().connections, 2);
}

fn on_threads(job: Job) {
    thread::spawn(job);
}

/// Lines, answered in capitals.
fn capitals(connection: &mut Blocking) -> io::Result<()> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    connection.write_all(line.to_uppercase().as_bytes())
}

fn a_blocking_handler_answers_and_holds_up_nobody(setup: Setup) {
    let (entered, enters) = mpsc::channel();
    let service = setup.builder().on_request_blocking(on_threads, move |connection| {
        entered.send(()).expect("the test waits");
        capitals(connection)
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut slow = Peer::connect(server.local_addr());
    slow.write_all(b"half a ").expect("sent");
    enters.recv_timeout(PATIENCE).expect("the handler blocks");
    // The only poller serves others meanwhile.
    let mut quick = Peer::connect(server.local_addr());
    for _ in 0..3 {
        assert_eq!(quick.round_trip(b"quick\n"), b"QUICK\n");
    }
    slow.write_all(b"line\n").expect("sent");
    let mut reply = [0; 12];
    slow.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"HALF A LINE\n");
    assert_eq!(server.settled().requests, 4);
    drop((slow, quick));
    assert_eq!(server.shutdown(GRACE), 0);
}

fn a_blocking_handler_that_panics_ends_its_own_connection_only(setup: Setup) {
    let disconnects = Arc::new(AtomicUsize::new(0));
    let count = disconnects.clone();
    let service = setup
        .builder()
        .on_disconnect(async move |_: &mut Connection| {
            count.fetch_add(1, Ordering::Relaxed);
        })
        .on_request_blocking(on_threads, |connection| {
            if connection.fill_buf()?.starts_with(b"panic") {
                panic!("as asked");
            }
            capitals(connection)
        });
    let server = service.serve(setup.listener()).expect("a server");
    let mut other = Peer::connect(server.local_addr());
    assert_eq!(other.round_trip(b"a\n"), b"A\n");
    let mut panics = Peer::connect(server.local_addr());
    panics.write_all(b"panic\n").expect("sent");
    assert_eq!(panics.read_rest().unwrap_or_default(), b"");
    assert_eq!(other.round_trip(b"b\n"), b"B\n");
    assert_eq!(server.settled().handler_panics, 1);
    eventually("it is told", || disconnects.load(Ordering::Relaxed) == 1);
}

fn a_job_that_is_dropped_closes_its_connection(setup: Setup) {
    let service = setup.builder().on_request_blocking(drop, capitals);
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"a\n").expect("sent");
    assert_eq!(peer.read_rest().unwrap_or_default(), b"");
    drop(peer);
    eventually("it is over", || server.settled().closed == 1);
    assert_eq!(server.settled().handler_errors, 1);
}

async fn serve_lines(mut connection: Connection) -> io::Result<()> {
    while connection.next_request().await? {
        let line = connection.until(b'\n', 100).await?;
        connection.push(line.to_ascii_uppercase());
        connection.flush().await?;
    }
    Ok(())
}

fn elsewhere(setup: Setup) -> Server {
    let spawn = |task| drop(thread::spawn(|| block_on(task)));
    let service = setup.builder().on_connection_spawned(spawn, serve_lines);
    service.serve(setup.listener()).expect("a server")
}

fn a_connection_is_served_on_another_executor(setup: Setup) {
    let server = elsewhere(setup);
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..3 {
        assert_eq!(peer.round_trip(b"line\n"), b"LINE\n");
    }
    drop(peer);
    eventually("it is over", || server.settled().closed == 1);
}

fn a_connection_elsewhere_ends_between_requests_at_a_shutdown(setup: Setup) {
    let server = elsewhere(setup);
    let mut idle = Peer::connect(server.local_addr());
    assert_eq!(idle.round_trip(b"line\n"), b"LINE\n");
    let mut busy = Peer::connect(server.local_addr());
    busy.write_all(b"half a ").expect("sent");
    eventually("it has arrived", || server.settled().received_bytes == 12);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(GRACE));
        assert_eq!(idle.read_rest().expect("the end"), b"");
        drop(idle);
        busy.write_all(b"line\n").expect("sent");
        assert_eq!(busy.read_rest().expect("an answer"), b"HALF A LINE\n");
        drop(busy);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

fn a_handler_elsewhere_that_fails_or_panics_gives_its_place_back(setup: Setup) {
    let spawn = |task| drop(thread::spawn(|| block_on(task)));
    let handler = async |mut connection: Connection| {
        while connection.next_request().await? {
            match connection.read_u8().await? {
                b'p' => panic!("as asked"),
                b'f' => return Err(ErrorKind::InvalidData.into()),
                byte => connection.write(&[byte])?,
            }
            connection.flush().await?;
        }
        Ok(())
    };
    let service = setup.builder().max_connections(1).on_connection_spawned(spawn, handler);
    let server = service.serve(setup.listener()).expect("a server");
    for end in [b"p", b"f", b"p", b"f"] {
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(b"x"), b"x");
        peer.write_all(end).expect("sent");
        assert_eq!(peer.read_rest().unwrap_or_default(), b"");
    }
    eventually("all are over", || server.settled().closed == 4);
    assert_eq!(server.settled().failed_pollers, 0);
}

#[test]
fn options_that_contradict_each_other_are_an_error() {
    let listener = || Listener::bind("127.0.0.1:0").expect("bound");
    let shared = Pollers::options().count(1).start().expect("a poller");
    let both = EventLoop::builder().pollers(2).on(shared).on_request(support::echo);
    assert_eq!(both.serve(listener()).expect_err("both").kind(), ErrorKind::InvalidInput);
    let late = EventLoop::builder().on_disconnect(async |_: &mut Connection| {});
    let late = late.on_connection_spawned(block_on, serve_lines);
    assert_eq!(late.serve(listener()).expect_err("no place").kind(), ErrorKind::InvalidInput);
}

#[test]
fn pollers_have_names() {
    let pollers = Pollers::options().count(2).name("rpc-").start().expect("pollers");
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let name = |task: io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let names: Vec<_> = tasks.filter_map(name).collect();
    for expected in ["rpc-0\n", "rpc-1\n"] {
        assert!(names.iter().any(|name| name == expected), "{expected:?} among {names:?}");
    }
    drop(pollers);
}
