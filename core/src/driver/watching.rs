//! Descriptors that somebody else reads and writes, and that are watched for him.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Driver;
use super::slot::{Slot, Watched};
use crate::poll::{Deregister, Kind, Next, Poll, Ready};
use crate::readiness::Readiness;
use crate::token::Token;

impl Driver {
    /// Watches a descriptor, until it is [unwatched](Driver::unwatch) or the poller ends. A socket for [datagrams](Kind::Datagrams) is
    /// taken to have room at first.
    ///
    /// # Errors
    /// What the engine says; the descriptor is closed then.
    pub fn watch<P: Poll>(
        &mut self,
        engine: &mut P,
        fd: OwnedFd,
        kind: Kind,
    ) -> io::Result<(Token, Arc<Readiness>)> {
        let (number, readiness) = (fd.as_raw_fd(), Arc::new(Readiness::default()));
        if kind == Kind::Datagrams {
            readiness.tell(Ready { readable: false, writable: true });
        }
        let watched = Watched::new(fd, readiness.clone());
        let token = self.slots.insert_with(|_| Slot::Watched(watched));
        // SAFETY: the slot has the descriptor, and is freed when the engine releases it; its token is nobody else's.
        if let Err(error) = unsafe { engine.register(token, number, kind, self) } {
            self.slots.remove(token);
            return Err(error);
        }
        Ok((token, readiness))
    }

    /// Has the readiness of a socket for [datagrams](Kind::Datagrams) told of room, if there is some, and of each change from then on, until
    /// nobody had waited for it.
    pub fn watch_room<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Watched(watched)) = self.slots.get_mut(token) {
            if !watched.deregistered {
                engine.watch_room(token);
            }
        }
    }

    /// Watches it no more.
    pub fn unwatch<P: Poll>(&mut self, engine: &mut P, token: Token) {
        if let Some(Slot::Watched(watched)) = self.slots.get_mut(token) {
            if !mem::replace(&mut watched.deregistered, true) {
                watched.readiness.end();
                engine.deregister(token, Deregister::Leave, self);
            }
        }
    }

    /// Whether the descriptor is there still: an engine may be slow to let go of it.
    pub fn watches(&self, token: Token) -> bool {
        matches!(self.slots.get(token), Some(Slot::Watched(_)))
    }

    pub(super) fn tell_ready(&mut self, token: Token, ready: Ready) -> Next {
        match self.slots.get_mut(token) {
            Some(Slot::Watched(watched)) => watched.readiness.tell(ready),
            _ => self.tell_borrower(token, ready),
        }
    }
}
