//! Loom models of everything that threads share: every interleaving, and every value that the memory order allows a
//! load to see. Run them with `ci/loom.sh`.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use loom::model::Builder;
use loom::thread;

use crate::buffer::{BufferSeam, Chain, LinkBuffer};
use crate::clock::Clock;
use crate::command::Command;
use crate::connection::{Limits, Reader, Sender, Shared, Todo, Writer, pair};
use crate::mailbox::Mailbox;
use crate::memory::{Pool, PoolConfig, Slice, Tail};
use crate::poll::{Notify, Outputs};
use crate::timer::Tick;
use crate::token::Token;

/// A pool of blocks of 512 bytes, of which so many wait.
fn pool(max_pooled_bytes: usize) -> Pool {
    let mut config = PoolConfig::default();
    config.min_block_bytes = 512;
    config.max_pooled_bytes = max_pooled_bytes;
    Pool::new(config)
}

/// Checks `model` with up to so many preemptions, which is where the bugs are, if not all would take too long.
fn check(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = preemptions;
    }
    builder.check(model);
}

fn written(pool: &Pool, byte: u8) -> (Tail, Slice) {
    let mut tail = pool.allocate(1).unwrap();
    let slice = tail.write(&[byte; 8]);
    (tail, slice)
}

#[test]
fn loom_the_last_of_three_references_releases_the_block_once() {
    check(Some(3), || {
        let pool = pool(1 << 20);
        let (tail, slice) = written(&pool, 7);
        drop(tail);
        let others = [slice.clone(), slice.clone()].map(|slice| {
            thread::spawn(move || {
                assert_eq!(slice, [7; 8]);
                // A reference made from another thread's reference.
                drop(slice.clone());
            })
        });
        assert_eq!(slice, [7; 8]);
        drop(slice);
        for other in others {
            other.join().unwrap();
        }
        let stats = pool.stats();
        assert_eq!((stats.live_blocks, stats.live_bytes, stats.pooled_bytes), (0, 0, 512));
    });
}

#[test]
fn loom_a_tail_is_rewound_only_after_the_last_reader_is_done() {
    check(None, || {
        let pool = pool(1 << 20);
        let (mut tail, slice) = written(&pool, 7);
        let reader = thread::spawn(move || assert_eq!(slice, [7; 8]));
        // The witness in the block complains if this does not happen after the read.
        if tail.rewind() {
            assert_eq!(tail.write(&[8; 8]), [8; 8]);
        }
        reader.join().unwrap();
        assert!(tail.rewind());
    });
}

#[test]
fn loom_a_tail_goes_on_while_another_thread_reads_and_releases() {
    check(None, || {
        let pool = pool(0);
        let (mut tail, slice) = written(&pool, 7);
        let reader = thread::spawn(move || assert_eq!(slice, [7; 8]));
        let second = tail.write(&[8; 8]);
        drop(tail);
        assert_eq!(second, [8; 8]);
        drop(second);
        reader.join().unwrap();
        assert_eq!(pool.stats().live_blocks, 0);
        assert_eq!(pool.stats().pooled_bytes, 0);
    });
}

#[test]
fn loom_a_block_released_elsewhere_is_used_again_only_after_it_was_read() {
    check(None, || {
        let pool = pool(1 << 20);
        let (tail, slice) = written(&pool, 7);
        drop(tail);
        let reader = thread::spawn(move || {
            assert_eq!(slice, [7; 8]);
            drop(slice);
        });
        // This may or may not be the same block.
        let (_tail, other) = written(&pool, 8);
        reader.join().unwrap();
        assert_eq!(other, [8; 8]);
        assert_eq!(pool.stats().live_blocks, 1);
    });
}

