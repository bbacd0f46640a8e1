//! Replies: small ones are collected and copied once, large values are handed over as they are.

use std::borrow::Cow;
use std::io;

use duopoll::{LinkBuffer, Writer};

use crate::numbers::{Digits, format_float};
use crate::values::Text;

/// Values from this size on are sent from where they are stored, in bytes. Below, a copy costs less than one more
/// vector in the system call.
const PUSH_BYTES_MIN: usize = 4 << 10;
/// Replies are handed to the connection when so many bytes have been collected.
const COLLECT_BYTES_MAX: usize = 16 << 10;

/// What went wrong with a request, as the client is told. An error of the protocol ends the connection too.
pub(crate) type Error = Cow<'static, [u8]>;

/// An error with a text of its own.
pub(crate) const fn error(text: &'static str) -> Error {
    Cow::Borrowed(text.as_bytes())
}

/// Redis' codes that are not ERR, which come with the text.
const CODES: &[&[u8]] = &[b"WRONGTYPE ", b"NOPROTO ", b"NOAUTH ", b"WRONGPASS ", b"EXECABORT "];

/// The replies to a batch of requests.
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    writer: &'a mut Writer,
    /// Why replies are missing: there was no memory for them. Ends the connection.
    failed: Option<io::Error>,
    closing: bool,
    is_cut: bool,
    /// The newer of the two protocols, which has more types.
    pub(crate) resp3: bool,
    /// The client does not want to hear of what it asks for.
    pub(crate) is_muted: bool,
}

impl<'a> Reply<'a> {
    /// Replies are collected in `out` and staged in `writer`.
    pub(crate) fn new(out: &'a mut Vec<u8>, writer: &'a mut Writer, resp3: bool) -> Reply<'a> {
        Reply { out, writer, failed: None, closing: false, is_cut: false, resp3, is_muted: false }
    }

    /// `text` with its type and line end, for instance `+OK\r\n`.
    pub(crate) fn raw(&mut self, text: &'static str) {
        self.put(text.as_bytes());
    }

    pub(crate) fn ok(&mut self) {
        self.raw("+OK\r\n");
    }

    pub(crate) fn null(&mut self) {
        self.raw(if self.resp3 { "_\r\n" } else { "$-1\r\n" });
    }

    pub(crate) fn null_array(&mut self) {
        self.raw(if self.resp3 { "_\r\n" } else { "*-1\r\n" });
    }

    pub(crate) fn error(&mut self, error: &Error) {
        if self.is_muted {
            return;
        }
        let coded = CODES.iter().any(|code| error.starts_with(code));
        self.out.extend_from_slice(if coded { b"-" } else { b"-ERR " });
        let printable = |byte: &u8| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte };
        self.out.extend(error.iter().map(printable));
        self.out.extend_from_slice(b"\r\n");
    }

    pub(crate) fn int(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A length or a count, which no memory makes too large for an `i64`.
    pub(crate) fn count(&mut self, count: usize) {
        self.number(b':', count as i64);
    }

    /// The head of an array; as many replies must follow.
    pub(crate) fn array(&mut self, len: usize) {
        self.number(b'*', len as i64);
    }

    /// The head of a map: so many pairs must follow.
    pub(crate) fn map(&mut self, len: usize) {
        match self.resp3 {
            true => self.number(b'%', len as i64),
            false => self.array(2 * len),
        }
    }

    /// The head of a set: as many replies must follow.
    pub(crate) fn set(&mut self, len: usize) {
        self.number(if self.resp3 { b'~' } else { b'*' }, len as i64);
    }

    /// The head of what the client has not asked for.
    pub(crate) fn push(&mut self, len: usize) {
        self.number(if self.resp3 { b'>' } else { b'*' }, len as i64);
    }

    /// A word, such as the OK of [`ok`](Reply::ok).
    pub(crate) fn word(&mut self, word: &str) {
        self.put(b"+");
        self.put(word.as_bytes());
        self.put(b"\r\n");
    }

    /// A text for people.
    pub(crate) fn verbatim(&mut self, text: &str) {
        match self.resp3 {
            true => {
                self.number(b'=', text.len() as i64 + 4);
                self.put(b"txt:");
                self.put(text.as_bytes());
                self.put(b"\r\n");
            }
            false => self.bulk(text.as_bytes()),
        }
    }

    pub(crate) fn bulk(&mut self, bytes: &[u8]) {
        self.number(b'$', bytes.len() as i64);
        self.put(bytes);
        self.put(b"\r\n");
    }

    pub(crate) fn float(&mut self, value: f64) {
        let digits = format_float(value);
        match self.resp3 {
            true => {
                self.put(b",");
                self.put(digits.as_bytes());
                self.put(b"\r\n");
            }
            false => self.bulk(digits.as_bytes()),
        }
    }

    /// A stored value.
    pub(crate) fn text(&mut self, text: &Text) {
        match text {
            Text::Slice(slice) if slice.len() >= PUSH_BYTES_MIN && !self.is_muted => {
                self.number(b'$', slice.len() as i64);
                self.hand_over();
                self.writer.push(slice.clone());
                self.put(b"\r\n");
            }
            text => self.bulk(text),
        }
    }

    /// A stored value, or null.
    pub(crate) fn text_or_null(&mut self, text: Option<&Text>) {
        match text {
            Some(text) => self.text(text),
            None => self.null(),
        }
    }

    /// Ends the connection behind the replies so far.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Ends the connection, without the replies that were not flushed.
    pub(crate) fn cut(&mut self) {
        self.closing = true;
        self.is_cut = true;
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.failed.is_some()
    }

    /// Something that is written as it goes over the wire. Also for clients that want no replies.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut LinkBuffer) -> io::Result<()>) {
        self.hand_over();
        if self.failed.is_none() {
            self.failed = write(self.writer.buffer_mut()).err();
        }
    }

    /// Bytes of replies that were not flushed.
    pub(crate) fn staged_len(&self) -> usize {
        self.out.len() + self.writer.staged_len()
    }

    /// Stages what was collected.
    ///
    /// # Errors
    /// If there was no memory for any of the replies.
    pub(crate) fn stage(mut self) -> io::Result<()> {
        if self.is_cut {
            self.out.clear();
            self.writer.buffer_mut().clear();
        }
        self.hand_over();
        self.failed.map_or(Ok(()), Err)
    }

    #[inline]
    fn number(&mut self, kind: u8, value: i64) {
        if self.is_muted {
            return;
        }
        if let Ok(digit @ 0..=9) = u8::try_from(value) {
            self.out.extend_from_slice(&[kind, b'0' + digit, b'\r', b'\n']);
            return;
        }
        self.out.push(kind);
        self.out.extend_from_slice(Digits::of(value).as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        if self.is_muted {
            return;
        }
        self.out.extend_from_slice(bytes);
        if self.out.len() >= COLLECT_BYTES_MAX {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.out.is_empty() && self.failed.is_none() {
            self.failed = self.writer.write(self.out).err();
        }
        self.out.clear();
    }
}
