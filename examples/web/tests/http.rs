//! HTTP/1 and HTTP/2 by hyper on the pollers.

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use duopoll::hyper::{Http, LocalExecutor};
use duopoll::task::{self, TaskGroup, spawn_local};
use duopoll::time::sleep;
use duopoll::{Connection, Dialer, Pollers, Server};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, eventually, poll_once, scaled};

on_every_setup!(
    requests_of_one_connection_follow_each_other,
    bodies_go_both_ways_by_both_versions,
    what_is_written_goes_out_in_one_send,
    an_upgrade_gives_the_connection,
    a_shutdown_ends_who_is_idle_and_answers_the_rest,
    a_shutdown_lets_streams_finish,
    a_head_that_does_not_end_is_not_waited_for,
    who_does_not_begin_is_not_waited_for,
    what_came_before_a_shutdown_is_answered,
    what_hyper_keeps_back_is_sent_however_late,
    a_body_behind_an_idle_while_is_whole,
    limits_do_not_cut_a_service_that_works,
    a_panic_ends_its_stream_and_nothing_else,
    a_client_that_goes_in_the_middle_disturbs_nobody,
);

type Reply = Response<Full<Bytes>>;

/// Serves with a function of a path and a body.
fn serve<F>(setup: Setup, http: Http, answer: F) -> Server
where
    F: AsyncFn(&str, Bytes) -> Reply + Clone + Send + Sync + 'static,
{
    let service = setup.builder().on_connection(async move |connection: Connection| {
        let answer = answer.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok::<_, hyper::Error>(answer(head.uri.path(), body).await)
            }
        });
        http.serve(connection, service).await
    });
    service.serve(setup.listener()).expect("a server")
}

fn reply(body: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(body.into()))
}

/// Reads a reply of HTTP/1 with a length.
fn read_reply(peer: &mut Peer) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a number"))];
    peer.read_exact(&mut body).expect("a body");
    (head, body)
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()
}

fn requests_of_one_connection_follow_each_other(setup: Setup) {
    let server = serve(setup, Http::new(), async |path, body| {
        // The first are slower than those behind them.
        sleep(Duration::from_millis(u64::from(path == "/0"))).await;
        reply([path.as_bytes(), &body].concat())
    });
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..3 {
        let requests: Vec<_> = (0..10).flat_map(|number| get(&format!("/{number}"))).collect();
        peer.write_all(&requests).expect("sent");
        for number in 0..10 {
            assert_eq!(read_reply(&mut peer).1, format!("/{number}").into_bytes());
        }
    }
    // A client that waits until it is told to go on.
    let head = "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n";
    peer.write_all(head.as_bytes()).expect("sent");
    assert!(read_reply(&mut peer).0.starts_with("http/1.1 100 "));
    peer.write_all(b"body").expect("sent");
    assert_eq!(read_reply(&mut peer).1, b"/xbody");
    assert_eq!(server.server_stats().accepts, 1);
}

/// Runs a client on a poller of its own.
fn client<T>(setup: Setup, test: impl Future<Output = T>) -> T {
    Pollers::options().engine(setup.engine).block_on(test).expect("an engine")
}

async fn dial(server: &Server) -> Connection {
    let pollers = Pollers::current().expect("this thread is a poller");
    let dialer = Dialer::new().pollers(pollers);
    dialer.dial_addr(server.local_addr().clone()).await.expect("connected")
}

fn bodies_go_both_ways_by_both_versions(setup: Setup) {
    let server = serve(setup, Http::new(), async |_, body| reply(body));
    let sizes = [0, 1, 1000, 100_000, scaled(8 << 20)];
    client(setup, async {
        let post = |size: usize| {
            let body: Vec<_> = (0..size).map(|index| (index % 251) as u8).collect();
            let request = Request::post("http://x/echo").body(Full::new(Bytes::from(body.clone())));
            (request.expect("a request"), body)
        };
        let connected = http1::handshake(dial(&server).await).await;
        let (mut sender, connection) = connected.expect("HTTP/1");
        let driver = spawn_local(connection);
        for size in sizes {
            let (request, body) = post(size);
            let response = sender.send_request(request).await.expect("a reply");
            assert!(response.into_body().collect().await.expect("a body").to_bytes() == body);
        }
        drop(sender);
        driver.await.expect("no panic").expect("it ends");

        let connected = http2::handshake(LocalExecutor, dial(&server).await).await;
        let (sender, connection) = connected.expect("HTTP/2");
        let driver = spawn_local(connection);
        let calls = sizes.map(|size| {
            let mut sender = sender.clone();
            spawn_local(async move {
                let (request, body) = post(size);
                let response = sender.send_request(request).await.expect("a reply");
                assert!(response.into_body().collect().await.expect("a body").to_bytes() == body);
            })
        });
        for call in calls {
            call.await.expect("no panic");
        }
        drop(sender);
        driver.await.expect("no panic").expect("it ends");
    });
    assert_eq!(server.server_stats().accepts, 2);
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(server.settled().handler_panics, 0);
}

