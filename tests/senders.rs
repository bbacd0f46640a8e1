//! Many tasks that send over one connection: each message whole, those of each sender in order, none lost.

mod support;

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use duopoll::task::spawn_local;
use duopoll::time::{self, sleep};
use duopoll::{Dialer, Limits, LinkBuffer, Pollers, Sender};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Peer, Random, Setup, connected, eventually, poll_once, scaled};

on_every_setup!(
    many_tasks_send_over_one_connection,
    many_tasks_send_to_a_peer_that_stutters,
    a_reset_is_told_to_every_sender,
    what_waits_is_bounded,
    those_who_wait_have_their_turn,
    a_large_message_has_its_turn_among_small_ones,
    who_waits_is_not_overtaken_for_ever,
    a_wait_that_is_dropped_sends_nothing,
    a_write_timeout_counts_from_where_each_begins,
    the_end_is_told_to_those_who_wait,
    the_last_sender_ends_the_direction,
);

const TASKS: u64 = 64;
const THREADS: usize = 4;

/// A message of some length: the sender, its number, and bytes that follow from both.
fn put(message: &mut LinkBuffer, sender: u64, number: u64) {
    let length = (sender * 7 + number * 13) % 50;
    message.write(&[(16 + length) as u8]).expect("memory");
    message.write(&sender.to_be_bytes()).expect("memory");
    message.write(&number.to_be_bytes()).expect("memory");
    for at in 0..length {
        message.write(&[(sender + number + at) as u8]).expect("memory");
    }
}

/// Reads messages, and checks each. Says how many there were, by sender.
struct Check {
    peer: std::io::BufReader<Peer>,
    next: HashMap<u64, u64>,
}

impl Check {
    fn new(peer: Peer) -> Check {
        Check { peer: std::io::BufReader::with_capacity(64 << 10, peer), next: HashMap::new() }
    }

    /// The next message; false at the end.
    fn one(&mut self) -> std::io::Result<bool> {
        let mut length = [0];
        if self.peer.read(&mut length)? == 0 {
            return Ok(false);
        }
        let mut message = vec![0; usize::from(length[0])];
        self.peer.read_exact(&mut message)?;
        let word = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().expect("eight"));
        let (sender, number) = (word(0), word(8));
        let expected = self.next.entry(sender).or_insert(0);
        assert_eq!(number, *expected, "of sender {sender}");
        *expected += 1;
        for (at, byte) in message[16..].iter().enumerate() {
            assert_eq!(*byte, (sender + number + at as u64) as u8, "{sender}, {number} is torn");
        }
        Ok(true)
    }
}

/// Has tasks on pollers of their own send so many messages each. What each says in the end.
fn send_from_everywhere(
    pollers: &Pollers,
    sender: Sender,
    each: u64,
) -> Vec<duopoll::task::JoinHandle<(u64, std::io::Result<()>)>> {
    (0..TASKS)
        .map(|task| {
            let sender = sender.clone();
            pollers.spawn(move || async move {
                let mut message = LinkBuffer::new();
                for number in 0..each {
                    put(&mut message, task, number);
                    if let Err(error) = sender.send(&mut message).await {
                        return (number, Err(error));
                    }
                }
                (each, Ok(()))
            })
        })
        .collect()
}

fn many_tasks_send_over_one_connection(setup: Setup) {
    let each = scaled(100_000) as u64 / TASKS + 1;
    let (pollers, connection, peer) = connected(setup, Limits::default());
    let others = setup.pollers(THREADS);
    let (_reader, writer) = connection.into_split();
    let sender = writer.into_sender().expect("nothing is staged");
    let checked = thread::spawn(move || {
        let mut check = Check::new(peer);
        while check.one().expect("a message, or the end") {}
        check.next
    });
    let tasks = send_from_everywhere(&others, sender, each);
    for task in tasks {
        assert!(block_on(task).expect("no panic").1.is_ok());
    }
    let next = checked.join().expect("no panic");
    assert_eq!(next.len() as u64, TASKS);
    assert!(next.values().all(|count| *count == each));
    // All of them: for the messages, for waiting, and for waking each other. How many are sent together is the scheduler's affair;
    // one at a time would be two each, a wake and a send.
    let calls = pollers.settled().syscalls + others.settled().syscalls;
    let messages = each * TASKS;
    assert!(calls < messages, "{calls} system calls for {messages} messages");
}

