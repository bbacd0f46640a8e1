//! Whether io_uring works here, found by using it.
//!
//! A kernel's version says little: distributions port features back, sysctls and sandboxes take the whole interface
//! away, and some old kernels ignore flags that they do not know. So each thing the engine relies on is done
//! once, on a small ring with the very flags that will be used, and must leave positive evidence.

use std::error;
use std::fmt;
use std::fs;
use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types::Fd};
use libc::iovec;

use crate::buffers::{self, Buffers};
use crate::features::{Feature, FeatureReport, Features, Report};
use crate::known_bugs;
use crate::ring::{Ring, Setup};
use crate::sys;
#[cfg(feature = "zerocopy")]
use crate::zerocopy::REPORT_USAGE;

/// Why io_uring cannot be used here.
///
/// Its text names what was refused, the likely cause, and the remedy, for whoever runs the program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unavailable {
    /// What was tried, for instance `"io_uring_setup"`.
    pub step: &'static str,
    /// The kernel's answer, if it was an error.
    pub errno: Option<i32>,
    /// What is likely behind it.
    pub cause: String,
    /// What would help.
    pub remedy: String,
}

impl Unavailable {
    pub(crate) fn setup(error: &io::Error) -> Unavailable {
        Unavailable::step("io_uring_setup", error)
    }

    pub(crate) fn step(step: &'static str, error: &io::Error) -> Unavailable {
        let errno = error.raw_os_error();
        let (cause, remedy) = explain(errno, disabled_sysctl());
        Unavailable { step, errno, cause, remedy }
    }

    /// Whether it is for lack of memory or descriptors.
    fn may_pass(&self) -> bool {
        matches!(self.errno, Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE))
    }

    /// For the report of a feature: neither cause nor remedy, since the engine goes without.
    fn what_happened(&self) -> String {
        match self.errno {
            Some(errno) => format!("{} from {}", io::Error::from_raw_os_error(errno), self.step),
            None => self.cause.clone(),
        }
    }

    fn old_kernel(what: &str) -> Unavailable {
        Unavailable {
            step: "self-test",
            errno: None,
            cause: format!("this kernel's io_uring {what}"),
            remedy: "use Linux 5.10.162, 5.15 or later".into(),
        }
    }
}

/// The likely cause of an errno, and what would help.
fn explain(errno: Option<i32>, disabled: Option<u32>) -> (String, String) {
    const ALLOW: &str = "allow io_uring_setup, io_uring_enter and io_uring_register (system calls 425 to 427) in the seccomp profile";
    let (cause, remedy) = match (errno, disabled) {
        (Some(libc::EPERM), Some(2)) => (
            "the sysctl kernel.io_uring_disabled is 2: off for everybody",
            "set kernel.io_uring_disabled to 0",
        ),
        (Some(libc::EPERM), Some(1)) => (
            "the sysctl kernel.io_uring_disabled is 1: off for unprivileged processes outside kernel.io_uring_group",
            "set kernel.io_uring_disabled to 0, or put the process into the group kernel.io_uring_group",
        ),
        (Some(libc::EPERM), _) => {
            ("a seccomp profile, as containers have it by default, forbids it", ALLOW)
        }
        (Some(libc::EACCES), _) => {
            ("a security module such as SELinux, or a seccomp profile, forbids it", ALLOW)
        }
        (Some(libc::ENOSYS), _) => (
            "the kernel is older than 5.1 or built without io_uring, or a seccomp profile hides it",
            "use Linux 5.10.162, 5.15 or later, or allow system calls 425 to 427 in the seccomp profile",
        ),
        (Some(libc::ENOMEM), _) => (
            "the limit on locked memory (RLIMIT_MEMLOCK) is used up, or the machine's memory is",
            "raise the limit (ulimit -l, LimitMEMLOCK=), or use fewer pollers",
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            ("no descriptor is left", "raise the limit on open files (ulimit -n, LimitNOFILE=)")
        }
        (Some(libc::EINVAL), _) => {
            ("the kernel is too old for what is asked of it", "use Linux 5.10.162, 5.15 or later")
        }
        _ => ("unknown", "report it, with the kernel's version"),
    };
    (cause.into(), remedy.into())
}

