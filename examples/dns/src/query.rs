//! What clients ask.

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::name::FlattenInto;
use domain::base::opt::OptRecord;
use domain::base::{Header, HeaderSection, Message, Name};

/// What is told to clients that we receive over UDP at most, and what we send at most, in bytes.
pub(crate) const UDP_BYTES_MAX: u16 = 4096;
/// What every client receives (RFC 1035), in bytes.
const UDP_BYTES_MIN: u16 = 512;
pub(crate) const HEADER_BYTES: usize = size_of::<HeaderSection>();
/// Of an OPT record without options.
pub(crate) const OPT_BYTES: usize = 11;
/// A query has its question, OPT, and perhaps a signature. Each further record may have a name that goes through all of the message, pointer by
/// pointer, and there is room for thousands.
const RECORDS_MAX: u16 = 4;
/// Extended errors are in EDNS only. This one: a version that we do not know.
const BAD_VERSION: u8 = 1;

/// What tells questions apart: the name in small letters, the type, and what of the flags changes the answer.
pub(crate) type Key = Box<[u8]>;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    header: Header,
    /// As the client has written it.
    question: Box<[u8]>,
    pub(crate) name: Name<Vec<u8>>,
    pub(crate) qtype: Rtype,
    pub(crate) key: Key,
    edns: Option<Edns>,
}

#[derive(Clone, Copy, Debug)]
struct Edns {
    udp_bytes: u16,
    dnssec_ok: bool,
}

/// What is to be done with what has come.
#[derive(Debug)]
pub(crate) enum Judged {
    Query(Query),
    /// There is nothing to be looked up.
    Reply(Vec<u8>),
    /// It is no query: an answer, or less than a header.
    Nothing,
}

pub(crate) fn judge(bytes: &[u8]) -> Judged {
    let Ok(message) = Message::from_slice(bytes) else { return Judged::Nothing };
    let header = message.header();
    if header.qr() {
        return Judged::Nothing;
    }
    if header.opcode() != Opcode::QUERY {
        return Judged::Reply(bare(header, Rcode::NOTIMP));
    }
    let Some((query, version)) = parsed(message) else {
        return Judged::Reply(bare(header, Rcode::FORMERR));
    };
    if version != 0 {
        let mut reply = query.begin(Rcode::NOERROR);
        query.end(&mut reply, BAD_VERSION);
        return Judged::Reply(reply);
    }
    match query.qtype {
        // Zones are not transferred, and transactions not signed.
        Rtype::AXFR | Rtype::IXFR | Rtype::TSIG | Rtype::TKEY => {
            Judged::Reply(query.error(Rcode::NOTIMP))
        }
        Rtype::OPT => Judged::Reply(query.error(Rcode::FORMERR)),
        _ if query.class() != Class::IN => Judged::Reply(query.error(Rcode::REFUSED)),
        _ => Judged::Query(query),
    }
}

/// The query, and the version of its EDNS.
fn parsed(message: &Message<[u8]>) -> Option<(Query, u8)> {
    let question = message.sole_question().ok()?;
    // A query has nothing that its name could point to.
    if question.qname().is_compressed() {
        return None;
    }
    let counts = message.header_counts();
    let records = [counts.ancount(), counts.nscount(), counts.arcount()];
    if records.into_iter().map(u32::from).sum::<u32>() > RECORDS_MAX.into() {
        return None;
    }
    // All of it has to be in order, and OPT to be there once at most.
    let mut opt = None;
    for record in message {
        let (record, _) = record.ok()?;
        if record.rtype() == Rtype::OPT {
            let record = record.into_record().ok()??;
            if opt.replace(OptRecord::from_record(record)).is_some() {
                return None;
            }
        }
    }
    let edns = opt.as_ref().map(|opt| Edns {
        udp_bytes: opt.udp_payload_size().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
        dnssec_ok: opt.dnssec_ok(),
    });
    let header = message.header();
    let name: Name<Vec<u8>> = question.qname().try_flatten_into().ok()?;
    let question_bytes = name.len() + 4;
    let wire = message.as_slice().get(HEADER_BYTES..HEADER_BYTES + question_bytes)?;
    // Not to the header either.
    if !wire.starts_with(name.as_slice()) {
        return None;
    }
    let mut key = wire.to_ascii_lowercase();
    // Letters apart, a type is not to be lowered.
    key[question_bytes - 4..].copy_from_slice(&wire[question_bytes - 4..]);
    let dnssec_ok = edns.is_some_and(|edns| edns.dnssec_ok);
    key.push(u8::from(dnssec_ok) | u8::from(header.cd()) << 1);
    let query = Query {
        header,
        question: wire.into(),
        qtype: question.qtype(),
        name,
        key: key.into(),
        edns,
    };
    Some((query, opt.map_or(0, |opt| opt.version())))
}

