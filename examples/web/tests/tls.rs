//! TLS over connections: with rustls' own streams at the other end, and with itself.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use common::tls::*;
use duopoll::tls::{TlsAcceptor, TlsConnection, TlsConnector};
use duopoll::{Connection, Dialer, Limits, Server};
use pollster::block_on;
use rustls::server::ResolvesServerCertUsingSni;
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use support::settled::Settled;
use support::{PATIENCE, Pattern, Peer, Random, Setup, connected, eventually, poll_once, scaled};

on_every_setup!(
    every_byte_arrives_once,
    messages_are_read_as_on_a_connection,
    bytes_that_come_one_by_one_are_records_all_the_same,
    tls_1_2_is_spoken,
    small_records_are_sent_if_that_is_said,
    a_long_chain_of_certificates_needs_several_records,
    what_both_have_agreed_on_is_told,
    the_certificate_is_chosen_by_name,
    the_configuration_is_chosen_by_what_the_client_says,
    client_certificates_are_asked_for,
    sessions_are_resumed,
    early_data_comes_first,
    keys_are_changed_in_the_midst,
    the_end_is_said_in_both_directions,
    a_cut_is_no_end,
    who_drops_it_has_not_said_the_end,
    a_handshake_takes_no_longer_than_it_may,
    what_is_no_tls_is_refused,
    who_is_not_trusted_is_refused,
    what_was_changed_on_the_way_is_refused,
    a_peer_that_never_reads_holds_back_the_writer,
    a_message_has_a_limit,
    dropped_futures_lose_nothing,
    a_shutdown_comes_between_two_requests,
    who_reads_does_not_wait_for_room_to_write,
    a_shutdown_does_not_wait_for_who_has_said_nothing,
    what_was_staged_before_goes_first,
);

/// A server that does this on each connection after its handshake.
fn serve<F>(setup: Setup, config: ServerConfig, handler: F) -> Server
where
    F: AsyncFn(TlsConnection) -> io::Result<()> + Send + Sync + Clone + 'static,
{
    serve_by(setup, TlsAcceptor::new(Arc::new(config)), handler)
}

fn serve_by<F>(setup: Setup, acceptor: TlsAcceptor, handler: F) -> Server
where
    F: AsyncFn(TlsConnection) -> io::Result<()> + Send + Sync + Clone + 'static,
{
    let handler = async move |connection: Connection| {
        let tls = acceptor.accept(connection).await?;
        handler(tls).await
    };
    setup.builder().on_connection(handler).serve(setup.listener()).expect("a server")
}

async fn echo(mut tls: TlsConnection) -> io::Result<()> {
    while tls.more().await? {
        let n = tls.input_mut().len();
        let mut front = tls.input_mut().split_to(n)?;
        tls.append(&mut front);
        tls.flush().await?;
    }
    tls.close();
    Ok(())
}

fn every_byte_arrives_once(setup: Setup) {
    let server = serve(setup, server_config(), echo);
    let bytes = scaled(8 << 20);
    let dialer = Dialer::new().pollers(setup.pollers(1));
    let connector = TlsConnector::new(Arc::new(client_config()));
    let tls = block_on(async {
        let connection = dialer.dial_addr(server.local_addr().clone()).await.expect("connected");
        connector.connect(connection, server_name()).await.expect("a handshake")
    });
    let (mut random, mut sent, mut seen) = (Random::new(1), Pattern::new(5), Pattern::new(5));
    let (mut tls, mut unsent, mut unseen) = (tls, bytes, bytes);
    // Both directions at once, by one task.
    block_on(std::future::poll_fn(|cx| {
        loop {
            while unsent > 0 && tls.poll_flush(cx)?.is_ready() {
                let piece = sent.next(random.length(200_000).min(unsent));
                unsent -= piece.len();
                match random.next() % 3 {
                    0 => tls.write(piece)?,
                    1 => tls.push(piece),
                    _ => {
                        let (front, rest) = piece.split_at(piece.len() / 2);
                        tls.write(front)?;
                        tls.push(rest);
                    }
                }
            }
            if tls.poll_flush(cx)?.is_ready() && unsent == 0 && unseen == 0 {
                return Poll::Ready(io::Result::Ok(()));
            }
            match tls.poll_more(cx)? {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(more) => assert!(more, "the end after {}", bytes - unseen),
            }
            while let Some(chunk) = tls.input_mut().next_chunk(usize::MAX) {
                assert!(seen.matches(&chunk), "other bytes after {}", bytes - unseen);
                unseen -= chunk.len();
            }
        }
    }))
    .expect("an echo");
    tls.finish();
    assert!(!block_on(tls.more()).expect("the end"));
}