/// `kernel.io_uring_disabled`, where the kernel has it (Linux 6.6 and later).
fn disabled_sysctl() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring is not available: ")?;
        match self.errno {
            Some(errno) => {
                write!(f, "{} from {}", io::Error::from_raw_os_error(errno), self.step)?;
            }
            None => write!(f, "{} failed", self.step)?,
        }
        write!(f, "; likely cause: {}; remedy: {}", self.cause, self.remedy)
    }
}

impl error::Error for Unavailable {}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> io::Error {
        let kind = match unavailable.errno {
            Some(libc::EPERM | libc::EACCES) => io::ErrorKind::PermissionDenied,
            Some(libc::ENOMEM) => io::ErrorKind::OutOfMemory,
            _ => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, unavailable)
    }
}

/// How a ring is set up, and what is used of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) features: Features,
}

/// What was seen of a ring that is set up in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Evidence {
    setup: Setup,
    /// Of each feature that is not a way to set it up, the reason why it cannot be used, if it cannot.
    features: Vec<(Feature, Result<(), Unavailable>)>,
}

/// The best that passes its self-test and may be used. The test is made once per process and way to set a ring up; a
/// failure that may pass, for lack of memory or descriptors, is tried again.
pub(crate) fn plan(allowed: Features) -> Result<Plan, Unavailable> {
    Ok(Evidence::best(allowed)?.plan(allowed))
}

/// What io_uring can do here, and what an engine would use of it that may use `allowed`.
pub fn probe(allowed: Features) -> Report {
    let evidence = match Evidence::best(allowed) {
        Ok(evidence) => evidence,
        Err(unavailable) => {
            return Report { unavailable: Some(unavailable), features: Vec::new() };
        }
    };
    let used = evidence.plan(allowed).features;
    let report = |&feature: &Feature| {
        let seen = match feature {
            Feature::DeferredCompletions => Evidence::of(Setup::DeferTaskrun).map(drop),
            Feature::CooperativeCompletions => Evidence::of(Setup::CoopTaskrun).map(drop),
            _ => return evidence.report(feature, allowed, used),
        };
        feature_report(feature, &seen, allowed, used)
    };
    Report { unavailable: None, features: Feature::ALL.iter().map(report).collect() }
}

fn feature_report(
    feature: Feature,
    seen: &Result<(), Unavailable>,
    allowed: Features,
    used: Features,
) -> FeatureReport {
    let (supported, used) = (seen.is_ok(), used.contains(feature));
    let reason = match seen {
        Err(unavailable) => unavailable.what_happened(),
        Ok(()) if used => "passed its test".into(),
        Ok(()) if !allowed.contains(feature) => "turned off".into(),
        Ok(()) => "something better is used, or what it belongs to is not".into(),
    };
    FeatureReport { feature, supported, used, reason }
}

impl Evidence {
    /// Of the best way to set a ring up.
    fn best(allowed: Features) -> Result<Evidence, Unavailable> {
        Evidence::best_of(allowed, Evidence::of)
    }

    fn best_of(
        allowed: Features,
        evidence: impl Fn(Setup) -> Result<Evidence, Unavailable>,
    ) -> Result<Evidence, Unavailable> {
        let mut refused = Unavailable::old_kernel("knows no way to set up a ring");
        for setup in Setup::ALL {
            if setup.feature().is_some_and(|feature| !allowed.contains(feature)) {
                continue;
            }
            match evidence(setup) {
                Ok(evidence) => return Ok(evidence),
                // It says nothing about this way, and the next one is not to be taken for the best.
                Err(unavailable) if unavailable.may_pass() => return Err(unavailable),
                Err(unavailable) => refused = unavailable,
            }
        }
        Err(refused)
    }

    fn of(setup: Setup) -> Result<Evidence, Unavailable> {
        type Known = OnceLock<Result<Evidence, Unavailable>>;
        static KNOWN: [Known; 3] = [const { OnceLock::new() }; 3];
        let known = &KNOWN[setup as usize];
        if let Some(known) = known.get() {
            return known.clone();
        }
        let found = test(setup);
        match &found {
            Err(unavailable) if unavailable.may_pass() => found,
            _ => known.get_or_init(|| found).clone(),
        }
    }

