//! Two LinkBuffers next to the plainest byte queues there are, and every operation on both.
//!
//! Shared by the property test and by the fuzz target: an operation is decoded from five bytes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, BufRead, Read, Write as _};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use duopoll_core::seam::BufferSeam;
use duopoll_core::{
    Chain, Error, LinkBuffer, LinkReader, LinkWriter, Pool, PoolConfig, Slice, Tail,
};
use libc::iovec;

/// An operation on one of the buffers, with its sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Next(usize),
    NextAndDrop(usize),
    Peek(usize),
    Skip(usize),
    Until(u8),
    Find(u8, usize),
    FindPattern { from: usize, len: usize },
    ReadU8,
    ReadBytes(usize),
    ReadString(usize),
    CopyTo(usize),
    PeekTo(usize),
    SplitTo(usize),
    NextChunk(usize),
    GetNumber(u16),
    CopyToBytes(usize),
    ReadIo(usize),
    ReadBuffered(usize),

    Write(usize),
    Push(usize),
    PushKept(usize),
    Reserve { n: usize, first: usize, second: usize },
    CommitUnreserved(usize),
    Insert { before: usize, len: usize },
    InsertKept { before: usize, index: usize },
    TruncateReserved(usize),
    Append,
    Flush,
    PutNumber(u16),
    ChunkMut(usize),
    WriteText(usize),
    WriteIo(usize),

    Receive(usize),
    LendOnly,
    Send { vectors: usize, n: usize },
    Adopt(usize),
    AdoptKept(usize),
    DrainIntoChain,
    AdoptChain,
    SplitChain { to: usize, off: usize },
    TakeTail,
    PutTail,
    ReleaseMemory,
    Clear,

    ThroughBytes,
    ThroughBytesMut,
    ThroughReader { step: usize, target: usize },
    ThroughWriter { step: usize },

    CloneKept(usize),
    SplitKept { index: usize, n: usize },
    CutKept { index: usize, from: usize, len: usize },
    CompactKept(usize),
    KeptThroughBytes(usize),
    DropKept(usize),
    DropKeptElsewhere(usize),
    Swap,
    Trim,
}

impl Op {
    /// Bytes that one operation is decoded from.
    #[allow(dead_code, reason = "for the fuzz target")]
    pub(crate) const ENCODED_BYTES: usize = 5;

    pub(crate) fn decode(kind: u8, a: u16, b: u16) -> Op {
        let (n, m) = (size(a), size(b));
        let index = usize::from(a);
        match kind % 64 {
            0..=2 => Op::Next(n),
            3 => Op::NextAndDrop(n),
            4 => Op::Peek(n),
            5 => Op::Skip(n),
            6 => Op::Until(a as u8),
            7 => Op::Find(a as u8, m),
            8 => Op::FindPattern { from: n, len: usize::from(b % 9) },
            9 => Op::ReadU8,
            10 => Op::ReadBytes(n),
            11 => Op::ReadString(n),
            12 => Op::CopyTo(n),
            13 => Op::PeekTo(n),
            14 => Op::SplitTo(n),
            15 => Op::NextChunk(n),
            16 => Op::GetNumber(a),
            17 => Op::CopyToBytes(n),
            18 => Op::ReadIo(n),
            19 => Op::ReadBuffered(n),
            20..=22 => Op::Write(n),
            23 => Op::Push(n),
            24 => Op::PushKept(index),
            25 | 26 => Op::Reserve { n, first: m, second: usize::from(b >> 8) },
            27 => Op::CommitUnreserved(n),
            28 => Op::Insert { before: n, len: m },
            29 => Op::InsertKept { before: m, index },
            30 => Op::TruncateReserved(n),
            31 => Op::Append,
            32 | 33 => Op::Flush,
            34 => Op::PutNumber(a),
            35 => Op::ChunkMut(n),
            36 => Op::WriteText(n),
            37 => Op::WriteIo(n),
            38..=40 => Op::Receive(n),
            41 => Op::LendOnly,
            42 => Op::Send { vectors: usize::from(b % 7), n },
            43 => Op::Adopt(n),
            44 => Op::AdoptKept(index),
            45 => Op::DrainIntoChain,
            46 => Op::AdoptChain,
            47 => Op::SplitChain { to: n, off: m },
            48 => Op::TakeTail,
            49 => Op::PutTail,
            50 => Op::ReleaseMemory,
            51 => Op::Clear,
            52 => Op::ThroughBytes,
            53 => Op::ThroughBytesMut,
            54 => Op::ThroughReader { step: usize::from(b % 900) + 1, target: n },
            55 => Op::ThroughWriter { step: usize::from(b % 900) + 1 },
            56 => Op::CloneKept(index),
            57 => Op::SplitKept { index, n: m },
            58 => Op::CutKept { index, from: usize::from(b % 64), len: m },
            59 => Op::CompactKept(index),
            60 => Op::KeptThroughBytes(index),
            61 => Op::DropKept(index),
            62 if b % 16 == 0 => Op::DropKeptElsewhere(index),
            62 => Op::Swap,
            _ => Op::Trim,
        }
    }
}

