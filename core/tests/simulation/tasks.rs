//! The user's tasks: scripts drawn from the seed, which know what every call must give.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use duopoll_core::{Clock, Control, LinkBuffer, Pool, Reader, Slice, Token, Writer, timers};

use crate::clock::{Alarms, Micros, SimClock, Sleeps};
use crate::link::{CLOSE_PATIENCE, Goal, Link, Wait};
use crate::rng::Rng;
use duopoll_core::seam::WriterSeam;

/// Times in a row that a task takes up a wait that has timed out.
const RETRIES: usize = 5;

/// What a task knows of its world.
pub(crate) struct Env {
    pub(crate) task: usize,
    pub(crate) rng: Rng,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) alarms: Rc<Alarms>,
    /// None where there are no timers.
    pub(crate) sleeps: Option<Rc<Sleeps>>,
    /// The driver was told to drain.
    pub(crate) draining: Rc<Cell<bool>>,
}

/// When a task drops the future of a call.
#[derive(Clone, Copy, Debug)]
enum Patience {
    Forever,
    Polls(u64),
    Until(Micros),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Reading,
    Writing,
}

impl Env {
    pub(crate) fn now(&self) -> Micros {
        self.clock.micros()
    }

    fn patience(&mut self) -> Patience {
        match self.rng.below(5) {
            0 => Patience::Polls(self.rng.within(1, 3)),
            1 => Patience::Until(self.now() + self.rng.span()),
            _ => Patience::Forever,
        }
    }

    pub(crate) async fn sleep(&mut self) {
        /// A timer that is taken back with the future.
        struct Timer<'a>(&'a Env, Option<(u64, Token)>);
        impl Timer<'_> {
            fn known(&self) -> Option<Token> {
                let epoch = self.0.sleeps.as_ref()?.epoch.get();
                self.1.filter(|(since, _)| *since == epoch).map(|(_, token)| token)
            }
        }
        impl Drop for Timer<'_> {
            fn drop(&mut self) {
                if let Some(timer) = self.known() {
                    timers::forget(timer);
                }
                if let Some(sleeps) = &self.0.sleeps {
                    sleeps.set(self.0.task, None);
                }
            }
        }
        let until = self.now() + self.rng.span();
        let by_timer = self.rng.one_in(2);
        let mut timer = Timer(self, None);
        poll_fn(|cx| {
            let deadline = self.clock.tick_of(self.clock.instant(until));
            let sleeps = self.sleeps.as_ref().filter(|sleeps| by_timer && !sleeps.over.get());
            if let Some(sleeps) = sleeps {
                let now = Clock::now(&*self.clock);
                if now >= deadline {
                    return Poll::Ready(());
                }
                note!("{} task {}: sleeps until {until}", self.now(), self.task);
                sleeps.set(self.task, Some(until));
                let token = timers::set(timer.known(), deadline, now, cx.waker());
                timer.1 = Some((sleeps.epoch.get(), token));
                return Poll::Pending;
            }
            if self.now() >= until {
                return Poll::Ready(());
            }
            self.alarms.set(until, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Awaits a call, for as long as the patience lasts, and has the link know what it waits for.
    pub(crate) async fn call<T>(
        &mut self,
        link: &Link,
        half: Half,
        goal: Goal,
        call: impl Future<Output = T>,
    ) -> (Option<T>, Wait) {
        /// The wait is over, also if the task itself is dropped.
        struct Waiting<'a>(&'a Link, Half, usize, Arc<SimClock>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state();
                match self.1 {
                    Half::Reading => state.reading.end(self.2),
                    Half::Writing => state.writing.end(self.2),
                }
                state.count(self.3.micros());
            }
        }

        let patience = self.patience();
        let clock = self.clock.clone();
        let waiting = Waiting(link, half, self.task, clock);
        let mut call = pin!(call);
        let mut polls = 0;
        note!("{} link {}: {half:?} {goal:?}, {patience:?}", self.now(), link.id);
        let output = poll_fn(|cx| {
            let now = self.now();
            {
                let mut state = link.state();
                let seen = state.delivered;
                match half {
                    Half::Reading => state.reading.begin(self.task, goal, now, seen),
                    Half::Writing => state.writing.begin(self.task, goal, now, seen),
                };
                state.count(now);
            }
            if let Poll::Ready(output) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            polls += 1;
            match patience {
                Patience::Polls(most) if polls >= most => return Poll::Ready(None),
                Patience::Until(at) if now >= at => return Poll::Ready(None),
                Patience::Until(at) => self.alarms.set(at, cx.waker().clone()),
                _ => {}
            }
            Poll::Pending
        })
        .await;
        let wait = {
            let state = link.state();
            match half {
                Half::Reading => state.reading.wait_of(self.task),
                Half::Writing => state.writing.wait_of(self.task),
            }
        };
        drop(waiting);
        (output, wait.expect("begun by the first poll"))
    }
}

