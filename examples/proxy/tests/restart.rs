//! A new proxy in the place of an old one, while clients come and stay.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use duopoll::restart;
use support::{
    ENGINES, FAMILIES, Family, PATIENCE, Proxy, Stream, any, echo, eventually, listen, path,
    upstream,
};

const RESTARTS: usize = 5;
const LONG: usize = 10;

/// Keeps talking on a connection that was there before, through all restarts.
fn talks(mut client: Stream, over: &AtomicBool, said: &AtomicU64) {
    let (mut number, begun) = (0u64, Instant::now());
    while !over.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
        let message = number.to_be_bytes();
        assert_eq!(client.round_trip(&message).expect("it goes on"), message);
        number += 1;
        said.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn restarts_under_load_lose_nobody() {
    for (engine, family) in ENGINES.iter().flat_map(|engine| FAMILIES.map(|f| (*engine, f))) {
        let (serves, handover) = (upstream(family, echo), path("handover"));
        let start = |at: &str, admin: &str| {
            let handover = handover.to_str().expect("text");
            Proxy::start(&format!(
                "--engine {engine} --pollers 2 --listen {at} --upstream {serves} --handover {handover} \
             --admin {admin} --grace 3600"
            ))
        };
        let mut proxy = start(&listen(family), "127.0.0.1:0");
        let admin = proxy.admin().to_owned();
        let at = proxy.addresses[0].clone();
        let mut old = Vec::new();
        let (over, come, said) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..LONG {
                let client = proxy.connect();
                scope.spawn(|| talks(client, &over, &said));
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    let begun = Instant::now();
                    while !over.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                        let mut client = Stream::connect(&at);
                        assert_eq!(client.round_trip(b"hello").expect("served"), b"hello");
                        come.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..RESTARTS {
                let before = (come.load(Ordering::Relaxed), said.load(Ordering::Relaxed));
                let next = start(&at, &admin);
                assert_eq!(next.addresses[0], at);
                old.push(std::mem::replace(&mut proxy, next));
                eventually("they come, and go on", || {
                    come.load(Ordering::Relaxed) > before.0 + 20
                        && said.load(Ordering::Relaxed) > before.1 + 20
                });
                assert_eq!(Proxy::get(&admin, "/healthz").0, 200);
            }
            over.store(true, Ordering::Relaxed);
        });
        for mut old in old {
            assert!(old.ended().success());
        }
        drop(Stream::connect(&at));
    }
}

