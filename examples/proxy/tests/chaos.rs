//! Resets, stalls, half-closes, and an upstream that comes and goes, all at once. Whatever arrives is what was sent, from its first
//! byte on without a gap; what ends in peace is complete; and nothing is left behind.
//!
//! For so many seconds an engine as the environment variable `CHAOS_SECONDS` says, or 5.

mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{ENGINES, Family, Proxy, Stream, eventually, nowhere, upstream};

const CLIENTS: u64 = 16;
const BYTES_MAX: u64 = 1 << 20;
/// How long somebody stalls, at most.
const STALL_MS: u64 = 30;
/// What pollers hold for themselves: io_uring has buffers that the kernel chooses from.
const HELD_BYTES_MAX: u64 = 4 << 20;
/// Bytes by which a client says what is to happen.
const ORDER_BYTES: usize = 26;

/// splitmix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What a client and its upstream are to do. Each sends its bytes; one may reset after some of them.
#[derive(Clone, Copy, Debug)]
struct Order {
    seed: u64,
    there: u64,
    back: u64,
    /// Who resets, if somebody does: 1 the client, 2 the upstream.
    resets: u8,
    /// Who stalls: a bit for each.
    stalls: u8,
}

impl Order {
    fn random(random: &mut Random) -> Order {
        // Most of them are small.
        let mut length = || (1 << random.below(21)).min(BYTES_MAX) - 1 + random.below(3);
        let (there, back) = (length(), length());
        let resets = [0, 0, 0, 1, 2][random.below(5) as usize];
        let stalls = [0, 0, 0, 1, 2, 3][random.below(6) as usize];
        Order { seed: random.next(), there, back, resets, stalls }
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ORDER_BYTES);
        for number in [self.seed, self.there, self.back] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend([self.resets, self.stalls]);
        bytes
    }

    fn read(stream: &mut Stream) -> io::Result<Order> {
        let mut bytes = [0; ORDER_BYTES];
        stream.read_exact(&mut bytes)?;
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let (seed, there, back) = (number(0), number(8), number(16));
        Ok(Order { seed, there, back, resets: bytes[24], stalls: bytes[25] })
    }
}

/// The byte at a place of a stream that is named by its seed.
fn byte(seed: u64, at: u64) -> u8 {
    (seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 56) as u8
}

/// One end: sends so many bytes of one stream, and checks those of another. An error if the other end has reset, or this one, and how
/// many bytes had come by then.
fn converse(
    stream: Stream,
    (sent, bytes): (u64, u64),
    (expected, bytes_expected): (u64, u64),
    resets: bool,
    stalls: bool,
) -> Result<(), (u64, io::Error)> {
    let mut sender = stream.try_clone();
    let stop_at = if resets { bytes / 2 } else { bytes };
    let sends = thread::spawn(move || {
        let mut at = 0;
        while at < stop_at {
            let end = (at + 40_000).min(stop_at);
            let piece: Vec<u8> = (at..end).map(|at| byte(sent, at)).collect();
            sender.write_all(&piece)?;
            at = end;
        }
        if !resets {
            sender.finish();
        }
        io::Result::Ok(())
    });
    if resets {
        let sent = sends.join().expect("no panic");
        stream.reset();
        return sent.map_err(|error| (0, error));
    }
    let mut stream = stream;
    if stalls {
        thread::sleep(Duration::from_millis(sent % STALL_MS));
    }
    let (mut buffer, mut at) = (vec![0; 30_000], 0);
    let received = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => {
                for &seen in &buffer[..n] {
                    assert_eq!(seen, byte(expected, at), "byte {at} of {bytes_expected}");
                    at += 1;
                }
            }
            Err(error) => break Err(error),
        }
    };
    let sent = sends.join().expect("no panic");
    received.and(sent).map_err(|error| (at, error))?;
    assert_eq!(at, bytes_expected, "an end before all has come");
    Ok(())
}

/// Whether the other end has gone, which it was told to.
fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn serve(mut stream: Stream) {
    let Ok(order) = Order::read(&mut stream) else { return };
    let Order { seed, there, back, resets, stalls } = order;
    let result = converse(stream, (!seed, back), (seed, there), resets == 2, stalls & 2 != 0);
    if let Err((_, error)) = result {
        assert!(resets != 0 && is_reset(&error), "{order:?}: {error}");
    }
}

