//! How much memory the process may have.

use std::fs;
use std::path::{Path, PathBuf};

/// The least of the machine's memory, of the limits of the process's cgroups, and of its address space, in bytes. None if none of them
/// is known.
pub(super) fn memory_bytes() -> Option<usize> {
    [machine(), cgroup(), address_space()].into_iter().flatten().min()
}

fn machine() -> Option<usize> {
    // SAFETY: it only writes to what it is given, which may be all zero.
    let info = unsafe {
        let mut info = std::mem::zeroed::<libc::sysinfo>();
        (libc::sysinfo(&raw mut info) == 0).then_some(info)?
    };
    usize::try_from(info.totalram).ok()?.checked_mul(usize::try_from(info.mem_unit).ok()?)
}

fn address_space() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    usize::try_from(limit).ok()
}

fn cgroup() -> Option<usize> {
    limit_of(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new("/sys/fs/cgroup"))
}

/// The least limit of the cgroups that `memberships` names, and of those that they lie in. Of version 2 there is one, without the name
/// of a controller; of version 1 one for each.
fn limit_of(memberships: &str, root: &Path) -> Option<usize> {
    let limits = memberships.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/');
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let own = root.join(path);
        own.ancestors()
            .take_while(|group| group.starts_with(&root))
            .filter_map(|group| read_limit(group.join(file)))
            .min()
    });
    limits.min()
}

/// "max" is none.
fn read_limit(file: PathBuf) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_the_cgroups_counts() {
        let root = std::env::temp_dir().join(format!("duopoll-cgroup-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let file = root.join(path);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        write("memory.max", "max\n");
        write("a/memory.max", "2000\n");
        write("a/b/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/c/memory.limit_in_bytes", "3000\n");
        assert_eq!(limit_of("0::/a/b\n", &root), Some(2000));
        assert_eq!(limit_of("0::/\n", &root), None);
        assert_eq!(limit_of("5:cpu,cpuacct:/x\n4:memory:/c\n0::/\n", &root), Some(3000));
        assert_eq!(limit_of("nonsense\n", &root), None);
        fs::remove_dir_all(root).expect("removed");
        assert!(memory_bytes().expect("a machine has memory") > 1 << 20);
    }
}
