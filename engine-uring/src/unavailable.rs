//! Why io_uring cannot be used, told to whoever runs the program.

use std::error;
use std::fmt;
use std::fs;
use std::io;

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
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self.errno, Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE))
    }

    /// For the report of a feature: neither cause nor remedy, since the engine goes without.
    pub(crate) fn what_happened(&self) -> String {
        match self.errno {
            Some(errno) => format!("{} from {}", io::Error::from_raw_os_error(errno), self.step),
            None => self.cause.clone(),
        }
    }

    pub(crate) fn old_kernel(what: &str) -> Unavailable {
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
