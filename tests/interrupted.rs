//! What the kernel interrupts as it takes a ring down.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use duopoll::{Engine, Pollers};

/// In a process of its own: the self-test is made once.
#[test]
fn uring_starting_pollers_interrupts_no_call_of_the_thread() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let pollers = Pollers::options().engine(Engine::Uring).count(2).start().expect("started");
    let error = socket.recv(&mut [0; 10]).expect_err("nobody sends");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(pollers);
}
