//! LinkBuffer, case by case.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use duopoll_core::seam::BufferSeam;
use duopoll_core::{Chain, Error, LinkBuffer, LinkReader, LinkWriter, Pool, PoolConfig, Slice};
use libc::iovec;

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

/// Each piece in memory of its own.
fn of_pieces(pieces: &[&str]) -> LinkBuffer {
    let mut buffer = LinkBuffer::new();
    for piece in pieces {
        buffer.push(piece.as_bytes().to_vec());
    }
    buffer.flush();
    buffer
}

/// So many, or a part of them under Miri, which is slow.
fn up_to(all: usize, under_miri: usize) -> usize {
    if cfg!(miri) { under_miri } else { all }
}

fn text(buffer: &mut LinkBuffer) -> String {
    buffer.read_string(buffer.len()).unwrap()
}

fn lend(buffer: &mut LinkBuffer) -> Vec<iovec> {
    let mut vectors = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2];
    let count = buffer.lend_writable(&mut vectors).unwrap();
    vectors[..count].to_vec()
}

/// What an engine does with one read.
fn receive(buffer: &mut LinkBuffer, mut bytes: &[u8]) -> usize {
    let n = bytes.len();
    let vectors = lend(buffer);
    for vector in &vectors {
        let (now, later) = bytes.split_at(bytes.len().min(vector.iov_len));
        // SAFETY: just lent.
        unsafe { now.as_ptr().copy_to(vector.iov_base.cast(), now.len()) };
        bytes = later;
    }
    let n = n - bytes.len();
    // SAFETY: n bytes were written.
    unsafe { buffer.commit_lent(n) };
    n
}

mod reading {
    use super::*;

    #[test]
    fn what_is_written_is_read_in_order_after_flush() {
        let mut buffer = LinkBuffer::new();
        buffer.write(&[1; 10]).unwrap();
        buffer.write(&[2; 16]).unwrap();
        assert_eq!((buffer.len(), buffer.reserved_len()), (0, 26));
        assert!(buffer.next(1).is_err());
        buffer.flush();
        assert_eq!((buffer.len(), buffer.reserved_len()), (26, 0));
        assert_eq!(buffer.peek(10).unwrap(), [1; 10]);
        buffer.skip(2).unwrap();
        assert_eq!(buffer.next(8).unwrap(), [1; 8]);
        assert_eq!(buffer.read_bytes(15).unwrap(), [2; 15]);
        assert_eq!(buffer.read_u8(), Ok(2));
        assert!(buffer.is_empty());
    }

