//! Which CPUs threads run on.

use std::io;
use std::mem;

/// The CPUs that the calling thread may run on.
pub(crate) fn cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is an array of integers, which may be zero.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the size of the set; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let all = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: the index is below the size of the set.
    Ok(all.filter(|index| unsafe { libc::CPU_ISSET(*index, &set) }).collect())
}

/// Binds the calling thread to a CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t is an array of integers, which may be zero.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the CPU was found by `cpus`, so it is below the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads the size of the set; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
