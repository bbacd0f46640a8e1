//! This project's `UdpSocket`, on an engine: what has come is answered together.

use std::io;

use ::duopoll::udp::{Outgoing, UdpOptions, UdpSocket};
use ::duopoll::{Engine, Pollers, Slice};

use super::Options;
use super::mmsg::ROOM_BYTES;
use super::service::Service;
use super::shape::Ask;

pub fn epoll(options: &Options) -> io::Result<()> {
    serve(Engine::Epoll, options)
}

pub fn uring(options: &Options) -> io::Result<()> {
    serve(Engine::Uring, options)
}

fn serve(engine: Engine, options: &Options) -> io::Result<()> {
    Pollers::options().engine(engine).block_on(answer(*options))?
}

async fn answer(options: Options) -> io::Result<()> {
    let bound = UdpOptions::default().gro(options.ask == Ask::Bulk);
    let mut socket = UdpSocket::from_fd(super::bind(options.listen)?.into(), &bound).await?;
    let mut service = Service::new(&options);
    let (mut received, mut buffer) = (Vec::new(), vec![0; ROOM_BYTES]);
    loop {
        socket.recv_many(&mut received).await?;
        for datagram in received.drain(..) {
            if service.is_echo() {
                let reply = Outgoing::to(datagram.bytes, datagram.from);
                socket.stage(match datagram.segment_bytes {
                    Some(bytes) => reply.segments(bytes as u16),
                    None => reply,
                });
                continue;
            }
            let len = datagram.bytes.len();
            buffer[..len].copy_from_slice(&datagram.bytes);
            let answer = service.answer(&mut buffer, len);
            if answer.copies > 0 {
                let bytes = Slice::from(buffer[..answer.bytes].to_vec());
                for _ in 0..answer.copies {
                    socket.stage(Outgoing::to(bytes.clone(), datagram.from));
                }
            }
        }
        socket.flush().await?;
    }
}
