//! A server of datagrams.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use duopoll_core::{contain, on_poller_thread, report};

use super::{Datagram, UdpOptions, UdpSocket};
use crate::caught::caught;
use crate::poller::over;
use crate::pollers::Pollers;
use crate::stats::count_handler_panic;
use crate::task::TaskGroup;
use crate::time::sleep;

/// Before receiving is tried again that has failed for another reason than what a peer did.
const RETRY: Duration = Duration::from_millis(10);

/// A server of datagrams: a socket on each poller, all at one address, among which the kernel divides the senders.
///
/// ```no_run
/// use duopoll::udp::{Outgoing, UdpServer, UdpSocket};
/// use duopoll::Pollers;
///
/// let server = UdpServer::serve(
///     &Pollers::global()?,
///     UdpSocket::options(),
///     "0.0.0.0:7",
///     async |socket: &mut UdpSocket, datagrams: &mut Vec<_>| {
///         for datagram in datagrams.drain(..) {
///             socket.stage(Outgoing::reply(datagram.bytes.clone(), &datagram));
///         }
///     },
/// )?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Dropping it ends it: the handlers that wait for something are dropped, and the address is free a moment later.
#[must_use = "a server that is dropped does not serve"]
pub struct UdpServer {
    address: SocketAddr,
    /// They stay for it.
    _pollers: Pollers,
    tasks: TaskGroup,
}

impl UdpServer {
    /// Binds a socket for each of the pollers, and calls the handler with all datagrams that one call brings, up to 32; what it leaves is
    /// dropped. What it stages is sent when it returns. While it waits for something, its socket does not receive: what takes longer belongs
    /// into a task, with a [`sender`](UdpSocket::sender). A panic of it is contained and logged, counts among
    /// [`handler_panics`](crate::Stats::handler_panics), and costs the datagrams that it was called with.
    ///
    /// What belongs to one of the sockets may be in a `thread_local!`: each poller has one of them. A poller that comes later
    /// ([`Pollers::grow`]) has none.
    ///
    /// Nobody else may be at the address when it begins, unless both have [`reuse_port`](UdpOptions::reuse_port). Of several pollers the
    /// sockets have that option themselves: a program of the same user that has it, too, may join them.
    ///
    /// # Errors
    /// As for [`UdpOptions::bind`]; [`NotConnected`](io::ErrorKind::NotConnected) if the pollers have ended.
    pub fn serve<H>(
        pollers: &Pollers,
        options: UdpOptions,
        address: impl ToSocketAddrs,
        handler: H,
    ) -> io::Result<UdpServer>
    where
        H: AsyncFn(&mut UdpSocket, &mut Vec<Datagram>) + Send + Sync + 'static,
    {
        if pollers.have_ended() {
            return Err(over());
        }
        let (address, sockets) = options.bound_each(address, pollers.count())?;
        let (tasks, handler) = (TaskGroup::new(), Arc::new(handler));
        for (index, socket) in sockets.into_iter().enumerate() {
            let (handler, group) = (handler.clone(), tasks.clone());
            let serve = move || async move {
                match UdpSocket::watched(socket, &options).await {
                    Ok(socket) => go_on(socket, &*handler, &group).await,
                    Err(error) => report(|| log::error!("a socket cannot be served: {error}")),
                }
            };
            drop(tasks.spawn_on(pollers, index, serve));
        }
        Ok(UdpServer { address, _pollers: pollers.clone(), tasks })
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Receives nothing more, and waits until the handlers are done with what they have, for at most so long: gives how many were not. The
    /// address is free then, but for those. On a poller's thread it is begun, and 0 is returned at once.
    pub fn shutdown(&self, grace: Duration) -> usize {
        self.tasks.close();
        if on_poller_thread() {
            return 0;
        }
        if wait_for(self.tasks.wait(), grace) { 0 } else { self.tasks.abort_all() }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Waits on a thread that has no poller, for at most so long. By none of the pollers' timers: a handler may hold them up.
fn wait_for(future: impl Future<Output = ()>, most: Duration) -> bool {
    let waker = Waker::from(Arc::new(Unparks(thread::current())));
    let (mut future, until) = (pin!(future), Instant::now().checked_add(most));
    while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return false,
            Some(left) => thread::park_timeout(left),
        }
    }
    true
}

/// Wakes a thread.
struct Unparks(Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What a function gives, or has panicked with.
fn called<T>(function: impl FnOnce() -> T) -> thread::Result<T> {
    catch_unwind(AssertUnwindSafe(function))
}

/// Serves a socket until the group is to end.
async fn go_on<H>(mut socket: UdpSocket, handler: &H, group: &TaskGroup)
where
    H: AsyncFn(&mut UdpSocket, &mut Vec<Datagram>),
{
    let mut datagrams = Vec::new();
    let mut closing = pin!(group.closing());
    loop {
        datagrams.clear();
        let received = poll_fn(|cx| match closing.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => socket.poll_recv_many(cx, &mut datagrams).map(Some),
        });
        match received.await {
            None => return socket.close().await,
            Some(Ok(_)) => {}
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
            Some(Err(error)) => {
                report(|| log::warn!("datagrams cannot be received: {error}"));
                sleep(RETRY).await;
                continue;
            }
        }
        // It may panic as it is called, in its future, and as that is dropped.
        let handled = {
            let (lent, given) = (&mut socket, &mut datagrams);
            match called(move || handler(lent, given)) {
                Ok(handling) => {
                    let mut handling = pin!(Some(handling));
                    let handled = poll_fn(|cx| {
                        caught(|| match handling.as_mut().as_pin_mut() {
                            Some(handling) => handling.poll(cx),
                            None => Poll::Ready(()),
                        })
                    });
                    let handled = handled.await;
                    contain("a handler's future", || handling.set(None));
                    handled
                }
                Err(panic) => Err(panic),
            }
        };
        if let Err(panic) = handled {
            count_handler_panic();
            let address = socket.local_addr();
            // What it was the panic hook has reported.
            report(|| match address {
                Ok(address) => log::error!("a handler of datagrams at {address} has panicked"),
                Err(_) => log::error!("a handler of datagrams has panicked"),
            });
            contain("what a handler has panicked with", || drop(panic));
        }
        match socket.flush().await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
            Err(error) => report(|| log::debug!("a datagram cannot be sent: {error}")),
        }
    }
}

impl fmt::Debug for UdpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpServer").field("address", &self.address).finish_non_exhaustive()
    }
}
