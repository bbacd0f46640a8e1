//! Two connections joined: what a proxy does when it has chosen where to.
//!
//! ```no_run
//! use duopoll::relay::Relay;
//! use duopoll::{Connection, Dialer, EventLoop, Listener};
//! use std::time::Duration;
//!
//! let relay = Relay::new().idle_timeout(Duration::from_secs(600));
//! let server = EventLoop::builder()
//!     .on_connection(async move |client: Connection| {
//!         // On the poller of this handler, as the client's. An error ends the client's connection by a FIN; `abort` resets it.
//!         let upstream = Dialer::new().dial("127.0.0.1:6379").await.inspect_err(|_| client.abort())?;
//!         let relayed = relay.run(client, upstream).await;
//!         println!("{} bytes there, {} back", relayed.there, relayed.back);
//!         Ok(())
//!     })
//!     .serve(Listener::bind("127.0.0.1:6380")?)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod bulk;
mod pipe;
mod side;

use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bulk::Pieces;
pub use side::Side;

use crate::connection::Connection;
use crate::tcp::unacknowledged_bytes;
use crate::time::{now, sleep};
#[cfg(feature = "rustls")]
use crate::tls::TlsConnection;
use crate::{Control, LinkBuffer};

/// Joins two connections, in both directions: what one receives is sent by the other as it lies, in the blocks that it was received into.
///
/// - An end of one direction is carried over: the other side gets it behind the last byte, and the other direction goes on.
/// - A reset is carried over as a reset, behind what had come before it, which may take as long as it arrives. So is TLS that ends without
///   `close_notify`. A Unix socket knows no reset: its peer sees a FIN.
/// - Who does not read is not sent to. What waits for it is bounded by the connections' [`Limits`](crate::Limits): in a direction
///   the `output_high_bytes` of the one that is sent to, the `input_high_bytes` of the one that is received from, and what a receive
///   brings beyond them. By default that is 2 MiB; a proxy for many gives both less.
/// - Large messages the kernel moves by itself: see [`splice`](Relay::splice).
/// - If nothing moves for the idle timeout, both end by a FIN. A side that takes nothing for the write timeout ends both by a reset.
///   Without them a relay may wait for ever: that a peer has reset is not seen while nothing is received from it, as when the other side
///   takes nothing, or the peer has sent its FIN before.
/// - To a server's shutdown a relay is one request: it goes on until it ends, or the grace does.
///
/// Each side may be a [`Connection`], or one of TLS. It costs least if both are on the same poller, which they are where one
/// is dialed by a handler of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    idle_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    copies: bool,
}

/// What was relayed, and how it has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Relayed {
    /// Bytes that were received from the first connection and handed over to the second. If that was reset, its peer may not have got
    /// all of them.
    pub there: u64,
    /// The same from the second connection to the first.
    pub back: u64,
    /// An error if it did not end by the ends of both directions.
    pub result: Result<(), Broken>,
}

/// What has broken a relay.
#[derive(Debug)]
#[non_exhaustive]
pub struct Broken {
    /// Which of the two connections it was.
    pub side: Side,
    /// What it has said. [`TimedOut`](io::ErrorKind::TimedOut) if it was over time.
    pub error: io::Error,
}

impl Relay {
    /// One without timeouts but those that the connections have.
    pub fn new() -> Relay {
        Relay::default()
    }

    /// How long no byte may move on a connection. Default: what their limits say.
    pub fn idle_timeout(mut self, timeout: Duration) -> Relay {
        self.idle_timeout = Some(timeout);
        self
    }

    /// How long a side may take nothing of what waits for it: what its kernel acknowledges counts, and is looked at when the time is over, so
    /// it may be up to twice as long. Default: what their limits say.
    pub fn write_timeout(mut self, timeout: Duration) -> Relay {
        self.write_timeout = Some(timeout);
        self
    }

