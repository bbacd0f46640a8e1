//! One side of a TLS session: records in, records out. It knows of no connection.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
    ReadEarlyData, UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, ContentType, ServerConfig};

use crate::{LinkBuffer, Slice};

/// Content type, version and length: what comes before each record.
const HEADER_BYTES: usize = 5;
/// The most that a record holds of the plain text.
const PLAIN_BYTES_MAX: usize = 16 << 10;
/// The most that may follow a header.
const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 2048;
/// What may be held back of a message that has not come whole, in bytes: rustls refuses what is longer than 64 KiB.
const HELD_BYTES_MAX: usize = 128 << 10;
/// What a record adds to its plain text, at most, with the cipher suites there are: header, nonce, tag, type.
const OVERHEAD_BYTES: usize = 64;
/// Enough for an alert.
const ALERT_BYTES: usize = 128;

pub(super) struct Session {
    side: Side,
    /// What rustls has seen and wants to see again, with what follows: the parts of a message that has not come whole.
    held: Vec<u8>,
    failed: Option<rustls::Error>,
    peer_has_closed: bool,
    has_closed: bool,
}

/// Each a kilobyte or more.
enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl Session {
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Session, rustls::Error> {
        let client = UnbufferedClientConnection::new(config, name)?;
        Ok(Session::new(Side::Client(Box::new(client))))
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Session, rustls::Error> {
        Ok(Session::new(Side::Server(Box::new(UnbufferedServerConnection::new(config)?))))
    }

    fn new(side: Side) -> Session {
        Session { side, held: Vec::new(), failed: None, peer_has_closed: false, has_closed: false }
    }

    /// What the two sides have agreed on.
    pub(super) fn common(&self) -> &CommonState {
        match &self.side {
            Side::Client(client) => client,
            Side::Server(server) => server,
        }
    }

    /// The peer's `close_notify` has come.
    pub(super) fn peer_has_closed(&self) -> bool {
        self.peer_has_closed
    }

    /// Our `close_notify` has been written.
    pub(super) fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Takes a record, or the front of something that is none. Plain text goes to `plain`, piece by piece, and what has to be
    /// answered to `output`. It is decrypted where it lies if nobody else has the slice.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the peer has broken the protocol, or said that we have, and for good: what tells
    /// the peer is in `output`. What `plain` returns.
    pub(super) fn receive(
        &mut self,
        mut record: Slice,
        output: &mut LinkBuffer,
        plain: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.held.is_empty() {
            if let Some(bytes) = record.get_mut() {
                let used = self.advance(bytes, output, plain)?;
                if !self.peer_has_closed {
                    self.held.extend_from_slice(&bytes[used..]);
                }
                return Ok(());
            }
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(&record);
        if held.len() > HELD_BYTES_MAX {
            return Err(
                self.fail(Failure::Tls(rustls::Error::General("a message has no end".into())))
            );
        }
        let used = self.advance(&mut held, output, plain)?;
        if used < held.len() && !self.peer_has_closed {
            held.drain(..used);
            self.held = held;
        }
        Ok(())
    }

    /// Begins, if this is the client: what it says first goes to `output`.
    pub(super) fn begin(&mut self, output: &mut LinkBuffer) -> io::Result<()> {
        self.advance(&mut [], output, &mut |_| Ok(())).map(drop)
    }

    fn advance(
        &mut self,
        incoming: &mut [u8],
        output: &mut LinkBuffer,
        plain: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<usize> {
        self.check()?;
        let peer_has_closed = &mut self.peer_has_closed;
        let result = match &mut self.side {
            Side::Client(client) => {
                advance::<ClientConnectionData>(client, incoming, output, plain, peer_has_closed)
            }
            Side::Server(server) => {
                advance::<ServerConnectionData>(server, incoming, output, plain, peer_has_closed)
            }
        };
        result.map_err(|error| self.fail(error))
    }

    /// Encrypts what `pieces` hold to `output`, in as few records as hold it, and large ones from where they lie. Returns how many
    /// bytes, and why they are not all.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) after [`close`](Session::close), and before the handshake is done.
    pub(super) fn send<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        output: &mut LinkBuffer,
    ) -> (usize, io::Result<()>) {
        let mut sent = 0;
        let result = self.send_counted(pieces, output, &mut sent);
        (sent, result)
    }

    fn send_counted<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        output: &mut LinkBuffer,
        sent: &mut usize,
    ) -> io::Result<()> {
        let mut pieces = pieces.filter(|piece| !piece.is_empty()).peekable();
        while let Some(mut piece) = pieces.next() {
            while piece.len() >= PLAIN_BYTES_MAX || (pieces.peek().is_none() && !piece.is_empty()) {
                let (part, rest) = piece.split_at(piece.len().min(PLAIN_BYTES_MAX));
                self.encrypt(part, output)?;
                *sent += part.len();
                piece = rest;
            }
            if piece.is_empty() {
                continue;
            }
            GATHERED.with_borrow_mut(|gathered| {
                gathered.clear();
                gathered.extend_from_slice(piece);
                let fits = |next: &&[u8], gathered: &Vec<u8>| {
                    gathered.len() + next.len() <= PLAIN_BYTES_MAX
                };
                while let Some(next) = pieces.next_if(|next| fits(next, gathered)) {
                    gathered.extend_from_slice(next);
                }
                self.encrypt(gathered, output)?;
                *sent += gathered.len();
                io::Result::Ok(())
            })?;
        }
        Ok(())
    }

    fn encrypt(&mut self, bytes: &[u8], output: &mut LinkBuffer) -> io::Result<()> {
        self.write(Outgoing::Plain(bytes), output)
    }

    /// Says that nothing more comes. Once.
    pub(super) fn close(&mut self, output: &mut LinkBuffer) -> io::Result<()> {
        self.write(Outgoing::CloseNotify, output)?;
        self.has_closed = true;
        Ok(())
    }

    fn write(&mut self, what: Outgoing<'_>, output: &mut LinkBuffer) -> io::Result<()> {
        self.check()?;
        if self.has_closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let Session { side, held, peer_has_closed, .. } = self;
        let written = match side {
            Side::Client(client) => {
                write::<ClientConnectionData>(client, held, what, output, peer_has_closed)
            }
            Side::Server(server) => {
                write::<ServerConnectionData>(server, held, what, output, peer_has_closed)
            }
        };
        written.map_err(|error| self.fail(error))
    }

    /// Whether it has failed.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(error) => Err(into_io_error(error.clone())),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: Failure) -> io::Error {
        match error {
            Failure::Tls(error) => {
                self.failed = Some(error.clone());
                into_io_error(error)
            }
            Failure::Io(error) => error,
        }
    }
}

