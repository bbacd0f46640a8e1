//! What is planned where something is refused, or fails.

/// On a ring that is restricted, as a sandbox would, every combination of refusals ends in a lower tier or in an error.
mod restricted {
    use io_uring::opcode;

    use super::super::*;
    use crate::ring::testing::{REFUSED, Refused};

    /// What the engine cannot do without.
    const NEEDED: [u8; 6] = [
        opcode::RecvMsg::CODE,
        opcode::SendMsg::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ];
    const REGISTER_PROBE: u8 = 8;
    const REGISTER_PBUF_RING: u8 = 22;

    fn best_without(operations: &[u8], registrations: &[u8]) -> Result<Evidence, Unavailable> {
        let (operations, registrations) = (operations.to_vec(), registrations.to_vec());
        REFUSED.set(Some(Refused { operations, registrations }));
        let best = Evidence::best_of(Features::ALL, test);
        REFUSED.set(None);
        best
    }

    fn features(best: Result<Evidence, Unavailable>) -> Features {
        best.expect("a tier").plan(Features::ALL).features
    }

    fn unrestricted() -> Features {
        features(Evidence::best_of(Features::ALL, test))
    }

    #[test]
    fn a_restriction_that_refuses_nothing_changes_nothing() {
        assert_eq!(features(best_without(&[], &[])), unrestricted());
    }

    #[test]
    fn what_is_needed_and_refused_is_a_clear_error() {
        for code in NEEDED {
            let unavailable = best_without(&[code], &[]).expect_err("nothing works");
            assert_eq!(unavailable.errno, Some(libc::EACCES), "{code}: {unavailable}");
            assert!(unavailable.step.starts_with("IORING_OP_"), "{code}: {unavailable}");
            assert!(unavailable.to_string().contains("remedy"), "{unavailable}");
        }
        let unavailable = best_without(&[], &[REGISTER_PROBE]).expect_err("nothing is known");
        assert_eq!(unavailable.errno, Some(libc::EACCES), "{unavailable}");
        assert_eq!(unavailable.step, "io_uring_register");
    }

    #[test]
    fn what_is_refused_and_not_needed_is_done_without() {
        let without = features(best_without(&[], &[REGISTER_PBUF_RING]));
        let buffers = [Feature::MultishotReceive, Feature::IncrementalBuffers];
        assert_eq!(without, buffers.into_iter().fold(unrestricted(), Features::without));
        let without = features(best_without(&[opcode::Nop::CODE], &[]));
        assert_eq!(without, unrestricted().without(Feature::NoIowait));
    }

    /// It does not wait for what cannot come any more, nor leave anything behind that does harm.
    #[test]
    fn every_combination_comes_to_an_end() {
        for chosen in 0..1 << NEEDED.len() {
            let refused: Vec<u8> =
                (0..NEEDED.len()).filter(|at| chosen >> at & 1 == 1).map(|at| NEEDED[at]).collect();
            for registrations in [&[][..], &[REGISTER_PBUF_RING]] {
                let best = best_without(&refused, registrations);
                assert_eq!(best.is_err(), chosen != 0, "{refused:?}: {best:?}");
            }
        }
        assert_eq!(features(best_without(&[], &[])), unrestricted());
    }
}

/// Each call of the self-test fails once.
#[cfg(duopoll_faults)]
mod faults {
    use duopoll_core::faults::{Call, Faults, Turn, alone};

    use super::super::*;

    fn best() -> Result<Evidence, Unavailable> {
        Evidence::best_of(Features::ALL, test)
    }

    /// Lets the first call fail, then the second, until none is left. Returns how many have failed.
    fn sweep(
        turn: &Turn,
        call: Call,
        errno: i32,
        mut look: impl FnMut(Result<Evidence, Unavailable>),
    ) -> u64 {
        for n in 1.. {
            turn.set(Faults::none().nth(call, n, errno));
            let found = best();
            if turn.injected() == 0 {
                return n - 1;
            }
            look(found);
        }
        unreachable!("there is always a next number")
    }

    #[test]
    fn a_shortage_is_an_error_and_no_lower_tier() {
        let turn = alone();
        for errno in [libc::ENOMEM, libc::EMFILE, libc::ENFILE] {
            for call in [Call::Setup, Call::EventFd] {
                let failed = sweep(&turn, call, errno, |found| {
                    let unavailable = found.expect_err("another tier");
                    assert_eq!(unavailable.errno, Some(errno), "{unavailable}");
                });
                assert!(failed > 0);
            }
        }
    }

    #[test]
    fn interruptions_do_not_count() {
        let turn = alone();
        let best = best();
        for (call, errno) in
            [(Call::Wait, libc::EINTR), (Call::Submit, libc::EAGAIN), (Call::Submit, libc::EBUSY)]
        {
            let failed = sweep(&turn, call, errno, |found| assert_eq!(found, best));
            assert!(failed > 3, "{failed}");
        }
    }
}
