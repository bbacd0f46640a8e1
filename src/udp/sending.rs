//! Sending: what is staged goes with one call, and what goes to one peer in pieces of one size as one datagram that the kernel cuts.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

#[cfg(duopoll_faults)]
use duopoll_core::faults::{self, Call};
use duopoll_core::syscalls::uninterrupted;
use libc::{iovec, mmsghdr};

use super::address::{Name, Peer};
use super::control::{Room, Wanted};
use super::datagram::Outgoing;
use crate::Slice;

/// Datagrams that one call sends, those that the kernel cuts counted once.
const BATCH: usize = 64;
/// Pieces of all of them.
const PIECES: usize = 512;
/// The kernel cuts no more than so many out of one.
const SEGMENTS_MAX: usize = 64;
/// Nor a larger one: what IPv6 and UDP leave of 64 KiB.
const SEGMENTED_BYTES_MAX: usize = 65_487;

thread_local! {
    /// What describes the datagrams of a call. Made when one is sent for the first time.
    static MESSAGES: Cell<Option<Box<Messages>>> = const { Cell::new(None) };
}

/// What a socket can do.
#[derive(Debug)]
pub(super) struct Ability {
    pub(super) is_ipv6: bool,
    /// Its type of service.
    service: u8,
    /// Pieces of fewer bytes than so many are cut apart by the kernel; 0 if none are.
    segments_below: AtomicU16,
}

impl Ability {
    pub(super) fn new(is_ipv6: bool, service: u8, coalesces: bool) -> Ability {
        let below = if coalesces { u16::MAX } else { 0 };
        Ability { is_ipv6, service, segments_below: AtomicU16::new(below) }
    }

    /// Relaxed, here and below: a number by itself.
    fn cuts(&self, bytes: usize) -> bool {
        bytes < usize::from(self.segments_below.load(Ordering::Relaxed))
    }

    /// The kernel, the device or the path does not: from now on not so many bytes, for good.
    fn cuts_less_than(&self, bytes: u16) {
        self.segments_below.fetch_min(bytes, Ordering::Relaxed);
    }
}

struct Messages {
    headers: [mmsghdr; BATCH],
    vectors: [iovec; PIECES],
    names: [Name; BATCH],
    controls: [Room; BATCH],
    /// Staged datagrams in each.
    counts: [usize; BATCH],
}

impl Messages {
    fn new() -> Box<Messages> {
        // SAFETY: both structures may be all zero.
        let (headers, vectors) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Box::new(Messages {
            headers,
            vectors,
            names: [Name::empty(); BATCH],
            controls: [Room::default(); BATCH],
            counts: [0; BATCH],
        })
    }

    /// Describes what comes first of the staged. How many messages that is; an error is the first one's.
    fn fill<A: Peer>(
        &mut self,
        staged: &VecDeque<Outgoing<A>>,
        ability: &Ability,
        apart: bool,
    ) -> io::Result<usize> {
        let (mut messages, mut pieces, mut next) = (0, 0, 0);
        // One that is sent apart goes alone.
        let most = if apart { 1 } else { BATCH };
        while messages < most && pieces < PIECES && next < staged.len() {
            let first = &staged[next];
            let room = if apart { 1 } else { PIECES - pieces };
            let together = together(staged.range(next..).take(room), ability);
            let size = first.bytes.len();
            let wanted = Wanted {
                local: first.local,
                ecn: first.ecn,
                // Those that are together are of one size.
                segment_bytes: if together > 1 { Some(size as u16) } else { first.segment_bytes },
            };
            let header = &mut self.headers[messages].msg_hdr;
            let vectors = &mut self.vectors[pieces..][..together];
            for (vector, datagram) in vectors.iter_mut().zip(staged.range(next..)) {
                let bytes: &[u8] = &datagram.bytes;
                *vector =
                    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            }
            header.msg_iov = vectors.as_mut_ptr();
            header.msg_iovlen = together;
            let name = &mut self.names[messages];
            let named = match &first.to {
                Some(to) => to.write(name).map(|len| (ptr::from_mut(name).cast(), len)),
                None => Ok((ptr::null_mut(), 0)),
            };
            let described = named.and_then(|named| {
                (header.msg_name, header.msg_namelen) = named;
                let room = &mut self.controls[messages];
                wanted.write(ability.is_ipv6, ability.service, room, header)
            });
            match described {
                Err(error) if messages == 0 => return Err(error),
                // It comes first the next time.
                Err(_) => break,
                Ok(()) => {}
            }
            self.counts[messages] = together;
            (messages, pieces, next) = (messages + 1, pieces + together, next + together);
        }
        Ok(messages)
    }
}

