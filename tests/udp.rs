//! Datagrams, on both engines and over both families.

mod support;

use std::collections::HashSet;
use std::future::{Future, ready};
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as Std};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;
use std::pin::{Pin, pin};
use std::str::FromStr;
use std::sync::{Mutex, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use duopoll::udp::{
    Datagram, DatagramSender, Ecn, Outgoing, UdpOptions, UdpSender, UdpServer, UdpSocket,
    UnixDatagram,
};
use duopoll::{Address, AsyncFd, Pollers, task, time};
use pollster::block_on;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use support::alone::{beside_others, nobody_beside};
use support::{PATIENCE, Setup, eventually, open_descriptors, poll_once};

on_every_setup!(
    internet:
    every_size_comes_as_it_was_sent,
    a_burst_comes_in_order,
    a_dropped_wait_loses_nothing,
    replies_come_from_where_they_were_sent_to,
    congestion_is_told,
    segments_are_cut_and_come_together,
    what_goes_together_comes_one_by_one,
    one_that_is_connected_hears_nobody_else,
    a_broadcast_is_replied_to,
    who_is_not_there_is_told_and_no_end,
    what_cannot_be_sent_costs_the_others_nothing,
    halves_send_from_anywhere,
    drops_are_counted,
    a_flood_starves_nobody,
    nothing_is_left_behind,
    a_poller_that_ends_says_so,
    a_bind_that_is_dropped_leaves_nothing,
    an_address_is_free_behind_close_and_shutdown,
    who_sends_as_a_datagram_is_dropped_sends,
    descriptors_that_come_along_are_closed,
    a_server_has_a_socket_on_each_poller,
    a_handler_that_panics_ends_nothing,
    servers_of_several_pollers_have_ports_of_their_own,
    a_shutdown_waits_for_handlers,
    a_handler_that_blocks_its_poller_holds_up_no_shutdown,
    a_handler_may_panic_as_it_is_called_and_dropped,
    unix_sockets_have_datagrams,
    one_that_has_no_peer_costs_the_others_nothing,
    a_unix_socket_waits_for_room,
    room_is_told_on_other_threads,
    who_waits_for_a_full_unix_socket_hears_of_the_end,
);

/// Runs on a poller.
fn run<F, T>(setup: Setup, make: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let pollers = setup.pollers(1);
    block_on(pollers.spawn(move || async move { time::timeout(PATIENCE, make()).await }))
        .expect("no panic")
        .expect("in time")
}

async fn bind(setup: Setup, options: UdpOptions) -> UdpSocket {
    options.bind(setup.address()).await.expect("bound")
}

async fn pair(setup: Setup) -> (UdpSocket, UdpSocket) {
    let options = UdpSocket::options().receive_buffer_bytes(4 << 20);
    (bind(setup, options).await, bind(setup, options).await)
}

fn peer(setup: Setup) -> Std {
    let peer = Std::bind(setup.address()).expect("bound");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    peer
}

fn at(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + seed) as u8).collect()
}

fn every_size_comes_as_it_was_sent(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        // From small to large and back, and across what is small.
        let sizes = [0, 1, 64, 2047, 2048, 2049, 4000, 65_507, 9000, 2048, 1, 0, 65_507, 64];
        for (seed, size) in sizes.into_iter().enumerate() {
            let sent = bytes(size, seed);
            one.send(Outgoing::to(sent.clone(), at(&other))).await.expect("sent");
            let Datagram { bytes, from, segment_bytes, .. } = other.recv().await.expect("received");
            assert!(bytes == sent, "{size} bytes");
            assert_eq!((from, segment_bytes), (at(&one), None));
            other.send(Outgoing::to(bytes, from)).await.expect("sent");
            assert!(one.recv().await.expect("received").bytes == sent);
        }
    });
}

fn a_burst_comes_in_order(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        let mut seen = 0;
        for burst in 0..20 {
            for number in 0..100 {
                one.stage(Outgoing::to(bytes(100 + number, burst), at(&other)));
            }
            one.flush().await.expect("sent");
            let mut received = Vec::new();
            while received.len() < 100 {
                let before = received.len();
                let count = other.recv_many(&mut received).await.expect("received");
                assert_eq!(received.len(), before + count);
                assert!((1..=32).contains(&count));
            }
            for (number, datagram) in received.iter().enumerate() {
                assert!(datagram.bytes == bytes(100 + number, burst));
                seen += 1;
            }
        }
        assert_eq!(seen, 2000);
    });
}

