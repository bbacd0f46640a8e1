//! The end that calls.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use duopoll_core::{Control, LinkBuffer, Reader, Sender, Slice, contain};

use crate::caught::caught;
use crate::connection::Connection;
use crate::mux::numbers::Numbers;
use crate::mux::protocol::{Head, Kind, Protocol, frame, invalid};
use crate::mux::room::{Place, Room};
use crate::mux::server::CALLS_MAX;
use crate::poller::over;
use crate::task::{spawn_near, yield_now};
use crate::time::{FAR, Sleep, sleep};

/// Messages that are received in a row while other tasks wait.
const MESSAGES_MAX: u32 = 128;

/// Calls over one connection, from any number of tasks and threads. Clones are the same client; the connection ends with the
/// last.
///
/// No more calls are under way at once than [`calls_max`](ClientOptions::calls_max); others wait until there is room. They have no
/// timeouts but those that [`timeout`](crate::time::timeout) gives them.
///
/// What is received is looked at by a task of the client's, on the poller of the thread that has made it, or one of those that
/// it would [use](crate::Pollers::enter).
///
/// # Errors
/// Of a call: those of a [`Sender`]; [`Other`](io::ErrorKind::Other) with the server's text for a failure;
/// [`ConnectionReset`](io::ErrorKind::ConnectionReset) or whatever has ended the connection, if that was before the reply came;
/// [`InvalidData`](io::ErrorKind::InvalidData) if the server has sent what is no reply. All that wait are told.
/// [`ConnectionRefused`](io::ErrorKind::ConnectionRefused) if the server shuts down, and has not begun with the request, which
/// may be sent to another.
///
/// # Cancellation
/// Dropping a call gives it up: if it was sent, the server goes on, and its reply is dropped when it comes.
pub struct Client<P: Protocol>(Arc<Shared<P>>);

/// How a [`Client`] works: see [`Client::options`].
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    calls_max: usize,
    ping: Option<Duration>,
}

struct Shared<P> {
    protocol: P,
    sender: Sender,
    calls: Mutex<Calls>,
}

struct Calls {
    /// Those that were begun and are not answered, or whose answer nobody has taken yet.
    begun: Numbers<Call>,
    /// For so many that the server may be busy with.
    room: Room,
    /// The server begins no more.
    going_away: bool,
    /// Why there will be no replies any more.
    ended: Option<Ended>,
}

/// A call, or a ping.
enum Call {
    /// It is about to be sent, or waits for its answer.
    Waiting(Kind, Option<Waker>),
    /// Nobody waits for its answer any more, with which the server may still be busy.
    GivenUp(Kind),
    Replied(io::Result<Slice>),
}

/// An error that many are told.
#[derive(Clone)]
struct Ended {
    kind: io::ErrorKind,
    errno: Option<i32>,
    text: String,
}

impl ClientOptions {
    /// How many calls may be under way at once, those included that were given up and are not answered yet; others wait, in
    /// turn. At most half as many as there are [numbers](Protocol::NUMBER_BITS). Default: [`CALLS_MAX`].
    pub fn calls_max(self, calls_max: usize) -> ClientOptions {
        ClientOptions { calls_max: calls_max.max(1), ..self }
    }

    /// Asks the server whether it is there when nothing has come from it for so long. When it has said nothing for as long
    /// again, the connection is ended, and its calls get [`TimedOut`](io::ErrorKind::TimedOut). Default: never.
    pub fn ping(self, period: Duration) -> ClientOptions {
        ClientOptions { ping: Some(period.clamp(Duration::from_millis(1), FAR)), ..self }
    }

