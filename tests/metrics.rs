//! The figures as a recorder of the crate `metrics` gets them.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use duopoll::metrics::Metrics;
use duopoll::task::block_on;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, echo};

on_every_setup!(figures_come_to_the_recorder, what_is_recorded_ends_with_the_pollers);

fn figures_come_to_the_recorder(setup: Setup) {
    let builder = setup.builder().pollers(2).timings(true);
    let server = builder.on_request(echo).serve(setup.listener()).expect("a server");
    let mut peers: Vec<_> = (0..4).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| drop(peer.round_trip(b"hello")));
    let stats = server.settled();
    let engine = server.engine_report().engine;

    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let mut metrics = Metrics::new(server.pollers()).server("echo", &server);
    metrics::with_local_recorder(&recorder, || assert!(metrics.record()));
    let mut all = HashMap::new();
    for (key, _, description, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        let labels = key.labels().map(|label| format!("{}={}", label.key(), label.value()));
        let labels: Vec<_> = labels.collect();
        assert!(description.is_some(), "{key}");
        all.insert((key.name().to_owned(), labels.join(",")), value);
    }
    let of = |name: &str, labels: String| match &all[&(name.to_owned(), labels)] {
        DebugValue::Counter(value) => *value as f64,
        DebugValue::Gauge(value) => value.0,
        DebugValue::Histogram(values) => values.len() as f64,
    };
    let label = |poller: usize| format!("poller={poller},engine={engine}");
    let sum = |name: &str| of(name, label(0)) + of(name, label(1));
    assert_eq!(sum("duopoll_received_bytes"), stats.received_bytes as f64);
    assert_eq!(sum("duopoll_open_connections"), 4.0);
    assert_eq!(sum("duopoll_requests"), 4.0);
    assert_eq!(of("duopoll_server_requests", "server=echo".into()), 4.0);
    assert!(of("duopoll_memory_budget_bytes", String::new()) > 0.0);
    assert!(!all.contains_key(&("duopoll_memory_budget_bytes".into(), label(0))));
    assert!(sum("duopoll_poll_seconds") >= 4.0 && sum("duopoll_turn_seconds") >= 4.0);

    // Of histograms, what has come since.
    peers.iter_mut().for_each(|peer| drop(peer.round_trip(b"hello")));
    let before = stats.task_polls;
    let polls = server.settled().task_polls - before;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || assert!(metrics.record()));
    let mut seen = 0;
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        if let ("duopoll_poll_seconds", DebugValue::Histogram(values)) = (key.key().name(), value) {
            seen += values.len() as u64;
            assert!(values.iter().all(|value| value.0 < PATIENCE.as_secs_f64()));
        }
    }
    assert_eq!(seen, polls);
}

fn what_is_recorded_ends_with_the_pollers(setup: Setup) {
    let server = setup.serve_echo();
    let mut metrics = Metrics::new(server.pollers());
    assert!(metrics.record());
    drop(server);
    assert!(!metrics.record());
    // And so does the task that does it again and again.
    let pollers = setup.pollers(1);
    let every = Metrics::new(&pollers).every(Duration::from_millis(1));
    let recording = pollers.spawn(move || every);
    drop(pollers);
    let ended = block_on(recording).expect("a poller");
    assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
}
