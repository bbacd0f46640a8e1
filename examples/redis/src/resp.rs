//! Requests: RESP arrays of bulk strings, and inline commands.
//!
//! The parser keeps where it stands, in bytes from the front of the input, and goes on from there when more has come:
//! no byte is looked at twice because it came in pieces. Arguments are not copied, they are spans of the input. Large
//! ones, and the beginning of a long request, are taken out of the input as slices of their own.
//!
//! ```text
//!   taken out earlier, in order                 input
//!   ┌───────────┐ ┌───────────────────┐        ┌────────────────────┬─────────┄┄
//!   │ segment 0 │ │ segment 1         │        │ segment 2, in place│ not yet parsed
//!   └───────────┘ └───────────────────┘        └────────────────────┴─────────┄┄
//!                                              ▲ 0                  ▲ position
//! ```

use std::borrow::Cow;
use std::io;

use duopoll::{LinkBuffer, Slice};

use crate::numbers::parse_int;
use crate::reply::{Error, error};
use crate::values::Text;

/// The longest bulk string, in bytes: Redis' `proto-max-bulk-len`.
pub(crate) const BULK_BYTES_MAX: usize = 512 << 20;
/// The most arguments of a request.
const ARGS_MAX: i64 = 1024 * 1024;
/// The most arguments, and the longest bulk string, of a client that has not said the password.
const STRANGER_ARGS_MAX: i64 = 10;
const STRANGER_BULK_BYTES_MAX: usize = 16 << 10;
/// The longest inline command, and the longest line with a length, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Bulk strings from this size on become slices of their own, in bytes.
const LARGE_BYTES_MIN: usize = 64 << 10;
/// Slices from this size on are stored as they are, if they fill their memory well enough; in bytes.
const KEEP_BYTES_MIN: usize = 16 << 10;

const INVALID_COUNT: Error = error("Protocol error: invalid multibulk length");
const INVALID_LEN: Error = error("Protocol error: invalid bulk length");
const TOO_BIG_COUNT: Error = error("Protocol error: too big mbulk count string");
const TOO_BIG_LEN: Error = error("Protocol error: too big bulk count string");
const TOO_BIG_INLINE: Error = error("Protocol error: too big inline request");
const STRANGER_COUNT: Error = error("Protocol error: unauthenticated multibulk length");
const STRANGER_LEN: Error = error("Protocol error: unauthenticated bulk length");
const UNBALANCED: Error = error("Protocol error: unbalanced quotes in request");

/// How far the parser came.
#[derive(Debug)]
pub(crate) enum Step {
    /// A request is complete: see [`Parser::args`]. [`Parser::finish`] must follow.
    Request,
    /// It needs the rest of a line.
    Line,
    /// It needs so many bytes, from the front of the input.
    Bytes(usize),
    /// A large bulk string of this length comes: [`Parser::cut`], then [`Parser::take_large`] must follow.
    Large(usize),
}

/// The state of a connection's parser.
#[derive(Default)]
pub(crate) struct Parser {
    spans: Vec<Span>,
    segments: Vec<Slice>,
    /// Where parsing goes on, from the front of the input.
    position: usize,
    /// Arguments of the request that are still to come; 0 between two requests.
    missing: usize,
    /// The length of the argument that comes next, once it is known.
    bulk: Option<usize>,
    /// Bytes from the position on that are known to hold no line end.
    searched: usize,
    /// Whether the client has yet to say the password: it may not send much then.
    pub(crate) is_stranger: bool,
}

/// Where an argument is.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    segment: u32,
    start: u32,
    len: u32,
}

