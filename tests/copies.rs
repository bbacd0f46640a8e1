//! How often the bytes of a message are copied on their way through a server.
//!
//! The copies that the compiler does not make by itself go through this file's `memcpy`, which counts those of the
//! threads that ask for it. Some of what it counts are moves of futures, far less than a message.

mod support;

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use duopoll::relay::Relay;
use duopoll::{Connection, Dialer, Reader, Slice};
use support::{Peer, Setup};

on_every_setup!(
    an_echo_is_not_copied,
    a_message_that_is_taken_out_is_copied_once_at_most,
    what_is_written_is_copied_once,
    what_is_pushed_is_not_copied,
    what_is_relayed_is_not_copied,
);

static COPIED_BYTES: AtomicU64 = AtomicU64::new(0);
/// A test has begun: what starts a program that is linked statically copies before there are thread-locals.
static BEGUN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    if BEGUN.load(Ordering::Relaxed) && COUNTED.try_with(Cell::get).unwrap_or(false) {
        COPIED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    // SAFETY: promised by the caller; memmove(3) asks for less.
    unsafe { libc::memmove(to, from, bytes) }
}

const MESSAGE_BYTES: usize = 64 << 10;
const MESSAGES: usize = 32;

fn message() -> Vec<u8> {
    (0..MESSAGE_BYTES).map(|n| (n % 251) as u8).collect()
}

/// One test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    BEGUN.store(true, Ordering::Relaxed);
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a message is copied by a server with this handler, which has one of them in each call.
fn copies(
    setup: Setup,
    handler: impl AsyncFn(&mut Connection) -> io::Result<()> + Clone + Send + Sync + 'static,
) -> f64 {
    let _alone = alone();
    let server = setup.serve(async move |connection: &mut Connection| {
        COUNTED.set(true);
        handler(connection).await
    });
    let mut peer = Peer::connect(server.local_addr());
    let message = message();
    // The first ones find out how large messages are.
    for _ in 0..MESSAGES {
        assert_eq!(peer.round_trip(&message), message);
    }
    let before = COPIED_BYTES.load(Ordering::Relaxed);
    for _ in 0..MESSAGES {
        assert_eq!(peer.round_trip(&message), message);
    }
    let copied = COPIED_BYTES.load(Ordering::Relaxed) - before;
    copied as f64 / (MESSAGES * MESSAGE_BYTES) as f64
}

/// Moves of futures, and what was received of a message in a few bytes.
const FEW: f64 = 0.1;

async fn whole(reader: &mut Reader) -> io::Result<Slice> {
    reader.next(MESSAGE_BYTES).await
}

fn an_echo_is_not_copied(setup: Setup) {
    let copies = copies(setup, support::echo);
    assert!(copies < FEW, "{copies}");
}

fn a_message_that_is_taken_out_is_copied_once_at_most(setup: Setup) {
    let copies = copies(setup, async |connection: &mut Connection| {
        let (reader, writer) = connection.split();
        writer.push(whole(reader).await?);
        writer.flush().await
    });
    assert!(copies < 1.0 + FEW, "{copies}");
}

fn what_is_written_is_copied_once(setup: Setup) {
    let copies = copies(setup, async |connection: &mut Connection| {
        let (reader, writer) = connection.split();
        reader.fill(MESSAGE_BYTES).await?;
        reader.skip(MESSAGE_BYTES).await?;
        writer.write(&message())?;
        writer.flush().await
    });
    assert!((1.0..1.0 + FEW).contains(&copies), "{copies}");
}

fn what_is_pushed_is_not_copied(setup: Setup) {
    let copies = copies(setup, async |connection: &mut Connection| {
        let (reader, writer) = connection.split();
        reader.skip(MESSAGE_BYTES).await?;
        writer.push(message());
        writer.flush().await
    });
    assert!(copies < FEW, "{copies}");
}

fn what_is_relayed_is_not_copied(setup: Setup) {
    let upstream = setup.serve_echo();
    let address = upstream.local_addr().clone();
    let _alone = alone();
    let service = setup.builder().on_connection(async move |client: Connection| {
        COUNTED.set(true);
        let upstream = Dialer::new().dial_addr(address.clone()).await?;
        Relay::new().splice(false).run(client, upstream).await;
        Ok(())
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let message = message();
    let before = COPIED_BYTES.load(Ordering::Relaxed);
    for _ in 0..MESSAGES {
        assert_eq!(peer.round_trip(&message), message);
    }
    let copied = COPIED_BYTES.load(Ordering::Relaxed) - before;
    // Each passes twice.
    let copies = copied as f64 / (2 * MESSAGES * MESSAGE_BYTES) as f64;
    assert!(copies < FEW, "{copies}");
}
