//! tokio: `copy_bidirectional` in a task for each connection.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::Options;

pub fn serve(options: &Options) -> io::Result<()> {
    let Options { listen, upstream, threads } = *options;
    if threads == 1 {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(accept(listen, upstream));
    }
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async move {
        tokio::spawn(accept(listen, upstream)).await.map_err(io::Error::other)?
    })
}

async fn accept(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(relay(client, upstream));
    }
}

async fn relay(mut client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