fn messages_are_read_as_on_a_connection(setup: Setup) {
    let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
    peer.write_all(b"line\nabcd\0\0\0\x05\x07\x00\x02hihead-tail!").expect("sent");
    block_on(async {
        assert_eq!(tls.until(b'\n', 10).await?, b"line\n");
        assert_eq!(tls.peek(4).await?, b"abcd");
        tls.skip(1).await?;
        assert_eq!(tls.next(3).await?, b"bcd");
        assert_eq!(tls.read_u32().await?, 5);
        assert_eq!(tls.read_u8().await?, 7);
        let length = |header: &[u8]| Ok(usize::from(header[1]));
        assert_eq!(tls.frame(2, length).await?, b"hi");
        let mut target = [0; 5];
        assert_eq!(tls.read(&mut target).await?, 5);
        assert_eq!(&target, b"head-");
        tls.fill(5).await?;
        assert_eq!(tls.input_mut().len(), 5);
        let error = tls.until(b'\n', 3).await.expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        tls.write(b"a")?;
        tls.push("b");
        assert_eq!(tls.staged_len(), 2);
        tls.drain().await
    })
    .expect("as it was sent");
    let mut reply = [0; 2];
    peer.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"ab");
}

/// Hands on what it gets byte by byte.
struct ByteByByte(Peer);

impl Read for ByteByByte {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.0.read(target)
    }
}