/// False if it was cut off by an upstream that has gone before it has seen it.
fn client(address: &str, order: Order) -> bool {
    let Order { seed, there, back, resets, stalls } = order;
    let mut stream = Stream::connect(address);
    let ordered = stream.write_all(&order.to_bytes()).map_err(|error| (0, error));
    let result = ordered.and_then(|()| {
        converse(stream, (seed, there), (!seed, back), resets == 1, stalls & 1 != 0)
    });
    match result {
        Ok(()) => assert!(resets != 2, "{order:?}: no reset has come over"),
        Err((0, error)) if resets == 0 && is_reset(&error) => return false,
        Err((_, error)) => assert!(resets != 0 && is_reset(&error), "{order:?}: {error}"),
    }
    true
}

/// An upstream at a fixed address that comes and goes.
fn comes_and_goes(address: SocketAddr, over: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut times = 0;
        while !over.load(Ordering::Relaxed) {
            let listener = TcpListener::bind(address).expect("bound");
            listener.set_nonblocking(true).expect("a socket");
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(300) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).expect("a socket");
                        thread::spawn(move || serve(Stream::Tcp(stream)));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
            // With it whoever is in the queue by now.
            drop(listener);
            times += 1;
            thread::sleep(Duration::from_millis(100));
        }
        times
    })
}

#[test]
fn whatever_happens_no_byte_is_lost() {
    let seconds = std::env::var("CHAOS_SECONDS").map_or(5, |text| text.parse().expect("seconds"));
    for engine in ENGINES {
        let (one, two) = (upstream(Family::V4, serve), upstream(Family::V6, serve));
        let (three, over) = (nowhere(), Arc::new(AtomicBool::new(false)));
        let comes_and_goes = comes_and_goes(three.parse().expect("an address"), over.clone());
        let proxy = Proxy::start(&format!(
            "--engine {engine} --pollers 2 --listen 127.0.0.1:0 --upstream {one} --upstream {two} --upstream {three} \
             --admin 127.0.0.1:0 --health-interval 0.05 --balance random --eject-after 0"
        ));
        let sockets = || {
            let path = format!("/proc/{}/fd", proxy.pid());
            let descriptors = std::fs::read_dir(path).expect("procfs").flatten();
            // Each poller keeps some pipes for what comes.
            let is_socket = |target: &PathBuf| target.to_string_lossy().starts_with("socket:");
            let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            targets.filter(is_socket).count()
        };
        let before = sockets();
        let (end, conversations) =
            (Instant::now() + Duration::from_secs(seconds), AtomicU64::new(0));
        let cut_off = AtomicU64::new(0);
        thread::scope(|scope| {
            for number in 0..CLIENTS {
                let (address, conversations, cut_off) =
                    (&proxy.addresses[0], &conversations, &cut_off);
                scope.spawn(move || {
                    let mut random = Random(number);
                    while Instant::now() < end {
                        if !client(address, Order::random(&mut random)) {
                            cut_off.fetch_add(1, Ordering::Relaxed);
                        }
                        conversations.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(conversations.load(Ordering::Relaxed) > CLIENTS);
        eventually("all have left", || {
            [&one, &two, &three].iter().all(|upstream| {
                let name = format!("proxy_upstream_active{{upstream=\"{upstream}\"}}");
                Proxy::figure(proxy.admin(), &name) == 0
            })
        });
        eventually("nothing is open any more", || sockets() <= before);
        eventually("no memory is held", || {
            Proxy::figure(proxy.admin(), "duopoll_pollers_memory_held_bytes") <= HELD_BYTES_MAX
        });
        over.store(true, Ordering::Relaxed);
        let times = comes_and_goes.join().expect("no panic");
        let (conversations, cut_off) = (conversations.into_inner(), cut_off.into_inner());
        assert!(cut_off <= times * CLIENTS, "{cut_off} of {conversations} were cut off");
        println!(
            "{engine}: {conversations} conversations; {cut_off} were cut off in {times} times that one has gone"
        );
    }
}