/// The reading half, and how far it has read.
pub(crate) struct ReadSide {
    pub(crate) reader: Reader,
    pub(crate) link: Rc<Link>,
    pub(crate) clock: Arc<SimClock>,
}

#[derive(Clone, Copy, Debug)]
enum ReadOp {
    Next,
    Peek,
    Skip,
    Until(u8),
    Read,
    Fill,
    More,
    SplitTo,
    Number,
    Request,
}

const READ_OPS: [ReadOp; 9] = [
    ReadOp::Next,
    ReadOp::Peek,
    ReadOp::Skip,
    ReadOp::Read,
    ReadOp::Fill,
    ReadOp::More,
    ReadOp::SplitTo,
    ReadOp::Number,
    ReadOp::Request,
];

/// What a call gave.
enum Got {
    /// These bytes, which are taken out.
    Bytes(Vec<u8>),
    Peeked(Vec<u8>),
    Skipped(usize),
    Filled,
    /// The end of the stream, or of requests.
    End,
}

impl ReadOp {
    async fn call(self, reader: &mut Reader, n: usize) -> io::Result<Got> {
        Ok(match self {
            ReadOp::Next => Got::Bytes(reader.next(n).await?.to_vec()),
            ReadOp::Peek => Got::Peeked(reader.peek(n).await?.to_vec()),
            ReadOp::Skip => {
                reader.skip(n).await?;
                Got::Skipped(n)
            }
            ReadOp::Until(delimiter) => Got::Bytes(reader.until(delimiter, n).await?.to_vec()),
            ReadOp::Read => {
                let mut bytes = vec![0; n];
                let n = reader.read(&mut bytes).await?;
                bytes.truncate(n);
                if n == 0 { Got::End } else { Got::Bytes(bytes) }
            }
            ReadOp::Fill => {
                reader.fill(n).await?;
                assert!(reader.buffer_mut().len() >= n);
                Got::Filled
            }
            ReadOp::More => {
                let had = reader.buffer_mut().len();
                let more = reader.more().await?;
                assert_eq!(more, reader.buffer_mut().len() > had);
                if more { Got::Filled } else { Got::End }
            }
            ReadOp::SplitTo => Got::Bytes(reader.split_to(n).await?.read_bytes(n)?),
            ReadOp::Number if n == 4 => Got::Bytes(reader.read_u32().await?.to_be_bytes().to_vec()),
            ReadOp::Number => Got::Bytes(vec![reader.read_u8().await?]),
            ReadOp::Request => {
                struct Request<'a>(&'a mut Reader);
                impl Drop for Request<'_> {
                    fn drop(&mut self) {
                        self.0.end_wait();
                    }
                }
                let seen = reader.buffer_mut().len();
                let request = Request(reader);
                let more = poll_fn(|cx| request.0.poll_request(cx, seen)).await?;
                if more { Got::Filled } else { Got::End }
            }
        })
    }
}

impl ReadSide {
    fn at(&self) -> u64 {
        self.link.state().read
    }

    fn take(&mut self, bytes: &[u8]) {
        let at = self.at();
        self.link.incoming.check(at, bytes, "reading");
        self.link.state().read = at + bytes.len() as u64;
    }