impl Write for ByteByByte {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bytes_that_come_one_by_one_are_records_all_the_same(setup: Setup) {
    let server = serve(setup, server_config(), echo);
    let connection = client(Peer::connect(server.local_addr()), client_config()).conn;
    let peer = ByteByByte(Peer::connect(server.local_addr()));
    let mut peer = rustls::StreamOwned::new(connection, peer);
    let message: Vec<u8> = (0..=255).collect();
    assert_eq!(round_trip(&mut peer, &message), message);
}

fn tls_1_2_is_spoken(setup: Setup) {
    let server = serve(setup, server_config(), async |tls: TlsConnection| {
        assert_eq!(tls.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        echo(tls).await
    });
    let config = client_config_of(&[&rustls::version::TLS12]);
    let mut peer = client(Peer::connect(server.local_addr()), config);
    let message = Pattern::new(3).next(100_000);
    assert_eq!(round_trip(&mut peer, message), message);
    peer.conn.send_close_notify();
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
}

fn small_records_are_sent_if_that_is_said(setup: Setup) {
    let mut config = server_config();
    config.max_fragment_size = Some(64);
    let server = serve(setup, config, echo);
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    let message = Pattern::new(3).next(40_000);
    assert_eq!(round_trip(&mut peer, message), message);
}

fn a_long_chain_of_certificates_needs_several_records(setup: Setup) {
    // Longer than a record, and shorter than a message may be.
    let names = (0..1000).map(|number| format!("{number}.a-name-that-is-not-short.test"));
    let (certificates, key) = identity(names.chain([NAME.to_owned()]));
    assert!(certificates[0].len() > 20_000);
    let config = server_builder().with_no_client_auth();
    let config = config.with_single_cert(certificates, key).expect("a configuration");
    let server = serve(setup, config, echo);
    let connector = TlsConnector::new(Arc::new(client_config()));
    let dialer = Dialer::new().pollers(setup.pollers(1));
    block_on(async {
        let connection = dialer.dial_addr(server.local_addr().clone()).await?;
        let mut tls = connector.connect(connection, server_name()).await?;
        tls.write(b"hello")?;
        tls.flush().await?;
        assert_eq!(tls.next(5).await?, b"hello");
        io::Result::Ok(())
    })
    .expect("an echo");
}

fn what_both_have_agreed_on_is_told(setup: Setup) {
    let (told, tells) = mpsc::channel();
    let mut config = server_config();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let server = serve(setup, config, async move |tls: TlsConnection| {
        let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
        let name = tls.server_name().map(str::to_owned);
        let _ = told.send((alpn, name, tls.protocol_version(), tls.cipher_suite().is_some()));
        echo(tls).await
    });
    let mut config = client_config();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut peer = client(Peer::connect(server.local_addr()), config);
    assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
    let (alpn, name, version, has_suite) = tells.recv_timeout(PATIENCE).expect("told");
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(name.as_deref(), Some(NAME));
    assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
    assert!(has_suite);
    // Nothing in common.
    let mut config = client_config();
    config.alpn_protocols = vec![b"h9".to_vec()];
    let mut peer = client(Peer::connect(server.local_addr()), config);
    let error = peer.write_all(b"x").and_then(|()| peer.read_exact(&mut [0]));
    assert!(error.expect_err("no protocol").to_string().contains("NoApplicationProtocol"));
}

fn the_certificate_is_chosen_by_name(setup: Setup) {
    let mut resolver = ResolvesServerCertUsingSni::new();
    for name in [NAME, "other.test"] {
        resolver.add(name, certified_key(name)).expect("a name");
    }
    let config = server_builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver));
    let server = serve(setup, config, echo);
    let connector = TlsConnector::new(Arc::new(client_config()));
    let dialer = Dialer::new().pollers(setup.pollers(1));
    let connect = |name: &'static str| {
        block_on(async {
            let connection = dialer.dial_addr(server.local_addr().clone()).await?;
            connector.connect(connection, name.try_into().expect("a name")).await
        })
    };
    let shown = [NAME, "other.test"].map(|name| {
        let tls = connect(name).expect("a handshake");
        tls.peer_certificates().expect("a certificate")[0].clone()
    });
    assert_ne!(shown[0], shown[1]);
    let error = connect("unknown.test").expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
}

fn the_configuration_is_chosen_by_what_the_client_says(setup: Setup) {
    let config = Arc::new(server_config());
    let acceptor = TlsAcceptor::choosing(move |hello| match hello.server_name() {
        Some(NAME) => Ok(config.clone()),
        _ => Err(io::Error::other("nobody of that name")),
    });
    let server = serve_by(setup, acceptor, echo);
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
    let connector = TlsConnector::new(Arc::new(client_config()));
    let dialer = Dialer::new().pollers(setup.pollers(1));
    block_on(async {
        let connection = dialer.dial_addr(server.local_addr().clone()).await.expect("connected");
        let refused = connector.connect(connection, "other.test".try_into().expect("a name")).await;
        assert_eq!(refused.expect_err("refused").kind(), ErrorKind::UnexpectedEof);
    });
}

fn client_certificates_are_asked_for(setup: Setup) {
    let server = serve(setup, strict_server_config(), async |mut tls: TlsConnection| {
        let shown = tls.peer_certificates().map_or(0, <[_]>::len);
        tls.write(&[shown as u8])?;
        tls.flush().await?;
        echo(tls).await
    });
    let mut known = client(Peer::connect(server.local_addr()), known_client_config());
    let mut shown = [0];
    known.read_exact(&mut shown).expect("a handshake");
    assert_eq!(shown, [1]);
    let mut unknown = client(Peer::connect(server.local_addr()), client_config());
    let error = unknown.read_exact(&mut shown).expect_err("nobody");
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

fn sessions_are_resumed(setup: Setup) {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (told, tells) = mpsc::channel();
        let server = serve(setup, server_config(), async move |tls: TlsConnection| {
            let _ = told.send(tls.handshake_kind());
            echo(tls).await
        });
        let connector = TlsConnector::new(Arc::new(client_config_of(&[version])));
        let dialer = Dialer::new().pollers(setup.pollers(1));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            block_on(async {
                let connection = dialer.dial_addr(server.local_addr().clone()).await?;
                let mut tls = connector.connect(connection, server_name()).await?;
                assert_eq!(tls.handshake_kind(), Some(kind));
                tls.write(b"x")?;
                tls.flush().await?;
                // Tickets come before it.
                tls.skip(1).await
            })
            .expect("an echo");
            assert_eq!(tells.recv_timeout(PATIENCE).expect("told"), Some(kind));
        }
    }
}

