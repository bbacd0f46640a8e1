//! An address space that is used up: who asks for more than there is fails, and the others are served.

mod support;

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use duopoll::{Connection, Engine, Pool};
use support::{Family, Peer, Setup, eventually};

/// Limits are the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Peers that want more than all of them can have.
const GREEDY: usize = 40;
const ANNOUNCED_BYTES: u32 = 64 << 20;
const SENT_BYTES: usize = 3 << 20;

#[test]
fn epoll_serves_who_asks_for_little() {
    serves_who_asks_for_little(Engine::Epoll);
}

#[test]
fn uring_serves_who_asks_for_little() {
    serves_who_asks_for_little(Engine::Uring);
}

#[test]
fn epoll_has_room_where_memory_waits() {
    has_room_where_memory_waits(Engine::Epoll);
}

#[test]
fn uring_has_room_where_memory_waits() {
    has_room_where_memory_waits(Engine::Uring);
}

/// Blocks share mappings, which are larger than each.
#[test]
fn a_block_is_to_be_had_where_there_is_room_for_it_alone() {
    let _turn = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    for (bytes, mebibytes) in [(1 << 20, 3), (512 << 10, 1), (64 << 10, 1)] {
        let pool = Pool::new(duopoll::PoolConfig::default());
        let limited = Limited::more_by(mebibytes);
        let block = pool.allocate(bytes);
        drop(limited);
        let block = block.expect("there is room");
        assert!(block.capacity() >= bytes);
        drop(block);
        assert_eq!(pool.stats().live_bytes, 0);
        pool.trim();
        assert_eq!(pool.stats().pooled_bytes, 0);
    }
}

fn limit(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads a struct that is there.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

/// What is lifted when it is dropped, so that a panic has memory for its text.
struct Limited;

impl Limited {
    /// To so many MiB more than there are.
    fn more_by(mebibytes: libc::rlim_t) -> Limited {
        // Whatever thread begins meanwhile, the allocator reserves nothing for it.
        // SAFETY: sets a figure.
        assert_eq!(unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) }, 1);
        let used = std::fs::read_to_string("/proc/self/statm").expect("procfs");
        let pages = used.split(' ').next().expect("a figure").parse::<libc::rlim_t>();
        limit(pages.expect("a number") * 4096 + (mebibytes << 20));
        Limited
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        limit(libc::RLIM_INFINITY);
    }
}

fn asks_for_little(peer: &mut Peer) {
    peer.write_all(&[0, 0, 0, 1, 9]).expect("sent");
    let mut length = [0; 4];
    peer.read_exact(&mut length).expect("a reply");
    assert_eq!(length, [0, 0, 0, 1]);
}

fn serves_who_asks_for_little(engine: Engine) {
    let _turn = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let setup = Setup { engine, family: Family::V4 };
    let handler = async |connection: &mut Connection| {
        let length = connection.read_u32().await?;
        let body = connection.next(length as usize).await?;
        connection.write(&(body.len() as u32).to_be_bytes())?;
        connection.flush().await
    };
    let builder = setup.builder().message_bytes_max(1 << 30);
    let server = builder.on_request(handler).serve(setup.listener()).expect("a server");
    let before = Pool::global().stats().live_bytes;
    for mebibytes in [16, 64] {
        let mut old = Peer::connect(server.local_addr());
        asks_for_little(&mut old);
        let mut greedy: Vec<_> = (0..GREEDY).map(|_| Peer::connect(server.local_addr())).collect();
        let body = vec![1; SENT_BYTES];
        let limited = Limited::more_by(mebibytes);
        for peer in &mut greedy {
            peer.set_timeout(Duration::from_millis(100));
            // It may be cut off, or left waiting.
            let _ =
                peer.write_all(&ANNOUNCED_BYTES.to_be_bytes()).and_then(|()| peer.write_all(&body));
        }
        asks_for_little(&mut old);
        asks_for_little(&mut Peer::connect(server.local_addr()));
        drop(limited);
        drop(greedy);
        asks_for_little(&mut old);
        asks_for_little(&mut Peer::connect(server.local_addr()));
        drop(old);
        eventually("the memory comes back", || {
            Pool::global().stats().live_bytes <= before + (4 << 20)
        });
        assert_eq!(server.stats().failed_pollers, 0);
    }
}

/// What waits on a poller's thread for its next use is given back before a request of another size is refused.
fn has_room_where_memory_waits(engine: Engine) {
    let _turn = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let pollers = Setup { engine, family: Family::V4 }.pollers(1);
    let limited = Limited::more_by(96);
    let (tell, told) = mpsc::channel();
    pollers.spawn(async move || {
        let pool = Pool::global();
        let burst: Vec<_> = (0..1440).map_while(|_| pool.allocate(64 << 10).ok()).collect();
        drop(burst);
        let waits = pool.stats().pooled_bytes;
        let _ = tell.send((waits, pool.allocate(48 << 20).is_ok()));
    });
    let (waits, has_room) = told.recv().expect("told");
    drop(limited);
    assert!(waits >= 80 << 20, "{waits} bytes wait");
    assert!(has_room);
}
