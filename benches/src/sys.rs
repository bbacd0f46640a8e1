//! The system calls of the load generator and of the hand-written epoll loops, each behind a safe
//! function that adds nothing but the errno check.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use crate::address::Address;

/// The accept queue that the hand-written servers ask for; the kernel caps it at `somaxconn`.
const BACKLOG: libc::c_int = 4096;

/// Turns the `-1` of a system call into the errno it left.
pub fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// As [`check`], for calls that return a byte count.
fn check_len(ret: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

/// Whether an error only says "not now".
pub fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

// ---- epoll ------------------------------------------------------------------------------------

/// An epoll instance.
pub struct Epoll(OwnedFd);

/// The buffer that [`Epoll::wait`] fills.
pub struct Events {
    list: Vec<libc::epoll_event>,
    filled: usize,
}

impl Events {
    /// Room for `capacity` events a turn.
    pub fn with_capacity(capacity: usize) -> Self {
        Events { list: vec![libc::epoll_event { events: 0, u64: 0 }; capacity], filled: 0 }
    }

    /// The events of the last wait, as (readiness mask, token).
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        // The struct is packed on x86-64: copy it out, never borrow a field.
        self.list[..self.filled].iter().map(|&event| (event.events, event.u64))
    }
}

impl Epoll {
    /// A new instance, closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just handed us this descriptor, nobody else owns it.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `fd`.
    pub fn add(&self, fd: BorrowedFd<'_>, events: libc::c_int, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    /// Changes what `fd` is watched for, and looks at its readiness again.
    pub fn modify(&self, fd: BorrowedFd<'_>, events: libc::c_int, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn control(
        &self,
        op: libc::c_int,
        fd: BorrowedFd<'_>,
        events: libc::c_int,
        token: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token };
        // SAFETY: `event` lives across the call, and the kernel copies it.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits for at least one event; a signal counts as none.
    pub fn wait(&self, events: &mut Events, timeout_ms: i32) -> io::Result<usize> {
        events.filled = 0;
        // SAFETY: the kernel writes at most `list.len()` initialised events into `list`.
        let ret = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.list.as_mut_ptr(),
                events.list.len() as libc::c_int,
                timeout_ms,
            )
        };
        match check(ret) {
            Ok(filled) => events.filled = filled as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(events.filled)
    }
}

// ---- sockets ----------------------------------------------------------------------------------

/// Receives into `buf`; `Ok(0)` is the end of the stream.
#[inline]
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), 0) })
}

/// Sends from `buf`, as much as the socket takes; a closed peer is an error, not a signal.
#[inline]
pub fn send(fd: BorrowedFd<'_>, buf: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel only reads `buf.len()` bytes of `buf`.
    check_len(unsafe {
        libc::send(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), libc::MSG_NOSIGNAL)
    })
}

/// A non-blocking listening socket. TCP_NODELAY is set on it, which accepted sockets inherit.
pub fn listen(address: &Address) -> io::Result<OwnedFd> {
    let fd = socket(address)?;
    if let Address::Tcp(_) = address {
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    }
    let (storage, len) = encode(address)?;
    // SAFETY: `storage` holds a socket address of `len` bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    Ok(fd)
}

/// Accepts one connection, non-blocking and closed on exec.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: a null address is allowed: the peer's name is not wanted.
    let fd = check(unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            ptr::null_mut(),
            ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the kernel just handed us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Starts to connect a non-blocking socket. The connection may still be under way on return: wait
/// for writability, or try to send.
///
/// `source` is the local IPv4 address for TCP. A run that opens connections faster than TIME_WAIT
/// lets go of their ports spreads them over 127.0.0.0/8.
pub fn connect(address: &Address, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let fd = socket(address)?;
    if let Address::Tcp(remote) = address {
        set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        if let (Some(source), true) = (source, remote.is_ipv4()) {
            // The port is then chosen at connect, when the whole four-tuple is known.
            set_option(fd.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            let (storage, len) = encode(&Address::Tcp(SocketAddr::from((source, 0))))?;
            // SAFETY: `storage` holds a socket address of `len` bytes.
            check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
        }
    }
    let (storage, len) = encode(address)?;
    // SAFETY: `storage` holds a socket address of `len` bytes.
    let ret = check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const storage).cast(), len) });
    match ret {
        Ok(_) => Ok(fd),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error),
    }
}