impl Parser {
    /// Goes on with `chunk`, the front of the input.
    ///
    /// # Errors
    /// What Redis says before it closes the connection.
    #[inline]
    pub(crate) fn parse(&mut self, chunk: &[u8]) -> Result<Step, Error> {
        if self.missing == 0 {
            if !self.spans.is_empty() {
                // The last argument was a large one.
                return Ok(Step::Request);
            }
            match chunk {
                [] => return Ok(Step::Line),
                // By far the most requests: an array with fewer than ten elements.
                [b'*', count @ b'1'..=b'9', b'\r', _, ..] => {
                    self.position = 4;
                    self.searched = 0;
                    self.missing = usize::from(count - b'0');
                }
                [b'*', ..] => match self.count(chunk)? {
                    Some(0) => return Ok(Step::Request),
                    Some(count) => self.missing = count,
                    None => return Ok(Step::Line),
                },
                _ => return self.inline(chunk),
            }
        }
        while self.missing > 0 {
            let len = match self.bulk {
                Some(len) => len,
                None => match chunk.get(self.position..).unwrap_or_default() {
                    [b'$', len @ b'0'..=b'9', b'\r', _, ..] => {
                        self.position += 4;
                        self.searched = 0;
                        usize::from(len - b'0')
                    }
                    rest => match self.bulk_len(rest)? {
                        Some(len) => len,
                        None => return Ok(Step::Line),
                    },
                },
            };
            let end = self.position + len;
            if len >= LARGE_BYTES_MIN {
                self.bulk = Some(len);
                return Ok(Step::Large(len));
            }
            if chunk.len() < end + 2 {
                self.bulk = Some(len);
                return Ok(Step::Bytes(end + 2));
            }
            self.bulk = None;
            self.push_span(self.position, len);
            // Redis does not look at these two bytes either.
            self.position = end + 2;
            self.missing -= 1;
        }
        Ok(Step::Request)
    }

    /// The arguments of a complete request. `chunk` as [`parse`](Parser::parse) saw it.
    pub(crate) fn args<'a>(&'a self, chunk: &'a [u8]) -> Args<'a> {
        Args { chunk, segments: &self.segments, spans: &self.spans }
    }

    /// Gets ready for the next request. Returns how many bytes of the input the last one takes.
    #[inline]
    pub(crate) fn finish(&mut self) -> usize {
        let len = self.position;
        self.spans.clear();
        self.position = 0;
        if !self.segments.is_empty() {
            self.segments.clear();
        }
        len
    }

    /// Forgets everything but its memory.
    pub(crate) fn reset(&mut self) {
        self.finish();
        (self.missing, self.bulk, self.searched) = (0, None, 0);
    }

    /// Whether it is between two requests.
    pub(crate) fn is_idle(&self) -> bool {
        self.missing == 0 && self.spans.is_empty()
    }