/// A reply that is a header and nothing else.
fn bare(query: Header, rcode: Rcode) -> Vec<u8> {
    let mut reply = vec![0; HEADER_BYTES];
    let header = Header::for_message_slice_mut(&mut reply);
    header.set_id(query.id());
    header.set_opcode(query.opcode());
    header.set_qr(true);
    header.set_rd(query.rd());
    header.set_rcode(rcode);
    reply
}

impl Query {
    fn class(&self) -> Class {
        let [.., high, low] = *self.question else {
            unreachable!("a question ends with its class")
        };
        Class::from_int(u16::from_be_bytes([high, low]))
    }

    /// Whether we are to ask others.
    pub(crate) fn is_recursive(&self) -> bool {
        self.header.rd()
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    pub(crate) fn checking_disabled(&self) -> bool {
        self.header.cd()
    }

    /// How long a reply over UDP may be.
    pub(crate) fn udp_bytes_max(&self) -> usize {
        self.edns.map_or(UDP_BYTES_MIN, |edns| edns.udp_bytes).into()
    }

    /// Where the question ends.
    pub(crate) fn question_end(&self) -> usize {
        HEADER_BYTES + self.question.len()
    }

    /// How long a reply gets by its OPT record.
    pub(crate) fn opt_bytes(&self) -> usize {
        if self.edns.is_some() { OPT_BYTES } else { 0 }
    }

    /// A reply without records.
    pub(crate) fn error(&self, rcode: Rcode) -> Vec<u8> {
        let mut reply = self.begin(rcode);
        self.end(&mut reply, 0);
        reply
    }

    fn begin(&self, rcode: Rcode) -> Vec<u8> {
        let mut reply = vec![0; HEADER_BYTES];
        Header::for_message_slice_mut(&mut reply).set_rcode(rcode);
        reply.extend_from_slice(&self.question);
        // QDCOUNT.
        reply[5] = 1;
        self.address(&mut reply);
        reply
    }

    /// Makes a message the reply to this query, in its own letters. It has to have the same question.
    pub(crate) fn address(&self, reply: &mut [u8]) {
        reply[HEADER_BYTES..self.question_end()].copy_from_slice(&self.question);
        let header = Header::for_message_slice_mut(reply);
        header.set_id(self.header.id());
        header.set_qr(true);
        header.set_aa(false);
        header.set_ra(true);
        header.set_rd(self.header.rd());
        header.set_cd(self.header.cd());
        // Only for those who know what it is (RFC 6840).
        header.set_ad(header.ad() && (self.header.ad() || self.dnssec_ok()));
    }

    /// The OPT record, last, if the query has one.
    pub(crate) fn end(&self, reply: &mut Vec<u8>, extended_error: u8) {
        let Some(edns) = self.edns else { return };
        let [high, low] = UDP_BYTES_MAX.to_be_bytes();
        let flags = if edns.dnssec_ok { 0x80 } else { 0 };
        // The root, the type, what we receive, the error, the version, the flags, no options.
        let opt = [0, 0, 41, high, low, extended_error, 0, flags, 0, 0, 0];
        debug_assert_eq!(opt.len(), OPT_BYTES);
        reply.extend_from_slice(&opt);
        let count = u16::from_be_bytes([reply[10], reply[11]]).saturating_add(1);
        reply[10..12].copy_from_slice(&count.to_be_bytes());
    }
}