/// Makes the close of a TCP socket a reset, which leaves nothing in TIME_WAIT.
pub fn set_abortive_close(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger)
}

/// Sets TCP_NODELAY on a listener of another library, for its accepted sockets to inherit, so that
/// every server in the comparison sends under the same rule.
pub fn set_nodelay(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: `socket` keeps the descriptor open for the duration of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

fn socket(address: &Address) -> io::Result<OwnedFd> {
    let family = match address {
        Address::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Address::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Address::Unix(_) => libc::AF_UNIX,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is checked.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the kernel just handed us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a socket option.
pub fn set_option<T>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `value`, which lives across the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// A socket option that is a number.
pub fn option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes of `value`.
    check(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &mut len)
    })?;
    Ok(value)
}

/// Waits until a socket takes what is sent.
pub fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the kernel writes one entry.
    match check(unsafe { libc::poll(&mut entry, 1, -1) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// The kernel's form of an address.
fn encode(address: &Address) -> io::Result<(libc::sockaddr_storage, libc::socklen_t)> {
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match address {
        Address::Tcp(SocketAddr::V4(addr)) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is large enough and aligned for every address type.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in>()
        }
        Address::Tcp(SocketAddr::V6(addr)) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: as above.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in6>()
        }
        Address::Unix(path) => {
            let path = CString::new(path.as_os_str().as_bytes())?;
            let bytes = path.as_bytes_with_nul();
            // SAFETY: all-zero bytes are a valid `sockaddr_un`.
            let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
            raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
            if bytes.len() > raw.sun_path.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path too long"));
            }
            for (to, from) in raw.sun_path.iter_mut().zip(bytes) {
                *to = *from as libc::c_char;
            }
            // SAFETY: as above.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_un>()
        }
    };
    Ok((storage, len as libc::socklen_t))
}

// ---- the process ------------------------------------------------------------------------------

/// Binds the calling thread, and the threads it will start, to one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    // SAFETY: all-zero bytes are an empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET writes inside the set, and ignores a core outside it.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the kernel reads the set, whose size is passed with it.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// The one core that a process may use, if it is one.
pub fn only_core(pid: u32) -> io::Result<Option<usize>> {
    // SAFETY: all-zero bytes are an empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the set, whose size is passed with it.
    check(unsafe {
        libc::sched_getaffinity(pid as libc::pid_t, size_of::<libc::cpu_set_t>(), &mut set)
    })?;
    // SAFETY: CPU_ISSET reads inside the set.
    let has = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    let mut cores = (0..libc::CPU_SETSIZE as usize).filter(has);
    Ok(cores.next().filter(|_| cores.next().is_none()))
}

/// Raises the soft limit on open descriptors to the hard limit, and returns it.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills `limit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads `limit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(limit.rlim_max)
}

/// Asks the kernel to kill this process when its parent dies, so that an interrupted comparison
/// leaves no server behind.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    Ok(())
}

/// Sends `signal` to a process.
pub fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid as libc::pid_t, signal) })?;
    Ok(())
}

/// CPU time of all threads of a process, ended ones included, in nanoseconds.
///
/// The process' own CPU clock counts in nanoseconds, where `/proc/PID/stat` counts in ticks of
/// 10 ms, and reading it costs one system call.
pub fn cpu_time_ns(pid: u32) -> io::Result<u64> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the C library writes the clock id.
    let ret = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) };
    if ret != 0 {
        return Err(io::Error::from_raw_os_error(ret));
    }
    clock_ns(clock)
}

/// CPU time of this process, in nanoseconds.
pub fn own_cpu_time_ns() -> io::Result<u64> {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time of the child processes that have ended, in nanoseconds.
pub fn children_cpu_time_ns() -> io::Result<u64> {
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes `usage`.
    check(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) })?;
    let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    Ok(ns(usage.ru_utime) + ns(usage.ru_stime))
}

/// The monotonic clock, in nanoseconds.
#[inline]
pub fn now_ns() -> u64 {
    // The monotonic clock always exists.
    clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0)
}

#[inline]
fn clock_ns(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills `time`.
    check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The number of a descriptor, for the tokens of a loop.
pub fn token(fd: RawFd) -> u64 {
    fd as u64
}
