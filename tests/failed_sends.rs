//! Connections whose kernel refuses a send while their sockets live on.
//!
//! Built and run by `ci/faults.sh`.

#![cfg(duopoll_faults)]

mod support;

use std::io::{ErrorKind, Read};
use std::thread;

use duopoll::Limits;
use duopoll_core::faults::{Call, Faults, alone};
use pollster::block_on;
use support::{Family, Setup, connected};

on_every_setup!(
    what_a_refused_send_cuts_short_is_reset,
    an_error_of_the_network_ends_both_directions,
);

const BYTES: usize = 32 << 20;

/// Whoever reads to the end must not take the end of what came for that of the whole.
fn what_a_refused_send_cuts_short_is_reset(setup: Setup) {
    let turn = alone();
    for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EPERM, libc::EIO, libc::EHOSTUNREACH] {
        turn.set(Faults::none());
        let (_pollers, mut connection, mut peer) = connected(setup, Limits::default());
        turn.set(Faults::none().nth(Call::Send, 2, errno));
        connection.push(vec![1; BYTES]);
        connection.writer_mut().submit().expect("it is open");
        let peer = thread::spawn(move || {
            let mut received = Vec::new();
            let end = peer.read_to_end(&mut received);
            (received.len(), end.map_err(|error| error.kind()))
        });
        let error = block_on(connection.drain()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(errno), "{error}");
        drop(connection);
        let (received, end) = peer.join().expect("no panic");
        assert!(received < BYTES);
        if setup.family != Family::Unix {
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "{received} bytes, {errno}");
        }
    }
    turn.set(Faults::none());
}

/// Nobody waits for bytes of a peer that cannot be reached.
fn an_error_of_the_network_ends_both_directions(setup: Setup) {
    let turn = alone();
    for errno in [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ENETDOWN, libc::EHOSTDOWN] {
        turn.set(Faults::none());
        let (_pollers, mut connection, peer) = connected(setup, Limits::default());
        turn.set(Faults::none().nth(Call::Send, 1, errno));
        connection.push(vec![1; 1000]);
        let error = block_on(connection.drain()).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(errno), "{error}");
        let error = block_on(connection.more()).expect_err("it is the connection that is broken");
        assert_eq!(error.raw_os_error(), Some(errno), "{error}");
        drop(peer);
    }
    turn.set(Faults::none());
}
