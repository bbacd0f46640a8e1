//! What the engine knows of one registration.

use std::os::fd::{AsRawFd, BorrowedFd};

use duopoll_core::{Kind, Token, TokenTable};
use io_uring::types::Fd;

/// An operation, as it is named in the upper byte of a submission's user data; the token is in the lower seven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Receive = 1,
    Send = 2,
    /// Tells when a watched descriptor becomes ready, until it is cancelled.
    Watch = 3,
    /// Readiness to receive or accept, where the kernel would not wait by itself.
    PollIn = 4,
    /// Readiness to send.
    PollOut = 5,
    /// The eventfd of the waker.
    Wake = 6,
    /// A cancellation, whose own completion says nothing.
    Cancel = 7,
    /// Readiness of a socket whose connect is under way.
    Connect = 8,
    /// Receives until it is cancelled, into buffers that all share.
    ReceiveMulti = 9,
    /// Sends without a copy. The token is that of the send and not of the socket: it may outlive it.
    #[cfg(feature = "zerocopy")]
    SendZeroCopy = 11,
}

impl Op {
    pub(crate) fn user_data(self, token: Token) -> u64 {
        u64::from(self as u8) << 56 | token.to_bits()
    }

    pub(crate) fn parse(user_data: u64) -> Option<(Op, Token)> {
        let op = match (user_data >> 56) as u8 {
            1 => Op::Receive,
            2 => Op::Send,
            3 => Op::Watch,
            4 => Op::PollIn,
            5 => Op::PollOut,
            6 => Op::Wake,
            7 => Op::Cancel,
            8 => Op::Connect,
            9 => Op::ReceiveMulti,
            #[cfg(feature = "zerocopy")]
            11 => Op::SendZeroCopy,
            _ => return None,
        };
        Some((op, Token::from_bits(user_data)))
    }
}

/// One registered descriptor.
#[derive(Debug)]
pub(crate) struct Socket {
    /// It stays open until the operators are told that it is released.
    pub(crate) fd: BorrowedFd<'static>,
    pub(crate) kind: Kind,
    /// What is in flight in the receiving direction: anything but a send, its poll, the waker and a cancellation.
    pub(crate) inbound: Option<Op>,
    /// What is in flight in the sending direction: `Send`, `SendZeroCopy` or `PollOut`.
    pub(crate) outbound: Option<Op>,
    /// The operators said stop: nothing is received until they say otherwise.
    pub(crate) stopped: bool,
    /// Somebody waits for room in a socket for datagrams.
    pub(crate) wants_room: bool,
    /// What is in flight in the receiving direction is being cancelled.
    pub(crate) cancelled: bool,
    /// What is in flight in the receiving direction has brought nothing yet.
    pub(crate) fresh: bool,
    /// There is more to receive, as far as we know: no need to wait for it.
    pub(crate) readable: bool,
    /// Bytes that the last receive could have taken, if it had vectors.
    pub(crate) lent: u32,
    /// Bytes that the last send was given.
    pub(crate) sending: u32,
    /// The last send was taken in part, or not at all.
    pub(crate) slow: bool,
    /// It carries large messages, and is [polled](crate::engine::bulk): so many small receives in a row end that.
    pub(crate) bulk: u8,
    /// Waits in the list of those that have something to be received.
    pub(crate) read_listed: bool,
    /// Waits in the list of those that receive again with the next submission.
    pub(crate) listed: bool,
    /// There was no room in the submission queue for a send.
    pub(crate) send_listed: bool,
    /// The stream has ended or failed: there is nothing to receive any more.
    pub(crate) ended: bool,
    /// Deregistered, and waiting for the last completion.
    pub(crate) closing: bool,
    /// Sends without a copy that the kernel has taken.
    #[cfg(feature = "zerocopy")]
    pub(crate) zero_copies_taken: u32,
}

impl Socket {
    pub(crate) fn new(fd: BorrowedFd<'static>, kind: Kind) -> Socket {
        Socket {
            fd,
            kind,
            inbound: None,
            outbound: None,
            wants_room: false,
            stopped: false,
            cancelled: false,
            fresh: false,
            readable: false,
            lent: 0,
            sending: 0,
            slow: false,
            bulk: 0,
            read_listed: false,
            listed: false,
            send_listed: false,
            ended: false,
            closing: false,
            #[cfg(feature = "zerocopy")]
            zero_copies_taken: 0,
        }
    }

    /// Whether a system call may receive from it, and may find something.
    pub(crate) fn may_be_read(&self) -> bool {
        let over = self.stopped || self.ended || self.closing;
        self.readable && self.inbound.is_none() && !over && self.kind == Kind::Stream
    }

    /// For an operation's entry.
    pub(crate) fn fd(&self) -> Fd {
        Fd(self.fd.as_raw_fd())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.inbound.is_none() && self.outbound.is_none()
    }
}

/// The registrations.
pub(crate) type Sockets = TokenTable<Socket>;