    /// A client on a connection, which it has for itself from now on. Between messages its read timeout does not count.
    ///
    /// # Errors
    /// Those of a [`Sender`], if something is staged; what [`Pollers::global`](crate::Pollers::global) says, if it needs those.
    pub fn start<P: Protocol>(self, connection: Connection, protocol: P) -> io::Result<Client<P>> {
        let (reader, writer) = connection.into_split();
        let sender = writer.into_sender()?;
        let numbers = 1_usize.checked_shl(P::NUMBER_BITS).unwrap_or(usize::MAX);
        let room = Room::new(self.calls_max.min(numbers.div_ceil(2)));
        let begun = Numbers::new(P::NUMBER_BITS);
        let calls = Mutex::new(Calls { begun, room, going_away: false, ended: None });
        let shared = Arc::new(Shared { protocol, sender, calls });
        let receiving = Receiving(Arc::downgrade(&shared));
        spawn_near(receiving.run(reader, self.ping))?;
        Ok(Client(shared))
    }
}

impl<P: Protocol> Client<P> {
    /// As [`start`](ClientOptions::start), with what is usual.
    ///
    /// # Errors
    /// As there.
    pub fn new(connection: Connection, protocol: P) -> io::Result<Client<P>> {
        Client::<P>::options().start(connection, protocol)
    }

    /// How it is to work.
    pub fn options() -> ClientOptions {
        ClientOptions { calls_max: CALLS_MAX, ping: None }
    }

    /// Sends what is in `request`, which is empty then, and gives the reply.
    ///
    /// # Errors
    /// See [`Client`]. What was not sent is in `request` again.
    pub async fn call(&self, request: &mut LinkBuffer) -> io::Result<Slice> {
        let mut entering = Entering { shared: &*self.0, place: None };
        let number = poll_fn(|cx| entering.poll(cx)).await?;
        self.ask(Kind::Request, number, request).await
    }

    /// Asks whether the server is there, which it says before the replies of calls that take their time.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn ping(&self) -> io::Result<()> {
        let number = self.0.ping(Call::Waiting(Kind::Ping, None))?;
        self.ask(Kind::Ping, number, &mut LinkBuffer::new()).await.map(drop)
    }

    async fn ask(&self, kind: Kind, number: u64, request: &mut LinkBuffer) -> io::Result<Slice> {
        let shared = &*self.0;
        let mut call = Waiting { shared, number, sent: false };
        let mut message = LinkBuffer::new();
        frame(&shared.protocol, kind, number, request, &mut message)?;
        if let Err(error) = shared.sender.send(&mut message).await {
            message.flush();
            message.skip(P::HEADER_BYTES)?;
            request.append(&mut message);
            request.flush();
            return Err(error);
        }
        call.sent = true;
        poll_fn(|cx| Pin::new(&mut call).poll(cx)).await
    }

    /// Calls that are under way, those included that were given up and are not answered yet.
    pub fn calls(&self) -> usize {
        self.0.calls().room.taken()
    }

    /// Whether calls can still be made, as far as is known: the connection has not ended, and the server does not go away.
    pub fn is_active(&self) -> bool {
        let calls = self.0.calls();
        let open = calls.ended.is_none() && !calls.going_away;
        drop(calls);
        open && self.0.sender.control().is_active()
    }

    /// A handle on the connection, for its timeouts and its end.
    pub fn control(&self) -> Control {
        self.0.sender.control()
    }
}

impl<P: Protocol> Shared<P> {
    /// Asks the server whether it is there; nobody waits for the answer. Says whether it was asked, or takes nothing.
    fn ask(&self) -> bool {
        let Ok(number) = self.ping(Call::GivenUp(Kind::Ping)) else { return false };
        let mut message = LinkBuffer::new();
        let framed =
            frame(&self.protocol, Kind::Ping, number, &mut LinkBuffer::new(), &mut message);
        let asked = framed.and_then(|()| self.sender.try_send(&mut message));
        if !matches!(asked, Ok(true)) {
            self.calls().begun.remove(number);
        }
        // Where there is no room for it, what is before it has to go first, or the server is not there.
        asked.is_ok()
    }
}

