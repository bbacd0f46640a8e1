//! What nobody should ask for: an error that says why, or nothing; the buffer as it was; never a panic.

use bytes::{Buf, BufMut, Bytes};
use duopoll_core::seam::BufferSeam;
use duopoll_core::{Chain, Error, LinkBuffer, Pool, PoolConfig, Slice};
use libc::iovec;

/// "hello world" in two slices, readable, and "reserved" behind it.
fn buffer() -> LinkBuffer {
    let mut buffer = LinkBuffer::new();
    buffer.push("hello ");
    buffer.push("world");
    buffer.flush();
    buffer.write(b"reserved").unwrap();
    buffer
}

fn unchanged(buffer: &mut LinkBuffer) {
    assert_eq!((buffer.len(), buffer.reserved_len()), (11, 8));
    buffer.flush();
    assert_eq!(buffer.next(19).unwrap(), b"hello worldreserved");
}

fn no_vectors() -> [iovec; 2] {
    [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2]
}

#[test]
fn zero_bytes_are_an_empty_result() {
    let mut buffer = buffer();
    assert!(buffer.next(0).unwrap().is_empty());
    assert!(buffer.peek(0).unwrap().is_empty());
    buffer.skip(0).unwrap();
    assert!(buffer.read_bytes(0).unwrap().is_empty());
    assert!(buffer.read_string(0).unwrap().is_empty());
    assert!(buffer.split_to(0).unwrap().is_empty());
    assert!(buffer.next_chunk(0).is_none());
    assert_eq!(buffer.copy_to(&mut []), 0);
    assert_eq!(buffer.peek_to(&mut []), 0);
    assert!(buffer.reserve(0).unwrap().is_empty());
    // SAFETY: nothing is committed.
    unsafe { buffer.commit(0).unwrap() };
    buffer.advance(0);
    assert!(buffer.copy_to_bytes(0).is_empty());
    buffer.put_slice(b"");
    assert_eq!(buffer.lend_readable(&mut []), (0, 0));
    unchanged(&mut buffer);
}

#[test]
fn zero_bytes_of_an_empty_buffer_too() {
    let mut buffer = LinkBuffer::new();
    assert!(buffer.next(0).unwrap().is_empty());
    assert!(buffer.peek(0).unwrap().is_empty());
    buffer.skip(0).unwrap();
    buffer.truncate_reserved(0).unwrap();
    buffer.insert(0, "").unwrap();
    buffer.flush();
    assert!(Bytes::from(buffer).is_empty());
}

#[test]
fn more_than_there_is_says_how_much_there_is() {
    for needed in [12, 19, 20, usize::MAX / 2 + 1, usize::MAX - 1, usize::MAX] {
        let mut buffer = buffer();
        let error = Error::NotEnough { needed, available: 11 };
        assert_eq!(buffer.next(needed), Err(error));
        assert_eq!(buffer.peek(needed), Err(error));
        assert_eq!(buffer.skip(needed), Err(error));
        assert_eq!(buffer.read_bytes(needed), Err(error));
        assert_eq!(buffer.read_string(needed), Err(error));
        assert_eq!(buffer.split_to(needed).unwrap_err(), error);
        unchanged(&mut buffer);
    }
    assert_eq!(LinkBuffer::new().read_u8(), Err(Error::NotEnough { needed: 1, available: 0 }));
}

#[test]
fn a_search_beyond_the_end_finds_nothing() {
    let mut buffer = buffer();
    for from in [5, 11, 19, usize::MAX] {
        assert_eq!(buffer.find(b'h', from), None);
        assert_eq!(buffer.find_pattern(b"he", from), None);
    }
    assert_eq!(buffer.find_pattern(b"", 11), Some(11));
    assert_eq!(buffer.find_pattern(b"", 12), None);
    assert_eq!(buffer.find_pattern(b"", usize::MAX), None);
    assert_eq!(buffer.find_pattern(&[b'h'; 100], 0), None);
    unchanged(&mut buffer);
}

#[test]
fn a_delimiter_that_never_comes_consumes_nothing() {
    let mut buffer = buffer();
    assert_eq!(buffer.until(b'\n'), None);
    // Nor one that is only reserved yet.
    assert_eq!(buffer.until(b'v'), None);
    assert_eq!(buffer.find(b'v', 0), None);
    assert_eq!(buffer.find_pattern(b"dre", 0), None);
    unchanged(&mut buffer);
}

#[test]
fn text_that_is_not_utf8_is_not_consumed() {
    let mut buffer = LinkBuffer::from(&b"\xff\xfe"[..]);
    assert_eq!(buffer.read_string(2), Err(Error::NotUtf8));
    assert_eq!(buffer.next(2).unwrap(), b"\xff\xfe");
}

#[test]
fn more_cannot_be_committed_than_was_reserved() {
    let mut buffer = buffer();
    buffer.reserve(8).unwrap();
    for committed in [9, usize::MAX] {
        // SAFETY: refused.
        let result = unsafe { buffer.commit(committed) };
        assert_eq!(result, Err(Error::NotReserved { committed, reserved: 8 }));
    }
    // A call that writes ends the reservation.
    buffer.push("");
    // SAFETY: refused.
    let result = unsafe { buffer.commit(1) };
    assert_eq!(result, Err(Error::NotReserved { committed: 1, reserved: 0 }));
    unchanged(&mut buffer);
}

