//! Dialing and accepting, without a server: from any thread, by any executor.

mod support;

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use duopoll::{Address, Connection, Dialer, Engine, Limits, Listener, Pollers};
use pollster::block_on;
use socket2::{Domain, Socket, Type};
use support::settled::Settled;
use support::{
    Family, Pattern, Peer, Setup, connected, errno, eventually, open_descriptors, poll_once,
};

on_every_setup!(
    dials_to_a_full_unix_listener_wait_without_threads,
    a_dialed_connection_talks_to_a_server,
    both_ends_can_be_ours,
    halves_work_on_different_threads,
    a_refused_connection_keeps_its_errno,
    a_dropped_dial_leaves_nothing,
    a_connection_ends_with_its_pollers,
    a_detached_socket_works_and_nothing_is_lost,
    a_blocking_connection_reads_and_writes,
    a_socket_of_std_can_be_taken_over,
    what_a_socket_of_std_holds_is_not_lost,
);

fn dialer(setup: Setup) -> Dialer {
    Dialer::new().pollers(setup.pollers(1))
}

async fn round_trip(connection: &mut Connection, message: &[u8]) -> io::Result<()> {
    connection.write(message)?;
    connection.flush().await?;
    assert_eq!(connection.next(message.len()).await?, *message);
    Ok(())
}

fn a_dialed_connection_talks_to_a_server(setup: Setup) {
    let server = setup.serve_echo();
    let dialer = dialer(setup);
    block_on(async {
        let mut connection = dialer.dial_addr(server.local_addr().clone()).await?;
        for len in [1, 100, 10_000, 1_000_000] {
            round_trip(&mut connection, Pattern::new(3).next(len)).await?;
        }
        assert_eq!(connection.peer_addr()?, *server.local_addr());
        io::Result::Ok(())
    })
    .expect("echoes");
}

fn both_ends_can_be_ours(setup: Setup) {
    let listener = setup.listener();
    let address = listener.local_addr().expect("bound");
    let server = thread::spawn(move || {
        block_on(async {
            for _ in 0..300 {
                let mut connection = listener.accept().await?;
                let request = connection.next(5).await?;
                connection.push(request);
                connection.drain().await?;
            }
            io::Result::Ok(())
        })
    });
    let dialer = dialer(setup);
    block_on(async {
        for _ in 0..300 {
            let mut connection = dialer.dial_addr(address.clone()).await?;
            round_trip(&mut connection, b"hello").await?;
            assert!(!connection.more().await?, "the end");
        }
        io::Result::Ok(())
    })
    .expect("served");
    server.join().expect("no panic").expect("served");
}

fn halves_work_on_different_threads(setup: Setup) {
    let server = setup.serve_echo();
    let dialer = dialer(setup);
    let connection = block_on(dialer.dial_addr(server.local_addr().clone()));
    let (mut reader, mut writer) = connection.expect("connected").into_split();
    const BYTES: usize = 20 << 20;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut pattern = Pattern::new(4);
            let mut left = BYTES;
            while left > 0 {
                let piece = pattern.next(left.min(100_000));
                left -= piece.len();
                writer.push(piece);
                block_on(writer.flush()).expect("sent");
            }
            block_on(writer.drain()).expect("sent");
            writer.finish();
            // The reader's half stays open, and so does the writer's until the other end has answered.
            writer
        });
        let mut pattern = Pattern::new(4);
        let mut received = 0;
        while block_on(reader.more()).expect("received") {
            while let Some(chunk) = reader.buffer_mut().next_chunk(usize::MAX) {
                assert!(pattern.matches(&chunk));
                received += chunk.len();
            }
        }
        assert_eq!(received, BYTES);
    });
}

fn a_refused_connection_keeps_its_errno(setup: Setup) {
    let address = setup.listener().local_addr().expect("bound");
    // The listener is gone: nobody is there.
    let error = block_on(dialer(setup).dial_addr(address)).expect_err("nobody listens");
    assert_eq!(errno(&error), Some(libc::ECONNREFUSED), "{error}");
}

fn a_dropped_dial_leaves_nothing(setup: Setup) {
    let server = setup.serve_echo();
    let dialer = dialer(setup);
    // Whatever is made at the first use is made now.
    drop(block_on(dialer.dial_addr(server.local_addr().clone())).expect("connected"));
    for _ in 0..50 {
        let mut dial = Box::pin(dialer.dial_addr(server.local_addr().clone()));
        let waker = std::task::Waker::noop();
        // Mostly it is dropped on its way; now and then the poller is faster, and it is dropped established.
        let _ = dial.as_mut().poll(&mut std::task::Context::from_waker(waker));
    }
    eventually("every connection is over", || {
        let stats = server.settled();
        stats.connections == stats.closed
    });
}

