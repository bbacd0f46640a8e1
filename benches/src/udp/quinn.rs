//! quinn-udp on tokio: batches with UDP_GRO, and a send for each peer's train with UDP_SEGMENT, as quinn uses it.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::runtime::Builder;

use super::Options;
use super::mmsg::TRAIN_ROOM_BYTES;
use super::service::Service;

pub fn serve(options: &Options) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(answer(options))
}

async fn answer(options: &Options) -> io::Result<()> {
    let socket = super::bind(options.listen)?;
    let state = UdpSocketState::new((&socket).into())?;
    let socket = UdpSocket::from_std(socket)?;
    let mut service = Service::new(options);
    let mut memory = vec![0; BATCH_SIZE * TRAIN_ROOM_BYTES];
    let mut buffers: Vec<IoSliceMut<'_>> =
        memory.chunks_exact_mut(TRAIN_ROOM_BYTES).map(IoSliceMut::new).collect();
    let mut metas = [RecvMeta::default(); BATCH_SIZE];
    let mut train = Vec::new();
    loop {
        let receive = || state.recv((&socket).into(), &mut buffers, &mut metas);
        let count = socket.async_io(Interest::READABLE, receive).await?;
        for (buffer, meta) in buffers.iter_mut().zip(&metas[..count]) {
            if service.is_echo() {
                send(&socket, &state, meta.addr, &buffer[..meta.len], meta.stride).await?;
                continue;
            }
            for start in (0..meta.len).step_by(meta.stride.max(1)) {
                let len = meta.stride.min(meta.len - start);
                let answer = service.answer(&mut buffer[start..], len);
                train.clear();
                for _ in 0..answer.copies {
                    train.extend_from_slice(&buffer[start..start + answer.bytes]);
                }
                if answer.copies > 0 {
                    send(&socket, &state, meta.addr, &train, answer.bytes).await?;
                }
            }
        }
    }
}

async fn send(
    socket: &UdpSocket,
    state: &UdpSocketState,
    destination: SocketAddr,
    contents: &[u8],
    segment: usize,
) -> io::Result<()> {
    let segment_size = (contents.len() > segment).then_some(segment);
    let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
    let send = || state.try_send(socket.into(), &transmit);
    socket.async_io(Interest::WRITABLE, send).await
}
