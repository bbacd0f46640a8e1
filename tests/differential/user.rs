//! The user: does what it is told, one read and one write at a time, and tells what has come of it.

use std::borrow::BorrowMut;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use duopoll::{Control, LinkBuffer, Reader, Slice, Writer};

use crate::script::{ControlOp, Leave, Moment, Outcome, ReadOp, WriteOp, peers_bytes, users_bytes};

/// What the user is told, and where it answers.
pub(crate) struct Desk {
    pub(crate) seed: u64,
    pub(crate) reads: Orders<ReadOrder>,
    pub(crate) writes: Orders<(u64, WriteOp)>,
    pub(crate) read_done: Sender<Outcome>,
    pub(crate) write_done: Sender<Outcome>,
    /// The names of callbacks, as they are called.
    pub(crate) calls: Sender<&'static str>,
    pub(crate) control: Mutex<Option<Control>>,
    /// How often the user was told of the end.
    pub(crate) ends: Arc<AtomicU64>,
    /// Orders that were taken and begun.
    begun: (Mutex<usize>, Condvar),
    /// Slices that were read, and where; they must stay as they are.
    kept: Mutex<VecDeque<(u64, Slice)>>,
}

pub(crate) enum ReadOrder {
    Read(u64, ReadOp),
    Leave(Leave),
}

/// Slices that are kept while others are read.
const KEPT_MAX: usize = 8;

impl Desk {
    pub(crate) fn new(
        seed: u64,
        read_done: Sender<Outcome>,
        write_done: Sender<Outcome>,
        calls: Sender<&'static str>,
    ) -> Desk {
        Desk {
            seed,
            reads: Orders::default(),
            writes: Orders::default(),
            read_done,
            write_done,
            calls,
            control: Mutex::default(),
            ends: Arc::default(),
            begun: Default::default(),
            kept: Mutex::default(),
        }
    }

    /// There is a connection.
    pub(crate) fn connected(&self, control: Control) {
        let ends = self.ends.clone();
        control.on_close(move || {
            ends.fetch_add(1, Ordering::Relaxed);
        });
        *lock(&self.control) = Some(control);
    }

    pub(crate) fn control(&self) -> Control {
        let control = self.control.lock().expect("no panic");
        control.clone().expect("a connection")
    }

    /// Does what is ordered until the order is to leave. What is under way then is dropped.
    pub(crate) async fn follow(
        &self,
        reader: impl BorrowMut<Reader>,
        writer: impl BorrowMut<Writer>,
    ) -> Leave {
        let mut reading = pin!(self.read(reader));
        let mut writing = pin!(self.write(writer));
        poll_fn(|cx| {
            // It never ends: the reader is told to leave.
            let _ = writing.as_mut().poll(cx);
            let polled = reading.as_mut().poll(cx);
            *lock(&self.begun.0) = self.reads.taken() + self.writes.taken();
            self.begun.1.notify_all();
            polled
        })
        .await
    }

    /// Waits until every order that was given has been begun. Fails if it takes too long.
    pub(crate) fn wait_until_begun(&self, patience: Duration) -> bool {
        let given = self.reads.given() + self.writes.given();
        let begun = lock(&self.begun.0);
        let waited = self.begun.1.wait_timeout_while(begun, patience, |begun| *begun < given);
        !waited.expect("no panic").1.timed_out()
    }

    async fn read(&self, reader: impl BorrowMut<Reader>) -> Leave {
        let mut reader = Some(reader);
        loop {
            let (at, op) = match self.reads.take().await {
                ReadOrder::Read(at, op) => (at, op),
                ReadOrder::Leave(leave) => return leave,
            };
            let outcome = match (&op, &mut reader) {
                (ReadOp::Drop, _) => {
                    reader = None;
                    Outcome::Done
                }
                (_, Some(reader)) => self.perform_read(reader.borrow_mut(), at, &op).await,
                (_, None) => Outcome::Wrong("the half is gone".into()),
            };
            let _ = self.read_done.send(outcome);
        }
    }

    async fn write(&self, writer: impl BorrowMut<Writer>) {
        let mut writer = Some(writer);
        loop {
            let (at, op) = self.writes.take().await;
            let outcome = match (&op, &mut writer) {
                (WriteOp::Drop, _) => {
                    writer = None;
                    Outcome::Done
                }
                (_, Some(writer)) => self.perform_write(writer.borrow_mut(), at, &op).await,
                (_, None) => Outcome::Wrong("the half is gone".into()),
            };
            let _ = self.write_done.send(outcome);
        }
    }

