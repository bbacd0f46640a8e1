//! What whoever listens by `tracing` is told of connections and servers, and in which spans handlers run.

mod support;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::panic;
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::Duration;

use duopoll::task::block_on;
use duopoll::{Connection, Dialer, EventLoop, Limits, Pollers};
use support::settled::Settled;
use support::{Family, PATIENCE, Peer, Setup, connected, eventually};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

on_every_setup!(
    a_connection_is_told_of_from_its_beginning_to_its_end,
    handlers_run_in_the_spans_of_their_connections,
    it_is_said_why_a_connection_has_ended,
    a_wait_that_takes_too_long_is_told_of,
    backpressure_is_told_of_when_it_begins_and_ends,
    a_shutdown_is_told_of_step_by_step,
    who_is_not_let_in_is_told_of,
    who_dials_is_told_of,
    a_subscriber_that_panics_ends_nothing,
);

type Fields = HashMap<&'static str, String>;

/// An event, with the spans that it happened in, the inner one first.
#[derive(Clone, Debug)]
struct Told {
    fields: Fields,
    spans: Vec<(&'static str, Fields)>,
}

impl Told {
    fn is(&self, message: &str) -> bool {
        self.fields.get("message").is_some_and(|told| told == message)
    }

    fn has(&self, field: &str, value: &str) -> bool {
        self.fields.get(field).is_some_and(|told| told == value)
    }
}

static TOLD: LazyLock<Mutex<Vec<Told>>> = LazyLock::new(Mutex::default);

struct Collector;

/// Where a subscriber may panic.
const PLACES: [&str; 6] = ["enabled", "new span", "enter", "exit", "close", "event"];

/// Panics on the threads of pollers that are named after the place.
fn panic_in(place: &str) {
    let here = std::thread::current();
    if here.name().is_some_and(|name| name.starts_with(place)) {
        panic::resume_unwind(Box::new("on purpose"));
    }
}

struct Collected<'a>(&'a mut Fields);

impl Visit for Collected<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collector {
    /// It is asked each time.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        if metadata.target() == "duopoll" {
            panic_in("enabled");
        }
        true
    }

    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        panic_in("enter");
    }

    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        panic_in("exit");
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        panic_in("close");
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        panic_in("new span");
        let mut fields = Fields::new();
        attributes.record(&mut Collected(&mut fields));
        let span = context.span(id).expect("a span");
        span.extensions_mut().insert(fields);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Collected(&mut fields));
        panic_in("event");
        let spans = context.event_scope(event).into_iter().flatten();
        let spans = spans.map(|span| {
            (span.name(), span.extensions().get::<Fields>().cloned().unwrap_or_default())
        });
        let told = Told { fields, spans: spans.collect() };
        TOLD.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }
}

fn listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Collector);
        tracing::subscriber::set_global_default(subscriber).expect("the first");
    });
}

/// Waits until that was told, and gives it.
fn told(which: impl Fn(&Told) -> bool) -> Told {
    let begun = std::time::Instant::now();
    loop {
        let all = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = all.iter().find(|told| which(told)) {
            return told.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "it was never told");
        drop(all);
        std::thread::yield_now();
    }
}

fn of_connection(id: &str, message: &str) -> Told {
    told(|told| told.is(message) && told.has("id", id))
}

fn hex(id: u64) -> String {
    format!("{id:#x}")
}

/// Takes one byte, and answers with the number of the connection.
async fn tell_id(connection: &mut Connection) -> io::Result<()> {
    connection.read_u8().await?;
    let id = connection.id();
    connection.write(&id.to_be_bytes())
}

fn ask_id(peer: &mut Peer) -> String {
    let id = peer.round_trip_of(b"?", 8);
    hex(u64::from_be_bytes(id.try_into().expect("eight")))
}

fn a_connection_is_told_of_from_its_beginning_to_its_end(setup: Setup) {
    listen();
    let server = setup.serve(tell_id);
    let address = server.local_addr().to_string();
    told(|told| told.is("listening") && told.has("address", &address));
    let mut peer = Peer::connect(server.local_addr());
    let local = match &peer {
        Peer::Tcp(stream) => Some(stream.local_addr().expect("bound").to_string()),
        Peer::Unix(_) => None,
    };
    let id = ask_id(&mut peer);
    assert_eq!(of_connection(&id, "accepted").fields.get("peer"), local.as_ref());
    drop(peer);
    let closed = of_connection(&id, "closed");
    assert_eq!(closed.fields.get("peer"), local.as_ref());
    assert!(closed.has("reason", "closed") && closed.has("by_peer", "true"), "{closed:?}");
    assert!(!closed.fields.contains_key("error"), "{closed:?}");
    assert!(closed.has("received_bytes", "1") && closed.has("sent_bytes", "8"), "{closed:?}");
}

fn handlers_run_in_the_spans_of_their_connections(setup: Setup) {
    listen();
    let server = setup.serve(async |connection: &mut Connection| {
        let first = connection.read_u8().await?;
        tracing::info!(connection = hex(connection.id()), first, "handling");
        // What it goes on with in a later turn is in the same spans.
        duopoll::time::sleep(Duration::from_millis(1)).await;
        tracing::info!(connection = hex(connection.id()), first, "handled");
        connection.write(&connection.id().to_be_bytes())
    });
    let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        let id = ask_id(peer);
        for message in ["handling", "handled"] {
            let event = told(|told| told.is(message) && told.has("connection", &id));
            let names: Vec<_> = event.spans.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["request", "connection"]);
            let (_, connection) = &event.spans[1];
            assert_eq!(connection.get("id"), Some(&id));
            assert_eq!(connection["engine"], server.engine_report().engine);
            assert!(connection["poller"].starts_with("duopoll-"));
        }
    }
}