fn what_is_written_goes_out_in_one_send(setup: Setup) {
    let server = serve(setup, Http::new(), async |_, _| reply("x".repeat(2000)));
    let mut peer = Peer::connect(server.local_addr());
    for _ in 0..10 {
        peer.write_all(&get("/")).expect("sent");
        assert_eq!(read_reply(&mut peer).1.len(), 2000);
    }
    assert_eq!(server.settled().sends, 10);
}

fn an_upgrade_gives_the_connection(setup: Setup) {
    let http = Http::new();
    let service = setup.builder().on_connection(async move |connection: Connection| {
        let service = service_fn(|mut request: Request<Incoming>| async move {
            let upgrade = hyper::upgrade::on(&mut request);
            task::spawn_local(async move {
                let upgraded = upgrade.await.expect("upgraded");
                let parts = upgraded.downcast::<Connection>().expect("it was ours");
                let mut connection = parts.io;
                connection.write(&parts.read_buf)?;
                connection.flush().await?;
                while connection.more().await? {
                    let (reader, writer) = connection.split();
                    writer.append(reader.buffer_mut());
                    writer.flush().await?;
                }
                io::Result::Ok(())
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header("upgrade", "echo").header("connection", "upgrade");
            Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).expect("a response"))
        });
        http.serve(connection, service).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    let request =
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nat once";
    peer.write_all(request.as_bytes()).expect("sent");
    assert!(read_reply(&mut peer).0.starts_with("http/1.1 101 "));
    let mut echo = [0; 7];
    peer.read_exact(&mut echo).expect("echoed");
    assert_eq!(&echo, b"at once");
    assert_eq!(peer.round_trip(b"and later"), b"and later");
    drop(peer);
    eventually("it ends", || server.open_connections() == 0);
}

/// A service that waits at a gate, and says when it does.
fn gated(setup: Setup) -> (Server, TaskGroup, mpsc::Receiver<()>) {
    let (begun, begins) = mpsc::channel();
    let gate = TaskGroup::new();
    let opens = gate.clone();
    let server = serve(setup, Http::new(), async move |path, _| {
        if path == "/slow" {
            let _ = begun.send(());
            opens.closing().await;
        }
        reply("done")
    });
    (server, gate, begins)
}

fn a_shutdown_ends_who_is_idle_and_answers_the_rest(setup: Setup) {
    let (server, gate, begins) = gated(setup);
    let mut idle: Vec<_> = (0..5).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut idle {
        peer.write_all(&get("/")).expect("sent");
        assert_eq!(read_reply(peer).1, b"done");
    }
    // One that has said nothing yet.
    idle.push(Peer::connect(server.local_addr()));
    let mut busy = Peer::connect(server.local_addr());
    busy.write_all(&get("/slow")).expect("sent");
    begins.recv_timeout(PATIENCE).expect("it is called");
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        for mut peer in idle {
            assert_eq!(peer.read_rest().expect("the end"), b"");
        }
        gate.close();
        let (head, body) = read_reply(&mut busy);
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(body, b"done");
        assert_eq!(busy.read_rest().expect("the end"), b"");
        drop(busy);
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    assert_eq!(server.server_stats().handler_errors, 0);
}

fn a_shutdown_lets_streams_finish(setup: Setup) {
    let (server, gate, begins) = gated(setup);
    thread::scope(|scope| {
        let server = &server;
        let asks = scope.spawn(move || {
            client(setup, async {
                let connected = http2::handshake(LocalExecutor, dial(server).await).await;
                let (mut sender, connection) = connected.expect("HTTP/2");
                let driver = spawn_local(connection);
                let request = Request::get("http://x/slow").body(Full::<Bytes>::default());
                let response = sender.send_request(request.expect("a request")).await;
                let body = response.expect("a reply").into_body().collect().await;
                assert_eq!(body.expect("a body").to_bytes(), "done");
                // The server has said that it goes away, and goes.
                driver.await.expect("no panic").expect("it ends");
            });
        });
        begins.recv_timeout(PATIENCE).expect("it is called");
        let shutdown = scope.spawn(|| server.shutdown(PATIENCE));
        eventually("it begins", || support::peers::try_connect(server.local_addr()).is_err());
        gate.close();
        asks.join().expect("no panic");
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
}

fn a_head_that_does_not_end_is_not_waited_for(setup: Setup) {
    let http = Http::new().header_read_timeout(Duration::from_millis(500));
    let server = serve(setup, http, async |_, _| reply("done"));
    let mut slow = Peer::connect(server.local_addr());
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: ").expect("sent");
    let mut other = Peer::connect(server.local_addr());
    other.write_all(&get("/")).expect("sent");
    assert_eq!(read_reply(&mut other).1, b"done");
    let _ = slow.read_rest();
    // Who is idle for as long goes, too; neither is an error.
    eventually("both are gone", || server.open_connections() == 0);
    assert_eq!(server.server_stats().handler_errors, 0);
}

/// Neither with nothing, nor with a part of what HTTP/2 begins with.
fn who_does_not_begin_is_not_waited_for(setup: Setup) {
    let server =
        serve(setup, Http::new().begin_timeout(Duration::from_millis(200)), async |_, _| {
            reply("done")
        });
    let mut peers = ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"].map(|begin| {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(begin.as_bytes()).expect("sent");
        peer
    });
    for peer in &mut peers {
        assert_eq!(peer.read_rest().unwrap_or_default(), b"");
    }
    eventually("they are gone", || server.open_connections() == 0);
    assert_eq!(server.server_stats().handler_errors, 0);
    // Nor by a server that shuts down.
    let server = serve(setup, Http::new(), async |_, _| reply("done"));
    let silent = Peer::connect(server.local_addr());
    eventually("it is there", || server.open_connections() == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop(silent);
}

/// While the poller is held up: requests of new connections, and of those that have talked before.
/// Longer than a connection keeps its buffers that asks for nothing.
const LONG_IDLE: Duration = Duration::from_millis(500);

/// Told to, hyper keeps a reply back while it has a part of the next request.
fn what_hyper_keeps_back_is_sent_however_late(setup: Setup) {
    let http = Http::new().http1(|http1| {
        http1.pipeline_flush(true);
    });
    let server = serve(setup, http, async |path, _| reply(path.to_owned()));
    let mut peer = Peer::connect(server.local_addr());
    let (one, two) = (get("/one"), get("/two"));
    let (front, rest) = two.split_at(9);
    peer.write_all(&[&one, front].concat()).expect("sent");
    thread::sleep(LONG_IDLE);
    peer.write_all(rest).expect("sent");
    assert_eq!(read_reply(&mut peer).1, b"/one");
    assert_eq!(read_reply(&mut peer).1, b"/two");
}

fn a_body_behind_an_idle_while_is_whole(setup: Setup) {
    let server = serve(setup, Http::new(), async |_, body| reply(body));
    let mut peer = Peer::connect(server.local_addr());
    let mut body = vec![b'x'; 10_000];
    for _ in 0..2 {
        thread::sleep(LONG_IDLE);
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n";
        let (front, rest) = body.split_at(5_000);
        peer.write_all(&[head.as_bytes(), front].concat()).expect("sent");
        thread::sleep(LONG_IDLE);
        peer.write_all(rest).expect("sent");
        assert_eq!(read_reply(&mut peer).1, body);
        body.reverse();
        peer.write_all(&get("/")).expect("sent");
        assert_eq!(read_reply(&mut peer).1, b"");
    }
}

/// Also what one turn of the poller does not come to.
fn what_came_before_a_shutdown_is_answered(setup: Setup) {
    const KNOWN: usize = 200;
    const NEW: usize = 10;
    let (held, holds) = mpsc::channel();
    let (let_go, goes) = mpsc::channel::<()>();
    let goes = Arc::new(Mutex::new(goes));
    let server = serve(setup, Http::new(), async move |path, _| {
        if path == "/hold" {
            let _ = held.send(());
            let _ = goes.lock().expect("no panic").recv_timeout(PATIENCE);
        }
        reply("done")
    });
    let connect = || Peer::connect(server.local_addr());
    let mut known: Vec<_> = (0..KNOWN).map(|_| connect()).collect();
    for peer in &mut known {
        peer.write_all(&get("/")).expect("sent");
        read_reply(peer);
    }
    let mut new: Vec<_> = (0..NEW).map(|_| connect()).collect();
    eventually("all are there", || server.open_connections() == KNOWN + NEW);
    let mut holder = connect();
    holder.write_all(&get("/hold")).expect("sent");
    holds.recv_timeout(PATIENCE).expect("held");
    for peer in known.iter_mut().chain(&mut new) {
        peer.write_all(&get("/")).expect("sent");
    }
    let mut shutdown = pin!(server.shutdown_async(PATIENCE));
    assert!(poll_once(shutdown.as_mut()).is_pending());
    let_go.send(()).expect("it waits");
    for mut peer in known.into_iter().chain(new).chain([holder]) {
        assert_eq!(read_reply(&mut peer).1, b"done");
        assert_eq!(peer.read_rest().expect("the end"), b"");
    }
    assert_eq!(pollster::block_on(shutdown), 0);
}

/// hyper waits for its peer while a service works, too.
fn limits_do_not_cut_a_service_that_works(setup: Setup) {
    const LIMIT: Duration = Duration::from_millis(100);
    let http = Http::new();
    let service = setup.builder().read_timeout(LIMIT).idle_timeout(LIMIT);
    let service = service.on_connection(async move |connection: Connection| {
        let service = service_fn(async |_: Request<Incoming>| {
            sleep(5 * LIMIT).await;
            Ok::<_, Infallible>(reply("done"))
        });
        http.serve(connection, service).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(&get("/")).expect("sent");
    assert_eq!(read_reply(&mut peer).1, b"done");
    client(setup, async {
        let connected = http2::handshake(LocalExecutor, dial(&server).await).await;
        let (mut sender, connection) = connected.expect("HTTP/2");
        let driver = spawn_local(connection);
        let request = Request::get("http://x/").body(Full::<Bytes>::default()).expect("a request");
        let reply = sender.send_request(request).await.expect("a reply");
        assert_eq!(reply.into_body().collect().await.expect("a body").to_bytes(), "done");
        drop(sender);
        let _ = driver.await;
    });
    // Between two requests it is idle.
    let _ = peer.read_rest();
    eventually("they are gone", || server.open_connections() == 0);
}

#[test]
fn off_a_poller_http_is_an_error() {
    let setup = Setup { engine: duopoll::Engine::Auto, family: support::Family::V4 };
    let (_pollers, connection, _peer) = support::connected(setup, duopoll::Limits::default());
    let service = service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(reply("done")));
    let error = pollster::block_on(Http::new().serve(connection, service)).expect_err("no poller");
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
}

fn a_panic_ends_its_stream_and_nothing_else(setup: Setup) {
    let gate = TaskGroup::new();
    let opens = gate.clone();
    let server = serve(setup, Http::new(), async move |path, _| {
        if path == "/panic" {
            panic!("as the test wants it");
        }
        if path == "/slow" {
            opens.closing().await;
        }
        reply("done")
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(&get("/panic")).expect("sent");
    assert_eq!(peer.read_rest().unwrap_or_default(), b"");
    client(setup, async {
        let connected = http2::handshake(LocalExecutor, dial(&server).await).await;
        let (sender, connection) = connected.expect("HTTP/2");
        let driver = spawn_local(connection);
        let ask = |path: &str| {
            let request = Request::get(format!("http://x{path}")).body(Full::<Bytes>::default());
            sender.clone().send_request(request.expect("a request"))
        };
        let slow = spawn_local(ask("/slow"));
        ask("/panic").await.expect_err("the stream is reset");
        assert_eq!(ask("/").await.expect("a reply").status(), StatusCode::OK);
        gate.close();
        assert_eq!(slow.await.expect("no panic").expect("a reply").status(), StatusCode::OK);
        drop(sender);
        driver.await.expect("no panic").expect("it ends");
    });
    assert_eq!(server.settled().handler_panics, 2);
}

fn a_client_that_goes_in_the_middle_disturbs_nobody(setup: Setup) {
    let server = serve(setup, Http::new(), async |_, body| reply(body));
    for how in 0..3 {
        let mut peer = Peer::connect(server.local_addr());
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nnot all";
        peer.write_all(head.as_bytes()).expect("sent");
        match how {
            0 => peer.reset(),
            1 => drop(peer),
            _ => {
                peer.write_all(&[b'x'; 993]).expect("sent");
                assert_eq!(read_reply(&mut peer).1.len(), 1000);
            }
        }
    }
    eventually("they are gone", || server.open_connections() == 0);
    assert_eq!(server.settled().handler_panics, 0);
}
