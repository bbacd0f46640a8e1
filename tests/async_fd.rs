//! Descriptors of other kinds on the pollers.

mod support;

use std::fs::File;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use duopoll::task::{spawn_local, yield_now};
use duopoll::{AsyncFd, Engine, Pollers, time};
use pollster::block_on;
use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use support::{Random, eventually, open_descriptors};

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod epoll { $(#[test] fn $name() { super::$name(&super::pollers(super::Engine::Epoll)); })* }
        mod uring { $(#[test] fn $name() { super::$name(&super::pollers(super::Engine::Uring)); })* }
    };
}

on_both_engines!(
    a_pipe_is_read_and_written,
    what_ends_is_told,
    a_dropped_wait_loses_nothing,
    timers_and_counters_wake,
    a_child_is_read,
    files_are_refused,
    a_poller_that_ends_says_so,
    nothing_is_left_behind,
    it_may_be_used_elsewhere,
    both_directions_wait_at_once,
);

fn pollers(engine: Engine) -> Pollers {
    Pollers::options().engine(engine).start().expect("pollers")
}

/// Runs something on a poller, and waits for it.
fn run<F, T>(pollers: &Pollers, make: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    block_on(pollers.spawn(make)).expect("it ends")
}

/// What is written to the second is read from the first.
fn pipe() -> (File, File) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    (reader.into(), writer.into())
}

async fn pipes() -> (AsyncFd<File>, AsyncFd<File>) {
    let (reader, writer) = pipe();
    (AsyncFd::new(reader).await.expect("watched"), AsyncFd::new(writer).await.expect("watched"))
}

async fn read_exact(reader: &mut AsyncFd<File>, bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let n = reader.read_with(|pipe| pipe.read(&mut bytes[filled..])).await.expect("read");
        assert_ne!(n, 0, "an end");
        filled += n;
    }
}

fn a_pipe_is_read_and_written(pollers: &Pollers) {
    // More than a pipe holds.
    const BYTES: usize = 1 << 20;
    run(pollers, || async {
        let (mut reader, mut writer) = pipes().await;
        let writes = spawn_local(async move {
            let mut random = Random::new(7);
            let mut sent = 0;
            while sent < BYTES {
                let piece: Vec<u8> =
                    (sent..BYTES).take(random.length(100_000)).map(|at| at as u8).collect();
                sent += writer.write_with(|pipe| pipe.write(&piece)).await.expect("written");
            }
        });
        let mut bytes = vec![0; BYTES];
        read_exact(&mut reader, &mut bytes).await;
        writes.await.expect("it ends");
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    });
}