    /// Whether large messages are moved by the kernel (`splice`) between two connections of one poller, which the future must run on.
    /// Default: yes. Elsewhere, in a process that has `SIGPIPE` end it, for sends without a copy and for TLS they are received and sent.
    ///
    /// What is moved is held by a pipe of the kernel, up to 256 KiB in a direction whose target takes nothing; after 100 ms without
    /// a byte it is the connection's, whose timeouts begin then. The pollers' statistics do not count it, nor does a memory budget; but where
    /// that is short, less is moved at once.
    pub fn splice(mut self, splice: bool) -> Relay {
        self.copies = !splice;
        self
    }

    /// Relays until both directions have ended, or one connection breaks. What was received before and not been read comes first, and so
    /// does what was staged and not flushed.
    ///
    /// # Cancellation
    /// Dropping it drops both connections: what was received is sent, and then their FINs.
    pub fn run<A: Duplex, B: Duplex>(
        &self,
        first: A,
        second: B,
    ) -> impl Future<Output = Relayed> + use<A, B> {
        let mut joined = Joined {
            relay: *self,
            first,
            second,
            there: Direction::of(Side::First),
            back: Direction::of(Side::Second),
            pieces: Pieces::default(),
        };
        // It owns both in one place: a proxy has thousands of these.
        async move { joined.run().await }
    }
}

/// Two connections that are joined.
struct Joined<A, B> {
    relay: Relay,
    first: A,
    second: B,
    there: Direction,
    back: Direction,
    pieces: Pieces,
}

impl<A: Duplex, B: Duplex> Joined<A, B> {
    async fn run(&mut self) -> Relayed {
        for control in [self.first.control(), self.second.control()] {
            if let Some(timeout) = self.relay.idle_timeout {
                control.set_idle_timeout(Some(timeout));
            }
            if let Some(timeout) = self.relay.write_timeout {
                control.set_write_timeout(Some(timeout));
            }
            control.ends_when_idle();
        }
        let both_plain = self.first.plain().is_some() && self.second.plain().is_some();
        self.pieces = Pieces::new(!self.relay.copies && both_plain);
        let result = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Ok(Step::Done) => break Ok(()),
                // Seldom, and for long.
                Ok(Step::Bulk) => match Box::pin(self.relay_bulk()).await {
                    Ok(()) => {}
                    Err(broken) => break Err(broken),
                },
                Err(broken) => break Err(broken),
            }
        };
        // What it took nothing for is told, and not what came of that.
        let gave_up = |direction: &mut Direction| {
            let error = direction.broken.take()?;
            Some(Broken { side: direction.from.other(), error })
        };
        let result = match gave_up(&mut self.there).or_else(|| gave_up(&mut self.back)) {
            Some(broken) => Err(broken),
            None => result,
        };
        if let Err(Broken { side, error }) = &result {
            Box::pin(self.end(*side, error)).await;
        }
        Relayed { there: self.there.bytes, back: self.back.bytes, result }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Broken>> {
        let Joined { first, second, there, back, pieces, .. } = self;
        let forth = there.poll(first, second, back, pieces, cx)?;
        if let Poll::Ready(Step::Bulk) = forth {
            return Poll::Ready(Ok(Step::Bulk));
        }
        match back.poll(second, first, there, pieces, cx)? {
            Poll::Ready(Step::Done) if forth.is_pending() => Poll::Pending,
            step => step.map(Ok),
        }
    }

    /// Has the kernel move what comes, for as long as that is large.
    async fn relay_bulk(&mut self) -> Result<(), Broken> {
        let Joined { first, second, there, back, pieces, .. } = self;
        let (Some(one), Some(other)) = (first.plain(), second.plain()) else { return Ok(()) };
        let bytes = [&mut there.bytes, &mut back.bytes];
        let over = bulk::relay([one, other], bytes, pieces).await;
        // What was on its way is handed over, and not more than that.
        (there.unflushed, back.unflushed) = (true, true);
        match over {
            Ok(()) => {}
            Err(bulk::Broken::Source(side, error)) => return Err(Broken { side, error }),
            Err(bulk::Broken::Target(Side::First, error)) => back.give_up(error, pieces),
            Err(bulk::Broken::Target(Side::Second, error)) => there.give_up(error, pieces),
        }
        Ok(())
    }

    /// Ends both, since one is broken.
    async fn end(&mut self, side: Side, error: &io::Error) {
        let Joined { relay, first, second, there, back, .. } = self;
        match side {
            Side::First => relay.end(first, second, there, error).await,
            Side::Second => relay.end(second, first, back, error).await,
        }
    }
}

