//! Handlers that own their connection, on its poller: wherever it goes, it is counted, and told of at its end.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use duopoll::task::{TaskGroup, spawn_local};
use duopoll::{Connection, Service};
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually};

on_every_setup!(
    a_handler_owns_its_connection,
    it_comes_back_for_its_end_with_its_state,
    panics_and_errors_are_contained_and_counted,
    an_upgrade_goes_on_and_is_counted,
    halves_that_were_taken_apart_are_counted,
    halves_of_a_half_closed_connection_have_a_place,
    it_drains_at_a_shutdown,
    a_connection_is_put_together_again,
    a_detached_socket_is_nobody_elses,
    callbacks_that_do_not_fit_are_refused,
);

async fn echoes(mut connection: Connection) -> std::io::Result<()> {
    // Not `Send`, across waits.
    let count = Rc::new(std::cell::Cell::new(0_u32));
    while connection.next_request().await? {
        count.set(count.get() + 1);
        support::echo(&mut connection).await?;
    }
    Ok(())
}

fn served(setup: Setup, service: Service) -> duopoll::Server {
    service.serve(setup.listener()).expect("it listens")
}

fn a_handler_owns_its_connection(setup: Setup) {
    let connected = Arc::new(AtomicUsize::new(0));
    let count = connected.clone();
    let builder = setup.builder().on_connect(async move |connection: &mut Connection| {
        count.fetch_add(1, Ordering::SeqCst);
        connection.write(b"hello")
    });
    let server = served(setup, builder.on_connection(echoes));
    let mut peers: Vec<_> = (0..10).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        let mut greeting = [0; 5];
        peer.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, b"hello");
        assert_eq!(peer.round_trip(b"ping"), b"ping");
    }
    assert_eq!((connected.load(Ordering::SeqCst), server.open_connections()), (10, 10));
    peers.truncate(5);
    eventually("the others are gone", || server.open_connections() == 5);
    assert_eq!(server.shutdown(PATIENCE), 0);
}

fn it_comes_back_for_its_end_with_its_state(setup: Setup) {
    let (tell, told) = mpsc::channel();
    let builder = setup.builder().on_disconnect(async move |connection: &mut Connection| {
        let state = connection.state_mut::<String>().cloned();
        let rest = connection.next(3).await.expect("what had arrived");
        tell.send((connection.id(), state, rest)).expect("the test waits");
    });
    let ids = Arc::new(Mutex::new(Vec::new()));
    let known = ids.clone();
    let server = served(
        setup,
        builder.on_connection(async move |mut connection: Connection| {
            known.lock().expect("no panic").push(connection.id());
            connection.set_state(String::from("kept"));
            connection.next(1).await?;
            connection.write(b"x")?;
            connection.flush().await
        }),
    );
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"1234").expect("sent");
    assert_eq!(peer.read_rest().expect("until it is closed"), b"x");
    let (id, state, rest) = told.recv_timeout(PATIENCE).expect("told");
    assert_eq!(ids.lock().expect("no panic")[..], [id]);
    assert_eq!((state.as_deref(), &rest[..]), (Some("kept"), &b"234"[..]));
}