    #[test]
    fn next_within_one_block_copies_nothing() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"0123456789").unwrap();
        buffer.flush();
        let start = buffer.first_chunk().as_ptr();
        let front = buffer.next(4).unwrap();
        let back = buffer.next(6).unwrap();
        assert_eq!(front.as_ptr(), start);
        assert_eq!(back.as_ptr(), start.wrapping_add(4));
    }

    #[test]
    fn next_across_slices_is_contiguous() {
        let mut buffer = of_pieces(&["ab", "cd", "ef"]);
        assert_eq!(buffer.next(1).unwrap(), b"a");
        assert_eq!(buffer.next(4).unwrap(), b"bcde");
        assert_eq!(buffer.next(1).unwrap(), b"f");
    }

    #[test]
    fn peek_grows_and_shrinks_and_consumes_nothing() {
        let mut buffer = of_pieces(&["ab", "cd", "ef", "gh"]);
        for n in [4, 3, 5, 6, 1, 8, 0] {
            assert_eq!(buffer.peek(n).unwrap(), &b"abcdefgh"[..n]);
        }
        assert_eq!(buffer.len(), 8);
        assert_eq!(text(&mut buffer), "abcdefgh");
    }

    #[test]
    fn peek_after_skip_sees_the_new_front() {
        let mut buffer = of_pieces(&["ab", "cd", "ef", "gh"]);
        assert_eq!(buffer.peek(4).unwrap(), b"abcd");
        buffer.skip(1).unwrap();
        assert_eq!(buffer.peek(6).unwrap(), b"bcdefg");
        buffer.skip(6).unwrap();
        assert_eq!(buffer.peek(1).unwrap(), b"h");
    }

    #[test]
    fn a_slice_taken_after_a_peek_survives_a_larger_peek() {
        let mut buffer = of_pieces(&["ab", "cd", "ef", "gh", "ij"]);
        buffer.peek(4).unwrap();
        let early = buffer.next(3).unwrap();
        assert_eq!(buffer.peek(6).unwrap(), b"defghi");
        assert_eq!(early, b"abc");
        assert_eq!(buffer.next(7).unwrap(), b"defghij");
        assert_eq!(early, b"abc");
    }

    #[test]
    fn repeated_peeks_across_slices_cost_memory_once() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        for _ in 0..100 {
            buffer.push(vec![7; 8000]);
        }
        buffer.flush();
        for _ in 0..1024 {
            assert_eq!(buffer.peek(800_000).unwrap().len(), 800_000);
        }
        assert!(pool.stats().peak_bytes <= 1 << 20);
        for n in (1..800_000).step_by(997) {
            buffer.peek(n).unwrap();
        }
        assert!(pool.stats().peak_bytes <= 1 << 20);
    }

    #[test]
    fn peeks_that_grow_step_by_step_copy_about_twice() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        let pieces = up_to(1000, 30);
        for _ in 0..pieces {
            buffer.push(vec![7; 100]);
        }
        buffer.flush();
        let mut places = BTreeSet::new();
        for n in (100..=100 * pieces).step_by(100) {
            places.insert(buffer.peek(n).unwrap().as_ptr());
        }
        assert!(places.len() < 12, "{} copies", places.len());
    }

    #[test]
    fn the_block_of_a_peek_is_given_up_with_its_bytes() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.push("ab");
        buffer.push("cd");
        buffer.flush();
        buffer.peek(4).unwrap();
        assert_eq!(pool.stats().live_blocks, 1);
        buffer.skip(4).unwrap();
        assert_eq!(pool.stats().live_blocks, 0);
        buffer.push("ab");
        buffer.push("cd");
        buffer.flush();
        drop(buffer.next(4).unwrap());
        assert_eq!(pool.stats().live_blocks, 0);
    }

    #[test]
    fn a_message_that_came_in_pieces_is_contiguous_without_a_copy() {
        let mut buffer = LinkBuffer::new();
        receive(&mut buffer, b"first ");
        let start = buffer.first_chunk().as_ptr();
        receive(&mut buffer, b"second ");
        receive(&mut buffer, b"third");
        assert_eq!(buffer.chunks().count(), 1);
        let message = buffer.next(18).unwrap();
        assert_eq!(message, b"first second third");
        assert_eq!(message.as_ptr(), start);
    }

    #[test]
    fn skip_and_copies_pass_slices_of_any_length() {
        let mut buffer = of_pieces(&["a", "bc", "def", "ghij"]);
        buffer.skip(2).unwrap();
        let mut target = [0; 3];
        assert_eq!(buffer.peek_to(&mut target), 3);
        assert_eq!(&target, b"cde");
        assert_eq!(buffer.copy_to(&mut target), 3);
        assert_eq!(&target, b"cde");
        assert_eq!(buffer.copy_to(&mut [0; 100]), 5);
        assert!(buffer.is_empty());
    }

    #[test]
    fn copying_out_releases_what_is_read_and_keeps_what_was_handed_out() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        for _ in 0..4 {
            buffer.adopt(Slice::copy_from(&[7; 1000], &pool).unwrap());
        }
        let kept = buffer.next(10).unwrap();
        let mut target = [0; 1990];
        assert_eq!(buffer.copy_to(&mut target), 1990);
        // The first block is held by the slice alone, the second is gone.
        assert_eq!(pool.stats().live_blocks, 3);
        assert_eq!(kept, [7; 10]);
        drop(kept);
        assert_eq!(pool.stats().live_blocks, 2);
        assert_eq!(buffer.len(), 2000);
    }

    #[test]
    fn until_takes_the_delimiter_along_and_finds_it_in_any_slice() {
        let mut buffer = of_pieces(&["GET / HT", "TP/1.1\r", "\nHost: x\r\n", "\r\n"]);
        assert_eq!(buffer.until(b'\n').unwrap(), b"GET / HTTP/1.1\r\n");
        assert_eq!(buffer.until(b'\n').unwrap(), b"Host: x\r\n");
        assert_eq!(buffer.until(b'\n').unwrap(), b"\r\n");
        assert_eq!(buffer.until(b'\n'), None);
    }

    #[test]
    fn find_gives_exact_offsets_from_every_start() {
        let mut buffer = LinkBuffer::new();
        let lines = up_to(1000, 5);
        for _ in 0..lines {
            buffer.push(vec![b'a'; 1000]);
            buffer.push("b\n");
        }
        buffer.flush();
        for i in 0..lines {
            let start = i * 1002;
            assert_eq!(buffer.find(b'\n', start), Some(start + 1001));
            assert_eq!(buffer.find(b'\n', start + 1001), Some(start + 1001));
            assert_eq!(buffer.find(b'b', start + 999), Some(start + 1000));
        }
        assert_eq!(buffer.find(b'\n', lines * 1002 - 1), Some(lines * 1002 - 1));
        assert_eq!(buffer.find(b'\n', lines * 1002), None);
    }

    #[test]
    fn a_pattern_is_found_wherever_it_crosses_slices() {
        let whole = "aaab aab\r\n\r\nbody";
        for cut in (1..whole.len()).step_by(up_to(1, 7)) {
            for second in (cut..whole.len()).step_by(up_to(1, 4)) {
                let pieces = [&whole[..cut], &whole[cut..second], &whole[second..]];
                let buffer = of_pieces(&pieces);
                for pattern in ["\r\n\r\n", "aab", "b", "body", "aaab aab\r\n\r\nbody", "bodyy"] {
                    for from in 0..=whole.len() {
                        let expected = whole[from..].find(pattern).map(|at| from + at);
                        assert_eq!(buffer.find_pattern(pattern.as_bytes(), from), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_search_among_near_misses_is_not_quadratic() {
        let mut buffer = LinkBuffer::new();
        for _ in 0..up_to(1000, 2) {
            buffer.push(vec![b'a'; up_to(4096, 500)]);
        }
        buffer.flush();
        // 4 million candidates in 1,000 slices: hours, if each were looked for from the first slice on.
        assert_eq!(buffer.find_pattern(b"ab", 0), None);
        assert_eq!(buffer.find_pattern(b"aaaaaaab", 0), None);
    }

    #[test]
    fn chunks_end_at_the_flush_boundary() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"readable").unwrap();
        buffer.flush();
        buffer.write(b"reserved").unwrap();
        assert_eq!(buffer.chunks().collect::<Vec<_>>(), [b"readable"]);
        assert_eq!(buffer.first_chunk(), b"readable");
        assert_eq!(buffer.next_chunk(100).unwrap(), b"readable");
        assert!(buffer.next_chunk(100).is_none());
        assert!(buffer.first_chunk().is_empty());
    }

    #[test]
    fn numbers_of_both_endiannesses_cross_slices() {
        let mut buffer = of_pieces(&["\x01", "\x02\x03", "\x04\x05", "\x06"]);
        assert_eq!(buffer.get_u16(), 0x0102);
        assert_eq!(buffer.get_u32_le(), 0x0605_0403);
        buffer.put_i64(-2);
        buffer.put_f32_le(1.5);
        buffer.put_u128(7);
        buffer.flush();
        assert_eq!(buffer.try_get_i64(), Ok(-2));
        assert_eq!(buffer.get_f32_le(), 1.5);
        assert_eq!(buffer.get_u128(), 7);
        assert!(buffer.try_get_u8().is_err());
    }
}

mod splitting {
    use super::*;

    #[test]
    fn a_part_shares_memory_and_both_go_on() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(b"0123456789").unwrap();
        buffer.flush();
        let mut part = buffer.split_to(5).unwrap();
        assert_eq!(pool.stats().live_blocks, 1);
        // Unlike the original's, a part can be written to.
        part.write(b"ab").unwrap();
        part.flush();
        buffer.write(b"cd").unwrap();
        buffer.flush();
        assert_eq!(text(&mut part), "01234ab");
        assert_eq!(text(&mut buffer), "56789cd");
    }

    #[test]
    fn a_part_across_slices_outlives_the_buffer() {
        let mut buffer = of_pieces(&["abc", "def", "ghi"]);
        let mut part = buffer.split_to(7).unwrap();
        let mut half = part.split_to(4).unwrap();
        drop((buffer, part));
        assert_eq!(text(&mut half), "abcd");
    }

    #[test]
    fn blocks_are_released_in_whatever_order_their_users_leave() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let pool = pool();
            let mut buffer = LinkBuffer::with_pool(pool.clone());
            buffer.write(b"header----body").unwrap();
            buffer.insert(4, Slice::copy_from(b"piece", &pool).unwrap()).unwrap();
            buffer.flush();
            let slice = buffer.next(6).unwrap();
            let part = buffer.split_to(6).unwrap();
            let mut users = [Some(Ok(slice)), Some(Err(part)), Some(Err(buffer))];
            for user in order {
                for other in users.iter().flatten() {
                    match other {
                        Ok(slice) => assert_eq!(slice, b"header"),
                        Err(buffer) => assert!(
                            ["----pi", "ecebody"].iter().any(|bytes| buffer
                                .chunks()
                                .collect::<Vec<_>>()
                                .concat()
                                == bytes.as_bytes())
                        ),
                    }
                }
                users[user] = None;
            }
            assert_eq!(pool.stats().live_blocks, 0);
        }
    }

    #[test]
    fn slices_keep_their_bytes_when_buffer_and_pool_are_gone() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(&[1; 3000]).unwrap();
        buffer.flush();
        let slice = buffer.next(1000).unwrap();
        buffer.clear();
        for _ in 0..10 {
            buffer.write(&[2; 3000]).unwrap();
        }
        drop((buffer, pool));
        let elsewhere = std::thread::spawn(move || assert_eq!(slice, [1; 1000]));
        elsewhere.join().unwrap();
    }

    #[test]
    fn writing_goes_on_behind_slices_that_were_handed_out() {
        let mut buffer = LinkBuffer::new();
        receive(&mut buffer, b"first");
        let first = buffer.next(5).unwrap();
        receive(&mut buffer, b"second");
        let second = buffer.next(6).unwrap();
        assert_eq!(second.as_ptr(), first.as_ptr().wrapping_add(5));
        assert_eq!((&first[..], &second[..]), (&b"first"[..], &b"second"[..]));
    }

    #[test]
    fn a_block_is_used_anew_only_when_nobody_sees_it() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(&[1; 4096]).unwrap();
        buffer.flush();
        let held = buffer.next(4096).unwrap();
        buffer.write(&[2; 4096]).unwrap();
        buffer.flush();
        assert_eq!(held, [1; 4096]);
        let address = buffer.next(4096).unwrap().as_ptr();
        buffer.write(&[3; 4096]).unwrap();
        buffer.flush();
        assert_eq!(buffer.next(4096).unwrap().as_ptr(), address);
        assert_eq!(held, [1; 4096]);
        assert_eq!(pool.stats().live_blocks, 2);
    }

    #[test]
    fn a_small_slice_can_let_go_of_its_block() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(&[7; 64 << 10]).unwrap();
        buffer.flush();
        let small = buffer.next(10).unwrap();
        drop(buffer);
        assert!(small.pinned_bytes() >= 64 << 10);
        let compact = small.compact();
        assert_eq!((compact.pinned_bytes(), pool.stats().live_blocks), (10, 0));
        assert_eq!(compact, [7; 10]);
    }
}

