//! A server whose first poller is the calling thread.

mod support;

use std::collections::HashSet;
use std::future::pending;
use std::io::{ErrorKind, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use duopoll::{Address, Connection, Dialer};
use futures_channel::oneshot;
use support::{PATIENCE, Peer, Setup, echo};

on_every_setup!(
    the_calling_thread_serves_until_it_is_told_to_end,
    a_busy_request_may_finish_in_the_grace,
    what_does_not_end_is_counted,
    the_task_that_ends_it_may_use_its_poller,
    the_other_pollers_serve_too,
    a_panic_ends_it,
    somebody_else_may_end_it,
    what_contradicts_itself_is_refused,
);

const GRACE: Duration = Duration::from_secs(10);

/// A server on a thread of its own, which it calls its own thread.
struct Here {
    address: Address,
    end: oneshot::Sender<Duration>,
    thread: thread::JoinHandle<std::io::Result<usize>>,
}

fn serve_here<F>(setup: Setup, pollers: usize, handler: F) -> Here
where
    F: AsyncFn(&mut Connection) -> std::io::Result<()> + Send + Sync + 'static,
{
    let (end, told) = oneshot::channel();
    let (listens, address) = mpsc::channel();
    let thread = thread::spawn(move || {
        let service = setup.builder().pollers(pollers).on_request(handler);
        service.serve_here(setup.listener(), |server| {
            listens.send(server.local_addr().clone()).expect("somebody waits");
            async { told.await.expect("told") }
        })
    });
    Here { address: address.recv_timeout(PATIENCE).expect("it listens"), end, thread }
}

impl Here {
    /// Ends it when these have read to the end, and gives how many were closed by force.
    fn end(self, grace: Duration, peers: impl IntoIterator<Item = Peer>) -> usize {
        self.end.send(grace).expect("it runs");
        for mut peer in peers {
            assert_eq!(peer.read_rest().expect("the end"), b"");
        }
        self.thread.join().expect("no panic").expect("a good end")
    }
}

/// An echo server, and the threads that have served a request.
fn echo_here(setup: Setup, pollers: usize) -> (Here, Arc<Mutex<HashSet<ThreadId>>>) {
    let served_by = Arc::new(Mutex::new(HashSet::new()));
    let threads = served_by.clone();
    let here = serve_here(setup, pollers, async move |connection: &mut Connection| {
        threads.lock().expect("no panic").insert(thread::current().id());
        echo(connection).await
    });
    (here, served_by)
}

fn the_calling_thread_serves_until_it_is_told_to_end(setup: Setup) {
    let (here, served_by) = echo_here(setup, 1);
    let mut peers = [(); 3].map(|()| Peer::connect(&here.address));
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"served"), b"served");
    }
    assert_eq!(*served_by.lock().expect("no panic"), HashSet::from([here.thread.thread().id()]));
    assert_eq!(here.end(GRACE, peers), 0);
}

fn a_busy_request_may_finish_in_the_grace(setup: Setup) {
    let here = serve_here(setup, 1, async |connection: &mut Connection| {
        let line = connection.until(b'\n', 100).await?;
        connection.push(line);
        connection.flush().await
    });
    let mut peer = Peer::connect(&here.address);
    assert_eq!(peer.round_trip(b"one\n"), b"one\n");
    peer.write_all(b"tw").expect("sent");
    let address = here.address.clone();
    let ended = thread::spawn(move || here.end(GRACE, None));
    // It listens no more once it is ending.
    support::eventually("it accepts no more", || match &address {
        Address::Tcp(address) => std::net::TcpStream::connect(address).is_err(),
        _ => true,
    });
    peer.write_all(b"o\n").expect("sent");
    assert_eq!(peer.read_rest().expect("the end"), b"two\n");
    drop(peer);
    assert_eq!(ended.join().expect("no panic"), 0);
}

fn what_does_not_end_is_counted(setup: Setup) {
    let (begun, waits) = mpsc::channel();
    let here = serve_here(setup, 1, async move |connection: &mut Connection| {
        connection.next(1).await?;
        begun.send(()).expect("somebody waits");
        pending().await
    });
    let mut peer = Peer::connect(&here.address);
    peer.write_all(b"x").expect("sent");
    waits.recv_timeout(PATIENCE).expect("a request");
    assert_eq!(here.end(Duration::ZERO, None), 1);
}

fn the_task_that_ends_it_may_use_its_poller(setup: Setup) {
    let service = setup.builder().on_request(echo);
    let forced = service.serve_here(setup.listener(), |server| {
        let (address, pollers) = (server.local_addr().to_string(), server.pollers().clone());
        async move {
            let mut connection =
                Dialer::new().pollers(pollers).dial(&address).await.expect("dialed");
            connection.write(b"from here").expect("room");
            connection.flush().await.expect("sent");
            assert_eq!(connection.next(9).await.expect("an echo"), b"from here");
            GRACE
        }
    });
    assert_eq!(forced.expect("a good end"), 0);
}

fn the_other_pollers_serve_too(setup: Setup) {
    let (here, served_by) = echo_here(setup, 3);
    let mut peers = [(); 6].map(|()| Peer::connect(&here.address));
    for peer in &mut peers {
        assert_eq!(peer.round_trip(b"served"), b"served");
    }
    let served_by = served_by.lock().expect("no panic").clone();
    assert_eq!(served_by.len(), 3);
    assert!(served_by.contains(&here.thread.thread().id()));
    assert_eq!(here.end(GRACE, peers), 0);
}

fn a_panic_ends_it(setup: Setup) {
    let service = || setup.builder().on_request(echo);
    let at_once = panic::catch_unwind(AssertUnwindSafe(|| {
        service().serve_here(setup.listener(), |_| -> std::future::Pending<Duration> {
            panic!("on purpose")
        })
    }));
    assert_eq!(*at_once.unwrap_err().downcast::<&str>().expect("a text"), "on purpose");
    let later = service().serve_here(setup.listener(), |_| async { panic!("on purpose") });
    assert!(later.unwrap_err().to_string().contains("panicked"));
    // The thread is as good as before.
    let forced = service().serve_here(setup.listener(), |_| async { Duration::ZERO });
    assert_eq!(forced.expect("a good end"), 0);
}

fn what_contradicts_itself_is_refused(setup: Setup) {
    let pollers = setup.pollers(1);
    let on_others = duopoll::EventLoop::builder().on(pollers).on_request(echo);
    let error = on_others.serve_here(setup.listener(), |_| pending()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let service = setup.builder().on_request(echo);
    let forced = service.serve_here(setup.listener(), move |_| async move {
        let nested = setup.builder().on_request(echo);
        let error = nested.serve_here(setup.listener(), |_| pending()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        Duration::ZERO
    });
    assert_eq!(forced.expect("a good end"), 0);
    let none = setup.builder().pollers(0).on_request(echo);
    let error = none.serve_here(setup.listener(), |_| pending()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

fn somebody_else_may_end_it(setup: Setup) {
    let stopped = setup.builder().on_request(echo).serve_here(setup.listener(), |server| {
        let pollers = server.pollers().clone();
        async move {
            pollers.stop();
            pending().await
        }
    });
    assert_eq!(stopped.expect("no panic"), 0);
    let builder = setup.builder();
    let weak = builder.weak_server();
    assert!(weak.upgrade().is_none());
    let ended = builder.on_request(echo).serve_here(setup.listener(), |_| async move {
        let server = weak.upgrade().expect("it runs");
        let over = server.shutdown_async(GRACE);
        drop(server);
        over.await;
        pending().await
    });
    assert_eq!(ended.expect("no panic"), 0);
}
