//! What the poller keeps of one connection: the memory that is lent to the kernel.
//!
//! What the connection is, and what is to become of it, lies in its [`Shared`] state and nowhere else.

use std::mem;
use std::sync::Arc;

use libc::iovec;

use super::group::Group;
use super::lent::Lent;
#[cfg(feature = "zerocopy")]
use super::pinned::Sends;
use crate::buffer::{Chain, RecvBuffer};
use crate::connection::{Expected, Shared};
use crate::thread::Blocks;
use crate::timer::Tick;

pub(super) struct Stream {
    pub(super) shared: Arc<Shared>,
    pub(super) group: Group,
    pub(super) recv: RecvBuffer,
    pub(super) sending: Chain,
    pub(super) receiving: Receiving,
    /// The kernel holds vectors of `sending`.
    pub(super) in_flight: bool,
    /// Sends without a copy, once there was one.
    #[cfg(feature = "zerocopy")]
    pub(super) zero_copy: Option<Box<Sends>>,
    /// The socket is lent to somebody.
    pub(super) lent: Option<Box<Lent>>,
    /// Is looked at when the turn ends.
    pub(super) touched: bool,
    /// Receiving waits for memory.
    pub(super) starved: bool,
    /// Times in a row that a deadline waited for what had come before it.
    pub(super) holds: u16,
    /// The poller knows that it is closed.
    pub(super) closing: bool,
    /// When the phase that it is in then, or in which it waits to be detached, is over; 0 if it is in none of them.
    pub(super) due: Tick,
    /// That was put off, since the poller had been held up.
    pub(super) prolonged: bool,
    /// The engine has let go.
    pub(super) released: bool,
    /// It was ended by a reset.
    #[cfg(feature = "zerocopy")]
    pub(super) reset: bool,
}

/// Where a receive goes that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    No,
    /// Into the stream's own buffer.
    Own,
    /// Into the block that small messages share.
    Shared,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, group: Group) -> Stream {
        Stream {
            shared,
            group,
            recv: RecvBuffer::default(),
            sending: Chain::new(),
            receiving: Receiving::No,
            in_flight: false,
            #[cfg(feature = "zerocopy")]
            zero_copy: None,
            lent: None,
            touched: false,
            starved: false,
            holds: 0,
            closing: false,
            due: 0,
            prolonged: false,
            released: false,
            #[cfg(feature = "zerocopy")]
            reset: false,
        }
    }

    /// Whether its bytes can go past the engine: the kernel holds nothing of it, and nothing is to be sent.
    pub(super) fn can_be_lent(&self) -> bool {
        #[cfg(feature = "zerocopy")]
        if self.zero_copy.is_some() {
            // The engine counts the notices.
            return false;
        }
        !self.in_flight && !self.closing && self.shared.is_at_rest()
    }

    /// Room for a small message in the block that connections share; none if a larger one is expected, or if a part of one
    /// has come, which would keep the block for longer than others need it.
    pub(super) fn share_block(&mut self, expected: Expected) -> Option<iovec> {
        if expected.lags || !self.recv.expects_little() {
            return None;
        }
        let lent = Blocks::lend()?;
        self.recv.lends(lent.iov_len);
        self.receiving = Receiving::Shared;
        Some(lent)
    }

    /// Whether the kernel still reads from the memory of what it has taken to send.
    pub(super) fn has_pinned(&self) -> bool {
        #[cfg(feature = "zerocopy")]
        return self.zero_copy.as_ref().is_some_and(|sends| !sends.is_empty());
        #[cfg(not(feature = "zerocopy"))]
        false
    }

    /// Gives up the block that was received into, unless the kernel holds it, or bytes in it wait for their reader or
    /// for the rest of a message: what comes next shall continue in the same block.
    pub(super) fn give_back(&mut self) {
        if self.receiving == Receiving::Own {
            return;
        }
        let Some(tail) = self.recv.tail_mut().take() else { return };
        if tail.is_shared() && self.shared.lags() {
            *self.recv.tail_mut() = Some(tail);
        } else {
            Blocks::put(tail);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.receiving == Receiving::Own {
            mem::forget(mem::take(&mut self.recv));
        }
        if self.in_flight {
            mem::forget(mem::take(&mut self.sending));
        }
        if !self.released {
            self.shared.abandoned();
        }
        // SAFETY: once, and last: the engine has released the socket, or is gone itself.
        unsafe { self.shared.let_go() };
    }
}
