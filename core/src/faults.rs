//! Faults at the boundary to the kernel, for tests: this module is there with `--cfg duopoll_faults` only.
//!
//! The engines ask before each call that can fail. A call that shall fail is not made, so the kernel's state is what
//! it was, and its result is the errno. Where an errno says something about a socket, the engine brings the
//! socket into that state: one that is reported as reset is shut down, one that would block is reported again.
//!
//! Faults go for the whole process, so tests take [turns](alone).

use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::iovec;

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `epoll_create1`, `io_uring_setup`.
    Setup,
    /// `eventfd`.
    EventFd,
    /// `epoll_ctl`, to add a descriptor.
    Register,
    /// `epoll_wait`, `io_uring_enter`.
    Wait,
    /// `io_uring_enter` with something to submit.
    Submit,
    /// `accept4`.
    Accept,
    /// `recv` and `readv`, `IORING_OP_RECV` and `IORING_OP_RECVMSG`.
    Receive,
    /// `send` and `sendmsg`, `IORING_OP_SEND` and `IORING_OP_SENDMSG`.
    Send,
    /// `getsockopt(SO_ERROR)`, which says how a connect has ended.
    ConnectResult,
    /// `IORING_OP_POLL_ADD` for a socket whose connect is under way.
    ConnectPoll,
    /// `IORING_OP_POLL_ADD` for a socket that would block.
    Poll,
    /// `IORING_OP_POLL_ADD` for the waker.
    WakerPoll,
    /// `write` to the waker.
    Notify,
    /// `shutdown`.
    Shutdown,
    /// `recvmmsg`.
    ReceiveDatagrams,
    /// `sendmmsg`.
    SendDatagrams,
    /// A block for a buffer.
    Block,
}

const CALLS: usize = Call::Block as usize + 1;

/// What shall go wrong.
#[derive(Clone, Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    short_percent: u64,
    seed: u64,
    generation: u32,
    ring_entries: Option<u32>,
}

#[derive(Clone, Debug)]
struct Rule {
    call: Call,
    errno: i32,
    when: When,
}

#[derive(Clone, Debug)]
enum When {
    /// From the first of these calls to the last, counted from 1.
    Counted(u64, u64),
    Percent(u64),
}

/// What goes wrong now, and what has.
struct State {
    faults: Faults,
    random: u64,
    calls: [u64; CALLS],
    injected: u64,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// A test's turn. The faults that it sets end with it.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Waits until no other test injects faults, nor runs without them in between.
pub fn alone() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = Turn(TURN.lock().unwrap_or_else(PoisonError::into_inner));
    turn.set(Faults::none());
    turn
}

impl Faults {
    /// No faults. Calls are counted.
    pub const fn none() -> Faults {
        Faults { rules: Vec::new(), short_percent: 0, seed: 0, generation: 0, ring_entries: None }
    }

    /// Where random choices begin.
    pub fn seed(mut self, seed: u64) -> Faults {
        self.seed = seed;
        self
    }

    /// The `n`-th such call fails, counted from 1.
    pub fn nth(self, call: Call, n: u64, errno: i32) -> Faults {
        self.counted(call, n, n, errno)
    }

    /// All calls from the `first` to the `last` fail.
    pub fn counted(mut self, call: Call, first: u64, last: u64, errno: i32) -> Faults {
        self.rules.push(Rule { call, errno, when: When::Counted(first, last) });
        self
    }

    /// So many of a hundred such calls fail.
    pub fn often(mut self, call: Call, percent: u64, errno: i32) -> Faults {
        self.rules.push(Rule { call, errno, when: When::Percent(percent) });
        self
    }

    /// So many of a hundred receives and sends are given less than they could take, half of these a single byte, and those of
    /// datagrams fewer of them. And so
    /// many of a hundred operations that go on by themselves end after each thing they do.
    pub fn short(mut self, percent: u64) -> Faults {
        self.short_percent = percent;
        self
    }

    /// The first token's generation.
    pub fn generation(mut self, generation: u32) -> Faults {
        self.generation = generation;
        self
    }

