//! What belongs to a user is never called, cloned or dropped under the lock: spies try it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Limits, Moved, Phase, Reader, Reason, Shared, Writer, pair};
use crate::buffer::BufferSeam;
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::mailbox::Mailbox;
use crate::poll::{Notify, Pending};
use crate::timer::Tick;
use crate::token::Token;

#[derive(Debug)]
struct NoTime;

impl Clock for NoTime {
    fn now(&self) -> Tick {
        100
    }

    fn tick_of(&self, _: Instant) -> Tick {
        100
    }
}

#[derive(Debug)]
pub(super) struct NoBell;

impl Notify for NoBell {
    fn notify(&self) {}
}

/// Of one connection: whatever is done to it looks whether the lock is free, and counts.
#[derive(Clone, Default)]
struct Spy(Arc<(OnceLock<Arc<Shared>>, AtomicU32, AtomicU32)>);

impl Spy {
    fn looks(&self) {
        let (shared, seen, locked) = &*self.0;
        let free = shared.get().expect("there is a connection").is_free();
        seen.fetch_add(1, Relaxed);
        locked.fetch_add(u32::from(!free), Relaxed);
    }

    fn waker(&self) -> Waker {
        unsafe fn of<'a>(data: *const ()) -> &'a Spy {
            // SAFETY: made by `into_raw`, and not dropped yet.
            unsafe { &*data.cast::<Spy>() }
        }
        static VTABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                // SAFETY: as above.
                let spy = unsafe { of(data) };
                spy.looks();
                RawWaker::new(Box::into_raw(Box::new(spy.clone())).cast(), &VTABLE)
            },
            |data| {
                // SAFETY: as above, and the last use of it.
                let spy = unsafe { Box::from_raw(data.cast_mut().cast::<Spy>()) };
                spy.looks();
            },
            // SAFETY: as above.
            |data| unsafe { of(data) }.looks(),
            |data| {
                // SAFETY: as above, and the last use of it.
                let spy = unsafe { Box::from_raw(data.cast_mut().cast::<Spy>()) };
                spy.looks();
            },
        );
        let data = Box::into_raw(Box::new(self.clone())).cast::<()>();
        // SAFETY: the functions above keep the contract; a spy may be used on any thread.
        unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
    }

    fn bytes(&self) -> Bytes {
        struct Owner(Spy);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &[7; 100]
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                self.0.looks();
            }
        }
        Bytes::from_owner(Owner(self.clone()))
    }
}

/// A connection on which everything of a user's that there can be is under way.
struct Busy {
    spy: Spy,
    shared: Arc<Shared>,
    reader: Option<Reader>,
    writer: Option<Writer>,
    sending: Chain,
}

impl Busy {
    fn new(connecting: bool) -> Busy {
        let mailbox = Arc::new(Mailbox::new(Arc::new(NoBell), Arc::new(NoTime)));
        let limits = Limits {
            read_timeout: Some(Duration::ZERO),
            write_timeout: Some(Duration::ZERO),
            output_high_bytes: 10,
            ..Limits::default()
        };
        let (shared, mut reader, mut writer) =
            pair(None, mailbox, Token::new(0, 0), 0, &limits, connecting);
        let spy = Spy::default();
        assert!(spy.0.0.set(shared.clone()).is_ok(), "is new");
        writer.push(spy.bytes());
        // Twice each, so that a waker takes another's place.
        for _ in 0..2 {
            let waker = spy.waker();
            let cx = &mut Context::from_waker(&waker);
            assert!(reader.poll_fill(cx, 1000).is_pending());
            assert!(writer.poll_flush(cx).is_pending());
        }
        let closer = spy.clone();
        writer.control().on_close(move || closer.looks());
        Busy { spy, shared, reader: Some(reader), writer: Some(writer), sending: Chain::new() }
    }

    fn delivers(&mut self) -> Moved {
        let bytes = self.spy.bytes();
        self.shared.deliver(|inbox, _| {
            let mut buffer = LinkBuffer::new();
            buffer.push(bytes);
            buffer.flush();
            buffer.drain_into(inbox);
        })
    }
}

type End = (&'static str, fn(&mut Busy));

const ENDS: [End; 17] = [
    ("close", |busy| busy.reader.as_ref().expect("there").close()),
    ("close with what is staged", |busy| {
        let spy = busy.spy.bytes();
        let writer = busy.writer.as_mut().expect("there");
        writer.push(spy);
        writer.close();
    }),
    ("abort", |busy| busy.reader.as_ref().expect("there").control().abort()),
    ("drop the reader", |busy| drop(busy.reader.take())),
    ("drop the writer", |busy| drop(busy.writer.take())),
    ("drop both", |busy| drop((busy.reader.take(), busy.writer.take()))),
    ("end the waits", |busy| {
        busy.reader.as_mut().expect("there").end_wait();
        busy.writer.as_mut().expect("there").end_wait();
    }),
    ("the peer ends", |busy| busy.shared.end_input()),
    ("it breaks", |busy| busy.shared.fail(libc::ECONNRESET)),
    ("sending breaks", |busy| busy.shared.fail_sending(&io::Error::from_raw_os_error(libc::EPIPE))),
    ("it connects", |busy| busy.shared.connected()),
    ("all is sent", |busy| {
        if busy.shared.take_output(&mut busy.sending).is_ok() {
            let n = busy.sending.len();
            busy.sending.advance(n);
            crate::connection::wake(busy.shared.sent(n, &mut busy.sending, || 100).waker);
        }
    }),
    ("bytes come", |busy| {
        for _ in 0..11 {
            let waker = busy.delivers().waker;
            crate::connection::wake(waker);
        }
    }),
    ("the waits are over time", |busy| {
        for _ in 0..3 {
            let now = 200;
            let pending = Pending { bytes: 0, ended: false, room: false };
            if let super::Expired::Looked { effects, .. } =
                busy.shared.expire(now, Some(pending), true)
            {
                effects.perform();
            }
        }
    }),
    ("the server drains", |busy| busy.shared.drain(0)),
    ("the poller winds up", |busy| {
        busy.shared.wind_up();
    }),
    ("it is deregistered", |busy| {
        for reason in [Reason::Idle, Reason::Forced] {
            if let Some(end) = busy.shared.deregister(reason, false) {
                end.effects.perform();
            }
        }
    }),
];

#[test]
fn nothing_of_a_users_is_touched_under_the_lock() {
    for connecting in [false, true] {
        for (first, make_first) in ENDS {
            // Miri is slow.
            for (second, make_second) in ENDS.into_iter().step_by(if cfg!(miri) { 6 } else { 1 }) {
                let mut busy = Busy::new(connecting);
                make_first(&mut busy);
                if busy.reader.is_some() && busy.writer.is_some() {
                    make_second(&mut busy);
                }
                let Busy { spy, shared, reader, writer, sending } = busy;
                if !matches!(shared.phase(), Phase::Released { .. }) {
                    shared.released();
                }
                drop((reader, writer, sending));
                let (_, seen, locked) = &*spy.0;
                let what = format!("{first}, then {second}, connecting: {connecting}");
                assert!(seen.load(Relaxed) >= 6, "the spies saw nothing: {what}");
                assert_eq!(locked.load(Relaxed), 0, "touched under the lock: {what}");
            }
        }
    }
}
