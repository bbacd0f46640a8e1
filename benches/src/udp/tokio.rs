//! tokio: `recv_from` and `send_to`, as in its echo example.

use std::io;

use tokio::net::UdpSocket;
use tokio::runtime::Builder;

use super::Options;
use super::mmsg::ROOM_BYTES;
use super::service::Service;

pub fn serve(options: &Options) -> io::Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(answer(options))
}

async fn answer(options: &Options) -> io::Result<()> {
    let socket = UdpSocket::from_std(super::bind(options.listen)?)?;
    let mut service = Service::new(options);
    let mut buffer = vec![0; ROOM_BYTES];
    loop {
        let (len, peer) = socket.recv_from(&mut buffer).await?;
        let answer = service.answer(&mut buffer, len);
        for _ in 0..answer.copies {
            socket.send_to(&buffer[..answer.bytes], peer).await?;
        }
    }
}