impl<P> Shared<P> {
    fn ping(&self, call: Call) -> io::Result<u64> {
        let mut calls = self.calls();
        if let Some(ended) = &calls.ended {
            return Err(ended.error());
        }
        calls.begun.insert(call).ok_or_else(no_number)
    }

    /// A reply has come, perhaps to a call that was given up meanwhile.
    fn reply(&self, number: u64, reply: io::Result<Slice>) {
        let mut calls = self.calls();
        let (kind, before) = match calls.begun.get_mut(number) {
            Some(call @ Call::Waiting(..)) => {
                let before = mem::replace(call, Call::Replied(reply));
                (before.kind(), Some(before))
            }
            Some(Call::GivenUp(kind)) => {
                let kind = *kind;
                calls.begun.remove(number);
                (Some(kind), None)
            }
            // Nobody has asked.
            Some(Call::Replied(_)) | None => (None, None),
        };
        let next = if kind == Some(Kind::Request) { calls.room.leave() } else { None };
        let is_over = calls.close_if_over();
        drop(calls);
        before.into_iter().for_each(wake);
        wake_next(next);
        if is_over {
            self.sender.control().close();
        }
    }

    /// A call waits no more. If it was sent, the server is busy with it until it has answered.
    fn leave(&self, number: u64, sent: bool) -> Option<Call> {
        let mut calls = self.calls();
        let (mut left, mut next) = (None, None);
        match calls.begun.get_mut(number) {
            Some(call @ Call::Waiting(..)) if sent => {
                let given_up = Call::GivenUp(call.kind().unwrap_or(Kind::Request));
                left = Some(mem::replace(call, given_up));
            }
            Some(call) => {
                let was_sent = matches!(call, Call::Replied(_));
                let kind = call.kind();
                left = calls.begun.remove(number);
                if !was_sent && kind == Some(Kind::Request) {
                    next = calls.room.leave();
                }
            }
            None => {}
        }
        let is_over = calls.close_if_over();
        drop(calls);
        wake_next(next);
        if is_over {
            self.sender.control().close();
        }
        left
    }

    /// The server begins with no more requests. False if it has answered those that it had begun.
    fn go_away(&self) -> bool {
        let mut calls = self.calls();
        let goes_on = !mem::replace(&mut calls.going_away, true);
        let refused = calls.room.wake_all();
        let is_over = calls.close_if_over();
        drop(calls);
        refused.into_iter().for_each(|waker| wake_next(Some(waker)));
        if is_over {
            self.sender.control().close();
        }
        goes_on
    }

    /// There will be no more replies.
    fn end(&self, error: io::Error) {
        let ended = Ended::new(&error);
        let mut calls = self.calls();
        let ended = calls.ended.get_or_insert(ended).clone();
        let mut waiting = Vec::with_capacity(calls.begun.len());
        for call in calls.begun.values_mut() {
            if let Call::Waiting(..) = call {
                waiting.push(mem::replace(call, Call::Replied(Err(ended.error()))));
            }
        }
        let outside = calls.room.end();
        drop(calls);
        waiting.into_iter().for_each(wake);
        outside.into_iter().for_each(|waker| wake_next(Some(waker)));
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    /// Whether nothing is to come any more from a server that goes away: then the connection is to be closed.
    fn close_if_over(&mut self) -> bool {
        let is_over = self.going_away && self.begun.is_empty() && self.ended.is_none();
        if is_over {
            self.ended = Some(Ended::new(&refused()));
        }
        is_over
    }
}

impl Call {
    fn kind(&self) -> Option<Kind> {
        match self {
            Call::Waiting(kind, _) | Call::GivenUp(kind) => Some(*kind),
            Call::Replied(_) => None,
        }
    }
}

/// A call that waits for room.
struct Entering<'a, P> {
    shared: &'a Shared<P>,
    place: Option<Place>,
}

