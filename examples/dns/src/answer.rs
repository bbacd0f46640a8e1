//! What upstreams answer, in the form in which it is kept.

use std::time::{Duration, Instant};

use domain::base::iana::{Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, HashCompressor, PushError};
use domain::base::record::ComposeRecord;
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
        let life = life(query, &answer)?;
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
            builder.push(kept(&record?, life.unwrap_or(0))?)?;
        }
        let mut builder = builder.authority();
        for record in authority {
            builder.push(kept(&record?, life.unwrap_or(0))?)?;
        }
        let mut builder = builder.additional();
        for record in additional {
            let record = record?;
            // Of the hop to the upstream.
            if !matches!(record.rtype(), Rtype::OPT | Rtype::TSIG | Rtype::SIG) {
                push(&mut builder, kept(&record, life.unwrap_or(0))?)?;
            }
        }
        let message = builder.finish().into_target();
        let ttls = ttls(&message, query.question_end())?;
        Ok(Answer { message, ttls, since: now, life: life.unwrap_or(0) })
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

fn push<'a>(
    builder: &mut AdditionalBuilder<HashCompressor<Vec<u8>>>,
    record: impl ComposeRecord + 'a,
) -> Result<(), PushError> {
    builder.push(record)
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
