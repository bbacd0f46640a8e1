//! LinkBuffer next to `BytesMut`, `VecDeque<u8>` and a `Vec<u8>` with a cursor.
//!
//! `cargo bench -p duopoll-benches --bench linkbuffer`

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duopoll_core::seam::BufferSeam;
use duopoll_core::{IO_VECTORS_MAX, LinkBuffer, Slice};
use libc::iovec;

const BLOCK_BYTES: usize = 4096;
const FIELD_BYTES: usize = 16;
const FIELDS: usize = BLOCK_BYTES / FIELD_BYTES;

fn one_block() -> LinkBuffer {
    let mut buffer = LinkBuffer::new();
    buffer.write(&[7; BLOCK_BYTES]).expect("memory");
    buffer.flush();
    buffer
}

/// 256 fields of 16 bytes out of one block of 4 KiB. Each is owned where the type can do that, then dropped.
fn small_fields(c: &mut Criterion) {
    let mut group = c.benchmark_group("256 fields of 16 bytes, one block");
    group.throughput(Throughput::Elements(FIELDS as u64));
    group.bench_function("LinkBuffer::next", |b| {
        b.iter_batched_ref(
            one_block,
            |buffer| {
                for _ in 0..FIELDS {
                    black_box(buffer.next(FIELD_BYTES).expect("bytes"));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("LinkBuffer::peek+skip", |b| {
        b.iter_batched_ref(
            one_block,
            |buffer| {
                for _ in 0..FIELDS {
                    black_box(buffer.peek(FIELD_BYTES).expect("bytes"));
                    buffer.skip(FIELD_BYTES).expect("bytes");
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("BytesMut::split_to", |b| {
        b.iter_batched_ref(
            || BytesMut::from(&[7; BLOCK_BYTES][..]),
            |bytes| {
                for _ in 0..FIELDS {
                    black_box(bytes.split_to(FIELD_BYTES));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("VecDeque::drain", |b| {
        b.iter_batched_ref(
            || VecDeque::from(vec![7; BLOCK_BYTES]),
            |bytes| {
                for _ in 0..FIELDS {
                    black_box(bytes.drain(..FIELD_BYTES).collect::<Vec<u8>>());
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("Vec with cursor, copied", |b| {
        b.iter_batched_ref(
            || vec![7; BLOCK_BYTES],
            |bytes| {
                let mut at = 0;
                for _ in 0..FIELDS {
                    black_box(bytes[at..at + FIELD_BYTES].to_vec());
                    at += FIELD_BYTES;
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Messages of 100 bytes out of blocks of 4 KiB that they do not fit evenly, as they come from a socket.
fn across_blocks(c: &mut Criterion) {
    const BLOCKS: usize = 16;
    const MESSAGE_BYTES: usize = 100;
    const MESSAGES: usize = BLOCKS * BLOCK_BYTES / MESSAGE_BYTES;
    let block = [7; BLOCK_BYTES];
    let mut group = c.benchmark_group("655 messages of 100 bytes, across blocks of 4 KiB");
    group.throughput(Throughput::Bytes((BLOCKS * BLOCK_BYTES) as u64));
    group.bench_function("LinkBuffer", |b| {
        let mut buffer = LinkBuffer::new();
        b.iter(|| {
            for _ in 0..BLOCKS {
                buffer.adopt(Slice::copy_from(&block, buffer.pool()).expect("memory"));
            }
            for _ in 0..MESSAGES {
                black_box(buffer.next(MESSAGE_BYTES).expect("bytes"));
            }
            buffer.skip(buffer.len()).expect("bytes");
        });
    });
    group.bench_function("BytesMut", |b| {
        let mut bytes = BytesMut::new();
        b.iter(|| {
            for _ in 0..BLOCKS {
                bytes.extend_from_slice(&block);
            }
            for _ in 0..MESSAGES {
                black_box(bytes.split_to(MESSAGE_BYTES));
            }
            bytes.clear();
        });
    });
    group.bench_function("VecDeque, copied out", |b| {
        let mut bytes = VecDeque::new();
        b.iter(|| {
            for _ in 0..BLOCKS {
                bytes.extend(&block);
            }
            for _ in 0..MESSAGES {
                black_box(bytes.drain(..MESSAGE_BYTES).collect::<Vec<u8>>());
            }
            bytes.clear();
        });
    });
    group.bench_function("Vec with cursor, copied out", |b| {
        let mut bytes = Vec::new();
        b.iter(|| {
            let mut at = 0;
            for _ in 0..BLOCKS {
                bytes.extend_from_slice(&block);
            }
            for _ in 0..MESSAGES {
                black_box(bytes[at..at + MESSAGE_BYTES].to_vec());
                at += MESSAGE_BYTES;
            }
            bytes.clear();
        });
    });
    group.finish();
}

/// A message of 1 KiB from 10 fields, 4 of them numbers; then all of it is handed to the kernel and dropped.
fn build_and_send(c: &mut Criterion) {
    let field = [7; 166];
    let mut group = c.benchmark_group("build and send 1 KiB of 10 fields");
    group.bench_function("LinkBuffer", |b| {
        let mut buffer = LinkBuffer::new();
        let nothing = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = [nothing; 16];
        b.iter(|| {
            for number in 0..4 {
                buffer.put_u64(number);
            }
            for _ in 0..6 {
                buffer.write(&field).expect("memory");
            }
            buffer.flush();
            let (count, bytes) = buffer.lend_readable(&mut vectors);
            black_box(&vectors[..count]);
            buffer.skip(bytes).expect("bytes");
        });
    });
    group.bench_function("BytesMut", |b| {
        let mut bytes = BytesMut::with_capacity(BLOCK_BYTES);
        b.iter(|| {
            for number in 0..4 {
                bytes.put_u64(number);
            }
            for _ in 0..6 {
                bytes.put_slice(&field);
            }
            let message = bytes.split().freeze();
            black_box(&message[..]);
        });
    });
    group.bench_function("VecDeque", |b| {
        let mut bytes = VecDeque::new();
        b.iter(|| {
            for number in 0..4_u64 {
                bytes.extend(number.to_be_bytes());
            }
            for _ in 0..6 {
                bytes.extend(&field);
            }
            black_box(bytes.as_slices());
            bytes.advance(bytes.len());
        });
    });
    group.bench_function("Vec", |b| {
        let mut bytes = Vec::new();
        b.iter(|| {
            for number in 0..4 {
                bytes.put_u64(number);
            }
            for _ in 0..6 {
                bytes.put_slice(&field);
            }
            black_box(&bytes[..]);
            bytes.clear();
        });
    });
    group.finish();
}

/// A whole buffer onto another one, made of pieces of 64 KiB at most.
fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("append");
    for bytes in [1 << 10, 1 << 20, 1 << 30] {
        let piece = Bytes::from(vec![7; bytes.min(64 << 10)]);
        group.bench_with_input(BenchmarkId::new("LinkBuffer", bytes), &bytes, |b, &bytes| {
            let mut full = LinkBuffer::new();
            while full.len() < bytes {
                full.adopt(piece.clone());
            }
            let mut empty = LinkBuffer::new();
            b.iter(|| {
                empty.append(&mut full);
                empty.flush();
                std::mem::swap(&mut empty, &mut full);
            });
        });
    }
    group.finish();
}

/// 64 pieces of 1 MiB, owned, collected and lent to the kernel.
fn push_large(c: &mut Criterion) {
    let piece = Bytes::from(vec![7; 1 << 20]);
    let mut group = c.benchmark_group("64 owned pieces of 1 MiB");
    group.sample_size(20);
    group.bench_function("LinkBuffer::push", |b| {
        let mut buffer = LinkBuffer::new();
        let nothing = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut vectors = [nothing; IO_VECTORS_MAX];
        b.iter(|| {
            for _ in 0..64 {
                buffer.push(piece.clone());
            }
            buffer.flush();
            black_box(buffer.lend_readable(&mut vectors));
            buffer.skip(buffer.len()).expect("bytes");
        });
    });
    group.bench_function("BytesMut", |b| {
        let mut bytes = BytesMut::new();
        b.iter(|| {
            for _ in 0..64 {
                bytes.extend_from_slice(&piece);
            }
            black_box(&bytes[..]);
            bytes.clear();
        });
    });
    group.finish();
}

/// 1,024 slices of 64 bytes go to another thread, which drops them.
fn drop_elsewhere(c: &mut Criterion) {
    const SLICES: usize = 1024;
    let mut group = c.benchmark_group("1,024 slices of 64 bytes, dropped on another thread");
    group.throughput(Throughput::Elements(SLICES as u64));
    group.bench_function("LinkBuffer", |b| {
        let mut buffer = LinkBuffer::new();
        in_step(b, move || {
            buffer.write(&[7; SLICES * 64]).expect("memory");
            buffer.flush();
            (0..SLICES).map(|_| buffer.next(64).expect("bytes")).collect::<Vec<_>>()
        });
    });
    group.bench_function("BytesMut", |b| {
        let mut bytes = BytesMut::new();
        in_step(b, move || {
            bytes.extend_from_slice(&[7; SLICES * 64]);
            (0..SLICES).map(|_| bytes.split_to(64)).collect::<Vec<_>>()
        });
    });
    group.finish();
}

/// Times `make` with its result dropped on another thread, at most four results behind.
fn in_step<T: Send + 'static>(b: &mut criterion::Bencher<'_>, mut make: impl FnMut() -> T) {
    let (sender, receiver) = mpsc::sync_channel::<T>(4);
    let elsewhere = thread::spawn(move || receiver.into_iter().for_each(drop));
    b.iter(|| sender.send(make()).expect("the other thread lives"));
    drop(sender);
    elsewhere.join().expect("no panic");
}

criterion_group!(
    benches,
    small_fields,
    across_blocks,
    build_and_send,
    append,
    push_large,
    drop_elsewhere
);
criterion_main!(benches);
