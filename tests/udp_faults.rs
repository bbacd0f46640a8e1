//! Sockets of datagrams under a kernel that fails: calls that take fewer than they are given, are interrupted and refused.
//!
//! Built and run by `ci/faults.sh`.

#![cfg(duopoll_faults)]

mod support;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use duopoll::udp::{Outgoing, UdpOptions, UdpSocket};
use duopoll::{task, time};
use duopoll_core::faults::{Call, Faults, Turn, alone};
use pollster::block_on;
use support::{PATIENCE, Setup, poll_once};

on_every_setup!(
    internet:
    what_is_not_refused_arrives_once_and_in_order,
    what_the_kernel_does_not_cut_goes_by_itself,
    what_icmp_tells_costs_no_other,
    what_there_is_no_memory_for_costs_no_other,
    a_batch_without_memory_costs_no_other,
    a_refused_receive_loses_nothing,
    a_small_batch_or_an_interrupted_one_loses_nothing,
);

const DATAGRAMS: u32 = 2_000;

/// Runs on a poller, in turn with the other tests.
fn run<F>(setup: Setup, test: impl FnOnce(Peers, Turn) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let pollers = setup.pollers(1);
    let run = pollers.spawn(move || async move {
        let turn = alone();
        let options = UdpSocket::options().receive_buffer_bytes(8 << 20);
        let peers = Peers { one: bound(setup, options).await, other: bound(setup, options).await };
        time::timeout(PATIENCE, test(peers, turn)).await.expect("in time");
    });
    block_on(run).expect("no panic");
}

async fn bound(setup: Setup, options: UdpOptions) -> UdpSocket {
    options.bind(setup.address()).await.expect("bound")
}

struct Peers {
    one: UdpSocket,
    other: UdpSocket,
}

impl Peers {
    fn target(&self) -> SocketAddr {
        self.other.local_addr().expect("bound")
    }

    /// Sends numbered ones of one size, so that they go together. How many flushes have failed.
    async fn send_numbered(&mut self) -> u32 {
        let (target, mut failures) = (self.target(), 0);
        for number in 0..DATAGRAMS {
            self.one.stage(Outgoing::to(number.to_be_bytes().to_vec(), target));
            // A few at a time, and the other one has room for all of them.
            if number % 100 == 99 {
                failures += u32::from(self.one.flush().await.is_err());
            }
        }
        failures
    }

    /// Those that come, until one is not there at once.
    async fn receive_numbers(&mut self) -> Vec<u32> {
        let (mut numbers, mut datagrams) = (Vec::new(), Vec::new());
        // The last of them.
        while numbers.last() != Some(&u32::MAX) {
            if self.other.recv_many(&mut datagrams).await.is_err() {
                continue;
            }
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
            numbers.extend(datagrams.drain(..).map(|datagram| number(&datagram.bytes)));
        }
        numbers.pop();
        numbers
    }

    async fn send_the_last(&mut self) {
        let last = Outgoing::to(u32::MAX.to_be_bytes().to_vec(), self.target());
        self.one.send(last).await.expect("sent");
    }
}

fn what_is_not_refused_arrives_once_and_in_order(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        for (seed, errno) in [libc::EPERM, libc::ENOBUFS, libc::EACCES].into_iter().enumerate() {
            let faults = Faults::none().seed(seed as u64).short(30);
            turn.set(faults.often(Call::SendDatagrams, 20, errno));
            let failures = peers.send_numbered().await;
            let calls = turn.calls(Call::SendDatagrams);
            turn.set(Faults::none());
            peers.send_the_last().await;
            let numbers = peers.receive_numbers().await;
            assert!(numbers.is_sorted_by(|one, next| one < next), "in order, and none twice");
            let lost = u64::from(DATAGRAMS) - numbers.len() as u64;
            // A refusal costs one, however many went with it.
            assert!((1..calls).contains(&lost), "{lost} of {calls} calls");
            assert!(failures > 0 && u64::from(failures) <= lost, "{failures} for {lost}");
        }
    });
}

fn what_the_kernel_does_not_cut_goes_by_itself(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        turn.set(Faults::none().nth(Call::SendDatagrams, 1, libc::EIO));
        assert_eq!(peers.send_numbered().await, 0);
        assert_eq!(turn.injected(), 1);
        let calls = turn.calls(Call::SendDatagrams);
        // From then on each is a message of its own, of which a call takes 64.
        assert!(calls >= u64::from(DATAGRAMS / 64), "{calls}");
        peers.send_the_last().await;
        assert_eq!(peers.receive_numbers().await, Vec::from_iter(0..DATAGRAMS));
    });
}

