//! After a burst the memory goes back to the kernel, without any call by the user.
//!
//! One test in a process of its own, since it looks at the resident memory of the whole process.

use std::hint::black_box;
use std::io::Read;

use duopoll_core::seam::BufferSeam;
use duopoll_core::{LinkBuffer, Slice};

const BUFFERS: usize = 1_000;
const BUFFER_BYTES: usize = (1 << 30) / BUFFERS;
const LEFT_BYTES_MAX: usize = 16 << 20;

/// Resident bytes of this process: the second figure of `/proc/self/statm`, in pages.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a figure");
    // SAFETY: no pointers are involved.
    pages * usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a size")
}

/// Fills a buffer by copying pieces in, each flushed by itself.
fn write_pieces(buffer: &mut LinkBuffer, piece_bytes: usize) {
    let bytes = vec![7; piece_bytes];
    while buffer.len() < BUFFER_BYTES {
        buffer.write(&bytes).expect("memory");
        buffer.flush();
    }
}

/// Fills a buffer as an engine does: at most so many bytes of each vector at a time.
fn receive(buffer: &mut LinkBuffer, step_bytes: usize) {
    while buffer.len() < BUFFER_BYTES {
        // SAFETY: all zeroes is an empty vector.
        let mut vectors: [libc::iovec; 2] = unsafe { std::mem::zeroed() };
        let count = buffer.lend_writable(&mut vectors).expect("memory");
        let mut filled = 0;
        for vector in &vectors[..count] {
            let n = vector.iov_len.min(step_bytes - filled);
            // SAFETY: the vectors were just lent.
            unsafe { vector.iov_base.cast::<u8>().write_bytes(7, n) };
            filled += n;
        }
        // SAFETY: these bytes were written.
        unsafe { buffer.commit_lent(filled) };
    }
}

fn read_some(buffer: &mut LinkBuffer, scratch: &mut Vec<u8>) {
    scratch.clear();
    buffer.by_ref().take(BUFFER_BYTES as u64 / 2).read_to_end(scratch).expect("bytes");
    black_box(buffer.next(buffer.len() / 4).expect("bytes"));
    black_box(buffer.peek(buffer.len() / 2).expect("bytes"));
    buffer.skip(100).expect("bytes");
}

/// Returns the resident memory at the peak.
fn burst(fill: impl Fn(&mut LinkBuffer), drop_all: impl FnOnce(Vec<LinkBuffer>)) -> usize {
    let mut scratch = Vec::with_capacity(BUFFER_BYTES);
    let mut buffers: Vec<LinkBuffer> = (0..BUFFERS).map(|_| LinkBuffer::new()).collect();
    buffers.iter_mut().for_each(fill);
    let peak = resident();
    for buffer in &mut buffers {
        read_some(buffer, &mut scratch);
    }
    drop_all(buffers);
    peak
}

fn from_the_end(mut buffers: Vec<LinkBuffer>) {
    while buffers.pop().is_some() {}
}

fn scattered(mut buffers: Vec<LinkBuffer>) {
    let mut at = 0;
    while !buffers.is_empty() {
        at = (at + 389) % buffers.len();
        buffers.swap_remove(at);
    }
}

fn elsewhere(buffers: Vec<LinkBuffer>) {
    std::thread::spawn(move || drop(buffers)).join().expect("no panic");
}

#[test]
fn memory_comes_back_down_after_a_burst() {
    // What the process needs anyway.
    let mut warm = LinkBuffer::new();
    write_pieces(&mut warm, 1000);
    drop(warm);
    let before = resident();

    let check = |name: &str, peak: usize| {
        let left = resident().saturating_sub(before);
        println!("{name}: peak {} MiB, {} KiB left", (peak - before) >> 20, left >> 10);
        assert!(peak - before > 900 << 20, "{name}: the burst was none");
        assert!(left <= LEFT_BYTES_MAX, "{name}: {} MiB left", left >> 20);
    };
    check("written, 1,000 B a piece", burst(|buffer| write_pieces(buffer, 1_000), drop));
    check("written, 10,000 B a piece", burst(|buffer| write_pieces(buffer, 10_000), from_the_end));
    check("written, 300,000 B a piece", burst(|buffer| write_pieces(buffer, 300_000), scattered));
    check("received, 1,000 B a step", burst(|buffer| receive(buffer, 1_000), scattered));
    check("received, as much as fits", burst(|buffer| receive(buffer, 1 << 30), elsewhere));

    // Small slices that are kept for long do not keep the burst, once compacted.
    let mut kept: Vec<Slice> = Vec::new();
    let mut buffers: Vec<LinkBuffer> = (0..BUFFERS).map(|_| LinkBuffer::new()).collect();
    for buffer in &mut buffers {
        receive(buffer, 1 << 30);
        kept.push(buffer.next(16).expect("bytes").compact());
    }
    let peak = resident();
    drop(buffers);
    check("small slices kept", peak);
    assert!(kept.iter().all(|slice| slice == &[7; 16]));
}