impl Relay {
    /// Ends both, since one is broken: `on` is the direction from it to the other.
    async fn end(
        &self,
        broken: &mut impl Duplex,
        other: &mut impl Duplex,
        on: &mut Direction,
        error: &io::Error,
    ) {
        let (broken_control, control) = (broken.control(), other.control());
        if error.kind() == io::ErrorKind::TimedOut
            && broken_control.unsent_bytes() == 0
            && control.unsent_bytes() == 0
        {
            // Nothing moves, and nothing is cut short.
            broken_control.close();
            return control.close();
        }
        if error.kind() != io::ErrorKind::NotConnected {
            // Unless this side has closed it, and it is on its way out.
            broken_control.abort();
        }
        // What had come before is the other's, if it takes it.
        let input = broken.input();
        if !on.ended && !input.is_empty() {
            on.bytes += input.len() as u64;
            other.append(input);
        }
        if other.submit().is_ok() {
            self.see_off(other).await;
        }
        // Not a FIN: that would look like the end of a whole message.
        control.abort();
    }

    /// Waits until all has arrived that was sent, for as long as anything does: a reset has the kernel drop the rest.
    async fn see_off(&self, side: &mut impl Duplex) {
        let patience = self.write_timeout.unwrap_or(LAST_BYTES);
        let begun = now();
        let (mut left, mut since) = (usize::MAX, begun);
        loop {
            let before = left;
            left = untaken_bytes(side);
            if left == 0 || !side.control().is_open() {
                return;
            }
            if left != before {
                since = now();
            } else if now() >= since + patience {
                return;
            }
            // The longer it takes, the less it matters when exactly: thousands may be waited for.
            sleep(((now() - begun) / 8).clamp(LOOK.0, LOOK.1)).await;
        }
    }
}

/// Bytes that a side has been given, and that its peer has not taken.
fn untaken_bytes(side: &impl Duplex) -> usize {
    side.control().unsent_bytes() + unacknowledged_bytes(side.connection().own_socket())
}

/// How often it is looked whether the last bytes have arrived: at first, and later.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));
/// For how long none of the last bytes before a reset may arrive, unless there is a write timeout.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// One direction of a relay.
struct Direction {
    from: Side,
    bytes: u64,
    /// Something was handed over that is not flushed, or may have been before.
    unflushed: bool,
    /// The source has ended.
    ended: bool,
    /// All of it was sent, and the end; or nothing can be sent any more.
    done: bool,
    /// The target takes nothing more. What it has sent may still come.
    broken: Option<io::Error>,
    /// What the target had not taken when it was over time, and of how much.
    untaken: Option<(usize, u64)>,
}

/// How far a direction has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// To its end.
    Done,
    /// The kernel is to move what comes next, and nothing is unsent.
    Bulk,
}

impl Direction {
    fn of(from: Side) -> Direction {
        Direction {
            from,
            bytes: 0,
            unflushed: true,
            ended: false,
            done: false,
            broken: None,
            untaken: None,
        }
    }