/// How many of these, from the first on, go as one that the kernel cuts: at least the first.
fn together<'a, A: Peer>(
    mut staged: impl Iterator<Item = &'a Outgoing<A>>,
    ability: &Ability,
) -> usize {
    let Some(first) = staged.next() else { return 0 };
    let size = first.bytes.len();
    if first.segment_bytes.is_some() || size == 0 || !ability.cuts(size) {
        return 1;
    }
    let (mut count, mut bytes) = (1, size);
    for datagram in staged {
        let len = datagram.bytes.len();
        let same = datagram.to == first.to
            && (datagram.local, datagram.ecn) == (first.local, first.ecn)
            && datagram.segment_bytes.is_none();
        // Only the last may be shorter, and an empty one would be lost.
        let fits = len > 0 && len <= size && bytes + len <= SEGMENTED_BYTES_MAX;
        if !same || !fits || count == SEGMENTS_MAX {
            break;
        }
        (count, bytes) = (count + 1, bytes + len);
        if len < size {
            break;
        }
    }
    count
}

/// Sends what comes first of the staged, and takes it out. What an error says is told in `failed`, if nothing is there yet: of the
/// first of them, which is taken out, too, or of one that was sent earlier.
///
/// # Errors
/// `WouldBlock` if there is no room.
pub(super) fn send<A: Peer>(
    socket: BorrowedFd<'_>,
    staged: &mut VecDeque<Outgoing<A>>,
    ability: &Ability,
    failed: &mut Option<io::Error>,
) -> io::Result<()> {
    // Nobody has them meanwhile, for what is dropped here may send, too; where the thread ends they are gone.
    let kept = MESSAGES.try_with(Cell::take).ok().flatten();
    let mut messages = kept.unwrap_or_else(Messages::new);
    let sent = messages.send(socket, staged, ability, failed);
    let _ = MESSAGES.try_with(|kept| kept.set(Some(messages)));
    sent
}

impl Messages {
    fn send<A: Peer>(
        &mut self,
        socket: BorrowedFd<'_>,
        staged: &mut VecDeque<Outgoing<A>>,
        ability: &Ability,
        failed: &mut Option<io::Error>,
    ) -> io::Result<()> {
        let (mut apart, mut again) = (false, false);
        loop {
            let count = match self.fill(staged, ability, apart) {
                Ok(count) => count,
                Err(error) => {
                    drop(staged.pop_front());
                    *failed = failed.take().or(Some(error));
                    return Ok(());
                }
            };
            let error = match self.hand_over(socket, count) {
                Ok(sent) => {
                    if apart {
                        // It was for the cutting: each by itself, from now on.
                        ability.cuts_less_than(staged[0].bytes.len() as u16);
                    }
                    let sent = self.counts[..sent].iter().sum::<usize>();
                    staged.drain(..sent);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => error,
            };
            if !apart && self.counts[0] > 1 && refuses_to_cut(&error) {
                apart = true;
                continue;
            }
            if !again && may_be_of_another(&error) {
                // The kernel tells it before it tries: this one may go.
                *failed = failed.take().or(Some(error));
                again = true;
                continue;
            }
            let first = staged.pop_front();
            if let Some(cut) = cut_apart(&error, first.as_ref()) {
                cut.into_iter().rev().for_each(|piece| staged.push_front(piece));
                continue;
            }
            *failed = failed.take().or(Some(error));
            return Ok(());
        }
    }

    /// How many of the messages the kernel has taken.
    fn hand_over(&mut self, socket: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let headers = self.headers.as_mut_ptr();
        #[cfg(duopoll_faults)]
        let count = faults::fewer(count);
        uninterrupted(|| {
            #[cfg(duopoll_faults)]
            if let Some(errno) = faults::errno(Call::SendDatagrams) {
                return Err(io::Error::from_raw_os_error(errno));
            }
            // SAFETY: each header describes bytes that are staged.
            let sent =
                unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count as _, flags as _) };
            usize::try_from(sent).map_err(|_| io::Error::last_os_error())
        })
    }
}