fn a_connection_ends_with_its_pollers(setup: Setup) {
    let server = setup.serve_echo();
    let pollers = setup.pollers(1);
    let dial = async |pollers: Pollers| {
        Dialer::new().pollers(pollers).dial_addr(server.local_addr().clone()).await
    };
    let mut connection = block_on(dial(pollers.clone())).expect("connected");
    block_on(round_trip(&mut connection, b"x")).expect("echoes");
    // It keeps its poller, which ends with an error and not with a hang.
    drop(pollers.clone());
    pollers.stop();
    let error = block_on(connection.next(1)).expect_err("nobody polls");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
}

fn a_detached_socket_works_and_nothing_is_lost(setup: Setup) {
    let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
    let mut sent = Pattern::new(8);
    for _ in 0..20 {
        peer.write_all(sent.next(5000)).expect("sent");
    }
    block_on(connection.skip(100)).expect("received");
    connection.push(vec![1; 300_000]);
    let (socket, mut rest) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut reply = vec![0; 300_000];
            peer.read_exact(&mut reply).expect("sent before");
        });
        block_on(connection.detach()).expect("detached")
    });
    // The rest comes partly out of the buffer and partly out of the socket.
    let mut socket = Socket::from(socket);
    socket.set_nonblocking(false).expect("a socket");
    peer.shutdown(std::net::Shutdown::Write);
    let mut all = rest.read_bytes(rest.len()).expect("readable");
    socket.read_to_end(&mut all).expect("the rest");
    let mut pattern = Pattern::new(8);
    pattern.next(100);
    assert_eq!(all.len(), 20 * 5000 - 100);
    assert!(pattern.matches(&all));
    socket.write_all(b"still here").expect("open");
    drop(socket);
    assert_eq!(peer.read_rest().expect("the end"), b"still here");
}

fn a_blocking_connection_reads_and_writes(setup: Setup) {
    let (_pollers, connection, mut peer) = connected(setup, Limits::default());
    let mut blocking = connection.into_blocking();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut line = String::new();
            blocking.read_line(&mut line).expect("a line");
            assert_eq!(line, "hello\n");
            blocking.write_all(&vec![7; 5 << 20]).expect("sent");
            blocking.flush().expect("sent");
        });
        peer.write_all(b"hello\n").expect("sent");
        assert_eq!(peer.read_rest().expect("the end").len(), 5 << 20);
    });
    let server = setup.serve(async |connection: &mut Connection| {
        let pollers = Pollers::global()?;
        let (one, _other) = std::os::unix::net::UnixStream::pair()?;
        let error = pollers.adopt(one).await?.into_blocking().read(&mut [0]);
        assert_eq!(error.expect_err("a poller must not block").kind(), ErrorKind::Deadlock);
        support::echo(connection).await
    });
    assert_eq!(Peer::connect(server.local_addr()).round_trip(b"x"), b"x");
}

/// One that blocks, with a request in the kernel and its peer's end behind it.
fn what_a_socket_of_std_holds_is_not_lost(setup: Setup) {
    let pollers = setup.pollers(1);
    let listener = setup.listener();
    let mut peer = Peer::connect(&listener.local_addr().expect("bound"));
    let socket = socket2::SockRef::from(&listener);
    socket.set_nonblocking(false).expect("a socket");
    let (accepted, _) = socket.accept().expect("accepted");
    let message = &Pattern::new(9).next(30_000)[..30_000];
    peer.write_all(message).expect("sent");
    peer.shutdown(std::net::Shutdown::Write);
    let mut connection = block_on(pollers.adopt(accepted)).expect("adopted");
    assert_eq!(block_on(connection.next(message.len())).expect("received"), *message);
    assert!(!block_on(connection.more()).expect("the end"));
    connection.push(message);
    block_on(connection.drain()).expect("sent");
    drop(connection);
    assert_eq!(peer.read_rest().expect("the end"), message);
    drop(peer);
    eventually("it is over", || pollers.settled().closed == 1);
}

