//! A connection whose bytes are encrypted.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion, SupportedCipherSuite};

use super::session::{Session, record_bytes};
use crate::connection::Connection;
use crate::{Control, LinkBuffer, Slice};

/// So much plain text is made ready at once, if it has arrived, in bytes.
const AHEAD_BYTES: usize = 64 << 10;

/// A [`Connection`] over TLS, after its handshake: [`TlsAcceptor`](super::TlsAcceptor) gives one to servers, and
/// [`TlsConnector`](super::TlsConnector) to clients.
///
/// It is read and written as a [`Connection`] is: what was received and decrypted is in [`input_mut`](TlsConnection::input_mut), what is written
/// is staged, and goes out encrypted with [`flush`](TlsConnection::flush). Control, timeouts and socket options are those of the
/// connection that it is on.
///
/// # The end
/// Each side says when it has sent all, by `close_notify`. The peer's is the end of what can be read; if its connection ends without, it
/// may have been cut, and reads fail with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof).
/// [`finish`](TlsConnection::finish) and [`close`](TlsConnection::close) send ours. Dropping it does not: whoever drops it in the midst of
/// something has not sent all.
///
/// # Errors
/// As of [`Connection`]. [`InvalidData`](io::ErrorKind::InvalidData) with a [`rustls::Error`] in it if the peer breaks the protocol or
/// what it sent was changed on the way; the peer is told wherever rustls has an alert for it, and nothing more can be read or written.
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if more is wanted than comes, by `close_notify` or without, which its text tells.
///
/// # Limits
/// As of [`Connection`]; [`message_bytes_max`](crate::Limits::message_bytes_max) is for the plain text, and has to be at least 18 KiB,
/// which is the longest record. Up to 80 KiB of plain text are decrypted ahead of the reader.
///
/// # Cancellation
/// As of [`Connection`]: every future may be dropped at any moment, and loses nothing.
pub struct TlsConnection {
    connection: Connection,
    session: Session,
    /// Decrypted and not read.
    plain: LinkBuffer,
    /// To be encrypted.
    staged: LinkBuffer,
    /// What the peer has made us answer.
    answers: LinkBuffer,
    server_name: Option<Box<str>>,
}

/// What a record is waited for as.
#[derive(Clone, Copy)]
enum Wait {
    /// Subject to the limits for reading.
    Bytes,
    /// The begin of a request.
    Request,
    /// By who always waits.
    #[cfg_attr(not(feature = "hyper"), allow(dead_code, reason = "hyper does"))]
    Whatever,
}

impl TlsConnection {
    pub(super) fn new(
        connection: Connection,
        session: Session,
        server_name: Option<&str>,
    ) -> TlsConnection {
        TlsConnection {
            connection,
            session,
            plain: LinkBuffer::new(),
            staged: LinkBuffer::new(),
            answers: LinkBuffer::new(),
            server_name: server_name.map(Box::from),
        }
    }

