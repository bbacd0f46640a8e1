//! What completions say of streams before they are handled: looked up when a deadline has passed, since what has come counts.

use std::collections::{HashMap, VecDeque};

use duopoll_core::{Pending, Token};
use io_uring::cqueue;

use crate::socket::Op;

/// An index of completions that wait to be handled.
#[derive(Debug, Default)]
pub(crate) struct Unhandled {
    streams: HashMap<Token, Pending>,
    /// How many completions are in the index.
    indexed: usize,
}

impl Unhandled {
    /// What these completions say of a stream. They have only grown at their end since the last call, or since
    /// [`clear`](Unhandled::clear).
    pub(crate) fn of(&mut self, token: Token, completions: &VecDeque<cqueue::Entry>) -> Pending {
        for completion in completions.iter().skip(self.indexed) {
            self.add(completion);
        }
        self.indexed = completions.len();
        self.streams.get(&token).copied().unwrap_or_default()
    }

    /// They are being handled.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.indexed > 0 {
            self.streams.clear();
            self.indexed = 0;
        }
    }

    fn add(&mut self, completion: &cqueue::Entry) {
        let Some((op, token)) = Op::parse(completion.user_data()) else { return };
        let result = completion.result();
        let pending = self.streams.entry(token).or_default();
        match op {
            Op::Receive | Op::ReceiveMulti => match usize::try_from(result) {
                Ok(0) => pending.ended = true,
                Ok(bytes) => pending.bytes += bytes,
                Err(_) => pending.ended |= !goes_on(-result),
            },
            Op::Send | Op::PollOut | Op::Connect => pending.room = true,
            _ => {}
        }
    }
}

/// Whether a receive with this error is only to be tried again.
fn goes_on(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR | libc::ECANCELED | libc::ENOBUFS)
}
