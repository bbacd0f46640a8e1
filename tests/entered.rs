//! Which pollers are used where nobody says: those of the thread, those that it has entered, the global ones.

mod support;

use std::time::Duration;

use duopoll::time::sleep;
use duopoll::{Dialer, Engine, Pollers};
use pollster::block_on;
use support::settled::Settled;
use support::{Family, Peer, Setup, eventually};

on_every_setup!(
    a_thread_uses_the_pollers_that_it_has_entered,
    all_pollers_of_those_that_are_entered_take_turns,
);

fn a_thread_uses_the_pollers_that_it_has_entered(setup: Setup) {
    let (first, second) = (setup.pollers(1), setup.pollers(2));
    let count = || Pollers::current().map(|pollers| pollers.count());
    assert_eq!(count(), None);
    let outer = first.enter();
    let inner = second.enter();
    assert_eq!(count(), Some(2));
    // In any order.
    drop(outer);
    assert_eq!(count(), Some(2));
    drop(inner);
    assert_eq!(count(), None);
    let _entered = first.enter();
    assert_eq!(count(), Some(1));

    let mut timer = Box::pin(sleep(support::PATIENCE));
    assert!(support::poll_once(timer.as_mut()).is_pending());
    eventually("the timer is there", || first.stats().timers == 1);
    drop(timer);
    let listener = setup.listener();
    let address = listener.local_addr().expect("bound");
    let mut accept = Box::pin(listener.accept());
    assert!(support::poll_once(accept.as_mut()).is_pending());
    let peer = Peer::connect(&address);
    let accepted = block_on(accept).expect("accepted");
    let dialed = block_on(Dialer::new().dial_addr(address)).expect("dialed");
    eventually("both live there", || first.stats().open_connections >= 2);
    assert_eq!(second.stats().connections, 0);
    drop((peer, accepted, dialed));
}

/// Dials so often for each of them, without saying on which.
fn each_gets_as_many(setup: Setup, pollers: &Pollers) {
    let server = setup.serve_echo();
    let dial = |_| block_on(Dialer::new().dial_addr(server.local_addr().clone())).expect("dialed");
    let dialed: Vec<_> = (0..2 * pollers.count()).map(dial).collect();
    for stats in pollers.settled_each() {
        assert_eq!(stats.connections, 2);
    }
    drop(dialed);
}

fn all_pollers_of_those_that_are_entered_take_turns(setup: Setup) {
    let pollers = setup.pollers(2);
    let _entered = pollers.enter();
    each_gets_as_many(setup, &pollers);
}

/// The only test of this process that uses them.
#[test]
fn global_pollers_that_were_stopped_are_started_again() {
    let global = Pollers::global().expect("an engine");
    block_on(sleep(Duration::from_millis(1)));
    global.stop();
    block_on(sleep(Duration::from_millis(1)));
    let again = Pollers::global().expect("an engine");
    assert_eq!(block_on(again.spawn(|| async { 1 })).expect("it runs"), 1);
    assert!(block_on(global.spawn(|| async { 1 })).is_err());
    each_gets_as_many(Setup { engine: Engine::Epoll, family: Family::V4 }, &again);
}