    /// Moves what there is, until the source has ended and all is sent, or the target takes nothing more.
    fn poll(
        &mut self,
        source: &mut impl Duplex,
        target: &mut impl Duplex,
        other: &Direction,
        pieces: &mut Pieces,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Broken>> {
        loop {
            if self.done {
                return Poll::Ready(Ok(Step::Done));
            }
            if self.ended || self.unflushed {
                let bulk = pieces.are_bulk();
                let sent = match self.ended {
                    // The end of what a broken side has sent is no end of a whole message.
                    true if other.broken.is_none() => target.poll_finish(cx),
                    _ if bulk => target.poll_drain(cx),
                    _ => target.poll_flush(cx),
                };
                if let Err(error) = ready!(sent) {
                    if !self.is_late_only(&error, target) {
                        self.take_broken(error, pieces)?;
                    }
                    continue;
                }
                (self.done, self.unflushed) = (self.ended, false);
                if bulk && !other.unflushed && source.control().unsent_bytes() == 0 {
                    return Poll::Ready(Ok(Step::Bulk));
                }
                continue;
            }
            if source.input().is_empty() {
                let more = ready!(source.poll_more(cx));
                self.ended = !more.map_err(|error| Broken { side: self.from, error })?;
            }
            let input = source.input();
            if !input.is_empty() {
                self.bytes += input.len() as u64;
                pieces.saw(self.from, input.len());
                target.append(input);
                self.unflushed = true;
            }
        }
    }

    /// Whether a wait was over time, and the target has taken something since the last one was.
    fn is_late_only(&mut self, error: &io::Error, target: &impl Duplex) -> bool {
        let is_over_time =
            error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none();
        let untaken = (untaken_bytes(target), self.bytes);
        is_over_time && self.untaken.replace(untaken) != Some(untaken)
    }

    /// The target has failed. If the peer has broken it, what that had sent before may be on its way: it ends the other direction.
    fn take_broken(&mut self, error: io::Error, pieces: &mut Pieces) -> Result<(), Broken> {
        if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) {
            self.give_up(error, pieces);
            return Ok(());
        }
        Err(Broken { side: self.from.other(), error })
    }

    fn give_up(&mut self, error: io::Error, pieces: &mut Pieces) {
        self.broken = Some(error);
        self.done = true;
        pieces.are_copied();
    }
}

/// A connection that can be joined to another.
pub trait Duplex: sealed::Sealed {
    /// Its handle.
    fn control(&self) -> Control;
    #[doc(hidden)]
    fn connection(&self) -> &Connection;
    #[doc(hidden)]
    fn plain(&mut self) -> Option<&mut Connection>;
    #[doc(hidden)]
    fn input(&mut self) -> &mut LinkBuffer;
    #[doc(hidden)]
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>>;
    #[doc(hidden)]
    fn append(&mut self, buffer: &mut LinkBuffer);
    #[doc(hidden)]
    fn submit(&mut self) -> io::Result<()>;
    #[doc(hidden)]
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    #[doc(hidden)]
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    #[doc(hidden)]
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

mod sealed {
    pub trait Sealed {}
}

/// By what the halves have.
macro_rules! implement {
    ($stream:ty, $reader:ident, $writer:ident, |$self:ident| $connection:expr, $plain:expr) => {
        impl sealed::Sealed for $stream {}

        impl Duplex for $stream {
            fn control(&self) -> Control {
                self.control()
            }

            fn connection(&$self) -> &Connection {
                $connection
            }

            fn plain(&mut $self) -> Option<&mut Connection> {
                $plain
            }

            fn input(&mut self) -> &mut LinkBuffer {
                self.input_mut()
            }

            fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
                self.$reader().poll_more(cx)
            }

            fn append(&mut self, buffer: &mut LinkBuffer) {
                self.append(buffer);
            }

            fn submit(&mut self) -> io::Result<()> {
                self.$writer().submit()
            }

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.$writer().poll_flush(cx)
            }

            fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.$writer().poll_drain(cx)
            }

            fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.$writer().poll_finish(cx)
            }
        }
    };
}

implement!(Connection, reader_mut, writer_mut, |self| self, Some(self));
#[cfg(feature = "rustls")]
implement!(TlsConnection, reader, writer, |self| self.connection(), None);