#[test]
fn only_reserved_bytes_can_be_inserted_before_or_dropped() {
    for needed in [9, 19, 20, usize::MAX] {
        let mut buffer = buffer();
        let error = Error::NotEnough { needed, available: 8 };
        assert_eq!(buffer.insert(needed, "x"), Err(error));
        assert_eq!(buffer.truncate_reserved(needed), Err(error));
        unchanged(&mut buffer);
    }
}

#[test]
fn empty_pieces_leave_no_trace() {
    let mut buffer = buffer();
    buffer.push("");
    buffer.push(Bytes::new());
    buffer.push(Vec::new());
    buffer.push(Slice::empty());
    buffer.push(Slice::copy_from(b"", buffer.pool()).unwrap());
    buffer.write(b"").unwrap();
    buffer.insert(3, "").unwrap();
    buffer.append(&mut LinkBuffer::new());
    assert_eq!((buffer.len(), buffer.reserved_len()), (11, 8));
    buffer.adopt("");
    buffer.adopt_chain(&mut Chain::new());
    assert_eq!((buffer.len(), buffer.reserved_len()), (19, 0));
    assert_eq!(buffer.chunks().count(), 3);
    assert!(buffer.chunks().all(|chunk| !chunk.is_empty()));
}

#[test]
fn an_empty_slice_keeps_no_block() {
    let pool = Pool::new(PoolConfig::default());
    let slice = Slice::copy_from(b"12345", &pool).unwrap();
    let mut advanced = slice.clone();
    advanced.advance(5);
    let mut truncated = slice.clone();
    truncated.truncate(0);
    let mut split = slice.clone();
    split.split_to(5).unwrap();
    let empties = [slice.subslice(2..2).unwrap(), advanced, truncated, split];
    drop(slice);
    assert_eq!(pool.stats().live_blocks, 0);
    assert!(empties.iter().all(|slice| slice.pinned_bytes() == 0));
}

#[test]
#[expect(clippy::reversed_empty_ranges)]
fn a_range_beyond_the_slice_is_an_error() {
    let mut slice = Slice::from_static(b"12345");
    for range in [0..6, 6..6, 4..3, usize::MAX..usize::MAX, 0..usize::MAX, usize::MAX..0] {
        assert!(matches!(slice.subslice(range), Err(Error::NotEnough { available: 5, .. })));
    }
    for n in [6, usize::MAX] {
        assert_eq!(slice.split_to(n), Err(Error::NotEnough { needed: n, available: 5 }));
    }
    slice.truncate(usize::MAX);
    assert_eq!(slice, b"12345");
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    for bytes in [usize::MAX, usize::MAX - 63, isize::MAX as usize, 1 << 48] {
        let mut buffer = buffer();
        buffer.reserve(5).unwrap();
        assert!(matches!(buffer.reserve(bytes), Err(Error::OutOfMemory { .. })), "{bytes}");
        assert!(matches!(buffer.pool().allocate(bytes), Err(Error::OutOfMemory { .. })));
        // SAFETY: refused, since the failed reservation ended the earlier one.
        assert!(unsafe { buffer.commit(1) }.is_err());
        unchanged(&mut buffer);
    }
}

#[test]
fn bytes_beyond_two_gigabytes_are_lent_bit_by_bit() {
    let piece = Bytes::from(vec![0; 1 << 30]);
    let mut buffer = LinkBuffer::new();
    for _ in 0..5 {
        buffer.adopt(piece.clone());
    }
    let mut vectors = [no_vectors()[0]; 8];
    let mut left = 5 << 30;
    while left > 0 {
        let (count, bytes) = buffer.lend_readable(&mut vectors);
        assert!(bytes <= duopoll_core::IO_BYTES_MAX && count <= 3);
        assert_eq!(bytes, left.min(duopoll_core::IO_BYTES_MAX));
        buffer.skip(bytes).unwrap();
        left -= bytes;
    }
    assert!(buffer.is_empty());
}

#[test]
fn no_more_vectors_are_lent_than_the_kernel_takes() {
    let mut buffer = LinkBuffer::new();
    for _ in 0..if cfg!(miri) { 1100 } else { 3000 } {
        buffer.adopt("x");
    }
    let mut vectors = [no_vectors()[0]; 2000];
    assert_eq!(buffer.lend_readable(&mut vectors), (1024, 1024));
}

#[test]
fn limits_that_make_no_sense_are_adjusted() {
    for extreme in [0, 1, 511, 513, usize::MAX] {
        let mut config = PoolConfig::default();
        config.min_block_bytes = extreme;
        config.node_bytes = extreme;
        config.max_pooled_block_bytes = extreme;
        config.max_pooled_bytes = extreme;
        let pool = Pool::new(config);
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(&[7; 5000]).unwrap();
        let mut vectors = no_vectors();
        buffer.lend_writable(&mut vectors).unwrap();
        // SAFETY: nothing is committed.
        unsafe { buffer.commit_lent(0) };
        assert_eq!(buffer.next(5000).unwrap(), [7; 5000]);
        drop(buffer);
        assert_eq!(pool.stats().live_bytes, 0);
    }
}

#[test]
#[should_panic(expected = "advance(12) beyond the 11 readable bytes")]
fn the_trait_buf_panics_where_its_contract_says_so() {
    buffer().advance(12);
}
