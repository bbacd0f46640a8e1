//! What can go wrong in a buffer.

use std::{error, fmt, io};

/// An operation on a buffer was refused. The buffer is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// More bytes were asked for than there are.
    NotEnough {
        /// Bytes asked for.
        needed: usize,
        /// Bytes that could have been given.
        available: usize,
    },
    /// More bytes were committed than had been reserved.
    NotReserved {
        /// Bytes committed.
        committed: usize,
        /// Bytes reserved before.
        reserved: usize,
    },
    /// The allocator refused a block of this many bytes.
    OutOfMemory {
        /// Size of the block, in bytes.
        bytes: usize,
    },
    /// The bytes are not valid UTF-8; they were not consumed.
    NotUtf8,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::NotEnough { needed, available } => {
                write!(f, "{needed} bytes asked for, {available} available")
            }
            Error::NotReserved { committed, reserved } => {
                write!(f, "{committed} bytes committed, {reserved} reserved")
            }
            Error::OutOfMemory { bytes } => write!(f, "no memory for a block of {bytes} bytes"),
            Error::NotUtf8 => f.write_str("the bytes are not valid UTF-8"),
        }
    }
}

impl error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error {
            Error::NotEnough { .. } => io::ErrorKind::UnexpectedEof,
            Error::NotReserved { .. } => io::ErrorKind::InvalidInput,
            Error::OutOfMemory { .. } => io::ErrorKind::OutOfMemory,
            Error::NotUtf8 => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
