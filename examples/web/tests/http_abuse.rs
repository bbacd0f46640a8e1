//! Clients that mean no good: what they cost has a bound, they are sent away, and others are served. The server is the example's, in
//! a process of its own, so that its memory can be seen.

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use duopoll::Address;
use support::process::Process;
use support::{PATIENCE, eventually};

macro_rules! on_both {
    ($($name:ident,)*) => {$(
        mod $name {
            #[test]
            fn on_epoll() {
                super::$name(&super::Site::start("epoll"));
            }

            #[test]
            fn on_uring() {
                super::$name(&super::Site::start("uring"));
            }
        }
    )*};
}

on_both!(
    heads_that_come_byte_by_byte,
    bodies_that_do_not_come,
    a_head_without_end,
    too_many_heads,
    a_chunk_without_end,
    streams_that_are_reset_at_once,
    a_head_of_continuations,
    settings_and_pings_that_are_not_read,
    streams_without_end_and_none_read,
    garbage_instead_of_frames,
);

/// What a server may hold for bad clients, in bytes.
const MEMORY_BYTES_MAX: usize = 48 << 20;

/// For a stream: what waits to be sent, and the piece that comes next.
const STREAM_BYTES_MAX: usize = 192 << 10;

struct Site(Process);

impl Site {
    fn start(engine: &str) -> Site {
        let mut command = Command::new(env!("CARGO_BIN_EXE_http"));
        command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
        Site(Process::start(command))
    }