mod writing {
    use super::*;

    #[test]
    fn flush_can_be_repeated_and_appending_goes_on_after_a_partial_read() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"abc").unwrap();
        buffer.flush();
        buffer.flush();
        assert_eq!(buffer.next(2).unwrap(), b"ab");
        buffer.flush();
        buffer.write(b"def").unwrap();
        buffer.flush();
        buffer.flush();
        assert_eq!(text(&mut buffer), "cdef");
    }

    #[test]
    fn reserved_room_is_contiguous_and_what_is_not_committed_never_was() {
        let mut buffer = LinkBuffer::new();
        buffer.write(&[1; 4090]).unwrap();
        let room = buffer.reserve(100).unwrap();
        assert_eq!(room.len(), 100);
        for byte in &mut room[..60] {
            byte.write(2);
        }
        // SAFETY: as many were written.
        unsafe { buffer.commit(60).unwrap() };
        assert_eq!(buffer.reserved_len(), 4150);
        buffer.write(&[3; 10]).unwrap();
        buffer.flush();
        buffer.skip(4090).unwrap();
        // What comes next lies right behind what was committed.
        assert_eq!(buffer.chunks().count(), 1);
        assert_eq!(buffer.next(60).unwrap(), [2; 60]);
        assert_eq!(buffer.next(10).unwrap(), [3; 10]);
    }

    #[test]
    fn a_reservation_that_is_not_committed_disturbs_nothing() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"ab").unwrap();
        buffer.flush();
        buffer.reserve(100_000).unwrap();
        assert_eq!(buffer.peek(2).unwrap(), b"ab");
        assert_eq!((buffer.len(), buffer.reserved_len()), (2, 0));
        buffer.write(b"cd").unwrap();
        buffer.flush();
        assert_eq!(text(&mut buffer), "abcd");
    }

    #[test]
    fn room_can_be_committed_bit_by_bit() {
        let mut buffer = LinkBuffer::new();
        for (byte, value) in buffer.reserve(4).unwrap().iter_mut().zip(b"abcd") {
            byte.write(*value);
        }
        // SAFETY: all four were written.
        unsafe {
            buffer.commit(1).unwrap();
            buffer.commit(2).unwrap();
            assert!(buffer.commit(2).is_err());
            buffer.commit(1).unwrap();
        }
        buffer.flush();
        assert_eq!(text(&mut buffer), "abcd");
    }

    #[test]
    fn owned_pieces_are_not_copied() {
        let bytes = Bytes::from(vec![7; 10_000]);
        let vec = vec![8; 10_000];
        let places = [bytes.as_ptr(), vec.as_ptr()];
        let mut buffer = LinkBuffer::new();
        buffer.push(bytes);
        buffer.push(vec);
        buffer.flush();
        let chunks: Vec<_> = buffer.chunks().map(<[u8]>::as_ptr).collect();
        assert_eq!(chunks, places);
    }

    #[test]
    fn spare_capacity_of_a_pushed_vec_is_never_written() {
        let mut vec = Vec::with_capacity(100);
        vec.extend_from_slice(b"ab");
        let place = vec.as_ptr();
        let mut buffer = LinkBuffer::new();
        buffer.push(vec);
        buffer.write(b"cd").unwrap();
        buffer.flush();
        let first = buffer.next_chunk(100).unwrap();
        assert_eq!((first.as_ptr(), &first[..]), (place, &b"ab"[..]));
        assert_eq!(text(&mut buffer), "cd");
    }

    #[test]
    fn insert_nests_to_any_depth_and_mixes_with_copies() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"[]").unwrap();
        for depth in 1..=5 {
            buffer.insert(depth, format!("{depth}(")).unwrap();
            buffer.insert(depth, ")").unwrap();
        }
        buffer.write(b"!").unwrap();
        buffer.insert(0, "?").unwrap();
        buffer.flush();
        assert_eq!(text(&mut buffer), "[1(2(3(4(5()))))]!?");
    }

    #[test]
    fn insert_at_either_end_of_what_is_reserved() {
        let mut buffer = LinkBuffer::from("readable ");
        buffer.write(b"reserved").unwrap();
        buffer.insert(8, "before ").unwrap();
        buffer.insert(0, " behind").unwrap();
        buffer.flush();
        assert_eq!(text(&mut buffer), "readable before reserved behind");
    }

    #[test]
    fn dropping_reserved_bytes_keeps_the_front_whatever_it_is_made_of() {
        let mut buffer = LinkBuffer::from("readable ");
        buffer.write(b"kept").unwrap();
        buffer.insert(2, Bytes::from_static(b"--")).unwrap();
        buffer.push(vec![b'x'; 5000]);
        buffer.write(&[b'y'; 5000]).unwrap();
        buffer.truncate_reserved(5).unwrap();
        assert_eq!(buffer.reserved_len(), 5);
        buffer.write(b"|").unwrap();
        buffer.flush();
        assert_eq!(text(&mut buffer), "readable ke--p|");
    }

    #[test]
    fn append_takes_all_and_leaves_a_buffer_that_works() {
        let mut front = LinkBuffer::from("a");
        front.write(b"b").unwrap();
        let mut back = LinkBuffer::from("c");
        back.write(b"d").unwrap();
        front.append(&mut back);
        // Only what was appended and written is reserved, not what could be read before.
        assert_eq!((front.len(), front.reserved_len()), (1, 3));
        assert_eq!((back.len(), back.reserved_len()), (0, 0));
        back.write(b"e").unwrap();
        back.flush();
        front.append(&mut back);
        front.flush();
        assert_eq!(text(&mut front), "abcde");
        assert!(back.is_empty());
    }

    #[test]
    fn append_to_an_empty_buffer_and_of_an_empty_one() {
        let mut buffer = LinkBuffer::new();
        buffer.append(&mut LinkBuffer::new());
        assert_eq!(buffer.reserved_len(), 0);
        buffer.append(&mut LinkBuffer::from("x"));
        buffer.append(&mut LinkBuffer::new());
        buffer.flush();
        assert_eq!(text(&mut buffer), "x");
    }

    #[test]
    fn large_and_small_pieces_alternate() {
        let mut buffer = LinkBuffer::new();
        let mut expected = Vec::new();
        for shift in (0..20).rev() {
            let piece = vec![shift as u8; 1 << shift];
            if shift % 2 == 0 {
                buffer.write(&piece).unwrap();
            } else {
                buffer.push(piece.clone());
            }
            expected.extend(piece);
        }
        buffer.flush();
        assert_eq!(buffer.next(expected.len()).unwrap(), expected);
    }

    #[test]
    fn text_is_formatted_into_the_buffer() {
        let mut buffer = LinkBuffer::new();
        write!(&mut buffer as &mut dyn std::fmt::Write, "ä-{:04x}", 255).unwrap();
        buffer.flush();
        assert_eq!(text(&mut buffer), "ä-00ff");
    }

    #[test]
    fn clear_drops_everything_at_once() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(&[7; 100_000]).unwrap();
        buffer.flush();
        buffer.write(b"x").unwrap();
        lend(&mut buffer);
        buffer.clear();
        assert_eq!((buffer.len(), buffer.reserved_len(), pool.stats().live_blocks), (0, 0, 0));
    }
}