    /// Bytes of the input that are parsed.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Arguments there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        self.spans.capacity().max(self.segments.capacity())
    }

    /// Takes what is parsed out of the input.
    pub(crate) fn cut(&mut self, input: &mut LinkBuffer) -> io::Result<()> {
        if self.position > 0 {
            self.segments.push(input.next(self.position)?);
            self.position = 0;
        }
        Ok(())
    }

    /// Takes the large bulk string of `len` bytes, which is complete, and its line end out of the input.
    pub(crate) fn take_large(&mut self, input: &mut LinkBuffer, len: usize) -> io::Result<()> {
        let slice = input.next(len)?;
        input.skip(2)?;
        self.push_span(0, len);
        self.segments.push(slice);
        self.bulk = None;
        self.missing -= 1;
        Ok(())
    }

    #[inline]
    fn push_span(&mut self, start: usize, len: usize) {
        // All three are bounded: by ARGS_MAX, by what is parsed in place, and by BULK_BYTES_MAX.
        let (segment, start, len) = (self.segments.len() as u32, start as u32, len as u32);
        self.spans.push(Span { segment, start, len });
    }

    /// Reads `*3\r\n`. A count that is not positive is a request without arguments.
    #[cold]
    fn count(&mut self, chunk: &[u8]) -> Result<Option<usize>, Error> {
        let Some(line) = self.line(chunk, TOO_BIG_COUNT)? else { return Ok(None) };
        let count = line.get(1..).and_then(parse_int).filter(|count| *count <= ARGS_MAX);
        if self.is_stranger && count.is_some_and(|count| count > STRANGER_ARGS_MAX) {
            return Err(STRANGER_COUNT);
        }
        Ok(Some(usize::try_from(count.ok_or(INVALID_COUNT)?).unwrap_or(0)))
    }

    /// Reads `$5\r\n`.
    fn bulk_len(&mut self, rest: &[u8]) -> Result<Option<usize>, Error> {
        let Some(line) = self.line(rest, TOO_BIG_LEN)? else { return Ok(None) };
        let digits = match line {
            [b'$', digits @ ..] => digits,
            // An empty line is one that begins with its own end.
            other => {
                let got = other.first().copied().unwrap_or(b'\r');
                let mut text = b"Protocol error: expected '$', got '?'".to_vec();
                if let [.., shown, _quote] = &mut text[..] {
                    *shown = got;
                }
                return Err(Cow::Owned(text));
            }
        };
        let len = parse_int(digits).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= BULK_BYTES_MAX).ok_or(INVALID_LEN)?;
        if self.is_stranger && len > STRANGER_BULK_BYTES_MAX {
            return Err(STRANGER_LEN);
        }
        Ok(Some(len))
    }

    /// The line at the position, without its end, which is skipped.
    fn line<'a>(&mut self, rest: &'a [u8], too_big: Error) -> Result<Option<&'a [u8]>, Error> {
        match self.find(rest, b'\r') {
            Some(at) if at + 2 <= rest.len() => {
                self.searched = 0;
                self.position += at + 2;
                Ok(Some(&rest[..at]))
            }
            Some(_) => Ok(None),
            None if rest.len() > LINE_BYTES_MAX => Err(too_big),
            None => Ok(None),
        }
    }

    /// Finds `byte`, going on where the last search in this line ended.
    fn find(&mut self, rest: &[u8], byte: u8) -> Option<usize> {
        let from = self.searched.min(rest.len());
        let at = rest[from..].iter().position(|&other| other == byte).map(|at| from + at);
        self.searched = at.unwrap_or(rest.len());
        at
    }

    /// Parses an inline command.
    fn inline(&mut self, chunk: &[u8]) -> Result<Step, Error> {
        let end = self.find(chunk, b'\n');
        if end.unwrap_or(chunk.len()) > LINE_BYTES_MAX {
            return Err(TOO_BIG_INLINE);
        }
        let Some(end) = end else { return Ok(Step::Line) };
        self.searched = 0;
        let line = &chunk[..end];
        if line.iter().any(|byte| matches!(byte, b'"' | b'\'')) {
            self.unquote(line).ok_or(UNBALANCED)?;
        } else {
            let mut start = 0;
            for word in line.split(|&byte| is_space(byte)) {
                if !word.is_empty() {
                    self.push_span(start, word.len());
                }
                start += word.len() + 1;
            }
        }
        self.position = end + 1;
        Ok(Step::Request)
    }

    /// Splits a line with quotes in it; they can hold any byte, so what they mean is written elsewhere. None if a
    /// quote is not closed, or not followed by a space.
    #[cold]
    fn unquote(&mut self, line: &[u8]) -> Option<()> {
        let mut text = Vec::with_capacity(line.len());
        let mut rest = skip_spaces(line);
        while !rest.is_empty() {
            let start = text.len();
            rest = skip_spaces(unquote_word(rest, &mut text)?);
            self.push_span(start, text.len() - start);
        }
        self.segments.push(Slice::from(text));
        Some(())
    }
}

/// Bytes through the end of the line that does not end among the first `seen`; one more than there are if it did not
/// come yet. The parser wants no more in one piece, so that what lies behind stays where it is.
pub(crate) fn line_end(input: &LinkBuffer, seen: usize) -> usize {
    match input.find(b'\n', seen) {
        Some(at) => at + 1,
        None if input.len() > seen => input.len().min(seen + LINE_BYTES_MAX),
        None => seen + 1,
    }
}

/// As C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|&&byte| is_space(byte)).count();
    text.get(spaces..).unwrap_or_default()
}

