//! A sending half that many tasks share.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::control::Control;
use super::effects::wake;
use super::shared::Shared;
use super::writer::Writer;
use crate::buffer::BufferSeam;
use crate::buffer::LinkBuffer;
use crate::contain::contain;
use crate::memory::Slice;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, lock};
use crate::timer::Tick;

/// A sending half for any number of tasks and threads, made of a [`Writer`] by [`into_sender`](Writer::into_sender).
///
/// Each message is handed over as a whole: no other stands within it. Those of one sender, each awaited before the next, keep
/// their order. What is handed over by whomever until the poller's turn ends goes out with one system call, and a poller that
/// is awake costs none to be told.
///
/// A message waits while more is unsent than the connection's watermark allows, and stays where it is until then: so what waits
/// to be sent is bounded by the watermark, or half of it and one message. When half of it is sent all who wait try again, in
/// no certain order; who has waited for 5 milliseconds is not overtaken any more by those who come. Somebody who waits and does
/// not poll holds up nobody.
///
/// When the last clone is dropped the sending direction ends, as with a [`Writer`].
///
/// # Errors
/// As for a [`Writer`]. An end of the connection is told to everybody who waits, and the message is still there. The write
/// timeout counts for each from where his wait begins.
///
/// # Cancellation
/// A future that is dropped before it is ready has sent nothing.
#[derive(Clone)]
pub struct Sender(Arc<Sending>);

struct Sending {
    writer: Writer,
    queue: Mutex<Queue>,
    /// Since when the first of those who wait does; [`NOBODY`].
    first_since: AtomicUsize,
    bell: Arc<Bell>,
}

const NOBODY: usize = usize::MAX;

/// Somebody who has waited for so long, in milliseconds, is not overtaken any more by those who come.
const OVERTAKEN_MS: usize = 5;

/// What the connection wakes. It does not keep it open: somebody may have leaked a future that waits.
struct Bell(Weak<Sending>);

/// Those who wait. As long as the waker of one of them is here, the connection has ours.
#[derive(Default)]
struct Queue {
    waits: VecDeque<Waiting>,
    numbers: u64,
}

struct Waiting {
    number: u64,
    since: Tick,
    /// None once it was woken, until it polls again.
    waker: Option<Waker>,
}

impl Queue {
    fn enter(&mut self, since: Tick, waker: Waker) -> u64 {
        self.numbers += 1;
        self.waits.push_back(Waiting { number: self.numbers, since, waker: Some(waker) });
        self.numbers
    }

    fn first_since(&self) -> usize {
        self.waits.front().map_or(NOBODY, |first| first.since as usize)
    }

    /// Gives the waker that was there before.
    fn renew(&mut self, number: u64, waker: Waker) -> Option<Waker> {
        match self.place(number) {
            Some(place) => self.waits[place].waker.replace(waker),
            None => Some(waker),
        }
    }

    /// They are in order of their numbers.
    fn place(&self, number: u64) -> Option<usize> {
        self.waits.binary_search_by_key(&number, |waiting| waiting.number).ok()
    }
}

impl Writer {
    /// A sender in its place, for any number of tasks and threads. What is staged goes first.
    ///
    /// # Errors
    /// See [`Writer`], if something is staged.
    pub fn into_sender(mut self) -> io::Result<Sender> {
        self.end_wait();
        self.submit()?;
        Ok(Sender(Arc::new_cyclic(|sending| Sending {
            writer: self,
            queue: Mutex::default(),
            first_since: AtomicUsize::new(NOBODY),
            bell: Arc::new(Bell(sending.clone())),
        })))
    }
}

impl Sender {
    /// Sends what is in `message`, which is empty then, and can be used again for the next.
    ///
    /// # Errors
    /// See [`Sender`]; `message` is as it was.
    pub async fn send(&self, message: &mut LinkBuffer) -> io::Result<()> {
        Wait { sending: &self.0, message: Some(message), number: None, since: 0 }.await
    }

    /// Sends one piece.
    ///
    /// # Errors
    /// See [`Sender`].
    pub async fn send_slice(&self, piece: impl Into<Slice>) -> io::Result<()> {
        let mut message = LinkBuffer::new();
        message.adopt(piece);
        self.send(&mut message).await
    }

    /// As [`send`](Sender::send), if there is room at once. Says whether it did: where senders are faster than the network there
    /// is none now and then, also for a peer that reads. To end one that does not, send with a
    /// [write timeout](Control::set_write_timeout).
    ///
    /// # Errors
    /// See [`Sender`]; `message` is as it was.
    pub fn try_send(&self, message: &mut LinkBuffer) -> io::Result<bool> {
        Ok(self.0.shared().send_at_once(message, (self.0.high(), self.0.yields()))?)
    }