fn panics_and_errors_are_contained_and_counted(setup: Setup) {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let builder = setup.builder().on_disconnect(async move |_: &mut Connection| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let server = served(
        setup,
        builder.on_connection(async |mut connection: Connection| {
            match connection.read_u8().await? {
                b'p' => panic!("on purpose"),
                b'e' => Err(ErrorKind::Other.into()),
                _ => echoes(connection).await,
            }
        }),
    );
    let mut steady = Peer::connect(server.local_addr());
    steady.write_all(b"s").expect("sent");
    for fault in [b"p", b"e"] {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(fault).expect("sent");
        assert_eq!(peer.read_rest().expect("it is closed"), b"");
        assert_eq!(steady.round_trip(b"ping"), b"ping");
    }
    eventually("both are over", || server.open_connections() == 1);
    let stats = server.server_stats();
    assert_eq!((stats.handler_panics, stats.handler_errors), (1, 1));
    assert_eq!(ended.load(Ordering::SeqCst), 2);
    assert_eq!(server.settled().handler_panics, 1);
}

fn an_upgrade_goes_on_and_is_counted(setup: Setup) {
    let (tell, told) = mpsc::channel();
    let builder = setup.builder().max_connections(1);
    let builder = builder.on_disconnect(async move |connection: &mut Connection| {
        tell.send(connection.state_mut::<u8>().copied()).expect("the test waits");
    });
    let tasks = TaskGroup::new();
    let group = tasks.clone();
    let server = served(
        setup,
        builder.tasks(&tasks).on_connection(async move |mut connection: Connection| {
            let state = connection.read_u8().await?;
            connection.set_state(state);
            // The handler returns, and its connection lives on.
            group.spawn_local(echoes(connection));
            Ok(())
        }),
    );
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"u").expect("sent");
    assert_eq!(peer.round_trip(b"ping"), b"ping");
    // No room beside it.
    let mut second = Peer::connect(server.local_addr());
    second.write_all(b"v").expect("sent");
    assert_eq!(peer.round_trip(b"pong"), b"pong");
    assert_eq!(server.open_connections(), 1);
    assert!(told.try_recv().is_err());
    drop(peer);
    assert_eq!(second.round_trip(b"ping"), b"ping");
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), Some(b'u'));
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(told.recv_timeout(PATIENCE).expect("told"), Some(b'v'));
}

fn halves_that_were_taken_apart_are_counted(setup: Setup) {
    let disconnected = Arc::new(AtomicBool::new(false));
    let called = disconnected.clone();
    let builder = setup.builder().max_connections(1);
    let builder = builder.on_disconnect(async move |_: &mut Connection| {
        called.store(true, Ordering::SeqCst);
    });
    let server = served(
        setup,
        builder.on_connection(async |connection: Connection| {
            let (mut reader, mut writer) = connection.into_split();
            spawn_local(async move {
                while reader.more().await? {
                    writer.append(reader.buffer_mut());
                    writer.flush().await?;
                }
                std::io::Result::Ok(())
            });
            Ok(())
        }),
    );
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip(b"ping"), b"ping");
    let mut second = Peer::connect(server.local_addr());
    second.write_all(b"waits").expect("sent");
    assert_eq!(peer.round_trip(b"pong"), b"pong");
    assert_eq!(server.open_connections(), 1);
    drop(peer);
    let mut reply = [0; 5];
    second.read_exact(&mut reply).expect("there is room now");
    assert_eq!(&reply, b"waits");
    drop(second);
    eventually("both are gone", || server.open_connections() == 0);
    assert!(!disconnected.load(Ordering::SeqCst));
}

/// A peer that ends its own direction is still there, and has its place.
fn halves_of_a_half_closed_connection_have_a_place(setup: Setup) {
    let (gate, opened) = mpsc::channel::<()>();
    let opened = Arc::new(Mutex::new(opened));
    let server = served(
        setup,
        setup.builder().max_connections(2).on_connection(async move |connection: Connection| {
            let (reader, mut writer) = connection.into_split();
            let opened = opened.clone();
            spawn_local(async move {
                let waits = move || opened.lock().expect("no panic").recv();
                duopoll::task::spawn_blocking(waits).await.expect("no panic").expect("opened");
                writer.write(b"late").expect("memory");
                let sent = writer.flush().await;
                drop(reader);
                sent
            });
            Ok(())
        }),
    );
    let peers: Vec<_> = (0..6)
        .map(|_| {
            let peer = Peer::connect(server.local_addr());
            peer.shutdown(Shutdown::Write);
            peer
        })
        .collect();
    eventually("some wait", || server.server_stats().waiting_connections > 0);
    assert_eq!(server.open_connections(), 2);
    for _ in &peers {
        gate.send(()).expect("somebody waits");
        assert!(server.open_connections() <= 2);
    }
    for mut peer in peers {
        assert_eq!(peer.read_rest().expect("a reply, and the end"), b"late");
    }
    eventually("all are gone", || server.open_connections() == 0);
}