/// Moves one word of an inline command, without its quotes, to `text`; returns what follows.
fn unquote_word<'a>(mut rest: &'a [u8], text: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [] => return Some(rest),
            [space, ..] if is_space(*space) => return Some(rest),
            [b'"', quoted @ ..] => return closed(unquote_double(quoted, text)?),
            [b'\'', quoted @ ..] => return closed(unquote_single(quoted, text)?),
            [byte, rest @ ..] => {
                text.push(*byte);
                rest
            }
        }
    }
}

/// Behind a closing quote comes a space, or nothing.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    rest.first().is_none_or(|byte| is_space(*byte)).then_some(rest)
}

fn unquote_double<'a>(mut rest: &'a [u8], text: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [] => return None,
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'x', high, low, rest @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                text.push(hex(*high) << 4 | hex(*low));
                rest
            }
            [b'\\', escaped, rest @ ..] => {
                text.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest
            }
            [byte, rest @ ..] => {
                text.push(*byte);
                rest
            }
        }
    }
}

fn unquote_single<'a>(mut rest: &'a [u8], text: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [] => return None,
            [b'\'', rest @ ..] => return Some(rest),
            [b'\\', b'\'', rest @ ..] => {
                text.push(b'\'');
                rest
            }
            [byte, rest @ ..] => {
                text.push(*byte);
                rest
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        letter => (letter | 0x20) - b'a' + 10,
    }
}

/// The arguments of a request, the command's name first.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    chunk: &'a [u8],
    segments: &'a [Slice],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments that were [kept](Args::keep).
    pub(crate) fn kept(bytes: &'a [u8], slices: &'a [Slice], spans: &'a [Span]) -> Args<'a> {
        Args { chunk: bytes, segments: slices, spans }
    }

    /// Keeps the argument at `index` for later: a large one with the slices, the others with the bytes, of which there must be
    /// less than 4 GiB.
    pub(crate) fn keep(&self, index: usize, bytes: &mut Vec<u8>, slices: &mut Vec<Slice>) -> Span {
        if let Text::Slice(slice) = self.text(index) {
            if slice.len() >= KEEP_BYTES_MIN {
                let (segment, len) = (slices.len() as u32, slice.len() as u32);
                slices.push(slice);
                return Span { segment, start: 0, len };
            }
        }
        let arg = self.get(index);
        // No segment has this number, so it is found among the bytes.
        let span = Span { segment: u32::MAX, start: bytes.len() as u32, len: arg.len() as u32 };
        bytes.extend_from_slice(arg);
        span
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The argument at `index`; nothing if there are not so many.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> &'a [u8] {
        let Some(span) = self.spans.get(index) else { return &[] };
        let segment = match self.segments.get(span.segment as usize) {
            Some(segment) => segment,
            None => self.chunk,
        };
        let start = span.start as usize;
        segment.get(start..start + span.len as usize).unwrap_or_default()
    }

    /// The arguments from `index` on.
    pub(crate) fn from(&self, index: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let args = *self;
        (index..self.len()).map(move |index| args.get(index))
    }

    /// The argument at `index`, to be kept: as a slice of the request if that pins little else, else as a copy.
    #[inline]
    pub(crate) fn text(&self, index: usize) -> Text {
        let bytes = self.get(index);
        if bytes.len() >= KEEP_BYTES_MIN {
            if let Some(slice) = self.slice(index) {
                return Text::Slice(slice.compact());
            }
        }
        Text::from(bytes)
    }

    /// The argument at `index`, if it was taken out of the input.
    fn slice(&self, index: usize) -> Option<Slice> {
        let span = self.spans.get(index)?;
        let (start, len) = (span.start as usize, span.len as usize);
        self.segments.get(span.segment as usize)?.subslice(start..start + len).ok()
    }

    /// Whether the argument at `index` is `word`, which is in upper case. In any case matches.
    pub(crate) fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).eq_ignore_ascii_case(word.as_bytes())
    }
}
