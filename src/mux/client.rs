//! The end that calls.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_lock::Semaphore;
use duopoll_core::{Control, LinkBuffer, Reader, Sender, Slice, contain};

use crate::connection::Connection;
use crate::mux::numbers::Numbers;
use crate::mux::protocol::{Head, Kind, Protocol, frame, invalid};
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
    /// Room for so many calls.
    room: Semaphore,
    calls: Mutex<Calls>,
}

struct Calls {
    waiting: Numbers<Call>,
    /// The server begins no more.
    going_away: bool,
    /// Why there will be no replies any more.
    ended: Option<Ended>,
}

/// A call that waits.
enum Call {
    Waiting(Option<Waker>),
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
    /// How many calls may be under way at once. Default: [`CALLS_MAX`].
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
        let waiting = Numbers::new(P::NUMBER_BITS);
        let calls = Mutex::new(Calls { waiting, going_away: false, ended: None });
        let room = Semaphore::new(self.calls_max);
        let shared = Arc::new(Shared { protocol, sender, room, calls });
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
        let _room = self.0.room.acquire().await;
        self.ask(Kind::Request, request).await
    }

    /// Asks whether the server is there, which it says before the replies of calls that take their time.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn ping(&self) -> io::Result<()> {
        self.ask(Kind::Ping, &mut LinkBuffer::new()).await.map(drop)
    }

    async fn ask(&self, kind: Kind, request: &mut LinkBuffer) -> io::Result<Slice> {
        let shared = &*self.0;
        let number = shared.enter(kind, Call::Waiting(None))?;
        let mut call = Waiting { shared, number };
        let mut message = LinkBuffer::new();
        frame(&shared.protocol, kind, number, request, &mut message)?;
        if let Err(error) = shared.sender.send(&mut message).await {
            message.flush();
            message.skip(P::HEADER_BYTES)?;
            request.append(&mut message);
            request.flush();
            return Err(error);
        }
        poll_fn(|cx| Pin::new(&mut call).poll(cx)).await
    }

    /// Calls that wait for their replies.
    pub fn calls(&self) -> usize {
        self.0.calls().waiting.len()
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

impl<P> Shared<P> {
    fn enter(&self, kind: Kind, call: Call) -> io::Result<u64> {
        let mut calls = self.calls();
        if let Some(ended) = &calls.ended {
            return Err(ended.error());
        }
        if calls.going_away && kind == Kind::Request {
            return Err(refused());
        }
        let number = calls.waiting.insert(call);
        number.ok_or_else(|| io::Error::other("all numbers of calls are taken"))
    }

    /// A reply has come, perhaps to a call that was given up meanwhile.
    fn reply(&self, number: u64, reply: io::Result<Slice>) {
        let mut calls = self.calls();
        let call = calls.waiting.get_mut(number);
        let before = call.map(|call| mem::replace(call, Call::Replied(reply)));
        drop(calls);
        before.into_iter().for_each(wake);
    }

    /// A call waits no more.
    fn leave(&self, number: u64) -> Option<Call> {
        let mut calls = self.calls();
        let call = calls.waiting.remove(number);
        let is_over = calls.going_away && calls.waiting.is_empty();
        drop(calls);
        if is_over {
            self.sender.control().close();
        }
        call
    }

    /// The server begins with no more requests. False if it has answered those that it had begun.
    fn go_away(&self) -> bool {
        let mut calls = self.calls();
        let goes_on = !mem::replace(&mut calls.going_away, true);
        let is_over = calls.waiting.is_empty();
        drop(calls);
        if is_over {
            self.sender.control().close();
        }
        goes_on
    }

    /// There will be no more replies.
    fn end(&self, error: io::Error) {
        let ended = Ended::new(&error);
        let mut calls = self.calls();
        calls.ended.get_or_insert_with(|| ended.clone());
        let mut waiting = Vec::with_capacity(calls.waiting.len());
        for call in calls.waiting.values_mut() {
            if let Call::Waiting(_) = call {
                waiting.push(mem::replace(call, Call::Replied(Err(ended.error()))));
            }
        }
        drop(calls);
        waiting.into_iter().for_each(wake);
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused() -> io::Error {
    let text = "the server shuts down, and has not begun with the request";
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}

fn wake(call: Call) {
    if let Call::Waiting(Some(waker)) = call {
        contain("a waker", || waker.wake());
    }
}

/// A call's place among those that wait.
struct Waiting<'a, P> {
    shared: &'a Shared<P>,
    number: u64,
}

impl<P> Future for Waiting<'_, P> {
    type Output = io::Result<Slice>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Slice>> {
        // Cloned and dropped without the lock: it is a user's.
        let waker = cx.waker().clone();
        let mut calls = self.shared.calls();
        let before = match calls.waiting.get_mut(self.number) {
            Some(Call::Waiting(before)) => before.replace(waker),
            _ => {
                drop(calls);
                return Poll::Ready(match self.shared.leave(self.number) {
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
        drop(self.shared.leave(self.number));
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
        if let Err(error) = self.receive(&mut reader, ping).await {
            self.end(error);
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
                        let received = reader.consumed() + reader.buffer().len() as u64;
                        !watch.asks(received)? || self.ask()
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
        if reader.buffer().is_empty() && !reader.next_request().await? {
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

    /// Asks the server whether it is there; nobody waits for the answer. False if nobody wants to know.
    fn ask(&self) -> bool {
        let Some(shared) = self.0.upgrade() else { return false };
        let asked =
            shared.enter(Kind::Ping, Call::Replied(Ok(Slice::default()))).and_then(|number| {
                // Its answer is dropped like that of a call that was given up.
                shared.leave(number);
                let mut message = LinkBuffer::new();
                frame(&shared.protocol, Kind::Ping, number, &mut LinkBuffer::new(), &mut message)?;
                shared.sender.try_send(&mut message)
            });
        if let Err(error) = asked {
            log::debug!("a server cannot be asked whether it is there: {error}");
        }
        true
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
    /// Bytes that had come by the last tick.
    received: u64,
    asked: bool,
}

impl Watch {
    fn new(period: Duration) -> Watch {
        Watch { period, tick: sleep(period), received: 0, asked: false }
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

    /// A period is over, in which so much has come in all. Whether the server is to be asked if it is there.
    ///
    /// # Errors
    /// If it was, and has not answered.
    fn asks(&mut self, received: u64) -> io::Result<bool> {
        self.tick = sleep(self.period);
        let silent = mem::replace(&mut self.received, received) == received;
        if silent && self.asked {
            let text = "nothing has come from the server, which was asked whether it is there";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.asked = silent;
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