mod receiving {
    use super::*;

    #[test]
    fn a_nearly_full_block_never_costs_a_short_read() {
        let mut buffer = LinkBuffer::new();
        assert_eq!(receive(&mut buffer, &[1; 4095]), 4095);
        let vectors = lend(&mut buffer);
        assert_eq!(vectors.len(), 2);
        assert_eq!(vectors[0].iov_len, 1);
        assert_eq!(receive(&mut buffer, &[2; 1000]), 1000);
        assert_eq!(buffer.next(5095).unwrap(), [&[1; 4095][..], &[2; 1000]].concat());
    }

    #[test]
    fn blocks_grow_under_a_burst_and_shrink_again() {
        let mut buffer = LinkBuffer::new();
        let room = |buffer: &mut LinkBuffer| lend(buffer).iter().map(|v| v.iov_len).sum::<usize>();
        let first = room(&mut buffer);
        for _ in 0..10 {
            let all = vec![7; room(&mut buffer)];
            receive(&mut buffer, &all);
            buffer.clear();
        }
        let large = room(&mut buffer);
        assert!(first <= 8192 && large >= 512 << 10, "{first} {large}");
        for _ in 0..200 {
            receive(&mut buffer, &[7; 100]);
            buffer.clear();
        }
        assert_eq!(room(&mut buffer), first);
    }