    fn plan(&self, allowed: Features) -> Plan {
        let setup = self.setup;
        let mut features = Features::BASE;
        if let Some(feature) = setup.feature() {
            features = features.with(feature);
        }
        for (feature, seen) in &self.features {
            let belongs = *feature != Feature::IncrementalBuffers
                || features.contains(Feature::MultishotReceive);
            if seen.is_ok() && belongs && allowed.contains(*feature) {
                features = features.with(*feature);
            }
        }
        Plan { setup, features }
    }

    fn report(&self, feature: Feature, allowed: Features, used: Features) -> FeatureReport {
        let unknown = Err(Unavailable::old_kernel("was not tested for it"));
        let seen = self.features.iter().find(|(tested, _)| *tested == feature);
        feature_report(feature, seen.map_or(&unknown, |(_, seen)| seen), allowed, used)
    }
}

/// Entries of the ring for the test.
const TEST_ENTRIES: u32 = 8;
/// How long a completion may take that is due at once. Generous, for machines that are loaded or emulated.
const GUARD: Duration = Duration::from_secs(5);
/// The same for one that needs only to be fetched.
const AT_HAND: Duration = Duration::from_millis(500);

/// Does what the engine will do.
fn test(setup: Setup) -> Result<Evidence, Unavailable> {
    if let Some(feature) = setup.feature() {
        has_no_known_bug(feature)?;
    }
    let ring =
        Ring::with_entries(setup, TEST_ENTRIES).map_err(|error| Unavailable::setup(&error))?;
    if !ring.has_base_features() {
        return Err(Unavailable::old_kernel("is that of a kernel before 5.15"));
    }
    let probe = ring.probe().map_err(|error| Unavailable::step("io_uring_register", &error))?;
    let needed = [
        (opcode::Recv::CODE, "RECV"),
        (opcode::RecvMsg::CODE, "RECVMSG"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ];
    for (code, name) in needed {
        if !probe.is_supported(code) {
            return Err(Unavailable::old_kernel(&format!("has no {name}")));
        }
    }
    let mut bench = Bench::of(ring);
    bench.message_arrives()?;
    bench.single_vector_arrives()?;
    bench.full_socket_refuses()?;
    bench.shutdown_ends_a_receive()?;
    bench.cancellation_ends_a_receive()?;
    bench.accepts()?;
    bench.poll_stays_armed()?;
    let features = vec![
        // What others belong to comes first.
        (Feature::MultishotAccept, accepts_go_on(setup)),
        (Feature::MultishotReceive, receives_go_on(setup, false)),
        (Feature::IncrementalBuffers, receives_go_on(setup, true)),
        (Feature::NoIowait, bench.waits_without_iowait()),
        #[cfg(feature = "zerocopy")]
        (Feature::ZeroCopySend, bench.sends_without_copy()),
    ];
    let looked_up = |(feature, seen): (Feature, Result<(), Unavailable>)| {
        (feature, seen.and_then(|()| has_no_known_bug(feature)))
    };
    let features: Vec<_> = features.into_iter().map(looked_up).collect();
    // What may pass says nothing about the kernel.
    let passing =
        features.iter().find_map(|(_, seen)| seen.as_ref().err().filter(|e| e.may_pass()));
    match passing {
        Some(unavailable) => Err(unavailable.clone()),
        None => Ok(Evidence { setup, features }),
    }
}

/// Whether what passes its test can be relied on.
fn has_no_known_bug(feature: Feature) -> Result<(), Unavailable> {
    match known_bugs::of(feature) {
        None => Ok(()),
        Some(bug) => Err(Unavailable {
            step: "known bugs",
            errno: None,
            cause: bug.to_string(),
            remedy: "use a later kernel".into(),
        }),
    }
}

/// A listener that is armed once accepts twice.
fn accepts_go_on(setup: Setup) -> Result<(), Unavailable> {
    let mut bench = Bench::new(setup)?;
    let listener = sys::unix_listener().map_err(refused("listen"))?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()));
    let accept = accept.flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build();
    // SAFETY: points to no memory.
    unsafe { bench.ring.push(&accept.user_data(5)) };
    bench.enter(0)?;
    for _ in 0..2 {
        let _peer = sys::connect_to(&listener).map_err(refused("connect"))?;
        let completion = bench.completion_of(5)?;
        let accepted = count(&completion, "IORING_OP_ACCEPT")?;
        // SAFETY: accept gave a new descriptor, which nobody else owns.
        drop(unsafe { OwnedFd::from_raw_fd(accepted as i32) });
        if !cqueue::more(completion.flags()) {
            return Err(broken("accepts once only"));
        }
    }
    Ok(())
}

