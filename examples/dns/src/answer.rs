//! What upstreams answer, in the form in which it is kept.

use std::time::{Duration, Instant};

use domain::base::iana::{Rcode, Rtype};
use domain::base::message_builder::{HashCompressor, PushError};
use domain::base::wire::ParseError;
use domain::base::{Header, Message, MessageBuilder, ParsedName, ParsedRecord, Record, Ttl};
use domain::dep::octseq::Parser;
use domain::rdata::{AllRecordData, Soa};

use crate::query::Query;

/// Nothing is kept for longer, whatever it says.
const LIFE_MAX: u32 = 86_400;
/// The same for names and types that are not there (RFC 2308), in seconds.
const NEGATIVE_LIFE_MAX: u32 = 10_800;

/// An answer, without OPT.
#[derive(Debug)]
pub(crate) struct Answer {
    message: Vec<u8>,
    /// Where the TTLs are.
    ttls: Box<[u16]>,
    since: Instant,
    /// How long it may be told again, in seconds.
    life: u32,
}

/// Why an answer is none.
#[derive(Debug)]
pub(crate) enum Malformed {
    Parse,
    /// It says so itself, and there is no way to ask for the rest.
    Cut,
    TooLong,
}

impl From<ParseError> for Malformed {
    fn from(_: ParseError) -> Malformed {
        Malformed::Parse
    }
}

impl From<PushError> for Malformed {
    fn from(_: PushError) -> Malformed {
        Malformed::TooLong
    }
}

type Data<'a> = AllRecordData<&'a [u8], ParsedName<&'a [u8]>>;

impl Answer {
    /// What an upstream has answered to that query, put together anew: so its records are known to be in order, and names in
    /// them point to what is there.
    pub(crate) fn new(query: &Query, answer: &[u8], now: Instant) -> Result<Answer, Malformed> {
        let answer = Message::from_octets(answer).map_err(|_| Malformed::Parse)?;
        if answer.header().tc() {
            return Err(Malformed::Cut);
        }
        let life = life(query, &answer)?.unwrap_or(0);
        let target = HashCompressor::new(Vec::with_capacity(answer.as_slice().len()));
        let Ok(mut builder) = MessageBuilder::from_target(target);
        let header = answer.header();
        builder.header_mut().set_rcode(header.rcode());
        builder.header_mut().set_ad(header.ad());
        let mut builder = builder.question();
        builder.push((&query.name, query.qtype))?;
        let (_, answers, authority, additional) = answer.sections()?;
        let mut builder = builder.answer();
        for record in answers {
            builder.push(kept(&record?, life)?)?;
        }
        let mut builder = builder.authority();
        for record in authority {
            builder.push(kept(&record?, life)?)?;
        }
        let mut builder = builder.additional();
        for record in additional {
            let record = record?;
            // Of the hop to the upstream.
            if !matches!(record.rtype(), Rtype::OPT | Rtype::TSIG | Rtype::SIG) {
                builder.push(kept(&record, life)?)?;
            }
        }
        let message = builder.finish().into_target();
        let ttls = ttls(&message, query.question_end())?;
        Ok(Answer { message, ttls, since: now, life })
    }

    /// How long it may be told again.
    pub(crate) fn life(&self) -> Duration {
        Duration::from_secs(self.life.into())
    }

    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < self.life()
    }

    pub(crate) fn len(&self) -> usize {
        self.message.len()
    }

    /// The reply to a query. What is longer than `bytes_max` says so, and has no records.
    pub(crate) fn reply(&self, query: &Query, now: Instant, bytes_max: usize) -> Vec<u8> {
        let len = self.message.len() + query.opt_bytes();
        if len > bytes_max {
            let mut reply = query.error(Header::for_message_slice(&self.message).rcode());
            Header::for_message_slice_mut(&mut reply).set_tc(true);
            return reply;
        }
        let mut reply = Vec::with_capacity(len);
        reply.extend_from_slice(&self.message);
        query.address(&mut reply);
        let age = now.saturating_duration_since(self.since).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        if age > 0 {
            for at in &self.ttls {
                let at = usize::from(*at);
                let ttl = &mut reply[at..at + 4];
                let left = u32::from_be_bytes([ttl[0], ttl[1], ttl[2], ttl[3]]).saturating_sub(age);
                ttl.copy_from_slice(&left.to_be_bytes());
            }
        }
        query.end(&mut reply, 0);
        reply
    }
}

/// A record as it is kept. What is there for long is not told for longer than the whole may be.
fn kept<'a>(
    record: &ParsedRecord<'a, &'a [u8]>,
    life: u32,
) -> Result<Record<ParsedName<&'a [u8]>, Data<'a>>, ParseError> {
    let mut record = record.to_any_record::<Data<'a>>()?;
    let mut ttl = seconds(record.ttl()).min(LIFE_MAX);
    if matches!(record.data(), AllRecordData::Soa(_)) && life > 0 {
        ttl = ttl.min(life);
    }
    record.set_ttl(Ttl::from_secs(ttl));
    Ok(record)
}

