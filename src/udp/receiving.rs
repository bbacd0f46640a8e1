//! Receiving: as many datagrams as there are with one call.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

#[cfg(duopoll_faults)]
use duopoll_core::faults::{self, Call};
use duopoll_core::syscalls::uninterrupted;
use libc::{iovec, mmsghdr};

use super::address::{Name, Peer};
use super::control::{Room, Told};
use super::datagram::Datagram;
use crate::{LinkBuffer, Slice};

/// Datagrams that one call takes.
pub(super) const BATCH: usize = 32;
/// The same of a socket whose datagrams are large.
const LARGE_BATCH: usize = 4;
/// What is more goes to a place that is not in the cache.
const SMALL_BYTES: usize = 2 << 10;
/// What is more is received into a block that becomes the datagram's: one that is kept holds all of it.
const COPIED_BYTES: usize = 16 << 10;
/// From one small place to the next: an odd number of cache lines, so that they do not share few sets of the cache.
const STRIDE: usize = SMALL_BYTES + 64;
/// No datagram of UDP is larger, nor several that have come together.
pub(super) const LARGEST_BYTES: usize = 65_535;
/// After so many datagrams in a row that are copied a socket's are not large.
const SMALL_AGAIN: u32 = 256;

thread_local! {
    /// What all sockets of a thread receive into. Made when one does for the first time.
    static PLACES: Cell<Option<Box<Places>>> = const { Cell::new(None) };
}

/// What a socket has received and nobody has taken, and what is known of what comes.
pub(super) struct Inbox<A> {
    pub(super) waiting: VecDeque<Datagram<A>>,
    /// Small ones since the last large one; none if there was none.
    small_since_large: Option<u32>,
    /// Datagrams that the socket had no room for, as the kernel has told last.
    pub(super) dropped: u32,
}

/// Places for a batch: a small one each, and behind it one for the rest.
struct Places {
    headers: [mmsghdr; BATCH],
    vectors: [[iovec; 2]; BATCH],
    names: [Name; BATCH],
    controls: [Room; BATCH],
    small: Box<[MaybeUninit<u8>]>,
    /// As much as is never used is never there.
    rest: Box<[MaybeUninit<u8>]>,
    /// For large datagrams: each becomes theirs.
    large: [LinkBuffer; LARGE_BATCH],
    /// What small ones are copied to, one behind the other.
    copied: LinkBuffer,
}

impl Places {
    fn new() -> Box<Places> {
        let rest_bytes = LARGEST_BYTES - SMALL_BYTES;
        // SAFETY: both structures may be all zero.
        let (headers, vectors) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Box::new(Places {
            headers,
            vectors,
            names: [Name::empty(); BATCH],
            controls: [Room::default(); BATCH],
            small: Box::new_uninit_slice(STRIDE * BATCH),
            rest: Box::new_uninit_slice(rest_bytes * BATCH),
            large: [(); LARGE_BATCH].map(|()| LinkBuffer::new()),
            copied: LinkBuffer::new(),
        })
    }

    /// Describes a batch of places: as small ones, or as large ones, with room for control messages or none.
    fn lay_out(&mut self, large: bool, control: bool) -> io::Result<usize> {
        let count = if large { LARGE_BATCH } else { BATCH };
        for at in 0..count {
            let vectors = &mut self.vectors[at];
            let used = if large {
                let room = self.large[at].reserve(LARGEST_BYTES)?;
                vectors[0] = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
                1
            } else {
                let small = &mut self.small[at * STRIDE..][..SMALL_BYTES];
                let rest_bytes = LARGEST_BYTES - SMALL_BYTES;
                let rest = &mut self.rest[at * rest_bytes..][..rest_bytes];
                vectors[0] = iovec { iov_base: small.as_mut_ptr().cast(), iov_len: small.len() };
                vectors[1] = iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
                2
            };
            let header = &mut self.headers[at].msg_hdr;
            header.msg_name = (&raw mut self.names[at]).cast();
            header.msg_namelen = Name::ROOM;
            header.msg_iov = vectors.as_mut_ptr();
            header.msg_iovlen = used;
            (header.msg_control, header.msg_controllen) = match control {
                true => (self.controls[at].as_mut_ptr().cast(), size_of::<Room>() as _),
                false => (ptr::null_mut(), 0),
            };
        }
        Ok(count)
    }