/// How many bytes the next record has; or is to have at least, if its header has not come. A header that is none is for rustls to
/// refuse.
pub(super) fn record_bytes(input: &LinkBuffer) -> usize {
    let mut header = [0; HEADER_BYTES];
    if input.peek_to(&mut header) < HEADER_BYTES {
        return HEADER_BYTES;
    }
    let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let is_record = !matches!(ContentType::from(header[0]), ContentType::Unknown(_));
    if is_record && body <= BODY_BYTES_MAX { HEADER_BYTES + body } else { HEADER_BYTES }
}

thread_local! {
    /// Small pieces that go out in one record.
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy)]
enum Outgoing<'a> {
    Plain(&'a [u8]),
    CloseNotify,
}

impl Outgoing<'_> {
    /// Room that is enough, unless the records are to be smaller than usual.
    fn room(self) -> usize {
        match self {
            Outgoing::Plain(bytes) => {
                bytes.len() + (bytes.len() / PLAIN_BYTES_MAX + 1) * OVERHEAD_BYTES
            }
            Outgoing::CloseNotify => ALERT_BYTES,
        }
    }

    fn write<R>(
        self,
        traffic: &mut WriteTraffic<'_, R>,
        room: &mut [u8],
    ) -> Result<usize, EncryptError> {
        match self {
            Outgoing::Plain(bytes) => traffic.encrypt(bytes, room),
            Outgoing::CloseNotify => traffic.queue_close_notify(room),
        }
    }

    fn write_to<R>(
        self,
        traffic: &mut WriteTraffic<'_, R>,
        output: &mut LinkBuffer,
    ) -> Result<(), Failure> {
        write_sized(output, self.room(), |room| match self.write(traffic, room) {
            Ok(written) => Ok(Ok(written)),
            Err(EncryptError::InsufficientSize(error)) => Err(error),
            Err(error @ EncryptError::EncryptExhausted) => Ok(Err(io::Error::other(error).into())),
        })
    }
}

