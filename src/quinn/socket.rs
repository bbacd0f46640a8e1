//! A socket of quinn's.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use ::quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use ::quinn::{AsyncUdpSocket, UdpPoller};
use duopoll_core::{Direction, Kind, contain};

use super::steering::Steered;
use crate::async_fd::Watching;
use crate::poller::{Handle, over};
use crate::task;
use crate::udp::{Room, Seat};

pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether it has received several by one call. If so, fewer than there was room for are all that there were.
    receives_many: AtomicBool,
    /// Set once; none if the pollers had ended.
    watching: OnceLock<Option<Watching>>,
    /// Who waits for that.
    beginning: Mutex<Vec<Waker>>,
    /// Who waits to send.
    room: Arc<Room>,
    /// Of one of several endpoints.
    steered: Option<Steered>,
}

impl Socket {
    /// Has a poller watch a socket.
    pub(super) fn watched(
        socket: UdpSocket,
        poller: Arc<Handle>,
        steered: Option<Steered>,
    ) -> io::Result<Arc<Socket>> {
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        let watched = socket.as_fd().try_clone_to_owned()?;
        let shared = Arc::new(Socket {
            socket,
            state,
            receives_many: AtomicBool::new(false),
            watching: OnceLock::new(),
            beginning: Mutex::default(),
            room: Arc::default(),
            steered,
        });
        let begins = Arc::downgrade(&shared);
        drop(task::start(&poller.clone(), move || async move {
            let watching = Watching::begin(poller, watched, Kind::Datagrams).await;
            if let Some(socket) = begins.upgrade() {
                socket.begin(watching);
            }
        }));
        Ok(shared)
    }

    fn begin(&self, watching: io::Result<Watching>) {
        let _ = self.watching.set(watching.ok());
        let waiting = mem::take(&mut *self.beginning());
        for waker in waiting {
            contain("a waker", || waker.wake());
        }
    }

    fn poll_socket(
        &self,
        watching: &Watching,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = buffers.len().min(told.len()).min(BATCH_SIZE);
        watching.poll_drain(cx, Direction::Read, || {
            let received = self.state.recv((&self.socket).into(), buffers, told)?;
            if received > 1 {
                self.receives_many.store(true, Ordering::Relaxed);
            }
            Ok((received, received < most && self.receives_many.load(Ordering::Relaxed)))
        })
    }

    fn beginning(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.beginning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_watching(&self, cx: &mut Context<'_>) -> Poll<io::Result<&Watching>> {
        if self.watching.get().is_none() {
            let waker = cx.waker().clone();
            self.beginning().push(waker);
        }
        // It may have begun meanwhile.
        match self.watching.get() {
            None => Poll::Pending,
            Some(Some(watching)) => Poll::Ready(Ok(watching)),
            Some(None) => Poll::Ready(Err(over())),
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, seat: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let watching = self.watching.get().and_then(Option::as_ref);
        let told = watching.map(|watching| watching.told(Direction::Write));
        let sent = self.state.try_send((&self.socket).into(), transmit);
        let blocked = matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        if let (true, Some((watching, told))) = (blocked, watching.zip(told)) {
            watching.clear(Direction::Write, told);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        told: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let watching = ready!(self.poll_watching(cx))?;
        let Some(steered) = &self.steered else {
            return self.poll_socket(watching, cx, buffers, told);
        };
        // Half of the room at most, so that a flood of them holds up nobody.
        let most = buffers.len().div_ceil(2);
        let strays = steered.take(cx, &mut buffers[..most], &mut told[..most]);
        let (buffers, told) = (&mut buffers[strays..], &mut told[strays..]);
        if buffers.is_empty() {
            return Poll::Ready(Ok(strays));
        }
        match self.poll_socket(watching, cx, buffers, told) {
            Poll::Ready(Ok(received)) => {
                steered.forward_strays(&mut buffers[..received], &mut told[..received]);
                Poll::Ready(Ok(strays + received))
            }
            // An error is told again, if it is one that stays.
            _ if strays > 0 => Poll::Ready(Ok(strays)),
            nothing => nothing,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.socket).finish()
    }
}

/// Waits for room to send.
#[derive(Debug)]
struct Writable {
    socket: Arc<Socket>,
    /// Once it has waited.
    seat: Option<Seat>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Writable { socket, seat } = &mut *self;
        let watching = ready!(socket.poll_watching(cx))?;
        if watching.may_be_ready(Direction::Write) {
            return Poll::Ready(Ok(()));
        }
        let all = seat.get_or_insert_with(|| socket.room.seat()).wait(cx);
        watching.poll_with(&mut Context::from_waker(&all), Direction::Write, || Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use pollster::block_on;

    use super::super::steering::Steering;
    use super::*;
    use crate::pollers::Pollers;

    #[test]
    fn strays_hold_up_nobody() {
        const PLACES: usize = 8;
        let pollers = Pollers::options().count(1).start().expect("a poller");
        let all = Arc::new(Steering::among(2));
        let (own, other) = (Steered::new(&all, 0), Steered::new(&all, 1));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = socket.local_addr().expect("bound");
        let socket = Socket::watched(socket, pollers.choose(), Some(own)).expect("watched");
        let mut writable = socket.clone().create_io_poller();
        block_on(poll_fn(|cx| writable.as_mut().poll_writable(cx))).expect("room");
        for _ in 0..100 {
            let mut stray = *b"\x00\x00stray";
            let told = RecvMeta { len: stray.len(), stride: stray.len(), ..RecvMeta::default() };
            other.forward_strays(&mut [IoSliceMut::new(&mut stray)], &mut [told]);
        }
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bound");
        peer.send_to(b"\x00\x02own", address).expect("sent");
        let watching = socket.watching.get().and_then(Option::as_ref).expect("it has begun");
        while !watching.may_be_ready(Direction::Read) {
            std::thread::yield_now();
        }

        let (mut bytes, mut told) = ([[0; 64]; PLACES], [RecvMeta::default(); PLACES]);
        let mut buffers = bytes.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let received = block_on(poll_fn(|cx| socket.poll_recv(cx, &mut buffers, &mut told)));
        assert_eq!(received.expect("received"), PLACES / 2 + 1);
        assert_eq!(&bytes[PLACES / 2][..told[PLACES / 2].len], b"\x00\x02own");
    }
}
