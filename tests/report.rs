//! What the pollers run on, and what they say of it.

mod support;

use duopoll::{EngineReport, EventLoop};
use support::{Family, Setup};

/// Prints it too, for `--show-output`: the table in docs/kernels.md is made of it.
fn report(choice: &str) -> EngineReport {
    let engine = choice.parse().expect("an engine");
    let setup = Setup { engine, family: Family::V4 };
    let service = EventLoop::builder().engine(engine).on_request(support::echo);
    let server = service.serve(setup.listener()).expect("a server");
    let report = server.engine_report();
    println!("engine report: {choice}: {report}");
    assert!(!report.tier.is_empty(), "{report:?}");
    report.clone()
}

#[test]
fn epoll_is_what_was_asked_for() {
    let report = report("epoll");
    assert_eq!((report.engine, report.fallback), ("epoll", None));
}

#[test]
fn uring_is_what_was_asked_for() {
    let report = report("uring");
    assert_eq!((report.engine, report.fallback), ("uring", None));
}

#[test]
fn auto_takes_uring_or_says_why_not() {
    let report = report("auto");
    assert_eq!(report.engine == "epoll", report.fallback.is_some(), "{report:?}");
}