fn early_data_comes_first(setup: Setup) {
    let mut config = server_config();
    config.max_early_data_size = 1000;
    let server = serve(setup, config, echo);
    let mut config = client_config();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut first = client(Peer::connect(server.local_addr()), config.clone());
    assert_eq!(round_trip(&mut first, b"x"), b"x");
    let mut second = client(Peer::connect(server.local_addr()), config);
    let mut early = second.conn.early_data().expect("resumed");
    early.write_all(b"early ").expect("some");
    second.write_all(b"late").expect("sent");
    let mut reply = [0; 10];
    second.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply, b"early late");
    assert!(second.conn.is_early_data_accepted());
}

fn keys_are_changed_in_the_midst(setup: Setup) {
    let server = serve(setup, server_config(), echo);
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    for _ in 0..10 {
        assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
        peer.conn.refresh_traffic_keys().expect("TLS 1.3");
    }
    // Again and again, and nothing but that: the server has enough of it.
    let mut flood = || {
        peer.conn.refresh_traffic_keys().expect("TLS 1.3");
        while peer.conn.wants_write() {
            peer.conn.write_tls(&mut peer.sock)?;
        }
        io::Result::Ok(())
    };
    let flooded = (0..1000).try_for_each(|_| flood());
    flooded.and_then(|()| peer.read_exact(&mut [0])).expect_err("it is gone");
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
}

fn the_end_is_said_in_both_directions(setup: Setup) {
    let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
    peer.write_all(b"last").expect("sent");
    peer.conn.send_close_notify();
    peer.flush().expect("sent");
    let mut late = peer.sock.try_clone();
    block_on(async {
        assert_eq!(tls.next(4).await.expect("sent"), b"last");
        assert!(!tls.more().await.expect("the end"));
        let error = tls.fill(1).await.expect_err("the end");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("closed"), "{error}");
        // The other direction goes on.
        tls.write(b"reply").expect("staged");
        tls.flush().await.expect("flushed");
        tls.finish();
        tls.write(b"too late").expect("staged");
        let error = tls.flush().await.expect_err("finished");
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        tls.finish();
    });
    let mut reply = Vec::new();
    peer.read_to_end(&mut reply).expect("close_notify");
    assert_eq!(reply, b"reply");
    // The FIN behind it.
    assert_eq!(late.read(&mut [0]).expect("the FIN"), 0);
}

fn a_cut_is_no_end(setup: Setup) {
    let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
    peer.write_all(b"first").expect("sent");
    peer.sock.shutdown(Shutdown::Write);
    block_on(async {
        assert_eq!(tls.next(5).await.expect("sent"), b"first");
        for _ in 0..2 {
            let error = tls.more().await.expect_err("a cut");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("close_notify"), "{error}");
        }
        assert_eq!(tls.read(&mut [0]).await.expect_err("a cut").kind(), ErrorKind::UnexpectedEof);
        // Between two requests it is an end.
        assert!(!tls.next_request().await.expect("an end"));
    });
}

fn who_drops_it_has_not_said_the_end(setup: Setup) {
    let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
    tls.write(b"half").expect("staged");
    block_on(tls.flush()).expect("flushed");
    drop(tls);
    let mut bytes = Vec::new();
    let error = peer.read_to_end(&mut bytes).expect_err("a cut");
    assert_eq!((error.kind(), &bytes[..]), (ErrorKind::UnexpectedEof, &b"half"[..]));
}

