//! Every state that a handful of steps can reach, whoever makes them and in whatever order, and what holds in each of them;
//! and from each of them, once everybody does what is left to do, the end.
//!
//! The users are whoever holds the halves. The poller and its engine are played as the driver plays them: they do only what
//! they were told to.

mod poller;
mod users;
mod world;

use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering::Relaxed;

use world::{STEP, STEPS, Step, TIMEOUT, Waiter, World};

use super::{Errno, Half, Input, Limit, Output, Phase, Reason, Todo};
use crate::buffer::Chain;
use crate::clock::Clock;
use crate::connection::effects::{Effects, When};
use crate::poll::Deregister;

/// Steps from the beginning, with two beginnings.
const DEPTH: usize = if cfg!(miri) { 1 } else { 5 };

impl World {
    /// Makes a step. False if it cannot be made here.
    fn make(&mut self, step: Step) -> bool {
        let may_read = self.has_reader && self.reader.waits.is_none_or(|waits| waits == step);
        match step {
            Step::Read(_) | Step::Request | Step::Detach if may_read => self.poll_reader(step),
            Step::EndRead if self.reader.waits.is_some_and(|waits| waits != Step::Detach) => {
                self.reader = Waiter::default();
                drop(self.life.end_reading(&self.clock));
            }
            Step::Stage if self.has_writer && self.written < 3 => {
                self.staged.write(&[self.written]).unwrap();
                self.written += 1;
            }
            Step::Flush if self.has_writer => self.poll_writer(),
            Step::Finish | Step::FinishStaged if self.has_writer && self.writer.waits.is_none() => {
                let staged = (step == Step::FinishStaged).then_some(&mut self.staged);
                let send = self.life.finish(staged, &self.clock);
                self.must_send |= send.is_some();
                self.note_flushed();
            }
            Step::Close | Step::CloseStaged if self.has_writer => {
                let staged = (step == Step::CloseStaged).then_some(&mut self.staged);
                let effects = self.life.close(staged, &self.clock);
                self.note_flushed();
                effects.perform();
            }
            Step::DropReader if self.has_reader => self.drop_half(Half::Reader),
            Step::DropWriter if self.has_writer => self.drop_half(Half::Writer),
            Step::Abort => self.life.abort(&self.clock).perform(),
            Step::Pause => self.life.pause(&self.clock),
            Step::Resume => self.life.resume(&self.clock),
            Step::OnClose if self.closers < 2 => {
                self.closers += 1;
                let called = self.called.clone();
                let closer = Box::new(move || {
                    called.fetch_add(1, Relaxed);
                });
                if let Err(closer) = self.life.call_when(When::Closed, closer) {
                    closer();
                }
            }
            Step::ReadTimeout => self.limit(Limit::ReadTimeout(Some(TIMEOUT))),
            Step::WriteTimeout => self.limit(Limit::WriteTimeout(Some(TIMEOUT))),
            Step::IdleTimeout => self.limit(Limit::IdleTimeout(Some(TIMEOUT))),

            Step::Look if self.told => self.look(),
            Step::Sends(n) if self.is_sending() => self.send(n),
            Step::Connects if self.is_connecting() && self.is_registered() => {
                self.receives = true;
                let (effects, send) = self.life.connected(&self.clock);
                self.must_send |= send.is_some();
                effects.perform();
            }
            Step::Asks if self.receives && self.is_registered() => {
                self.asks_for_input();
            }
            Step::Delivers if self.sent < 4 && !self.peer_ended && !self.arrived => {
                if !self.asks_for_input() {
                    return false;
                }
                self.deliver();
            }
            Step::PeerEnds if !self.peer_ended && !self.arrived && self.asks_for_input() => {
                self.peer_ended = true;
                self.receives = false;
                let effects = self.life.end_input(&self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::Breaks if !self.broken && self.is_registered() => {
                self.broken = true;
                self.receives = false;
                let mut effects = Effects::default();
                self.sending = Chain::new();
                self.life.fail(libc::ECONNRESET, &mut effects, &self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::PeerTakesNoMore if self.is_sending() && !self.refuses => {
                self.refuses = true;
                let mut effects = Effects::default();
                self.sending = Chain::new();
                self.life.fail_output(libc::EPIPE, &mut effects, &self.clock);
                effects.perform();
                self.end_turn();
            }
            Step::Time(arrives) => {
                if arrives && (self.arrived || self.sent == 4 || !self.asks_for_input()) {
                    return false;
                }
                self.arrived |= arrives;
                self.clock.0.fetch_add(STEP, Relaxed);
                self.look_at_deadlines();
            }
            Step::Drain if self.life.phase == Phase::Open && !self.life.draining => {
                let effects = self.life.drain(usize::from(self.arrived));
                effects.perform();
            }
            Step::WindUp if self.is_registered() => {
                let (effects, goes) = self.life.wind_up(&self.clock);
                effects.perform();
                if goes {
                    self.begin_closing();
                } else {
                    self.deregister(Reason::Forced);
                }
            }
            Step::Force if self.is_registered() => self.deregister(Reason::Forced),
            Step::Released if !self.is_registered() && !self.released => {
                self.released = true;
                let effects = self.life.released(&self.clock);
                effects.perform();
            }
            _ => return false,
        }
        // Closed before it was connected: nothing is sent, and nobody is there to end.
        self.broken |= self.life.output == Output::Failed(Errno::new(libc::ECANCELED));
        self.told |= self.life.must_tell();
        true
    }

    fn check(&self) {
        let life = &self.life;
        assert!(
            life.todo.is_empty() || self.told,
            "the poller knows that there is something to do"
        );
        assert!((0..=1).contains(&self.open), "it is counted once");
        assert_eq!(self.open == 1, life.counted);
        let calls = self.called.load(Relaxed);
        assert!(calls <= self.closers, "no closer is called twice");
        if life.phase == Phase::Open && self.is_registered() {
            let armed =
                life.todo.has(Todo::ARM) || life.armed <= life.due().max(self.clock.now() + 1);
            assert!(armed, "there is a timer for each deadline");
        }
        if life.unsent > 0 && self.is_registered() && !self.is_connecting() {
            let knows = self.must_send || (life.todo.has(Todo::CLOSE) && !self.closing);
            assert!(knows, "the engine knows that there is something to send");
        }
        for (waiter, kept) in [(&self.reader, &life.reader), (&self.writer, &life.writer)] {
            let waits = waiter.waits.is_some() && !waiter.is_called();
            assert!(!waits || kept.is_some(), "whoever waits is waited for");
        }
    }

    /// Everybody does what is left to do, and the peer ends.
    fn conclude(&mut self) {
        for _ in 0..40 {
            let before = self.fingerprint();
            self.make(Step::Resume);
            for waits in [self.reader.waits, self.writer.waits].into_iter().flatten() {
                let waiter = if waits == Step::Flush { &self.writer } else { &self.reader };
                if waiter.is_called() {
                    self.make(waits);
                }
            }
            self.make(Step::Look);
            self.make(Step::Connects);
            self.make(Step::Sends(1));
            if self.arrived && self.asks_for_input() {
                self.arrived = false;
                self.deliver();
            }
            if self.has_reader && self.reader.waits.is_none() && self.life.input == Input::Open {
                // Somebody reads on, so that the end can come.
                self.make(Step::Read(1));
            }
            self.make(Step::PeerEnds);
            self.make(Step::Released);
            self.check();
            if before == self.fingerprint() {
                break;
            }
        }
        assert!(self.reader.waits.is_none(), "the reader's wait has ended");
        assert!(self.writer.waits.is_none(), "the writer's wait has ended");
        let reset = self.broken || self.refuses || self.how == Some(Deregister::Abort);
        assert!(
            reset || self.how == Some(Deregister::Leave) || self.got == self.flushed,
            "all is sent"
        );
        for half in [Step::DropReader, Step::DropWriter] {
            self.make(half);
        }
        for step in [Step::Look, Step::Sends(9), Step::Sends(9), Step::PeerEnds, Step::Released] {
            self.make(step);
            self.check();
        }
        assert!(matches!(self.life.phase, Phase::Released { .. }), "it has come to its end");
        assert_eq!(self.open, 0);
        assert_eq!(self.called.load(Relaxed), self.closers, "each closer is called once");
        assert!(self.life.inbox.is_empty() && self.life.outbox.is_empty(), "nothing is kept");
        assert!(self.life.reader.is_none() && self.life.writer.is_none(), "nobody is kept");
    }
}

/// The world after these steps; none if the last cannot be made.
fn after(connecting: bool, steps: &[Step]) -> Option<World> {
    let mut world = World::new(connecting);
    let mut made = true;
    for &step in steps {
        made = world.make(step);
    }
    made.then_some(world)
}

#[test]
fn whatever_happens_in_whichever_order_every_connection_comes_to_its_end() {
    for connecting in [false, true] {
        let mut seen = HashSet::new();
        let mut paths: Vec<Vec<Step>> = vec![Vec::new()];
        for _ in 0..DEPTH {
            let mut longer = Vec::new();
            for path in &paths {
                for step in STEPS {
                    let mut path = path.clone();
                    path.push(step);
                    let tried = panic::catch_unwind(AssertUnwindSafe(|| {
                        let Some(mut world) = after(connecting, &path) else { return false };
                        world.check();
                        let is_new = seen.insert(world.fingerprint());
                        if is_new {
                            world.conclude();
                        }
                        is_new
                    }));
                    let Ok(is_new) = tried else {
                        panic!("connecting: {connecting}, steps: {path:?}");
                    };
                    if is_new {
                        longer.push(path);
                    }
                }
            }
            paths = longer;
        }
        println!("connecting: {connecting}: {} states", seen.len());
    }
}