    async fn perform_read(&self, reader: &mut Reader, at: u64, op: &ReadOp) -> Outcome {
        match op {
            ReadOp::Abandon(polls, op) => {
                match polled(pin!(self.read_once(reader, at, op)), *polls).await {
                    Some(outcome) => outcome,
                    None => Outcome::Dropped,
                }
            }
            ReadOp::Insist(polls, op) => {
                for _ in 0..*polls {
                    if let Some(outcome) = polled(pin!(self.read_once(reader, at, op)), 1).await {
                        return outcome;
                    }
                    yield_now().await;
                }
                self.read_once(reader, at, op).await
            }
            op => self.read_once(reader, at, op).await,
        }
    }

    async fn read_once(&self, reader: &mut Reader, at: u64, op: &ReadOp) -> Outcome {
        self.try_read(reader, at, op).await.unwrap_or_else(|error| failed(&error))
    }

    async fn try_read(&self, reader: &mut Reader, at: u64, op: &ReadOp) -> io::Result<Outcome> {
        Ok(match *op {
            ReadOp::Fill(n) => {
                reader.fill(n).await?;
                Outcome::Done
            }
            ReadOp::Next(n) => self.keep(at, reader.next(n).await?),
            ReadOp::Peek(n) => self.check(at, reader.peek(n).await?),
            ReadOp::Skip(n) => {
                reader.skip(n).await?;
                Outcome::Done
            }
            ReadOp::SplitTo(n) => {
                let mut split = reader.split_to(n).await?;
                let bytes = split.read_bytes(n)?;
                match split.is_empty() {
                    true => self.check(at, &bytes),
                    false => Outcome::Wrong("more than was asked for".into()),
                }
            }
            ReadOp::U8 => self.check(at, &[reader.read_u8().await?]),
            ReadOp::U32 => self.check(at, &reader.read_u32().await?.to_be_bytes()),
            ReadOp::Until { delimiter, max_bytes } => {
                self.keep(at, reader.until(delimiter, max_bytes).await?)
            }
            ReadOp::Read(room) => {
                let mut target = vec![0; room];
                let n = reader.read(&mut target).await?;
                self.check(at, &target[..n])
            }
            ReadOp::ReadAll(n) => {
                let mut target = vec![0; n];
                let mut filled = 0;
                while filled < n {
                    match reader.read(&mut target[filled..]).await? {
                        0 => break,
                        n => filled += n,
                    }
                }
                self.check(at, &target[..filled])
            }
            ReadOp::More => Outcome::Value(u64::from(reader.more().await?)),
            ReadOp::Buffered => Outcome::Value(reader.buffer_mut().len() as u64),
            ReadOp::Control(op) => {
                control(&reader.control(), op);
                Outcome::Done
            }
            ReadOp::Abandon(..) | ReadOp::Insist(..) | ReadOp::Drop => {
                Outcome::Wrong("not to be nested".into())
            }
        })
    }

    async fn perform_write(&self, writer: &mut Writer, at: u64, op: &WriteOp) -> Outcome {
        let flushed = match *op {
            WriteOp::Flush => writer.flush().await,
            WriteOp::Drain => writer.drain().await,
            WriteOp::AbandonFlush(polls) => match polled(pin!(writer.flush()), polls).await {
                Some(result) => result,
                None => return Outcome::Dropped,
            },
            WriteOp::AbandonDrain(polls) => match polled(pin!(writer.drain()), polls).await {
                Some(result) => result,
                None => return Outcome::Dropped,
            },
            WriteOp::Finish => {
                writer.finish();
                return Outcome::Done;
            }
            WriteOp::Unsent => return Outcome::Value(writer.unsent_len() as u64),
            _ => {
                return match self.stage(writer, at, op) {
                    Ok(()) => Outcome::Value(writer.staged_len() as u64),
                    Err(error) => failed(&error),
                };
            }
        };
        match flushed {
            Ok(()) => Outcome::Done,
            Err(error) => failed(&error),
        }
    }

