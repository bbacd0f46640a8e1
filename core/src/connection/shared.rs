//! What the poller, the halves and the controls of a connection share: the lifecycle under a lock, and the way to the
//! poller.
//!
//! Each method locks, makes one transition, unlocks, and then does what follows from it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use super::effects::{Callback, Effects, Offer, When};
use super::lifecycle::{
    Amount, Closing, End, Expected, Expired, Half, Input, Lifecycle, Moved, Output, Phase, Polled,
    Reason, Refusal, Todo,
};
use super::limits::Limits;
use super::requests::Requests;
use super::socket::Socket;
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::command::Command;
use crate::errno::{errno, is_of_the_network};
use crate::mailbox::Mailbox;
use crate::poll::{Next, Outputs, Pending};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::syscalls::{self, Acknowledged};
use crate::timer::Tick;
use crate::token::Token;
use crate::trace::{self, Ended};

/// Of a connection's number, those that tell it from others of its poller.
const SERIAL_BITS: u32 = 40;

/// The last request had a body.
const HAS_BODY: u32 = 1;
/// The layer above has not handed over all of the last response.
const UNFLUSHED: u32 = 2;
const BEGUN_BITS: u32 = HAS_BODY | UNFLUSHED;

pub(crate) struct Shared {
    socket: Socket,
    mailbox: Arc<Mailbox>,
    token: Token,
    /// What of its number is not in the token.
    serial_high: u32,
    /// In bytes; no watermark is beyond 4 GiB.
    input_high: u32,
    output_high: u32,
    message_max: u32,
    /// Requests that a layer above is busy with.
    requests: AtomicU32,
    /// How many it has begun, above bits that say what is behind the last one: [`HAS_BODY`] and [`UNFLUSHED`].
    begun: AtomicU32,
    #[cfg(feature = "zerocopy")]
    zero_copy: ZeroCopy,
    life: Mutex<Lifecycle>,
}

/// What is sent without a copy.
#[cfg(feature = "zerocopy")]
struct ZeroCopy {
    /// From so many bytes on; `u32::MAX`: nothing.
    threshold: AtomicU32,
    pinned_bytes_max: u32,
}

impl Shared {
    pub(super) fn new(
        socket: Option<OwnedFd>,
        mailbox: Arc<Mailbox>,
        token: Token,
        serial: u64,
        limits: &Limits,
        connecting: bool,
    ) -> Shared {
        let life = Lifecycle::new(limits, connecting, mailbox.clock().now());
        Shared {
            socket: Socket::new(socket),
            mailbox,
            token,
            serial_high: (serial >> Token::GENERATION_BITS) as u32,
            input_high: saturating(limits.input_high_bytes),
            output_high: saturating(limits.output_high_bytes),
            message_max: saturating(limits.message_bytes_max),
            requests: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            #[cfg(feature = "zerocopy")]
            zero_copy: ZeroCopy {
                threshold: AtomicU32::new(threshold(limits.zerocopy_bytes)),
                pinned_bytes_max: saturating(limits.zerocopy_pinned_bytes),
            },
            life: Mutex::new(life),
        }
    }