    /// One call, or something else. False when there is nothing more to read.
    async fn step(&mut self, env: &mut Env) -> bool {
        match env.rng.below(12) {
            0 => env.sleep().await,
            1 => change_limits(&self.link, &self.reader.control(), env),
            2 | 3 => self.read_buffer(env),
            4 => {
                let delimiter = env.rng.next() as u8;
                return self.read(env, ReadOp::Until(delimiter)).await.is_ok();
            }
            _ => {
                let op = env.rng.pick(&READ_OPS);
                return self.read(env, op).await.is_ok();
            }
        }
        true
    }

    /// Takes some of what was handed over.
    fn read_buffer(&mut self, env: &mut Env) {
        let buffer = self.reader.buffer_mut();
        let n = env.rng.below(buffer.len() as u64 + 1) as usize;
        let bytes = match env.rng.below(3) {
            0 => buffer.next(n).expect("buffered").to_vec(),
            1 => {
                let mut bytes = vec![0; n];
                assert_eq!(buffer.copy_to(&mut bytes), n);
                bytes
            }
            _ => {
                let peeked = buffer.peek(n).expect("buffered").to_vec();
                buffer.skip(n).expect("buffered");
                peeked
            }
        };
        self.take(&bytes);
    }

    /// One call. An error if nothing more will come.
    async fn read(&mut self, env: &mut Env, op: ReadOp) -> Result<(), ()> {
        let (at, buffered) = (self.at(), self.reader.buffer_mut().len());
        let n = match op {
            ReadOp::Number => env.rng.pick(&[1, 4]),
            _ => env.rng.size(),
        };
        let wanted = at
            + match op {
                ReadOp::Read => 1,
                ReadOp::More | ReadOp::Request => buffered as u64 + 1,
                ReadOp::Until(delimiter) => {
                    let bytes = self.link.incoming.bytes(at, n);
                    bytes.iter().position(|byte| *byte == delimiter).map_or(n, |at| at + 1) as u64
                }
                _ => n as u64,
            };
        let goal = match op {
            ReadOp::Request => Goal::Request(wanted),
            ReadOp::Until(_) => Goal::Delimiter(wanted),
            _ => Goal::Bytes(wanted),
        };
        note!("{} link {}: {op:?} {n}", env.now(), self.link.id);
        let call = op.call(&mut self.reader, n);
        if matches!(op, ReadOp::Request) {
            self.link.state().within = false;
        }
        let (got, wait) = env.call(&self.link, Half::Reading, goal, call).await;
        if matches!(op, ReadOp::Request) {
            self.link.state().within = got.is_some();
        }
        let have = at + self.reader.buffer_mut().len() as u64;
        let result = match got {
            None => Ok(()),
            Some(Ok(Got::Bytes(bytes))) => {
                if matches!(op, ReadOp::Until(_)) {
                    assert_eq!(at + bytes.len() as u64, wanted, "until stopped elsewhere");
                }
                self.take(&bytes);
                Ok(())
            }
            Some(Ok(Got::Peeked(bytes))) => {
                self.link.incoming.check(at, &bytes, "peeking");
                Ok(())
            }
            Some(Ok(Got::Skipped(n))) => {
                self.link.state().read += n as u64;
                Ok(())
            }
            Some(Ok(Got::Filled)) => Ok(()),
            Some(Ok(Got::End)) => {
                let state = self.link.state();
                let due = have == at && state.delivered >= state.due;
                let drained = matches!(op, ReadOp::Request) && env.draining.get() && due;
                assert!(state.ended || drained, "an end that did not come: {state:?}");
                let all = have == state.delivered || state.closed.is_some() || drained;
                assert!(all, "bytes were lost at the end: {have}, {state:?}");
                Err(())
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                assert!(matches!(op, ReadOp::Until(_)));
                assert_eq!(wanted, at + n as u64);
                self.read_buffer(env);
                Ok(())
            }
            Some(Err(error)) => {
                note!("{} link {}: {error:?}", env.now(), self.link.id);
                self.link.check_read_error(&error, have, Some(wanted), &wait, env.now());
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                if timed_out && error.raw_os_error().is_none() { Ok(()) } else { Err(()) }
            }
        };
        assert_eq!(self.reader.consumed(), self.at());
        if result.is_err() {
            // What had come before the end is still there.
            let n = self.reader.buffer_mut().len();
            let rest = self.reader.buffer_mut().next(n).expect("buffered").to_vec();
            self.take(&rest);
        }
        result
    }

