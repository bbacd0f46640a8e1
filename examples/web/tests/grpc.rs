//! gRPC by tonic on the pollers: a server, and clients that it has generated, without tokio's runtime.

#[path = "../src/bin/grpc/channel.rs"]
mod channel;
mod common;
#[path = "../src/bin/grpc/deadlines.rs"]
mod deadlines;
#[path = "../../../tests/support/mod.rs"]
mod support;

#[rustfmt::skip]
#[path = "../src/bin/grpc/echo.rs"]
#[allow(missing_docs, unreachable_pub, reason = "it is generated")]
mod echo;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use duopoll::hyper::Http;
use duopoll::task::{TaskGroup, spawn_local};
use duopoll::time::{self, sleep};
use duopoll::tls::{TlsAcceptor, TlsConnector};
use duopoll::{Connection, Dialer, Pollers, Server};
use futures::channel::mpsc;
use futures::future::join_all;
use futures::stream::{self, BoxStream, StreamExt};
use hyper::Uri;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

use channel::Channel;
use common::tls;
use deadlines::Deadlines;
use echo::echo_client::EchoClient;
use echo::echo_server::{Echo, EchoServer};
use echo::{RepeatRequest, Text};
use support::settled::Settled;
use support::{PATIENCE, Setup, eventually, scaled};

on_every_setup!(
    calls_of_each_kind_are_answered,
    calls_go_by_tls,
    a_client_that_does_not_read_holds_up_its_stream,
    a_server_that_does_not_read_holds_up_its_client,
    a_stream_that_goes_both_ways_is_held_up_both_ways,
    a_call_that_is_dropped_ends_at_the_server,
    a_call_ends_with_its_deadline,
    a_deadline_holds_where_the_server_knows_none,
    a_panic_ends_its_call_and_nothing_else,
    a_shutdown_finishes_the_calls_that_are_under_way,
    a_thousand_calls_at_once_share_a_connection,
);

/// How many calls may be under way on a connection.
const STREAMS: usize = 1000;

/// A message of a stream that is held up, and how many there are. A hundred are more than all windows and socket buffers have room
/// for.
const HELD_UP_BYTES: usize = 64 << 10;
const HELD_UP_TIMES: usize = 400;
const HELD_UP_MAX: usize = 300;

/// A service that can be looked into, and that does what a text says: `wait`, until the gate is open, or `panic`.
#[derive(Clone, Default)]
struct Probe {
    /// Calls that have not ended.
    open: Arc<AtomicUsize>,
    /// Messages that were made for streams.
    made: Arc<AtomicUsize>,
    gate: TaskGroup,
}

/// A call that has not ended.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    fn begin(&self) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        Open(self.open.clone())
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    async fn obey(&self, text: &str) {
        match text {
            "wait" => self.gate.closing().await,
            "panic" => panic!("as the test wants it"),
            _ => {}
        }
    }
}

type Texts = BoxStream<'static, Result<Text, Status>>;

#[tonic::async_trait]
impl Echo for Probe {
    async fn say(&self, request: Request<Text>) -> Result<Response<Text>, Status> {
        let _open = self.begin();
        let text = request.into_inner();
        self.obey(&text.text).await;
        Ok(Response::new(text))
    }

    type RepeatStream = Texts;

    /// Does what the text says from the second time on.
    async fn repeat(&self, request: Request<RepeatRequest>) -> Result<Response<Texts>, Status> {
        let RepeatRequest { text, times, pause_ms } = request.into_inner();
        let (this, open) = (self.clone(), Arc::new(self.begin()));
        let texts = stream::iter(0..times).then(move |time| {
            let (this, text, open) = (this.clone(), text.clone(), open.clone());
            async move {
                let _open = open;
                if pause_ms > 0 {
                    sleep(Duration::from_millis(pause_ms.into())).await;
                }
                if time > 0 {
                    this.obey(&text).await;
                }
                this.made.fetch_add(1, Ordering::SeqCst);
                Ok(Text { text })
            }
        });
        Ok(Response::new(texts.boxed()))
    }

    /// Does what the first text says, before it reads the others.
    async fn join(&self, request: Request<Streaming<Text>>) -> Result<Response<Text>, Status> {
        let _open = self.begin();
        let mut texts = request.into_inner();
        let mut joined = String::new();
        while let Some(Text { text }) = texts.message().await? {
            if joined.is_empty() {
                self.obey(&text).await;
            }
            joined.push_str(&text);
        }
        Ok(Response::new(Text { text: joined }))
    }

    type ChatStream = Texts;

