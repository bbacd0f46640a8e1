//! What datagrams say: a sequence number, and an argument.
//!
//! ```text
//! 0         8          16
//! ┌─────────┬──────────┬──────────────┐
//! │ sequence│ argument │ filler …     │  little-endian
//! └─────────┴──────────┴──────────────┘
//! ```
//!
//! An echo is answered with itself, whatever it says. Where datagrams are only received, one with an argument asks for the number
//! of those that have come. Where they are only sent, the argument is how many are wanted.

use super::Options;
use super::shape::{Ask, GROUP};

/// The least that a datagram has.
pub const HEADER_BYTES: usize = 16;
/// The sequence number of what is not counted.
pub const GREETING: u64 = u64::MAX;

/// The beginning of a datagram.
pub fn header(sequence: u64, argument: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&sequence.to_le_bytes());
    header[8..].copy_from_slice(&argument.to_le_bytes());
    header
}

/// Sequence number and argument of a datagram; none of one that is too short.
#[inline]
pub fn parse(datagram: &[u8]) -> Option<(u64, u64)> {
    let (sequence, rest) = datagram.split_first_chunk()?;
    let argument = rest.first_chunk()?;
    Some((u64::from_le_bytes(*sequence), u64::from_le_bytes(*argument)))
}

/// An answer: that many bytes of the buffer, that many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of each.
    pub bytes: usize,
    /// How many are sent.
    pub copies: usize,
}

/// What every server does with a datagram.
pub struct Service {
    ask: Ask,
    bytes: usize,
    received: u64,
}

impl Service {
    /// The service that the options ask for.
    pub fn new(options: &Options) -> Service {
        Service { ask: options.ask, bytes: options.bytes, received: 0 }
    }

    /// Whether every datagram is answered with itself.
    pub fn is_echo(&self) -> bool {
        matches!(self.ask, Ask::Echo | Ask::Bulk)
    }

    /// Answers the first `len` bytes of a buffer, in that buffer.
    #[inline]
    pub fn answer(&mut self, buffer: &mut [u8], len: usize) -> Answer {
        if self.is_echo() {
            return Answer { bytes: len, copies: 1 };
        }
        self.received += 1;
        match parse(&buffer[..len]) {
            None | Some((_, 0)) => Answer { bytes: 0, copies: 0 },
            Some((sequence, _)) if self.ask == Ask::Receive => {
                buffer[..HEADER_BYTES].copy_from_slice(&header(sequence, self.received));
                Answer { bytes: HEADER_BYTES, copies: 1 }
            }
            Some((_, wanted)) => {
                Answer { bytes: self.bytes, copies: wanted.min(GROUP as u64) as usize }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ask: Ask) -> Service {
        Service { ask, bytes: 40, received: 0 }
    }

    #[test]
    fn an_echo_may_be_empty() {
        assert_eq!(service(Ask::Echo).answer(&mut [], 0), Answer { bytes: 0, copies: 1 });
    }

    #[test]
    fn what_only_comes_is_counted() {
        let mut service = service(Ask::Receive);
        let mut buffer = header(5, 0);
        assert_eq!(service.answer(&mut buffer, HEADER_BYTES).copies, 0);
        buffer = header(6, 1);
        assert_eq!(service.answer(&mut buffer, HEADER_BYTES).bytes, HEADER_BYTES);
        assert_eq!(parse(&buffer), Some((6, 2)));
    }

    #[test]
    fn no_more_is_sent_than_a_group() {
        let mut buffer = header(5, u64::MAX);
        let answer = service(Ask::Send).answer(&mut buffer, HEADER_BYTES);
        assert_eq!(answer, Answer { bytes: 40, copies: GROUP });
    }
}