    async fn read_to_end(&mut self, env: &mut Env) {
        let mut retries = RETRIES;
        while retries > 0 {
            let at = self.at();
            if self.read(env, ReadOp::Read).await.is_err() {
                return;
            }
            retries = if self.at() > at { RETRIES } else { retries - 1 };
        }
    }
}

impl Drop for ReadSide {
    fn drop(&mut self) {
        self.link.drop_half(true, self.clock.micros());
    }
}

/// The writing half.
pub(crate) struct WriteSide {
    pub(crate) writer: Writer,
    pub(crate) link: Rc<Link>,
    pub(crate) clock: Arc<SimClock>,
}

impl WriteSide {
    async fn step(&mut self, env: &mut Env) -> bool {
        match env.rng.below(12) {
            0 => env.sleep().await,
            1 => change_limits(&self.link, &self.writer.control(), env),
            2..=6 => self.stage(env),
            7 => return self.drain(env).await,
            8 if env.rng.one_in(4) => return self.connected(env).await,
            8 if env.rng.one_in(10) => self.finish(),
            _ => return self.flush(env).await,
        }
        true
    }

    fn stage(&mut self, env: &mut Env) {
        let n = env.rng.size();
        let at = {
            let mut state = self.link.state();
            state.staged += n as u64;
            state.staged - n as u64
        };
        let bytes = self.link.outgoing.bytes(at, n);
        match env.rng.below(6) {
            0 => self.writer.push(bytes),
            1 => self.writer.push(Slice::copy_from(&bytes, Pool::global()).expect("memory")),
            2 => {
                let room = self.writer.reserve(n + 3).expect("memory");
                for (to, from) in room.iter_mut().zip(&bytes) {
                    to.write(*from);
                }
                // SAFETY: the first n bytes were written.
                unsafe { self.writer.commit(n) }.expect("reserved");
            }
            3 => {
                let mut buffer = LinkBuffer::new();
                buffer.write(&bytes[..n / 2]).expect("memory");
                buffer.push(bytes[n / 2..].to_vec());
                self.writer.append(&mut buffer);
            }
            4 => {
                let buffer = self.writer.buffer_mut();
                buffer.write(&bytes).expect("memory");
                buffer.flush();
            }
            _ => self.writer.write(&bytes).expect("memory"),
        }
    }

    async fn flush(&mut self, env: &mut Env) -> bool {
        let high = self.link.limits.output_high_bytes as u64;
        let link = self.link.clone();
        self.hand_over(env, high, high / 2, Writing(&link, false)).await
    }

    async fn drain(&mut self, env: &mut Env) -> bool {
        let link = self.link.clone();
        self.hand_over(env, 0, 0, Writing(&link, true)).await
    }

    async fn hand_over(&mut self, env: &mut Env, high: u64, low: u64, how: Writing<'_>) -> bool {
        let open = self.link.output_is_open();
        {
            let mut state = self.link.state();
            if open {
                state.flushed = state.staged;
                state.count(env.now());
            }
            assert!(self.writer.staged_len() as u64 <= state.staged);
        }
        let staged = if open { 0 } else { self.writer.staged_len() };
        let writer = &mut self.writer;
        let call = async { if how.1 { writer.drain().await } else { writer.flush().await } };
        let (result, wait) = env.call(how.0, Half::Writing, Goal::Unsent(low), call).await;
        assert_eq!(self.writer.staged_len(), staged, "handed over if, and only if, it is open");
        match result {
            None => true,
            Some(Ok(())) => {
                let state = self.link.state();
                assert_eq!(staged, 0, "taken over by a connection that was closed");
                assert!(state.flushed - state.sent <= high, "above the watermark: {state:?}");
                assert!(!state.output_is_over(), "{state:?}");
                true
            }
            Some(Err(error)) => self.goes_on_after(&error, &wait, env),
        }
    }

