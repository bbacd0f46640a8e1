//! The system calls, each behind a function that is safe to call.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, epoll_event, iovec};

/// The result of a system call as a `Result`.
macro_rules! syscall {
    ($name:ident ( $($arg:expr),* $(,)? )) => {{
        #[allow(clippy::undocumented_unsafe_blocks, reason = "said where the macro is used")]
        let result = unsafe { libc::$name($($arg),*) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }};
}

/// The same without the C library, on the hot path: it would arm and disarm thread cancellation around each call, and a
/// return from a function that made a system call is mispredicted, since the kernel has used up the processor's stack of
/// return addresses. With the functions here inlined, nothing returns but the kernel.
macro_rules! raw_syscall {
    ($number:ident ( $($arg:expr),* $(,)? )) => {{
        #[allow(clippy::undocumented_unsafe_blocks, reason = "said where the macro is used")]
        let result = unsafe { raw::syscall(libc::$number, [$($arg as usize),*]) };
        if result < 0 {
            Err(io::Error::from_raw_os_error(-result as i32))
        } else {
            Ok(result as usize)
        }
    }};
}

mod raw {
    use libc::c_long;

    /// Makes a system call of up to six arguments. Gives its result, or the negated errno.
    ///
    /// # Safety
    /// That of the system call.
    #[inline(always)]
    pub(super) unsafe fn syscall<const N: usize>(number: c_long, args: [usize; N]) -> isize {
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        // SAFETY: promised by the caller; the kernel looks at no more arguments than the call has.
        unsafe { six(number, all) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn six(number: c_long, args: [usize; 6]) -> isize {
        let result;
        // SAFETY: promised by the caller; the instruction clobbers rcx and r11, and does not touch the stack.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number as isize => result,
                in("rdi") args[0],
                in("rsi") args[1],
                in("rdx") args[2],
                in("r10") args[3],
                in("r8") args[4],
                in("r9") args[5],
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// As above.
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn six(number: c_long, args: [usize; 6]) -> isize {
        let result;
        // SAFETY: promised by the caller; the instruction does not touch the stack.
        unsafe {
            std::arch::asm!(
                "svc 0",
                in("x8") number,
                inlateout("x0") args[0] as isize => result,
                in("x1") args[1],
                in("x2") args[2],
                in("x3") args[3],
                in("x4") args[4],
                in("x5") args[5],
                options(nostack),
            );
        }
        result
    }

    /// As above, by the C library.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    unsafe fn six(number: c_long, args: [usize; 6]) -> isize {
        let [a, b, c, d, e, f] = args;
        // SAFETY: promised by the caller.
        match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
            -1 => -(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) as isize),
            result => result as isize,
        }
    }
}

/// Returns early from a system call that a test wants to fail.
macro_rules! fault {
    ($call:ident) => {
        #[cfg(duopoll_faults)]
        if let Some(errno) = duopoll_core::faults::errno(duopoll_core::faults::Call::$call) {
            return Err(io::Error::from_raw_os_error(errno));
        }
    };
    ($call:ident, $fd:expr) => {
        #[cfg(duopoll_faults)]
        if let Some(error) = faults::on_socket(duopoll_core::faults::Call::$call, $fd) {
            return Err(error);
        }
    };
}

/// Calls again while a signal interrupts.
#[inline]
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

pub(crate) fn epoll_create() -> io::Result<OwnedFd> {
    fault!(Setup);
    let fd = syscall!(epoll_create1(libc::EPOLL_CLOEXEC))?;
    // SAFETY: epoll_create1(2) gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    fault!(EventFd);
    let fd = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
    // SAFETY: eventfd(2) gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn eventfd_write(fd: &OwnedFd) -> io::Result<()> {
    fault!(Notify);
    let one: u64 = 1;
    // SAFETY for the call: eight readable bytes.
    syscall!(write(fd.as_raw_fd(), (&raw const one).cast::<c_void>(), size_of::<u64>()))?;
    Ok(())
}

pub(crate) fn epoll_add(epoll: &OwnedFd, fd: RawFd, events: c_int, data: u64) -> io::Result<()> {
    fault!(Register);
    let mut event = epoll_event { events: events as u32, u64: data };
    // SAFETY for the call: the event is read during the call only.
    syscall!(epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event))?;
    Ok(())
}

pub(crate) fn epoll_modify(epoll: &OwnedFd, fd: RawFd, events: c_int, data: u64) -> io::Result<()> {
    let mut event = epoll_event { events: events as u32, u64: data };
    // SAFETY for the call: the event is read during the call only.
    syscall!(epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_MOD, fd, &raw mut event))?;
    Ok(())
}