fn it_is_said_why_a_connection_has_ended(setup: Setup) {
    listen();
    let (_pollers, connection, mut peer) = connected(setup, Limits::default());
    connection.control().abort();
    let aborted = of_connection(&hex(connection.id()), "closed");
    assert!(aborted.has("reason", "aborted"), "{aborted:?}");
    drop(peer.read_rest());

    let mut limits = Limits::default();
    limits.idle_timeout = Some(Duration::from_millis(10));
    let (_pollers, mut connection, _peer) = connected(setup, limits);
    let read = block_on(async { connection.next(1).await }).expect("a poller");
    assert_eq!(read.map_err(|error| error.kind()).err(), Some(io::ErrorKind::TimedOut));
    let idle = of_connection(&hex(connection.id()), "closed");
    assert!(idle.has("reason", "idle") && idle.has("by_peer", "false"), "{idle:?}");

    if setup.family != Family::Unix {
        let server = setup.serve(tell_id);
        let mut peer = Peer::connect(server.local_addr());
        let id = ask_id(&mut peer);
        peer.reset();
        let reset = of_connection(&id, "closed");
        let error = io::Error::from_raw_os_error(libc::ECONNRESET).to_string();
        assert!(reset.has("by_peer", "true") && reset.has("error", &error), "{reset:?}");
    }
}

fn a_wait_that_takes_too_long_is_told_of(setup: Setup) {
    listen();
    let mut limits = Limits::default();
    limits.read_timeout = Some(Duration::from_millis(10));
    let (_pollers, mut connection, _peer) = connected(setup, limits);
    block_on(async { connection.next(1).await }).expect("a poller").expect_err("a timeout");
    let timed_out = of_connection(&hex(connection.id()), "timed out");
    assert!(timed_out.has("direction", "read"), "{timed_out:?}");
}

fn backpressure_is_told_of_when_it_begins_and_ends(setup: Setup) {
    listen();
    let mut limits = Limits::default();
    limits.input_high_bytes = 4 << 10;
    limits.output_high_bytes = 4 << 10;
    let (_pollers, connection, mut peer) = connected(setup, limits);
    let id = hex(connection.id());
    let pressure = |direction: &'static str, on: bool| {
        told(|told| {
            told.is("backpressure")
                && told.has("id", &id)
                && told.has("direction", direction)
                && told.has("on", &on.to_string())
        })
    };
    let (mut reader, mut writer) = connection.into_split();
    peer.write_all(&[7; 64 << 10]).expect("sent");
    pressure("read", true);
    block_on(async { reader.next(64 << 10).await }).expect("a poller").expect("all of it");
    pressure("read", false);

    // More than a socket takes.
    let much = vec![7; 32 << 20];
    let sent = std::thread::spawn(move || {
        writer.write(&much).expect("it is staged");
        block_on(async { writer.flush().await }).expect("a poller").expect("room");
    });
    pressure("write", true);
    let mut left = 32 << 20;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        left -= io::Read::read(&mut peer, &mut buffer).expect("what was sent");
    }
    sent.join().expect("no panic");
    pressure("write", false);
}

fn a_shutdown_is_told_of_step_by_step(setup: Setup) {
    listen();
    let server = setup.serve(tell_id);
    let address = server.local_addr().to_string();
    assert_eq!(server.shutdown(PATIENCE), 0);
    for phase in ["unlistening", "draining", "stopping", "over"] {
        told(|told| {
            let ours = told.has("address", &address);
            ours && told.is("shutdown") && told.has("phase", phase)
        });
    }
}

fn who_is_not_let_in_is_told_of(setup: Setup) {
    listen();
    let why = format!("refused on purpose: {setup:?}");
    let refuse = why.clone();
    let builder = setup.builder().on_prepare(move |_| Err(io::Error::other(refuse.clone())));
    let server = builder.on_request(tell_id).serve(setup.listener()).expect("a server");
    drop(Peer::connect(server.local_addr()).read_rest());
    told(|told| told.is("refused") && told.has("why", &why));
}

fn who_dials_is_told_of(setup: Setup) {
    listen();
    let server = setup.serve(tell_id);
    let address = server.local_addr().to_string();
    let pollers = setup.pollers(1);
    let dialer = Dialer::new().pollers(pollers.clone());
    let connection = block_on(dialer.dial(&address)).expect("a poller").expect("a server");
    let dialed = of_connection(&hex(connection.id()), "dialed");
    assert!(dialed.has("target", &address), "{dialed:?}");
    server.shutdown(PATIENCE);
    drop(server);
    let error = block_on(dialer.dial(&address)).expect("a poller").expect_err("nobody there");
    told(|told| told.is("dial failed") && told.has("error", &error.to_string()));
}

fn a_subscriber_that_panics_ends_nothing(setup: Setup) {
    listen();
    for place in PLACES {
        let options = Pollers::options().engine(setup.engine).count(1);
        let pollers = options.name(place).start().expect("a poller");
        let builder = EventLoop::builder().on(pollers.clone());
        let server = builder.on_request(tell_id).serve(setup.listener()).expect("a server");
        let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in peers.iter_mut().chain(&mut [Peer::connect(server.local_addr())]) {
            assert_eq!(ask_id(peer), ask_id(peer));
        }
        drop(peers);
        eventually("all have gone", || server.stats().open_connections == 0);
        let stats = server.settled();
        assert_eq!((stats.failed_pollers, stats.handler_panics), (0, 0), "{place}");
        assert!(pollers.stats().contained_panics > 0, "{place}: it has not panicked");
        assert_eq!(server.shutdown(PATIENCE), 0);
    }
}