fn many_tasks_send_to_a_peer_that_stutters(setup: Setup) {
    let each = scaled(20_000) as u64 / TASKS + 1;
    let mut limits = Limits::default();
    limits.output_high_bytes = 4 << 10;
    let (_pollers, connection, peer) = connected(setup, limits);
    let others = setup.pollers(THREADS);
    let (_reader, writer) = connection.into_split();
    let sender = writer.into_sender().expect("nothing is staged");
    let checked = thread::spawn(move || {
        let mut random = Random::new(support::fresh_seed());
        let mut check = Check::new(peer);
        check.peer = std::io::BufReader::with_capacity(600, check.peer.into_inner());
        while check.one().expect("a message, or the end") {
            if random.between(0, 500) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        check.next
    });
    let tasks = send_from_everywhere(&others, sender, each);
    for task in tasks {
        assert!(block_on(task).expect("no panic").1.is_ok());
    }
    let next = checked.join().expect("no panic");
    assert!(next.len() as u64 == TASKS && next.values().all(|count| *count == each));
}

fn a_reset_is_told_to_every_sender(setup: Setup) {
    let (_pollers, connection, peer) = connected(setup, Limits::default());
    let others = setup.pollers(THREADS);
    let (_reader, writer) = connection.into_split();
    let sender = writer.into_sender().expect("nothing is staged");
    let tasks = send_from_everywhere(&others, sender.clone(), u64::MAX);
    let mut check = Check::new(peer);
    for _ in 0..1000 {
        assert!(check.one().expect("a message"));
    }
    check.peer.into_inner().reset();
    for task in tasks {
        let (_, result) = block_on(task).expect("no panic");
        let error = result.expect_err("the connection is gone");
        let errno = error.raw_os_error();
        let known = [libc::ECONNRESET, libc::EPIPE].map(Some);
        assert!(known.contains(&errno), "{error:?}");
    }
    let error = block_on(sender.send_slice(b"late".to_vec())).expect_err("it is gone");
    assert!(error.raw_os_error().is_some(), "{error:?}");
}

/// A connection whose peer does not read, and so much sent that its senders wait.
fn stuffed(limits: Limits, setup: Setup) -> (Pollers, duopoll::Reader, Sender, Peer) {
    let (pollers, connection, peer) = connected(setup, limits);
    let (reader, writer) = connection.into_split();
    let sender = writer.into_sender().expect("nothing is staged");
    let mut refused = 0;
    let fits = |bytes: usize| {
        let mut message = LinkBuffer::from(vec![0; bytes]);
        sender.try_send(&mut message).expect("it is open")
    };
    // The kernel may take some more for a while.
    eventually("nobody takes any more", || {
        let full = !fits(1 << 16) && !fits(1 << 10) && !fits(1);
        refused = if full { refused + 1 } else { 0 };
        // A turn of the poller at least, and what it finds.
        pollers.settle();
        refused == 50
    });
    (pollers, reader, sender, peer)
}

fn what_waits_is_bounded(setup: Setup) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 100 << 10;
    let (_pollers, _reader, sender, peer) = stuffed(limits, setup);
    let mut messages: Vec<_> = (0..50).map(|_| LinkBuffer::from(vec![1; 1 << 16])).collect();
    let mut waits: Vec<_> =
        messages.iter_mut().map(|message| Box::pin(sender.send(message))).collect();
    assert!(waits.iter_mut().all(|wait| poll_once(wait.as_mut()).is_pending()));
    // Half the watermark and a message, at most.
    assert!(sender.unsent_len() <= (50 + 64) << 10, "{} bytes", sender.unsent_len());
    // One that is larger than all that may wait has its turn, too.
    drop(waits);
    let mut large = LinkBuffer::from(vec![2; 1 << 20]);
    let reading = thread::spawn(move || {
        let mut peer = peer;
        peer.read_rest().expect("all, and the end")
    });
    block_on(sender.send(&mut large)).expect("it is sent");
    block_on(sender.drain()).expect("all is sent");
    assert_eq!(sender.unsent_len(), 0);
    drop(sender);
    let received = reading.join().expect("no panic");
    assert_eq!(received.iter().filter(|byte| **byte == 2).count(), 1 << 20);
    assert!(messages.iter().all(|message| message.len() == 1 << 16));
}

