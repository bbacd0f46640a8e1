//! A logger that panics, as one does that writes into a closed pipe: it is a user's, and ends nobody.

mod support;

use std::panic;

use duopoll::Connection;
use support::settled::Settled;
use support::{PATIENCE, Peer, Setup, echo};

on_every_setup!(a_logger_that_panics_ends_nobody);

struct Broken;

impl log::Log for Broken {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        panic::resume_unwind(Box::new("the pipe is closed"));
    }

    fn flush(&self) {}
}

fn a_logger_that_panics_ends_nobody(setup: Setup) {
    // Once in the process.
    if log::set_logger(&Broken).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
    let builder = setup.builder().on_prepare(|_| panic::resume_unwind(Box::new("on purpose")));
    let refusing = builder.on_request(echo).serve(setup.listener()).expect("a server");
    let server = setup.serve(async |connection: &mut Connection| {
        connection.control().on_close(|| panic::resume_unwind(Box::new("on purpose")));
        match connection.read_u8().await? {
            b'e' => Err(std::io::Error::other("on purpose")),
            _ => connection.write(b"y"),
        }
    });
    let mut good = Peer::connect(server.local_addr());
    for _ in 0..5 {
        drop(Peer::connect(refusing.local_addr()).read_rest());
        let mut failing = Peer::connect(server.local_addr());
        std::io::Write::write_all(&mut failing, b"e").expect("sent");
        drop(failing.read_rest());
        assert_eq!(good.round_trip(b"x"), b"y");
    }
    for server in [&server, &refusing] {
        assert_eq!(server.settled().failed_pollers, 0);
    }
    drop(good);
    assert_eq!((server.shutdown(PATIENCE), refusing.shutdown(PATIENCE)), (0, 0));
}