/// A stream that is armed once receives twice, into buffers that it was not given, and learns of the end.
fn receives_go_on(setup: Setup, incremental: bool) -> Result<(), Unavailable> {
    let mut bench = Bench::new(setup)?;
    let buffers = Buffers::new(&bench.ring, incremental);
    let mut buffers = Lent(Some(buffers.map_err(refused("IORING_REGISTER_PBUF_RING"))?));
    let (left, right) = pair()?;
    let receive = opcode::RecvMulti::new(Fd(right.as_raw_fd()), buffers::GROUP).build();
    // SAFETY: the buffers outlive the operation, or are leaked.
    unsafe { bench.ring.push(&receive.user_data(6)) };
    bench.enter(0)?;
    let mut numbers = Vec::new();
    for message in [&b"one"[..], b"another"] {
        sys::write(&left, message).map_err(refused("write"))?;
        let completion = bench.completion_of(6)?;
        let (n, flags) = (count(&completion, "IORING_OP_RECV")?, completion.flags());
        if !cqueue::more(flags) {
            return Err(broken("receives once only"));
        }
        let number = cqueue::buffer_select(flags).ok_or_else(|| broken("chooses no buffer"))?;
        let more = cqueue::buffer_more(flags);
        if more != incremental {
            return Err(broken("does not use a buffer up as it should"));
        }
        let all = buffers.0.as_mut().ok_or_else(|| broken("has no buffers"))?;
        // SAFETY: a completion has said so.
        let taken = unsafe { all.take(number, n, more) };
        if taken.ok_or_else(|| broken("names a buffer that it was not given"))?.bytes() != message {
            return Err(broken("brings other bytes than were sent"));
        }
        numbers.push(number);
    }
    if (numbers[0] == numbers[1]) != incremental {
        return Err(broken("does not take the buffers in turn"));
    }
    // The end comes together with bytes. Some kernels wait for it then, for ever; the others have it at hand.
    sys::write(&left, b"the last").map_err(refused("write"))?;
    drop(left);
    let bytes = bench.completion_of(6)?;
    count(&bytes, "IORING_OP_RECV")?;
    if cqueue::more(bytes.flags()) {
        let last = bench.completion_within(AT_HAND, 6).map_err(|unavailable| match unavailable {
            Unavailable { errno: None, .. } => broken("misses an end that comes with bytes"),
            refused => refused,
        });
        let last = last?;
        if last.result() != 0 || cqueue::more(last.flags()) {
            return Err(broken("goes on receiving after the end"));
        }
    }
    drop(buffers.0.take());
    Ok(())
}

/// Buffers that the kernel may still write to: leaked, unless they are taken out.
struct Lent(Option<Buffers>);

impl Drop for Lent {
    fn drop(&mut self) {
        mem::forget(self.0.take());
    }
}

fn refused(step: &'static str) -> impl Fn(io::Error) -> Unavailable {
    move |error| Unavailable::step(step, &error)
}

fn broken(what: &str) -> Unavailable {
    Unavailable::old_kernel(what)
}

/// A ring under test.
struct Bench {
    ring: Ring,
    taken: Vec<cqueue::Entry>,
    /// Where the test receives.
    buffer: Box<[u8; 16]>,
    /// The kernel may still write to the buffer.
    lent: bool,
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.lent {
            // A receive that never completed: the kernel may keep what it was given.
            mem::forget(mem::take(&mut self.buffer));
        }
    }
}

impl Bench {
    fn of(ring: Ring) -> Bench {
        Bench { ring, taken: Vec::new(), buffer: Box::default(), lent: false }
    }