    #[test]
    fn reads_of_every_size_arrive_whole() {
        let mut buffer = LinkBuffer::new();
        let mut sent = 0_usize;
        for shift in (0..up_to(22, 12)).rev() {
            let bytes: Vec<u8> = (0..1 << shift).map(|i: usize| ((sent + i) % 251) as u8).collect();
            let mut left = &bytes[..];
            while !left.is_empty() {
                left = &left[receive(&mut buffer, left)..];
            }
            sent += bytes.len();
            while buffer.len() > 1000 {
                let at = sent - buffer.len();
                let n = buffer.len().min(77_777);
                let slice = buffer.next(n).unwrap();
                assert!(slice.iter().enumerate().all(|(i, &b)| b == ((at + i) % 251) as u8));
            }
        }
    }

    #[test]
    fn bytes_received_come_behind_reserved_ones_and_flush_them() {
        let mut buffer = LinkBuffer::new();
        buffer.write(b"reserved ").unwrap();
        receive(&mut buffer, b"received ");
        buffer.adopt("adopted ");
        let mut chain = Chain::new();
        chain.push("chained".into());
        buffer.adopt_chain(&mut chain);
        assert_eq!(text(&mut buffer), "reserved received adopted chained");
        assert!(chain.is_empty());
    }

    #[test]
    fn nothing_received_changes_nothing() {
        let mut buffer = LinkBuffer::from("x");
        for _ in 0..100 {
            lend(&mut buffer);
            assert_eq!(receive(&mut buffer, b""), 0);
        }
        assert_eq!(text(&mut buffer), "x");
    }
}

