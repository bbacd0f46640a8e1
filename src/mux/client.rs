//! The end that calls.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use duopoll_core::{Control, LinkBuffer, Reader, Sender, Slice, Token, TokenSlab, contain};

use crate::connection::Connection;
use crate::mux::protocol::{Head, Kind, Protocol, frame, invalid};
use crate::poller::over;
use crate::task::spawn_near;

/// Calls over one connection, from any number of tasks and threads. Clones are the same client; the connection ends with the
/// last.
///
/// What is received is looked at by a task of the client's, on the poller of the thread that has made it, or one of those that
/// it would [use](crate::Pollers::enter).
///
/// # Errors
/// Of a call: those of a [`Sender`]; [`Other`](io::ErrorKind::Other) with the server's text for a failure;
/// [`ConnectionReset`](io::ErrorKind::ConnectionReset) or whatever has ended the connection, if that was before the reply came;
/// [`InvalidData`](io::ErrorKind::InvalidData) if the server has sent what is no reply. All that wait are told.
///
/// # Cancellation
/// Dropping a call gives it up: if it was sent, the server goes on, and its reply is dropped when it comes.
pub struct Client<P: Protocol>(Arc<Shared<P>>);

/// The way to a client, which it does not keep.
pub(super) struct WeakClient<P: Protocol>(Weak<Shared<P>>);

impl<P: Protocol> WeakClient<P> {
    pub(super) fn upgrade(&self) -> Option<Client<P>> {
        self.0.upgrade().map(Client)
    }
}

struct Shared<P> {
    protocol: P,
    sender: Sender,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    /// By their numbers, which are tokens.
    waiting: TokenSlab<Call>,
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

impl<P: Protocol> Client<P> {
    /// A client on a connection, which it has for itself from now on.
    ///
    /// # Errors
    /// Those of a [`Sender`], if something is staged; what [`Pollers::global`](crate::Pollers::global) says, if it needs those.
    pub fn new(connection: Connection, protocol: P) -> io::Result<Client<P>> {
        let (reader, writer) = connection.into_split();
        let sender = writer.into_sender()?;
        let shared = Arc::new(Shared { protocol, sender, calls: Mutex::default() });
        let receiving = Receiving(Arc::downgrade(&shared));
        spawn_near(receiving.run(reader))?;
        Ok(Client(shared))
    }

    /// Sends what is in `request`, which is empty then, and gives the reply.
    ///
    /// # Errors
    /// See [`Client`].
    pub async fn call(&self, request: &mut LinkBuffer) -> io::Result<Slice> {
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
        let number = shared.enter()?;
        let mut call = Waiting { shared, number };
        let mut message = LinkBuffer::new();
        frame(&shared.protocol, kind, number, request, &mut message)?;
        shared.sender.send(&mut message).await?;
        poll_fn(|cx| Pin::new(&mut call).poll(cx)).await
    }

    pub(super) fn downgrade(&self) -> WeakClient<P> {
        WeakClient(Arc::downgrade(&self.0))
    }

    /// Calls that wait for their replies.
    pub fn calls(&self) -> usize {
        self.0.calls().waiting.len()
    }

    /// Whether calls can still be made, as far as is known.
    pub fn is_active(&self) -> bool {
        self.0.calls().ended.is_none() && self.0.sender.control().is_active()
    }

    /// A handle on the connection, for its timeouts and its end.
    pub fn control(&self) -> Control {
        self.0.sender.control()
    }
}

impl<P> Shared<P> {
    fn enter(&self) -> io::Result<u64> {
        let mut calls = self.calls();
        if let Some(ended) = &calls.ended {
            return Err(ended.error());
        }
        Ok(calls.waiting.insert_with(|_| Call::Waiting(None)).to_bits())
    }

    /// A reply has come, perhaps to a call that was given up meanwhile.
    fn reply(&self, number: u64, reply: io::Result<Slice>) {
        let mut calls = self.calls();
        let call = calls.waiting.get_mut(Token::from_bits(number));
        let before = call.map(|call| mem::replace(call, Call::Replied(reply)));
        drop(calls);
        before.into_iter().for_each(wake);
    }

    /// There will be no more replies.
    fn end(&self, error: io::Error) {
        let ended = Ended::new(&error);
        let mut calls = self.calls();
        calls.ended.get_or_insert_with(|| ended.clone());
        let tokens: Vec<_> = calls.waiting.tokens().collect();
        let mut waiting = Vec::with_capacity(tokens.len());
        for token in tokens {
            if let Some(call @ Call::Waiting(_)) = calls.waiting.get_mut(token) {
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
        let before = match calls.waiting.get_mut(Token::from_bits(self.number)) {
            Some(Call::Waiting(before)) => before.replace(waker),
            _ => {
                let call = calls.waiting.remove(Token::from_bits(self.number));
                drop(calls);
                return Poll::Ready(match call {
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
        let call = self.shared.calls().waiting.remove(Token::from_bits(self.number));
        drop(call);
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
    async fn run(self, mut reader: Reader) {
        loop {
            match self.one(&mut reader).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.end(error),
            }
        }
    }

    /// Receives a message. False if nobody waits for any.
    async fn one(&self, reader: &mut Reader) -> io::Result<bool> {
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
