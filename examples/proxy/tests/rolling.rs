//! One proxy after another in the place of the last, under so much load that each moment of a restart has somebody who comes and
//! somebody who stays. Whatever goes wrong is counted, and nothing may.
//!
//! So many restarts an engine as the environment variable `ROLLING_RESTARTS` says, or 3:
//! `ROLLING_RESTARTS=20 cargo test --release -p duopoll-proxy --test rolling -- --nocapture`.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{ENGINES, Family, Proxy, Stream, any, echo, eventually, path, upstream};

/// Connections that stay, each with an echo in `PAUSE`.
const LONG: usize = 200;
const PAUSE: Duration = Duration::from_millis(20);
/// New ones a second, by so many threads.
const RATE: u32 = 1000;
const THREADS: u32 = 20;
const MESSAGE_BYTES: usize = 1024;

#[derive(Debug, Default)]
struct Seen {
    /// Echoes of those that stay.
    echoes: AtomicU64,
    /// New connections that were served and ended in peace.
    served: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
    lost_bytes: AtomicU64,
    wrong_bytes: AtomicU64,
    other: AtomicU64,
    /// The longest that one has waited from connecting to its end.
    longest_ms: AtomicU64,
}

impl Seen {
    fn failures(&self) -> u64 {
        let all = [&self.refused, &self.reset, &self.lost_bytes, &self.wrong_bytes, &self.other];
        all.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn failed(&self, error: &std::io::Error) {
        let count = match error.kind() {
            ErrorKind::ConnectionRefused => &self.refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => &self.reset,
            _ => &self.other,
        };
        count.fetch_add(1, Ordering::Relaxed);
        eprintln!("{error}");
    }

    /// Whether all of a message came back.
    fn echo(&self, client: &mut Stream, number: u64) -> bool {
        let message: Vec<u8> = (0..MESSAGE_BYTES as u64).map(|at| (number + at) as u8).collect();
        if let Err(error) = client.write_all(&message) {
            self.failed(&error);
            return false;
        }
        let (mut reply, mut at) = ([0; MESSAGE_BYTES], 0);
        while at < MESSAGE_BYTES {
            match client.read(&mut reply[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(error) => {
                    self.failed(&error);
                    break;
                }
            }
        }
        let wrong = reply[..at].iter().zip(&message).filter(|(a, b)| a != b).count();
        self.lost_bytes.fetch_add((MESSAGE_BYTES - at) as u64, Ordering::Relaxed);
        self.wrong_bytes.fetch_add(wrong as u64, Ordering::Relaxed);
        at == MESSAGE_BYTES && wrong == 0
    }

    fn stay(&self, mut client: Stream, over: &AtomicBool) {
        let mut number = 0;
        while !over.load(Ordering::Relaxed) && self.echo(&mut client, number) {
            self.echoes.fetch_add(1, Ordering::Relaxed);
            number += 1;
            thread::sleep(PAUSE);
        }
    }

    /// At a fixed rate: who is late does not wait.
    fn come(&self, at: &str, over: &AtomicBool) {
        let (mut due, mut number) = (Instant::now(), 0);
        while !over.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += Duration::from_secs(1) * THREADS / RATE;
            number += 1;
            let begun = Instant::now();
            match Stream::try_connect(at) {
                Ok(mut client) => {
                    if self.echo(&mut client, number) {
                        client.finish();
                        match client.read(&mut [0]) {
                            Ok(0) => _ = self.served.fetch_add(1, Ordering::Relaxed),
                            Ok(_) => _ = self.wrong_bytes.fetch_add(1, Ordering::Relaxed),
                            Err(error) => self.failed(&error),
                        }
                    }
                }
                Err(error) => self.failed(&error),
            }
            self.longest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }
}

#[test]
fn one_after_another_serves_everybody() {
    let restarts = std::env::var("ROLLING_RESTARTS").map_or(3, |text| text.parse().expect("many"));
    for (engine, pollers) in ENGINES.iter().flat_map(|engine| [1, 2].map(|n| (*engine, n))) {
        let (serves, handover) = (upstream(Family::V4, echo), path("handover"));
        let start = |at: &str| {
            let handover = handover.display();
            Proxy::start(&format!(
                "--engine {engine} --pollers {pollers} --listen {at} --upstream {serves} --handover {handover} \
                 --grace 3600"
            ))
        };
        let mut proxy = start(any(Family::V4));
        let at = proxy.addresses[0].clone();
        let (seen, over) = (Seen::default(), AtomicBool::new(false));
        let mut old = Vec::new();
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..LONG {
                let client = proxy.connect();
                scope.spawn(|| seen.stay(client, &over));
            }
            for _ in 0..THREADS {
                scope.spawn(|| seen.come(&at, &over));
            }
            for _ in 0..restarts {
                let served = seen.served.load(Ordering::Relaxed);
                eventually("half a second's have come", || {
                    let more = seen.served.load(Ordering::Relaxed) - served;
                    more >= u64::from(RATE) / 2 || seen.failures() > 0
                });
                old.push(std::mem::replace(&mut proxy, start(&at)));
            }
            over.store(true, Ordering::Relaxed);
        });
        println!(
            "{engine}, {pollers} pollers: {restarts} restarts in {:?}: {seen:?}",
            begun.elapsed()
        );
        assert_eq!(seen.failures(), 0);
        assert!(seen.echoes.load(Ordering::Relaxed) > LONG as u64);
        for mut old in old {
            assert!(old.ended().success());
        }
    }
}
