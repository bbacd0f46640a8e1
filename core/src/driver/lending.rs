//! Sockets of connections that are lent to whoever moves their bytes past the engine, as splice(2) does.
//!
//! The engine gives the descriptor back, and then watches it as one of somebody else's; when it is returned, the other way
//! round. Whatever ends the connection meanwhile waits until the engine serves it again, and an abort does as little as that.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::Driver;
use super::lent::{Lent, Stage};
use super::slot::Slot;
use crate::connection::{Reason, Todo};
use crate::poll::{Deregister, Kind, Next, Poll, Ready};
use crate::readiness::Readiness;
use crate::token::Token;

impl Driver {
    /// Lends the socket of an open connection that has nothing to send. The readiness tells when it may be used, and ends when it may
    /// not any more: then, or before, it is to be [returned](Driver::give_back_lent). What arrived before is in the inbox.
    pub fn lend<P: Poll>(&mut self, engine: &mut P, token: Token) -> Option<Arc<Readiness>> {
        let stream = self.stream(token)?;
        if !stream.can_be_lent() || stream.lent.is_some() {
            return None;
        }
        let readiness = Arc::new(Readiness::default());
        stream.lent = Some(Box::new(Lent {
            readiness: readiness.clone(),
            stage: Stage::Leaving,
            todo: Todo::default(),
            end: None,
        }));
        engine.deregister(token, Deregister::Leave, self);
        self.go_on_lending(engine, token);
        Some(readiness)
    }

    /// Has the engine serve it again.
    pub fn give_back_lent<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(lent) = self.lent(token) else { return };
        match lent.stage {
            Stage::Leaving | Stage::Left => lent.todo.add(Todo::RECEIVE),
            Stage::Watched => {
                lent.stage = Stage::Returning;
                lent.readiness.end();
                engine.deregister(token, Deregister::Leave, self);
                self.go_on_lending(engine, token);
            }
            Stage::Returning | Stage::Returned | Stage::Ending => {}
        }
    }

    /// The engine has let go of a socket. Whether that was for lending it, or for its return.
    pub(super) fn is_passed_on(&mut self, token: Token) -> bool {
        let Some(lent) = self.lent(token) else { return false };
        lent.stage = match lent.stage {
            Stage::Leaving => Stage::Left,
            Stage::Returning => Stage::Returned,
            Stage::Left | Stage::Watched | Stage::Returned | Stage::Ending => return false,
        };
        self.touch(token);
        true
    }

    /// Registers it with the engine for what comes next.
    pub(super) fn go_on_lending<P: Poll>(&mut self, engine: &mut P, token: Token) {
        let Some(lent) = self.lent(token) else { return };
        match lent.stage {
            Stage::Left => {
                lent.stage = Stage::Watched;
                if !self.register_anew(engine, token, Kind::Watched) {
                    return;
                }
                let Some(lent) = self.lent(token) else { return };
                lent.readiness.tell(Ready { readable: true, writable: true });
                if !lent.todo.is_empty() || lent.end.is_some() {
                    self.give_back_lent(engine, token);
                }
            }
            Stage::Returned => {
                let Some(lent) = self.stream(token).and_then(|stream| stream.lent.take()) else {
                    return;
                };
                if !self.register_anew(engine, token, Kind::Stream) {
                    return;
                }
                if let Some(reason) = lent.end {
                    return self.deregister(engine, token, reason);
                }
                // What was handed over meanwhile.
                engine.send(token, self);
                self.perform(engine, token, lent.todo);
            }
            Stage::Leaving | Stage::Watched | Stage::Returning | Stage::Ending => {}
        }
    }

    fn register_anew<P: Poll>(&mut self, engine: &mut P, token: Token, kind: Kind) -> bool {
        let Some(stream) = self.stream(token) else { return false };
        let shared = stream.shared.clone();
        // SAFETY: the poller has not let go of it.
        let Some(fd) = (unsafe { shared.socket() }).map(|fd| fd.as_raw_fd()) else { return false };
        // SAFETY: the slot holds on to the socket, and is freed when the engine releases it; the engine has released it before.
        if unsafe { engine.register(token, fd, kind, self) }.is_ok() {
            return true;
        }
        // Out of memory for it: nobody can serve it any more.
        if let Some(end) = shared.deregister(Reason::Aborted, false) {
            if let Some(stream) = self.stream(token) {
                let group = stream.group;
                self.open.one_less(group, end.was_open);
            }
            end.effects.perform();
        }
        // SAFETY: the engine has let go of it before, and has not taken it on.
        unsafe { crate::poll::Operators::released(self, token) };
        false
    }

    /// Keeps what is asked of a connection whose socket is not with the engine. None if it need not wait.
    pub(super) fn postpone_todo<P: Poll>(
        &mut self,
        engine: &mut P,
        token: Token,
        todo: Todo,
    ) -> Option<Todo> {
        let Some(lent) = self.lent(token) else { return Some(todo) };
        if lent.stage == Stage::Watched && todo.has(Todo::ABORT) {
            return Some(todo);
        }
        lent.todo.add(todo);
        if lent.stage == Stage::Watched && todo.has(Todo::ARM) {
            self.look_at_deadlines(engine, token);
        }
        let lent = self.lent(token)?;
        if lent.stage == Stage::Watched && (todo.has(Todo::CLOSE) || todo.has(Todo::DETACH)) {
            self.give_back_lent(engine, token);
        }
        None
    }

    /// Whether the end of a connection has to wait until its socket is with the engine.
    pub(super) fn postpone_end(&mut self, token: Token, reason: Reason) -> bool {
        let Some(lent) = self.lent(token) else { return false };
        match lent.stage {
            Stage::Watched | Stage::Ending => {
                lent.stage = Stage::Ending;
                lent.readiness.end();
                false
            }
            _ => {
                lent.end = Some(reason);
                true
            }
        }
    }

    pub(super) fn tell_borrower(&mut self, token: Token, ready: Ready) -> Next {
        self.lent(token).map_or(Next::More, |lent| lent.readiness.tell(ready))
    }

    fn lent(&mut self, token: Token) -> Option<&mut Lent> {
        match self.slots.get_mut(token) {
            Some(Slot::Stream(stream)) => stream.lent.as_deref_mut(),
            _ => None,
        }
    }
}