fn what_ends_is_told(pollers: &Pollers) {
    run(pollers, || async {
        let (mut reader, writer) = pipes().await;
        let ends = spawn_local(async move {
            time::sleep(Duration::from_millis(5)).await;
            drop(writer);
        });
        let n = reader.read_with(|pipe| pipe.read(&mut [0; 8])).await.expect("an end");
        assert_eq!(n, 0);
        ends.await.expect("it ends");

        let (reader, mut writer) = pipes().await;
        drop(reader);
        // When its poller has let go, too.
        let error = loop {
            match writer.write_with(|pipe| pipe.write(b"x")).await {
                Ok(_) => yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    });
}

fn a_dropped_wait_loses_nothing(pollers: &Pollers) {
    run(pollers, || async {
        let (mut reader, mut writer) = pipes().await;
        for number in 0..100_u8 {
            let wait = reader.read_with(|pipe| pipe.read(&mut [0; 8]));
            assert!(time::timeout(Duration::ZERO, wait).await.is_err());
            writer.write_with(|pipe| pipe.write(&[number])).await.expect("written");
            let mut byte = [0];
            read_exact(&mut reader, &mut byte).await;
            assert_eq!(byte, [number]);
        }
    });
}

fn timers_and_counters_wake(pollers: &Pollers) {
    run(pollers, || async {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer");
        let soon = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let time = Itimerspec { it_interval: soon, it_value: soon };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &time).expect("set");
        let mut timer = AsyncFd::new(timer).await.expect("watched");
        let count = |fd: &mut OwnedFd| {
            let mut count = [0; 8];
            rustix::io::read(&*fd, &mut count)?;
            Ok(u64::from_ne_bytes(count))
        };
        let mut seen = 0;
        while seen < 5 {
            seen += timer.read_with(count).await.expect("a time");
        }
        let counter = eventfd(0, EventfdFlags::CLOEXEC).expect("a counter");
        let other = counter.try_clone().expect("a descriptor");
        let mut counter = AsyncFd::new(counter).await.expect("watched");
        for _ in 0..20 {
            let again = other.try_clone().expect("a descriptor");
            let adds = thread::spawn(move || {
                rustix::io::write(&again, &1_u64.to_ne_bytes()).expect("added")
            });
            assert_eq!(counter.read_with(count).await.expect("a count"), 1);
            adds.join().expect("no panic");
        }
    });
}

fn a_child_is_read(pollers: &Pollers) {
    run(pollers, || async {
        let mut child = Command::new("sh");
        child.args(["-c", "echo one; read word; echo $word"]);
        let mut child =
            child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child");
        let mut output = AsyncFd::new(child.stdout.take().expect("piped")).await.expect("watched");
        let mut input = AsyncFd::new(child.stdin.take().expect("piped")).await.expect("watched");
        let mut text = [0; 8];
        let n = output.read_with(|pipe| pipe.read(&mut text)).await.expect("read");
        assert_eq!(&text[..n], b"one\n");
        input.write_with(|pipe| pipe.write(b"two\n")).await.expect("written");
        let n = output.read_with(|pipe| pipe.read(&mut text)).await.expect("read");
        assert_eq!(&text[..n], b"two\n");
        assert_eq!(output.read_with(|pipe| pipe.read(&mut text)).await.expect("an end"), 0);
        assert!(child.wait().expect("a child").success());
    });
}

fn files_are_refused(pollers: &Pollers) {
    run(pollers, || async {
        for path in ["/proc/self/exe", "/", "/dev/null", "/dev/zero"] {
            let file = File::open(path).expect("a file");
            let error = AsyncFd::new(file).await.expect_err("always ready");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{path}");
        }
    });
}

fn a_poller_that_ends_says_so(pollers: &Pollers) {
    let (waits, _keeps) = pipe();
    let mut waits = run(pollers, || async { AsyncFd::new(waits).await.expect("watched") });
    let waiting = thread::spawn(move || block_on(waits.read_with(|pipe| pipe.read(&mut [0; 8]))));
    pollers.stop();
    let error = waiting.join().expect("no panic").expect_err("it has ended");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

fn nothing_is_left_behind(pollers: &Pollers) {
    pollers.settle();
    let before = open_descriptors();
    run(pollers, || async {
        for _ in 0..100 {
            let (mut reader, writer) = pipes().await;
            let wait = reader.read_with(|pipe| pipe.read(&mut [0; 8]));
            assert!(time::timeout(Duration::ZERO, wait).await.is_err());
            drop((reader, writer));
        }
    });
    eventually("all is closed", || open_descriptors() <= before);
}

fn it_may_be_used_elsewhere(pollers: &Pollers) {
    let (mut reader, mut writer) = run(pollers, pipes);
    let reads = thread::spawn(move || {
        block_on(async {
            let mut byte = [0];
            for number in 0..100_u8 {
                read_exact(&mut reader, &mut byte).await;
                assert_eq!(byte, [number]);
            }
        });
    });
    for number in 0..100_u8 {
        block_on(writer.write_with(|pipe| pipe.write(&[number]))).expect("written");
    }
    reads.join().expect("no panic");
}

fn both_directions_wait_at_once(pollers: &Pollers) {
    run(pollers, || async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let mut ours = AsyncFd::new(ours).await.expect("watched");
        // Until there is no room.
        let (mut sent, mut done) = (0, false);
        while !done {
            let write = ours.write_with(|socket| socket.write(&[1; 4096]));
            match time::timeout(Duration::from_millis(20), write).await {
                Ok(n) => sent += n.expect("written"),
                Err(_) => done = true,
            }
        }
        let other = thread::spawn(move || {
            theirs.write_all(b"x").expect("written");
            let mut all = vec![0; sent];
            theirs.read_exact(&mut all).expect("read");
            theirs.read_exact(&mut [0]).expect("one more");
        });
        let (mut read, mut written) = (false, false);
        poll_fn(|cx| {
            if !read {
                read = ours.poll_read_with(cx, |socket| socket.read(&mut [0; 8])).is_ready();
            }
            if !written {
                written = ours.poll_write_with(cx, |socket| socket.write(b"y")).is_ready();
            }
            if read && written { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        other.join().expect("no panic");
    });
}
