//! Commands that wait for EXEC, each with its arguments.

use duopoll::Slice;

use crate::reply::{Error, error};
use crate::resp::{Args, Span};

/// What the commands of a transaction may take, in bytes.
const TRANSACTION_BYTES_MAX: usize = 32 << 20;
/// What an argument takes beside its bytes, as it is counted; and a command.
const ITEM_BYTES: usize = 32;

const TOO_LONG: Error = error("too long a transaction: its commands take more than 32 MiB");

/// A transaction between MULTI and EXEC.
#[derive(Default)]
pub(crate) struct Transaction {
    /// One of them was refused, so EXEC will be too.
    pub(crate) refused: bool,
    /// Small arguments, one behind the other.
    bytes: Vec<u8>,
    /// Large ones.
    slices: Vec<Slice>,
    spans: Vec<Span>,
    /// Places in the table of commands, and how many arguments each has.
    commands: Vec<(u8, u32)>,
    counted: usize,
}

impl Transaction {
    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// # Errors
    /// If there are too many; this one is not in it then.
    pub(crate) fn push(&mut self, command: u8, args: Args<'_>) -> Result<(), Error> {
        let bytes: usize = args.from(0).map(|arg| arg.len() + ITEM_BYTES).sum();
        if self.counted + bytes + ITEM_BYTES > TRANSACTION_BYTES_MAX {
            return Err(TOO_LONG);
        }
        self.counted += bytes + ITEM_BYTES;
        for index in 0..args.len() {
            self.spans.push(args.keep(index, &mut self.bytes, &mut self.slices));
        }
        self.commands.push((command, args.len() as u32));
        Ok(())
    }

    /// The commands, in order, each with its arguments.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u8, Args<'_>)> {
        let mut start = 0;
        self.commands.iter().map(move |(command, len)| {
            let spans = self.spans.get(start..start + *len as usize).unwrap_or_default();
            start += *len as usize;
            (*command, Args::kept(&self.bytes, &self.slices, spans))
        })
    }
}
