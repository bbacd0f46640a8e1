//! Those that are asked what is not known.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::PushError;
use domain::base::{Message, MessageBuilder, ToName};
use duopoll::udp::{Outgoing, UdpSocket};
use duopoll::{Dialer, Slice, time};

use crate::answer::Answer;
use crate::query::Query;
use crate::stats::Stats;

/// How often each is asked before there is no answer.
const ROUNDS: usize = 2;
/// What they may send us over UDP, in bytes: what comes through everywhere in one piece.
const UDP_BYTES: u16 = 1232;
/// Datagrams to one query that are no answer to it. Then somebody is guessing.
const STRAYS_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Upstreams {
    addresses: Vec<SocketAddr>,
    /// Who has answered last.
    first: AtomicUsize,
    timeout: Duration,
    stats: Arc<Stats>,
}

impl Upstreams {
    pub(crate) fn new(addresses: Vec<SocketAddr>, timeout: Duration, stats: Arc<Stats>) -> Self {
        Upstreams { addresses, first: AtomicUsize::new(0), timeout, stats }
    }

    /// Asks one after the other. Where each fails, the last failure that was told; none if none was.
    pub(crate) async fn ask(&self, query: &Query) -> Option<Answer> {
        let count = self.addresses.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = None;
        for turn in 0..count * ROUNDS {
            let at = (first + turn) % count;
            let asked = time::timeout(self.timeout, self.ask_one(self.addresses[at], query)).await;
            let answer = match asked {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => {
                    self.stats.upstream_failures.add(1);
                    continue;
                }
            };
            match Message::from_octets(&*answer).map(|answer| answer.header().rcode()) {
                Ok(Rcode::NOERROR | Rcode::NXDOMAIN | Rcode::YXDOMAIN) => {}
                _ => {
                    self.stats.upstream_failures.add(1);
                    failure = Answer::new(query, &answer, time::now()).ok().or(failure);
                    continue;
                }
            }
            match Answer::new(query, &answer, time::now()) {
                Ok(answer) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Some(answer);
                }
                Err(_) => self.stats.upstream_failures.add(1),
            }
        }
        failure
    }

    async fn ask_one(&self, upstream: SocketAddr, query: &Query) -> io::Result<Slice> {
        let answer = self.by_udp(upstream, query).await?;
        let is_truncated = Message::from_octets(&*answer).is_ok_and(|answer| answer.header().tc());
        if is_truncated { self.by_tcp(upstream, query).await } else { Ok(answer) }
    }

    /// By a socket of its own: so the kernel draws a port, and lets nothing in that comes from elsewhere.
    async fn by_udp(&self, upstream: SocketAddr, query: &Query) -> io::Result<Slice> {
        let any = match upstream {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let mut socket = UdpSocket::bind(any).await?;
        socket.connect(upstream)?;
        let id = random_id()?;
        socket.send(Outgoing::connected(asked(query, id)?)).await?;
        for _ in 0..STRAYS_MAX {
            let datagram = socket.recv().await?;
            // It may have come before the socket was connected.
            let is_theirs =
                datagram.from.ip() == upstream.ip() && datagram.from.port() == upstream.port();
            if is_theirs && answers(&datagram.bytes, query, id) {
                return Ok(datagram.bytes);
            }
            self.stats.upstream_strays.add(1);
        }
        Err(io::Error::other("no answer among many datagrams"))
    }

    async fn by_tcp(&self, upstream: SocketAddr, query: &Query) -> io::Result<Slice> {
        let mut connection = Dialer::new().dial_addr(upstream).await?;
        let id = random_id()?;
        let message = asked(query, id)?;
        connection.write(&(message.len() as u16).to_be_bytes())?;
        connection.write(&message)?;
        connection.flush().await?;
        let length = |header: &[u8]| Ok(usize::from(header[0]) << 8 | usize::from(header[1]));
        let answer = connection.frame(2, length).await?;
        if answers(&answer, query, id) {
            return Ok(answer);
        }
        self.stats.upstream_strays.add(1);
        Err(io::Error::other("an answer to something else"))
    }
}

/// What an upstream is sent.
fn asked(query: &Query, id: u16) -> io::Result<Vec<u8>> {
    let built = || -> Result<Vec<u8>, PushError> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(query.checking_disabled());
        // That we know what it is in the answer.
        header.set_ad(true);
        let mut builder = builder.question();
        builder.push((&query.name, query.qtype))?;
        let mut builder = builder.additional();
        builder.opt(|opt| {
            opt.set_udp_payload_size(UDP_BYTES);
            opt.set_dnssec_ok(query.dnssec_ok());
            Ok(())
        })?;
        Ok(builder.finish())
    };
    built().map_err(io::Error::other)
}

/// Whether that is the answer to what was asked.
fn answers(bytes: &[u8], query: &Query, id: u16) -> bool {
    let Ok(message) = Message::from_octets(bytes) else { return false };
    let header = message.header();
    if header.id() != id || !header.qr() || header.opcode() != Opcode::QUERY {
        return false;
    }
    message.sole_question().is_ok_and(|question| {
        question.qname().name_eq(&query.name)
            && question.qtype() == query.qtype
            && question.qclass() == Class::IN
    })
}

fn random_id() -> io::Result<u16> {
    getrandom::u32().map(|id| id as u16).map_err(io::Error::other)
}
