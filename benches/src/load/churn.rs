//! Load of short connections: connect, one message there and back, close.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use libc::{EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP};

use super::{Payload, Spec, Stream, Target, Window};
use crate::sys::{self, Epoll, Events};

const EVENTS_MAX: usize = 256;
/// Source addresses, 127.0.0.2 and up: the client closes first, so its port waits in TIME_WAIT.
const SOURCES: u64 = 64;
const WATCH: libc::c_int = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

struct Slot {
    stream: Stream,
    since_ns: u64,
    sent: bool,
    received: usize,
}

pub(super) fn run(
    spec: &Spec,
    target: &Target,
    payload: &Payload,
    window: &mut Window,
) -> io::Result<()> {
    if spec.message > 4096 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "churn messages are small"));
    }
    let epoll = Epoll::new()?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; 4096];
    let mut opened = 0;
    let mut slots = Vec::with_capacity(spec.connections);
    let mut now = sys::now_ns();
    window.start(now);
    for index in 0..spec.connections {
        slots.push(start(&epoll, target, payload, index, &mut opened)?);
    }
    while window.tick(now)? {
        epoll.wait(&mut events, 1000)?;
        now = sys::now_ns();
        for (_, token) in events.iter() {
            let index = token as usize;
            let slot = &mut slots[index];
            if !slot.sent {
                slot.sent = send(&mut slot.stream, payload)?;
                if !slot.sent {
                    continue;
                }
            }
            match slot.stream.recv(&mut buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server closed a connection before its answer",
                    ));
                }
                Ok(received) => slot.received += received,
                Err(error) if sys::would_block(&error) => {}
                Err(error) => return Err(error),
            }
            if slot.received == payload.message {
                now = sys::now_ns();
                window.answered(now, slot.since_ns);
                let next = start(&epoll, target, payload, index, &mut opened)?;
                std::mem::replace(&mut slots[index], next).stream.close();
            }
        }
    }
    Ok(())
}

fn start(
    epoll: &Epoll,
    target: &Target,
    payload: &Payload,
    index: usize,
    opened: &mut u64,
) -> io::Result<Slot> {
    let since_ns = sys::now_ns();
    let source = Ipv4Addr::new(127, 0, 0, 2 + (*opened % SOURCES) as u8);
    *opened += 1;
    let mut stream = target.connect(source)?;
    // On loopback the handshake is done by now, as a rule.
    let sent = send(&mut stream, payload)?;
    epoll.add(stream.as_fd(), WATCH, index as u64)?;
    Ok(Slot { stream, since_ns, sent, received: 0 })
}

/// Sends the message; false while the connection is still under way.
fn send(stream: &mut Stream, payload: &Payload) -> io::Result<bool> {
    match stream.send(payload.at(0, payload.message)) {
        Ok(sent) if sent == payload.message => Ok(true),
        Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "a small message was cut")),
        Err(error) if sys::would_block(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