    fn new(setup: Setup) -> Result<Bench, Unavailable> {
        let ring = Ring::with_entries(setup, TEST_ENTRIES);
        Ok(Bench::of(ring.map_err(refused("io_uring_setup"))?))
    }

    /// Vectors go out and come in, and a receive on a non-blocking socket waits.
    fn message_arrives(&mut self) -> Result<(), Unavailable> {
        const MESSAGE: &[u8] = b"self-test";
        let (left, right) = pair()?;
        let (front, back) = self.buffer[..MESSAGE.len()].split_at_mut(4);
        let vectors = self.ring.next_vectors();
        vectors[0] = iovec { iov_base: front.as_mut_ptr().cast(), iov_len: front.len() };
        vectors[1] = iovec { iov_base: back.as_mut_ptr().cast(), iov_len: back.len() };
        let header = self.ring.next_header(2);
        let receive = opcode::RecvMsg::new(Fd(right.as_raw_fd()), header).build().user_data(1);
        self.lent = true;
        // SAFETY: the buffer outlives the completion; if that does not come, `Bench::drop` gives it away.
        unsafe { self.ring.push(&receive) };
        self.enter(0)?;

        let (head, tail) = MESSAGE.split_at(2);
        let vectors = self.ring.next_vectors();
        vectors[0] = iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        vectors[1] = iovec { iov_base: tail.as_ptr().cast_mut().cast(), iov_len: tail.len() };
        let header = self.ring.next_header(2);
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let send = opcode::SendMsg::new(Fd(left.as_raw_fd()), header).flags(flags).build();
        // SAFETY: the bytes are static.
        unsafe { self.ring.push(&send.user_data(2)) };

        // Either may be refused, and the other one then waits for ever.
        let sent = self.count_of(2, "IORING_OP_SENDMSG")?;
        let arrived = self.count_of(1, "IORING_OP_RECVMSG")?;
        self.lent = false;
        if (sent, arrived) != (MESSAGE.len(), MESSAGE.len()) || self.buffer[..arrived] != *MESSAGE {
            return Err(broken("does not carry a message"));
        }
        Ok(())
    }

    /// What is sent and received most.
    fn single_vector_arrives(&mut self) -> Result<(), Unavailable> {
        const BYTE: &[u8] = b"x";
        let (left, right) = pair()?;
        let send = opcode::Send::new(Fd(left.as_raw_fd()), BYTE.as_ptr(), 1);
        // SAFETY: the byte is static.
        unsafe { self.ring.push(&send.flags(libc::MSG_NOSIGNAL).build().user_data(8)) };
        let sent = self.count_of(8, "IORING_OP_SEND")?;
        self.receive(&right, 9);
        let arrived = self.count_of(9, "IORING_OP_RECV")?;
        self.lent = false;
        if (sent, arrived) != (1, 1) || self.buffer[..1] != *BYTE {
            return Err(broken("does not carry a byte"));
        }
        Ok(())
    }