    #[inline]
    pub(super) fn life(&self) -> MutexGuard<'_, Lifecycle> {
        lock(&self.life)
    }

    /// Whether nobody holds the lock.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_free(&self) -> bool {
        let guard = self.life.try_lock();
        #[cfg(miri)]
        let guard = guard.ok();
        guard.is_some()
    }

    /// What may be unsent, in bytes: less than was said, if memory is short.
    pub(super) fn output_high_bytes(&self) -> usize {
        (self.output_high as usize).min(self.mailbox.share())
    }

    /// The same of what waits for its reader.
    fn input_high_bytes(&self) -> usize {
        (self.input_high as usize).min(self.mailbox.share())
    }

    /// The poller's number in the upper 24 bits, and below it a number that no other connection of the poller has. So there may
    /// be 16 million pollers in a process, and a million million connections on each.
    pub(crate) fn id(&self) -> u64 {
        let serial = u64::from(self.serial_high) << Token::GENERATION_BITS;
        u64::from(self.mailbox.number()) << SERIAL_BITS
            | (serial & ((1 << SERIAL_BITS) - 1))
            | u64::from(self.token.generation())
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    #[inline]
    pub(super) fn message_bytes_max(&self) -> usize {
        self.message_max as usize
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.mailbox.clock()
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// The poller, or one of the halves, does not use the socket any more.
    ///
    /// # Safety
    /// Each of the three says so once, and does not ask for the [`socket`](Shared::socket) afterwards.
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: promised by the caller.
        unsafe { self.socket.let_go() };
    }

    /// The socket; none under a simulated engine.
    ///
    /// # Safety
    /// Only for the poller and the halves, for as long as they have not let go.
    pub(crate) unsafe fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: promised by the caller.
        unsafe { self.socket.borrow() }
    }

    pub(super) fn expose(&self) {
        self.socket.expose();
    }

    /// Makes a transition, and what follows from it.
    pub(super) fn change(&self, transition: impl FnOnce(&mut Lifecycle) -> Effects) {
        let (effects, look) = {
            let mut life = self.life();
            let effects = transition(&mut life);
            (effects, life.must_tell())
        };
        self.tell(None, look);
        effects.perform();
    }

    /// Makes a transition of which nothing follows but what the poller has to do.
    pub(super) fn adjust(&self, transition: impl FnOnce(&mut Lifecycle)) {
        self.change(|life| {
            transition(life);
            Effects::default()
        });
    }

    /// Polls a wait; `begins`: it was not under way. Counts the bytes that are handed over.
    #[inline]
    pub(super) fn poll(
        &self,
        cx: &mut Context<'_>,
        begins: bool,
        handed_over: &mut u64,
        mut poll: impl FnMut(&mut Lifecycle, &mut Offer<'_>, &dyn Clock) -> Polled,
    ) -> Poll<Result<(), Refusal>> {
        let clock = self.clock();
        let mut offer = Offer::new(cx.waker(), begins);
        loop {
            let (polled, look) = {
                let mut life = self.life();
                let polled = poll(&mut life, &mut offer, clock);
                (polled, life.must_tell())
            };
            *handed_over += polled.taken as u64;
            self.tell(polled.send, look);
            if polled.retry {
                offer.renew();
                continue;
            }
            drop(polled.unused);
            return polled.result;
        }
    }

    /// Hands over what is staged, if nobody has to wait for anything. Says whether it did.
    #[inline]
    pub(super) fn flush_at_once(&self, staged: &mut LinkBuffer, high: usize) -> bool {
        let send = self.life().flush_at_once(staged, high);
        if let Some(send) = send {
            self.tell(send, false);
        }
        send.is_some()
    }

    /// Hands over what is staged, and waits for nothing.
    pub(super) fn submit(&self, staged: &mut LinkBuffer) -> Result<(), Refusal> {
        let mut polled = Polled::new();
        let (result, look) = {
            let mut life = self.life();
            (life.submit(staged, &mut polled, self.clock()), life.must_tell())
        };
        self.tell(polled.send, look);
        result
    }

    /// Hands over a message if there is room for it. Says whether it did.
    #[inline]
    pub(super) fn send_at_once(
        &self,
        message: &mut LinkBuffer,
        high: (usize, bool),
    ) -> Result<bool, Refusal> {
        let mut polled = Polled::new();
        let (result, look) = {
            let mut life = self.life();
            (life.send_at_once(message, high, &mut polled, self.clock()), life.must_tell())
        };
        self.tell(polled.send, look);
        result
    }

    #[inline]
    fn tell(&self, send: Option<Amount>, look: bool) {
        match send {
            Some(Amount::Little) => self.mailbox.post(Command::Send(self.token)),
            Some(Amount::Much) => self.mailbox.post(Command::SendNow(self.token)),
            None => {}
        }
        if look {
            self.mailbox.post(Command::Look(self.token));
        }
    }

    /// Has something called when that happens; at once, if it has happened.
    pub(super) fn call_when(&self, when: When, callback: Callback) -> Option<u64> {
        let kept = self.life().call_when(when, callback);
        kept.map_err(|callback| callback()).ok()
    }

    /// False if it has been called.
    pub(super) fn remove_callback(&self, number: u64) -> bool {
        let removed = self.life().remove_callback(number);
        removed.is_some()
    }

    pub(super) fn finish(&self, staged: Option<&mut LinkBuffer>) {
        let (send, look) = {
            let mut life = self.life();
            (life.finish(staged, self.clock()), life.must_tell())
        };
        self.tell(send, look);
    }

    pub(super) fn close(&self, staged: Option<&mut LinkBuffer>) {
        self.change(|life| life.close(staged, self.clock()));
    }

    /// A send has failed, and with it what else there was to send. By the poller, or a half of the connection.
    pub(crate) fn fail_sending(&self, error: &io::Error) {
        let errno = errno(error);
        let by_the_network = is_of_the_network(error);
        // Receiving comes to its end by itself, behind the bytes that have arrived: where the peer takes nothing more, it may
        // still send; after a reset nothing comes; and in other cases, in which the socket lives on, it is told to.
        if by_the_network && !matches!(errno, libc::EPIPE | libc::ECONNRESET) {
            // SAFETY: whoever calls has not let go.
            if let Some(socket) = unsafe { self.socket() } {
                syscalls::end_receiving(socket);
            }
        }
        self.change(|life| {
            let mut effects = Effects::default();
            if by_the_network {
                life.fail_output(errno, &mut effects, self.clock());
            } else {
                life.fail(errno, &mut effects, self.clock());
            }
            effects
        });
    }

    /// The kernel has taken something past the poller.
    pub(super) fn sent_directly(&self, bytes: usize) {
        self.life().sent_directly(bytes, self.clock());
    }

    pub(super) fn half_gone(&self, half: Half) {
        self.change(|life| life.half_gone(half, self.clock()));
    }
}

