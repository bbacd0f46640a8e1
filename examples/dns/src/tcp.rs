//! Queries over TCP, each with its length in front. Answers go as they come (RFC 7766).

use std::io;
use std::sync::Arc;

use async_lock::Semaphore;
use domain::base::iana::Rcode;
use duopoll::task::TaskGroup;
use duopoll::{Address, Connection, LinkBuffer, Sender};

use crate::resolver::{Outcome, Resolver, Transport};

/// Queries of one connection that are not answered. More are not read.
const PIPELINED_MAX: usize = 64;

pub(crate) async fn serve(
    connection: Connection,
    resolver: Arc<Resolver>,
    tasks: TaskGroup,
) -> io::Result<()> {
    let Address::Tcp(source) = connection.peer_addr()? else { return Ok(()) };
    let (mut reader, writer) = connection.into_split();
    let sender = writer.into_sender()?;
    let room = Arc::new(Semaphore::new(PIPELINED_MAX));
    // Until the peer ends it, or the server shuts down.
    while reader.next_request().await? {
        let length = |header: &[u8]| Ok(usize::from(header[0]) << 8 | usize::from(header[1]));
        let message = match reader.frame(2, length).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            message => message?,
        };
        let place = room.acquire_arc().await;
        match resolver.handle(&message, source.ip(), Transport::Tcp) {
            Outcome::Reply(reply) => send(&sender, &reply).await?,
            Outcome::Waits(waits) => {
                let sender = sender.clone();
                tasks.spawn_local(async move {
                    let reply = waits.reply(Transport::Tcp).await;
                    // Whoever has gone gets none.
                    let _ = send(&sender, &reply).await;
                    drop(place);
                });
            }
            Outcome::Limited(Some(query)) => send(&sender, &query.error(Rcode::REFUSED)).await?,
            Outcome::Limited(None) | Outcome::Nothing => return Ok(()),
        }
    }
    Ok(())
}

async fn send(sender: &Sender, reply: &[u8]) -> io::Result<()> {
    let mut message = LinkBuffer::new();
    message.write(&(reply.len() as u16).to_be_bytes())?;
    message.write(reply)?;
    message.flush();
    sender.send(&mut message).await
}
