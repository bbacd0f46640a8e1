//! What connections may hold together: who is stopped, refused or ended, and that others go on.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, MemoryLevel, Server, WhenFull};
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, raise_descriptor_limit};

const MIB: usize = 1 << 20;

on_every_setup!(
    peers_that_push_and_never_read_leave_room_for_others,
    a_message_that_does_not_fit_is_an_error,
    peers_that_do_not_read_are_reset,
    who_has_not_read_for_a_second_makes_room,
    who_asks_for_too_much_costs_the_others_nothing,
    whoever_waits_holds_nothing,
    whoever_reads_slowly_is_not_reset,
    connections_are_accepted_one_by_one_while_memory_is_short,
    a_budget_is_shared_by_the_pollers_of_a_server,
);

fn held(server: &Server) -> usize {
    server.pollers().stats().memory_held_bytes as usize
}

/// A server that sends back what it receives, with a budget.
fn echo(setup: Setup, budget: usize) -> Server {
    let service = setup.builder().memory_budget(budget).on_request(support::echo);
    service.serve(setup.listener()).expect("a server")
}

/// Pushes until the server takes no more.
fn push(peer: &mut Peer, piece: &[u8]) {
    peer.set_timeout(Duration::from_millis(1));
    while peer.write(piece).is_ok() {}
}

fn peers_that_push_and_never_read_leave_room_for_others(setup: Setup) {
    const BUDGET: usize = 8 * MIB;
    const PUSHERS: usize = 100;
    let server = echo(setup, BUDGET);
    let mut friends: Vec<_> = (0..5).map(|_| Peer::connect(server.local_addr())).collect();
    let mut pushers: Vec<_> = (0..PUSHERS).map(|_| Peer::connect(server.local_addr())).collect();
    eventually("all are there", || server.open_connections() == PUSHERS + 5);
    let mut most = 0;
    let piece = vec![7; 64 << 10];
    for pusher in &mut pushers {
        push(pusher, &piece);
        most = most.max(held(&server));
    }
    for friend in &mut friends {
        for _ in 0..20 {
            let message = [1; 3000];
            assert_eq!(friend.round_trip(&message), message);
            most = most.max(held(&server));
        }
    }
    assert!(most <= BUDGET, "{most} bytes");
    let stats = server.settled();
    assert!(stats.memory_stops > 0, "{stats}");
    assert_eq!(stats.memory_refusals + stats.memory_resets, 0, "{stats}");
    drop(pushers);
    // What the buffers of a ring hold stays.
    eventually("memory is back", || held(&server) < 5 * MIB);
    assert_eq!(friends[0].round_trip(b"on"), b"on");
}

/// A request says how long it is; the server waits for all of it.
async fn whole(connection: &mut Connection) -> std::io::Result<()> {
    let length = connection.next(4).await?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    connection.fill(length).await?;
    connection.skip(length).await?;
    connection.write(b"done")?;
    connection.flush().await
}