    /// The datagram at a place.
    ///
    /// # Safety
    /// The kernel has filled it in.
    unsafe fn take<A: Peer>(&mut self, at: usize, large: bool) -> io::Result<(Datagram<A>, Told)> {
        let (header, len) = (&self.headers[at].msg_hdr, self.headers[at].msg_len as usize);
        let (name_len, is_cut) = (header.msg_namelen, header.msg_flags & libc::MSG_TRUNC != 0);
        // SAFETY: the kernel has filled it in.
        let told = unsafe { Told::of(header) };
        // SAFETY: as the caller promises.
        let bytes = match unsafe { self.bytes(at, large, len) } {
            Ok(bytes) => bytes,
            Err(error) => {
                // All sockets of the thread share these: what is left of one datagram must not become another's.
                self.copied = LinkBuffer::new();
                if let Some(large) = self.large.get_mut(at) {
                    *large = LinkBuffer::new();
                }
                return Err(error);
            }
        };
        let datagram = Datagram {
            bytes,
            from: A::read(&self.names[at], name_len)?,
            local: told.local.map(|local| match local {
                IpAddr::V4(local) if self.names[at].is_ipv6() => local.to_ipv6_mapped().into(),
                local => local,
            }),
            ecn: told.ecn,
            segment_bytes: told.segment_bytes,
            is_cut,
        };
        Ok((datagram, told))
    }
}

impl Places {
    /// The bytes at a place.
    ///
    /// # Errors
    /// Without memory for them; part of them may be left in a buffer then.
    ///
    /// # Safety
    /// The kernel has filled in so many.
    unsafe fn bytes(&mut self, at: usize, large: bool, len: usize) -> io::Result<Slice> {
        if len == 0 {
            return Ok(Slice::default());
        }
        if large && len > COPIED_BYTES {
            let buffer = &mut self.large[at];
            // SAFETY: the kernel has filled in so many bytes of what was reserved.
            unsafe { buffer.commit(len)? };
            buffer.flush();
            return Ok(buffer.next(len)?);
        }
        let [small, rest] = &self.vectors[at];
        let head = len.min(small.iov_len);
        // SAFETY: the kernel has filled in so many bytes, in this order.
        let (head, tail) = unsafe {
            let head = std::slice::from_raw_parts(small.iov_base.cast::<u8>(), head);
            let tail = if len > head.len() {
                rest.iov_base.cast()
            } else {
                ptr::NonNull::dangling().as_ptr()
            };
            (head, std::slice::from_raw_parts(tail, len - head.len()))
        };
        self.copied.write(head)?;
        self.copied.write(tail)?;
        self.copied.flush();
        Ok(self.copied.next(len)?)
    }
}

impl<A: Peer> Inbox<A> {
    /// `large`: datagrams are expected to be, or to come together.
    pub(super) fn new(large: bool) -> Inbox<A> {
        Inbox { waiting: VecDeque::new(), small_since_large: large.then_some(0), dropped: 0 }
    }

    /// Receives what there is, up to a batch. How many that was, at least one, and whether there was no more. An error of the socket may end
    /// a batch, too; of that the kernel tells as of a datagram.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; what ICMP has told of an earlier one of a connected socket.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
        // Nobody has them meanwhile; where the thread ends they are gone.
        let kept = PLACES.try_with(Cell::take).ok().flatten();
        let mut places = kept.unwrap_or_else(Places::new);
        let received = self.receive_into(&mut places, socket);
        let _ = PLACES.try_with(|kept| kept.set(Some(places)));
        received
    }

    fn receive_into(
        &mut self,
        places: &mut Places,
        socket: BorrowedFd<'_>,
    ) -> io::Result<(usize, bool)> {
        let large = self.small_since_large.is_some_and(|small| small < SMALL_AGAIN);
        let count = places.lay_out(large, A::HAS_CONTROL)?;
        #[cfg(duopoll_faults)]
        let count = faults::fewer(count);
        let flags = libc::MSG_DONTWAIT;
        let received = uninterrupted(|| {
            #[cfg(duopoll_faults)]
            if let Some(errno) = faults::errno(Call::ReceiveDatagrams) {
                return Err(io::Error::from_raw_os_error(errno));
            }
            let headers = places.headers.as_mut_ptr();
            // SAFETY: each header describes places of its own.
            let received = unsafe {
                libc::recvmmsg(socket.as_raw_fd(), headers, count as _, flags as _, ptr::null_mut())
            };
            usize::try_from(received).map_err(|_| io::Error::last_os_error())
        })?;
        let mut failed = None;
        for at in 0..received {
            // SAFETY: the kernel has filled in as many.
            let (datagram, told) = match unsafe { places.take(at, large) } {
                Ok(taken) => taken,
                Err(error) => {
                    // Without memory for it, it is as if the network had lost it.
                    failed = Some(error);
                    continue;
                }
            };
            if datagram.bytes.len() > COPIED_BYTES {
                self.small_since_large = Some(0);
            } else if let Some(small) = &mut self.small_since_large {
                *small = small.saturating_add(1);
            }
            self.dropped = told.dropped.unwrap_or(self.dropped);
            self.waiting.push_back(datagram);
        }
        match failed {
            Some(error) if self.waiting.is_empty() => Err(error),
            _ => Ok((received, received < count)),
        }
    }
}