impl trace::Subject for Shared {
    fn id(&self) -> u64 {
        Shared::id(self)
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.life().peer.get()
    }
}

/// The poller's side.
impl Shared {
    /// How it has ended: what has broken it counts only if this side has not.
    pub(crate) fn ended(&self, reason: Reason) -> Ended {
        let life = self.life();
        let broken = match (life.input, life.output) {
            (Input::Failed(errno), _) | (_, Output::Failed(errno)) => Some(errno),
            _ => None,
        };
        let by_itself = matches!(reason, Reason::Closed | Reason::Unsent);
        Ended {
            reason: reason.name(),
            by_peer: reason == Reason::Closed && life.was_ended_by_peer(),
            error: broken
                .filter(|_| by_itself)
                .map(|errno| io::Error::from_raw_os_error(errno.get())),
            received_bytes: life.received_bytes,
            sent_bytes: life.sent_bytes,
        }
    }

    /// What is to be received, if anything is.
    #[inline]
    pub(crate) fn receives(&self) -> Option<Expected> {
        self.life().receives()
    }

    /// Whether bytes wait for their reader, or with it for the rest of a message.
    #[inline]
    pub(crate) fn lags(&self) -> bool {
        self.life().lags()
    }

    /// Bytes have arrived: `push` puts them into the inbox, and is told whether others wait there already, or with the
    /// reader for the rest of a message.
    #[inline]
    pub(crate) fn deliver(&self, push: impl FnOnce(&mut Chain, bool)) -> Moved {
        let mut life = self.life();
        if life.discards() {
            return self.discard(life, push);
        }
        let high = self.input_high_bytes();
        let moved = life.deliver(high, self.mailbox.clock(), push);
        if moved.next == Next::Stop {
            drop(life);
            self.stopped(high);
        }
        moved
    }

