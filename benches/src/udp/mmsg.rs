//! Many datagrams by one system call: `recvmmsg(2)` and `sendmmsg(2)`, each also with the kernel's trains of datagrams of one size
//! (UDP_GRO, UDP_SEGMENT).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libc::{iovec, mmsghdr, msghdr, sockaddr_in};

use crate::sys;

/// Datagrams, or trains, of one call.
pub const BATCH_MAX: usize = 64;
/// Room for a datagram. An odd number of cache lines: at a power of two, the buffers would share few sets of the cache.
pub const ROOM_BYTES: usize = 25 * 64;
/// Room for a train.
pub const TRAIN_ROOM_BYTES: usize = (64 << 10) + 64;
/// Trains of one call.
const TRAINS_MAX: usize = 8;
/// What the kernel takes as a train.
const SEGMENTS_MAX: usize = 64;
const TRAIN_BYTES_MAX: usize = 65_507;

const NO_IOVEC: iovec = iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// Room for one control message with a segment's size: `u16` of a send, `c_int` of a receive.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

/// Its size.
// SAFETY: it only computes.
pub const CONTROL_BYTES: usize =
    unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as usize;

/// Has the kernel hand over trains as they come.
pub fn receive_trains(fd: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1 as libc::c_int)
}

/// The size of a train's datagrams, if a received message is a train.
#[inline]
pub fn segment(header: &msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote whole control messages of the length that the header has.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        if message.is_null()
            || (*message).cmsg_level != libc::SOL_UDP
            || (*message).cmsg_type != libc::UDP_GRO
        {
            return None;
        }
        Some(libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned() as usize)
    }
}

/// Buffers for received datagrams, or trains.
pub struct Received {
    room: usize,
    buffers: Vec<u8>,
    names: Vec<sockaddr_in>,
    controls: Vec<Control>,
    // Points into `buffers`.
    #[expect(dead_code, reason = "the kernel reads it")]
    iovecs: Vec<iovec>,
    // Points into all of them.
    headers: Vec<mmsghdr>,
    filled: usize,
}

/// A received datagram, or a train.
pub struct Datagram<'a> {
    /// Its buffer, of which it may be a part.
    pub buffer: &'a mut [u8],
    /// Its bytes.
    pub len: usize,
    /// The bytes of each of a train's datagrams, but for the last.
    pub segment: usize,
    /// The sender.
    pub name: *mut sockaddr_in,
}

impl Received {
    /// Room for a batch of datagrams, or of trains.
    pub fn new(trains: bool) -> Received {
        let (count, room) =
            if trains { (TRAINS_MAX, TRAIN_ROOM_BYTES) } else { (BATCH_MAX, ROOM_BYTES) };
        let mut buffers = vec![0; count * room];
        // SAFETY: all-zero bytes are a valid address.
        let mut names = vec![unsafe { mem::zeroed::<sockaddr_in>() }; count];
        let mut controls = vec![Control([0; CONTROL_BYTES]); if trains { count } else { 0 }];
        let mut iovecs: Vec<iovec> = buffers
            .chunks_exact_mut(room)
            .map(|buffer| iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room })
            .collect();
        let headers = (0..count)
            .map(|index| {
                // SAFETY: all-zero bytes are a valid header.
                let mut header: mmsghdr = unsafe { mem::zeroed() };
                header.msg_hdr.msg_name = (&raw mut names[index]).cast();
                header.msg_hdr.msg_iov = &raw mut iovecs[index];
                header.msg_hdr.msg_iovlen = 1;
                if let Some(control) = controls.get_mut(index) {
                    header.msg_hdr.msg_control = (&raw mut *control).cast();
                }
                header
            })
            .collect();
        Received { room, buffers, names, controls, iovecs, headers, filled: count }
    }

    /// Receives what is there; whether that was a full batch, so that there may be more.
    #[inline]
    pub fn receive(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        // The kernel has written the lengths of what it filled.
        for header in &mut self.headers[..self.filled] {
            header.msg_hdr.msg_namelen = size_of::<sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_controllen =
                if self.controls.is_empty() { 0 } else { CONTROL_BYTES };
        }
        self.filled = 0;
        // SAFETY: the headers point to memory of this struct, of the lengths that they have.
        let filled = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        match sys::check(filled) {
            Ok(filled) => self.filled = filled as usize,
            Err(error) if sys::would_block(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(self.filled == self.headers.len())
    }

    /// How many were received.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// One of them.
    #[inline]
    pub fn get(&mut self, index: usize) -> Datagram<'_> {
        let header = &self.headers[..self.filled][index];
        let len = header.msg_len as usize;
        let train = if self.controls.is_empty() { None } else { segment(&header.msg_hdr) };
        let start = index * self.room;
        Datagram {
            buffer: &mut self.buffers[start..start + self.room],
            len,
            segment: train.unwrap_or(len),
            name: &raw mut self.names[index],
        }
    }
}

