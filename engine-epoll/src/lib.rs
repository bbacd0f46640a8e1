//! The epoll engine: `readv` and `sendmsg` on ready sockets.
//!
//! # How it works
//! A socket is registered once, edge-triggered, for both directions. Edge triggering saves the kernel a second look
//! at every ready socket, and saves us the `epoll_ctl` that would switch write interest on and off; its price is a
//! list of sockets that were left before they were empty, served again in the next turn.
//!
//! A turn harvests at most [`EVENTS_PER_TURN`] events, and ends when [`TURN_BYTES`] have come: large messages are
//! handled and sent while they are in the cache, and the events that are left come first in the next turn. For each
//! socket that can be read, the operators lend vectors, `readv` fills them, and the bytes are acknowledged. A read that comes back short has emptied the socket;
//! one that does not is followed by another, up to [`READ_BUDGET_BYTES`] in a turn. `EPOLLRDHUP` is a hint to read to
//! the end: the end itself is a read of 0, so bytes that came before a FIN always come first. Two more things end a
//! read early, and are looked out for: an urgent byte, and on a Unix socket a message that carries descriptors.
//!
//! # Portability
//! Linux 2.6.28 and later. On kernels without `accept4` an accepted socket is made close-on-exec and non-blocking afterwards.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg(target_os = "linux")]

mod engine;
mod notices;
mod sockets;
mod sys;
#[cfg(feature = "zerocopy")]
mod zerocopy;

pub use engine::{EVENTS_PER_TURN, Epoll, READ_BUDGET_BYTES, TURN_BYTES};