    #[cold]
    fn stopped(&self, high: usize) {
        if high < self.input_high as usize {
            self.mailbox.count_stop();
        }
        trace::holds_peer_up(self, true);
    }

    #[cold]
    fn discard(
        &self,
        mut life: MutexGuard<'_, Lifecycle>,
        push: impl FnOnce(&mut Chain, bool),
    ) -> Moved {
        let mut discarded = Chain::new();
        push(&mut discarded, life.lags());
        let moved = life.discard(discarded.len(), self.clock());
        // What is a user's is dropped when the lock is free.
        drop(life);
        moved
    }

    pub(crate) fn end_input(&self) {
        let effects = self.life().end_input(self.clock());
        effects.perform();
    }

    pub(crate) fn fail(&self, errno: i32) {
        let mut effects = Effects::default();
        self.life().fail(errno, &mut effects, self.clock());
        effects.perform();
    }

    #[inline]
    pub(crate) fn take_output(&self, sending: &mut Chain) -> Result<bool, Outputs> {
        self.life().take_output(sending)
    }

    #[inline]
    pub(crate) fn sent(&self, n: usize, sending: &mut Chain, at: impl FnOnce() -> Tick) -> Moved {
        self.life().sent(n, sending, at)
    }

    pub(crate) fn connected(&self) {
        let (effects, send, look) = {
            let mut life = self.life();
            let (effects, send) = life.connected(self.clock());
            (effects, send, life.must_tell())
        };
        self.tell(send, look);
        effects.perform();
    }

    pub(crate) fn take_todo(&self) -> Todo {
        self.life().take_todo()
    }

    pub(crate) fn uncount(&self) -> bool {
        self.life().uncount()
    }

    pub(crate) fn leave(&self) -> bool {
        self.life().leave()
    }

    pub(crate) fn go_on_closing(&self, pinned: bool) -> Closing {
        self.life().go_on_closing(pinned)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.life().phase()
    }

    pub(crate) fn write_timeout(&self) -> Option<Tick> {
        self.life().write_timeout()
    }

    pub(crate) fn deregister(&self, reason: Reason, pinned: bool) -> Option<End> {
        self.life().deregister(reason, pinned, self.clock())
    }

    /// When to look again for a flush that waits while the connection is closing.
    pub(crate) fn expire_flush(&self, now: Tick) -> Tick {
        let (effects, until) = self.life().expire_flush(now);
        effects.perform();
        until
    }

    /// False if it is to be ended by force.
    pub(crate) fn wind_up(&self) -> bool {
        let (effects, goes) = self.life().wind_up(self.clock());
        effects.perform();
        goes
    }

    pub(crate) fn released(&self) {
        let effects = self.life().released(self.clock());
        effects.perform();
    }

    pub(crate) fn awaits_more_than(&self, bytes: usize) -> Option<usize> {
        self.life().awaits_more_than(bytes)
    }

    pub(crate) fn lacks_memory(&self) {
        let effects = self.life().lack_memory(self.clock());
        effects.perform();
    }

    /// Whether somebody has waited to have something sent, who is told now.
    pub(crate) fn lacks_room(&self) -> bool {
        let effects = self.life().lack_room();
        effects.map(Effects::perform).is_some()
    }

    /// Bytes that the peer has not taken: those that wait to be sent, and those that the kernel has and that were not acknowledged.
    pub(crate) fn outstanding(&self) -> (usize, usize) {
        // SAFETY: the poller has not let go.
        let socket = unsafe { self.socket() };
        (self.life().unsent, socket.map_or(0, syscalls::unacknowledged_bytes))
    }

    /// What a TCP peer has acknowledged.
    pub(crate) fn acknowledged(&self) -> Option<Acknowledged> {
        // SAFETY: the poller has not let go.
        unsafe { self.socket() }.and_then(syscalls::acknowledged)
    }

