//! Tasks that share a sending half: each sends messages of its own, and none stands within another's.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use duopoll_core::{LinkBuffer, Sender, Writer};

use crate::clock::SimClock;
use crate::link::{Goal, Link, Wait};
use crate::rng::Pattern;
use crate::tasks::{Env, Half, change_limits};

/// A clone of a sender.
pub(crate) struct SendSide {
    sender: Sender,
    link: Rc<Link>,
    clock: Arc<SimClock>,
    /// Its users.
    users: Rc<()>,
}

impl SendSide {
    pub(crate) fn new(writer: Writer, link: Rc<Link>, clock: Arc<SimClock>) -> SendSide {
        *link.handed_over.borrow_mut() = Some(Vec::new());
        let sender = writer.into_sender().expect("nothing is staged");
        SendSide { sender, link, clock, users: Rc::new(()) }
    }

    pub(crate) fn another(&self) -> SendSide {
        SendSide {
            sender: self.sender.clone(),
            link: self.link.clone(),
            clock: self.clock.clone(),
            users: self.users.clone(),
        }
    }

    async fn step(&self, env: &mut Env) -> bool {
        match env.rng.below(16) {
            0 => env.sleep().await,
            1 => change_limits(&self.link, &self.sender.control(), env),
            2 => return self.drain(env).await,
            3..=5 => return self.try_send(env),
            6 if env.rng.one_in(20) => self.finish(env),
            _ => return self.send(env).await,
        }
        true
    }

    async fn send(&self, env: &mut Env) -> bool {
        let (mut message, bytes) = message(env);
        let low = self.high() / 2;
        let call = self.sender.send(&mut message);
        let (result, wait) = env.call(&self.link, Half::Writing, Goal::Unsent(low), call).await;
        let left = message.len();
        match result {
            None => {
                assert_eq!(left, bytes.len(), "given up, and sent");
                true
            }
            Some(Ok(())) => {
                assert_eq!(left, 0);
                self.handed_over(&bytes, env);
                true
            }
            Some(Err(error)) => {
                assert_eq!(left, bytes.len(), "refused, and sent");
                self.goes_on_after(&error, &wait, env)
            }
        }
    }

    fn try_send(&self, env: &mut Env) -> bool {
        let (mut message, bytes) = message(env);
        let result = self.sender.try_send(&mut message);
        let wait = {
            let mut state = self.link.state();
            let wait = state.writing.begin(env.task, Goal::Unsent(0), env.now(), 0);
            state.writing.end(env.task);
            wait
        };
        match result {
            Ok(true) => {
                assert_eq!(message.len(), 0);
                self.handed_over(&bytes, env);
                true
            }
            Ok(false) => {
                assert_eq!(message.len(), bytes.len());
                let state = self.link.state();
                assert!(state.unsent() > 0, "nobody is to be waited for: {state:?}");
                true
            }
            Err(error) => self.goes_on_after(&error, &wait, env),
        }
    }

    async fn drain(&self, env: &mut Env) -> bool {
        let call = self.sender.drain();
        let (result, wait) = env.call(&self.link, Half::Writing, Goal::Unsent(0), call).await;
        match result {
            None => true,
            Some(Ok(())) => {
                let state = self.link.state();
                assert_eq!(state.unsent(), 0, "not all is sent: {state:?}");
                true
            }
            Some(Err(error)) => self.goes_on_after(&error, &wait, env),
        }
    }

    fn finish(&self, env: &Env) {
        note!("{} link {}: finish", env.now(), self.link.id);
        let mut state = self.link.state();
        state.finished = true;
        state.count(env.now());
        drop(state);
        self.sender.finish();
    }

    fn high(&self) -> u64 {
        self.link.limits.output_high_bytes as u64
    }

    /// A message was taken, as the next of all.
    fn handed_over(&self, bytes: &[u8], env: &Env) {
        assert!(self.link.output_is_open(), "taken by a connection that was closed");
        if let Some(all) = &mut *self.link.handed_over.borrow_mut() {
            all.extend_from_slice(bytes);
        }
        let n = bytes.len() as u64;
        let mut state = self.link.state();
        let before = state.unsent();
        let bounded = before <= self.high() / 2 || before + n <= self.high();
        assert!(bounded, "{n} bytes more than there is room for: {state:?}");
        (state.staged, state.flushed) = (state.staged + n, state.flushed + n);
        state.count(env.now());
    }

    fn goes_on_after(&self, error: &io::Error, wait: &Wait, env: &Env) -> bool {
        note!("{} link {}: {error:?}", env.now(), self.link.id);
        self.link.check_write_error(error, wait, env.now());
        error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
    }
}

impl Drop for SendSide {
    fn drop(&mut self) {
        if Rc::strong_count(&self.users) == 1 {
            self.link.drop_half(false, self.clock.micros());
        }
    }
}

fn message(env: &mut Env) -> (LinkBuffer, Vec<u8>) {
    let bytes = Pattern(env.rng.next()).bytes(0, env.rng.size());
    let mut message = LinkBuffer::new();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    message.push(first.to_vec());
    message.write(second).expect("memory");
    message.flush();
    (message, bytes)
}

/// A task that sends beside others.
pub(crate) async fn send(side: SendSide, mut env: Env) {
    for _ in 0..env.rng.below(40) {
        if !side.step(&mut env).await {
            break;
        }
    }
    if env.rng.one_in(3) {
        side.drain(&mut env).await;
    }
}