/// A process that does not come to serve.
fn fails(line: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy")).args(line.split_whitespace()).output();
    let output = output.expect("the proxy");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_new_one_that_fails_leaves_the_old_one_as_it_was() {
    for (engine, family) in
        ENGINES.iter().flat_map(|engine| [Family::V4, Family::Unix].map(|f| (*engine, f)))
    {
        let (serves, handover) = (upstream(family, echo), path("handover"));
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let busy = taken.local_addr().expect("bound").to_string();
        let line = |at: &str, admin: &str| {
            let handover = handover.display();
            format!(
                "--engine {engine} --listen {at} --upstream {serves} --handover {handover} --admin {admin}"
            )
        };
        let mut proxy = Proxy::start(&line(&listen(family), "127.0.0.1:0"));
        let admin = proxy.admin().to_owned();
        let at = proxy.addresses[0].clone();
        fails(&line(&at, &busy));
        assert_eq!(Stream::connect(&at).round_trip(b"x").expect("served"), b"x");
        // What the next one does not want is no obstacle, and it is the only one then that tells.
        let handover = handover.display();
        let next = Proxy::start(&format!(
            "--engine {engine} --listen {at} --upstream {serves} --handover {handover}"
        ));
        assert!(proxy.ended().success());
        assert_eq!(next.connect().round_trip(b"x").expect("served"), b"x");
        assert!(Stream::try_connect(&admin).is_err());
    }
}

#[test]
fn who_ends_hands_nothing_over() {
    for engine in ENGINES {
        let (serves, handover) = (upstream(Family::V4, echo), path("handover"));
        let handover = handover.display();
        let line = |at: &str| {
            format!(
                "--engine {engine} --listen {at} --upstream {serves} --handover {handover} --grace 3600"
            )
        };
        let mut old = Proxy::start(&line(any(Family::V4)));
        let mut client = old.connect();
        assert_eq!(client.round_trip(b"x").expect("served"), b"x");
        old.signal(libc::SIGTERM);
        eventually("nobody listens", || Stream::try_connect(&old.addresses[0]).is_err());
        // It starts, though the old one has not ended.
        let new = Proxy::start(&line(&old.addresses[0]));
        assert_eq!(new.connect().round_trip(b"x").expect("served"), b"x");
        assert_eq!(client.round_trip(b"y").expect("served"), b"y");
        drop(client);
        assert!(old.ended().success());
        // Nor does one that was killed.
        drop(new);
        let new = Proxy::start(&line(&old.addresses[0]));
        assert_eq!(new.connect().round_trip(b"x").expect("served"), b"x");
    }
}

#[test]
fn one_of_two_that_want_to_take_over_ends() {
    for engine in ENGINES {
        let (serves, handover) = (upstream(Family::V4, echo), path("handover"));
        let line = |at: &str| {
            let handover = handover.display();
            format!("--engine {engine} --listen {at} --upstream {serves} --handover {handover}")
        };
        let mut old = Proxy::start(&line(any(Family::V4)));
        // One has the sockets, and takes its time.
        let late = UnixStream::connect(&handover).expect("a place");
        late.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let late = restart::take_over(late).expect("listeners");
        let new = Proxy::start(&line(&old.addresses[0]));
        assert!(old.ended().success());
        // The old one has ended, but not by itself.
        let error = late.confirm().expect_err("another one serves");
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        for _ in 0..20 {
            assert_eq!(new.connect().round_trip(b"x").expect("served"), b"x");
        }
    }
}

#[test]
fn who_waits_is_the_new_ones_to_serve() {
    for engine in ENGINES {
        let (serves, handover) = (upstream(Family::V4, echo), path("handover"));
        let handover = handover.display();
        let line = |at: &str, max: usize| {
            format!(
                "--engine {engine} --listen {at} --upstream {serves} --handover {handover} --grace 3600 \
                 --max-connections {max}"
            )
        };
        let old = Proxy::start(&line(any(Family::V4), 1));
        let mut busy = old.connect();
        assert_eq!(busy.round_trip(b"x").expect("served"), b"x");
        let mut waiting: Vec<_> = (0..200).map(|_| old.connect()).collect();
        for client in &mut waiting {
            client.write_all(b"y").expect("sent");
            client.set_timeout(Duration::from_millis(1)).expect("a socket");
        }
        let _new = Proxy::start(&line(&old.addresses[0], 1000));
        // All but those that one turn of the old one has accepted before it knew that there is no room.
        let unanswered = |client: &mut Stream| client.read_exact(&mut [0]).is_err();
        eventually("the new one serves", || {
            waiting.retain_mut(unanswered);
            waiting.len() <= 80
        });
        assert_eq!(busy.round_trip(b"x").expect("served"), b"x");
        drop(busy);
        eventually("the old one serves the others", || {
            waiting.retain_mut(unanswered);
            waiting.is_empty()
        });
    }
}

#[test]
fn what_systemd_has_opened_is_listened_at() {
    let serves = upstream(Family::V4, echo);
    let opened = std::net::TcpListener::bind(any(Family::V6)).expect("bound");
    let address = opened.local_addr().expect("bound").to_string();
    // Another process has this number, and the shell that becomes the proxy has it, too.
    let mut command = Command::new("sh");
    let run = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
    command.args([
        "-c",
        run,
        "sh",
        env!("CARGO_BIN_EXE_proxy"),
        "--systemd",
        "--upstream",
        &serves,
    ]);
    let fd = opened.as_raw_fd();
    // SAFETY: dup2 may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let proxy = Proxy::of(command);
    assert_eq!(proxy.addresses, [address]);
    assert_eq!(proxy.connect().round_trip(b"x").expect("served"), b"x");
}
