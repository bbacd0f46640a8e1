//! The floors on epoll: the best single-threaded loops we know how to write by hand.
//!
//! Edge-triggered: a batch that is not full says that the socket is empty, and the kernel does not look at it again on the next wait.

use std::io;
use std::os::fd::AsFd;

use libc::{EPOLLET, EPOLLIN};

use super::Options;
use super::mmsg::{self, Piece, Received, Sends};
use super::service::Service;
use crate::sys::{Epoll, Events};

/// Serves until an error, receiving trains with `GRO`, sending them with `GSO`.
pub fn serve<const GRO: bool, const GSO: bool>(options: &Options) -> io::Result<()> {
    let socket = super::bind(options.listen)?;
    let fd = socket.as_fd();
    if GRO {
        mmsg::receive_trains(fd)?;
    }
    let mut service = Service::new(options);
    let mut received = Received::new(GRO);
    let mut sends = Sends::<GSO>::new();
    let epoll = Epoll::new()?;
    epoll.add(fd, EPOLLIN | EPOLLET, 0)?;
    let mut events = Events::with_capacity(1);
    loop {
        epoll.wait(&mut events, -1)?;
        let mut more = true;
        while more {
            more = received.receive(fd)?;
            for index in 0..received.len() {
                let datagram = received.get(index);
                let answer = service.answer(datagram.buffer, datagram.len);
                let piece = Piece {
                    name: datagram.name,
                    start: datagram.buffer.as_mut_ptr(),
                    len: answer.bytes,
                    segment: if GRO { datagram.segment } else { answer.bytes },
                };
                for _ in 0..answer.copies {
                    // SAFETY: the next receive into this memory comes after the flush.
                    unsafe { sends.push(fd, piece)? };
                }
            }
            sends.flush(fd)?;
        }
    }
}