    /// The connection that it is on: for its addresses, its control and options of its socket.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The protocol that both sides have chosen by ALPN, such as `h2`.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.session.common().alpn_protocol()
    }

    /// The name by which the client has asked for this server (SNI). None on the client's side.
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The peer's certificates, its own first, if it has shown any.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.session.common().peer_certificates()
    }

    /// The version of TLS.
    pub fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.session.common().protocol_version()
    }

    /// The cipher suite.
    pub fn cipher_suite(&self) -> Option<SupportedCipherSuite> {
        self.session.common().negotiated_cipher_suite()
    }

    /// Whether the handshake was a full one, or an earlier session was resumed.
    pub fn handshake_kind(&self) -> Option<HandshakeKind> {
        self.session.common().handshake_kind()
    }

    /// What was decrypted and not read. More may have arrived.
    pub fn input_mut(&mut self) -> &mut LinkBuffer {
        &mut self.plain
    }

    /// Waits until [`input_mut`](TlsConnection::input_mut) holds at least `min_bytes`.
    ///
    /// Polls that follow each other are one wait, as with [`Reader::poll_fill`](crate::Reader::poll_fill).
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, min_bytes: usize) -> Poll<io::Result<()>> {
        if ready!(self.poll_plain(cx, min_bytes, Wait::Bytes))? {
            return Poll::Ready(Ok(()));
        }
        let text = "the peer has closed before enough bytes came";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)))
    }

    /// Waits for at least one byte more than [`input_mut`](TlsConnection::input_mut) holds; false at the end.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.poll_plain(cx, self.plain.len() + 1, Wait::Bytes)
    }

    /// Waits until something is in [`input_mut`](TlsConnection::input_mut); false at the end.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_buffered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.poll_plain(cx, 1, Wait::Bytes)
    }

    /// Waits for the next request; see [`next_request`](TlsConnection::next_request).
    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.poll_plain(cx, 1, Wait::Request)
    }

    /// Waits until so much plain text is there, and makes more of it ready that has arrived. False if the peer has closed before, or
    /// if there will be no request.
    fn poll_plain(
        &mut self,
        cx: &mut Context<'_>,
        min_bytes: usize,
        wait: Wait,
    ) -> Poll<io::Result<bool>> {
        self.connection.reader_mut().check_message(min_bytes)?;
        while self.plain.len() < min_bytes {
            match self.poll_record(cx, wait) {
                Poll::Ready(Ok(Some(record))) => self.open(record, |_| 0)?,
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(false)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.plain.is_empty() {
                        self.plain.release_memory();
                    }
                    return Poll::Pending;
                }
            }
        }
        while self.plain.len() < AHEAD_BYTES {
            let Some(record) = self.next_record() else { break };
            // Whoever needs what is wrong with it is told.
            if self.open(record, |_| 0).is_err() {
                break;
            }
        }
        Poll::Ready(Ok(true))
    }

    /// A record that has come.
    fn next_record(&mut self) -> Option<Slice> {
        let input = self.connection.reader_mut().buffer_mut();
        let bytes = record_bytes(input);
        if self.session.peer_has_closed() || input.len() < bytes {
            return None;
        }
        input.next(bytes).ok()
    }

    /// Waits for a record. None if no more come.
    fn poll_record(&mut self, cx: &mut Context<'_>, wait: Wait) -> Poll<io::Result<Option<Slice>>> {
        self.session.check()?;
        if self.session.peer_has_closed() {
            return Poll::Ready(Ok(None));
        }
        let reader = self.connection.reader_mut();
        loop {
            let input = reader.buffer_mut();
            let bytes = record_bytes(input);
            if input.len() >= bytes {
                return Poll::Ready(Ok(Some(input.next(bytes)?)));
            }
            let filled = match wait {
                Wait::Request if input.is_empty() => {
                    if !ready!(reader.poll_request(cx, 0))? {
                        return Poll::Ready(Ok(None));
                    }
                    continue;
                }
                Wait::Whatever => ready!(reader.poll_whatever(cx, bytes)),
                Wait::Bytes | Wait::Request => ready!(reader.poll_fill(cx, bytes)),
            };
            match filled {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let text = "the peer has ended without close_notify: it may have been cut";
                    return Poll::Ready(Err(io::Error::new(error.kind(), text)));
                }
                filled => filled?,
            }
        }
    }

    /// Decrypts a record. `take` may take of its text, and says how much; the rest is for later.
    fn open(&mut self, record: Slice, mut take: impl FnMut(&[u8]) -> usize) -> io::Result<()> {
        let TlsConnection { connection, session, plain, answers, .. } = self;
        let opened = session.receive(record, answers, &mut |text| {
            let taken = take(text);
            plain.write(&text[taken..])?;
            plain.flush();
            Ok(())
        });
        if answers.reserved_len() > 0 {
            // Of these there are few: one change of keys waits to be answered until something else is sent.
            let writer = connection.writer_mut();
            writer.append(answers);
            answers.release_memory();
            // If it cannot be sent, whoever sends something next is told.
            let _ = writer.submit();
        }
        opened
    }

    /// Ends with the handshake.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.common().is_handshaking() {
            match ready!(self.poll_record(cx, Wait::Bytes))? {
                Some(record) => self.open(record, |_| 0)?,
                None => {
                    let text = "the peer has closed instead of a handshake";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
                }
            }
        }
        self.connection.writer_mut().poll_flush(cx)
    }

    /// Sends what a client says first.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let writer = self.connection.writer_mut();
        self.session.begin(writer.buffer_mut())?;
        writer.submit()
    }

    /// Copies what comes next, at most `room` bytes, piece by piece with `put`; see [`Reader::poll_copy`](crate::Reader::poll_copy).
    #[doc(hidden)]
    pub fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        self.poll_copy_waiting(cx, room, put, Wait::Bytes)
    }

    /// The same for layers above that always wait for what comes; see `Reader`.
    #[cfg(feature = "hyper")]
    pub(crate) fn poll_copy_whatever(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        self.poll_copy_waiting(cx, room, put, Wait::Whatever)
    }

    fn poll_copy_waiting(
        &mut self,
        cx: &mut Context<'_>,
        mut room: usize,
        mut put: impl FnMut(&[u8]),
        wait: Wait,
    ) -> Poll<io::Result<()>> {
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut take = |text: &[u8]| {
            let n = text.len().min(room);
            put(&text[..n]);
            room -= n;
            n
        };
        let mut taken = false;
        while !self.plain.is_empty() {
            let n = take(self.plain.first_chunk());
            self.plain.skip(n)?;
            taken = true;
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        // Text that is decrypted now has one copy less.
        loop {
            let record = match self.next_record() {
                Some(record) => record,
                None if taken => return Poll::Ready(Ok(())),
                None => match ready!(self.poll_record(cx, wait))? {
                    Some(record) => record,
                    None => return Poll::Ready(Ok(())),
                },
            };
            let mut full = false;
            let opened = self.open(record, |text| {
                let n = take(text);
                (taken, full) = (taken || n > 0, n < text.len());
                n
            });
            match opened {
                Err(_) if taken => return Poll::Ready(Ok(())),
                opened => opened?,
            }
            if full {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Copies what comes next into `target`; see [`Reader::poll_read`](crate::Reader::poll_read).
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        target: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let (room, mut read) = (target.len(), 0);
        ready!(self.poll_copy(cx, room, |text| {
            target[read..read + text.len()].copy_from_slice(text);
            read += text.len();
        }))?;
        Poll::Ready(Ok(read))
    }

    /// Hands over what is staged, and waits for nothing; see [`Writer::submit`](crate::Writer::submit).
    ///
    /// # Errors
    /// See [`TlsConnection`]; what is staged stays staged then.
    pub fn submit(&mut self) -> io::Result<()> {
        let TlsConnection { connection, session, staged, .. } = self;
        staged.flush();
        if staged.is_empty() {
            return Ok(());
        }
        let writer = connection.writer_mut();
        let (sent, result) = session.send(staged.chunks(), writer.buffer_mut());
        staged.skip(sent)?;
        if staged.is_empty() {
            staged.release_memory();
        }
        result.and(writer.submit())
    }

    /// Hands over what is staged, and waits while more is unsent than the connection's watermark allows.
    ///
    /// Polls that follow each other are one wait, as with [`Writer::poll_flush`](crate::Writer::poll_flush).
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.submit()?;
        self.connection.writer_mut().poll_flush(cx)
    }

    /// Hands over what is staged, and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.submit()?;
        self.connection.writer_mut().poll_drain(cx)
    }

    /// Encrypts and hands over of `pieces` what there is room for below the watermark; see
    /// [`Writer::poll_write`](crate::Writer::poll_write).
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        let writer = self.connection.writer_mut();
        let mut room = writer.room();
        let fitting = pieces.iter().map(|piece| {
            let n = piece.len().min(room);
            room -= n;
            &piece[..n]
        });
        let (sent, result) = self.session.send(fitting, writer.buffer_mut());
        // What was taken is on its way.
        if sent == 0 {
            result?;
        }
        writer.submit()?;
        Poll::Ready(Ok(sent))
    }

    /// Ends the sending direction, as [`finish`](TlsConnection::finish) does, and waits until the kernel has taken all that was sent.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        self.connection.writer_mut().poll_drain(cx)
    }

    /// Ends the sending direction: what is staged goes out, `close_notify`, and the FIN. Receiving goes on. Harmless if it has ended
    /// already; what is staged is dropped then.
    pub fn finish(&mut self) {
        self.say_the_end();
        self.connection.finish();
    }

    /// Closes the connection: what is staged goes out, `close_notify`, and the FIN; what arrives is dropped.
    pub fn close(&mut self) {
        self.say_the_end();
        self.connection.close();
    }

    /// If not all can be sent, the peer is not to believe that it was.
    fn say_the_end(&mut self) {
        if !self.session.has_closed() && self.submit().is_ok() {
            let _ = self.session.close(self.connection.writer_mut().buffer_mut());
        }
        self.staged.clear();
    }

    /// Stages a copy of `bytes`.
    ///
    /// # Errors
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory); nothing is staged then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        Ok(self.staged.write(bytes)?)
    }

    /// Stages owned bytes, without copying them: a [`Slice`], `Bytes`, `Vec<u8>`, `&'static [u8]`, …
    pub fn push(&mut self, slice: impl Into<Slice>) {
        self.staged.push(slice);
    }

    /// Stages a whole buffer, without copying it; it is empty then.
    pub fn append(&mut self, buffer: &mut LinkBuffer) {
        self.staged.append(buffer);
    }

    /// Bytes staged and not handed over.
    pub fn staged_len(&self) -> usize {
        self.staged.len() + self.staged.reserved_len()
    }

    /// Encrypts and hands over what is staged, and waits while more is unsent than the connection's watermark allows.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn flush(&mut self) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_flush(cx)).await
    }

    /// Encrypts and hands over what is staged, and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn drain(&mut self) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_drain(cx)).await
    }

    /// Waits until [`input_mut`](TlsConnection::input_mut) holds at least `min_bytes`.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn fill(&mut self, min_bytes: usize) -> io::Result<()> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_fill(cx, min_bytes)).await
    }

    /// Waits for at least one byte more than [`input_mut`](TlsConnection::input_mut) holds; false at the end.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn more(&mut self) -> io::Result<bool> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_more(cx)).await
    }

    /// Waits for the next request; see [`Reader::next_request`](crate::Reader::next_request). Here a peer that has ended between two
    /// requests has ended, with `close_notify` or without.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn next_request(&mut self) -> io::Result<bool> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_request(cx)).await
    }

    /// The next `n` bytes, contiguous and owned.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn next(&mut self, n: usize) -> io::Result<Slice> {
        self.fill(n).await?;
        Ok(self.plain.next(n)?)
    }

    /// The next message, whose header says how long it is; see [`Reader::frame`](crate::Reader::frame).
    ///
    /// # Errors
    /// See [`TlsConnection`]; what `body_bytes` returns, and nothing is consumed then.
    pub async fn frame(
        &mut self,
        header_bytes: usize,
        mut body_bytes: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<Slice> {
        self.fill(header_bytes).await?;
        let body_bytes = body_bytes(self.plain.peek(header_bytes)?)?;
        self.fill(header_bytes.saturating_add(body_bytes)).await?;
        self.plain.skip(header_bytes)?;
        Ok(self.plain.next(body_bytes)?)
    }

    /// The next `n` bytes, contiguous, left where they are.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill(n).await?;
        Ok(self.plain.peek(n)?)
    }

    /// Drops the next `n` bytes.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn skip(&mut self, n: usize) -> io::Result<()> {
        self.fill(n).await?;
        Ok(self.plain.skip(n)?)
    }

    /// The next bytes through `delimiter`, which is included.
    ///
    /// # Errors
    /// See [`TlsConnection`]; [`InvalidData`](io::ErrorKind::InvalidData) if the delimiter is not among the next `max_bytes`. Nothing is
    /// consumed then.
    pub async fn until(&mut self, delimiter: u8, max_bytes: usize) -> io::Result<Slice> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.plain.find(delimiter, searched).filter(|at| *at < max_bytes) {
                return self.next(at + 1).await;
            }
            searched = self.plain.len();
            if searched >= max_bytes {
                let message = format!("no delimiter within {max_bytes} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.fill(searched + 1).await?;
        }
    }

    /// Copies what comes next into `target`: at least one byte, unless the peer has closed or `target` is empty. Returns how many.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let waiting = Waiting::new(self);
        poll_fn(|cx| waiting.0.poll_read(cx, target)).await
    }

    /// The next byte.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn read_u8(&mut self) -> io::Result<u8> {
        self.fill(1).await?;
        Ok(self.plain.read_u8()?)
    }

    /// The next four bytes, as a big-endian number.
    ///
    /// # Errors
    /// See [`TlsConnection`].
    pub async fn read_u32(&mut self) -> io::Result<u32> {
        self.fill(4).await?;
        let mut bytes = [0; 4];
        self.plain.copy_to(&mut bytes);
        Ok(u32::from_be_bytes(bytes))
    }

    /// A handle for timeouts, deadlines, and ending the connection from elsewhere.
    pub fn control(&self) -> Control {
        self.connection.control()
    }
}

/// For what is written once for connections and these: the two halves of this one are one.
impl TlsConnection {
    pub(crate) fn reader(&mut self) -> &mut TlsConnection {
        self
    }

    #[cfg(feature = "hyper")]
    pub(crate) fn flushed(&mut self) {
        self.connection.writer_mut().flushed();
    }

    pub(crate) fn writer(&mut self) -> &mut TlsConnection {
        self
    }
}

/// A wait of a future: begun with it, and dropped with it.
struct Waiting<'a>(&'a mut TlsConnection);

impl Waiting<'_> {
    fn new(tls: &mut TlsConnection) -> Waiting<'_> {
        let waiting = Waiting(tls);
        waiting.0.end_waits();
        waiting
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.end_waits();
    }
}

impl TlsConnection {
    fn end_waits(&mut self) {
        let (reader, writer) = self.connection.split();
        reader.end_wait();
        writer.end_wait();
    }
}

impl fmt::Debug for TlsConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnection")
            .field("connection", &self.connection)
            .field("version", &self.protocol_version())
            .field("buffered_bytes", &self.plain.len())
            .finish_non_exhaustive()
    }
}