enum Failure {
    /// For good.
    Tls(rustls::Error),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// What has nowhere to go is gone.
fn lost(error: io::Error) -> Failure {
    Failure::Tls(rustls::Error::General(format!("a part of the session is lost: {error}")))
}

fn into_io_error(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What client and server do differently with the same states.
trait Role: Sized {
    fn process<'c, 'i>(
        tls: &'c mut UnbufferedConnectionCommon<Self>,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self>;

    fn take_early(
        early: ReadEarlyData<'_, '_, Self>,
        plain: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure>;
}

impl Role for ClientConnectionData {
    fn process<'c, 'i>(
        tls: &'c mut UnbufferedConnectionCommon<Self>,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        tls.process_tls_records(incoming)
    }

    /// Only servers are sent such.
    fn take_early(
        _: ReadEarlyData<'_, '_, Self>,
        _: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        Ok(())
    }
}

impl Role for ServerConnectionData {
    fn process<'c, 'i>(
        tls: &'c mut UnbufferedConnectionCommon<Self>,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self> {
        tls.process_tls_records(incoming)
    }

    fn take_early(
        mut early: ReadEarlyData<'_, '_, Self>,
        plain: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        while let Some(record) = early.next_record() {
            plain(record.map_err(Failure::Tls)?.payload).map_err(lost)?;
        }
        Ok(())
    }
}

/// Lets rustls see what came in, until it wants more of it. Returns how many bytes it is done with.
fn advance<R: Role>(
    tls: &mut UnbufferedConnectionCommon<R>,
    incoming: &mut [u8],
    output: &mut LinkBuffer,
    plain: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    peer_has_closed: &mut bool,
) -> Result<usize, Failure> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = R::process(tls, &mut incoming[used..]);
        used += discard;
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(Failure::Tls)?;
                    used += record.discard;
                    plain(record.payload).map_err(lost)?;
                }
            }
            Ok(ConnectionState::ReadEarlyData(early)) => R::take_early(early, plain)?,
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, output)?,
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(ConnectionState::PeerClosed) => *peer_has_closed = true,
            Ok(_) => return Ok(used),
            Err(error) => {
                // The alert that tells the peer. Nothing may be looked at twice: with nothing to send, it would be.
                while CommonState::wants_write(tls) {
                    let Ok(ConnectionState::EncodeTlsData(data)) = R::process(tls, &mut []).state
                    else {
                        break;
                    };
                    encode(data, output)?;
                }
                return Err(Failure::Tls(error));
            }
        }
    }
}

/// Waits, so to speak, for the state in which something can be sent, and sends it. `held` is what rustls wants to see again.
fn write<R: Role>(
    tls: &mut UnbufferedConnectionCommon<R>,
    held: &mut [u8],
    what: Outgoing<'_>,
    output: &mut LinkBuffer,
    peer_has_closed: &mut bool,
) -> Result<(), Failure> {
    loop {
        match R::process(tls, held).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                return what.write_to(&mut traffic, output);
            }
            Ok(ConnectionState::TransmitTlsData(mut transmit)) => {
                if let Some(mut traffic) = transmit.may_encrypt_app_data() {
                    return what.write_to(&mut traffic, output);
                }
                transmit.done();
            }
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, output)?,
            Ok(ConnectionState::PeerClosed) => *peer_has_closed = true,
            Ok(_) => return Err(io::Error::from(io::ErrorKind::NotConnected).into()),
            Err(error) => return Err(Failure::Tls(error)),
        }
    }
}

fn encode<R>(mut data: EncodeTlsData<'_, R>, output: &mut LinkBuffer) -> Result<(), Failure> {
    write_sized(output, 0, |room| match data.encode(room) {
        Ok(written) => Ok(Ok(written)),
        Err(EncodeError::InsufficientSize(error)) => Err(error),
        Err(error @ EncodeError::AlreadyEncoded) => Ok(Err(io::Error::other(error).into())),
    })
    // rustls does not give it a second time.
    .map_err(|error| match error {
        Failure::Io(error) => lost(error),
        error => error,
    })
}

/// Writes what says how much room it needs if it is not enough.
fn write_sized(
    output: &mut LinkBuffer,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<Result<usize, Failure>, InsufficientSizeError>,
) -> Result<(), Failure> {
    loop {
        let mut result = Ok(());
        let mut needed = None;
        let written = output.write_with(room, |room| match write(room) {
            Ok(Ok(written)) => written,
            Ok(Err(error)) => {
                result = Err(error);
                0
            }
            Err(error) => {
                needed = Some(error.required_size);
                0
            }
        });
        written.map_err(io::Error::from)?;
        match needed {
            Some(bytes) => room = bytes,
            None => return result,
        }
    }
}
