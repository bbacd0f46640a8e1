//! The floor on io_uring: multishot receive into provided buffers that hold a whole datagram and its sender's name, the answers of a
//! turn by one `sendmmsg`, which is cheaper than an entry each.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};
use std::slice;

use io_uring::types::{Fd, RecvMsgOut};
use io_uring::{IoUring, cqueue, opcode};
use libc::{msghdr, sockaddr_in};

use super::Options;
use super::mmsg::{self, CONTROL_BYTES, Piece, ROOM_BYTES, Sends, TRAIN_ROOM_BYTES};
use super::service::Service;
use super::shape::Ask;
use crate::provided::Buffers;

const ENTRIES: u32 = 8;
const COMPLETIONS: u32 = 512;
const GROUP: u16 = 0;
/// Few: the ring walks through all of them, and small ones stay in the cache.
const BUFFERS: u16 = 256;
const TRAIN_BUFFERS: u16 = 16;
/// What the kernel writes in front of the name.
const OUT_BYTES: usize = 16;

pub fn serve(options: &Options) -> io::Result<()> {
    if options.ask == Ask::Bulk { run::<true>(options) } else { run::<false>(options) }
}

fn run<const TRAINS: bool>(options: &Options) -> io::Result<()> {
    let socket = super::bind(options.listen)?;
    let fd = socket.as_fd();
    if TRAINS {
        mmsg::receive_trains(fd)?;
    }
    let mut ring: IoUring = IoUring::builder()
        .setup_defer_taskrun()
        .setup_single_issuer()
        .setup_cqsize(COMPLETIONS)
        .build(ENTRIES)?;
    // SAFETY: all-zero bytes are a valid header.
    let mut room: msghdr = unsafe { mem::zeroed() };
    room.msg_namelen = size_of::<sockaddr_in>() as libc::socklen_t;
    room.msg_controllen = if TRAINS { CONTROL_BYTES } else { 0 };
    let head_bytes = OUT_BYTES + size_of::<sockaddr_in>() + room.msg_controllen;
    // Two cache lines more leave their number odd.
    let (count, payload_bytes) =
        if TRAINS { (TRAIN_BUFFERS, TRAIN_ROOM_BYTES) } else { (BUFFERS, ROOM_BYTES) };
    let buffer_bytes = payload_bytes + 128;
    let mut buffers = Buffers::new(&ring.submitter(), GROUP, count, buffer_bytes)?;
    let mut used: Vec<u16> = Vec::with_capacity(usize::from(count));
    let mut service = Service::new(options);
    let mut sends = Sends::<TRAINS>::new();
    let mut armed = false;
    loop {
        if !armed {
            let entry = opcode::RecvMsgMulti::new(Fd(fd.as_raw_fd()), &raw const room, GROUP);
            // SAFETY: the header lives as long as the ring.
            unsafe { ring.submission().push(&entry.build()) }.map_err(io::Error::other)?;
            armed = true;
        }
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The completion queue is full: take from it first.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        for completion in ring.completion() {
            // It ends when it finds no buffer; nothing is lost by that.
            armed &= cqueue::more(completion.flags());
            let result = completion.result();
            if result < 0 && result != -libc::ENOBUFS {
                return Err(io::Error::from_raw_os_error(-result));
            }
            let Some(id) = cqueue::buffer_select(completion.flags()) else { continue };
            used.push(id);
            let start = buffers.address(id);
            // SAFETY: the kernel has filled so many bytes of this buffer, and has given it to us.
            let bytes = unsafe { slice::from_raw_parts(start, result as usize) };
            let out = RecvMsgOut::parse(bytes, &room)
                .map_err(|()| io::Error::other("a datagram has no header"))?;
            let len = out.payload_data().len();
            let train = if TRAINS {
                // SAFETY: all-zero bytes are a valid header.
                let mut header: msghdr = unsafe { mem::zeroed() };
                header.msg_control = out.control_data().as_ptr().cast_mut().cast();
                header.msg_controllen = out.control_data().len();
                mmsg::segment(&header)
            } else {
                None
            };
            // SAFETY: the payload's room, in a buffer that is ours until it is recycled; `bytes` is not used any more.
            let payload = unsafe {
                slice::from_raw_parts_mut(start.add(head_bytes), buffer_bytes - head_bytes)
            };
            let answer = service.answer(payload, len);
            let piece = Piece {
                // SAFETY: the name is in the buffer, behind what the kernel writes in front.
                name: unsafe { start.add(OUT_BYTES) }.cast(),
                start: payload.as_mut_ptr(),
                len: answer.bytes,
                segment: train.unwrap_or(answer.bytes),
            };
            for _ in 0..answer.copies {
                // SAFETY: buffers are recycled after the flush.
                unsafe { sends.push(fd, piece)? };
            }
        }
        sends.flush(fd)?;
        used.drain(..).for_each(|id| buffers.recycle(id));
        buffers.publish();
    }
}