    async fn chat(&self, request: Request<Streaming<Text>>) -> Result<Response<Texts>, Status> {
        let open = self.begin();
        let texts = request.into_inner().inspect(move |_| {
            let _ = &open;
        });
        Ok(Response::new(texts.boxed()))
    }
}

fn http() -> Http {
    Http::new().http2(|http2| {
        http2.max_concurrent_streams(STREAMS as u32);
    })
}

fn serve(setup: Setup, probe: &Probe) -> Server {
    let http = http();
    let routes = Deadlines(Routes::new(EchoServer::new(probe.clone())).prepare());
    let service = setup.builder().on_connection(async move |connection: Connection| {
        http.serve_tower(connection, routes.clone()).await
    });
    service.serve(setup.listener()).expect("a server")
}

/// Runs clients on a poller of their own.
fn client<T>(setup: Setup, test: impl Future<Output = T>) -> T {
    let limited = async { time::timeout(PATIENCE, test).await.expect("it ends in time") };
    Pollers::options().engine(setup.engine).block_on(limited).expect("an engine")
}

async fn dial(server: &Server) -> Connection {
    let pollers = Pollers::current().expect("this thread is a poller");
    let dialer = Dialer::new().pollers(pollers);
    dialer.dial_addr(server.local_addr().clone()).await.expect("connected")
}

fn origin() -> Uri {
    Uri::from_static("http://x")
}

async fn channel(server: &Server) -> Channel {
    Channel::over(dial(server).await).await.expect("HTTP/2")
}

async fn connect(server: &Server) -> EchoClient<Channel> {
    EchoClient::with_origin(channel(server).await, origin())
}

fn text(text: impl Into<String>) -> Text {
    Text { text: text.into() }
}

/// Without an end, a message each millisecond.
fn for_ever() -> RepeatRequest {
    RepeatRequest { text: "again".to_owned(), times: u32::MAX, pause_ms: 1 }
}

fn calls_of_each_kind_are_answered(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async { each_kind(&mut connect(&server).await).await });
    assert_eq!(server.server_stats().accepts, 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
    assert_eq!(probe.open(), 0);
}

async fn each_kind(echo: &mut EchoClient<Channel>) {
    for bytes in [0, 1, 1000, 100_000, scaled(3 << 20)] {
        let said = text("x".repeat(bytes));
        let reply = echo.say(said.clone()).await.expect("a reply");
        assert!(reply.into_inner() == said, "{bytes} bytes");
    }
    let times = scaled(10_000);
    let request = RepeatRequest { text: "again".to_owned(), times: times as u32, pause_ms: 0 };
    let replies = echo.repeat(request).await.expect("a stream").into_inner();
    let all = replies.map(|reply| assert_eq!(reply.expect("a message"), text("again")));
    assert_eq!(all.count().await, times);

    let numbers = || (0..times).map(|number| number.to_string());
    let joined = echo.join(stream::iter(numbers().map(text))).await.expect("a reply");
    assert!(joined.into_inner().text == numbers().collect::<String>());

    // Each waits for the one before.
    let (says, said) = mpsc::unbounded();
    let mut replies = echo.chat(said).await.expect("a stream").into_inner();
    for number in numbers().take(100) {
        says.unbounded_send(text(&*number)).expect("it goes on");
        assert_eq!(replies.message().await.expect("a message"), Some(text(number)));
    }
    drop(says);
    assert_eq!(replies.message().await.expect("the end"), None);
}

fn calls_go_by_tls(setup: Setup) {
    let http = http();
    let routes = Routes::new(EchoServer::new(Probe::default())).prepare();
    let mut config = tls::server_config();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::new(Arc::new(config));
    let service = setup.builder().on_connection(async move |connection: Connection| {
        http.serve_tower(acceptor.accept(connection).await?, routes.clone()).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    client(setup, async {
        let mut config = tls::client_config();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::new(Arc::new(config));
        let connected = connector.connect(dial(&server).await, tls::server_name()).await;
        let connection = connected.expect("a handshake");
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        let channel = Channel::over(connection).await.expect("HTTP/2");
        each_kind(&mut EchoClient::with_origin(channel, Uri::from_static("https://x"))).await;
    });
    assert_eq!(server.shutdown(PATIENCE), 0);
}

/// Waits until a stream stands still, by calls on another connection: they get their turn, and so would it.
async fn until_still(server: &Server, made: impl Fn() -> usize) -> usize {
    let mut other = connect(server).await;
    let (mut last, mut turns) = (0, 0);
    while turns < 20 {
        other.say(text("are you there?")).await.expect("a reply");
        turns = if made() == last { turns + 1 } else { 0 };
        last = made();
    }
    last
}

fn a_client_that_does_not_read_holds_up_its_stream(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let text = "x".repeat(HELD_UP_BYTES);
        let request = RepeatRequest { text, times: HELD_UP_TIMES as u32, pause_ms: 0 };
        let mut echo = connect(&server).await;
        let mut replies = echo.repeat(request).await.expect("a stream").into_inner();
        replies.message().await.expect("a message").expect("the first");
        let made = until_still(&server, || probe.made()).await;
        assert!(made < HELD_UP_MAX, "{made} were made for nobody");
        let rest =
            replies.map(|reply| assert!(reply.expect("a message").text.len() == HELD_UP_BYTES));
        assert_eq!(rest.count().await, HELD_UP_TIMES - 1);
    });
    assert_eq!(probe.made(), HELD_UP_TIMES);
}

