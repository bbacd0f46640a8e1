//! What the engine asks and tells.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;

use libc::iovec;

use super::Driver;
use super::deadlines::NO_MEMORY_RETRY_MS;
use super::slot::Slot;
use super::stream::{Receiving, Stream};
use crate::buffer::Chain;
use crate::connection::{Moved, wake};
use crate::errno::errno;
use crate::memory::Slice;
use crate::poll::{Inputs, Lease, Next, Operators, Outputs, Ready, SEND_VECTORS_MAX};
use crate::thread::Blocks;
use crate::token::Token;

/// While their reader has more to read already, bytes are copied out of a block that is as many times their size.
const LAGGING_KEEPS: usize = 4;

// SAFETY: the vectors of inputs lie in the stream's receive buffer and those of outputs in its `sending`. Neither is changed
// while it is lent, except that `sending` grows at its end, which moves no bytes; and a slot is removed only when the
// engine has released it. If the driver is dropped earlier, `Stream::drop` leaks what is lent.
unsafe impl Operators for Driver {
    #[inline]
    fn awake(&mut self) {
        self.mailbox.awake();
    }

    fn is_due_sooner(&self) -> bool {
        self.waits_for_period() && !self.memory.period_known
    }

    fn receives(&mut self, token: Token) -> bool {
        self.stream(token).is_some_and(|stream| stream.shared.receives().is_some())
    }

