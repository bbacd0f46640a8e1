//! Four threads share one connection: one reads, one writes, one changes its limits, and one ends it at a random moment.
//!
//! The other end is a server that sends everything back, and half of the time it is that one whose limits are changed and
//! which is ended. In every round the bytes that come are those that were sent, up to the end; if nobody ends the
//! connection, all of them come. What is received is looked at once more, and dropped, on another thread.
//!
//! Rounds are drawn from seeds: some that are always the same, and as many fresh ones, printed first. `DUOPOLL_SEED` says
//! where the fresh ones begin, `DUOPOLL_ROUNDS` how many there are of each. `ci/tsan.sh` has ThreadSanitizer watch it.

mod support;

use std::io::{self, ErrorKind};
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Connection, Control, Dialer, Reader, Server, Slice, Writer};
use pollster::block_on;
use support::{PATIENCE, Pattern, Random, Setup, eventually, fresh_seed, scaled};

on_every_setup!(four_threads_share_a_connection);

/// Rounds from seeds that are always the same, and as many from fresh ones.
const ROUNDS: usize = 60;
/// The most that is written in a round, in bytes.
const ROUND_BYTES: u64 = 256 << 10;
/// The most that is written before a flush, in bytes.
const MESSAGE_BYTES: usize = 32 << 10;

fn four_threads_share_a_connection(setup: Setup) {
    let fresh = from_env("DUOPOLL_SEED").unwrap_or_else(fresh_seed);
    let rounds = from_env("DUOPOLL_ROUNDS").unwrap_or(scaled(ROUNDS) as u64);
    println!("fresh seeds from {fresh}");

    let stage = Stage::new(setup);
    let (dropper, received) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (at, slice) in received {
                check_and_drop(at, slice);
            }
        });
        for seed in (0..rounds).chain((0..rounds).map(|n| fresh.wrapping_add(n))) {
            let round = panic::AssertUnwindSafe(|| stage.round(seed, &dropper));
            if let Err(panic) = panic::catch_unwind(round) {
                println!("DUOPOLL_SEED={seed} cargo test --test threads, with {setup:?}");
                drop(dropper);
                panic::resume_unwind(panic);
            }
        }
        drop(dropper);
    });
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// What was received, and where it begins in its round's pattern.
type Received = (Pattern, Slice);

fn check_and_drop(mut pattern: Pattern, slice: Slice) {
    assert!(pattern.matches(&slice), "bytes changed after they were received");
}

/// A server, and the means to connect to it.
struct Stage {
    server: Server,
    dialer: Dialer,
    /// The control of each connection that the server has accepted.
    accepted: mpsc::Receiver<Control>,
}

impl Stage {
    fn new(setup: Setup) -> Stage {
        let (accept, accepted) = mpsc::channel();
        let accept = Mutex::new(accept);
        let server = setup
            .builder()
            .on_connect(async move |connection: &mut Connection| {
                let accept = accept.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = accept.send(connection.control());
                Ok(())
            })
            .on_request(echo)
            .serve(setup.listener())
            .expect("a server");
        let pollers = setup.pollers(1);
        Stage { server, dialer: Dialer::new().pollers(pollers), accepted }
    }

    fn round(&self, seed: u64, dropper: &mpsc::Sender<Received>) {
        let mut random = Random::new(seed);
        let address = self.server.local_addr().clone();
        let connection = block_on(self.dialer.dial_addr(address)).expect("connected");
        let ours = connection.control();
        let theirs = self.accepted.recv_timeout(PATIENCE).expect("accepted");
        let end = End::draw(&mut random);
        let limited = if random.between(0, 1) == 0 { &ours } else { &theirs };
        let (ours, theirs) = (&ours, &theirs);

        let (reader, writer) = connection.into_split();
        let (pattern, total) = (Pattern::new(seed), random.between(1, ROUND_BYTES));
        let progress = &Progress::default();
        let mut seeds = || Random::new(random.next());
        let (reads, writes, limits, ends) = (seeds(), seeds(), seeds(), seeds());
        thread::scope(|scope| {
            let pattern_written = pattern.clone();
            scope.spawn(move || write(writer, pattern_written, total, writes, end));
            scope.spawn(move || limit(limited, limits, progress));
            scope.spawn(move || end.come(ours, theirs, total, ends, progress));
            let over = OnDrop(&progress.over);
            read(reader, pattern, total, reads, end, progress, dropper);
            drop(over);
        });
        let expected = progress.on_close.load(Ordering::Relaxed);
        eventually("the end is told", || progress.told.load(Ordering::Relaxed) == expected);
    }
}

