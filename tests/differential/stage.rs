//! The stage: runs a script on one engine, over real sockets, and writes down what comes of it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use duopoll::{Address, Connection, Dialer, Engine, Limits, Pollers, Server, Stats};
use pollster::block_on;
use socket2::{SockRef, Socket};

use crate::author::ABORTED;
use crate::script::{
    Leave, Outcome, PeerEnd, PeerOp, Place, Planned, Script, Step, TIGHT_INPUT_BYTES,
    TIGHT_OUTPUT_BYTES, peers_bytes, users_bytes,
};
use crate::support::settled::Settled;
use crate::support::{Family, Peer, Setup, eventually};
use crate::user::{Desk, ReadOrder, control, failed};

/// How long a step may take before the script is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Turns without a send after which there is nothing to send.
const STILL_TURNS: u32 = 3;

/// What a tight connection's sockets may hold, in bytes.
const TIGHT_SEND_BYTES: usize = 32 << 10;
const TIGHT_RECEIVE_BYTES: usize = 64 << 10;

/// The servers, listeners and pollers of one engine and family, used by one script after the other.
pub(crate) struct Stage {
    setup: Setup,
    /// Of the script that is run.
    desk: Arc<Mutex<Option<Arc<Desk>>>>,
    /// Roomy and tight.
    servers: [Server; 2],
    pollers: Pollers,
    listener: Listener,
}

/// A listener of std's.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Stage {
    pub(crate) fn new(engine: Engine, family: Family) -> Stage {
        let setup = Setup { engine, family };
        let desk = Arc::default();
        Stage {
            setup,
            servers: [serve(setup, &desk, false), serve(setup, &desk, true)],
            desk,
            pollers: Pollers::options().engine(engine).count(1).start().expect("pollers"),
            listener: Listener::bind(family),
        }
    }

    /// The outcome of every step that has one, in their order; what nobody expected comes last.
    pub(crate) fn run(&self, script: &Script) -> Vec<Outcome> {
        let (read_done, reads) = mpsc::channel();
        let (write_done, writes) = mpsc::channel();
        let (caller, calls) = mpsc::channel();
        let desk = Arc::new(Desk::new(script.seed, read_done, write_done, caller));
        *self.desk.lock().expect("no panic") = Some(desk.clone());
        let own;
        let (peer, connection, barrier) = match script.place {
            Place::Served => {
                let server = if script.alone {
                    own = Arc::new(serve(self.setup, &self.desk, script.tight));
                    Barrier::Own(own)
                } else {
                    Barrier::Server(&self.servers[usize::from(script.tight)])
                };
                (Peer::connect(server.address()), None, server)
            }
            Place::Dialed | Place::Halves => {
                let (peer, connection) = self.dial(script.tight);
                desk.connected(connection.control());
                (peer, Some(connection), Barrier::Pollers(&self.pollers))
            }
        };
        if script.tight {
            receive_buffer(&peer, TIGHT_RECEIVE_BYTES);
        }
        let (reporter, detached) = mpsc::channel();
        let user =
            connection.map(|connection| start_user(script.place, connection, &desk, reporter));
        let mut play = Play {
            seed: script.seed,
            desk,
            barrier,
            peer: Some(PeerSide::new(peer, script.seed)),
            reads,
            writes,
            calls,
            detached,
            shutdown: None,
            user,
        };
        let mut trace = Vec::new();
        for Planned { step, expected } in &script.steps {
            let outcome = play.perform(step, expected.as_ref());
            let stuck = outcome == Some(Outcome::Stuck);
            trace.extend(outcome);
            if stuck {
                return trace;
            }
        }
        // What nobody has expected.
        trace.extend(play.calls.try_iter().map(Outcome::Called));
        trace.extend(play.reads.try_iter().chain(play.writes.try_iter()));
        trace
    }

    /// A connection that is dialed, and its other end.
    fn dial(&self, tight: bool) -> (Peer, Connection) {
        let dialer = Dialer::new().pollers(self.pollers.clone()).limits(limits(tight));
        let (peer, connection) = thread::scope(|scope| {
            let accepting = scope.spawn(|| self.listener.accept());
            let connection = block_on(dialer.dial_addr(self.listener.address()));
            (accepting.join().expect("no panic"), connection)
        });
        let connection = connection.expect("connected");
        if tight {
            let set = SockRef::from(&connection).set_send_buffer_size(TIGHT_SEND_BYTES);
            set.expect("a size");
        }
        (peer, connection)
    }
}

fn limits(tight: bool) -> Limits {
    let mut limits = Limits::default();
    if tight {
        limits.input_high_bytes = TIGHT_INPUT_BYTES;
        limits.output_high_bytes = TIGHT_OUTPUT_BYTES;
    }
    limits
}

