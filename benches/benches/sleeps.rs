//! `sleep`s that are set and dropped before they go off, while 1, 1,000 or 1,000,000 of them are alive, beside tokio's.
//!
//! The time of an iteration is that of one sleep: it is made, polled once, which sets its timer, and dropped. Deadlines lie up
//! to a minute ahead; the sleeps are dropped in another order than they were made in.
//!
//! `cargo bench -p duopoll-benches --bench sleeps`

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};

const POPULATIONS: [usize; 3] = [1, 1_000, 1_000_000];
const AHEAD_MILLIS: u64 = 60_000;

/// Places for sleeps, which have their memory already.
type Places<S> = Vec<Pin<Box<Option<S>>>>;

fn places<S>(population: usize) -> Places<S> {
    (0..population).map(|_| Box::pin(None)).collect()
}

/// Sets and drops every sleep once for so many operations, or some more; the time of so many.
fn run<S: Future>(
    places: &mut Places<S>,
    sleep: impl Fn(Duration) -> S,
    operations: u64,
    cx: &mut Context<'_>,
) -> Duration {
    let population = places.len();
    let passes = operations.div_ceil(population as u64);
    let start = Instant::now();
    for _ in 0..passes {
        for (turn, place) in places.iter_mut().enumerate() {
            // A step that has no divisor in common with the range.
            let ahead = 1_000 + turn as u64 * 7919 % AHEAD_MILLIS;
            place.set(Some(sleep(Duration::from_millis(ahead))));
            let set = place.as_mut().as_pin_mut().map(|sleep| sleep.poll(cx));
            assert!(matches!(set, Some(Poll::Pending)), "it has gone off");
        }
        for turn in 0..population {
            places[turn * 7919 % population].set(None);
        }
    }
    start.elapsed().mul_f64(operations as f64 / (passes * population as u64) as f64)
}

async fn here<T>(work: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let mut work = Some(work);
    poll_fn(|cx| match work.take() {
        Some(work) => Poll::Ready(work(cx)),
        None => Poll::Pending,
    })
    .await
}

fn sleeps(c: &mut Criterion) {
    let mut group = c.benchmark_group("sleeps, set and dropped");
    group
        .throughput(Throughput::Elements(1))
        .sampling_mode(SamplingMode::Flat)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    for population in POPULATIONS {
        let mut sleeping = places(population);
        group.bench_function(BenchmarkId::new("duopoll", population), |b| {
            b.iter_custom(|operations| {
                let work = here(|cx| run(&mut sleeping, duopoll::time::sleep, operations, cx));
                duopoll::task::block_on(work).expect("a poller")
            });
        });
        #[cfg(feature = "tokio")]
        {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.expect("a runtime");
            let mut sleeping = places(population);
            group.bench_function(BenchmarkId::new("tokio", population), |b| {
                b.iter_custom(|operations| {
                    runtime
                        .block_on(here(|cx| run(&mut sleeping, tokio::time::sleep, operations, cx)))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, sleeps);
criterion_main!(benches);