fn a_handshake_takes_no_longer_than_it_may(setup: Setup) {
    let (pollers, connection, mut silent) = connected(setup, Limits::default());
    let timeout = Some(Duration::from_millis(100));
    let acceptor = TlsAcceptor::new(Arc::new(server_config())).handshake_timeout(timeout);
    let error = block_on(acceptor.accept(connection)).expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("handshake"), "{error}");
    assert_eq!(silent.read_rest().expect("the end"), b"");
    // Nor with a byte now and then, and for a client neither.
    let listener = setup.listener().pollers(pollers);
    let mut slow = Peer::connect(&listener.local_addr().expect("bound"));
    let connection = block_on(listener.accept()).expect("accepted");
    let drips = thread::spawn(move || {
        // A record that would take a minute.
        let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[0; 501]].concat();
        for byte in hello {
            if slow.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    let connector = TlsConnector::new(Arc::new(client_config())).handshake_timeout(timeout);
    let error = block_on(acceptor.accept(connection)).expect_err("too slow");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    drips.join().expect("no panic");
    let (_pollers, connection, _silent) = connected(setup, Limits::default());
    let error = block_on(connector.connect(connection, server_name())).expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

fn what_is_no_tls_is_refused(setup: Setup) {
    let (told, tells) = mpsc::channel();
    let acceptor = TlsAcceptor::new(Arc::new(server_config()));
    let handler = async move |connection: Connection| {
        match acceptor.accept(connection).await {
            Ok(tls) => echo(tls).await?,
            Err(error) => drop(told.send(error)),
        }
        Ok(())
    };
    let server = setup.builder().on_connection(handler).serve(setup.listener()).expect("a server");
    let long = [&[22, 3, 1, 0xff, 0xff][..], &[0; 100]].concat();
    let unknown = [&[99, 3, 1, 0, 5][..], &[0; 5]].concat();
    let http = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for garbage in [&http[..], &long, &unknown, &[0; 64]] {
        let mut peer = Peer::connect(server.local_addr());
        peer.write_all(garbage).expect("sent");
        let error = tells.recv_timeout(PATIENCE).expect("told");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        let alert = peer.read_rest().expect("the end");
        assert_eq!(alert.first(), Some(&21), "{alert:?} for {garbage:?}");
    }
    // Half of it.
    let mut peer = Peer::connect(server.local_addr());
    peer.write_all(&[22, 3, 1]).expect("sent");
    peer.shutdown(Shutdown::Write);
    assert_eq!(tells.recv_timeout(PATIENCE).expect("told").kind(), ErrorKind::UnexpectedEof);
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
}

fn who_is_not_trusted_is_refused(setup: Setup) {
    let (told, tells) = mpsc::channel();
    let acceptor = TlsAcceptor::new(Arc::new(server_config()));
    let handler = async move |connection: Connection| {
        let _ = told.send(acceptor.accept(connection).await.map(drop));
        Ok(())
    };
    let server = setup.builder().on_connection(handler).serve(setup.listener()).expect("a server");
    let connector = TlsConnector::new(Arc::new(client_config()));
    let dialer = Dialer::new().pollers(setup.pollers(1));
    block_on(async {
        let connection = dialer.dial_addr(server.local_addr().clone()).await.expect("connected");
        let connected = connector.connect(connection, "another.test".try_into().expect("a name"));
        let error = connected.await.expect_err("another name");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("not valid for name"), "{error}");
    });
    // The other side is told.
    let error = tells.recv_timeout(PATIENCE).expect("told").expect_err("an alert");
    assert!(error.to_string().contains("alert"), "{error}");
}

fn what_was_changed_on_the_way_is_refused(setup: Setup) {
    let (_pollers, mut tls, mut peer) = pair(setup, Limits::default());
    let mut record = Vec::new();
    peer.conn.writer().write_all(b"honest").expect("room");
    peer.conn.write_tls(&mut record).expect("a record");
    peer.sock.write_all(&record).expect("sent");
    peer.conn.writer().write_all(b"false").expect("room");
    record.clear();
    peer.conn.write_tls(&mut record).expect("a record");
    *record.last_mut().expect("bytes") ^= 1;
    peer.sock.write_all(&record).expect("sent");
    block_on(async {
        assert_eq!(tls.next(6).await.expect("honest"), b"honest");
        for _ in 0..2 {
            let error = tls.more().await.expect_err("changed");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            let inner = error.get_ref().expect("an error of rustls");
            assert!(inner.downcast_ref::<rustls::Error>().is_some(), "{inner}");
        }
        tls.write(b"x").expect("staged");
        assert_eq!(tls.flush().await.expect_err("it is over").kind(), ErrorKind::InvalidData);
    });
    let error = peer.read_exact(&mut [0]).expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
}

fn a_peer_that_never_reads_holds_back_the_writer(setup: Setup) {
    const HIGH: usize = 64 << 10;
    let mut limits = Limits::default();
    limits.output_high_bytes = HIGH;
    let (pollers, mut tls, mut peer) = pair(setup, limits);
    let bytes = Pattern::new(1).next(500_000);
    let mut flushed = 0;
    loop {
        tls.push(&bytes[..50_000]);
        match poll_once(pin!(tls.flush())) {
            Poll::Ready(result) => result.expect("flushed"),
            Poll::Pending => break,
        }
        flushed += 1;
        assert!(flushed < 1000, "nothing holds it back");
        pollers.settled();
    }
    // By the traits it takes no more than there is room for; the kernel may have found some meanwhile.
    let mut more = 0;
    while let Poll::Ready(taken) = poll_write_once(&mut tls, &bytes[..100]) {
        more += taken.expect("taken");
        assert!(more < 1 << 20, "nothing holds it back");
    }
    let reads = thread::spawn(move || {
        let mut seen = vec![0; (flushed + 1) * 50_000];
        peer.read_exact(&mut seen).expect("all of it");
        assert!(seen.chunks(50_000).all(|chunk| chunk == &bytes[..50_000]));
        peer
    });
    block_on(tls.drain()).expect("sent");
    let Poll::Ready(taken) = poll_write_once(&mut tls, bytes) else { panic!("there is room") };
    assert!((1..=HIGH).contains(&taken.expect("taken")));
    drop(reads.join().expect("no panic"));
}

fn poll_write_once(tls: &mut TlsConnection, bytes: &[u8]) -> Poll<io::Result<usize>> {
    tls.poll_write(&mut Context::from_waker(Waker::noop()), &[io::IoSlice::new(bytes)])
}

fn a_message_has_a_limit(setup: Setup) {
    let mut limits = Limits::default();
    limits.message_bytes_max = 32 << 10;
    let (_pollers, mut tls, mut peer) = pair(setup, limits);
    peer.write_all(&[7; 20_000]).expect("sent");
    block_on(async {
        assert_eq!(tls.next(20_000).await.expect("within it").len(), 20_000);
        let error = tls.fill(1 << 31).await.expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("message_bytes_max"), "{error}");
    });
}