/// How long an answer may be told again, if at all.
fn life(query: &Query, answer: &Message<&[u8]>) -> Result<Option<u32>, ParseError> {
    let rcode = answer.header().rcode();
    if !matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN) {
        return Ok(None);
    }
    let (_, answers, authority, additional) = answer.sections()?;
    let (mut least, mut is_there) = (LIFE_MAX, false);
    for record in answers {
        let record = record?;
        least = least.min(seconds(record.ttl()));
        is_there |= record.rtype() == query.qtype || query.qtype == Rtype::ANY;
    }
    if is_there && rcode == Rcode::NOERROR {
        for record in authority.chain(additional) {
            let record = record?;
            if record.rtype() != Rtype::OPT {
                least = least.min(seconds(record.ttl()));
            }
        }
        return Ok(Some(least));
    }
    // It is not there for as long as its zone says. Where it says nothing, that is not kept.
    for record in authority {
        if let Some(soa) = record?.to_record::<Soa<ParsedName<&[u8]>>>()? {
            let minimum = seconds(soa.data().minimum()).min(seconds(soa.ttl()));
            return Ok(Some(least.min(minimum).min(NEGATIVE_LIFE_MAX)));
        }
    }
    Ok(None)
}

/// The first bit has no meaning; with it there is no time at all (RFC 2181).
fn seconds(ttl: Ttl) -> u32 {
    let seconds = ttl.as_secs();
    if seconds >> 31 == 0 { seconds } else { 0 }
}

/// Where the TTLs are of all records behind the question.
fn ttls(message: &[u8], question_end: usize) -> Result<Box<[u16]>, Malformed> {
    let mut parser = Parser::from_ref(message);
    parser.advance(question_end).map_err(|_| Malformed::Parse)?;
    let mut ttls = Vec::new();
    while parser.remaining() > 0 {
        ParsedName::skip(&mut parser)?;
        ttls.push(u16::try_from(parser.pos() + 4).map_err(|_| Malformed::TooLong)?);
        // The type, the class and the TTL.
        parser.advance(8).map_err(|_| Malformed::Parse)?;
        let bytes = parser.parse_u16_be().map_err(|_| Malformed::Parse)?;
        parser.advance(bytes.into()).map_err(|_| Malformed::Parse)?;
    }
    Ok(ttls.into())
}

#[cfg(test)]
mod tests {
    use domain::base::iana::Class;
    use domain::base::message_builder::OptBuilder;
    use domain::base::{Name, Serial};
    use domain::rdata::A;

    use super::*;
    use crate::query::{Judged, judge};

    /// A query with EDNS, and an answer that has a bit of everything.
    fn exchange() -> (Query, Vec<u8>) {
        let name = Name::vec_from_str("www.example.test").expect("a name");
        let mut builder = MessageBuilder::new_vec().question();
        builder.push((&name, Rtype::A)).expect("room");
        let mut builder = builder.additional();
        let dnssec_ok = |opt: &mut OptBuilder<'_, Vec<u8>>| {
            opt.set_udp_payload_size(4096);
            opt.set_dnssec_ok(true);
            Ok(())
        };
        builder.opt(dnssec_ok).expect("room");
        let Judged::Query(query) = judge(&builder.finish()) else { panic!("a query") };
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_qr(true);
        builder.push((&name, Rtype::A)).expect("room");
        let (class, ttl) = (Class::IN, Ttl::from_secs(100));
        let mut builder = builder.answer();
        for last in 0..3 {
            let data = A::from_octets(192, 0, 2, last);
            builder.push(Record::new(&name, class, ttl, data)).expect("room");
        }
        let mut builder = builder.authority();
        let soa = Soa::new(&name, &name, Serial::from(1), ttl, ttl, ttl, ttl);
        builder.push(Record::new(&name, class, ttl, soa)).expect("room");
        let mut builder = builder.additional();
        builder.opt(|_| Ok(())).expect("room");
        (query, builder.finish())
    }

    #[test]
    fn time_is_counted_down() {
        let (query, bytes) = exchange();
        let now = Instant::now();
        let answer = Answer::new(&query, &bytes, now).expect("in order");
        assert_eq!((answer.life, answer.ttls.len()), (100, 4));
        let later = now + Duration::from_millis(40_500);
        assert!(answer.is_fresh(later) && !answer.is_fresh(now + Duration::from_secs(100)));
        let reply = answer.reply(&query, later, 4096);
        let reply = Message::from_octets(reply).expect("a message");
        for record in reply.answer().expect("in order").chain(reply.authority().expect("in order"))
        {
            assert_eq!(record.expect("in order").ttl().as_secs(), 60);
        }
        assert_eq!(reply.opt().map(|opt| opt.dnssec_ok()), Some(true));
    }

    #[test]
    fn what_was_cut_is_no_answer() {
        let (query, mut bytes) = exchange();
        Header::for_message_slice_mut(&mut bytes).set_tc(true);
        let refused = Answer::new(&query, &bytes, Instant::now());
        assert!(matches!(refused, Err(Malformed::Cut)));
    }

    #[test]
    fn whatever_upstreams_send_is_refused_or_in_order() {
        let (query, bytes) = exchange();
        let mut seed = 1u64;
        let mut random = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let now = Instant::now();
        let mut kept = 0;
        for _ in 0..50_000 {
            let mut bytes = bytes.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(bytes.len() - random(2) * random(40));
            let Ok(answer) = Answer::new(&query, &bytes, now) else { continue };
            kept += 1;
            let reply = answer.reply(&query, now + Duration::from_secs(1), 4096);
            let reply = Message::from_octets(reply).expect("a message");
            assert!(reply.iter().all(|record| record.is_ok()), "{bytes:?}");
            assert!(reply.opt().is_some(), "{bytes:?}");
        }
        assert!(kept > 1000, "{kept}");
    }
}