fn a_dropped_wait_loses_nothing(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        assert!(poll_once(pin!(other.recv())).is_pending());
        for number in 0..10u8 {
            one.stage(Outgoing::to(vec![number], at(&other)));
        }
        one.flush().await.expect("sent");
        for number in 0..10 {
            // Dropped before its first poll, and then after it.
            drop(other.recv());
            let polled = poll_once(pin!(other.recv()));
            let datagram = match polled {
                Poll::Ready(datagram) => datagram,
                Poll::Pending => other.recv().await,
            };
            assert!(datagram.expect("received").bytes == [number]);
            assert!(number < 9 || poll_once(pin!(other.recv())).is_pending());
        }
    });
}

fn replies_come_from_where_they_were_sent_to(setup: Setup) {
    let _others = beside_others();
    let peer = peer(setup);
    let is_v4 = peer.local_addr().expect("bound").is_ipv4();
    run(setup, move || async move {
        let options = UdpSocket::options().local_address(true);
        let any = if is_v4 { "0.0.0.0:0" } else { "[::]:0" };
        let mut socket = options.bind(any).await.expect("bound");
        let port = at(&socket).port();
        let mut targets: Vec<IpAddr> = vec!["127.0.0.1".parse().expect("an address")];
        if is_v4 {
            targets.push("127.0.0.2".parse().expect("an address"));
        } else {
            targets.push("::1".parse().expect("an address"));
        }
        for target in targets {
            // One of IPv6 has IPv4 as well.
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let peer = Std::bind(any).expect("bound");
            peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            peer.send_to(b"to there", (target, port)).expect("sent");
            let datagram = socket.recv().await.expect("received");
            let local = datagram.local.expect("told");
            assert_eq!(local.to_canonical(), target);
            // Both of one family.
            assert_eq!(local.is_ipv4(), datagram.from.is_ipv4());
            socket.send(Outgoing::reply(datagram.bytes.clone(), &datagram)).await.expect("sent");
            let (n, from) = peer.recv_from(&mut [0; 9]).expect("a reply");
            assert_eq!((n, from), (8, SocketAddr::new(target, port)));
        }
    });
}

fn congestion_is_told(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let mut one = bind(setup, UdpSocket::options()).await;
        let mut other = bind(setup, UdpSocket::options().ecn(true)).await;
        for ecn in [None, Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce), None] {
            let datagram = Outgoing::to(b"x", at(&other));
            let datagram = match ecn {
                Some(ecn) => datagram.ecn(ecn),
                None => datagram,
            };
            one.send(datagram).await.expect("sent");
            assert_eq!(other.recv().await.expect("received").ecn, ecn);
        }
    });
}

fn segments_are_cut_and_come_together(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut apart) = pair(setup).await;
        let options = UdpSocket::options().gro(true).receive_buffer_bytes(4 << 20);
        let mut together = bind(setup, options).await;
        let sent = bytes(50 * 1200 + 7, 1);
        for target in [at(&apart), at(&together)] {
            one.send(Outgoing::to(sent.clone(), target).segments(1200)).await.expect("sent");
        }
        let mut seen = Vec::new();
        while seen.len() < sent.len() {
            let datagram = apart.recv().await.expect("received");
            assert!(datagram.bytes.len() <= 1200 && datagram.segment_bytes.is_none());
            seen.extend_from_slice(&datagram.bytes);
        }
        assert!(seen == sent);
        let (mut seen, mut datagrams) = (Vec::new(), 0);
        while seen.len() < sent.len() {
            let datagram = together.recv().await.expect("received");
            for segment in datagram.segments() {
                assert!(segment.len() == 1200 || segment.len() == 7);
                seen.extend_from_slice(&segment);
            }
            datagrams += 1;
        }
        assert!(seen == sent);
        // As plain sockets have them: on Linux 5.10 those of the loopback device come apart.
        assert_eq!(datagrams < 51, loopback_puts_together(setup));
    });
}

/// Whether what one socket has the kernel cut comes to another as one, if it asks for that.
fn loopback_puts_together(setup: Setup) -> bool {
    let (from, to) = (peer(setup), peer(setup));
    for (socket, option, value) in [(&from, libc::UDP_SEGMENT, 100), (&to, libc::UDP_GRO, 1)] {
        let value: libc::c_int = value;
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the kernel reads an int.
        let set = unsafe {
            let value = (&raw const value).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, value, len)
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }
    from.send_to(&[7; 1000], to.local_addr().expect("bound")).expect("sent");
    to.recv(&mut [0; 2000]).expect("received") == 1000
}

