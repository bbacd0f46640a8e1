//! What messages with numbers look like.

use std::io;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It asks for a reply.
    Request,
    /// It answers a request.
    Reply,
    /// It says that there is no reply, and why, as text.
    Failure,
    /// It asks whether somebody is there.
    Ping,
    /// Somebody is.
    Pong,
    /// The server begins no more requests on this connection. It says so once more when those are answered that it had begun.
    GoingAway,
    /// A request that came behind that: it was not begun, and may be sent elsewhere.
    Refused,
}

/// What the header of a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Which request or ping: its answer has the same. Below 2 to the power of [`NUMBER_BITS`](Protocol::NUMBER_BITS); 0 for
    /// [`GoingAway`](Kind::GoingAway).
    pub number: u64,
    /// Bytes behind the header.
    pub body_bytes: usize,
}

/// How the headers of messages are read and written, all of one length.
pub trait Protocol: Send + Sync + 'static {
    /// Bytes of a header, at most 64.
    const HEADER_BYTES: usize;

    /// How many bits the numbers of calls may have that a [`Client`](crate::mux::Client) makes, at most 64. They follow each
    /// other, and begin again behind the last: then a reply to a call that was given up so many calls ago would be taken for
    /// another's.
    const NUMBER_BITS: u32 = 32;

    /// Reads a header.
    ///
    /// # Errors
    /// For what is none. That ends the connection.
    fn read(&self, header: &[u8]) -> io::Result<Head>;

    /// Writes one.
    ///
    /// # Errors
    /// For what cannot be said. The message is not sent: of a request its caller is told, in place of a reply a
    /// [failure](Kind::Failure) is sent, without which the connection ends, and what else there is goes unsaid. A protocol need not know pings,
    /// [`GoingAway`](Kind::GoingAway) and [`Refused`](Kind::Refused).
    fn write(&self, head: Head, header: &mut [u8]) -> io::Result<()>;
}

/// Headers of 13 bytes: how many bytes follow (4), what it is (1: 0 a request, 1 a reply, 2 a failure, 3 a ping, 4 its
/// answer, 5 that the server goes away, 6 a request refused for that), and the number (8). All big-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain;

const KINDS: [Kind; 7] = [
    Kind::Request,
    Kind::Reply,
    Kind::Failure,
    Kind::Ping,
    Kind::Pong,
    Kind::GoingAway,
    Kind::Refused,
];

impl Protocol for Plain {
    const HEADER_BYTES: usize = 13;

    fn read(&self, header: &[u8]) -> io::Result<Head> {
        let kind = KINDS.get(usize::from(header[4])).copied();
        let kind = kind.ok_or_else(|| invalid(format!("{} is no kind of message", header[4])))?;
        let mut number = [0; 8];
        number.copy_from_slice(&header[5..13]);
        let body_bytes = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        Ok(Head { kind, number: u64::from_be_bytes(number), body_bytes })
    }

    fn write(&self, head: Head, header: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(head.body_bytes);
        let length =
            length.map_err(|_| invalid(format!("{} bytes are too many", head.body_bytes)))?;
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4] = head.kind as u8;
        header[5..13].copy_from_slice(&head.number.to_be_bytes());
        Ok(())
    }
}

pub(super) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The longest header.
pub(super) const HEADER_BYTES_MAX: usize = 64;

/// Has a message be a header, and what is in `body`, which is empty then.
pub(super) fn frame<P: Protocol>(
    protocol: &P,
    kind: Kind,
    number: u64,
    body: &mut duopoll_core::LinkBuffer,
    message: &mut duopoll_core::LinkBuffer,
) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES_MAX];
    body.flush();
    let head = Head { kind, number, body_bytes: body.len() };
    protocol.write(head, &mut header[..P::HEADER_BYTES])?;
    message.write(&header[..P::HEADER_BYTES])?;
    message.append(body);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (index, kind) in KINDS.into_iter().enumerate() {
            let head = Head { kind, number: u64::MAX - index as u64, body_bytes: index << 20 };
            let mut header = [0; Plain::HEADER_BYTES];
            Plain.write(head, &mut header).unwrap();
            assert_eq!(Plain.read(&header).unwrap(), head);
        }
        assert_eq!(Plain.read(&[7; 13]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let head = Head { kind: Kind::Reply, number: 0, body_bytes: 1 << 32 };
        assert_eq!(Plain.write(head, &mut [0; 13]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