    /// What waiting relies on: a send that is not to wait completes when it is submitted, whatever comes of it.
    fn full_socket_refuses(&mut self) -> Result<(), Unavailable> {
        static BYTES: [u8; 16 << 10] = [0; 16 << 10];
        let (left, _right) = pair()?;
        let filled = iter::repeat_with(|| sys::write(&left, &BYTES)).find_map(Result::err);
        if let Some(error) = filled.filter(|error| error.kind() != io::ErrorKind::WouldBlock) {
            return Err(refused("write")(error));
        }
        let send = opcode::Send::new(Fd(left.as_raw_fd()), BYTES.as_ptr(), BYTES.len() as u32);
        let send = send.flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).build();
        // SAFETY: the bytes are static.
        unsafe { self.ring.push(&send.user_data(13)) };
        match -self.result_of(13)? {
            libc::EAGAIN => Ok(()),
            _ => Err(broken("has a send wait that is not to")),
        }
    }

    /// What closing relies on.
    fn shutdown_ends_a_receive(&mut self) -> Result<(), Unavailable> {
        let (left, _right) = pair()?;
        self.receive(&left, 3);
        self.enter(0)?;
        let shut = sys::shutdown(left.as_raw_fd(), libc::SHUT_RDWR);
        shut.map_err(|error| Unavailable::step("shutdown", &error))?;
        let result = self.result_of(3)?;
        self.lent = false;
        match result {
            0 => Ok(()),
            _ => Err(broken("does not end a receive at a shutdown")),
        }
    }

    /// What leaving a socket to somebody else relies on.
    fn cancellation_ends_a_receive(&mut self) -> Result<(), Unavailable> {
        let (left, _right) = pair()?;
        self.receive(&left, 10);
        let cancel = opcode::AsyncCancel::new(10).build().user_data(11);
        // SAFETY: points to no memory.
        unsafe { self.ring.push(&cancel) };
        self.count_of(11, "IORING_OP_ASYNC_CANCEL")?;
        let result = self.result_of(10)?;
        self.lent = false;
        match -result {
            libc::ECANCELED => Ok(()),
            _ => Err(broken("does not end a receive that is cancelled")),
        }
    }

    fn accepts(&mut self) -> Result<(), Unavailable> {
        let listener = sys::unix_listener().map_err(refused("listen"))?;
        let nowhere = std::ptr::null_mut();
        let accept = opcode::Accept::new(Fd(listener.as_raw_fd()), nowhere, std::ptr::null_mut());
        let accept = accept.flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build();
        let _peer = sys::connect_to(&listener).map_err(refused("connect"))?;
        // SAFETY: points to no memory.
        unsafe { self.ring.push(&accept.user_data(12)) };
        let accepted = self.count_of(12, "IORING_OP_ACCEPT")?;
        // SAFETY: accept gave a new descriptor, which nobody else owns.
        drop(unsafe { OwnedFd::from_raw_fd(accepted as i32) });
        Ok(())
    }

    /// Queues a receive into the buffer, which is lent until it is over.
    fn receive(&mut self, socket: &OwnedFd, user_data: u64) {
        let (buffer, len) = (self.buffer.as_mut_ptr(), self.buffer.len() as u32);
        let receive = opcode::Recv::new(Fd(socket.as_raw_fd()), buffer, len).build();
        self.lent = true;
        // SAFETY: the buffer outlives the completion; if that does not come, `Bench::drop` gives it away.
        unsafe { self.ring.push(&receive.user_data(user_data)) };
    }

    /// A send without a copy completes twice. Where there is no loopback device, a Unix socket must do: it refuses, and
    /// in the same two steps.
    #[cfg(feature = "zerocopy")]
    fn sends_without_copy(&mut self) -> Result<(), Unavailable> {
        static MESSAGE: [u8; 64] = [7; 64];
        let tcp = sys::tcp_listener().and_then(|listener| {
            let socket = sys::connect_to(&listener)?;
            Ok((listener, socket))
        });
        let (expected, (_other, socket)) = match tcp {
            Ok(sockets) => (MESSAGE.len() as i32, sockets),
            Err(_) => (-libc::EOPNOTSUPP, pair()?),
        };
        let whole = iovec { iov_base: MESSAGE.as_ptr().cast_mut().cast(), iov_len: MESSAGE.len() };
        self.ring.next_vectors()[0] = whole;
        let send = opcode::SendMsgZc::new(Fd(socket.as_raw_fd()), self.ring.next_header(1));
        let send = send.flags(libc::MSG_NOSIGNAL as u32).ioprio(REPORT_USAGE).build();
        // SAFETY: the bytes are static.
        unsafe { self.ring.push(&send.user_data(7)) };
        let sent = self.completion_of(7)?;
        if sent.result() < 0 && sent.result() != expected {
            let error = io::Error::from_raw_os_error(-sent.result());
            return Err(refused("IORING_OP_SENDMSG_ZC")(error));
        }
        if sent.result() != expected || !cqueue::more(sent.flags()) {
            return Err(broken("does not announce the notification of a send without a copy"));
        }
        let notified = self.completion_of(7)?;
        if !cqueue::notif(notified.flags()) || cqueue::more(notified.flags()) {
            return Err(broken("does not notify of a send without a copy"));
        }
        Ok(())
    }

    /// What waking relies on.
    fn poll_stays_armed(&mut self) -> Result<(), Unavailable> {
        let event = sys::eventfd().map_err(|error| Unavailable::step("eventfd", &error))?;
        let poll = opcode::PollAdd::new(Fd(event.as_raw_fd()), libc::POLLIN as u32);
        // SAFETY: points to no memory.
        unsafe { self.ring.push(&poll.multi(true).build().user_data(4)) };
        for _ in 0..2 {
            sys::eventfd_write(&event).map_err(|error| Unavailable::step("write", &error))?;
            let completion = self.completion_of(4)?;
            count(&completion, "IORING_OP_POLL_ADD")?;
            if !cqueue::more(completion.flags()) {
                return Err(broken("has no multishot poll"));
            }
        }
        Ok(())
    }

    fn waits_without_iowait(&mut self) -> Result<(), Unavailable> {
        if !self.ring.has_no_iowait() {
            return Err(broken("does not know it"));
        }
        self.ring.wait_without_iowait();
        // SAFETY: points to no memory.
        unsafe { self.ring.push(&opcode::Nop::new().build().user_data(7)) };
        self.count_of(7, "IORING_OP_NOP").map(drop)
    }

    fn enter(&mut self, want: u32) -> Result<(), Unavailable> {
        self.enter_for(want, GUARD)
    }

    fn enter_for(&mut self, want: u32, patience: Duration) -> Result<(), Unavailable> {
        let entered = self.ring.enter(want, Some(patience));
        entered.map_err(|error| Unavailable::step("io_uring_enter", &error))
    }

    /// What an operation has done, which must not have failed.
    fn count_of(&mut self, user_data: u64, step: &'static str) -> Result<usize, Unavailable> {
        count(&self.completion_of(user_data)?, step)
    }

    fn result_of(&mut self, user_data: u64) -> Result<i32, Unavailable> {
        Ok(self.completion_of(user_data)?.result())
    }

    fn completion_of(&mut self, user_data: u64) -> Result<cqueue::Entry, Unavailable> {
        self.completion_within(GUARD, user_data)
    }

    fn completion_within(
        &mut self,
        guard: Duration,
        user_data: u64,
    ) -> Result<cqueue::Entry, Unavailable> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.taken.iter().position(|entry| entry.user_data() == user_data) {
                return Ok(self.taken.swap_remove(at));
            }
            let left = guard.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(broken("does not complete what it was given"));
            }
            self.enter_for(1, left)?;
            self.ring.completions(&mut self.taken, TEST_ENTRIES as usize);
        }
    }
}