impl<P> Entering<'_, P> {
    /// The call's number, when there is room.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        let mut calls = self.shared.calls();
        let refused = match &calls.ended {
            _ if calls.going_away => Some(refused()),
            Some(ended) => Some(ended.error()),
            None => None,
        };
        if let Some(refused) = refused {
            return Poll::Ready(Err(refused));
        }
        let before = match calls.room.enter(&mut self.place, waker) {
            Ok(unused) => {
                self.place = None;
                let number = calls.begun.insert(Call::Waiting(Kind::Request, None));
                let next = if number.is_none() { calls.room.leave() } else { None };
                drop(calls);
                drop(unused);
                wake_next(next);
                return Poll::Ready(number.ok_or_else(no_number));
            }
            Err(before) => before,
        };
        drop(calls);
        drop(before);
        Poll::Pending
    }
}

impl<P> Drop for Entering<'_, P> {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let (unused, next) = self.shared.calls().room.give_up(place);
        contain("a waker that was dropped", || drop(unused));
        wake_next(next);
    }
}

fn wake_next(next: Option<Waker>) {
    if let Some(waker) = next {
        contain("a waker", || waker.wake());
    }
}

fn no_number() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "all numbers of calls are taken")
}

fn refused() -> io::Error {
    let text = "the server shuts down, and has not begun with the request";
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}

fn wake(call: Call) {
    if let Call::Waiting(_, waker) = call {
        wake_next(waker);
    }
}

/// A call's place among those that wait.
struct Waiting<'a, P> {
    shared: &'a Shared<P>,
    number: u64,
    /// Its request is on its way.
    sent: bool,
}

impl<P> Future for Waiting<'_, P> {
    type Output = io::Result<Slice>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Slice>> {
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        let mut calls = self.shared.calls();
        let before = match calls.begun.get_mut(self.number) {
            Some(Call::Waiting(_, before)) => before.replace(waker),
            _ => {
                drop(calls);
                return Poll::Ready(match self.shared.leave(self.number, self.sent) {
                    Some(Call::Replied(reply)) => reply,
                    _ => Err(io::ErrorKind::NotConnected.into()),
                });
            }
        };
        drop(calls);
        drop(before);
        Poll::Pending
    }
}

impl<P> Drop for Waiting<'_, P> {
    fn drop(&mut self) {
        let left = self.shared.leave(self.number, self.sent);
        contain("a waker that was dropped", || drop(left));
    }
}

/// Nobody calls any more.
impl<P> Drop for Shared<P> {
    fn drop(&mut self) {
        self.sender.control().close();
    }
}

/// What receives replies. However that ends, those who wait are told.
struct Receiving<P: Protocol>(Weak<Shared<P>>);

impl<P: Protocol> Receiving<P> {
    /// Until the connection or the client ends.
    async fn run(self, mut reader: Reader, ping: Option<Duration>) {
        let received = {
            let mut receiving = pin!(self.receive(&mut reader, ping));
            poll_fn(|cx| caught(|| receiving.as_mut().poll(cx))).await
        };
        match received {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.end(error),
            Err(panic) => {
                contain("what a protocol has panicked with", || drop(panic));
                self.end(io::Error::other("the protocol has panicked"));
            }
        }
    }

    async fn receive(&self, reader: &mut Reader, ping: Option<Duration>) -> io::Result<()> {
        let mut watch = ping.map(Watch::new);
        let mut in_a_row = 0;
        loop {
            let wanted = match &mut watch {
                None => self.one(reader).await?,
                Some(watch) => match watch.or_over(self.one(reader)).await {
                    Some(received) => received?,
                    None => {
                        let received = reader.consumed() + reader.buffer_mut().len() as u64;
                        let Some(shared) = self.0.upgrade() else { return Ok(()) };
                        if watch.asks(received, shared.sender.unsent_len())? {
                            watch.asked = shared.ask();
                        }
                        true
                    }
                },
            };
            if !wanted {
                return Ok(());
            }
            in_a_row = (in_a_row + 1) % MESSAGES_MAX;
            if in_a_row == 0 {
                yield_now().await;
            }
        }
    }

