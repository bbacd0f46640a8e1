//! What tests do to the rings of their thread.

use std::cell::{Cell, RefCell};
use std::io;

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, Probe, cqueue, squeue};

thread_local! {
    /// Which pushes find no room, though there is some.
    pub(crate) static PUSHES: Cell<Pushes> = const { Cell::new(Pushes::Accepted) };
    /// Submissions that the rings of engines have room for.
    pub(crate) static ENTRIES: Cell<Option<u32>> = const { Cell::new(None) };
    /// What rings refuse, if they are restricted at all (`IORING_REGISTER_RESTRICTIONS`).
    pub(crate) static REFUSED: RefCell<Option<Refused>> = const { RefCell::new(None) };
}

/// What becomes of pushes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pushes {
    Accepted,
    Refused,
    /// This one, and then every other one.
    RefusedInTurn,
    AcceptedInTurn,
}

pub(super) fn refuses_push() -> bool {
    let (refused, then) = match PUSHES.get() {
        Pushes::Accepted => (false, Pushes::Accepted),
        Pushes::Refused => (true, Pushes::Refused),
        Pushes::RefusedInTurn => (true, Pushes::AcceptedInTurn),
        Pushes::AcceptedInTurn => (false, Pushes::RefusedInTurn),
    };
    PUSHES.set(then);
    refused
}

/// What a restricted ring answers with EACCES.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    /// Operations, by opcode.
    pub(crate) operations: Vec<u8>,
    /// Registrations, by opcode.
    pub(crate) registrations: Vec<u8>,
}

type AnyBuilder = Builder<squeue::Entry, cqueue::Entry>;

pub(super) fn build(builder: &mut AnyBuilder, entries: u32) -> io::Result<IoUring> {
    let Some(refused) = REFUSED.with_borrow(Clone::clone) else {
        return builder.build(entries);
    };
    let mut probe = Probe::new();
    IoUring::new(entries)?.submitter().register_probe(&mut probe)?;
    let ring = builder.setup_r_disabled().build(entries)?;
    let allowed = |known: &[u8], refused: &[u8]| -> Vec<u8> {
        known.iter().copied().filter(|code| !refused.contains(code)).collect()
    };
    let known: Vec<u8> = (0..64).filter(|code| probe.is_supported(*code)).collect();
    let operations = allowed(&known, &refused.operations);
    // REGISTER_PROBE and REGISTER_PBUF_RING; an older kernel does not know the second one.
    let registrations = [&[8, 22][..], &[8]].map(|known| allowed(known, &refused.registrations));
    let restricted = registrations.into_iter().find_map(|registrations| {
        let operations = operations.iter().copied().map(Restriction::sqe_op);
        let registrations = registrations.into_iter().map(Restriction::register_op);
        let flags = [Restriction::sqe_flags_allowed(u8::MAX >> 1)];
        let mut all: Vec<_> = operations.chain(registrations).chain(flags).collect();
        ring.submitter().register_restrictions(&mut all).ok()
    });
    restricted.ok_or(io::ErrorKind::Unsupported)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}