fn receive_buffer(peer: &Peer, bytes: usize) {
    let set = match peer {
        Peer::Tcp(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
        Peer::Unix(stream) => SockRef::from(stream).set_recv_buffer_size(bytes),
    };
    set.expect("a size");
}

/// A server whose callbacks do what the script says.
fn serve(setup: Setup, current: &Arc<Mutex<Option<Arc<Desk>>>>, tight: bool) -> Server {
    let (preparing, connecting) = (current.clone(), current.clone());
    let desk_of = |current: &Mutex<Option<Arc<Desk>>>| {
        current.lock().expect("no panic").clone().expect("a script runs")
    };
    let service = setup
        .builder()
        .limits(limits(tight))
        .on_prepare(move |socket| {
            let _ = desk_of(&preparing).calls.send("prepare");
            match tight {
                true => SockRef::from(&socket).set_send_buffer_size(TIGHT_SEND_BYTES),
                false => Ok(()),
            }
        })
        .on_connect(async move |connection: &mut Connection| {
            let desk = desk_of(&connecting);
            desk.connected(connection.control());
            connection.set_state(desk);
            callback(connection, "connect").await
        })
        .on_disconnect(async |connection: &mut Connection| {
            let _ = callback(connection, "disconnect").await;
        })
        .on_request(async |connection: &mut Connection| callback(connection, "request").await);
    service.serve(setup.listener()).expect("a server")
}

async fn callback(connection: &mut Connection, name: &'static str) -> io::Result<()> {
    let desk = connection.state_mut::<Arc<Desk>>().expect("set by the first callback").clone();
    let _ = desk.calls.send(name);
    let (reader, writer) = connection.split();
    match desk.follow(reader, writer).await {
        Leave::WithError => Err(ErrorKind::Other.into()),
        // As a panic, but without the hook's report.
        Leave::WithPanic => std::panic::resume_unwind(Box::new("as the script wants it")),
        Leave::Normally | Leave::Detach => Ok(()),
    }
}

type Detached = io::Result<(Vec<u8>, Socket)>;

/// A user on a thread of its own.
fn start_user(
    place: Place,
    mut connection: Connection,
    desk: &Arc<Desk>,
    reporter: Sender<Detached>,
) -> JoinHandle<()> {
    let desk = desk.clone();
    thread::spawn(move || {
        block_on(async {
            if place == Place::Halves {
                let (reader, writer) = connection.into_split();
                desk.follow(reader, writer).await;
                return;
            }
            let (reader, writer) = connection.split();
            if desk.follow(reader, writer).await == Leave::Detach {
                let detached = connection.detach().await.map(|(socket, mut rest)| {
                    let all = rest.len();
                    (rest.read_bytes(all).expect("readable"), Socket::from(socket))
                });
                let _ = reporter.send(detached);
            }
        });
    })
}

/// What can be asked whether it has done what it was told.
enum Barrier<'a> {
    Server(&'a Server),
    Own(Arc<Server>),
    Pollers(&'a Pollers),
}

impl Barrier<'_> {
    fn address(&self) -> &Address {
        match self {
            Barrier::Server(server) => server.local_addr(),
            Barrier::Own(server) => server.local_addr(),
            Barrier::Pollers(_) => unreachable!("pollers do not listen"),
        }
    }

    fn stats(&self) -> Stats {
        match self {
            Barrier::Server(server) => server.settled(),
            Barrier::Own(server) => server.settled(),
            Barrier::Pollers(pollers) => pollers.settled(),
        }
    }

    /// Waits until the poller has done what it was told, and what it then had to do of itself. Each answer comes from a
    /// later turn, and in each of its turns a ring that sends submits the next send.
    fn pass(&self) {
        let mut sends = self.stats().sends;
        let mut still = 0;
        while still < STILL_TURNS {
            let now = self.stats().sends;
            still = if now == sends { still + 1 } else { 0 };
            sends = now;
        }
    }
}

/// One run of a script.
struct Play<'a> {
    seed: u64,
    desk: Arc<Desk>,
    barrier: Barrier<'a>,
    peer: Option<PeerSide>,
    reads: Receiver<Outcome>,
    writes: Receiver<Outcome>,
    calls: Receiver<&'static str>,
    detached: Receiver<Detached>,
    shutdown: Option<Receiver<usize>>,
    user: Option<JoinHandle<()>>,
}

