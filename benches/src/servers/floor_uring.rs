//! The floor on io_uring: the best single-threaded loop we know how to write by hand.
//!
//! - DEFER_TASKRUN and SINGLE_ISSUER: completions run when the loop asks for them.
//! - Multishot accept into direct descriptors: no look-up in the process' descriptor table.
//! - Multishot receive into a ring of provided buffers that hold the message, in number no
//!   more than a turn uses up: the ring walks through all of them.
//! - One send in flight a connection, from the buffer that was received into. Two could pass each
//!   other when the first has to wait for the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use crate::provided::Buffers;
use crate::servers::Options;
use crate::sys;

/// The rings are walked from end to end: small ones stay in the cache.
const ENTRIES: u32 = 128;
const COMPLETIONS: u32 = 512;
/// Direct descriptors; the kernel allows no more than the limit on open files.
const SLOTS_MAX: u32 = 19_000;
const GROUP: u16 = 0;
/// What large buffers may take together: the second-level cache of the machines we measure on.
const CACHE_BYTES: usize = 1 << 20;
/// No buffer: the end of a connection's queue.
const NONE: u16 = u16::MAX;

const ACCEPT: u8 = 0;
const RECV: u8 = 1;
const SEND: u8 = 2;
const CLOSE: u8 = 3;

/// What a completion belongs to: the operation, the buffer (of a send), the connection.
fn pack(op: u8, buffer: u16, slot: u32) -> u64 {
    u64::from(op) << 48 | u64::from(buffer) << 32 | u64::from(slot)
}

fn unpack(data: u64) -> (u8, u16, u32) {
    ((data >> 48) as u8, (data >> 32) as u16, data as u32)
}

/// A connection: the buffers whose bytes wait for the send in flight, oldest first.
#[derive(Clone, Copy)]
struct Connection {
    head: u16,
    tail: u16,
    sending: bool,
    ended: bool,
}

const IDLE: Connection = Connection { head: NONE, tail: NONE, sending: false, ended: false };

struct Loop<'ring> {
    submitter: Submitter<'ring>,
    queue: SubmissionQueue<'ring>,
    listener: Fd,
    buffers: Buffers,
    /// Bytes in each buffer, and how many of them were sent.
    filled: Vec<(u32, u32)>,
    /// The next buffer in the connection's queue.
    next: Vec<u16>,
    connections: Vec<Connection>,
    /// Connections whose multishot receive found no buffer, longest waiting first.
    starved: VecDeque<u32>,
    /// Buffers that the kernel can take, as far as is known here.
    free: usize,
    recycled: bool,
}

/// Serves until an error that is not a connection's own.
pub fn serve(options: &Options) -> io::Result<()> {
    let listener = sys::listen(&options.listen)?;
    let mut ring = IoUring::builder()
        .setup_defer_taskrun()
        .setup_single_issuer()
        .setup_cqsize(COMPLETIONS)
        .setup_no_sqarray()
        .build(ENTRIES)?;
    let (submitter, queue, mut completions) = ring.split();
    let slots = SLOTS_MAX.min(sys::raise_descriptor_limit()? as u32);
    submitter.register_files_sparse(slots)?;

    let (count, size) = buffer_shape(options.burst_bytes);
    let mut state = Loop {
        buffers: Buffers::new(&submitter, GROUP, count, size)?,
        submitter,
        queue,
        listener: Fd(listener.as_raw_fd()),
        filled: vec![(0, 0); usize::from(count)],
        next: vec![NONE; usize::from(count)],
        connections: vec![IDLE; slots as usize],
        starved: VecDeque::new(),
        free: usize::from(count),
        recycled: false,
    };
    state.accept()?;
    loop {
        state.queue.sync();
        let want = usize::from(state.starved.is_empty() || state.free == 0);
        match state.submitter.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // The completion queue is full: take from it first.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        completions.sync();
        for completion in &mut completions {
            state.complete(&completion)?;
        }
        state.finish_turn()?;
    }
}

/// Number and size of the buffers: each holds a burst, up to 128 KiB. The ring walks through all of
/// them, so large ones are few; small ones are enough for the connections of a turn, as a receive
/// that finds none ends and has to be armed again.
fn buffer_shape(burst_bytes: usize) -> (u16, usize) {
    let size = burst_bytes.next_multiple_of(64).clamp(256, 128 << 10);
    let count = if size <= 16 << 10 { 256 } else { CACHE_BYTES / size.next_power_of_two() };
    (count as u16, size)
}

