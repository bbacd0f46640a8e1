//! What a request of HTTP and a message of TLS cost beyond what hyper and rustls allocate themselves: nothing.

mod common;
#[path = "../../../tests/support/counting.rs"]
mod counting;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::io::{self, IoSlice, Read, Write};
use std::mem;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::tls::{client, client_config, round_trip, server_config, server_name};
use counting::{allocations, alone, count_this_thread, fewest_allocations, held_bytes};
use duopoll::hyper::{Http, PollerTimer};
use duopoll::tls::TlsAcceptor;
use duopoll::{Connection, Engine, Server, task};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConnection, ServerConfig};
use support::{Family, Peer, Setup, eventually};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
const HELLO: &str = "hello\n";
const REQUESTS: u64 = 500;

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(HELLO.as_bytes()))))
}

/// A client in memory, which asks again when it has the reply.
struct Memory {
    left: u64,
    unread: &'static [u8],
    waited: bool,
    /// What the second half of the requests has cost.
    costs: Arc<AtomicU64>,
}

impl hyper::rt::Read for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut target: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // It is waited for, as from a network.
        if self.unread.is_empty() && !mem::replace(&mut self.waited, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.left {
            _ if !self.unread.is_empty() => {}
            0 => {
                let before = self.costs.load(Relaxed);
                self.costs.store(allocations() - before, Relaxed);
                return Poll::Ready(Ok(()));
            }
            REQUESTS => self.costs.store(allocations(), Relaxed),
            _ => {}
        }
        if self.unread.is_empty() {
            (self.unread, self.left, self.waited) = (REQUEST, self.left - 1, false);
        }
        let (front, rest) = self.unread.split_at(self.unread.len().min(target.remaining()));
        target.put_slice(front);
        self.unread = rest;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What so many requests cost without a connection.
fn in_memory() -> u64 {
    task::block_on(async {
        count_this_thread();
        let mut builder = http1::Builder::new();
        builder.timer(PollerTimer).header_read_timeout(Duration::from_secs(30));
        let costs = Arc::new(AtomicU64::new(0));
        let memory =
            Memory { left: 2 * REQUESTS, unread: &[], waited: false, costs: costs.clone() };
        // The end comes before the last reply is made, which hyper minds.
        let _ = builder.serve_connection(memory, service_fn(hello)).with_upgrades().await;
        costs.load(Relaxed)
    })
    .expect("an engine")
}

fn serve(setup: Setup) -> Server {
    let http = Http::new();
    let service = setup.builder().on_connection(async move |connection: Connection| {
        count_this_thread();
        http.serve(connection, service_fn(hello)).await
    });
    service.serve(setup.listener()).expect("a server")
}

/// Asks, or asks the rest, and says how long the reply is.
fn ask(peer: &mut Peer, request: &[u8]) -> usize {
    let mut reply = Vec::new();
    peer.write_all(request).expect("sent");
    while !reply.ends_with(HELLO.as_bytes()) {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("a reply");
        reply.push(byte[0]);
    }
    reply.len()
}

#[test]
fn a_request_of_http_costs_what_hyper_costs() {
    let _alone = alone();
    let expected = thread::spawn(in_memory).join().expect("no panic");
    for engine in [Engine::Epoll, Engine::Uring] {
        let setup = Setup { engine, family: Family::V4 };
        let server = serve(setup);
        let mut peer = Peer::connect(server.local_addr());
        let reply = ask(&mut peer, REQUEST);
        let mut requests = || {
            for _ in 0..REQUESTS {
                peer.round_trip_of(REQUEST, reply);
            }
        };
        requests();
        let fewest = fewest_allocations(requests);
        assert!(fewest <= expected, "{engine:?}: {fewest} allocations for {expected}");
    }
}

/// hyper's buffers are 16 KiB. They are there again for the next request, whose head may have come in part before.
#[test]
fn idle_connections_of_http_hold_no_buffers() {
    const CONNECTIONS: usize = 50;
    let _alone = alone();
    for engine in [Engine::Epoll, Engine::Uring] {
        let setup = Setup { engine, family: Family::V4 };
        let server = serve(setup);
        // What grows with the first.
        ask(&mut Peer::connect(server.local_addr()), REQUEST);
        let before = held_bytes();
        let each = || held_bytes().wrapping_sub(before) as usize / CONNECTIONS;
        let mut peers: Vec<_> =
            (0..CONNECTIONS).map(|_| Peer::connect(server.local_addr())).collect();
        for cut in [0, 1, 10, REQUEST.len() - 1] {
            let (front, rest) = REQUEST.split_at(cut);
            peers.iter_mut().for_each(|peer| peer.write_all(front).expect("sent"));
            peers.iter_mut().for_each(|peer| {
                ask(peer, rest);
            });
            assert!(each() > 16 << 10, "{engine:?}: {} bytes each", each());
            eventually("buffers are given back", || each() < 4 << 10);
        }
    }
}

const MESSAGE: [u8; 1000] = [b'x'; 1000];

/// What so many messages there and back cost a server without a connection.
fn tls_in_memory(config: Arc<ServerConfig>) -> u64 {
    let client = ClientConnection::new(Arc::new(client_config()), server_name());
    let mut client = client.expect("a configuration");
    let server = UnbufferedServerConnection::new(config);
    let mut server = server.expect("a configuration");
    let (mut incoming, mut outgoing) = (Vec::new(), vec![0; 20_000]);
    let mut costs = 0;
    for round in 0..2 * REQUESTS {
        client.writer().write_all(&MESSAGE).expect("room");
        let mut has_come = false;
        while !has_come {
            while client.wants_write() {
                client.write_tls(&mut incoming).expect("records");
            }
            let before = allocations();
            let written;
            (written, has_come) = answer(&mut server, &mut incoming, &mut outgoing);
            costs += if round >= REQUESTS { allocations() - before } else { 0 };
            let mut records = &outgoing[..written];
            while !records.is_empty() {
                client.read_tls(&mut records).expect("records");
                client.process_new_packets().expect("a server that is right");
            }
        }
        client.reader().read_exact(&mut [0; MESSAGE.len()]).expect("a reply");
    }
    costs
}

/// Has a server take what has come, and answer a message if it was one.
fn answer(
    server: &mut UnbufferedServerConnection,
    incoming: &mut Vec<u8>,
    outgoing: &mut [u8],
) -> (usize, bool) {
    let (mut written, mut has_come) = (0, false);
    loop {
        let UnbufferedStatus { discard, state, .. } = server.process_tls_records(incoming);
        match state.expect("a client that is right") {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    assert_eq!(record.expect("text").payload, MESSAGE);
                    has_come = true;
                }
            }
            ConnectionState::EncodeTlsData(mut data) => {
                written += data.encode(&mut outgoing[written..]).expect("room");
            }
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::WriteTraffic(mut traffic) if has_come => {
                written += traffic.encrypt(&MESSAGE, &mut outgoing[written..]).expect("room");
                incoming.drain(..discard);
                return (written, true);
            }
            _ => {
                incoming.drain(..discard);
                return (written, false);
            }
        }
        incoming.drain(..discard);
    }
}