impl Play<'_> {
    fn perform(&mut self, step: &Step, expected: Option<&Outcome>) -> Option<Outcome> {
        match step {
            Step::Read(at, op) => self.desk.reads.give(ReadOrder::Read(*at, op.clone())),
            Step::Write(at, op) => self.desk.writes.give((*at, op.clone())),
            Step::Control(op) => control(&self.desk.control(), *op),
            Step::Leave(leave) => {
                if *leave == Leave::Detach {
                    // The descriptor is to be the last of the socket's.
                    self.desk.control.lock().expect("no panic").take();
                }
                self.desk.reads.give(ReadOrder::Leave(*leave));
                // What is under way is dropped then, and cannot end by what the peer does next.
                if !self.desk.wait_until_begun(PATIENCE) {
                    return Some(Outcome::Stuck);
                }
            }
            Step::Barrier => {
                if !self.desk.wait_until_begun(PATIENCE) {
                    return Some(Outcome::Stuck);
                }
                self.barrier.pass();
            }
            Step::Shutdown(grace) => {
                let Barrier::Own(server) = &self.barrier else { return Some(Outcome::Stuck) };
                let (server, grace) = (server.clone(), Duration::from_millis(*grace));
                let (done, shutdown) = mpsc::channel();
                self.shutdown = Some(shutdown);
                thread::spawn(move || done.send(server.shutdown(grace)));
            }
            Step::Peer(op) => return self.peer_does(op),
            Step::Over => return Some(self.end()),

            Step::ReadDone => return Some(receive(&self.reads)),
            Step::ReadCutOff => {
                // The poller has ended, so nothing comes any more.
                return Some(match self.reads.try_recv() {
                    Ok(ABORTED) | Err(_) => Outcome::Dropped,
                    Ok(outcome) => outcome,
                });
            }
            Step::WriteDone => return Some(normal(receive(&self.writes), expected)),
            Step::Called => {
                return Some(
                    self.calls.recv_timeout(PATIENCE).map_or(Outcome::Stuck, Outcome::Called),
                );
            }
            Step::IsActive => {
                return Some(Outcome::Value(u64::from(self.desk.control().is_active())));
            }
            Step::ShutdownDone => {
                let forced = self.shutdown.take().and_then(|done| done.recv_timeout(PATIENCE).ok());
                return Some(forced.map_or(Outcome::Stuck, |forced| Outcome::Value(forced as u64)));
            }
            Step::Detached { at, unread, reply } => {
                let detached = self.detached.recv_timeout(PATIENCE);
                return Some(detached.map_or(Outcome::Stuck, |detached| {
                    self.use_detached(detached, *at, *unread, *reply)
                        .unwrap_or_else(|error| failed(&error))
                }));
            }
        }
        None
    }

    fn peer_does(&mut self, op: &PeerOp) -> Option<Outcome> {
        let Some(peer) = &mut self.peer else { return Some(Outcome::Wrong("no peer".into())) };
        match *op {
            PeerOp::Send(at, n) => peer.tell(Sending::Bytes(at, n)),
            PeerOp::Finish => peer.tell(Sending::Fin),
            PeerOp::Read(at, n) => return Some(peer.read(at, n)),
            PeerOp::ReadToEnd(at) => return Some(peer.read_to_end(at)),
            PeerOp::Reset => self.peer.take().into_iter().for_each(PeerSide::reset),
            PeerOp::Close => self.peer = None,
        }
        None
    }

    /// Reads what the connection had not, and replies, over the bare socket.
    fn use_detached(
        &self,
        detached: Detached,
        at: u64,
        unread: usize,
        (reply_at, reply): (u64, usize),
    ) -> io::Result<Outcome> {
        let (mut bytes, mut socket) = detached?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let had = bytes.len();
        bytes.resize(unread.max(had), 0);
        socket.read_exact(&mut bytes[had..])?;
        let mut pattern = users_bytes(self.seed, reply_at);
        let mut left = reply;
        while left > 0 {
            left -= socket.write(pattern.next(left))?;
        }
        Ok(match peers_bytes(self.seed, at).matches(&bytes) {
            true => Outcome::Bytes(at, bytes.len()),
            false => Outcome::Wrong(format!("{} bytes at {at}, detached", bytes.len())),
        })
    }

    /// Lets go of everything, and looks whether something is left.
    fn end(&mut self) -> Outcome {
        self.peer = None;
        if let Some(user) = self.user.take() {
            user.join().expect("no panic");
        }
        eventually("the connection is over", || {
            let stats = self.barrier.stats();
            stats.closed == stats.connections
        });
        if !self.desk.release_kept() {
            return Outcome::Wrong("a slice has changed".into());
        }
        Outcome::Value(self.desk.ends.load(Ordering::Relaxed))
    }
}

fn receive(outcomes: &Receiver<Outcome>) -> Outcome {
    outcomes.recv_timeout(PATIENCE).unwrap_or(Outcome::Stuck)
}