/// Mostly small sizes, some around a block, a few large, and a few impossible ones.
fn size(raw: u16) -> usize {
    // Miri is slow.
    let n = usize::from(raw & 0x1fff) % if cfg!(miri) { 300 } else { 0x2000 };
    match raw >> 13 {
        0..=3 => n % 40,
        4 => n % 600,
        5 => 500 + n % 30,
        6 if n % 64 == 0 => usize::MAX - n / 64,
        6 => n % 1200,
        _ => n,
    }
}

/// What a LinkBuffer is supposed to be.
#[derive(Default)]
struct Queue {
    readable: VecDeque<u8>,
    reserved: Vec<u8>,
}

impl Queue {
    fn flush(&mut self) {
        self.readable.extend(self.reserved.drain(..));
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        self.readable.drain(..n).collect()
    }

    fn front(&self, n: usize) -> Vec<u8> {
        self.readable.iter().take(n).copied().collect()
    }

    /// The error that asking for `n` readable bytes must give, if any.
    fn shortage(&self, n: usize) -> Option<Error> {
        let available = self.readable.len();
        (n > available).then_some(Error::NotEnough { needed: n, available })
    }

    fn reserved_shortage(&self, n: usize) -> Option<Error> {
        let available = self.reserved.len();
        (n > available).then_some(Error::NotEnough { needed: n, available })
    }
}

/// Bytes beyond which nothing more is put in.
const BYTES_MAX: usize = 64 << 10;
const KEPT_MAX: usize = 64;

pub(crate) struct World {
    pool: Pool,
    buffer: LinkBuffer,
    queue: Queue,
    other: (LinkBuffer, Queue),
    chain: (Chain, Vec<u8>),
    tail: Option<Tail>,
    kept: Vec<(Slice, Vec<u8>)>,
    made: u32,
}

impl World {
    /// `small` makes the blocks as small as they get, and lets none wait.
    pub(crate) fn new(small: bool) -> World {
        let mut config = PoolConfig::default();
        if small {
            config.min_block_bytes = 512;
            config.node_bytes = 512;
            config.max_pooled_block_bytes = 2048;
            config.max_pooled_bytes = 0;
        }
        let pool = Pool::new(config);
        World {
            buffer: LinkBuffer::with_pool(pool.clone()),
            queue: Queue::default(),
            other: (LinkBuffer::with_pool(pool.clone()), Queue::default()),
            chain: (Chain::new(), Vec::new()),
            tail: None,
            kept: Vec::new(),
            made: 0,
            pool,
        }
    }

    /// New bytes, no two runs of which are alike.
    fn make(&mut self, n: usize) -> Vec<u8> {
        let room = BYTES_MAX.saturating_sub(self.queue.readable.len() + self.queue.reserved.len());
        let ascii = self.made % 2 == 0;
        (0..n.min(room))
            .map(|_| {
                self.made += 1;
                let byte = (self.made.wrapping_mul(0x9e37_79b9) >> 24) as u8;
                if ascii { byte & 0x7f } else { byte }
            })
            .collect()
    }

    fn keep(&mut self, slice: Slice, bytes: Vec<u8>) {
        assert_eq!(slice, bytes);
        if self.kept.len() < KEPT_MAX {
            self.kept.push((slice, bytes));
        }
    }

    fn kept_at(&self, index: usize) -> Option<usize> {
        index.checked_rem(self.kept.len())
    }