mod sending {
    use super::*;

    fn vectors<const N: usize>(buffer: &LinkBuffer) -> (Vec<usize>, usize) {
        let mut vectors = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
        let (count, bytes) = buffer.lend_readable(&mut vectors);
        (vectors[..count].iter().map(|vector| vector.iov_len).collect(), bytes)
    }

    #[test]
    fn every_slice_is_lent_even_if_there_is_only_one() {
        assert_eq!(vectors::<4>(&of_pieces(&["abc"])), (vec![3], 3));
        assert_eq!(vectors::<4>(&of_pieces(&["a", "bc", "def"])), (vec![1, 2, 3], 6));
        assert_eq!(vectors::<2>(&of_pieces(&["a", "bc", "def"])), (vec![1, 2], 3));
        assert_eq!(vectors::<2>(&LinkBuffer::new()), (vec![], 0));
    }

    #[test]
    fn reserved_bytes_are_not_lent() {
        let mut buffer = of_pieces(&["a", "bc"]);
        buffer.write(b"reserved").unwrap();
        assert_eq!(vectors::<4>(&buffer), (vec![1, 2], 3));
        let mut buffer = LinkBuffer::new();
        buffer.write(b"abc").unwrap();
        buffer.flush();
        buffer.write(b"reserved").unwrap();
        buffer.push("more");
        assert_eq!(vectors::<4>(&buffer), (vec![3], 3));
    }

    #[test]
    fn a_partial_send_continues_where_it_stopped() {
        let mut buffer = of_pieces(&["abc", "def"]);
        buffer.skip(4).unwrap();
        assert_eq!(vectors::<4>(&buffer), (vec![2], 2));
        assert_eq!(text(&mut buffer), "ef");
    }

    #[test]
    fn more_than_sixty_four_slices_go_in_turns() {
        let mut buffer = LinkBuffer::new();
        for _ in 0..200 {
            buffer.push(vec![7; 3]);
        }
        buffer.flush();
        let mut turns = 0;
        while !buffer.is_empty() {
            let (lent, bytes) = vectors::<64>(&buffer);
            assert!(lent.len() <= 64);
            buffer.skip(bytes).unwrap();
            turns += 1;
        }
        assert_eq!(turns, 4);
    }
}

mod adapters {
    use super::*;