/// What the contract allows to differ is made equal; see [`Outcome::Broken`].
fn normal(outcome: Outcome, expected: Option<&Outcome>) -> Outcome {
    match (&outcome, expected) {
        (Outcome::Failed(_, Some(libc::ECONNRESET | libc::EPIPE)), Some(Outcome::Broken)) => {
            Outcome::Broken
        }
        _ => outcome,
    }
}

/// The peer: a socket of std's, with a thread that sends.
struct PeerSide {
    seed: u64,
    socket: Peer,
    sender: Option<(Sender<Sending>, JoinHandle<()>)>,
}

enum Sending {
    Bytes(u64, usize),
    Fin,
}

impl PeerSide {
    fn new(socket: Peer, seed: u64) -> PeerSide {
        socket.set_timeout(PATIENCE);
        PeerSide { seed, socket, sender: None }
    }

    fn tell(&mut self, what: Sending) {
        let (seed, socket) = (self.seed, &self.socket);
        let (sender, _) = self.sender.get_or_insert_with(|| {
            let socket = socket.try_clone();
            let (sender, orders) = mpsc::channel();
            (sender, thread::spawn(move || send(socket, seed, &orders)))
        });
        let _ = sender.send(what);
    }

    fn read(&mut self, at: u64, n: usize) -> Outcome {
        let mut bytes = vec![0; n];
        match self.socket.read_exact(&mut bytes) {
            Ok(()) if users_bytes(self.seed, at).matches(&bytes) => Outcome::Bytes(at, n),
            Ok(()) => Outcome::Wrong(format!("the peer got {n} bytes at {at}")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Outcome::Stuck,
            Err(error) => failed(&error),
        }
    }

    fn read_to_end(&mut self, at: u64) -> Outcome {
        let mut pattern = users_bytes(self.seed, at);
        let mut buffer = vec![0; 64 << 10];
        let mut at = at;
        let end = loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break PeerEnd::Fin,
                Ok(n) if pattern.matches(&buffer[..n]) => at += n as u64,
                Ok(n) => return Outcome::Wrong(format!("the peer got {n} bytes at {at}")),
                Err(error) => match error.kind() {
                    ErrorKind::ConnectionReset => break PeerEnd::Reset,
                    ErrorKind::WouldBlock => return Outcome::Stuck,
                    _ => break PeerEnd::Other,
                },
            }
        };
        Outcome::End(at, end)
    }

    fn reset(mut self) {
        self.end_sender();
        if let Peer::Tcp(stream) = &self.socket {
            SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
        }
    }

    /// What it was told to send is sent then, or cannot be.
    fn end_sender(&mut self) {
        if let Some((sender, thread)) = self.sender.take() {
            drop(sender);
            thread.join().expect("no panic");
        }
    }
}

impl Drop for PeerSide {
    fn drop(&mut self) {
        self.end_sender();
    }
}

/// Sends what it is told. An error is the user's doing, and seen there.
fn send(mut socket: Peer, seed: u64, orders: &Receiver<Sending>) {
    for order in orders {
        match order {
            Sending::Bytes(at, n) => {
                let mut pattern = peers_bytes(seed, at);
                let mut left = n;
                while left > 0 {
                    match socket.write(pattern.next(left)) {
                        Ok(n) => left -= n,
                        Err(_) => return,
                    }
                }
            }
            Sending::Fin => socket.shutdown(Shutdown::Write),
        }
    }
}

impl Listener {
    fn bind(family: Family) -> Listener {
        static NAMES: AtomicU32 = AtomicU32::new(0);
        let name = NAMES.fetch_add(1, Ordering::Relaxed);
        match family {
            Family::V4 => Listener::Tcp(TcpListener::bind("127.0.0.1:0").expect("bound")),
            Family::V6 => Listener::Tcp(TcpListener::bind("[::1]:0").expect("bound")),
            Family::Unix => {
                let name = format!("duopoll-differential-{}-{name}", std::process::id());
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name);
                let listener = UnixListener::bind_addr(&address.expect("a name"));
                Listener::Unix(listener.expect("bound"))
            }
        }
    }

    fn address(&self) -> Address {
        match self {
            Listener::Tcp(listener) => listener.local_addr().expect("bound").into(),
            Listener::Unix(listener) => {
                let address = listener.local_addr().expect("bound");
                let name = address.as_abstract_name().expect("a name");
                Address::Abstract(name.to_owned())
            }
        }
    }

    fn accept(&self) -> Peer {
        match self {
            Listener::Tcp(listener) => {
                let stream = listener.accept().expect("accepted").0;
                stream.set_nodelay(true).expect("nodelay can be set");
                Peer::Tcp(stream)
            }
            Listener::Unix(listener) => Peer::Unix(listener.accept().expect("accepted").0),
        }
    }
}