    /// A kept slice, if there is room for it.
    fn kept_clone(&self, index: usize) -> Option<(Slice, Vec<u8>)> {
        let (slice, bytes) = &self.kept[self.kept_at(index)?];
        let held = self.queue.readable.len() + self.queue.reserved.len();
        (held + bytes.len() <= BYTES_MAX).then(|| (slice.clone(), bytes.clone()))
    }

    pub(crate) fn apply(&mut self, op: Op) {
        match op {
            Op::Next(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.next(n), Err(error)),
                None => {
                    let slice = self.buffer.next(n).unwrap();
                    let bytes = self.queue.take(n);
                    self.keep(slice, bytes);
                }
            },
            Op::NextAndDrop(n) => {
                let n = n.min(self.queue.readable.len());
                assert_eq!(self.buffer.next(n).unwrap(), self.queue.take(n));
            }
            Op::Peek(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.peek(n), Err(error)),
                None => assert_eq!(self.buffer.peek(n).unwrap(), self.queue.front(n)),
            },
            Op::Skip(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.skip(n), Err(error)),
                None => {
                    self.buffer.skip(n).unwrap();
                    self.queue.take(n);
                }
            },
            Op::Until(byte) => {
                let at = self.queue.readable.iter().position(|&b| b == byte);
                let slice = self.buffer.until(byte);
                assert_eq!(slice.is_some(), at.is_some());
                if let (Some(slice), Some(at)) = (slice, at) {
                    let bytes = self.queue.take(at + 1);
                    self.keep(slice, bytes);
                }
            }
            Op::Find(byte, from) => {
                let found = self.queue.readable.iter().skip(from).position(|&b| b == byte);
                assert_eq!(self.buffer.find(byte, from), found.map(|at| from + at));
            }
            Op::FindPattern { from, len } => {
                let readable = self.queue.readable.make_contiguous();
                // A pattern from the middle, so that it is there.
                let middle = readable.len() / 2;
                let pattern = readable[middle..readable.len().min(middle + len)].to_vec();
                let found = (from..=readable.len().wrapping_sub(pattern.len()))
                    .take_while(|at| at + pattern.len() <= readable.len())
                    .find(|&at| readable[at..].starts_with(&pattern));
                assert_eq!(self.buffer.find_pattern(&pattern, from), found);
                assert_eq!(self.buffer.find_pattern(&vec![0; BYTES_MAX + 1], from), None);
            }
            Op::ReadU8 => match self.queue.readable.pop_front() {
                Some(byte) => assert_eq!(self.buffer.read_u8(), Ok(byte)),
                None => {
                    let error = Error::NotEnough { needed: 1, available: 0 };
                    assert_eq!(self.buffer.read_u8(), Err(error));
                }
            },
            Op::ReadBytes(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.read_bytes(n), Err(error)),
                None => assert_eq!(self.buffer.read_bytes(n), Ok(self.queue.take(n))),
            },
            Op::ReadString(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.read_string(n), Err(error)),
                None => match String::from_utf8(self.queue.front(n)) {
                    Ok(text) => {
                        assert_eq!(self.buffer.read_string(n), Ok(text));
                        self.queue.take(n);
                    }
                    Err(_) => assert_eq!(self.buffer.read_string(n), Err(Error::NotUtf8)),
                },
            },
            Op::CopyTo(n) | Op::ReadIo(n) => {
                let mut target = vec![0; n.min(BYTES_MAX)];
                let copied = match op {
                    Op::CopyTo(_) => self.buffer.copy_to(&mut target),
                    _ => self.buffer.read(&mut target).unwrap(),
                };
                assert_eq!(copied, target.len().min(self.queue.readable.len()));
                assert_eq!(target[..copied], self.queue.take(copied));
            }
            Op::PeekTo(n) => {
                let mut target = vec![0; n.min(BYTES_MAX)];
                let copied = self.buffer.peek_to(&mut target);
                assert_eq!(copied, target.len().min(self.queue.readable.len()));
                assert_eq!(target[..copied], self.queue.front(copied));
            }
            Op::SplitTo(n) => match self.queue.shortage(n) {
                Some(error) => assert_eq!(self.buffer.split_to(n).unwrap_err(), error),
                None => {
                    // The other buffer becomes what was split off, so that it is read and written on.
                    let readable = self.queue.take(n).into();
                    let queue = Queue { readable, ..Queue::default() };
                    self.other = (self.buffer.split_to(n).unwrap(), queue);
                }
            },
            Op::NextChunk(n) => match self.buffer.next_chunk(n) {
                None => assert!(n == 0 || self.queue.readable.is_empty()),
                Some(slice) => {
                    assert!(!slice.is_empty() && slice.len() <= n);
                    let bytes = self.queue.take(slice.len());
                    self.keep(slice, bytes);
                }
            },
            Op::GetNumber(kind) => self.get_number(kind),
            Op::CopyToBytes(n) => {
                let n = n.min(self.queue.readable.len());
                let bytes = self.buffer.copy_to_bytes(n);
                let expected = self.queue.take(n);
                self.keep(bytes.into(), expected);
            }
            Op::ReadBuffered(n) => {
                let chunk = self.buffer.fill_buf().unwrap().to_vec();
                assert_eq!(chunk.is_empty(), self.queue.readable.is_empty());
                let n = n.min(chunk.len());
                self.buffer.consume(n);
                assert_eq!(chunk[..n], self.queue.take(n));
            }

            Op::Write(n) => {
                let bytes = self.make(n);
                self.buffer.write(&bytes).unwrap();
                self.queue.reserved.extend(bytes);
            }
            Op::Push(n) => {
                let bytes = self.make(n);
                match n % 3 {
                    0 => self.buffer.push(bytes.clone()),
                    1 => self.buffer.push(Bytes::from(bytes.clone())),
                    _ => self.buffer.push(Slice::copy_from(&bytes, &self.pool).unwrap()),
                }
                self.queue.reserved.extend(bytes);
            }
            Op::PushKept(index) => {
                if let Some((slice, bytes)) = self.kept_clone(index) {
                    self.buffer.push(slice);
                    self.queue.reserved.extend(bytes);
                }
            }
            Op::Reserve { n, first, second } => {
                if n > isize::MAX as usize {
                    let refused = self.buffer.reserve(n);
                    assert!(matches!(refused, Err(Error::OutOfMemory { .. })));
                    return;
                }
                let bytes = self.make(n);
                let spare = self.buffer.reserve(bytes.len()).unwrap();
                assert_eq!(spare.len(), bytes.len());
                for (to, from) in spare.iter_mut().zip(&bytes) {
                    to.write(*from);
                }
                let mut committed = 0;
                for n in [first, second] {
                    let reserved = bytes.len() - committed;
                    // SAFETY: all of the reserved bytes were written.
                    let result = unsafe { self.buffer.commit(n) };
                    if n > reserved {
                        assert_eq!(result, Err(Error::NotReserved { committed: n, reserved }));
                    } else {
                        result.unwrap();
                        committed += n;
                    }
                }
                self.queue.reserved.extend(&bytes[..committed]);
            }
            Op::CommitUnreserved(n) => {
                self.buffer.push(Slice::empty());
                // SAFETY: nothing is reserved, so this commits nothing.
                let result = unsafe { self.buffer.commit(n) };
                assert_eq!(result.is_err(), n > 0);
            }
            Op::Insert { before, len } => {
                let bytes = self.make(len);
                let result = self.buffer.insert(before, bytes.clone());
                self.inserted(result, before, bytes);
            }
            Op::InsertKept { before, index } => {
                if let Some((slice, bytes)) = self.kept_clone(index) {
                    let result = self.buffer.insert(before, slice);
                    self.inserted(result, before, bytes);
                }
            }
            Op::TruncateReserved(n) => match self.queue.reserved_shortage(n) {
                Some(error) => assert_eq!(self.buffer.truncate_reserved(n), Err(error)),
                None => {
                    self.buffer.truncate_reserved(n).unwrap();
                    self.queue.reserved.truncate(n);
                }
            },
            Op::Append => {
                let (other, queue) = &mut self.other;
                self.buffer.append(other);
                self.queue.reserved.extend(queue.readable.drain(..));
                self.queue.reserved.append(&mut queue.reserved);
            }
            Op::Flush => {
                self.buffer.flush();
                self.queue.flush();
            }
            Op::PutNumber(kind) => self.put_number(kind),
            Op::ChunkMut(n) => {
                let bytes = self.make(n);
                let chunk = self.buffer.chunk_mut();
                assert!(chunk.len() > 0);
                let n = chunk.len().min(bytes.len());
                chunk[..n].copy_from_slice(&bytes[..n]);
                // SAFETY: these bytes were written.
                unsafe { self.buffer.advance_mut(n) };
                self.queue.reserved.extend(&bytes[..n]);
            }
            Op::WriteText(n) => {
                let text = "ä→z".repeat(n.min(500) / 6);
                self.buffer.write_str(&text).unwrap();
                self.queue.reserved.extend(text.bytes());
            }
            Op::WriteIo(n) => {
                let bytes = self.make(n);
                io::Write::write_all(&mut self.buffer, &bytes).unwrap();
                self.queue.reserved.extend(bytes);
            }

            Op::Receive(n) => {
                let mut vectors = empty_vectors();
                let count = self.buffer.lend_writable(&mut vectors).unwrap();
                let room: usize = vectors[..count].iter().map(|vector| vector.iov_len).sum();
                assert!(room > 0 && vectors[..count].iter().all(|vector| vector.iov_len > 0));
                let bytes = self.make(n.min(room));
                let mut left = &bytes[..];
                for vector in &vectors[..count] {
                    let (now, later) = left.split_at(left.len().min(vector.iov_len));
                    // SAFETY: the vector was just lent, and has room.
                    unsafe { now.as_ptr().copy_to(vector.iov_base.cast(), now.len()) };
                    left = later;
                }
                // SAFETY: as many bytes were written, in order.
                unsafe { self.buffer.commit_lent(bytes.len()) };
                self.queue.flush();
                self.queue.readable.extend(bytes);
            }
            Op::LendOnly => {
                self.buffer.lend_writable(&mut empty_vectors()).unwrap();
            }
            Op::Send { vectors, n } => {
                let [a, b] = empty_vectors();
                let mut vectors = vec![a, b, a, b, a, b, a][..vectors].to_vec();
                let (count, bytes) = self.buffer.lend_readable(&mut vectors);
                let mut sent = Vec::new();
                for vector in &vectors[..count] {
                    assert!(vector.iov_len > 0);
                    // SAFETY: lent, and the buffer was not changed since.
                    sent.extend_from_slice(unsafe {
                        std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), vector.iov_len)
                    });
                }
                assert_eq!(sent.len(), bytes);
                assert_eq!(bytes == 0, vectors.is_empty() || self.queue.readable.is_empty());
                assert_eq!(sent, self.queue.front(bytes));
                let n = n.min(bytes);
                self.buffer.skip(n).unwrap();
                self.queue.take(n);
            }
            Op::Adopt(n) => {
                let bytes = self.make(n);
                self.buffer.adopt(bytes.clone());
                self.queue.flush();
                self.queue.readable.extend(bytes);
            }
            Op::AdoptKept(index) => {
                if let Some((slice, bytes)) = self.kept_clone(index) {
                    self.buffer.adopt(slice);
                    self.queue.flush();
                    self.queue.readable.extend(bytes);
                }
            }
            Op::DrainIntoChain => {
                self.buffer.drain_into(&mut self.chain.0);
                self.queue.flush();
                self.chain.1.extend(self.queue.readable.drain(..));
            }
            Op::AdoptChain => {
                self.buffer.adopt_chain(&mut self.chain.0);
                self.queue.flush();
                self.queue.readable.extend(self.chain.1.drain(..));
            }
            Op::SplitChain { to, off } => {
                let front = self.chain.0.split_to(to);
                let bytes: Vec<u8> = self.chain.1.drain(..to.min(self.chain.1.len())).collect();
                assert_eq!(joined(&front), bytes);
                let back = self.chain.0.split_off(off);
                let bytes = self.chain.1.split_off(off.min(self.chain.1.len()));
                assert_eq!(joined(&back), bytes);
            }
            Op::TakeTail => self.tail = self.buffer.tail_mut().take(),
            Op::PutTail => std::mem::swap(self.buffer.tail_mut(), &mut self.tail),
            Op::ReleaseMemory => self.buffer.release_memory(),
            Op::Clear => {
                self.buffer.clear();
                self.queue = Queue::default();
            }

            Op::ThroughBytes => {
                let buffer = self.take_buffer();
                self.buffer.adopt(Bytes::from(buffer));
                self.queue.reserved.clear();
            }
            Op::ThroughBytesMut => {
                let buffer = self.take_buffer();
                self.buffer.adopt(BytesMut::from(buffer));
                self.queue.reserved.clear();
            }
            Op::ThroughReader { step, target } => self.through_reader(step, target),
            Op::ThroughWriter { step } => {
                let buffer = self.take_buffer();
                let mut writer = LinkWriter::with_buffer(Stepwise::new(&[], step), buffer);
                writer.write_all(b"tail").unwrap();
                while writer.flush().is_err() {}
                self.queue.reserved.extend(b"tail");
                self.queue.flush();
                let (written, rest) = writer.into_parts();
                assert!(rest.is_empty());
                assert_eq!(written.bytes, self.queue.readable);
                self.buffer = rest;
                self.queue.readable.clear();
            }

            Op::CloneKept(index) => {
                if let Some((slice, bytes)) = self.kept_clone(index) {
                    self.keep(slice, bytes);
                }
            }
            Op::SplitKept { index, n } => {
                let Some(at) = self.kept_at(index) else { return };
                let (slice, bytes) = &mut self.kept[at];
                if n > bytes.len() {
                    let error = Error::NotEnough { needed: n, available: bytes.len() };
                    assert_eq!(slice.split_to(n), Err(error));
                } else {
                    let front = slice.split_to(n).unwrap();
                    let rest = bytes.split_off(n);
                    let bytes = std::mem::replace(bytes, rest);
                    self.keep(front, bytes);
                }
            }
            Op::CutKept { index, from, len } => {
                let Some(at) = self.kept_at(index) else { return };
                let (slice, bytes) = &self.kept[at];
                let part = slice.subslice(from..from.saturating_add(len));
                match bytes.get(from..from.saturating_add(len)) {
                    None => assert!(part.is_err()),
                    Some(bytes) => {
                        let bytes = bytes.to_vec();
                        self.keep(part.unwrap(), bytes);
                    }
                }
            }
            Op::CompactKept(index) => {
                if let Some(at) = self.kept_at(index) {
                    let (slice, bytes) = self.kept.swap_remove(at);
                    let slice = slice.compact();
                    assert!(slice.pinned_bytes() <= 2 * slice.len());
                    self.keep(slice, bytes);
                }
            }
            Op::KeptThroughBytes(index) => {
                if let Some(at) = self.kept_at(index) {
                    let (slice, bytes) = self.kept.swap_remove(at);
                    self.keep(Bytes::from(slice).into(), bytes);
                }
            }
            Op::DropKept(index) => {
                if let Some(at) = self.kept_at(index) {
                    self.kept.swap_remove(at);
                }
            }
            Op::DropKeptElsewhere(index) => {
                if let Some(at) = self.kept_at(index) {
                    let (slice, bytes) = self.kept.swap_remove(at);
                    let elsewhere = std::thread::spawn(move || assert_eq!(slice, bytes));
                    elsewhere.join().unwrap();
                }
            }
            Op::Swap => {
                std::mem::swap(&mut self.buffer, &mut self.other.0);
                std::mem::swap(&mut self.queue, &mut self.other.1);
            }
            Op::Trim => self.pool.trim(),
        }
        self.check();
    }

    fn empty(&self) -> LinkBuffer {
        LinkBuffer::with_pool(self.pool.clone())
    }

    fn take_buffer(&mut self) -> LinkBuffer {
        let empty = self.empty();
        std::mem::replace(&mut self.buffer, empty)
    }

    fn inserted(&mut self, result: Result<(), Error>, before: usize, bytes: Vec<u8>) {
        match self.queue.reserved_shortage(before) {
            Some(error) => assert_eq!(result, Err(error)),
            None => {
                result.unwrap();
                let at = self.queue.reserved.len() - before;
                self.queue.reserved.splice(at..at, bytes);
            }
        }
    }

    fn get_number(&mut self, kind: u16) {
        let width = [2, 4, 8][usize::from(kind % 3)];
        if self.queue.readable.len() < width {
            assert!(self.buffer.try_get_u64().is_err());
            return;
        }
        let bytes = self.queue.take(width);
        match (width, kind & 256 == 0) {
            (2, true) => assert_eq!(self.buffer.get_u16().to_be_bytes()[..], bytes),
            (2, false) => assert_eq!(self.buffer.get_u16_le().to_le_bytes()[..], bytes),
            (4, true) => assert_eq!(self.buffer.get_u32().to_be_bytes()[..], bytes),
            (4, false) => assert_eq!(self.buffer.get_u32_le().to_le_bytes()[..], bytes),
            (_, true) => assert_eq!(self.buffer.get_u64().to_be_bytes()[..], bytes),
            (_, false) => assert_eq!(self.buffer.get_u64_le().to_le_bytes()[..], bytes),
        }
    }

    fn put_number(&mut self, kind: u16) {
        let number = u64::from(kind) * 0x0101_0203_0509;
        match kind % 4 {
            0 => self.buffer.put_u64(number),
            1 => self.buffer.put_u64_le(number),
            2 => self.buffer.put(&number.to_be_bytes()[..]),
            _ => self.buffer.put_bytes(kind as u8, 8),
        }
        self.queue.reserved.extend(match kind % 4 {
            0 | 2 => number.to_be_bytes(),
            1 => number.to_le_bytes(),
            _ => [kind as u8; 8],
        });
    }

    /// Everything readable goes through a reader that gives little at a time, and errors now and then.
    fn through_reader(&mut self, step: usize, target: usize) {
        let bytes: Vec<u8> = self.queue.readable.iter().copied().collect();
        let mut reader = LinkReader::with_buffer(Stepwise::new(&bytes, step), self.empty());
        let n = target.min(bytes.len());
        let front = loop {
            match reader.next(n) {
                Ok(front) => break front,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        let beyond = loop {
            match reader.fill(bytes.len() - n + 1) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result,
            }
        };
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (_, mut rest) = reader.into_parts();
        assert_eq!(rest.len(), bytes.len() - n);
        self.keep(front.clone(), bytes[..n].to_vec());
        self.buffer.clear();
        self.buffer.adopt(front);
        self.buffer.append(&mut rest);
        self.buffer.flush();
        self.queue.reserved.clear();
    }

    fn check(&self) {
        for (buffer, queue) in [(&self.buffer, &self.queue), (&self.other.0, &self.other.1)] {
            assert_eq!(buffer.len(), queue.readable.len());
            assert_eq!(buffer.reserved_len(), queue.reserved.len());
            assert_eq!(buffer.is_empty(), queue.readable.is_empty());
            assert_eq!(buffer.first_chunk().is_empty(), queue.readable.is_empty());
            let mut left = queue.readable.iter();
            for chunk in buffer.chunks() {
                assert!(!chunk.is_empty());
                assert!(left.by_ref().take(chunk.len()).eq(chunk));
            }
            assert_eq!(left.len(), 0);
        }
        assert_eq!(self.chain.0.len(), self.chain.1.len());
    }

    /// Reads everything that is left, drops buffers and pool, and looks at the kept slices from another thread.
    pub(crate) fn finish(mut self) {
        self.apply(Op::Append);
        self.apply(Op::Flush);
        self.apply(Op::AdoptChain);
        self.apply(Op::NextAndDrop(usize::MAX));
        let World { pool, buffer, other, tail, kept, .. } = self;
        drop((buffer, other, tail));
        if kept.is_empty() {
            assert_eq!(pool.stats().live_blocks, 0);
            return;
        }
        drop(pool);
        let elsewhere = std::thread::spawn(move || {
            for (slice, bytes) in kept {
                assert_eq!(slice, bytes);
            }
        });
        elsewhere.join().unwrap();
    }
}

fn empty_vectors() -> [iovec; 2] {
    [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2]
}

fn joined(chain: &Chain) -> Vec<u8> {
    chain.iter().flat_map(|slice| slice.to_vec()).collect()
}

/// A stream that gives and takes at most `step` bytes, and every third time an error.
struct Stepwise {
    bytes: VecDeque<u8>,
    step: usize,
    calls: usize,
}

impl Stepwise {
    fn new(bytes: &[u8], step: usize) -> Stepwise {
        Stepwise { bytes: bytes.iter().copied().collect(), step, calls: 0 }
    }

    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.calls % 6 {
            2 => Err(io::ErrorKind::Interrupted.into()),
            5 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }
}

impl Read for Stepwise {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.call()?;
        let n = target.len().min(self.step);
        self.bytes.read(&mut target[..n])
    }
}

impl io::Write for Stepwise {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call()?;
        let n = bytes.len().min(self.step);
        self.bytes.extend(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.call()
    }
}