fn dropped_futures_lose_nothing(setup: Setup) {
    let server = serve(setup, server_config(), echo);
    let connector = TlsConnector::new(Arc::new(client_config()));
    let dialer = Dialer::new().pollers(setup.pollers(1));
    let bytes = Pattern::new(9).next(300_000);
    block_on(async {
        let connection = dialer.dial_addr(server.local_addr().clone()).await.expect("connected");
        let mut tls = connector.connect(connection, server_name()).await.expect("a handshake");
        tls.control().set_read_timeout(Some(PATIENCE));
        let (mut sent, mut seen) = (0, 0);
        let mut random = Random::new(3);
        while seen < bytes.len() {
            // Each of them for one poll.
            if sent < bytes.len() && tls.staged_len() == 0 {
                let end = bytes.len().min(sent + random.length(60_000));
                tls.push(&bytes[sent..end]);
                sent = end;
            }
            if let Poll::Ready(result) = poll_once(pin!(tls.flush())) {
                result.expect("flushed");
            }
            let wanted = random.length(40_000).min(bytes.len() - seen);
            if let Poll::Ready(result) = poll_once(pin!(tls.next(wanted))) {
                assert!(*result.expect("bytes") == bytes[seen..seen + wanted], "after {seen}");
                seen += wanted;
            } else {
                duopoll::time::sleep(Duration::from_micros(200)).await;
            }
        }
    });
}

