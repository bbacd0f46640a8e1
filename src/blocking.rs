//! Connections for code that blocks.

use std::fmt;
use std::io;

use duopoll_core::on_poller_thread;
use pollster::block_on;

use crate::connection::Connection;
use crate::poller::deadlock;

/// The most that one write takes, in bytes.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// A [`Connection`] that blocks: made by [`Connection::into_blocking`].
///
/// A write takes up to a mebibyte, and goes out at once. Before it takes anything it waits while more is unsent than the
/// connection's watermark allows; so one that fails, for instance by a timeout, has taken nothing. `flush` waits until the
/// kernel has taken everything. Timeouts and deadlines are those of the connection.
///
/// # Errors
/// Those of the connection, and [`Deadlock`](io::ErrorKind::Deadlock) on a poller's own thread, which would wait for
/// itself.
pub struct Blocking {
    connection: Connection,
}

impl Connection {
    /// The connection for code that blocks: `std::io::Read` and `Write`.
    pub fn into_blocking(self) -> Blocking {
        Blocking { connection: self }
    }
}

impl Blocking {
    /// The connection, for everything else.
    pub fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The connection as it was.
    pub fn into_inner(self) -> Connection {
        self.connection
    }
}

impl io::Read for Blocking {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        may_block()?;
        block_on(self.connection.read(target))
    }
}

impl io::BufRead for Blocking {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        may_block()?;
        if self.connection.input_mut().is_empty() {
            block_on(self.connection.more())?;
        }
        Ok(self.connection.input_mut().first_chunk())
    }

    fn consume(&mut self, n: usize) {
        io::BufRead::consume(self.connection.input_mut(), n);
    }
}

impl io::Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        may_block()?;
        // Waits before it takes anything, so that what it takes is taken once.
        block_on(self.connection.flush())?;
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        self.connection.write(bytes)?;
        self.connection.writer_mut().submit()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        may_block()?;
        block_on(self.connection.drain())
    }
}

fn may_block() -> io::Result<()> {
    if on_poller_thread() { Err(deadlock()) } else { Ok(()) }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocking").field(&self.connection).finish()
    }
}