fn what_goes_together_comes_one_by_one(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        let mut third = bind(setup, UdpSocket::options().coalesce(false)).await;
        for sender in [&mut one, &mut third] {
            // Of one size; a shorter one; an empty one; a longer one; more than the kernel cuts out of one.
            let sizes = [[100; 20].as_slice(), &[99, 0, 101], &[64; 150]].concat();
            for (seed, size) in sizes.iter().enumerate() {
                sender.stage(Outgoing::to(bytes(*size, seed), at(&other)));
            }
            sender.flush().await.expect("sent");
            for (seed, size) in sizes.into_iter().enumerate() {
                assert!(other.recv().await.expect("received").bytes == bytes(size, seed));
            }
        }
    });
}

fn one_that_is_connected_hears_nobody_else(setup: Setup) {
    let _others = beside_others();
    let (peer, stranger) = (peer(setup), peer(setup));
    run(setup, move || async move {
        let options = UdpSocket::options();
        let mut socket =
            options.connect(peer.local_addr().expect("bound")).await.expect("connected");
        stranger.send_to(b"stranger", at(&socket)).expect("sent");
        socket.send(Outgoing::connected(b"hello")).await.expect("sent");
        peer.recv(&mut [0; 5]).expect("received");
        peer.send_to(b"peer", at(&socket)).expect("sent");
        assert!(socket.recv().await.expect("received").bytes == *b"peer");
    });
}

fn a_broadcast_is_replied_to(setup: Setup) {
    let _others = beside_others();
    if !setup.address().starts_with("127") {
        return;
    }
    let peer = Std::bind("127.0.0.1:0").expect("bound");
    peer.set_broadcast(true).expect("an option");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    run(setup, move || async move {
        let options = UdpSocket::options().local_address(true);
        let mut socket = options.bind("0.0.0.0:0").await.expect("bound");
        peer.send_to(b"all", ("127.255.255.255", at(&socket).port())).expect("sent");
        let datagram = socket.recv().await.expect("received");
        socket.send(Outgoing::reply(b"one", &datagram)).await.expect("sent");
        assert_eq!(peer.recv(&mut [0; 4]).expect("a reply"), 3);
    });
}

fn who_is_not_there_is_told_and_no_end(setup: Setup) {
    let _others = beside_others();
    let nowhere = {
        let peer = peer(setup);
        peer.local_addr().expect("bound")
    };
    run(setup, move || async move {
        let mut socket = bind(setup, UdpSocket::options()).await;
        socket.connect(nowhere).expect("connected");
        assert_eq!(socket.peer_addr().expect("connected"), nowhere);
        socket.send(Outgoing::connected(b"?")).await.expect("sent");
        let error = socket.recv().await.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        socket.send(Outgoing::connected(b"?")).await.expect("sent");
        let error = socket.send(Outgoing::connected(b"?")).await.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let peer = Std::bind(nowhere).expect("bound");
        peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // What the kernel tells is of the one before, and this one goes.
        let error =
            socket.send(Outgoing::connected(b"hello")).await.expect_err("of the one before");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let mut seen = [0; 8];
        assert_eq!(peer.recv(&mut seen).expect("received"), 5);
        peer.send_to(b"there", at(&socket)).expect("sent");
        assert!(socket.recv().await.expect("received").bytes == *b"there");
    });
}

fn what_cannot_be_sent_costs_the_others_nothing(setup: Setup) {
    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        one.stage(Outgoing::to(b"before", at(&other)));
        one.stage(Outgoing::to(vec![0; 70_000], at(&other)));
        one.stage(Outgoing::connected(b"nowhere"));
        one.stage(Outgoing::to(b"behind", at(&other)));
        let error = one.flush().await.expect_err("too large");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(one.staged(), 0);
        one.flush().await.expect("nothing is left");
        let error = one.send(Outgoing::connected(b"nowhere")).await.expect_err("nowhere");
        assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ));
        assert!(other.recv().await.expect("received").bytes == *b"before");
        assert!(other.recv().await.expect("received").bytes == *b"behind");
        if at(&one).is_ipv4() {
            let foreign = SocketAddr::new("::1".parse().expect("an address"), 9);
            let error = one.send(Outgoing::to(b"x", foreign)).await.expect_err("another family");
            assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
        } else {
            let mut strict = bind(setup, UdpSocket::options().only_v6(true)).await;
            let foreign = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9);
            let error = strict.send(Outgoing::to(b"x", foreign)).await.expect_err("another family");
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
        }
    });
}