    /// How many submissions a ring that is made from now on has room for.
    pub fn ring_entries(mut self, entries: u32) -> Faults {
        self.ring_entries = Some(entries);
        self
    }
}

impl Turn {
    /// Sets what goes wrong from now on, and counts from 0.
    pub fn set(&self, faults: Faults) {
        let random = faults.seed;
        *state() = Some(State { faults, random, calls: [0; CALLS], injected: 0 });
    }

    /// How many such calls there have been, those that failed included.
    pub fn calls(&self, call: Call) -> u64 {
        state().as_ref().map_or(0, |state| state.calls[call as usize])
    }

    /// How many calls were made to fail, or cut short.
    pub fn injected(&self) -> u64 {
        state().as_ref().map_or(0, |state| state.injected)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *state() = None;
    }
}

impl State {
    /// splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, percent: u64) -> bool {
        percent > 0 && self.random() % 100 < percent
    }

    fn errno(&mut self, call: Call) -> Option<i32> {
        self.calls[call as usize] += 1;
        let count = self.calls[call as usize];
        for index in 0..self.faults.rules.len() {
            let Rule { call: of, errno, ref when } = self.faults.rules[index];
            let now = of == call
                && match *when {
                    When::Counted(first, last) => (first..=last).contains(&count),
                    When::Percent(percent) => self.happens(percent),
                };
            if now {
                self.injected += 1;
                return Some(errno);
            }
        }
        None
    }
}

/// For engines: the errno that this call shall fail with, if it shall.
pub fn errno(call: Call) -> Option<i32> {
    state().as_mut().and_then(|state| state.errno(call))
}

/// For engines: whether a socket is broken whose call has failed like this.
pub fn breaks_socket(errno: i32) -> bool {
    matches!(errno, libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT)
}

/// For engines: cuts what a receive is about to be given. Returns how many vectors are left.
pub fn shorten_inputs(vectors: &mut [iovec]) -> usize {
    let total = vectors.iter().map(|vector| vector.iov_len).sum();
    shorten_outputs(vectors, total).0
}

/// For engines: cuts what a send is about to be given, so many bytes in all. Returns how many vectors are left, and
/// their bytes.
pub fn shorten_outputs(vectors: &mut [iovec], total: usize) -> (usize, usize) {
    let mut state = state();
    let Some(state) = state.as_mut() else { return (vectors.len(), total) };
    let percent = state.faults.short_percent;
    if total < 2 || !state.happens(percent) {
        return (vectors.len(), total);
    }
    state.injected += 1;
    let mut left = match state.random() % 2 {
        0 => 1,
        _ => 1 + state.random() as usize % (total - 1),
    };
    let short = left;
    for (index, vector) in vectors.iter_mut().enumerate() {
        if left <= vector.iov_len {
            vector.iov_len = left;
            return (index + 1, short);
        }
        left -= vector.iov_len;
    }
    (vectors.len(), short)
}

/// For sockets of datagrams: of so many that a call could take, how many it shall.
pub fn fewer(count: usize) -> usize {
    let mut state = state();
    let Some(state) = state.as_mut() else { return count };
    let percent = state.faults.short_percent;
    if count < 2 || !state.happens(percent) {
        return count;
    }
    state.injected += 1;
    1 + state.random() as usize % (count - 1)
}

/// For engines: whether an operation that would go on by itself shall end after what it has done.
pub fn ends_early() -> bool {
    let mut state = state();
    let Some(state) = state.as_mut() else { return false };
    let percent = state.faults.short_percent;
    let ends = state.happens(percent);
    state.injected += u64::from(ends);
    ends
}

/// For drivers: the first token's generation.
pub fn generation() -> u32 {
    state().as_ref().map_or(0, |state| state.faults.generation)
}

/// For rings: how many submissions there shall be room for.
pub fn ring_entries() -> Option<u32> {
    state().as_ref().and_then(|state| state.faults.ring_entries)
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}