fn it_drains_at_a_shutdown(setup: Setup) {
    let server = served(setup, setup.builder().on_connection(echoes));
    let mut peers: Vec<_> = (0..5).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"ping"), b"ping");
    }
    // What was sent before is answered.
    for peer in &mut peers {
        peer.write_all(b"last").expect("sent");
    }
    assert_eq!(server.shutdown(PATIENCE), 0);
    for peer in &mut peers {
        assert_eq!(peer.read_rest().expect("a reply and the end"), b"last");
    }
    // One that takes no notice is ended by force.
    let stubborn = setup.builder().on_connection(async |mut connection: Connection| {
        connection.write(b"x")?;
        connection.flush().await?;
        connection.next(1).await.map(drop)
    });
    let server = served(setup, stubborn);
    let mut peer = Peer::connect(server.local_addr());
    let mut reply = [0];
    peer.read_exact(&mut reply).expect("it is served");
    assert_eq!(server.shutdown(Duration::from_millis(50)), 1);
}

fn a_connection_is_put_together_again(setup: Setup) {
    let server = served(
        setup,
        setup.builder().on_connection(async |connection: Connection| {
            let (reader, mut writer) = connection.into_split();
            writer.write(b"staged ")?;
            let Ok(connection) = Connection::from_halves(reader, writer) else {
                panic!("they are of one connection");
            };
            echoes(connection).await
        }),
    );
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"ping").expect("sent");
    peer.shutdown(Shutdown::Write);
    assert_eq!(peer.read_rest().expect("a reply"), b"staged ping");

    let (_pollers, first, _peer) = support::connected(setup, duopoll::Limits::default());
    let (_others, second, _other) = support::connected(setup, duopoll::Limits::default());
    let (id, other) = (first.id(), second.id());
    let ((reader, first_writer), (second_reader, writer)) =
        (first.into_split(), second.into_split());
    let (reader, writer) = Connection::from_halves(reader, writer).expect_err("of two connections");
    let first = Connection::from_halves(reader, first_writer).expect("of one");
    let second = Connection::from_halves(second_reader, writer).expect("of one");
    assert_eq!((first.id(), second.id()), (id, other));
}

fn a_detached_socket_is_nobody_elses(setup: Setup) {
    let (tell, told) = mpsc::channel();
    let server = served(
        setup,
        setup.builder().on_connection(async move |mut connection: Connection| {
            connection.next(1).await?;
            let detached = connection.detach().await?;
            tell.send(detached).expect("the test waits");
            Ok(())
        }),
    );
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(b"1234").expect("sent");
    let (socket, mut rest): (OwnedFd, _) = told.recv_timeout(PATIENCE).expect("detached");
    assert_eq!(rest.read_bytes(3).expect("three bytes"), b"234");
    eventually("it has no place any more", || server.open_connections() == 0);
    assert_eq!(server.shutdown(PATIENCE), 0);
    let mut file = std::fs::File::from(socket);
    file.write_all(b"still open").expect("sent");
    drop(file);
    assert_eq!(peer.read_rest().expect("what it sent"), b"still open");
}

fn callbacks_that_do_not_fit_are_refused(setup: Setup) {
    let refused = |service: Service| {
        let error = service.serve(setup.listener()).expect_err("it says why not");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    let timed = || setup.builder().request_timeout(PATIENCE);
    let text = refused(timed().on_connection(echoes));
    assert_eq!(text, "request_timeout does not go with on_connection");
    let text = refused(timed().on_connection_spawned(drop, async |_| Ok(())));
    assert_eq!(text, "request_timeout does not go with on_connection_spawned");
    let called = setup.builder().on_disconnect(async |_: &mut Connection| ());
    let text = refused(called.on_connection_spawned(drop, async |_| Ok(())));
    assert_eq!(text, "on_connect and on_disconnect do not go with on_connection_spawned");
}