#[test]
fn loom_threads_never_get_the_same_block() {
    for max_pooled_bytes in [0, 512] {
        check(Some(3), move || {
            let pool = pool(max_pooled_bytes);
            let other = {
                let pool = pool.clone();
                thread::spawn(move || {
                    let (_tail, slice) = written(&pool, 1);
                    assert_eq!(slice, [1; 8]);
                })
            };
            let (_tail, slice) = written(&pool, 2);
            assert_eq!(slice, [2; 8]);
            drop((_tail, slice));
            other.join().unwrap();
            let stats = pool.stats();
            assert_eq!((stats.live_blocks, stats.live_bytes), (0, 0));
            assert!(stats.pooled_bytes <= max_pooled_bytes, "{stats:?} {max_pooled_bytes}");
        });
    }
}

#[test]
fn loom_trimming_meets_a_release() {
    check(None, || {
        let pool = pool(1 << 20);
        let (tail, slice) = written(&pool, 7);
        drop(tail);
        let other = thread::spawn(move || drop(slice));
        pool.trim();
        other.join().unwrap();
        pool.trim();
        let stats = pool.stats();
        assert_eq!((stats.live_bytes, stats.pooled_bytes), (0, 0));
    });
}

#[test]
fn loom_a_pool_goes_with_its_last_handle_or_block() {
    check(None, || {
        let pool = pool(1 << 20);
        let (tail, slice) = written(&pool, 7);
        drop(tail);
        let other = thread::spawn(move || {
            assert_eq!(slice, [7; 8]);
            drop(slice);
        });
        // Loom reports memory that is leaked, through the `Arc` of the pool.
        drop(pool);
        other.join().unwrap();
    });
}

/// A poller that sleeps until it is notified, like one in `epoll_wait`.
struct Bell(loom::sync::Notify);

impl Notify for Bell {
    fn notify(&self) {
        self.0.notify();
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bell")
    }
}

#[derive(Debug)]
struct NoTime;

impl Clock for NoTime {
    fn now(&self) -> Tick {
        0
    }

    fn tick_of(&self, _: Instant) -> Tick {
        0
    }
}

fn mailbox() -> (Arc<Mailbox>, Arc<Bell>) {
    let bell = Arc::new(Bell(loom::sync::Notify::new()));
    (Arc::new(Mailbox::new(bell.clone(), Arc::new(NoTime))), bell)
}

fn command() -> Command {
    Command::Send(Token::new(0, 0))
}

/// Turns of a poller until it has got so many commands. A wake-up that is lost is a deadlock, which loom reports.
fn turns(mailbox: &Mailbox, bell: &Bell, expected: usize) {
    let mut commands = Vec::new();
    loop {
        mailbox.take(&mut commands);
        if commands.len() == expected {
            return;
        }
        if mailbox.sleep() {
            bell.0.wait();
            mailbox.awake();
        }
    }
}

#[test]
fn loom_a_sleeping_poller_is_woken_for_every_command() {
    check(Some(3), || {
        let (mailbox, bell) = mailbox();
        let posters = [(); 2].map(|()| {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(command()))
        });
        turns(&mailbox, &bell, 2);
        for poster in posters {
            poster.join().unwrap();
        }
    });
}

#[test]
fn loom_one_poster_posts_twice() {
    check(None, || {
        let (mailbox, bell) = mailbox();
        let poster = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                mailbox.post(command());
                mailbox.post(command());
            })
        };
        turns(&mailbox, &bell, 2);
        poster.join().unwrap();
    });
}

#[test]
fn loom_a_poller_that_wakes_by_itself_misses_nothing() {
    check(None, || {
        let (mailbox, bell) = mailbox();
        let poster = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(command()))
        };
        // An event of its own ends the first sleep, whether or not it was notified.
        let mut commands = Vec::new();
        mailbox.take(&mut commands);
        mailbox.sleep();
        mailbox.awake();
        mailbox.take(&mut commands);
        turns(&mailbox, &bell, 1 - commands.len());
        poster.join().unwrap();
    });
}