    fn goes_on_after(&self, error: &io::Error, wait: &Wait, env: &Env) -> bool {
        note!("{} link {}: {error:?}", env.now(), self.link.id);
        self.link.check_write_error(error, wait, env.now());
        error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
    }

    async fn connected(&mut self, env: &mut Env) -> bool {
        struct Connecting<'a>(&'a mut Writer);
        impl Drop for Connecting<'_> {
            fn drop(&mut self) {
                self.0.end_wait();
            }
        }
        let connecting = Connecting(&mut self.writer);
        let call = poll_fn(|cx| connecting.0.poll_connected(cx));
        let (result, wait) = env.call(&self.link, Half::Writing, Goal::Connected, call).await;
        drop(connecting);
        match result {
            None => true,
            Some(Ok(())) => {
                let state = self.link.state();
                assert!(state.connect.is_none(), "not connected yet: {state:?}");
                true
            }
            Some(Err(error)) => self.goes_on_after(&error, &wait, env),
        }
    }

    fn finish(&mut self) {
        {
            let open = self.link.output_is_open();
            let mut state = self.link.state();
            state.finished = true;
            // What is staged goes along, or is dropped.
            if open {
                state.flushed = state.staged;
            }
            state.staged = state.flushed;
            state.count(self.clock.micros());
        }
        self.writer.finish();
        assert_eq!(self.writer.staged_len(), 0);
    }
}

/// The connection to write to, and whether to wait until all is sent.
struct Writing<'a>(&'a Link, bool);

impl Drop for WriteSide {
    fn drop(&mut self) {
        self.link.drop_half(false, self.clock.micros());
    }
}

/// Sets some limit to something.
pub(crate) fn change_limits(link: &Link, control: &Control, env: &mut Env) {
    let now = env.now();
    let span = if env.rng.one_in(3) { None } else { Some(env.rng.span()) };
    let timeout = span.map(Duration::from_micros);
    // Half of the deadlines are over already.
    let at = span.map(|span| if env.rng.one_in(2) { now + span } else { now.saturating_sub(span) });
    let deadline = at.map(|at| env.clock.instant(at));
    let what = env.rng.below(5);
    note!("{now} link {}: limit {what} to {span:?} {at:?}", link.id);
    {
        let mut state = link.state();
        match what {
            0 => state.reading.timeout = span,
            1 => {
                state.writing.timeout = span;
                state.patience = state.patience.min(span.unwrap_or(Micros::MAX));
                state.patience_most = state.patience_most.max(span.unwrap_or(CLOSE_PATIENCE));
            }
            2 => state.reading.deadline = at,
            3 => state.writing.deadline = at,
            _ => state.set_idle(span, now),
        }
        match what {
            0 | 2 => state.reading.limit(now),
            1 | 3 => state.writing.limit(now),
            _ => {}
        }
    }
    match what {
        0 => control.set_read_timeout(timeout),
        1 => control.set_write_timeout(timeout),
        2 => control.set_read_deadline(deadline),
        3 => control.set_write_deadline(deadline),
        _ => control.set_idle_timeout(timeout),
    }
}

/// A task that reads.
pub(crate) async fn read(mut side: ReadSide, mut env: Env) {
    let mut goes_on = true;
    for _ in 0..env.rng.below(40) {
        if !goes_on {
            break;
        }
        goes_on = side.step(&mut env).await;
    }
    match env.rng.below(6) {
        0 => {}
        1 => close(&side.link, &env, || side.reader.close()),
        _ => side.read_to_end(&mut env).await,
    }
}

/// A task that writes.
pub(crate) async fn write(mut side: WriteSide, mut env: Env) {
    if env.rng.one_in(2) && side.link.state().connect.is_some() {
        side.connected(&mut env).await;
    }
    let mut goes_on = true;
    for _ in 0..env.rng.below(40) {
        if !goes_on {
            break;
        }
        goes_on = side.step(&mut env).await;
    }
    end_writing(&mut side, &mut env).await;
}

