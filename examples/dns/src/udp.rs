//! Queries over UDP.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use duopoll::task::TaskGroup;
use duopoll::udp::{Outgoing, UdpSender, UdpSocket};
use duopoll::{Slice, time};

use crate::resolver::{Outcome, Resolver, Transport};

/// How long it is left alone when the kernel has no memory.
const PAUSE: Duration = Duration::from_millis(10);

/// Answers what comes until the tasks are asked to end.
pub(crate) async fn serve(mut socket: UdpSocket, resolver: Arc<Resolver>, tasks: TaskGroup) {
    let sender = socket.sender();
    let mut closing = pin!(tasks.closing());
    let (mut received, mut overflowed) = (Vec::new(), 0);
    loop {
        let received_many = unless(closing.as_mut(), socket.recv_many(&mut received)).await;
        match received_many {
            None => return,
            Some(Ok(_)) => {}
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
            Some(Err(_)) => time::sleep(PAUSE).await,
        }
        for mut datagram in received.drain(..) {
            let (bytes, source) = (&datagram.bytes, datagram.from.ip());
            match resolver.handle(bytes, source, Transport::Udp) {
                Outcome::Reply(reply) => socket.stage(Outgoing::reply(reply, &datagram)),
                Outcome::Waits(waits) => {
                    // What is needed no more may be part of a larger block.
                    datagram.bytes = Slice::default();
                    let sender = sender.clone();
                    tasks.spawn_local(async move {
                        let reply = waits.reply(Transport::Udp).await;
                        send(sender, Outgoing::reply(reply, &datagram)).await;
                    });
                }
                Outcome::Limited(_) | Outcome::Nothing => {}
            }
        }
        // One that cannot be sent holds up none behind it.
        while let Err(error) = socket.flush().await {
            if error.kind() == io::ErrorKind::NotConnected {
                return;
            }
        }
        let dropped = socket.dropped();
        resolver.stats.overflowed.add(dropped.wrapping_sub(overflowed).into());
        overflowed = dropped;
    }
}

/// A reply that cannot be sent is lost, as one on its way may be.
async fn send(mut sender: UdpSender, reply: Outgoing) {
    let _ = sender.send(reply).await;
}

/// What a future gives, unless the other one is ready first.
async fn unless<T>(
    mut other: Pin<&mut impl Future<Output = ()>>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match other.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}