#[test]
fn loom_what_was_left_elsewhere_is_seen_after_a_wake() {
    use loom::sync::atomic::{AtomicBool, Ordering};
    check(None, || {
        let (mailbox, bell) = mailbox();
        let left = Arc::new(AtomicBool::new(false));
        let other = {
            let (mailbox, left) = (mailbox.clone(), left.clone());
            thread::spawn(move || {
                left.store(true, Ordering::Relaxed);
                mailbox.wake();
            })
        };
        // The poller looks only after it was called: the mailbox's order must carry what was left before.
        // Its first sleep ends by itself, so that nothing but the mailbox orders the two threads.
        let mut commands = Vec::new();
        mailbox.sleep();
        mailbox.awake();
        while !mailbox.take(&mut commands) {
            if mailbox.sleep() {
                bell.0.wait();
                mailbox.awake();
            }
        }
        assert!(left.load(Ordering::Relaxed));
        other.join().unwrap();
    });
}

/// A connection of a poller that sleeps, as the threads see it that share it.
struct Shares {
    mailbox: Arc<Mailbox>,
    bell: Arc<Bell>,
    shared: Arc<Shared>,
}

impl Shares {
    fn new() -> (Shares, Reader, Writer) {
        Shares::with(Limits::default())
    }

    fn with(limits: Limits) -> (Shares, Reader, Writer) {
        let (mailbox, bell) = mailbox();
        let (shared, reader, writer) =
            pair(None, mailbox.clone(), Token::new(0, 0), 0, &limits, false);
        (Shares { mailbox, bell, shared }, reader, writer)
    }

    /// Turns of the poller until `turn`, which is told what was left for it, has seen enough.
    fn turns(&self, mut turn: impl FnMut(&Shared, &[Command]) -> bool) {
        let mut commands = Vec::new();
        loop {
            commands.clear();
            self.mailbox.take(&mut commands);
            if turn(&self.shared, &commands) {
                return;
            }
            if self.mailbox.sleep() {
                self.bell.0.wait();
            }
        }
    }

    /// Sends what is flushed, until as much was sent as there is to see.
    fn sends_until(&self, mut enough: impl FnMut(usize) -> bool) {
        let (mut sent, mut sending) = (0, Chain::new());
        self.turns(|shared, commands| {
            let sends = |command: &Command| !matches!(command, Command::Look(_));
            // As an engine does, which asks for more after each acknowledgement.
            while commands.iter().any(sends) {
                match shared.take_output(&mut sending) {
                    Ok(_) => {
                        let n = sending.len();
                        sending.advance(n);
                        sent += n;
                        crate::connection::wake(shared.sent(n, &mut sending, || 0).waker);
                    }
                    Err(done) => {
                        assert_eq!(done, Outputs::Nothing);
                        break;
                    }
                }
            }
            enough(sent)
        });
    }
}

/// Polls on this thread, which sleeps while there is nothing.
fn wait<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    struct Rouses(loom::sync::Notify);
    impl Wake for Rouses {
        fn wake(self: Arc<Self>) {
            self.0.notify();
        }
    }
    let rouses = Arc::new(Rouses(loom::sync::Notify::new()));
    let waker = Waker::from(rouses.clone());
    loop {
        if let Poll::Ready(result) = poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        rouses.0.wait();
    }
}

#[test]
fn loom_what_is_flushed_is_sent_and_ends_the_wait_for_it() {
    check(Some(2), || {
        let (shares, _reader, mut writer) = Shares::new();
        let user = thread::spawn(move || {
            for bytes in ["ab", "c"] {
                writer.push(bytes);
                wait(|cx| writer.poll_drain(cx)).unwrap();
            }
            writer
        });
        shares.sends_until(|sent| sent == 3);
        drop(user.join().unwrap());
    });
}

