//! Which of several endpoints a datagram is for.
//!
//! The first byte of a connection id says it: modulo the number of endpoints, it is the number of one. An endpoint makes its ids so, and
//! those that clients make up are divided among all by it. The kernel looks (`SO_ATTACH_REUSEPORT_CBPF`), so that a datagram comes to its
//! endpoint wherever it is from. What comes to another all the same is forwarded: where the kernel does not take the program, when one of the
//! sockets has been closed, and what `UDP_GRO` has put together of several connections that share a client's socket.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use ::quinn::udp::RecvMeta;
use ::quinn::{ConnectionId, ConnectionIdGenerator};
use duopoll_core::contain;
use quinn_proto::{HashedConnectionIdGenerator, InvalidCid};

/// What may wait for an endpoint that is behind, in datagrams and in bytes; what is beyond is lost, as datagrams are.
const STRAYS_MAX: usize = 1024;
const STRAYS_BYTES_MAX: usize = 2 << 20;

/// In the first byte of a datagram: it has a long header.
const LONG: u8 = 0x80;
/// Where the connection id is that it is for.
const LONG_ID_AT: usize = 6;
const SHORT_ID_AT: usize = 1;

/// What several endpoints have in common.
pub(super) struct Steering {
    inboxes: Vec<Mutex<Inbox>>,
    forwarded: AtomicU64,
    lost: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    strays: VecDeque<Stray>,
    bytes: usize,
    waker: Option<Waker>,
    /// Nobody looks into it any more.
    closed: bool,
}

struct Stray {
    bytes: Box<[u8]>,
    told: RecvMeta,
}

impl Steering {
    /// For so many, at least one and at most 256.
    pub(super) fn among(endpoints: usize) -> Steering {
        debug_assert!((1..=256).contains(&endpoints));
        Steering {
            inboxes: (0..endpoints).map(|_| Mutex::default()).collect(),
            forwarded: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    pub(super) fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Which one a datagram is for; None if it does not say.
    fn owner(&self, datagram: &[u8]) -> Option<usize> {
        let at = if datagram.first()? & LONG != 0 { LONG_ID_AT } else { SHORT_ID_AT };
        Some(usize::from(*datagram.get(at)?) % self.inboxes.len())
    }

    fn inbox(&self, index: usize) -> MutexGuard<'_, Inbox> {
        self.inboxes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forward(&self, owner: usize, bytes: &[u8], told: &RecvMeta) {
        let mut inbox = self.inbox(owner);
        let is_full =
            inbox.strays.len() == STRAYS_MAX || inbox.bytes + bytes.len() > STRAYS_BYTES_MAX;
        if is_full || inbox.closed {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let told = RecvMeta { len: bytes.len(), stride: bytes.len(), ..*told };
        inbox.bytes += bytes.len();
        inbox.strays.push_back(Stray { bytes: bytes.into(), told });
        self.forwarded.fetch_add(1, Ordering::Relaxed);
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            contain("a waker", || waker.wake());
        }
    }
}

/// One of them.
pub(super) struct Steered {
    all: Arc<Steering>,
    index: usize,
}

impl Steered {
    pub(super) fn new(all: &Arc<Steering>, index: usize) -> Steered {
        Steered { all: all.clone(), index }
    }

    /// Puts what others have forwarded into buffers, and says how many datagrams that are. If there is none, whoever asks is woken when
    /// there is.
    pub(super) fn take(
        &self,
        cx: &Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> usize {
        let mut inbox = self.all.inbox(self.index);
        let mut taken = 0;
        for (buffer, told) in buffers.iter_mut().zip(told) {
            let Some(stray) = inbox.strays.pop_front() else { break };
            inbox.bytes -= stray.bytes.len();
            // One that is larger than what quinn receives is cut, as the kernel would.
            let len = stray.bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&stray.bytes[..len]);
            *told = RecvMeta { len, ..stray.told };
            taken += 1;
        }
        if taken == 0 && !inbox.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            let old = inbox.waker.replace(cx.waker().clone());
            drop(inbox);
            contain("a waker", || drop(old));
        }
        taken
    }

    /// Takes out of what was received what is for others, and gives it to them.
    pub(super) fn forward_strays(&self, buffers: &mut [IoSliceMut<'_>], told: &mut [RecvMeta]) {
        for (buffer, told) in buffers.iter_mut().zip(told) {
            let (whole, stride) = (told.len, told.stride.max(1));
            let mut kept = 0;
            for start in (0..whole).step_by(stride) {
                let end = (start + stride).min(whole);
                match self.all.owner(&buffer[start..end]) {
                    Some(owner) if owner != self.index => {
                        self.all.forward(owner, &buffer[start..end], told);
                    }
                    _ => {
                        if kept != start {
                            buffer.copy_within(start..end, kept);
                        }
                        kept += end - start;
                    }
                }
            }
            told.len = kept;
        }
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        let closed = Inbox { closed: true, ..Inbox::default() };
        let inbox = mem::replace(&mut *self.all.inbox(self.index), closed);
        contain("a waker", || drop(inbox));
    }
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").field("endpoints", &self.inboxes.len()).finish_non_exhaustive()
    }
}

/// Makes the connection ids of one of several endpoints.
pub(super) struct Ids {
    /// As quinn makes them, with bytes by which it knows its own.
    made: HashedConnectionIdGenerator,
    endpoints: usize,
    index: usize,
}

impl Ids {
    pub(super) fn new(endpoints: usize, index: usize) -> Ids {
        Ids { made: HashedConnectionIdGenerator::new(), endpoints, index }
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        // One of so many has that first byte.
        loop {
            let id = self.made.generate_cid();
            if usize::from(id[0]) % self.endpoints == self.index {
                return id;
            }
        }
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.made.validate(id)
    }