fn those_who_wait_have_their_turn(setup: Setup) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 64 << 10;
    let (_pollers, _reader, sender, mut peer) = stuffed(limits, setup);
    let others = setup.pollers(2);
    let order = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for number in 1..=20_u64 {
        let (waits, order) = (sender.clone(), order.clone());
        tasks.push(others.spawn(move || async move {
            let mut message = LinkBuffer::from(vec![number as u8; 40 << 10]);
            waits.send(&mut message).await.expect("it is sent");
            order.fetch_add(1, Ordering::SeqCst);
        }));
        // It waits before the next one comes.
        eventually("it waits", || format!("{sender:?}").contains(&format!("waiting: {number}")));
    }
    assert_eq!(order.load(Ordering::SeqCst), 0);
    drop(sender);
    let received = peer.read_rest().expect("all, and the end");
    for task in tasks {
        block_on(task).expect("no panic");
    }
    let mut seen: Vec<u8> = received.iter().copied().filter(|byte| *byte > 0).collect();
    assert_eq!(seen.len(), 20 * (40 << 10));
    // Each as a whole.
    seen.dedup();
    seen.sort_unstable();
    assert_eq!(seen, (1..=20).collect::<Vec<u8>>());
}

fn a_large_message_has_its_turn_among_small_ones(setup: Setup) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 64 << 10;
    let (_pollers, _reader, sender, mut peer) = stuffed(limits, setup);
    let others = setup.pollers(2);
    let stop = Arc::new(AtomicBool::new(false));
    let small: Vec<_> = (0..8)
        .map(|_| {
            let (sender, stop) = (sender.clone(), stop.clone());
            others.spawn(move || async move {
                while !stop.load(Ordering::Relaxed) {
                    sender.send_slice(&[1; 100][..]).await.expect("it is open");
                }
            })
        })
        .collect();
    let large = sender.clone();
    let large = others.spawn(move || async move {
        for _ in 0..10 {
            let mut message = LinkBuffer::from(vec![2; 60 << 10]);
            large.send(&mut message).await.expect("it is sent");
        }
    });
    drop(sender);
    let reading = thread::spawn(move || peer.read_rest().expect("all, and the end"));
    block_on(large).expect("it has its turn");
    stop.store(true, Ordering::Relaxed);
    for task in small {
        block_on(task).expect("no panic");
    }
    let received = reading.join().expect("no panic");
    assert_eq!(received.iter().filter(|byte| **byte == 2).count(), 10 * (60 << 10));
}

/// A thread that is always quick enough to take what room there is.
fn who_waits_is_not_overtaken_for_ever(setup: Setup) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 64 << 10;
    let (_pollers, _reader, sender, mut peer) = stuffed(limits, setup);
    let stop = Arc::new(AtomicBool::new(false));
    let (quick, ends) = (sender.clone(), stop.clone());
    let overtaking = thread::spawn(move || {
        while !ends.load(Ordering::Relaxed) {
            let mut message = LinkBuffer::from(vec![1; 1000]);
            while !quick.try_send(&mut message).expect("it is open") {
                thread::yield_now();
                if ends.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    let reading = thread::spawn(move || peer.read_rest().expect("all, and the end"));
    for _ in 0..5 {
        for bytes in [1000, 50 << 10, 200 << 10] {
            let mut message = LinkBuffer::from(vec![2; bytes]);
            block_on(sender.send(&mut message)).expect("it has its turn");
        }
    }
    stop.store(true, Ordering::Relaxed);
    overtaking.join().expect("no panic");
    drop(sender);
    let received = reading.join().expect("no panic");
    let ours = received.iter().filter(|byte| **byte == 2).count();
    assert_eq!(ours, 5 * (1000 + (50 << 10) + (200 << 10)));
}

fn a_wait_that_is_dropped_sends_nothing(setup: Setup) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 64 << 10;
    let (_pollers, _reader, sender, mut peer) = stuffed(limits, setup);
    let mut messages: Vec<_> =
        (1..=6).map(|number: u8| LinkBuffer::from(vec![number; 10_000])).collect();
    let mut waits: Vec<_> =
        messages.iter_mut().map(|message| Some(Box::pin(sender.send(message)))).collect();
    for wait in waits.iter_mut().flatten() {
        assert!(poll_once(wait.as_mut()).is_pending());
    }
    // The first, who waits for the connection; one in between; and the last.
    for dropped in [0, 3, 5] {
        waits[dropped] = None;
    }
    let reading = thread::spawn(move || peer.read_rest().expect("all, and the end"));
    for wait in waits.iter_mut().filter_map(Option::take) {
        block_on(wait).expect("it is sent");
    }
    drop(waits);
    assert_eq!(messages.iter().map(LinkBuffer::len).filter(|len| *len > 0).count(), 3);
    // One that is leaked keeps nothing open.
    let leaked: &'static Sender = Box::leak(Box::new(sender));
    let message = Box::leak(Box::new(LinkBuffer::from(vec![0; 1 << 20])));
    let mut wait = Box::pin(leaked.send(message));
    let _ = poll_once(wait.as_mut());
    std::mem::forget(wait);
    // SAFETY: nobody uses the reference any more.
    drop(unsafe { std::ptr::read(leaked) });
    let mut seen = reading.join().expect("no panic");
    seen.retain(|byte| *byte > 0);
    assert_eq!(seen.len(), 30_000);
    seen.dedup();
    assert_eq!(seen, [2, 3, 5]);
}

/// In time that stands still.
fn a_write_timeout_counts_from_where_each_begins(setup: Setup) {
    const TIMEOUT: Duration = Duration::from_secs(20);
    let options = Pollers::options().engine(setup.engine);
    let ran = options.block_on(async {
        let listener = setup.listener();
        let mut limits = Limits::default();
        limits.output_high_bytes = 64 << 10;
        // Nobody accepts it, and nobody reads from it.
        let dialer = Dialer::new().limits(limits);
        let dialed = dialer.dial_addr(listener.local_addr().expect("bound")).await;
        let connection = dialed.expect("there is room in the backlog");
        let (_reader, writer) = connection.into_split();
        let sender = writer.into_sender().expect("nothing is staged");
        let mut refused = 0;
        while refused < 50 {
            let mut message = LinkBuffer::from(vec![0; 1 << 10]);
            let full = !sender.try_send(&mut message).expect("it is open");
            refused = if full { refused + 1 } else { 0 };
            sleep(Duration::from_millis(1)).await;
        }
        time::pause().expect("there is one poller");
        sender.control().set_write_timeout(Some(TIMEOUT));
        let waits: Vec<_> = (0..3)
            .map(|number| {
                let sender = sender.clone();
                spawn_local(async move {
                    sleep(TIMEOUT / 4 * number).await;
                    let begun = time::now();
                    let mut message = LinkBuffer::from(vec![1; 10_000]);
                    let error = sender.send(&mut message).await.expect_err("nobody reads");
                    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::TimedOut, None));
                    assert_eq!(message.len(), 10_000);
                    time::now() - begun
                })
            })
            .collect();
        for wait in waits {
            let took = wait.await.expect("no panic");
            let late = took.checked_sub(TIMEOUT).expect("not too early");
            assert!(late < Duration::from_millis(10), "{took:?}");
        }
        // As good as before.
        assert!(sender.control().is_active());
        drop(listener);
    });
    ran.expect("an engine");
}