    fn connect(&self) -> TcpStream {
        let Address::Tcp(address) = &self.0.address else { panic!("a TCP address") };
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    /// Others are served, at once, and the memory has a bound.
    fn goes_on(&self) {
        self.goes_on_within(MEMORY_BYTES_MAX);
    }

    fn goes_on_within(&self, memory_bytes_max: usize) {
        let mut peer = self.connect();
        peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
        let mut reply = String::new();
        peer.read_to_string(&mut reply).expect("a reply");
        assert!(reply.ends_with("hello\n"), "{reply}");
        let resident = self.0.resident_bytes();
        assert!(resident < memory_bytes_max, "{resident} bytes of memory");
    }

    fn speak_h2(&self) -> TcpStream {
        let mut peer = self.connect();
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        peer.write_all(&frame(SETTINGS, 0, 0, &[])).expect("sent");
        peer
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /` over `http`, by the static table, of a host.
const GET: &[u8] = b"\x82\x84\x86\x41\x01x";
/// The same of `/count/1000000000`, which has no end soon.
const GET_MUCH: &[u8] = b"\x82\x86\x41\x01x\x04\x11/count/1000000000";

/// Reads frames to the end, and gives the kinds of them; an end by a reset is one, too.
fn kinds_to_the_end(peer: &mut TcpStream) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut header = [0; 9];
    loop {
        match peer.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => panic!("no end"),
            Err(_) => return kinds,
        }
        kinds.push(header[3]);
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        if io::copy(&mut peer.take(u64::from(length)), &mut io::sink()).is_err() {
            return kinds;
        }
    }
}

/// Writes so much, or until it is refused: whoever is sent away is listened to for a moment more, so that it gets the reply.
fn flood(peer: &mut TcpStream, piece: &[u8], bytes: usize) {
    let mut written = 0;
    while written < bytes {
        match peer.write(piece) {
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("neither taken nor refused")
            }
            Err(_) => return,
        }
    }
}

/// Floods a server, and gives what it replies.
fn reply_to_flood(peer: &mut TcpStream, piece: &[u8], bytes: usize) -> String {
    let mut reads = peer.try_clone().expect("a descriptor");
    let replies = thread::spawn(move || {
        let mut reply = Vec::new();
        let _ = reads.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    });
    flood(peer, piece, bytes);
    let _ = peer.shutdown(Shutdown::Write);
    replies.join().expect("no panic")
}

const GIBIBYTE: usize = 1 << 30;
const MUCH: usize = 64 << 20;

fn heads_that_come_byte_by_byte(site: &Site) {
    let mut slow: Vec<_> = (0..300).map(|_| site.connect()).collect();
    for byte in b"GET / HTTP/1.1\r\n" {
        for peer in &mut slow {
            peer.write_all(&[*byte]).expect("sent");
        }
        site.goes_on();
    }
}

fn bodies_that_do_not_come(site: &Site) {
    let head = b"PUT /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\nhalf";
    let mut peers: Vec<_> = (0..300).map(|_| site.connect()).collect();
    for peer in &mut peers {
        peer.write_all(head).expect("sent");
    }
    site.goes_on();
    // One after the other goes: with a reset, or without.
    for (number, peer) in peers.into_iter().enumerate() {
        if number % 2 == 0 {
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("a socket");
        }
    }
    eventually("their descriptors are free", || site.0.open_descriptors() < 100);
    site.goes_on();
}

fn a_head_without_end(site: &Site) {
    let mut peer = site.connect();
    peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ").expect("sent");
    let reply = reply_to_flood(&mut peer, &[b'x'; 64 << 10], GIBIBYTE);
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    site.goes_on();
}

fn too_many_heads(site: &Site) {
    let mut peer = site.connect();
    peer.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").expect("sent");
    let reply = reply_to_flood(&mut peer, &b"a: b\r\n".repeat(10_000), MUCH);
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    site.goes_on();
}

fn a_chunk_without_end(site: &Site) {
    let head = b"PUT /upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;";
    let mut peer = site.connect();
    peer.write_all(head).expect("sent");
    let reply = reply_to_flood(&mut peer, &[b'e'; 64 << 10], MUCH);
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    site.goes_on();
}

/// CVE-2023-44487: whoever does it is sent away, or has at least what was begun for it ended.
fn streams_that_are_reset_at_once(site: &Site) {
    let mut peer = site.speak_h2();
    let mut reads = peer.try_clone().expect("a descriptor");
    let kinds = thread::spawn(move || kinds_to_the_end(&mut reads));
    for number in 0..100_000 {
        let stream = 1 + 2 * number;
        let get = frame(HEADERS, END_HEADERS | END_STREAM, stream, GET_MUCH);
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        if peer.write_all(&[get, reset].concat()).is_err() {
            break;
        }
    }
    site.goes_on();
    let _ = peer.shutdown(Shutdown::Write);
    kinds.join().expect("no panic");
    eventually("it is gone", || site.0.open_descriptors() < 30);
}

/// CVE-2024-27316 and others of its year.
fn a_head_of_continuations(site: &Site) {
    let mut peer = site.speak_h2();
    let mut reads = peer.try_clone().expect("a descriptor");
    let kinds = thread::spawn(move || kinds_to_the_end(&mut reads));
    peer.write_all(&frame(HEADERS, 0, 1, GET)).expect("sent");
    // Headers that are not in the table, and do not go into it.
    let header = [&b"\x00\x01a\x7f\x81\x3e"[..], &[b'x'; 8_000]].concat();
    flood(&mut peer, &frame(CONTINUATION, 0, 1, &header), MUCH);
    assert!(kinds.join().expect("no panic").contains(&GOAWAY));
    site.goes_on();
}

/// Each has to be answered, and the answers stay.
fn settings_and_pings_that_are_not_read(site: &Site) {
    for kind in [SETTINGS, PING] {
        let mut peer = site.speak_h2();
        let payload: &[u8] = if kind == PING { &[0; 8] } else { &[0, 3, 0, 0, 0, 100] };
        let piece = frame(kind, 0, 0, payload).repeat(1000);
        peer.set_nonblocking(true).expect("a socket");
        // Until it takes no more of them.
        let (mut refusals, mut written) = (0, 0);
        while refusals < 200 && written < MUCH {
            match peer.write(&piece) {
                Ok(n) => (refusals, written) = (0, written + n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    refusals += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                Err(_) => break,
            }
        }
        site.goes_on();
    }
}

fn streams_without_end_and_none_read(site: &Site) {
    let mut peers: Vec<_> = (0..10).map(|_| site.speak_h2()).collect();
    for peer in &mut peers {
        // As large a window as can be.
        let windows = [0, 4, 0x7f, 0xff, 0xff, 0xff];
        peer.write_all(&frame(SETTINGS, 0, 0, &windows)).expect("sent");
        peer.write_all(&frame(8, 0, 0, &0x7f00_0000_u32.to_be_bytes())).expect("sent");
        for number in 0..100 {
            let get = frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, GET_MUCH);
            peer.write_all(&get).expect("sent");
        }
    }
    // Each stream has its bound, and these are a thousand.
    for _ in 0..20 {
        site.goes_on_within(1000 * STREAM_BYTES_MAX);
        thread::sleep(Duration::from_millis(10));
    }
    drop(peers);
    eventually("they are gone", || site.0.open_descriptors() < 30);
}

fn garbage_instead_of_frames(site: &Site) {
    let wrong = [
        frame(HEADERS, END_HEADERS, 2, GET),
        frame(DATA, 0, 0, b"of no stream"),
        frame(HEADERS, END_HEADERS, 1, &[0xff; 100]),
        frame(SETTINGS, 0, 1, &[0; 6]),
        frame(PING, 0, 0, &[0; 7]),
        frame(0xfa, 0xff, u32::MAX, &[0xff; 200]).repeat(3),
        vec![0xff; 1000],
    ];
    for garbage in &wrong {
        let mut peer = site.speak_h2();
        peer.write_all(garbage).expect("sent");
        peer.shutdown(Shutdown::Write).expect("a socket");
        kinds_to_the_end(&mut peer);
    }
    // And instead of the rest of a preface.
    let mut peer = site.connect();
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").expect("sent");
    let _ = peer.read_to_end(&mut Vec::new());
    site.goes_on();
}