    fn inputs(&mut self, token: Token, lease: Lease, vectors: &mut [iovec; 2]) -> Inputs {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Inputs::Stop };
        let Some(expected) = stream.shared.receives() else { return Inputs::Stop };
        if lease == Lease::UntilAck {
            if let Some(lent) = stream.share_block(expected) {
                vectors[0] = lent;
                return Inputs::Vectors(1);
            }
        }
        let most = self.mailbox.share();
        match stream.recv.lend(&mut Blocks, expected.awaited, most, vectors) {
            Ok(count) => {
                stream.receiving = Receiving::Own;
                Inputs::Vectors(count)
            }
            Err(_) => {
                stream.starved = true;
                self.memory.starves = true;
                let retry = self.mailbox.clock().now() + NO_MEMORY_RETRY_MS;
                let set = self.wheel.deadline(token.index());
                // The timer of a closed connection ends it, and is left alone.
                if stream.due == 0 && set.is_none_or(|deadline| deadline > retry) {
                    self.wheel.set(token.index(), retry);
                }
                Inputs::Stop
            }
        }
    }

    unsafe fn input_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Next::Stop };
        let shared_block = mem::replace(&mut stream.receiving, Receiving::No) == Receiving::Shared;
        let Stream { shared, recv, .. } = stream;
        let (next, closing) = match result {
            Ok(n) if n > 0 => {
                let Moved { waker, next, closing } = shared.deliver(|inbox, _| {
                    if shared_block {
                        // SAFETY: promised by the engine, which has asked for nothing else since.
                        unsafe { Blocks::commit(n, inbox) };
                        recv.saw(n, inbox.len());
                    } else {
                        // SAFETY: promised by the engine.
                        unsafe { recv.commit(n, inbox) };
                    }
                });
                wake(waker);
                (next, closing)
            }
            Ok(_) => {
                shared.end_input();
                (Next::Stop, true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (Next::More, false),
            Err(error) => {
                shared.fail(errno(&error));
                (Next::Stop, true)
            }
        };
        if let Some(unused) = recv.take_unused() {
            Blocks::put(unused);
        }
        // It has a block to be given back, or comes to its next phase.
        if (!shared_block || closing) && !mem::replace(&mut stream.touched, true) {
            self.touched.push(token);
        }
        next
    }

    fn donate(&mut self, token: Token, slice: Slice) -> Next {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Next::Stop };
        if stream.receiving != Receiving::No {
            return self.refuse(token);
        }
        let Stream { shared, recv, .. } = stream;
        // Whoever holds a part of a block holds all of it: more than it may, if memory is short.
        let keeps_too_much = slice.kept_bytes() > self.mailbox.share();
        let Moved { waker, next, closing } = shared.deliver(|inbox, lags| {
            // Nobody knows for how long these would keep the block.
            let keeps_many = slice.kept_bytes() >= LAGGING_KEEPS * slice.len();
            let copies = keeps_too_much || (lags && keeps_many);
            match copies.then(|| recv.make_room(slice.len(), &mut Blocks)) {
                Some(Ok(full)) => {
                    full.into_iter().for_each(Blocks::put);
                    recv.copy_in(&slice, inbox);
                }
                _ => inbox.push(slice),
            }
        });
        wake(waker);
        let has_block = recv.tail().is_some();
        if has_block || closing {
            self.touch(token);
        }
        next
    }

    fn copy_in(&mut self, token: Token, bytes: &[u8]) -> Option<Next> {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else { return Some(Next::Stop) };
        if stream.receiving != Receiving::No {
            return Some(self.refuse(token));
        }
        let Stream { shared, recv, .. } = stream;
        let mut copied = true;
        let Moved { waker, next, closing } = shared.deliver(|inbox, lags| {
            if lags {
                // The pieces of a message go side by side, rather than each into a block with those of others.
                match recv.make_room(bytes.len(), &mut Blocks) {
                    Ok(full) => {
                        full.into_iter().for_each(Blocks::put);
                        recv.copy_in(bytes, inbox);
                    }
                    Err(_) => copied = false,
                }
            } else {
                copied = Blocks::copy_in(bytes, inbox);
            }
        });
        wake(waker);
        let has_block = recv.tail().is_some();
        if has_block || closing {
            self.touch(token);
        }
        copied.then_some(next)
    }

    fn outputs(&mut self, token: Token, vectors: &mut [iovec; SEND_VECTORS_MAX]) -> Outputs {
        let Some(Slot::Stream(stream)) = self.slots.get_mut(token) else {
            return Outputs::Nothing;
        };
        if stream.lent.is_some() {
            // Behind what goes past the engine.
            return Outputs::Nothing;
        }
        let waits = match stream.shared.take_output(&mut stream.sending) {
            Ok(waits) => waits,
            Err(done) => {
                if done == Outputs::Finish {
                    // No acknowledgement follows, and a closed connection has come to its next phase.
                    self.touch(token);
                }
                return done;
            }
        };
        #[cfg(feature = "zerocopy")]
        let (count, bytes, flags) = {
            let left = self.pinned.bytes_max.saturating_sub(self.pinned.bytes);
            super::zerocopy::fill_vectors(stream, left, vectors)
        };
        #[cfg(not(feature = "zerocopy"))]
        let ((count, bytes), flags) = (stream.sending.fill_vectors(vectors), 0);
        stream.in_flight = true;
        let awaited = waits || bytes < stream.sending.len();
        Outputs::Vectors { count, bytes, flags, awaited }
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        self.acknowledge_zero_copy(token, result)
    }

    #[cfg(feature = "zerocopy")]
    fn zerocopy_notice(&mut self, token: Token, first: u32, last: u32, copied: bool) {
        self.release_zero_copy(token, first, last, copied);
    }

    #[inline]
    fn output_ack(&mut self, token: Token, result: io::Result<usize>) -> Next {
        let Driver { slots, mailbox, .. } = self;
        let Some(Slot::Stream(stream)) = slots.get_mut(token) else { return Next::Stop };
        stream.in_flight = false;
        let (next, closing) = match result {
            Ok(n) => {
                stream.sending.advance(n);
                let at = || mailbox.clock().now();
                let Moved { waker, next, closing } = stream.shared.sent(n, &mut stream.sending, at);
                wake(waker);
                stream.prolonged &= n == 0;
                (next, closing)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (Next::More, false),
            Err(error) => {
                drop(mem::replace(&mut stream.sending, Chain::new()));
                stream.shared.fail_sending(&error);
                (Next::Stop, true)
            }
        };
        if closing {
            self.touch(token);
        }
        next
    }

    fn connected(&mut self, token: Token, result: io::Result<()>) {
        let Some(stream) = self.stream(token) else { return };
        match result {
            Ok(()) => stream.shared.connected(),
            Err(error) => stream.shared.fail(errno(&error)),
        }
    }

    fn accepted(&mut self, token: Token, result: io::Result<OwnedFd>) -> Next {
        self.accept(token, result)
    }

    fn ready(&mut self, token: Token, ready: Ready) -> Next {
        self.tell_ready(token, ready)
    }

    unsafe fn released(&mut self, token: Token) {
        if self.is_passed_on(token) {
            return;
        }
        self.wheel.clear(token.index());
        if let Some(Slot::Stream(mut stream)) = self.slots.remove(token) {
            stream.receiving = Receiving::No;
            stream.in_flight = false;
            stream.released = true;
            #[cfg(feature = "zerocopy")]
            self.adopt_zero_copy(token, &mut stream);
            self.untaken.remove(&token);
            self.stats.closed += 1;
            self.draining.one_less(stream.group);
            stream.shared.released();
        }
    }
}

impl Driver {
    /// Bytes have come another way while memory was lent for them: nobody knows their place.
    #[cold]
    fn refuse(&mut self, token: Token) -> Next {
        if let Some(stream) = self.stream(token) {
            stream.shared.fail(libc::EIO);
        }
        self.touch(token);
        Next::Stop
    }
}