fn a_shutdown_comes_between_two_requests(setup: Setup) {
    let server = serve(setup, server_config(), async |mut tls: TlsConnection| {
        while tls.next_request().await? {
            let line = tls.until(b'\n', 100).await?;
            tls.push(line);
            tls.flush().await?;
        }
        tls.close();
        Ok(())
    });
    let mut peer = client(Peer::connect(server.local_addr()), client_config());
    for _ in 0..3 {
        assert_eq!(round_trip(&mut peer, b"hello\n"), b"hello\n");
    }
    assert_eq!(server.shutdown(PATIENCE), 0);
    // With close_notify.
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
}

/// The tickets of a session with a large client certificate are more than a small watermark, and one task reads while another writes.
fn who_reads_does_not_wait_for_room_to_write(setup: Setup) {
    const BYTES: usize = 8 << 20;
    let names = (0..100).map(|number| format!("{number}.client.test"));
    let (certificates, key) = identity(names);
    let client_config = client_builder(rustls::ALL_VERSIONS).with_root_certificates(roots());
    let client_config = client_config.with_client_auth_cert(certificates, key).expect("one");
    let mut config = strict_server_config();
    config.ticketer = rustls::crypto::ring::Ticketer::new().expect("a ticketer");
    let (pollers, connection, peer) = connected(setup, Limits::default());
    let reads = thread::spawn(move || {
        let mut peer = client(peer, client_config);
        let (mut left, mut buffer) = (BYTES, vec![0; 100_000]);
        while left > 0 {
            left -= peer.read(&mut buffer).expect("bytes");
        }
        peer.write_all(b"done").expect("sent");
        peer
    });
    let acceptor = TlsAcceptor::new(Arc::new(config));
    let tls = block_on(acceptor.accept(connection)).expect("a handshake");
    let tls = std::sync::Mutex::new(tls);
    let lock = || tls.lock().expect("no panic");
    thread::scope(|scope| {
        let reader = scope.spawn(|| block_on(std::future::poll_fn(|cx| lock().poll_fill(cx, 4))));
        let mut left = BYTES;
        while left > 0 {
            let piece = &[7; 50_000][..left.min(50_000)];
            let pieces = [io::IoSlice::new(piece)];
            left -=
                block_on(std::future::poll_fn(|cx| lock().poll_write(cx, &pieces))).expect("taken");
        }
        reader.join().expect("no panic").expect("it is read");
    });
    drop((reads.join().expect("no panic"), pollers));
}

fn a_shutdown_does_not_wait_for_who_has_said_nothing(setup: Setup) {
    let server = serve(setup, server_config(), echo);
    let silent = Peer::connect(server.local_addr());
    eventually("it is there", || server.open_connections() == 1);
    assert_eq!(server.shutdown(PATIENCE), 0);
    drop(silent);
}

fn what_was_staged_before_goes_first(setup: Setup) {
    let acceptor = TlsAcceptor::new(Arc::new(server_config()));
    let handler = async move |mut connection: Connection| {
        connection.until(b'\n', 100).await?;
        connection.write(b"220 go ahead\n")?;
        echo(acceptor.accept(connection).await?).await
    };
    let server = setup.builder().on_connection(handler).serve(setup.listener()).expect("a server");
    let mut peer = Peer::connect(server.local_addr());
    assert_eq!(peer.round_trip_of(b"STARTTLS\n", 13), b"220 go ahead\n");
    let mut peer = client(peer, client_config());
    assert_eq!(round_trip(&mut peer, b"hello"), b"hello");
}