fn what_icmp_tells_costs_no_other(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        // It is told once, and of an earlier one.
        turn.set(Faults::none().nth(Call::SendDatagrams, 3, libc::ECONNREFUSED));
        assert_eq!(peers.send_numbered().await, 1);
        assert_eq!(turn.injected(), 1);
        peers.send_the_last().await;
        assert_eq!(peers.receive_numbers().await, Vec::from_iter(0..DATAGRAMS));
    });
}

fn what_there_is_no_memory_for_costs_no_other(setup: Setup) {
    const SIZES: [usize; 3] = [9_000, 30_000, 60_000];
    run(setup, move |mut peers, turn| async move {
        let mut large = bound(setup, UdpSocket::options().gro(true)).await;
        let targets = [peers.target(), large.local_addr().expect("bound")];
        turn.set(Faults::none().often(Call::Block, 30, libc::ENOMEM));
        let (mut kept, mut received, mut failures) = (Vec::new(), 0, 0);
        for number in 0..250usize {
            let bytes = vec![number as u8; SIZES[number % SIZES.len()]];
            // Both sockets receive into what is the thread's.
            let target = targets[number % 2];
            if peers.one.send(Outgoing::to(bytes, target)).await.is_err() {
                continue;
            }
            let socket = if number % 2 == 0 { &mut peers.other } else { &mut large };
            match socket.recv().await {
                Ok(datagram) => {
                    // This one, or one before it that is there still.
                    let first = datagram.bytes[0];
                    assert!(datagram.bytes.iter().all(|byte| *byte == first), "{number}");
                    assert_eq!(datagram.bytes.len(), SIZES[usize::from(first) % SIZES.len()]);
                    assert_eq!(usize::from(first) % 2, number % 2, "it is of this socket");
                    // So that there is a block to be had each time.
                    kept.push(datagram);
                    received += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
                    failures += 1;
                }
            }
        }
        assert!(received > 0 && failures > 0, "{received} and {failures}");
    });
}

fn a_batch_without_memory_costs_no_other(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        let (target, mut seen) = (peers.target(), [0; 2]);
        turn.set(Faults::none().often(Call::Block, 30, libc::ENOMEM));
        for round in 0..50u8 {
            for number in 0..32 {
                // What is sent is there already.
                let bytes = Bytes::from(vec![round.wrapping_mul(5) ^ number; 5_000]);
                peers.one.stage(Outgoing::to(bytes, target));
            }
            peers.one.flush().await.expect("sent");
            let mut turns = 0;
            while turns < 5 {
                let mut received = Vec::new();
                match poll_once(pin!(peers.other.recv_many(&mut received))) {
                    Poll::Pending => {
                        turns += 1;
                        task::yield_now().await;
                    }
                    Poll::Ready(received) => seen[usize::from(received.is_ok())] += 1,
                }
                for datagram in received {
                    assert_eq!(datagram.bytes.len(), 5_000);
                    let first = datagram.bytes[0];
                    assert!(datagram.bytes.iter().all(|byte| *byte == first), "{round}");
                }
            }
        }
        assert!(seen[1] > 0 && turn.injected() > 0, "{seen:?}");
    });
}

fn a_refused_receive_loses_nothing(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        assert_eq!(peers.send_numbered().await, 0);
        peers.send_the_last().await;
        turn.set(Faults::none().often(Call::ReceiveDatagrams, 50, libc::ENOMEM).short(50));
        assert_eq!(peers.receive_numbers().await, Vec::from_iter(0..DATAGRAMS));
        assert!(turn.injected() > 0);
    });
}

fn a_small_batch_or_an_interrupted_one_loses_nothing(setup: Setup) {
    run(setup, |mut peers, turn| async move {
        let faults = Faults::none().short(90).often(Call::SendDatagrams, 30, libc::EINTR);
        turn.set(faults.often(Call::ReceiveDatagrams, 30, libc::EINTR));
        assert_eq!(peers.send_numbered().await, 0);
        peers.send_the_last().await;
        assert_eq!(peers.receive_numbers().await, Vec::from_iter(0..DATAGRAMS));
        assert!(turn.injected() > 0);
    });
}