    fn stage(&self, writer: &mut Writer, at: u64, op: &WriteOp) -> io::Result<()> {
        let mut pattern = users_bytes(self.seed, at);
        let mut bytes = |n| {
            let mut bytes = Vec::with_capacity(n);
            while bytes.len() < n {
                bytes.extend_from_slice(pattern.next(n - bytes.len()));
            }
            bytes
        };
        match *op {
            WriteOp::Write(n) => writer.write(&bytes(n))?,
            WriteOp::PushOwned(n) => writer.push(bytes(n)),
            WriteOp::Append(n) => {
                let mut buffer = LinkBuffer::new();
                let all = bytes(n);
                let (front, back) = all.split_at(n / 2);
                buffer.write(front)?;
                buffer.flush();
                buffer.push(back.to_vec());
                writer.append(&mut buffer);
            }
            WriteOp::Commit(room, n) => {
                let target = writer.reserve(room)?;
                for (target, byte) in target.iter_mut().zip(bytes(n)) {
                    target.write(byte);
                }
                // SAFETY: n bytes were written, and n is not more than the room.
                unsafe { writer.commit(n)? };
            }
            WriteOp::Push(n) => {
                let mut left = n;
                while left > 0 {
                    let piece: &'static [u8] = pattern.next(left);
                    writer.push(piece);
                    left -= piece.len();
                }
            }
            _ => return Err(io::Error::other("not a way to stage")),
        }
        Ok(())
    }

    fn check(&self, at: u64, bytes: &[u8]) -> Outcome {
        if peers_bytes(self.seed, at).matches(bytes) {
            Outcome::Bytes(at, bytes.len())
        } else {
            Outcome::Wrong(format!("{} bytes at {at}", bytes.len()))
        }
    }

    /// Checks a slice, and keeps it for a while, with the memory that others may share.
    fn keep(&self, at: u64, slice: Slice) -> Outcome {
        let outcome = self.check(at, &slice);
        let mut kept = lock(&self.kept);
        kept.push_back((at, slice));
        let oldest = if kept.len() > KEPT_MAX { kept.pop_front() } else { None };
        match oldest {
            Some((at, slice)) if self.check(at, &slice) != Outcome::Bytes(at, slice.len()) => {
                Outcome::Wrong(format!("a slice at {at} has changed"))
            }
            _ => outcome,
        }
    }

    /// Lets go of the slices that are kept; false if one has changed.
    pub(crate) fn release_kept(&self) -> bool {
        let kept = std::mem::take(&mut *lock(&self.kept));
        kept.iter().all(|(at, slice)| self.check(*at, slice) == Outcome::Bytes(*at, slice.len()))
    }
}

pub(crate) fn control(control: &Control, op: ControlOp) {
    let duration = |ms: Option<u64>| ms.map(Duration::from_millis);
    let instant = |moment: Option<Moment>| {
        moment.map(|moment| match moment {
            Moment::Past => Instant::now() - Duration::from_secs(1),
            Moment::In(ms) => Instant::now() + Duration::from_millis(ms),
        })
    };
    match op {
        ControlOp::ReadTimeout(ms) => control.set_read_timeout(duration(ms)),
        ControlOp::WriteTimeout(ms) => control.set_write_timeout(duration(ms)),
        ControlOp::IdleTimeout(ms) => control.set_idle_timeout(duration(ms)),
        ControlOp::ReadDeadline(moment) => control.set_read_deadline(instant(moment)),
        ControlOp::WriteDeadline(moment) => control.set_write_deadline(instant(moment)),
        ControlOp::Pause => control.pause(),
        ControlOp::Resume => control.resume(),
        ControlOp::Close => control.close(),
        ControlOp::Abort => control.abort(),
    }
}

pub(crate) fn failed(error: &io::Error) -> Outcome {
    Outcome::Failed(error.kind(), error.raw_os_error())
}

/// Polls a future so often, with turns of the executor in between.
async fn polled<F: Future>(mut future: Pin<&mut F>, polls: u32) -> Option<F::Output> {
    for poll in 0..polls {
        if poll > 0 {
            yield_now().await;
        }
        let once = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
        if let Poll::Ready(output) = once.await {
            return Some(output);
        }
    }
    None
}

async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Orders that wait to be taken.
pub(crate) struct Orders<T> {
    state: Mutex<OrdersState<T>>,
}

struct OrdersState<T> {
    waiting: VecDeque<T>,
    taken: usize,
    waker: Option<Waker>,
}

impl<T> Default for Orders<T> {
    fn default() -> Orders<T> {
        let state = OrdersState { waiting: VecDeque::new(), taken: 0, waker: None };
        Orders { state: Mutex::new(state) }
    }
}

impl<T> Orders<T> {
    pub(crate) fn give(&self, order: T) {
        let waker = {
            let mut state = lock(&self.state);
            state.waiting.push_back(order);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn take(&self) -> T {
        poll_fn(|cx| {
            let mut state = lock(&self.state);
            match state.waiting.pop_front() {
                Some(order) => {
                    state.taken += 1;
                    Poll::Ready(order)
                }
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn taken(&self) -> usize {
        lock(&self.state).taken
    }

    fn given(&self) -> usize {
        let state = lock(&self.state);
        state.taken + state.waiting.len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}