fn halves_send_from_anywhere(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let (address, senders) = block_on(pollers.spawn(move || async move {
        let options = UdpSocket::options().receive_buffer_bytes(4 << 20);
        let mut socket = bind(setup, options).await;
        let (address, sender) = (at(&socket), socket.sender());
        task::spawn_local(async move {
            let mut received = Vec::new();
            while socket.recv_many(&mut received).await.is_ok() {
                for datagram in received.drain(..) {
                    socket.stage(Outgoing::reply(datagram.bytes.clone(), &datagram));
                }
                socket.flush().await.expect("sent");
            }
        });
        (address, [sender.clone(), sender])
    }))
    .expect("no panic");
    let peer = peer(setup);
    let to = peer.local_addr().expect("bound");
    std::thread::scope(|scope| {
        for (number, mut sender) in senders.into_iter().enumerate() {
            scope.spawn(move || {
                for _ in 0..50 {
                    block_on(sender.send(Outgoing::to(vec![number as u8], to))).expect("sent");
                }
            });
        }
    });
    let mut seen = [0; 2];
    for _ in 0..100 {
        let mut byte = [9];
        assert_eq!(peer.recv(&mut byte).expect("received"), 1);
        seen[usize::from(byte[0])] += 1;
    }
    assert_eq!(seen, [50, 50]);
    peer.send_to(b"echo", address).expect("sent");
    assert_eq!(peer.recv(&mut [0; 5]).expect("received"), 4);
}

fn drops_are_counted(setup: Setup) {
    let _others = beside_others();
    let peer = peer(setup);
    run(setup, move || async move {
        let options = UdpSocket::options().count_drops(true).receive_buffer_bytes(1);
        let mut socket = bind(setup, options).await;
        let mut sent = 0;
        for _ in 0..100 {
            sent += u32::from(peer.send_to(&[7; 500], at(&socket)).is_ok());
        }
        socket.recv().await.expect("received");
        let mut came = 1;
        while poll_once(pin!(socket.recv())).is_ready() {
            came += 1;
        }
        // The next one tells.
        peer.send_to(b"x", at(&socket)).expect("sent");
        socket.recv().await.expect("received");
        assert!(came < sent, "it had room for all");
        assert_eq!(socket.dropped(), sent - came);
    });
}

fn a_flood_starves_nobody(setup: Setup) {
    let _others = beside_others();
    let peer = peer(setup);
    run(setup, move || async move {
        let mut socket = bind(setup, UdpSocket::options()).await;
        let to = at(&socket);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let flood = std::thread::spawn(move || {
            let mut sent = 0u64;
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                sent += u64::from(peer.send_to(&[7; 64], to).is_ok());
            }
            sent
        });
        let floods = task::spawn_local(async move {
            let mut received = Vec::new();
            loop {
                socket.recv_many(&mut received).await.expect("received");
                received.clear();
            }
        });
        // Other tasks and sockets of the poller have their turn.
        let (mut one, mut other) = pair(setup).await;
        for number in 0..200u8 {
            one.send(Outgoing::to(vec![number], at(&other))).await.expect("sent");
            assert!(other.recv().await.expect("received").bytes == [number]);
            time::sleep(Duration::from_millis(1)).await;
        }
        drop(stop);
        assert!(flood.join().expect("no panic") > 0);
        floods.abort();
    });
}

fn nothing_is_left_behind(setup: Setup) {
    let _alone = nobody_beside();
    let pollers = setup.pollers(1);
    let before = open_descriptors();
    block_on(pollers.spawn(move || async move {
        for _ in 0..100 {
            let (mut one, mut other) = pair(setup).await;
            one.send(Outgoing::to(bytes(5000, 1), at(&other))).await.expect("sent");
            assert_eq!(other.recv().await.expect("received").bytes.len(), 5000);
            assert!(poll_once(pin!(other.recv())).is_pending());
        }
    }))
    .expect("no panic");
    // A poller lets go a moment later.
    eventually("all are closed", || open_descriptors() <= before);
}

