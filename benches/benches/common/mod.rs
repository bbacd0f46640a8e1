//! What the benchmarks of the two engines share.
//!
//! The pollers stay on one core and the thread that measures on another, as long as there are two: see [`apart`].

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use duopoll::{Engine, Pollers};
use duopoll_benches::sys;

/// The engines that this kernel has, by name.
pub fn engines() -> Vec<(&'static str, Engine)> {
    let mut engines = vec![("epoll", Engine::Epoll), ("uring", Engine::Uring)];
    engines.retain(|(name, engine)| match Pollers::options().engine(*engine).count(1).start() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("{name} is left out: {error}");
            false
        }
    });
    engines
}

/// Starts something whose threads then stay on core 0, and leaves this thread on core 1.
pub fn apart<T>(start: impl FnOnce() -> T) -> T {
    // Where there is only one core, there is nothing to keep apart.
    let _ = sys::pin_to_core(0);
    let started = start();
    let _ = sys::pin_to_core(1);
    started
}

/// A group whose iterations are short next to a sample, and which takes about two seconds a benchmark.
pub fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    group
}