fn a_socket_of_std_can_be_taken_over(setup: Setup) {
    let (pollers, mut connection, mut peer) = connected(setup, Limits::default());
    peer.write_all(b"ping").expect("sent");
    assert_eq!(block_on(connection.next(4)).expect("received"), b"ping");
    let file = std::fs::File::open("/dev/null").expect("a file");
    assert!(block_on(pollers.adopt(file)).is_err(), "not a socket");
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let error = block_on(pollers.adopt(datagram)).expect_err("not a stream");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let unconnected = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let error = block_on(pollers.adopt(unconnected)).expect_err("not connected");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn a_dial_to_a_listener_that_never_accepts_times_out() {
    // A Unix listener whose backlog is full makes connect(2) wait.
    let listener = std::os::unix::net::UnixListener::bind_addr(&abstract_name("full"));
    let listener = listener.expect("bound");
    // SAFETY: listen(2) takes no memory.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    let timeout = Duration::from_millis(100);
    let address: Address = format!("unix:@{}", name("full")).parse().expect("an address");
    let dialer = Dialer::new().timeout(timeout);
    let mut connections = Vec::new();
    let start = loop {
        let start = Instant::now();
        match block_on(dialer.dial_addr(address.clone())) {
            Ok(connection) => connections.push(connection),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
                break start;
            }
        }
        assert!(connections.len() < 10, "the backlog is never full");
    };
    assert!(start.elapsed() >= timeout);
}

fn name(what: &str) -> String {
    format!("duopoll-dial-{}-{what}", std::process::id())
}

fn abstract_name(what: &str) -> std::os::unix::net::SocketAddr {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name(what)).expect("a name")
}

fn dials_to_a_full_unix_listener_wait_without_threads(setup: Setup) {
    const DIALS: usize = 100;
    if setup.family != Family::Unix {
        return;
    }
    let what = format!("full-{:?}", setup.engine);
    let listener = std::os::unix::net::UnixListener::bind_addr(&abstract_name(&what));
    let listener = listener.expect("bound");
    // SAFETY: listen(2) takes no memory.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    let address: Address = format!("unix:@{}", name(&what)).parse().expect("an address");
    let pollers = setup.pollers(1);
    let dialer = Dialer::new().pollers(pollers.clone());
    let _first = block_on(dialer.dial_addr(address.clone())).expect("there is room for one");
    let mut dials: Vec<_> =
        (0..DIALS).map(|_| Box::pin(dialer.dial_addr(address.clone()))).collect();
    // However often they are polled, and look again.
    for _ in 0..20 {
        for dial in &mut dials {
            assert!(poll_once(dial.as_mut()).is_pending());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    listener.accept().expect("the first");
    eventually("there is room again", || {
        dials.iter_mut().any(|dial| poll_once(dial.as_mut()).is_ready())
    });
    drop(dials);
    // The one that is closed has a timer for its peer's end.
    eventually("no timer is left", || pollers.settled().timers == 0);
    assert!(pollers.settled().connections >= 2);
}

#[test]
fn a_name_is_resolved_and_both_families_are_tried() {
    // `localhost` may mean ::1 first, where nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let connection = block_on(Dialer::new().dial(&format!("localhost:{port}")));
    let address = connection.expect("connected").peer_addr().expect("connected");
    assert_eq!(address, listener.local_addr().expect("bound").into());
}

#[test]
fn what_cannot_be_dialed_is_an_error() {
    for text in ["", "localhost", ":80", "localhost:", "localhost:70000", "unix:"] {
        let error = block_on(Dialer::new().dial(text)).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
    }
}

#[test]
fn the_local_address_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let remote = listener.local_addr().expect("bound");
    let dialer = Dialer::new().local_addr("127.0.0.2:0").expect("an address");
    let connection = block_on(dialer.dial_addr(remote)).expect("connected");
    let Ok(Address::Tcp(local)) = connection.local_addr() else { panic!("a TCP address") };
    assert_eq!(local.ip().to_string(), "127.0.0.2");
    let v6 = block_on(dialer.dial("[::1]:80")).expect_err("of another family");
    assert_eq!(v6.kind(), ErrorKind::NotFound);
}

#[test]
fn a_listener_accepts_a_burst_and_loses_none() {
    let listener = Setup { engine: Engine::Auto, family: Family::V4 }.listener();
    let address = listener.local_addr().expect("bound");
    let before = open_descriptors();
    let peers: Vec<_> = (0..500).map(|_| support::Peer::connect(&address)).collect();
    block_on(async {
        for _ in &peers {
            listener.accept().await?;
        }
        io::Result::Ok(())
    })
    .expect("all are accepted");
    drop((peers, listener));
    eventually("all are closed", || open_descriptors() <= before + 32);
}

#[test]
fn a_std_listener_can_be_taken_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound");
    let listener = Listener::from(listener);
    let mut peer = support::Peer::connect(&address.into());
    let mut connection = block_on(listener.accept()).expect("accepted");
    std::io::Write::write_all(&mut peer, b"ping").expect("sent");
    assert_eq!(block_on(connection.next(4)).expect("received"), b"ping");
}