    fn cid_len(&self) -> usize {
        self.made.cid_len()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.made.cid_lifetime()
    }
}

/// Has the kernel choose among the sockets of a port, in the order in which they were bound.
pub(super) fn steer(socket: BorrowedFd<'_>, endpoints: usize) -> io::Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let mut program = [
        step(load, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, u32::from(LONG)),
        step(load, 0, 0, LONG_ID_AT as u32),
        step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        step(load, 0, 0, SHORT_ID_AT as u32),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, endpoints as u32),
        step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let (value, len) = ((&raw const program).cast(), size_of_val(&program) as libc::socklen_t);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the kernel reads a description of the program, and the program that it points to.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(len: usize, stride: usize) -> RecvMeta {
        RecvMeta { len, stride, ..RecvMeta::default() }
    }

    #[test]
    fn an_id_names_its_endpoint() {
        for endpoints in 1..=9 {
            let steering = Steering::among(endpoints);
            for index in 0..endpoints {
                let id = Ids::new(endpoints, index).generate_cid();
                let short = [&[0x40], &id[..]].concat();
                let long = [&[0xc0, 0, 0, 0, 1, 8], &id[..]].concat();
                assert_eq!(steering.owner(&short), Some(index));
                assert_eq!(steering.owner(&long), Some(index));
            }
        }
        for cut in [&[][..], &[0x40], &[0xc0, 0, 0, 0, 1, 8]] {
            assert_eq!(Steering::among(2).owner(cut), None);
        }
    }

    #[test]
    fn what_is_for_another_goes_there_and_the_rest_stays_in_order() {
        let all = Arc::new(Steering::among(2));
        let (zero, one) = (Steered::new(&all, 0), Steered::new(&all, 1));
        // Segments of three bytes, the last of them shorter: for 0, 1, 1, 0.
        let mut bytes = *b"\x00\x02a\x00\x03b\x00\x01c\x00\x04";
        let mut metas = [told(bytes.len(), 3)];
        zero.forward_strays(&mut [IoSliceMut::new(&mut bytes)], &mut metas);
        assert_eq!((metas[0].len, metas[0].stride), (5, 3));
        assert_eq!(&bytes[..5], b"\x00\x02a\x00\x04");
        assert_eq!((all.forwarded(), all.lost()), (2, 0));

        let cx = Context::from_waker(Waker::noop());
        let (mut first, mut second, mut third) = ([0; 2], [0; 9], [0; 9]);
        let mut buffers = [&mut first[..], &mut second, &mut third].map(IoSliceMut::new);
        let mut metas = [told(0, 0); 3];
        assert_eq!(one.take(&cx, &mut buffers, &mut metas), 2);
        assert_eq!((metas[0].len, metas[1].len), (2, 3));
        assert_eq!((&first[..], &second[..3]), (&b"\x00\x03"[..], &b"\x00\x01c"[..]));
        let mut buffers = [IoSliceMut::new(&mut third)];
        assert_eq!(one.take(&cx, &mut buffers, &mut metas), 0);
    }

    #[test]
    fn an_endpoint_that_is_behind_holds_no_more_than_so_many() {
        for (len, most) in [(2, STRAYS_MAX), (60_000, STRAYS_BYTES_MAX / 60_000)] {
            let all = Arc::new(Steering::among(2));
            let zero = Steered::new(&all, 0);
            for _ in 0..most + 3 {
                forward_to_one(&zero, len);
            }
            assert_eq!((all.forwarded(), all.lost()), (most as u64, 3));
        }
    }

    #[test]
    fn what_is_for_one_that_is_gone_is_lost() {
        let all = Arc::new(Steering::among(2));
        let (zero, one) = (Steered::new(&all, 0), Steered::new(&all, 1));
        forward_to_one(&zero, 2);
        drop(one);
        forward_to_one(&zero, 2);
        assert_eq!((all.forwarded(), all.lost()), (1, 1));
        assert!(all.inbox(1).strays.is_empty());
    }

    /// Has the first of two receive a datagram that is for the second.
    fn forward_to_one(zero: &Steered, len: usize) {
        let mut bytes = vec![1; len];
        bytes[0] = 0;
        let mut metas = [told(len, len)];
        zero.forward_strays(&mut [IoSliceMut::new(&mut bytes)], &mut metas);
        assert_eq!(metas[0].len, 0);
    }
}