pub(crate) fn epoll_del(epoll: &OwnedFd, fd: RawFd) -> io::Result<()> {
    // SAFETY for the call: no event is read when deleting.
    syscall!(epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()))?;
    Ok(())
}

/// Waits for at most `timeout_ms` milliseconds, -1 for ever. Returns how many events are set.
#[inline]
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [epoll_event],
    timeout_ms: c_int,
) -> io::Result<usize> {
    fault!(Wait);
    let (max, no_mask) = (events.len() as c_int, std::ptr::null::<libc::sigset_t>());
    // epoll_pwait, since newer architectures have no epoll_wait.
    // SAFETY for the call: `max` events can be written, and no signal mask is given.
    raw_syscall!(SYS_epoll_pwait(
        epoll.as_raw_fd(),
        events.as_mut_ptr(),
        max,
        timeout_ms,
        no_mask,
        0usize,
    ))
}

/// Receives into the vectors: `recv` for one, which costs the kernel a little less than `readv`.
///
/// # Safety
/// The vectors describe writable memory that nobody else uses.
#[inline]
pub(crate) unsafe fn receive(fd: RawFd, vectors: &[iovec]) -> io::Result<usize> {
    fault!(Receive, fd);
    let null = std::ptr::null_mut::<c_void>();
    if let [one] = vectors {
        // SAFETY for the call: promised by the caller; no address is asked for.
        raw_syscall!(SYS_recvfrom(fd, one.iov_base, one.iov_len, 0, null, null))
    } else {
        // SAFETY for the call: promised by the caller.
        raw_syscall!(SYS_readv(fd, vectors.as_ptr(), vectors.len()))
    }
}

/// Receives from a Unix socket. A receive stops behind a message that carries descriptors, whatever follows it:
/// `stopped_short` says that it may have. The descriptors were not asked for, and the kernel closes them.
///
/// # Safety
/// As for [`receive`].
pub(crate) unsafe fn receive_message(
    fd: RawFd,
    vectors: &[iovec],
    stopped_short: &mut bool,
) -> io::Result<usize> {
    fault!(Receive, fd);
    // SAFETY: all fields of a msghdr may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_ptr().cast_mut();
    message.msg_iovlen = vectors.len() as _;
    // SAFETY for the call: promised by the caller; recvmsg(2) does not write to the vectors themselves.
    let received = raw_syscall!(SYS_recvmsg(fd, &raw mut message, 0))?;
    *stopped_short = message.msg_flags & libc::MSG_CTRUNC != 0;
    Ok(received)
}

/// Whether this is a Unix socket.
pub(crate) fn is_unix(fd: RawFd) -> bool {
    option(fd, libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX)
}

/// An option of the socket layer that is a number.
pub(crate) fn option(fd: RawFd, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY for the call: `len` bytes can be written to `value`.
    syscall!(getsockopt(
        fd,
        libc::SOL_SOCKET,
        name,
        (&raw mut value).cast::<c_void>(),
        &raw mut len,
    ))?;
    Ok(value)
}

#[cfg(feature = "zerocopy")]
pub(crate) fn set_option(fd: RawFd, name: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as libc::socklen_t;
    let value = (&raw const value).cast::<c_void>();
    // SAFETY for the call: `len` bytes can be read from `value`.
    syscall!(setsockopt(fd, libc::SOL_SOCKET, name, value, len))?;
    Ok(())
}