impl Loop<'_> {
    #[inline]
    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let (op, buffer, slot) = unpack(completion.user_data());
        let result = completion.result();
        match op {
            RECV => self.received(slot, result, completion.flags()),
            SEND => self.sent(slot, buffer, result),
            ACCEPT => {
                if result >= 0 {
                    self.connections[result as usize] = IDLE;
                    self.receive(result as u32)?;
                }
                if cqueue::more(completion.flags()) { Ok(()) } else { self.accept() }
            }
            _ => Ok(()),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(self.listener).allocate_file_index(true).build();
        self.push(entry.user_data(pack(ACCEPT, NONE, 0)))
    }

    fn receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        self.push(entry.user_data(pack(RECV, NONE, slot)))
    }

    #[inline]
    fn received(&mut self, slot: u32, result: i32, flags: u32) -> io::Result<()> {
        if result <= 0 && result != -libc::ENOBUFS {
            // The end of the stream may come with a buffer that was picked and not used.
            if let Some(buffer) = cqueue::buffer_select(flags) {
                self.free -= 1;
                self.recycle(buffer);
            }
            self.connections[slot as usize].ended = true;
            return self.close_if_done(slot);
        }
        if let Some(buffer) = cqueue::buffer_select(flags) {
            self.free -= 1;
            self.filled[usize::from(buffer)] = (result as u32, 0);
            let connection = &mut self.connections[slot as usize];
            if connection.sending {
                self.next[usize::from(buffer)] = NONE;
                if connection.head == NONE {
                    connection.head = buffer;
                } else {
                    self.next[usize::from(connection.tail)] = buffer;
                }
                connection.tail = buffer;
            } else {
                connection.sending = true;
                self.send(slot, buffer)?;
            }
        }
        if result == -libc::ENOBUFS {
            self.starved.push_back(slot);
        } else if !cqueue::more(flags) {
            return self.receive(slot);
        }
        Ok(())
    }

    #[inline]
    fn send(&mut self, slot: u32, buffer: u16) -> io::Result<()> {
        let (filled, sent) = self.filled[usize::from(buffer)];
        // SAFETY: `sent` is at most `filled`, which the kernel wrote into this buffer.
        let start = unsafe { self.buffers.address(buffer).add(sent as usize) };
        let entry = opcode::Send::new(Fixed(slot), start, filled - sent)
            // The kernel itself goes on after a partial send.
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(entry.user_data(pack(SEND, buffer, slot)))
    }

    #[inline]
    fn sent(&mut self, slot: u32, buffer: u16, result: i32) -> io::Result<()> {
        let (filled, sent) = &mut self.filled[usize::from(buffer)];
        if result >= 0 {
            *sent += result as u32;
            if *sent < *filled {
                return self.send(slot, buffer);
            }
        }
        self.recycle(buffer);
        let connection = &mut self.connections[slot as usize];
        if result < 0 {
            // Nothing more will reach the peer; the receive ends with an error of its own.
            let mut waiting = connection.head;
            connection.head = NONE;
            while waiting != NONE {
                self.recycle(waiting);
                waiting = self.next[usize::from(waiting)];
            }
        }
        let connection = &mut self.connections[slot as usize];
        if connection.head != NONE {
            let following = connection.head;
            connection.head = self.next[usize::from(following)];
            return self.send(slot, following);
        }
        connection.sending = false;
        if connection.ended { self.close_if_done(slot) } else { Ok(()) }
    }

    /// Closes a connection whose peer has ended, once its last answer is out.
    fn close_if_done(&mut self, slot: u32) -> io::Result<()> {
        let connection = &self.connections[slot as usize];
        if connection.sending {
            return Ok(());
        }
        let entry = opcode::Close::new(Fixed(slot)).build();
        self.push(entry.user_data(pack(CLOSE, NONE, slot)))
    }

    fn recycle(&mut self, buffer: u16) {
        self.buffers.recycle(buffer);
        self.free += 1;
        self.recycled = true;
    }

    /// Hands the recycled buffers back, and lets as many starved connections try again as there are
    /// buffers: all of them at once would only starve again.
    fn finish_turn(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.recycled) {
            self.buffers.publish();
        }
        for _ in 0..self.free.min(self.starved.len()) {
            if let Some(slot) = self.starved.pop_front() {
                self.receive(slot)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the buffers of a send are neither moved nor reused before its completion, and
            // no other operation refers to memory of ours.
            if unsafe { self.queue.push(&entry) }.is_ok() {
                return Ok(());
            }
            self.queue.sync();
            self.submitter.submit()?;
            self.queue.sync();
        }
    }
}