fn a_message_that_does_not_fit_is_an_error(setup: Setup) {
    const BUDGET: usize = 8 * MIB;
    let (failed, failures) = mpsc::channel();
    let handler = async move |connection: &mut Connection| {
        whole(connection).await.inspect_err(|error| {
            let _ = failed.send(error.kind());
        })
    };
    let service = setup.builder().memory_budget(BUDGET).on_request(handler);
    let server = service.serve(setup.listener()).expect("a server");
    let mut greedy: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
    let mut small = Peer::connect(server.local_addr());
    let pushes: Vec<_> = greedy
        .drain(..)
        .map(|mut peer| {
            thread::spawn(move || {
                peer.write_all(&(12_u32 << 20).to_be_bytes()).expect("sent");
                // It is closed at some point.
                while peer.write_all(&[0; 64 << 10]).is_ok() {}
            })
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(failures.recv_timeout(PATIENCE).expect("a failure"), ErrorKind::OutOfMemory);
    }
    pushes.into_iter().for_each(|push| push.join().expect("no panic"));
    small.write_all(&100_u32.to_be_bytes()).expect("sent");
    assert_eq!(small.round_trip_of(&[0; 100], 4), b"done");
    assert_eq!(server.settled().memory_refusals, 3);
}

/// Replies are a MiB, and nobody waits until they are sent.
fn peers_that_do_not_read_are_reset(setup: Setup) {
    const BUDGET: usize = 16 * MIB;
    let handler = async |connection: &mut Connection| {
        connection.skip(1).await?;
        for _ in 0..16 {
            connection.writer_mut().write(&[0; 64 << 10])?;
        }
        connection.writer_mut().submit()
    };
    let service = setup.builder().memory_budget(BUDGET).when_full(WhenFull::Reset);
    let server = service.on_request(handler).serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..60).map(|_| Peer::connect(server.local_addr())).collect();
    eventually("all are there", || server.open_connections() == peers.len());
    // One after another: so the first that asks for what is not there any more has it refused, and another one goes for it.
    let (resets, mut asked) = (|| server.pollers().stats().memory_resets, 0);
    while resets() == 0 {
        for peer in &mut peers {
            let _ = peer.write(b"?");
            asked += 1;
            let is_served = || server.pollers().stats().requests >= asked;
            eventually("it is served", || is_served() || resets() > 0);
            // What is asked for is counted before it is refused.
            eventually("no more is held", || held(&server) <= BUDGET);
        }
        assert!(asked < 2_000, "{}", server.pollers().stats());
    }
    let stats = server.settled();
    assert!(stats.memory_resets > 0 && stats.memory_refusals == 0, "{stats}");
    // Who reads is served all the time.
    drop(peers);
    let mut friend = Peer::connect(server.local_addr());
    friend.write_all(b"?").expect("sent");
    friend.read_exact(&mut vec![0; MIB]).expect("a reply");
}

/// Nothing is refused, and yet somebody goes: the others would be accepted slowly for ever.
fn who_has_not_read_for_a_second_makes_room(setup: Setup) {
    const BUDGET: usize = 64 * MIB;
    let handler = async |connection: &mut Connection| {
        connection.skip(1).await?;
        connection.writer_mut().write(&vec![0; 4 * MIB])?;
        connection.writer_mut().submit()
    };
    let service = setup.builder().memory_budget(BUDGET).when_full(WhenFull::Reset);
    let server = service.on_request(handler).serve(setup.listener()).expect("a server");
    let mut peers = Vec::new();
    while held(&server) <= BUDGET / 8 * 7 {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(b"?").expect("sent");
        peers.push(peer);
        eventually("it is served", || server.pollers().stats().requests >= peers.len() as u64);
        assert!(peers.len() < 100);
    }
    eventually("there is room", || held(&server) < BUDGET / 8 * 6);
    let stats = server.settled();
    assert!(stats.memory_resets > 0 && stats.memory_refusals == 0, "{stats}");
    assert!(stats.memory_resets < peers.len() as u64, "{stats}");
}

/// A message that does not fit, again and again.
fn who_asks_for_too_much_costs_the_others_nothing(setup: Setup) {
    let handler = async |connection: &mut Connection| {
        let length = connection.read_u32().await? as usize;
        let body = connection.next(length).await?;
        connection.write(&(body.len() as u32).to_be_bytes())?;
        connection.flush().await
    };
    let service = setup.builder().memory_budget(8 * MIB);
    let server = service.on_request(handler).serve(setup.listener()).expect("a server");
    // Those who have a part of theirs.
    let mut others: Vec<_> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    for other in &mut others {
        other.write_all(&[0, 0, 0, 2, 7]).expect("sent");
    }
    for _ in 0..3 {
        let mut greedy = Peer::connect(server.local_addr());
        let _ = greedy.write_all(&(7_u32 << 20).to_be_bytes());
        let _ = greedy.write_all(&vec![0; 7 * MIB]);
        assert_eq!(greedy.read(&mut [0; 4]).unwrap_or(0), 0, "there is no room for it");
        assert_eq!(
            Peer::connect(server.local_addr()).round_trip_of(&[0, 0, 0, 1, 7], 4),
            [0, 0, 0, 1]
        );
    }
    for other in &mut others {
        assert_eq!(other.round_trip_of(&[7], 4), [0, 0, 0, 2]);
    }
    let stats = server.settled();
    assert!(stats.memory_refusals <= 3, "{stats}");
}

