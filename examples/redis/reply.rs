//! Replies: small ones are collected and copied once, large values are handed over as they are.

use std::borrow::Cow;
use std::io;

use duopoll::Writer;

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

/// The replies to a batch of requests.
pub(crate) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    writer: &'a mut Writer,
    /// Why replies are missing: there was no memory for them. Ends the connection.
    failed: Option<io::Error>,
    closing: bool,
}

impl<'a> Reply<'a> {
    /// Replies are collected in `out` and staged in `writer`.
    pub(crate) fn new(out: &'a mut Vec<u8>, writer: &'a mut Writer) -> Reply<'a> {
        Reply { out, writer, failed: None, closing: false }
    }

    /// `text` with its type and line end, for instance `+OK\r\n`.
    pub(crate) fn raw(&mut self, text: &'static str) {
        self.put(text.as_bytes());
    }

    pub(crate) fn ok(&mut self) {
        self.raw("+OK\r\n");
    }

    pub(crate) fn null(&mut self) {
        self.raw("$-1\r\n");
    }

    pub(crate) fn null_array(&mut self) {
        self.raw("*-1\r\n");
    }

    pub(crate) fn error(&mut self, error: &Error) {
        // Redis' codes that are not ERR come with the text.
        let coded = [&b"WRONGTYPE "[..], b"NOPROTO "].iter().any(|code| error.starts_with(code));
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

    pub(crate) fn bulk(&mut self, bytes: &[u8]) {
        self.number(b'$', bytes.len() as i64);
        self.put(bytes);
        self.put(b"\r\n");
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.bulk(format_float(value).as_bytes());
    }

    /// A stored value.
    pub(crate) fn text(&mut self, text: &Text) {
        match text {
            Text::Slice(slice) if slice.len() >= PUSH_BYTES_MIN => {
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

    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.failed.is_some()
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
        self.hand_over();
        self.failed.map_or(Ok(()), Err)
    }

    #[inline]
    fn number(&mut self, kind: u8, value: i64) {
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