    /// Gives `step` bytes at a time, then the end.
    struct Steps<'a>(&'a [u8], usize);

    impl Read for Steps<'_> {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let n = target.len().min(self.1);
            self.0.read(&mut target[..n])
        }
    }

    #[test]
    fn a_reader_reads_as_often_as_it_must() {
        let mut bytes = (0..251).collect::<Vec<u8>>().repeat(400);
        bytes.truncate(100_000);
        let steps = &[4097, 4096, 4095, 1 << 20, 7, 1][..up_to(6, 1)];
        for &step in steps {
            let mut reader = LinkReader::new(Steps(&bytes, step));
            assert_eq!(reader.next(10).unwrap(), bytes[..10]);
            assert_eq!(reader.peek(5000).unwrap(), &bytes[10..5010]);
            reader.skip(40_000).unwrap();
            assert_eq!(reader.read_u8().unwrap(), bytes[40_010]);
            assert_eq!(reader.read_bytes(9).unwrap(), &bytes[40_011..40_020]);
            let mut part = reader.split_to(980).unwrap();
            assert_eq!(part.next(980).unwrap(), bytes[40_020..41_000]);
            assert_eq!(reader.next(59_000).unwrap(), bytes[41_000..]);
            let end = reader.next(1).unwrap_err();
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn the_end_of_the_stream_loses_nothing() {
        let mut reader = LinkReader::new(&b"partial"[..]);
        for _ in 0..3 {
            assert_eq!(reader.next(8).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(reader.until(b'\n', 100).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(reader.read_string(7).unwrap(), "partial");
    }

    #[test]
    fn a_reader_searches_no_further_than_it_may() {
        let mut reader = LinkReader::new(Steps(b"abc\ndef", 1));
        assert_eq!(reader.until(b'\n', 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(reader.until(b'\n', 4).unwrap(), b"abc\n");
        let endless = io::repeat(b'x');
        let error = LinkReader::new(endless).until(b'\n', up_to(100_000, 5_000)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_error_of_the_stream_is_passed_on_and_can_be_retried() {
        struct Flaky(u8);
        impl Read for Flaky {
            fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 % 3 {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    1 => Err(io::ErrorKind::Interrupted.into()),
                    _ => {
                        target[0] = self.0;
                        Ok(1)
                    }
                }
            }
        }
        let mut reader = LinkReader::new(Flaky(0));
        assert_eq!(reader.next(2).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(reader.next(2).unwrap(), [2, 5]);
    }

    #[test]
    fn a_reader_that_lies_about_its_count_is_found_out() {
        struct Liar;
        impl Read for Liar {
            fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
                Ok(target.len() + 1)
            }
        }
        impl Write for Liar {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len() + 1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(LinkReader::new(Liar).next(1).unwrap_err().kind(), io::ErrorKind::Other);
        let mut writer = LinkWriter::new(Liar);
        writer.write_all(b"x").unwrap();
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(writer.buffer().len(), 1);
    }

    #[test]
    fn a_reader_is_a_read_and_a_bufread() {
        let mut reader = LinkReader::new(Steps(b"line one\nline two\nrest", 5));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "line one\n");
        assert_eq!(reader.next(5).unwrap(), b"line ");
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "two\nrest");
        let (_, buffer) = reader.into_parts();
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_writer_sends_pieces_together_and_keeps_what_was_not_taken() {
        /// Takes `0` bytes at a time of the first vectors, then no more.
        struct Taker(Vec<u8>, usize, usize);
        impl Write for Taker {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.write_vectored(&[IoSlice::new(bytes)])
            }
            fn write_vectored(&mut self, vectors: &[IoSlice<'_>]) -> io::Result<usize> {
                let all: Vec<u8> = vectors.iter().flat_map(|vector| vector.to_vec()).collect();
                let n = all.len().min(self.1).min(self.2);
                self.2 -= n;
                self.0.extend(&all[..n]);
                Ok(n)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = LinkWriter::new(Taker(Vec::new(), 3, 10));
        writer.write_all(b"head ").unwrap();
        writer.buffer_mut().push(Bytes::from_static(b"owned body"));
        assert!(writer.get_ref().0.is_empty());
        assert_eq!(writer.flush().unwrap_err().kind(), io::ErrorKind::WriteZero);
        assert_eq!(writer.get_ref().0, b"head owned");
        assert_eq!(writer.buffer().len(), 5);
        writer.get_mut().2 = 100;
        writer.flush().unwrap();
        assert_eq!(writer.get_ref().0, b"head owned body");
        writer.flush().unwrap();
        assert!(writer.into_parts().1.is_empty());
    }

    #[test]
    fn a_link_buffer_is_a_read_a_bufread_and_a_write() {
        let mut buffer = LinkBuffer::new();
        io::Write::write_all(&mut buffer, b"one\ntwo\nthree").unwrap();
        assert_eq!(buffer.read(&mut [0; 4]).unwrap(), 0);
        io::Write::flush(&mut buffer).unwrap();
        let mut line = String::new();
        buffer.read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        buffer.consume(1);
        buffer.consume(0);
        let mut rest = String::new();
        buffer.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "wo\nthree");
        assert_eq!(buffer.read(&mut [0; 4]).unwrap(), 0);
        buffer.consume(100);
    }

    #[test]
    fn bytes_go_in_and_out_uncopied() {
        let bytes = Bytes::from(vec![7; 1000]);
        let place = bytes.as_ptr();
        let buffer = LinkBuffer::from(bytes);
        let bytes = Bytes::from(buffer);
        assert_eq!(bytes.as_ptr(), place);
        // Nobody else refers to them, so they can even be changed again.
        let mut mutable = BytesMut::from(LinkBuffer::from(bytes));
        assert_eq!(mutable.as_ptr(), place);
        mutable[0] = 8;
        let slice = Slice::from(LinkBuffer::from(mutable));
        assert_eq!((slice.as_ptr(), slice[0]), (place, 8));
        let vec = Vec::from(slice);
        assert_eq!(vec.as_ptr(), place);
    }

    #[test]
    fn a_block_becomes_bytes_uncopied_and_is_returned_with_them() {
        let pool = pool();
        let mut buffer = LinkBuffer::with_pool(pool.clone());
        buffer.write(b"0123456789").unwrap();
        buffer.flush();
        let place = buffer.first_chunk().as_ptr();
        let bytes = Bytes::from(buffer);
        let part = bytes.slice(2..4);
        assert_eq!(part.as_ptr(), place.wrapping_add(2));
        drop(bytes);
        assert_eq!((&part[..], pool.stats().live_blocks), (&b"23"[..], 1));
        drop(part);
        assert_eq!(pool.stats().live_blocks, 0);
    }

    #[test]
    fn several_slices_become_one_piece() {
        assert_eq!(Bytes::from(of_pieces(&["ab", "cd"])), "abcd");
        assert_eq!(BytesMut::from(of_pieces(&["ab", "cd"])), "abcd");
        let mut buffer = of_pieces(&["ab", "cd"]);
        buffer.push("reserved");
        assert_eq!(Slice::from(buffer), "abcd");
    }

    #[test]
    fn buf_gives_all_chunks_at_once() {
        let buffer = of_pieces(&["ab", "cd", "ef"]);
        let mut vectors = [IoSlice::new(&[]); 8];
        let count = buffer.chunks_vectored(&mut vectors);
        let all: Vec<u8> = vectors[..count].iter().flat_map(|vector| vector.to_vec()).collect();
        assert_eq!(all, b"abcdef");
        let mut chained = Buf::chain(of_pieces(&["ab"]), of_pieces(&["cd"]));
        assert_eq!(chained.copy_to_bytes(4), "abcd");
    }

    #[test]
    fn errors_keep_their_kind_as_io_errors() {
        let kinds = [
            (Error::NotEnough { needed: 2, available: 1 }, io::ErrorKind::UnexpectedEof),
            (Error::NotReserved { committed: 2, reserved: 1 }, io::ErrorKind::InvalidInput),
            (Error::OutOfMemory { bytes: 1 }, io::ErrorKind::OutOfMemory),
            (Error::NotUtf8, io::ErrorKind::InvalidData),
        ];
        for (error, kind) in kinds {
            let converted = io::Error::from(error);
            assert_eq!(converted.kind(), kind);
            assert_eq!(converted.to_string(), error.to_string());
        }
    }
}

mod bytes_that_are_changed_where_they_lie {
    use super::*;

    /// What came in one read, as a slice.
    fn received(bytes: &[u8]) -> (LinkBuffer, Slice) {
        let mut buffer = LinkBuffer::with_pool(pool());
        receive(&mut buffer, bytes);
        let slice = buffer.next(bytes.len()).unwrap();
        (buffer, slice)
    }

    #[test]
    fn each_part_of_a_slice_is_its_owners() {
        let (_buffer, mut back) = received(b"abcdefgh");
        let mut front = back.split_to(3).unwrap();
        back.truncate(4);
        back.advance(1);
        // Both at once.
        let (first, second) = (front.get_mut().unwrap(), back.get_mut().unwrap());
        first.fill(b'1');
        second.fill(b'2');
        first[0] = b'0';
        assert_eq!((&*front, &*back), (&b"011"[..], &b"222"[..]));
    }

    #[test]
    fn bytes_that_are_behind_it_arrive_undisturbed() {
        let (mut buffer, mut slice) = received(b"first");
        let bytes = slice.get_mut().unwrap();
        assert_eq!(receive(&mut buffer, b"second"), 6);
        bytes.fill(b'x');
        assert_eq!((text(&mut buffer), &*slice), ("second".into(), &b"xxxxx"[..]));
    }

    #[test]
    fn who_was_cloned_is_nobodys_alone_any_more() {
        let (_buffer, mut slice) = received(b"abcdef");
        let mut part = slice.subslice(1..3).unwrap();
        assert!(slice.get_mut().is_none() && part.get_mut().is_none());
        // Nor are the parts of it, and the one that is left.
        let mut front = slice.split_to(2).unwrap();
        drop(part);
        assert!(slice.get_mut().is_none() && front.get_mut().is_none());
    }

    #[test]
    fn pieces_that_meet_again_are_shared_if_one_is() {
        for shared in [None, Some(0), Some(1)] {
            let (_buffer, mut second) = received(b"abcdef");
            let pieces = [second.split_to(3).unwrap(), second];
            let clone = shared.map(|piece: usize| pieces[piece].clone());
            let mut buffer = LinkBuffer::new();
            let [first, second] = pieces;
            buffer.adopt(first);
            buffer.adopt(second);
            let mut whole = buffer.next(6).unwrap();
            assert_eq!(whole.get_mut().is_some(), clone.is_none(), "{shared:?}");
        }
    }

    #[test]
    fn what_is_still_in_a_chain_can_be_cloned_from_there() {
        let (mut buffer, slice) = received(b"abcdef");
        buffer.adopt(slice);
        let mut chain = Chain::new();
        buffer.drain_into(&mut chain);
        let clone = chain.first().cloned();
        buffer.adopt_chain(&mut chain);
        let mut slice = buffer.next(6).unwrap();
        assert!(slice.get_mut().is_none());
        assert_eq!(clone.as_deref(), Some(&b"abcdef"[..]));
    }

    #[test]
    fn memory_from_outside_is_not_to_be_changed() {
        assert!(Slice::from("text").get_mut().is_none());
        assert!(Slice::from(vec![1, 2]).get_mut().is_none());
        assert!(Slice::empty().get_mut().is_none());
    }

    #[test]
    fn a_copy_of_pieces_is_its_owners() {
        let mut buffer = of_pieces(&["ab", "cd", "ef"]);
        let mut whole = buffer.next(5).unwrap();
        whole.get_mut().unwrap()[0] = b'x';
        assert_eq!((&*whole, text(&mut buffer)), (&b"xbcde"[..], "f".into()));
    }

    #[test]
    fn what_is_written_with_a_function_is_taken_as_far_as_it_says() {
        let mut buffer = LinkBuffer::with_pool(pool());
        for (room, written) in [(0, 0), (10, 0), (10, 4), (100_000, 100_000), (5, 9)] {
            let taken = buffer.write_with(room, |bytes| {
                assert!(bytes.len() == room && bytes.iter().all(|byte| *byte == 0));
                bytes.fill(7);
                written
            });
            assert_eq!(taken, Ok(written.min(room)));
        }
        buffer.flush();
        assert_eq!(buffer.len(), 4 + 100_000 + 5);
        assert!(buffer.chunks().flatten().all(|byte| *byte == 7));
    }
}