fn a_poller_that_ends_says_so(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let socket = pollers.spawn(move || async move { bind(setup, UdpSocket::options()).await });
    let mut socket = block_on(socket).expect("no panic");
    pollers.stop();
    let error = block_on(socket.recv()).expect_err("nobody watches");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

fn a_bind_that_is_dropped_leaves_nothing(setup: Setup) {
    let _alone = nobody_beside();
    let pollers = setup.pollers(1);
    let _entered = pollers.enter();
    let settled = || block_on(pollers.spawn(|| async {})).expect("no panic");
    settled();
    let before = open_descriptors();
    for _ in 0..20 {
        // The poller is held up, so that it has not answered.
        let (begins, begun) = mpsc::channel();
        let (goes_on, until) = mpsc::channel::<()>();
        let held = pollers.spawn(move || async move {
            begins.send(()).expect("somebody waits");
            let _ = until.recv();
        });
        begun.recv().expect("it runs");
        let options = UdpSocket::options();
        let mut binding = pin!(options.bind(setup.address()));
        assert!(poll_once(binding.as_mut()).is_pending());
        let mut pair = pin!(UnixDatagram::pair());
        assert!(poll_once(pair.as_mut()).is_pending());
        let mut fd = pin!(AsyncFd::new(Std::bind("127.0.0.1:0").expect("bound")));
        assert!(poll_once(fd.as_mut()).is_pending());
        drop(goes_on);
        block_on(held).expect("no panic");
        // By then it has answered, and nobody has looked.
        settled();
    }
    eventually("all are closed", || open_descriptors() <= before);
}

fn an_address_is_free_behind_close_and_shutdown(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(2);
    for _ in 0..50 {
        let closed = pollers.spawn(move || async move {
            let socket = bind(setup, UdpSocket::options()).await;
            let address = at(&socket);
            socket.close().await;
            address
        });
        Std::bind(block_on(closed).expect("no panic")).expect("nobody is there");
        let server = UdpServer::serve(&pollers, UdpSocket::options(), setup.address(), echo);
        let server = server.expect("a server");
        assert_eq!(server.shutdown(PATIENCE), 0);
        Std::bind(server.local_addr()).expect("nobody is there");
    }
}

fn who_sends_as_a_datagram_is_dropped_sends(setup: Setup) {
    /// Bytes whose owner says that they are not needed any more.
    struct Owned(UdpSender, SocketAddr);

    impl AsRef<[u8]> for Owned {
        fn as_ref(&self) -> &[u8] {
            b"sent"
        }
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            self.0.stage(Outgoing::to(b"dropped", self.1));
            assert!(poll_once(pin!(self.0.flush())).is_ready());
        }
    }

    let _others = beside_others();
    run(setup, move || async move {
        let (mut one, mut other) = pair(setup).await;
        let owned = Bytes::from_owner(Owned(one.sender(), at(&other)));
        one.send(Outgoing::to(owned, at(&other))).await.expect("sent");
        assert!(other.recv().await.expect("received").bytes == *b"sent");
        assert!(other.recv().await.expect("received").bytes == *b"dropped");
    });
}

fn descriptors_that_come_along_are_closed(setup: Setup) {
    let _alone = nobody_beside();
    let (one, other) = net::UnixDatagram::pair().expect("a pair");
    let before = open_descriptors();
    let receive = move || async move {
        let mut other = UnixDatagram::from_unix(other.into()).await.expect("watched");
        for _ in 0..20 {
            assert!(other.recv().await.expect("received").bytes == *b"with some");
        }
    };
    let pollers = setup.pollers(1);
    let received = pollers.spawn(receive);
    for _ in 0..20 {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [one.as_fd(); 3];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [IoSlice::new(b"with some")];
        sendmsg(&one, &bytes, &mut control, SendFlags::empty()).expect("sent");
    }
    block_on(received).expect("no panic");
    drop(pollers);
    eventually("all are closed", || open_descriptors() <= before);
}

/// An abstract name of this thread's.
fn unix_name(of: &str) -> String {
    format!("unix:@duopoll-udp-{}-{:?}-{of}", std::process::id(), std::thread::current().id())
}

