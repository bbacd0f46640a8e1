//! Whether io_uring works here, found by using it.
//!
//! A kernel's version says little: distributions port features back, sysctls and sandboxes take the whole interface
//! away, and some old kernels ignore flags that they do not know. So each thing the engine relies on is done
//! once, on a small ring with the very flags that will be used, and must leave positive evidence.

use io_uring::opcode;

use crate::features::Feature;
use crate::ring::{Ring, Setup};
use crate::unavailable::Unavailable;

mod base;
mod optional;
mod peers;
mod rig;

/// What was seen of a ring that is set up in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) setup: Setup,
    /// Of each feature that is not a way to set it up, the reason why it cannot be used, if it cannot.
    pub(crate) features: Vec<(Feature, Result<(), Unavailable>)>,
}

/// Does what the engine will do.
pub(crate) fn test(setup: Setup) -> Result<Evidence, Unavailable> {
    let ring =
        Ring::with_entries(setup, rig::ENTRIES).map_err(|error| Unavailable::setup(&error))?;
    if !ring.has_base_features() {
        return Err(Unavailable::old_kernel("is that of a kernel before 5.15"));
    }
    let probe = ring.probe().map_err(|error| Unavailable::step("io_uring_register", &error))?;
    let needed = [
        (opcode::Recv::CODE, "RECV"),
        (opcode::RecvMsg::CODE, "RECVMSG"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ];
    for (code, name) in needed {
        if !probe.is_supported(code) {
            return Err(Unavailable::old_kernel(&format!("has no {name}")));
        }
    }
    let mut rig = rig::Rig::of(ring);
    rig.message_arrives()?;
    rig.single_vector_arrives()?;
    rig.full_socket_refuses()?;
    rig.shutdown_ends_a_receive()?;
    rig.cancellation_ends_a_receive()?;
    rig.poll_stays_armed()?;
    let features = vec![
        // What others belong to comes first.
        (Feature::MultishotReceive, optional::receives_go_on(setup, false)),
        (Feature::IncrementalBuffers, optional::receives_go_on(setup, true)),
        (Feature::NoIowait, rig.waits_without_iowait()),
        #[cfg(feature = "zerocopy")]
        (Feature::ZeroCopySend, rig.sends_without_copy()),
    ];
    // What may pass says nothing about the kernel.
    let passing =
        features.iter().find_map(|(_, seen)| seen.as_ref().err().filter(|e| e.may_pass()));
    match passing {
        Some(unavailable) => Err(unavailable.clone()),
        None => Ok(Evidence { setup, features }),
    }
}