#[test]
fn loom_what_arrives_ends_the_wait_for_it() {
    check(Some(2), || {
        let (shares, mut reader, _writer) = Shares::new();
        let user = thread::spawn(move || {
            wait(|cx| reader.poll_fill(cx, 2)).unwrap();
            assert_eq!(reader.buffer_mut().len(), 2);
            reader
        });
        for _ in 0..2 {
            let moved = shares.shared.deliver(|inbox, _| {
                let mut byte = LinkBuffer::with_pool(pool(0));
                byte.push("a");
                byte.drain_into(inbox);
            });
            crate::connection::wake(moved.waker);
        }
        drop(user.join().unwrap());
    });
}

#[test]
fn loom_what_two_threads_ask_of_the_poller_is_done() {
    check(Some(3), || {
        let (shares, reader, _writer) = Shares::new();
        let controls = [reader.control(), reader.control()];
        controls[0].pause();
        let [resumes, aborts] = controls;
        let others =
            [thread::spawn(move || resumes.resume()), thread::spawn(move || aborts.abort())];
        let (mut receives, mut ends) = (false, false);
        shares.turns(|shared, commands| {
            if !commands.is_empty() {
                let todo = shared.take_todo();
                receives |= todo.has(Todo::RECEIVE);
                ends |= todo.has(Todo::ABORT);
            }
            receives && ends
        });
        for other in others {
            other.join().unwrap();
        }
    });
}

/// Two bytes of one sender, which wait while as many are unsent.
async fn send(sender: &Sender, bytes: &'static str) -> std::io::Result<()> {
    let mut message = LinkBuffer::with_pool(pool(0));
    message.push(bytes);
    sender.send(&mut message).await
}

fn a_sender() -> (Shares, Reader, Sender) {
    let mut limits = Limits::default();
    limits.output_high_bytes = 1;
    let (shares, reader, writer) = Shares::with(limits);
    (shares, reader, writer.into_sender().unwrap())
}

#[test]
fn loom_all_who_wait_to_send_have_their_turn() {
    check(Some(2), || {
        let (shares, _reader, sender) = a_sender();
        let users = ["ab", "cd"].map(|bytes| {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut sends = std::pin::pin!(send(&sender, bytes));
                wait(|cx| sends.as_mut().poll(cx)).unwrap();
            })
        });
        shares.sends_until(|sent| sent == 4);
        for user in users {
            user.join().unwrap();
        }
    });
}

#[test]
fn loom_who_waits_to_send_no_more_leaves_the_wait_of_the_other() {
    use loom::sync::atomic::{AtomicBool, Ordering};
    check(Some(2), || {
        let (shares, _reader, sender) = a_sender();
        // There is something to wait for.
        assert!(sender.try_send(&mut LinkBuffer::from(Slice::from("xy"))).unwrap());
        let done = Arc::new(AtomicBool::new(false));
        let leaves = {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut sends = std::pin::pin!(send(&sender, "ab"));
                let _ = sends.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            })
        };
        let stays = {
            let (mailbox, done, sender) = (shares.mailbox.clone(), done.clone(), sender.clone());
            thread::spawn(move || {
                let mut sends = std::pin::pin!(send(&sender, "cd"));
                wait(|cx| sends.as_mut().poll(cx)).unwrap();
                done.store(true, Ordering::Release);
                mailbox.wake();
            })
        };
        shares.sends_until(|_| done.load(Ordering::Acquire));
        leaves.join().unwrap();
        stays.join().unwrap();
    });
}

#[test]
fn loom_all_who_wait_to_send_are_told_of_the_end() {
    check(Some(2), || {
        let (shares, _reader, sender) = a_sender();
        assert!(sender.try_send(&mut LinkBuffer::from(Slice::from("xy"))).unwrap());
        let users = ["ab", "cd"].map(|bytes| {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut sends = std::pin::pin!(send(&sender, bytes));
                let error = wait(|cx| sends.as_mut().poll(cx)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
            })
        });
        shares.shared.fail_sending(&std::io::Error::from_raw_os_error(libc::EPIPE));
        for user in users {
            user.join().unwrap();
        }
    });
}
