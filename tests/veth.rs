//! Sends without a copy from one network namespace to another, over a pair of virtual devices.
//!
//! Namespaces need a privilege. Who does not have it runs the test once more, as root of a user namespace; where that is
//! forbidden, too, it fails. It needs `ip` of iproute2 and `unshare` of util-linux.

mod support;

use std::env;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use duopoll::{Engine, Pollers};
use pollster::block_on;
use support::settled::Settled;
use support::{PATIENCE, Pattern, Peer, Random, eventually, sent_mebibytes};

const SENDER: [&str; 2] = ["10.9.2.1", "fd00:9:2::1"];
const RECEIVER: [&str; 2] = ["10.9.2.2", "fd00:9:2::2"];
const THRESHOLD: usize = 4 << 10;
/// Says that this is the second run.
const INSIDE: &str = "DUOPOLL_TEST_IN_USER_NAMESPACE";

#[test]
fn every_byte_crosses_from_one_namespace_to_another() {
    if let Err(error) = enter_new_namespace() {
        return run_as_root_of_a_user_namespace(&error);
    }
    let (ready, is_ready) = mpsc::channel();
    let (ask, asked) = mpsc::channel::<SocketAddr>();
    let (answer, answered) = mpsc::channel();
    // Its thread is in another namespace, and so are the sockets that it makes.
    let receiver = thread::spawn(move || {
        enter_new_namespace().expect("it could before");
        ready.send(thread_number()).expect("the test waits");
        for address in asked {
            set_up("veth1", RECEIVER);
            answer.send(TcpStream::connect(address).expect("connected")).expect("the test waits");
        }
    });
    let other = is_ready.recv().expect("a namespace");
    ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", &other]);
    set_up("veth0", SENDER);
    for engine in [Engine::Epoll, Engine::Uring] {
        for address in SENDER {
            let address = SocketAddr::new(address.parse().expect("an address"), 0);
            let listener = TcpListener::bind(address).expect("bound");
            ask.send(listener.local_addr().expect("bound")).expect("it waits");
            let peer = answered.recv().expect("connected");
            let (socket, _) = listener.accept().expect("accepted");
            exchange(engine, socket, peer);
        }
    }
    drop(ask);
    receiver.join().expect("no panic");
}

/// Sends so many bytes, in memory that is used again as soon as it is free.
fn exchange(engine: Engine, socket: TcpStream, peer: TcpStream) {
    let bytes = sent_mebibytes() << 20;
    let pollers = Pollers::options().engine(engine).count(1).start().expect("a poller");
    let mut connection = block_on(pollers.adopt(socket)).expect("taken over");
    let control = connection.control();
    thread::scope(|scope| {
        let peer = Peer::Tcp(peer);
        peer.set_timeout(PATIENCE);
        scope.spawn(move || receive(peer, bytes));
        let (mut random, mut pattern, mut left) = (Random::new(4), Pattern::new(41), bytes);
        while left > 0 {
            // The receiving namespace copies, as loopback does, and it would be given up.
            control.set_zerocopy(Some(THRESHOLD)).expect("it can");
            let piece = pattern.next(random.length(256 << 10).min(left));
            left -= piece.len();
            connection.write(piece).expect("memory");
            block_on(connection.flush()).expect("flushed");
        }
        block_on(connection.drain()).expect("sent");
    });
    eventually("the kernel is done", || pollers.settled().zerocopy_pinned_bytes == 0);
    let stats = pollers.settled();
    assert!(stats.zerocopy_sends > 0, "{stats}");
}

fn receive(mut peer: Peer, bytes: usize) {
    let (mut random, mut pattern) = (Random::new(3), Pattern::new(41));
    let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
    while received < bytes {
        let max = random.length(buffer.len());
        let n = peer.read(&mut buffer[..max]).expect("received");
        assert!(n > 0 && pattern.matches(&buffer[..n]), "wrong bytes behind {received}");
        received += n;
    }
}

/// Takes the calling thread into a network namespace of its own.
fn enter_new_namespace() -> io::Result<()> {
    // SAFETY: takes no memory.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn thread_number() -> String {
    let thread = fs::read_link("/proc/thread-self").expect("procfs");
    thread.file_name().expect("a number").to_string_lossy().into_owned()
}

fn set_up(device: &str, addresses: [&str; 2]) {
    ip(&["address", "replace", &format!("{}/24", addresses[0]), "dev", device]);
    // Usable at once: nobody else can have it.
    ip(&["address", "replace", &format!("{}/64", addresses[1]), "dev", device, "nodad"]);
    ip(&["link", "set", device, "up"]);
}

/// Runs in the namespace of the calling thread.
fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {}: {status}", arguments.join(" "));
}

fn run_as_root_of_a_user_namespace(refused: &io::Error) {
    assert!(env::var_os(INSIDE).is_none(), "no network namespace can be had: {refused}");
    let test = env::current_exe().expect("the test has a path");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--"]).arg(test).env(INSIDE, "yes");
    let status = command.status().expect("util-linux is installed");
    assert!(status.success(), "neither root nor a user namespace can be had: {refused}; {status}");
}