#[test]
fn a_message_over_tls_costs_what_rustls_costs() {
    let _alone = alone();
    count_this_thread();
    let config = Arc::new(server_config());
    let expected = tls_in_memory(config.clone());
    assert!(expected > 0, "nothing was counted");
    for engine in [Engine::Epoll, Engine::Uring] {
        let setup = Setup { engine, family: Family::V4 };
        let acceptor = TlsAcceptor::new(config.clone());
        let service = setup.builder().on_connection(async move |connection: Connection| {
            count_this_thread();
            let mut tls = acceptor.accept(connection).await?;
            while tls.more().await? {
                let n = tls.input_mut().len();
                let mut front = tls.input_mut().split_to(n)?;
                tls.append(&mut front);
                tls.flush().await?;
            }
            Ok(())
        });
        let server = service.serve(setup.listener()).expect("a server");
        let address = server.local_addr().clone();
        // The peer's own are not counted on a thread of its own.
        let (ask, asked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let asks = thread::spawn(move || {
            let mut peer = client(Peer::connect(&address), client_config());
            while asked.recv().is_ok() {
                for _ in 0..REQUESTS {
                    assert_eq!(round_trip(&mut peer, &MESSAGE), MESSAGE);
                }
                let _ = tell.send(());
            }
        });
        let messages = || {
            ask.send(()).expect("it runs");
            told.recv().expect("it runs");
        };
        messages();
        let fewest = fewest_allocations(messages);
        drop(ask);
        asks.join().expect("no panic");
        // Channels allocate now and then.
        let most = expected + 10;
        assert!(fewest <= most, "{engine:?}: {fewest} allocations for {expected}");
    }
}