#[cfg(feature = "zerocopy")]
pub(crate) fn tcp_socket() -> io::Result<OwnedFd> {
    let fd = syscall!(socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?;
    // SAFETY: socket(2) gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends the vectors: `send` for one, `sendmsg` for more. Never raises SIGPIPE, whatever the flags.
///
/// # Safety
/// The vectors describe readable memory.
#[inline]
pub(crate) unsafe fn send(fd: RawFd, vectors: &[iovec], flags: c_int) -> io::Result<usize> {
    fault!(Send, fd);
    let flags = flags | libc::MSG_NOSIGNAL;
    if let [one] = vectors {
        let null = std::ptr::null::<c_void>();
        // SAFETY for the call: promised by the caller; no address is given.
        raw_syscall!(SYS_sendto(fd, one.iov_base, one.iov_len, flags, null, 0))
    } else {
        // SAFETY: all fields of a msghdr may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = vectors.as_ptr().cast_mut();
        message.msg_iovlen = vectors.len() as _;
        // SAFETY for the call: promised by the caller; sendmsg(2) does not write to the vectors.
        raw_syscall!(SYS_sendmsg(fd, &raw const message, flags))
    }
}

pub(crate) fn shutdown(fd: RawFd, how: c_int) -> io::Result<()> {
    fault!(Shutdown);
    // SAFETY for the call: takes no memory.
    syscall!(shutdown(fd, how))?;
    Ok(())
}

/// Bytes that the socket holds.
pub(crate) fn unread_bytes(fd: RawFd) -> usize {
    let mut bytes: c_int = 0;
    // SAFETY for the call: FIONREAD writes an int.
    let asked = syscall!(ioctl(fd, libc::FIONREAD, &raw mut bytes));
    asked.map_or(0, |_| usize::try_from(bytes).unwrap_or(0))
}

/// What the socket is ready for: `POLLIN`, `POLLOUT`, `POLLRDHUP`, `POLLHUP`, `POLLERR`.
pub(crate) fn ready(fd: RawFd) -> i16 {
    let events = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY for the call: one entry, which can be written to.
    let polled = syscall!(poll(&raw mut entry, 1, 0));
    polled.map_or(0, |_| entry.revents)
}

/// How a connect(2) that was under way has ended.
pub(crate) fn connect_result(fd: RawFd) -> io::Result<()> {
    fault!(ConnectResult);
    match option(fd, libc::SO_ERROR)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Ends a connection at once: TCP sends a reset, and whoever waits in the kernel is woken. Unix sockets know no reset,
/// and are shut down.
pub(crate) fn reset(fd: RawFd) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as _, sa_data: [0; 14] };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY for the call: `len` readable bytes. connect(2): AF_UNSPEC dissolves the association.
    if syscall!(connect(fd, &raw const nowhere, len)).is_err() {
        // ENOTCONN: the peer was faster.
        let _ = shutdown(fd, libc::SHUT_RDWR);
    }
}

/// Room for the control messages of one notice.
pub(crate) type Control = [u64; 16];

/// Takes one notice from the socket's error queue, and gives the control message that it came in; none if there is no
/// notice.
pub(crate) fn take_error_notice(
    fd: RawFd,
    control: &mut Control,
) -> io::Result<Option<libc::msghdr>> {
    // SAFETY: all fields of a msghdr may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    // SAFETY for the call: the control buffer is as long as it says, and there is no vector.
    match syscall!(recvmsg(fd, &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)) {
        Ok(_) => Ok(Some(message)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Accepts one connection, close-on-exec and non-blocking. `has_accept4` says whether there is an accept4(2), and is
/// cleared by the first call that finds none.
pub(crate) fn accept(fd: RawFd, has_accept4: &mut bool) -> io::Result<OwnedFd> {
    if *has_accept4 {
        match accept4(fd) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => *has_accept4 = false,
            result => return result,
        }
    }
    accept_without_flags(fd)
}

fn accept4(fd: RawFd) -> io::Result<OwnedFd> {
    fault!(Accept, fd);
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY for the call: no address is asked for.
    let accepted = syscall!(accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
    // SAFETY: accept4(2) gave a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// For kernels before 2.6.28 and sandboxes that know no `accept4`. Another thread that forks and execs in between
/// can leak the descriptor to the child.
fn accept_without_flags(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY for the call: no address is asked for.
    let accepted = syscall!(accept(fd, std::ptr::null_mut(), std::ptr::null_mut()))?;
    // SAFETY: accept(2) gave a new descriptor, which nobody else owns.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    // SAFETY for the call: takes no memory.
    syscall!(fcntl(accepted.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC))?;
    // SAFETY for the call: takes no memory.
    syscall!(fcntl(accepted.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK))?;
    Ok(accepted)
}

/// What a test's faults do to sockets.
#[cfg(duopoll_faults)]
pub(crate) mod faults {
    use std::cell::Cell;

    use duopoll_core::faults::{Call, breaks_socket, errno};

    use super::*;

    thread_local! {
        /// The last call would have blocked because a test wants it to.
        static BLOCKED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn on_socket(call: Call, fd: RawFd) -> Option<io::Error> {
        let errno = errno(call)?;
        BLOCKED.set(errno == libc::EAGAIN);
        if breaks_socket(errno) {
            // SAFETY for the call: takes no memory.
            let _ = syscall!(shutdown(fd, libc::SHUT_RDWR));
        }
        Some(io::Error::from_raw_os_error(errno))
    }

    /// If the last call would have blocked because a test wants it to: has the kernel report the socket again,
    /// as it does a socket that no longer blocks.
    pub(crate) fn report_again(epoll: &OwnedFd, fd: RawFd, events: c_int, data: u64) {
        if BLOCKED.take() {
            let _ = epoll_modify(epoll, fd, events, data);
        }
    }
}