/// Messages that count how many were asked for.
fn counted(made: &Arc<AtomicUsize>) -> impl futures::Stream<Item = Text> + Send + use<> {
    let made = made.clone();
    let texts = (0..HELD_UP_TIMES).map(move |_| {
        made.fetch_add(1, Ordering::SeqCst);
        text("x".repeat(HELD_UP_BYTES))
    });
    stream::iter(texts)
}

fn a_server_that_does_not_read_holds_up_its_client(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let made = Arc::default();
        let mut echo = connect(&server).await.max_decoding_message_size(usize::MAX);
        let texts = stream::iter([text("wait")]).chain(counted(&made));
        let call = spawn_local(async move { echo.join(texts).await });
        let made = until_still(&server, || made.load(Ordering::SeqCst)).await;
        assert!(0 < made && made < HELD_UP_MAX, "{made} were sent to nobody");
        probe.gate.close();
        let joined = call.await.expect("no panic").expect("a reply").into_inner().text;
        assert_eq!(joined.len(), "wait".len() + HELD_UP_TIMES * HELD_UP_BYTES);
    });
    assert_eq!(probe.open(), 0);
}

fn a_stream_that_goes_both_ways_is_held_up_both_ways(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let made = Arc::default();
        let mut echo = connect(&server).await;
        let replies = echo.chat(counted(&made)).await.expect("a stream").into_inner();
        let made = until_still(&server, || made.load(Ordering::SeqCst)).await;
        assert!(made < HELD_UP_MAX, "{made} were sent to somebody who does not read the replies");
        let all =
            replies.map(|reply| assert!(reply.expect("a message").text.len() == HELD_UP_BYTES));
        assert_eq!(all.count().await, HELD_UP_TIMES);
    });
}

/// Waits on a poller for what something else is working towards.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waits = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(PATIENCE / 2, waits).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

fn a_call_that_is_dropped_ends_at_the_server(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let mut echo = connect(&server).await;
        let mut other = echo.clone();
        let call = spawn_local(async move { other.say(text("wait")).await });
        let mut replies = echo.repeat(for_ever()).await.expect("a stream").into_inner();
        replies.message().await.expect("a message").expect("the first");
        until("both have begun", || probe.open() == 2).await;
        drop(replies);
        until("the stream has ended", || probe.open() == 1).await;
        call.abort();
        until("the other one, too", || probe.open() == 0).await;
        // The connection is as it was.
        assert_eq!(echo.say(text("a")).await.expect("a reply").into_inner(), text("a"));
    });
    assert_eq!(server.settled().handler_panics, 0);
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(50));
    request
}

/// How a stream ends that has a deadline. On a machine that is busy it may be over before it has begun.
async fn end_of(call: impl Future<Output = Result<Response<Streaming<Text>>, Status>>) -> Status {
    let mut replies = match call.await {
        Ok(replies) => replies.into_inner(),
        Err(status) => return status,
    };
    loop {
        match replies.message().await {
            Ok(reply) => assert_eq!(reply, Some(text("again"))),
            Err(status) => return status,
        }
    }
}

fn a_call_ends_with_its_deadline(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let mut echo = connect(&server).await;
        let status = echo.say(timed(text("wait"))).await.expect_err("too late");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        let status = end_of(echo.repeat(timed(for_ever()))).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        until("they have ended", || probe.open() == 0).await;
        // One that is in time.
        let mut request = Request::new(text("a"));
        request.set_timeout(PATIENCE);
        assert_eq!(echo.say(request).await.expect("a reply").into_inner(), text("a"));
    });
}