fn unix_sockets_have_datagrams(setup: Setup) {
    let _others = beside_others();
    run(setup, || async {
        let name = unix_name("server");
        let mut server = UnixDatagram::bind(&name).await.expect("bound");
        let own = format!("{name}-client");
        let mut client = UnixDatagram::bind(&own).await.expect("bound");
        for (seed, size) in [0, 1, 2048, 2049, 65_000].into_iter().enumerate() {
            let to = server.local_addr().expect("bound");
            client.send(Outgoing::to(bytes(size, seed), to)).await.expect("sent");
            let datagram = server.recv().await.expect("received");
            assert!(datagram.bytes == bytes(size, seed) && !datagram.is_cut);
            assert_eq!(datagram.from, own.parse::<Address>().expect("an address"));
            server.send(Outgoing::reply(datagram.bytes.clone(), &datagram)).await.expect("sent");
            assert!(client.recv().await.expect("received").bytes == bytes(size, seed));
        }
        // There is room for 64 KiB of one.
        let to = server.local_addr().expect("bound");
        client.send(Outgoing::to(bytes(70_000, 1), to.clone())).await.expect("sent");
        let datagram = server.recv().await.expect("received");
        assert!(datagram.is_cut && datagram.bytes == bytes(70_000, 1)[..65_535]);
        let mut unnamed = UnixDatagram::unbound().await.expect("a socket");
        unnamed.connect(&to).expect("connected");
        unnamed.send(Outgoing::connected(b"x")).await.expect("sent");
        assert_eq!(server.recv().await.expect("received").from, Address::Unnamed);
        let tcp = "127.0.0.1:9".parse::<Address>().expect("an address");
        let error = client.send(Outgoing::to(b"x", tcp)).await.expect_err("another kind");
        assert!(error.raw_os_error().is_some(), "{error}");
        // A peer that does not read is waited for, by whoever has not connected to it.
        let full = server.local_addr().expect("bound");
        let fills = task::spawn_local(async move {
            for number in 0..500u32 {
                let datagram = Outgoing::to(number.to_be_bytes().to_vec(), full.clone());
                client.send(datagram).await.expect("sent");
            }
            client
        });
        for number in 0..500u32 {
            assert!(server.recv().await.expect("received").bytes == number.to_be_bytes());
        }
        let mut client = fills.await.expect("no panic");
        drop(server);
        // The poller lets go a moment later; it runs this, too.
        while unnamed.connect(&to).is_ok() {
            time::sleep(Duration::from_millis(1)).await;
        }
        let error = client.send(Outgoing::to(b"x", to)).await.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

fn one_that_has_no_peer_costs_the_others_nothing(setup: Setup) {
    let _others = beside_others();
    run(setup, || async {
        let name = unix_name("other");
        let mut one = UnixDatagram::unbound().await.expect("a socket");
        let mut other = UnixDatagram::bind(&name).await.expect("bound");
        let to = other.local_addr().expect("bound");
        one.stage(Outgoing::connected(b"nowhere".to_vec()));
        for text in [b"first ", b"second"] {
            one.stage(Outgoing::to(text.to_vec(), to.clone()));
        }
        // The kernel's, which is of that one only.
        let error = one.flush().await.expect_err("there is no peer");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        assert_eq!(one.staged(), 0);
        for text in [b"first ", b"second"] {
            assert!(other.recv().await.expect("received").bytes == *text);
        }
    });
}

fn who_waits_for_a_full_unix_socket_hears_of_the_end(setup: Setup) {
    let _others = beside_others();
    let full = net::UnixDatagram::bind_addr(
        &net::SocketAddr::from_abstract_name(&unix_name("full")["unix:@".len()..]).expect("a name"),
    )
    .expect("bound");
    let to = Address::from_str(&unix_name("full")).expect("an address");
    let pollers = setup.pollers(1);
    let socket = pollers.spawn(UnixDatagram::unbound);
    let mut socket = block_on(socket).expect("no panic").expect("a socket");
    for _ in 0..10_000 {
        socket.stage(Outgoing::to(b"more than there is room for", to.clone()));
    }
    assert!(poll_once(pin!(socket.flush())).is_pending());
    pollers.stop();
    let error = block_on(socket.flush()).expect_err("nobody tells of room");
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(socket.staged() > 0);
    drop(full);
}

fn a_unix_socket_waits_for_room(setup: Setup) {
    let _others = beside_others();
    run(setup, || async {
        let (mut one, mut other) = UnixDatagram::pair().await.expect("a pair");
        let mut sender = one.sender();
        let sends = task::spawn_local(async move {
            for number in 0..1000u32 {
                one.stage(Outgoing::connected(number.to_be_bytes().to_vec()));
            }
            one.flush().await.expect("sent");
        });
        let others = task::spawn_local(async move {
            for _ in 0..100 {
                sender.send(Outgoing::connected(b"other")).await.expect("sent");
            }
        });
        time::sleep(Duration::from_millis(20)).await;
        assert!(!sends.is_finished(), "it has room for all");
        let (mut next, mut from_others) = (0u32, 0);
        while next < 1000 || from_others < 100 {
            let datagram = other.recv().await.expect("received");
            if datagram.bytes == *b"other" {
                from_others += 1;
            } else {
                assert!(datagram.bytes == next.to_be_bytes());
                next += 1;
            }
        }
        sends.await.expect("no panic");
        others.await.expect("no panic");
    });
}

fn room_is_told_on_other_threads(setup: Setup) {
    const EACH: u32 = 2000;
    let _others = beside_others();
    run(setup, || async {
        let (one, mut other) = UnixDatagram::pair().await.expect("a pair");
        // There is room for some ten, so they wait again and again, both at once.
        let send = |mut sender: DatagramSender<Address>, number: u8| {
            thread::spawn(move || {
                for count in 0..EACH {
                    let bytes = [&[number][..], &count.to_be_bytes()].concat();
                    block_on(sender.send(Outgoing::connected(bytes))).expect("sent");
                }
            })
        };
        let senders = [send(one.sender(), 0), send(one.sender(), 1)];
        let mut next = [0; 2];
        while next != [EACH; 2] {
            let received = time::timeout(PATIENCE, other.recv()).await;
            let datagram = received.expect("room is told").expect("received");
            let next = &mut next[usize::from(datagram.bytes[0])];
            assert!(datagram.bytes[1..] == next.to_be_bytes());
            *next += 1;
        }
        for sender in senders {
            sender.join().expect("no panic");
        }
    });
}

#[test]
fn what_is_no_socket_of_udp_is_refused() {
    let _others = beside_others();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let error = block_on(UdpSocket::from_fd(stream.into(), &UdpOptions::default()));
    assert!(error.is_err());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let error = block_on(UdpSocket::from_fd(listener.into(), &UdpOptions::default()));
    assert_eq!(error.expect_err("TCP").raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn std_sockets_are_taken_on() {
    let _others = beside_others();
    let socket = Std::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("bound");
    let mut socket = block_on(UdpSocket::from_std(socket)).expect("taken on");
    let peer = Std::bind("127.0.0.1:0").expect("bound");
    peer.send_to(b"hello", address).expect("sent");
    assert!(block_on(socket.recv()).expect("received").bytes == *b"hello");
}

#[test]
fn groups_are_joined_and_left() {
    let _others = beside_others();
    block_on(async {
        let mut socket =
            UdpSocket::options().reuse_port(true).bind("0.0.0.0:0").await.expect("bound");
        let (group, lo) = (Ipv4Addr::new(239, 1, 2, 3), Ipv4Addr::LOCALHOST);
        socket.join_multicast_v4(group, lo).expect("joined");
        let peer = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
        let peer = peer.expect("a socket");
        peer.set_multicast_if_v4(&lo).expect("an interface");
        let to = SocketAddr::new(group.into(), at(&socket).port());
        peer.send_to(b"all", &to.into()).expect("sent");
        let received = time::timeout(PATIENCE, socket.recv()).await.expect("in time");
        assert!(received.expect("received").bytes == *b"all");
        socket.leave_multicast_v4(group, lo).expect("left");
        assert!(socket.leave_multicast_v4(group, lo).is_err());
    });
}

/// Echoes; a datagram that says so has it panic.
async fn echo(socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>) {
    for datagram in datagrams.drain(..) {
        assert!(datagram.bytes != *b"panic");
        socket.stage(Outgoing::reply(datagram.bytes.clone(), &datagram));
    }
}

fn round_trip(peer: &Std, to: SocketAddr, sent: &[u8]) -> Vec<u8> {
    peer.send_to(sent, to).expect("sent");
    let mut seen = vec![0; 2000];
    let n = peer.recv(&mut seen).expect("a reply");
    seen.truncate(n);
    seen
}

fn a_server_has_a_socket_on_each_poller(setup: Setup) {
    let _others = beside_others();
    let pollers = Pollers::options().engine(setup.engine).count(3).start().expect("pollers");
    let options = UdpSocket::options();
    let server = UdpServer::serve(&pollers, options, setup.address(), echo).expect("a server");
    let address = server.local_addr();
    // The kernel may deal to sockets that are not watched yet: they are served all the same.
    for number in 0..50u8 {
        assert_eq!(round_trip(&peer(setup), address, &[number; 100]), [number; 100]);
    }
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop(server);
    // The address is free.
    eventually("nobody has it", || Std::bind(address).is_ok());
}

fn a_handler_that_panics_ends_nothing(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let options = UdpSocket::options();
    let server = UdpServer::serve(&pollers, options, setup.address(), echo).expect("a server");
    let peer = peer(setup);
    let before = pollers.stats().handler_panics;
    for _ in 0..3 {
        peer.send_to(b"panic", server.local_addr()).expect("sent");
        // It may be in one batch with the next, which is lost then.
        peer.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        eventually("it is served", || {
            let _ = peer.send_to(b"on", server.local_addr());
            peer.recv(&mut [0; 10]).is_ok()
        });
    }
    eventually("they are counted", || pollers.stats().handler_panics == before + 3);
}

fn a_handler_that_blocks_its_poller_holds_up_no_shutdown(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let (begins, begun) = mpsc::channel();
    let (goes_on, until) = mpsc::channel::<()>();
    let until = Mutex::new(until);
    let block = async move |_: &mut UdpSocket, _: &mut Vec<Datagram>| {
        begins.send(()).expect("somebody waits");
        let _ = until.lock().expect("no panic").recv();
    };
    let server = UdpServer::serve(&pollers, UdpSocket::options(), setup.address(), block);
    let server = server.expect("a server");
    peer(setup).send_to(b"block", server.local_addr()).expect("sent");
    begun.recv_timeout(PATIENCE).expect("it is called");
    // It would wait for ever if it waited for the poller.
    assert_eq!(server.shutdown(Duration::from_millis(20)), 1);
    drop(goes_on);
}

fn a_handler_may_panic_as_it_is_called_and_dropped(setup: Setup) {
    struct PanicsAsItIsDropped;

    impl Future for PanicsAsItIsDropped {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }
    }

    impl Drop for PanicsAsItIsDropped {
        fn drop(&mut self) {
            panic!("as the test wants it");
        }
    }

    fn reply(socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>) {
        for datagram in datagrams.drain(..) {
            assert!(datagram.bytes != *b"panic", "as the test wants it");
            socket.stage(Outgoing::reply(datagram.bytes.clone(), &datagram));
        }
    }

    let panics_as_it_is_called = |socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>| {
        reply(socket, datagrams);
        ready(())
    };
    let panics_as_it_is_dropped = |socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>| {
        datagrams.retain(|datagram| datagram.bytes != *b"panic");
        reply(socket, datagrams);
        PanicsAsItIsDropped
    };
    let _others = beside_others();
    let (pollers, options) = (setup.pollers(1), UdpSocket::options());
    let at = setup.address();
    let servers = [
        UdpServer::serve(&pollers, options, &at, panics_as_it_is_called).expect("a server"),
        UdpServer::serve(&pollers, options, &at, panics_as_it_is_dropped).expect("a server"),
    ];
    for server in servers {
        let peer = peer(setup);
        peer.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        for _ in 0..3 {
            peer.send_to(b"panic", server.local_addr()).expect("sent");
            eventually("it is served", || {
                let _ = peer.send_to(b"on", server.local_addr());
                peer.recv(&mut [0; 10]).is_ok()
            });
        }
    }
}

fn a_shutdown_waits_for_handlers(setup: Setup) {
    let _others = beside_others();
    let pollers = setup.pollers(1);
    let (begins, begun) = std::sync::mpsc::channel();
    let begins = std::sync::Mutex::new(begins);
    let slow = async move |socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>| {
        begins.lock().expect("no panic").send(()).expect("the test waits");
        time::sleep(Duration::from_millis(50)).await;
        echo(socket, datagrams).await;
    };
    let options = UdpSocket::options();
    let server = UdpServer::serve(&pollers, options, setup.address(), slow).expect("a server");
    let peer = peer(setup);
    peer.send_to(b"last", server.local_addr()).expect("sent");
    begun.recv_timeout(PATIENCE).expect("it has come");
    assert_eq!(server.shutdown(PATIENCE), 0);
    let mut seen = [0; 5];
    assert_eq!(peer.recv(&mut seen).expect("a reply"), 4);
}

fn servers_of_several_pollers_have_ports_of_their_own(setup: Setup) {
    let _alone = nobody_beside();
    let pollers = setup.pollers(2);
    let serve = |address: String| {
        let ignore = async |_: &mut UdpSocket, datagrams: &mut Vec<Datagram>| datagrams.clear();
        UdpServer::serve(&pollers, UdpSocket::options(), address, ignore)
    };
    let servers: Vec<_> =
        (0..support::scaled(400)).map(|_| serve(setup.address()).expect("a server")).collect();
    let ports: HashSet<_> = servers.iter().map(|server| server.local_addr().port()).collect();
    assert_eq!(ports.len(), servers.len());
    let taken = serve(servers[0].local_addr().to_string()).expect_err("somebody is there");
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
}