/// What ICMP tells, which is the error of whatever is done next.
fn may_be_of_another(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EPROTO
        )
    )
}

/// `EIO`: the device cannot make checksums; `EINVAL` and `EMSGSIZE`: the pieces are larger than the path takes, or an old kernel.
fn refuses_to_cut(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}

/// The pieces of a datagram that was to be cut, if the kernel does not.
fn cut_apart<A: Peer>(error: &io::Error, first: Option<&Outgoing<A>>) -> Option<Vec<Outgoing<A>>> {
    let first = first.filter(|_| refuses_to_cut(error))?;
    let step = usize::from(first.segment_bytes?);
    let len = first.bytes.len();
    let fits = len.div_ceil(step.max(1)) <= SEGMENTS_MAX && len <= SEGMENTED_BYTES_MAX;
    if step == 0 || len <= step || !fits {
        return None;
    }
    let piece = |start| {
        let bytes: Slice = first.bytes.subslice(start..(start + step).min(len)).ok()?;
        Some(Outgoing { bytes, segment_bytes: None, ..first.clone() })
    };
    (0..len).step_by(step).map(piece).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn staged(sizes: &[usize]) -> VecDeque<Outgoing> {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        sizes.iter().map(|size| Outgoing::to(vec![7; *size], to)).collect()
    }

    fn go_together(sizes: &[usize]) -> usize {
        together(staged(sizes).iter(), &Ability::new(false, 0, true))
    }

    #[test]
    fn those_of_one_size_go_together_and_a_shorter_one_ends_them() {
        assert_eq!(go_together(&[10, 10, 10]), 3);
        assert_eq!(go_together(&[10, 10, 9, 10]), 3);
        assert_eq!(go_together(&[10, 11]), 1);
        assert_eq!(go_together(&[10, 0, 10]), 1);
        assert_eq!(go_together(&[0, 0]), 1);
        assert_eq!(go_together(&[10; 100]), SEGMENTS_MAX);
        assert_eq!(go_together(&[1400; 100]), SEGMENTED_BYTES_MAX / 1400);
        assert_eq!(go_together(&[65_000, 65_000]), 1);
        let mut others = staged(&[10; 4]);
        others[2].to = Some(SocketAddr::from(([127, 0, 0, 1], 10)));
        assert_eq!(together(others.iter(), &Ability::new(false, 0, true)), 2);
        assert_eq!(together(others.iter(), &Ability::new(false, 0, false)), 1);
    }

    #[test]
    fn what_the_kernel_does_not_cut_is_cut_here() {
        let refused = io::Error::from_raw_os_error(libc::EIO);
        let [one, other] = [10, 25].map(|size| staged(&[size])[0].clone().segments(10));
        let pieces = cut_apart(&refused, Some(&other)).expect("three pieces");
        assert_eq!(pieces.iter().map(|piece| piece.bytes.len()).collect::<Vec<_>>(), [10, 10, 5]);
        assert!(pieces.iter().all(|piece| piece.segment_bytes.is_none()));
        // It was not for the cutting.
        assert!(cut_apart(&refused, Some(&one)).is_none());
        let gone = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert!(cut_apart(&gone, Some(&other)).is_none());
    }

    #[test]
    fn what_was_refused_once_is_not_asked_again() {
        let ability = Ability::new(false, 0, true);
        ability.cuts_less_than(1400);
        assert!(ability.cuts(1399) && !ability.cuts(1400));
        ability.cuts_less_than(9000);
        assert!(!ability.cuts(1400));
    }
}