fn connections_are_accepted_one_by_one_while_memory_is_short(setup: Setup) {
    const BUDGET: usize = 16 * MIB;
    let levels = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let told = levels.clone();
    let times = move |level: MemoryLevel| levels[level as usize].load(Ordering::Relaxed);
    let service = setup.builder().memory_budget(BUDGET).on_memory_level(move |level| {
        told[level as usize].fetch_add(1, Ordering::Relaxed);
        panic!("a callback may");
    });
    let (held_up, holds) = mpsc::channel();
    let handler = async move |connection: &mut Connection| {
        connection.fill(MIB).await?;
        let _ = held_up.send(connection.input_mut().split_to(MIB)?);
        connection.write(b"kept")?;
        connection.flush().await
    };
    let server = service.on_request(handler).serve(setup.listener()).expect("a server");
    let mut first = Peer::connect(server.local_addr());
    let mut kept = Vec::new();
    while times(MemoryLevel::High) == 0 {
        assert_eq!(first.round_trip_of(&[0; MIB], 4), b"kept");
        kept.push(holds.recv_timeout(PATIENCE).expect("kept"));
        assert!(kept.len() < 16);
    }
    let connect = || Peer::connect(server.local_addr());
    // One by one, with a moment in between: whoever holds the memory may do so for ever.
    let others: Vec<_> = (0..5).map(|_| connect()).collect();
    eventually("all are accepted", || server.open_connections() == 1 + others.len());
    assert!(server.settled().memory_pauses >= others.len() as u64 - 1);
    drop(kept);
    eventually("it is told", || times(MemoryLevel::Normal) == 1);
}

fn a_budget_is_shared_by_the_pollers_of_a_server(setup: Setup) {
    let service = setup.builder().pollers(2).memory_budget(8 * MIB).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let stats = server.settled();
    assert_eq!((stats.pollers, stats.memory_budget_bytes), (2, 8 * MIB as u64));
    let process = setup.serve_echo().pollers().stats();
    assert_ne!(process.memory_budget_bytes, 8 * MIB as u64);
}

/// Each sends exactly what a receive takes, so that more might come.
fn whoever_waits_holds_nothing(setup: Setup) {
    const BUDGET: usize = 4 * MIB;
    const PEERS: usize = 1_100;
    raise_descriptor_limit();
    let server = echo(setup, BUDGET);
    let (mut peers, message) = (Vec::new(), vec![7; 4096]);
    // One after the other: those that come first may hold most.
    for _ in 0..PEERS {
        let mut peer = Peer::connect(server.local_addr());
        assert_eq!(peer.round_trip(&message), message);
        peers.push(peer);
    }
    assert_eq!(peers[0].round_trip(b"on"), b"on");
    let stats = server.settled();
    assert_eq!(stats.memory_refusals + stats.memory_resets, 0, "{stats}");
}

/// Others hold the memory. It reads all the time, and the kernel tells of room only now and then.
fn whoever_reads_slowly_is_not_reset(setup: Setup) {
    const BUDGET: usize = 8 * MIB;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = kept.clone();
    let handler = async move |mut connection: Connection| {
        if connection.next(1).await?[..] == *b"k" {
            loop {
                let all = connection.input_mut().len();
                lock(&keeps).push(connection.input_mut().split_to(all)?);
                if !connection.more().await? {
                    return Ok(());
                }
            }
        }
        loop {
            connection.writer_mut().write(&[7; 32 << 10])?;
            connection.flush().await?;
        }
    };
    let service = setup.builder().memory_budget(BUDGET).when_full(WhenFull::Reset);
    let server = service.on_connection(handler).serve(setup.listener()).expect("a server");
    let mut hoarder = Peer::connect(server.local_addr());
    hoarder.write_all(b"k").expect("sent");
    let piece = vec![1; 32 << 10];
    while held(&server) <= BUDGET / 8 * 7 {
        let before = lock(&kept).len();
        hoarder.write_all(&piece).expect("sent");
        eventually("it is kept", || lock(&kept).len() > before);
    }
    let mut slow = Peer::connect(server.local_addr());
    slow.write_all(b"?").expect("sent");
    let (begun, mut some) = (Instant::now(), vec![0; 20 << 10]);
    // Longer than what leads to a reset.
    while begun.elapsed() < Duration::from_millis(2_500) {
        slow.read_exact(&mut some).expect("it is sent to");
        thread::sleep(Duration::from_millis(50));
    }
    let stats = server.settled();
    assert_eq!(stats.memory_resets, 0, "{stats}");
    assert!(held(&server) > BUDGET / 8 * 7);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}