/// A datagram to send, or a train.
#[derive(Clone, Copy)]
pub struct Piece {
    /// The receiver; null on a connected socket.
    pub name: *mut sockaddr_in,
    /// Its bytes.
    pub start: *mut u8,
    /// How many.
    pub len: usize,
    /// The bytes of each of a train's datagrams, but for the last.
    pub segment: usize,
}

/// Pieces that go out together. With `TRAINS`, those of one size to one receiver become a train.
pub struct Sends<const TRAINS: bool> {
    pieces: Vec<Piece>,
    trains: Vec<Train>,
    /// The next piece in the train of a piece.
    next: [u8; BATCH_MAX],
    controls: [Control; BATCH_MAX],
    iovecs: [iovec; BATCH_MAX],
    headers: Vec<mmsghdr>,
}

struct Train {
    first: u8,
    last: u8,
    bytes: usize,
    segments: usize,
}

impl<const TRAINS: bool> Sends<TRAINS> {
    /// Nothing to send yet.
    #[expect(clippy::new_without_default, reason = "nobody needs it")]
    pub fn new() -> Self {
        Sends {
            pieces: Vec::with_capacity(BATCH_MAX),
            trains: Vec::with_capacity(BATCH_MAX),
            next: [0; BATCH_MAX],
            controls: [Control([0; CONTROL_BYTES]); BATCH_MAX],
            iovecs: [NO_IOVEC; BATCH_MAX],
            headers: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// Adds a piece; a full batch is sent.
    ///
    /// # Safety
    ///
    /// The piece's memory is there until the next [`Sends::flush`].
    #[inline]
    pub unsafe fn push(&mut self, fd: BorrowedFd<'_>, piece: Piece) -> io::Result<()> {
        self.pieces.push(piece);
        if self.pieces.len() == BATCH_MAX { self.flush(fd) } else { Ok(()) }
    }

    /// Sends what was added.
    #[inline]
    pub fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        if TRAINS {
            self.join();
            self.lay_out_trains();
        } else {
            for (piece, iovec) in self.pieces.iter().zip(&mut self.iovecs) {
                *iovec = vector(piece);
                self.headers.push(message(piece.name, iovec, 1));
            }
        }
        let sent = self.send(fd);
        self.pieces.clear();
        self.trains.clear();
        self.headers.clear();
        sent
    }

    /// Finds the pieces that make a train.
    fn join(&mut self) {
        for (index, piece) in self.pieces.iter().enumerate() {
            let count = piece.len.div_ceil(piece.segment.max(1)).max(1);
            // The newest first: what comes together is of one peer.
            let fits = |train: &&mut Train| {
                let first = &self.pieces[usize::from(train.first)];
                first.segment == piece.segment
                    && train.segments + count <= SEGMENTS_MAX
                    && train.bytes + piece.len <= TRAIN_BYTES_MAX
                    // Only the last may be shorter, and an empty one is no part of a train.
                    && train.bytes == train.segments * piece.segment
                    && piece.len > 0
                    && is_same(first.name, piece.name)
            };
            let index = index as u8;
            match self.trains.iter_mut().rev().find(fits) {
                Some(train) => {
                    self.next[usize::from(train.last)] = index;
                    train.last = index;
                    train.bytes += piece.len;
                    train.segments += count;
                }
                None => self.trains.push(Train {
                    first: index,
                    last: index,
                    bytes: piece.len,
                    segments: count,
                }),
            }
        }
    }

    /// A message for each train.
    fn lay_out_trains(&mut self) {
        let mut used = 0;
        for (train, control) in self.trains.iter().zip(&mut self.controls) {
            let begin = used;
            let mut index = train.first;
            loop {
                self.iovecs[used] = vector(&self.pieces[usize::from(index)]);
                used += 1;
                if index == train.last {
                    break;
                }
                index = self.next[usize::from(index)];
            }
            let first = &self.pieces[usize::from(train.first)];
            let mut header = message(first.name, &mut self.iovecs[begin], used - begin);
            if train.segments > 1 {
                set_segment(&mut header.msg_hdr, control, first.segment as u16);
            }
            self.headers.push(header);
        }
    }

    fn send(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.headers.len() {
            let rest = &mut self.headers[sent..];
            // SAFETY: the headers point to memory of this struct and, by the promise of `push`, of its callers.
            let count = unsafe {
                libc::sendmmsg(fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0)
            };
            match sys::check(count) {
                Ok(count) => sent += count as usize,
                Err(error) if sys::would_block(&error) => sys::wait_writable(fd)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn vector(piece: &Piece) -> iovec {
    iovec { iov_base: piece.start.cast(), iov_len: piece.len }
}

fn message(name: *mut sockaddr_in, first: &mut iovec, count: usize) -> mmsghdr {
    // SAFETY: all-zero bytes are a valid header.
    let mut header: mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = name.cast();
    header.msg_hdr.msg_namelen =
        if name.is_null() { 0 } else { size_of::<sockaddr_in>() as libc::socklen_t };
    header.msg_hdr.msg_iov = first;
    header.msg_hdr.msg_iovlen = count;
    header
}

fn set_segment(header: &mut msghdr, control: &mut Control, bytes: u16) {
    header.msg_control = (&raw mut *control).cast();
    header.msg_controllen = CONTROL_BYTES;
    // SAFETY: the control buffer has room for one message with a `u16`.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as usize;
        libc::CMSG_DATA(message).cast::<u16>().write_unaligned(bytes);
        header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
    }
}

/// Whether two names are those of one peer.
#[inline]
fn is_same(one: *const sockaddr_in, other: *const sockaddr_in) -> bool {
    if one == other {
        return true;
    }
    if one.is_null() || other.is_null() {
        return false;
    }
    // SAFETY: by the promise of `push`.
    let (one, other) = unsafe { (&*one, &*other) };
    one.sin_port == other.sin_port && one.sin_addr.s_addr == other.sin_addr.s_addr
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The trains that pieces of these (port, bytes) become, as the indices of their pieces.
    fn trains(pieces: &[(u16, usize)]) -> Vec<Vec<u8>> {
        let mut names: Vec<sockaddr_in> = pieces
            .iter()
            .map(|&(port, _)| {
                // SAFETY: all-zero bytes are a valid address.
                let mut name: sockaddr_in = unsafe { mem::zeroed() };
                name.sin_port = port;
                name
            })
            .collect();
        let mut sends = Sends::<true>::new();
        for (&(_, len), name) in pieces.iter().zip(&mut names) {
            sends.pieces.push(Piece { name, start: ptr::null_mut(), len, segment: len });
        }
        sends.join();
        let of = |train: &Train| {
            let mut list = vec![train.first];
            while list.last() != Some(&train.last) {
                list.push(sends.next[usize::from(list[list.len() - 1])]);
            }
            list
        };
        sends.trains.iter().map(of).collect()
    }

    #[test]
    fn pieces_of_one_size_to_one_peer_are_a_train() {
        let pieces = [(1, 64), (2, 64), (1, 64), (1, 40), (2, 64), (1, 64)];
        assert_eq!(trains(&pieces), [vec![0, 2, 5], vec![1, 4], vec![3]]);
    }

    #[test]
    fn a_train_has_a_largest_size() {
        let lengths: Vec<usize> = trains(&[(1, 1200); 60]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [54, 6]);
    }

    #[test]
    fn empty_datagrams_go_alone() {
        assert_eq!(trains(&[(1, 0), (1, 0)]), [vec![0], vec![1]]);
    }
}