    /// Waits until the kernel has taken all that was sent by now. It may wait for what others send meanwhile, too.
    ///
    /// # Errors
    /// See [`Sender`].
    pub async fn drain(&self) -> io::Result<()> {
        Wait { sending: &self.0, message: None, number: None, since: 0 }.await
    }

    /// Ends the sending direction, for all: what was sent goes out, then the FIN. Receiving goes on. Whoever waits or sends later
    /// gets [`NotConnected`](io::ErrorKind::NotConnected).
    pub fn finish(&self) {
        self.0.shared().finish(None);
        self.0.wake_all();
    }

    /// A handle on the connection, for timeouts and for ending it.
    pub fn control(&self) -> Control {
        self.0.writer.control()
    }

    /// Whether the other is a sender of the same connection.
    pub fn is_same(&self, other: &Sender) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.0.writer.id()
    }

    /// The address of the other end of a TCP connection; see [`Control::peer_addr`].
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.writer.peer_addr()
    }

    /// Bytes that the kernel has not taken yet; see [`Writer::unsent_len`].
    pub fn unsent_len(&self) -> usize {
        self.0.writer.unsent_len()
    }
}

impl Sending {
    fn shared(&self) -> &Arc<Shared> {
        self.writer.shared()
    }

    fn high(&self) -> usize {
        self.shared().output_high_bytes()
    }

    /// Whether somebody has waited for so long that those who come leave the upper half of the watermark alone, so that what is
    /// unsent sinks to where he is woken.
    fn yields(&self) -> bool {
        // Relaxed: a moment sooner or later does not matter.
        let first = self.first_since.load(Ordering::Relaxed);
        first != NOBODY && self.shared().clock().now() as usize > first + OVERTAKEN_MS
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Has all look again: there is room for many messages, or for none ever again. One after the other would cost a switch
    /// of tasks for each message.
    fn wake_all(&self) {
        let mut queue = self.queue();
        let mut wakers: Vec<_> =
            queue.waits.iter_mut().filter_map(|waiting| waiting.waker.take()).collect();
        drop(queue);
        wakers.drain(..).for_each(|waker| wake(Some(waker)));
    }

    /// Somebody waits no more.
    fn leave(&self, number: u64) {
        let mut queue = self.queue();
        let left = queue.place(number).and_then(|place| queue.waits.remove(place));
        self.first_since.store(queue.first_since(), Ordering::Relaxed);
        let unused = match queue.waits.is_empty() {
            true => self.shared().life().end_writing(),
            false => None,
        };
        drop(queue);
        contain("a waker that was dropped", || drop((left, unused)));
    }
}

/// The connection has room, or has ended.
impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(sending) = self.0.upgrade() {
            sending.wake_all();
        }
    }
}

/// A message that waits for its turn and for room; without one, a wait until all is sent.
struct Wait<'a> {
    sending: &'a Arc<Sending>,
    message: Option<&'a mut LinkBuffer>,
    /// In the queue.
    number: Option<u64>,
    /// When it began.
    since: Tick,
}

impl Future for Wait<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Wait { sending, message, number, since } = &mut *self;
        let (shared, high) = (sending.shared(), sending.high());
        if let (Some(message), None) = (&mut *message, *number) {
            match shared.send_at_once(message, (high, sending.yields())) {
                Ok(false) => {}
                Ok(true) => return Poll::Ready(Ok(())),
                Err(refusal) => return Poll::Ready(Err(refusal.into())),
            }
        }
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        // First in the queue, then with the connection: who is woken in between polls again.
        let mut queue = sending.queue();
        let (number, before) = match *number {
            Some(number) => (number, queue.renew(number, waker)),
            None => {
                *since = shared.clock().now();
                let entered = queue.enter(*since, waker);
                sending.first_since.store(queue.first_since(), Ordering::Relaxed);
                (*number.insert(entered), None)
            }
        };
        drop(queue);
        contain("a waker that was dropped", || drop(before));
        let ours = Waker::from(sending.bell.clone());
        let mut cx = Context::from_waker(&ours);
        let result = shared.poll(&mut cx, true, &mut 0, |life, offer, clock| {
            life.send(message.as_deref_mut(), high, *since, offer, clock)
        });
        if result.is_ready() {
            self.number = None;
            self.sending.leave(number);
        }
        result.map_err(io::Error::from)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.sending.leave(number);
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("connection", self.0.shared())
            .field("waiting", &self.0.queue().waits.len())
            .finish()
    }
}