fn a_deadline_holds_where_the_server_knows_none(setup: Setup) {
    let probe = Probe::default();
    let (http, routes) = (http(), Routes::new(EchoServer::new(probe.clone())).prepare());
    let service = setup.builder().on_connection(async move |connection: Connection| {
        http.serve_tower(connection, routes.clone()).await
    });
    let server = service.serve(setup.listener()).expect("a server");
    client(setup, async {
        let channel = Deadlines(channel(&server).await);
        let mut echo = EchoClient::with_origin(channel, origin());
        let status = echo.say(timed(text("wait"))).await.expect_err("too late");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        let status = end_of(echo.repeat(timed(for_ever()))).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        until("the server was told", || probe.open() == 0).await;
    });
}

fn a_panic_ends_its_call_and_nothing_else(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    client(setup, async {
        let mut echo = connect(&server).await;
        let (says, said) = mpsc::unbounded();
        let mut replies = echo.chat(said).await.expect("a stream").into_inner();
        echo.say(text("panic")).await.expect_err("it has panicked");
        let request = RepeatRequest { text: "panic".to_owned(), times: 3, pause_ms: 0 };
        let broken = echo.repeat(request).await.expect("a stream").into_inner();
        let broken: Vec<_> = broken.collect().await;
        assert!(broken.last().is_some_and(Result::is_err), "{broken:?}");
        says.unbounded_send(text("still there?")).expect("it goes on");
        assert_eq!(replies.message().await.expect("a message"), Some(text("still there?")));
        assert_eq!(echo.say(text("a")).await.expect("a reply").into_inner(), text("a"));
    });
    assert_eq!(server.settled().handler_panics, 2);
    assert_eq!(server.server_stats().accepts, 1);
}

fn a_shutdown_finishes_the_calls_that_are_under_way(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    thread::scope(|scope| {
        let (server, probe) = (&server, &probe);
        let shutdown = scope.spawn(move || {
            eventually("three calls are under way", || probe.open() == 3);
            server.shutdown(PATIENCE)
        });
        client(setup, async {
            let mut echo = connect(server).await;
            let mut other = echo.clone();
            let waits = spawn_local(async move { other.say(text("wait")).await });
            let request = RepeatRequest { text: "wait".to_owned(), times: 3, pause_ms: 0 };
            let mut repeated = echo.repeat(request).await.expect("a stream").into_inner();
            repeated.message().await.expect("a message").expect("the first");
            let (says, said) = mpsc::unbounded();
            let mut replies = echo.chat(said).await.expect("a stream").into_inner();
            // When the server has told us that it goes away, there are no more calls.
            while echo.say(text("once more")).await.is_ok() {}
            says.unbounded_send(text("still there?")).expect("it goes on");
            assert_eq!(replies.message().await.expect("a message"), Some(text("still there?")));
            probe.gate.close();
            assert_eq!(waits.await.expect("no panic").expect("a reply").into_inner(), text("wait"));
            let rest = repeated.map(|reply| reply.expect("a message")).count().await;
            assert_eq!(rest, 2);
            drop(says);
            assert_eq!(replies.message().await.expect("the end"), None);
        });
        assert_eq!(shutdown.join().expect("no panic"), 0);
    });
    assert_eq!(server.server_stats().handler_errors, 0);
}

fn a_thousand_calls_at_once_share_a_connection(setup: Setup) {
    let probe = Probe::default();
    let server = serve(setup, &probe);
    let streams = scaled(STREAMS);
    client(setup, async {
        let echo = connect(&server).await;
        let begin = |number: usize| {
            let mut echo = echo.clone();
            async move {
                let (says, said) = mpsc::unbounded();
                says.unbounded_send(text(number.to_string())).expect("it goes on");
                let mut replies = echo.chat(said).await.expect("a stream").into_inner();
                let reply = replies.message().await.expect("a message");
                assert_eq!(reply, Some(text(number.to_string())));
                (says, replies)
            }
        };
        let calls = join_all((0..streams).map(|number| spawn_local(begin(number)))).await;
        assert_eq!(probe.open(), streams);
        let ends = calls.into_iter().map(|call| async {
            let (says, mut replies) = call.expect("no panic");
            says.unbounded_send(text("bye")).expect("it goes on");
            drop(says);
            assert_eq!(replies.message().await.expect("a message"), Some(text("bye")));
            assert_eq!(replies.message().await.expect("the end"), None);
        });
        join_all(ends).await;
        until("all have ended", || probe.open() == 0).await;
    });
    assert_eq!(server.server_stats().accepts, 1);
}