fn count(completion: &cqueue::Entry, step: &'static str) -> Result<usize, Unavailable> {
    let result = completion.result();
    usize::try_from(result).map_err(|_| refused(step)(io::Error::from_raw_os_error(-result)))
}

fn pair() -> Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd), Unavailable> {
    sys::socket_pair().map_err(|error| Unavailable::step("socketpair", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_is_explained_with_its_remedy() {
        let (cause, remedy) = explain(Some(libc::EPERM), Some(2));
        assert!(cause.contains("io_uring_disabled is 2") && remedy.contains("to 0"));
        let (cause, remedy) = explain(Some(libc::EPERM), None);
        assert!(cause.contains("seccomp") && remedy.contains("425 to 427"));
        let (cause, _) = explain(Some(libc::ENOMEM), None);
        assert!(cause.contains("RLIMIT_MEMLOCK"));
    }

    #[test]
    fn the_text_names_errno_cause_and_remedy() {
        let text = Unavailable::setup(&io::Error::from_raw_os_error(libc::ENOSYS)).to_string();
        for part in ["io_uring_setup", "os error 38", "likely cause", "remedy", "5.10.162"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// On a ring that is restricted, as a sandbox would, every combination of refusals ends in a lower tier or in an error.
#[cfg(test)]
mod restricted {
    use super::*;
    use crate::ring::testing::{REFUSED, Refused};

    /// What the engine cannot do without.
    const NEEDED: [u8; 7] = [
        opcode::RecvMsg::CODE,
        opcode::SendMsg::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::Accept::CODE,
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
#[cfg(all(test, duopoll_faults))]
mod faults {
    use duopoll_core::faults::{Call, Faults, Turn, alone};

    use super::*;

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