async fn end_writing(side: &mut WriteSide, env: &mut Env) {
    match env.rng.below(6) {
        0 => {}
        1 => {
            if env.rng.one_in(2) {
                side.flush(env).await;
            }
            if side.link.output_is_open() && side.link.state().connect.is_none() {
                // What is staged goes along.
                let mut state = side.link.state();
                state.flushed = state.staged;
            }
            let link = side.link.clone();
            close(&link, env, || side.writer.close());
        }
        2 => {
            side.drain(env).await;
        }
        3 => {
            side.flush(env).await;
            side.finish();
            side.drain(env).await;
        }
        _ => {
            side.flush(env).await;
        }
    }
}

/// A task that has both halves, and drops them in any order, or takes the socket away in the end.
pub(crate) async fn read_and_write(mut read: ReadSide, mut write: WriteSide, mut env: Env) {
    let mut goes_on = (true, true);
    for _ in 0..env.rng.below(60) {
        match env.rng.below(2) {
            0 if goes_on.0 => goes_on.0 = read.step(&mut env).await,
            1 if goes_on.1 => goes_on.1 = write.step(&mut env).await,
            _ => {}
        }
    }
    match env.rng.below(5) {
        0 => detach(&mut read, &mut write, &mut env).await,
        1 => drop(read),
        2 => {
            end_writing(&mut write, &mut env).await;
            drop(write);
            read.read_to_end(&mut env).await;
        }
        _ => {
            write.flush(&mut env).await;
            drop(read);
            end_writing(&mut write, &mut env).await;
        }
    }
}

async fn detach(read: &mut ReadSide, write: &mut WriteSide, env: &mut Env) {
    struct Detaching<'a>(&'a mut Reader);
    impl Drop for Detaching<'_> {
        fn drop(&mut self) {
            self.0.end_wait();
        }
    }
    if write.writer.staged_len() > 0 || !write.drain(env).await || write.writer.unsent_len() > 0 {
        return;
    }
    let detaching = Detaching(&mut read.reader);
    let call = poll_fn(|cx| detaching.0.poll_detach(cx));
    let (result, _) = env.call(&read.link, Half::Reading, Goal::Detached, call).await;
    drop(detaching);
    if let Some(Ok(())) = result {
        let rest = read.reader.buffer_mut().len() as u64;
        let state = read.link.state();
        assert!(state.released);
        assert!(state.read + rest == state.delivered || state.closed.is_some(), "lost: {state:?}");
    }
}

fn close(link: &Link, env: &Env, close: impl FnOnce()) {
    note!("{} link {}: close", env.now(), link.id);
    link.close(env.now());
    close();
}

/// A task that looks on, changes limits, and may end the connection.
pub(crate) async fn control(control: Control, link: Rc<Link>, mut env: Env) {
    for _ in 0..env.rng.below(6) {
        env.sleep().await;
        match env.rng.below(10) {
            0 => close(&link, &env, || control.close()),
            1 => {
                let mut state = link.state();
                // If it is over already, nothing happens.
                state.aborted |= state.deregistered.is_none();
                state.count(env.now());
                drop(state);
                control.abort();
            }
            3 => {
                mark!("paused");
                note!("{} link {}: pause", env.now(), link.id);
                link.state().paused = true;
                link.state().paused_at = env.now();
                link.state().count(env.now());
                control.pause();
            }
            4 | 5 => {
                link.state().paused = false;
                link.state().resumed = env.now();
                link.state().count(env.now());
                note!("{} link {}: resume", env.now(), link.id);
                control.resume();
            }
            2 => {
                // As far as this side knows: an abort is known when the poller has seen it.
                let state = link.state();
                let broken = state.output_is_over() || state.ended || state.closed.is_some();
                assert!(!(control.is_active() && broken), "active: {state:?}");
            }
            _ => change_limits(&link, &control, &mut env),
        }
    }
}