/// Sends back what it receives. A flush whose wait has timed out has handed over all the same.
async fn echo(connection: &mut Connection) -> io::Result<()> {
    match support::echo(connection).await {
        Err(error) if has_timed_out(&error) => Ok(()),
        result => result,
    }
}

/// Who ends a round's connection, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The writer, when it has written all.
    Finish,
    CloseOurs,
    CloseTheirs,
    AbortOurs,
    AbortTheirs,
}

impl End {
    fn draw(random: &mut Random) -> End {
        let ends =
            [End::Finish, End::CloseOurs, End::CloseTheirs, End::AbortOurs, End::AbortTheirs];
        ends[random.between(0, ends.len() as u64 - 1) as usize]
    }

    /// Ends the connection after so many bytes have come as is drawn, and a little later.
    fn come(
        self,
        ours: &Control,
        theirs: &Control,
        total: u64,
        mut random: Random,
        progress: &Progress,
    ) {
        if self == End::Finish {
            return;
        }
        let (bytes, turns) = (random.between(0, total), random.between(0, 20));
        while progress.read.load(Ordering::Relaxed) < bytes && !progress.is_over() {
            thread::yield_now();
        }
        for _ in 0..turns {
            thread::yield_now();
        }
        match self {
            End::Finish => {}
            End::CloseOurs => ours.close(),
            End::CloseTheirs => theirs.close(),
            End::AbortOurs => ours.abort(),
            End::AbortTheirs => theirs.abort(),
        }
    }

    /// Whether this end can be the reason for an error.
    fn explains(self, error: &io::Error) -> bool {
        let (kind, errno) = (error.kind(), error.raw_os_error());
        match self {
            End::Finish => false,
            // Closing it takes no longer than the write timeout that it may have then.
            End::CloseOurs => {
                kind == ErrorKind::NotConnected
                    || matches!(errno, Some(libc::ETIMEDOUT | libc::EPIPE | libc::ECONNRESET))
            }
            End::AbortOurs => errno == Some(libc::ECONNABORTED),
            End::CloseTheirs | End::AbortTheirs => {
                matches!(errno, Some(libc::EPIPE | libc::ECONNRESET))
            }
        }
    }
}

/// What the threads of a round tell each other. Relaxed, so that nothing of it orders what they do to the connection.
#[derive(Default)]
struct Progress {
    /// Bytes that were read.
    read: AtomicU64,
    /// The reader has seen the end.
    over: AtomicBool,
    /// Callbacks that wait for the end, and those that were told of it.
    on_close: AtomicUsize,
    told: Arc<AtomicUsize>,
}