    /// Receives a message. False if nobody waits for any.
    async fn one(&self, reader: &mut Reader) -> io::Result<bool> {
        if reader.buffer_mut().is_empty() && !reader.next_request().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut head = None;
        let body = reader.frame(P::HEADER_BYTES, |header| {
            let Some(shared) = self.0.upgrade() else { return Ok(0) };
            let read = shared.protocol.read(header)?;
            Ok(head.insert(read).body_bytes)
        });
        let body = body.await?;
        let (Some(shared), Some(Head { kind, number, .. })) = (self.0.upgrade(), head) else {
            return Ok(false);
        };
        let reply = match kind {
            Kind::Reply | Kind::Pong => Ok(body),
            Kind::Failure => Err(io::Error::other(String::from_utf8_lossy(&body).into_owned())),
            Kind::Refused => Err(refused()),
            Kind::GoingAway if shared.go_away() => return Ok(true),
            Kind::GoingAway => return Err(refused()),
            Kind::Request | Kind::Ping => return Err(invalid(format!("{kind:?} from a server"))),
        };
        shared.reply(number, reply);
        Ok(true)
    }

    fn end(&self, error: io::Error) {
        if let Some(shared) = self.0.upgrade() {
            shared.end(error);
            // What cannot be answered any more is not to be sent either.
            shared.sender.control().close();
        }
    }
}

impl<P: Protocol> Drop for Receiving<P> {
    fn drop(&mut self) {
        self.end(over());
    }
}

/// Whether something comes from the server.
struct Watch {
    period: Duration,
    tick: Sleep,
    /// Bytes that had come by the last tick, and were unsent then.
    seen: (u64, usize),
    asked: bool,
}

impl Watch {
    fn new(period: Duration) -> Watch {
        Watch { period, tick: sleep(period), seen: (0, 0), asked: false }
    }

    /// Waits for what comes, unless the period ends first. What has come by then counts.
    async fn or_over<T>(&mut self, coming: impl Future<Output = T>) -> Option<T> {
        let mut coming = pin!(coming);
        poll_fn(|cx| match coming.as_mut().poll(cx) {
            Poll::Ready(came) => Poll::Ready(Some(came)),
            Poll::Pending => Pin::new(&mut self.tick).poll(cx).map(|()| None),
        })
        .await
    }

    /// A period is over, by which so much has come in all, and so much is unsent. Whether the server is to be asked if it is
    /// there.
    ///
    /// # Errors
    /// If it was, and has neither said anything since nor taken anything.
    fn asks(&mut self, received: u64, unsent: usize) -> io::Result<bool> {
        self.tick = sleep(self.period);
        let (before, unsent_before) = mem::replace(&mut self.seen, (received, unsent));
        let silent = before == received && unsent >= unsent_before;
        if silent && self.asked {
            let text = "nothing has come from the server, which was asked whether it is there";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.asked = false;
        Ok(silent)
    }
}

impl Ended {
    fn new(error: &io::Error) -> Ended {
        Ended { kind: error.kind(), errno: error.raw_os_error(), text: error.to_string() }
    }

    fn error(&self) -> io::Error {
        match (self.errno, self.kind) {
            (Some(errno), _) => io::Error::from_raw_os_error(errno),
            (None, io::ErrorKind::UnexpectedEof) => {
                let text = "the server has ended the connection";
                io::Error::new(io::ErrorKind::ConnectionReset, text)
            }
            (None, kind) => io::Error::new(kind, self.text.clone()),
        }
    }
}

impl<P: Protocol> Clone for Client<P> {
    fn clone(&self) -> Client<P> {
        Client(self.0.clone())
    }
}

impl<P: Protocol> fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("calls", &self.calls())
            .field("sender", &self.0.sender)
            .finish()
    }
}