fn the_end_is_told_to_those_who_wait(setup: Setup) {
    for how in 0..4 {
        let mut limits = Limits::default();
        limits.output_high_bytes = 64 << 10;
        let (pollers, _reader, sender, peer) = stuffed(limits, setup);
        let mut messages: Vec<_> = (0..5).map(|_| LinkBuffer::from(vec![1; 10_000])).collect();
        let ended = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let tasks: Vec<_> = messages
            .drain(..)
            .map(|mut message| {
                let (sender, tell, ended) = (sender.clone(), tell.clone(), ended.clone());
                thread::spawn(move || {
                    let error = block_on(sender.send(&mut message)).expect_err("it ends");
                    assert!(ended.load(Ordering::SeqCst), "{error}");
                    tell.send(error).expect("the test waits");
                })
            })
            .collect();
        eventually("all wait", || format!("{sender:?}").contains("waiting: 5"));
        ended.store(true, Ordering::SeqCst);
        match how {
            0 => sender.finish(),
            1 => sender.control().abort(),
            2 => sender.control().close(),
            _ => pollers.stop(),
        }
        for _ in 0..5 {
            let error = told.recv_timeout(PATIENCE).expect("each is told");
            match how {
                0 | 2 => assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}"),
                _ => assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}"),
            }
        }
        for task in tasks {
            task.join().expect("no panic");
        }
        drop(peer);
    }
}

fn the_last_sender_ends_the_direction(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    connection.write(b"staged ").expect("memory");
    let (mut reader, writer) = connection.into_split();
    let sender = writer.into_sender().expect("it is open");
    let clone = sender.clone();
    assert!(clone.is_same(&sender) && clone.id() == reader.id());
    block_on(clone.send_slice(b"by a clone ".to_vec())).expect("sent");
    drop(clone);
    let mut message = LinkBuffer::new();
    message.write(b"at once").expect("memory");
    assert!(sender.try_send(&mut message).expect("it is open") && message.is_empty());
    assert!(poll_once(pin!(sender.send(&mut message))).is_ready());
    drop(sender);
    assert_eq!(peer.read_rest().expect("all, and the end"), b"staged by a clone at once");
    // The other direction is as it was.
    std::io::Write::write_all(&mut peer, b"still").expect("sent");
    assert_eq!(block_on(reader.next(5)).expect("received"), b"still");
}
