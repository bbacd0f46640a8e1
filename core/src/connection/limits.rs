//! What a connection may hold, and how long it may wait.

use std::time::Duration;

/// Limits on what a connection holds.
///
/// ```
/// # extern crate duopoll_core as duopoll;
/// use duopoll::Limits;
///
/// let limits = Limits::default()
///     .message_bytes_max(64 << 10)
///     .idle_timeout(std::time::Duration::from_secs(60));
/// assert_eq!(limits.message_bytes_max, 64 << 10);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The engine stops receiving when so many bytes wait in the inbox; the kernel's window then holds the peer
    /// back. It goes on when the reader takes them. What was received by then comes on top: on epoll one receive, on
    /// io_uring up to 4 MiB, for all connections of a poller together. Default: 1 MiB.
    pub input_high_bytes: usize,
    /// The largest message: a read that wants more bytes at once fails with
    /// [`InvalidData`](std::io::ErrorKind::InvalidData), as does a server whose handler leaves so many unread, and nothing
    /// more is received. In [`frame`](crate::Reader::frame) the header counts. What a peer merely announces is believed up to
    /// here. At most 4 GiB. Default: 16 MiB.
    pub message_bytes_max: usize,
    /// A flush waits while more bytes than this have not been taken by the kernel. Default: 1 MiB.
    pub output_high_bytes: usize,
    /// How long a read may wait. Default: for ever. See [`Control::set_read_timeout`](crate::Control::set_read_timeout).
    pub read_timeout: Option<Duration>,
    /// How long a flush may wait. Default: for ever. See [`Control::set_write_timeout`](crate::Control::set_write_timeout).
    pub write_timeout: Option<Duration>,
    /// How long no byte may move in either direction while the connection waits for its peer. Default: for ever.
    /// See [`Control::set_idle_timeout`](crate::Control::set_idle_timeout).
    pub idle_timeout: Option<Duration>,
    /// Pieces of at least so many bytes, below 4 GiB, are sent without a copy. Default: none. See
    /// [`Control::set_zerocopy`](crate::Control::set_zerocopy).
    #[cfg(feature = "zerocopy")]
    pub zerocopy_bytes: Option<usize>,
    /// The most bytes that a connection may have with the kernel for sends without a copy; what is beyond them is
    /// copied. Default: 4 MiB.
    #[cfg(feature = "zerocopy")]
    pub zerocopy_pinned_bytes: usize,
}

/// Each says what the field of its name is to be.
impl Limits {
    /// When to stop receiving, in bytes.
    pub fn input_high_bytes(self, bytes: usize) -> Limits {
        Limits { input_high_bytes: bytes, ..self }
    }

    /// The largest message, in bytes.
    pub fn message_bytes_max(self, bytes: usize) -> Limits {
        Limits { message_bytes_max: bytes, ..self }
    }

    /// When a flush waits, in bytes.
    pub fn output_high_bytes(self, bytes: usize) -> Limits {
        Limits { output_high_bytes: bytes, ..self }
    }

    /// How long a read may wait.
    pub fn read_timeout(self, timeout: Duration) -> Limits {
        Limits { read_timeout: Some(timeout), ..self }
    }

    /// How long a flush may wait.
    pub fn write_timeout(self, timeout: Duration) -> Limits {
        Limits { write_timeout: Some(timeout), ..self }
    }

    /// How long no byte may move.
    pub fn idle_timeout(self, timeout: Duration) -> Limits {
        Limits { idle_timeout: Some(timeout), ..self }
    }

    /// What is sent without a copy, from so many bytes on.
    #[cfg(feature = "zerocopy")]
    pub fn zerocopy_bytes(self, bytes: usize) -> Limits {
        Limits { zerocopy_bytes: Some(bytes), ..self }
    }

    /// The most bytes that may be with the kernel for that.
    #[cfg(feature = "zerocopy")]
    pub fn zerocopy_pinned_bytes(self, bytes: usize) -> Limits {
        Limits { zerocopy_pinned_bytes: bytes, ..self }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            input_high_bytes: 1 << 20,
            message_bytes_max: 16 << 20,
            output_high_bytes: 1 << 20,
            read_timeout: None,
            write_timeout: None,
            idle_timeout: None,
            #[cfg(feature = "zerocopy")]
            zerocopy_bytes: None,
            #[cfg(feature = "zerocopy")]
            zerocopy_pinned_bytes: 4 << 20,
        }
    }
}
