//! tokio: `copy_bidirectional` in a task for each connection.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::Options;

pub fn serve(options: &Options) -> io::Result<()> {
    let options = options.clone();
    if options.threads == 1 {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(accept(options));
    }
    let threads = options.threads;
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async move { tokio::spawn(accept(options)).await.map_err(io::Error::other)? })
}

async fn accept(options: Options) -> io::Result<()> {
    #[cfg(feature = "http")]
    let tls = options.tls.as_deref().map(crate::web::certificate::server).transpose()?;
    #[cfg(feature = "http")]
    let tls = tls.map(tokio_rustls::TlsAcceptor::from);
    let listener = TcpListener::bind(options.listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        #[cfg(feature = "http")]
        if let Some(tls) = &tls {
            let handshake = tls.accept(client);
            tokio::spawn(async move { relay(handshake.await?, options.upstream).await });
            continue;
        }
        tokio::spawn(relay(client, options.upstream));
    }
}

async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: SocketAddr,
) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