impl Progress {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Says that it is over, even if the reader panics: the others would wait for it.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A timeout or a deadline of a wait, which takes nothing from the connection.
fn has_timed_out(error: &io::Error) -> bool {
    error.kind() == ErrorKind::TimedOut && error.raw_os_error().is_none()
}

fn write(mut writer: Writer, mut pattern: Pattern, total: u64, mut random: Random, end: End) {
    let mut left = total;
    while left > 0 {
        let length = random.length(MESSAGE_BYTES).min(left as usize);
        let bytes = pattern.next(length);
        left -= bytes.len() as u64;
        match random.between(0, 2) {
            0 => writer.push(bytes),
            1 => writer.push(bytes.to_vec()),
            _ => writer.write(bytes).expect("memory"),
        }
        let drains = random.between(0, 7) == 0;
        loop {
            let flushed = if drains { block_on(writer.drain()) } else { block_on(writer.flush()) };
            match flushed {
                Ok(()) => break,
                Err(error) if has_timed_out(&error) => thread::yield_now(),
                Err(error) => {
                    assert!(end.explains(&error), "flush: {error:?}, with {end:?}");
                    return;
                }
            }
        }
    }
    if end == End::Finish {
        writer.finish();
    }
}

fn read(
    mut reader: Reader,
    mut pattern: Pattern,
    total: u64,
    mut random: Random,
    end: End,
    progress: &Progress,
    dropper: &mpsc::Sender<Received>,
) {
    let mut read = 0;
    let ended = loop {
        let wanted = random.length(MESSAGE_BYTES);
        let came = match random.between(0, 2) {
            0 => block_on(reader.next(wanted)),
            1 => block_on(reader.peek(1)).map(<[u8]>::len).and_then(|_| {
                let chunk = reader.buffer_mut().next_chunk(wanted);
                chunk.ok_or_else(|| io::Error::other("a byte was there to peek at"))
            }),
            _ => block_on(reader.more()).and_then(|more| {
                let len = if more { reader.buffer_mut().len() } else { 0 };
                let all = reader.buffer_mut().next(len)?;
                if more { Ok(all) } else { Err(ErrorKind::UnexpectedEof.into()) }
            }),
        };
        match came {
            Ok(slice) => {
                let at = pattern.clone();
                assert!(pattern.matches(&slice), "what comes behind {read} bytes is wrong");
                read += slice.len() as u64;
                progress.read.store(read, Ordering::Relaxed);
                dropper.send((at, slice)).expect("it is there until the end");
            }
            Err(error) if has_timed_out(&error) => thread::yield_now(),
            Err(error) => break error,
        }
    };
    // What is left was too little for what was asked last.
    let len = reader.buffer_mut().len();
    let rest = reader.buffer_mut().next(len).expect("no more than there is");
    assert!(pattern.matches(&rest), "what comes last is wrong");
    read += rest.len() as u64;
    // A writer that has written all is dropped, and the server ends its side when it has sent all of that back.
    let all_came = read == total && ended.kind() == ErrorKind::UnexpectedEof;
    let was_ended = ended.kind() == ErrorKind::UnexpectedEof
        && matches!(end, End::CloseTheirs | End::AbortTheirs);
    assert!(
        all_came || was_ended || end.explains(&ended),
        "read: {ended:?} after {read} of {total} bytes, with {end:?}"
    );
}

/// Changes what the connection may wait for, pauses it and looks at it. In the end there is no limit any more.
fn limit(control: &Control, mut random: Random, progress: &Progress) {
    for _ in 0..random.between(0, 40) {
        if progress.is_over() {
            break;
        }
        let soon = Duration::from_micros(random.between(0, 3000));
        let timeout = (random.between(0, 1) == 0).then_some(soon);
        let deadline = timeout.map(|soon| Instant::now() + soon);
        match random.between(0, 7) {
            0 => control.set_read_timeout(timeout),
            1 => control.set_write_timeout(timeout),
            2 => control.set_read_deadline(deadline),
            3 => control.set_write_deadline(deadline),
            4 => control.pause(),
            5 => control.resume(),
            6 => {
                progress.on_close.fetch_add(1, Ordering::Relaxed);
                let told = progress.told.clone();
                control.on_close(move || {
                    told.fetch_add(1, Ordering::Relaxed);
                });
            }
            _ => {
                control.is_active();
            }
        }
        for _ in 0..random.between(0, 10) {
            thread::yield_now();
        }
    }
    control.set_idle_timeout(Some(PATIENCE));
    control.set_read_timeout(None);
    control.set_write_timeout(None);
    control.set_read_deadline(None);
    control.set_write_deadline(None);
    control.resume();
}