    /// The peer has taken something past the poller. Gives when to look again.
    pub(crate) fn peer_has_taken(&self, at: Tick) -> Tick {
        self.life().peer_has_taken(at)
    }

    /// How long it may be idle, in ticks.
    pub(crate) fn idle_timeout(&self) -> Option<Tick> {
        self.life().idle_timeout()
    }

    /// Bytes that wait to be sent, and which connection it is.
    pub(crate) fn unsent(&self) -> (usize, u64) {
        (self.life().unsent, self.id())
    }

    /// Whether it is open in both directions, and nothing is to be sent.
    pub(crate) fn is_at_rest(&self) -> bool {
        let life = self.life();
        life.is_active() && life.unsent == 0
    }

    pub(crate) fn abandoned(&self) {
        let effects = self.life().abandoned(self.clock());
        effects.perform();
    }

    /// Whether a byte has come.
    pub(crate) fn has_received(&self) -> bool {
        self.life().has_received()
    }

    pub(crate) fn drain(&self, expected: usize) {
        let effects = self.life().drain(expected);
        effects.perform();
    }

    pub(crate) fn expire(&self, now: Tick, pending: Option<Pending>, gives_up: bool) -> Expired {
        let mut life = self.life();
        // Relaxed: a number by itself.
        if self.requests.load(Ordering::Relaxed) > 0 {
            life.is_busy(now);
        }
        life.expire(now, pending, gives_up)
    }

    pub(super) fn begin_request(&self, has_body: bool) {
        // Relaxed: only numbers, of one thread at a time.
        self.requests.fetch_add(1, Ordering::Relaxed);
        let begun = (self.begun.load(Ordering::Relaxed) & !BEGUN_BITS).wrapping_add(BEGUN_BITS + 1);
        let body = if has_body { HAS_BODY } else { 0 };
        self.begun.store(begun.max(BEGUN_BITS + 1) | body, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.begun.fetch_or(UNFLUSHED, Ordering::Relaxed);
    }

    pub(super) fn flushed(&self) {
        self.begun.fetch_and(!UNFLUSHED, Ordering::Relaxed);
    }

    pub(super) fn requests(&self) -> Requests {
        let begun = self.begun.load(Ordering::Relaxed);
        let ended = self.requests.load(Ordering::Relaxed) == 0 && begun & BEGUN_BITS == 0;
        Requests { begun: begun >> BEGUN_BITS.count_ones(), are_over: ended }
    }

    /// From how many bytes on a slice is sent without a copy, if any is.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn zerocopy_bytes(&self) -> Option<usize> {
        // Relaxed: a number by itself.
        let threshold = self.zero_copy.threshold.load(Ordering::Relaxed);
        (threshold != u32::MAX).then_some(threshold as usize)
    }

    #[cfg(feature = "zerocopy")]
    pub(super) fn set_zerocopy_bytes(&self, bytes: Option<usize>) {
        self.zero_copy.threshold.store(threshold(bytes), Ordering::Relaxed);
        self.life().retry_zerocopy();
    }

    /// Whether that number was set since the last call.
    #[cfg(feature = "zerocopy")]
    pub(crate) fn retries_zerocopy(&self) -> bool {
        self.life().takes_retry()
    }

    #[cfg(feature = "zerocopy")]
    pub(crate) fn zerocopy_pinned_bytes_max(&self) -> usize {
        self.zero_copy.pinned_bytes_max as usize
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let life = self.life();
        f.debug_struct("Connection")
            .field("id", &format_args!("{:#x}", self.id()))
            .field("peer", &life.peer.get())
            .field("input", &life.input)
            .field("output", &life.output)
            .field("inbox_bytes", &life.inbox.len())
            .field("unsent_bytes", &life.unsent)
            .finish()
    }
}

#[cfg(feature = "zerocopy")]
fn threshold(bytes: Option<usize>) -> u32 {
    bytes.map_or(u32::MAX, saturating)
}

fn saturating(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
