//! Bugs of kernels that a self-test does not find, since they need a load or a long time.
//!
//! What an entry names is not used on its kernels, though it passes its test. An entry has its source, and is
//! for what does harm: what only ends an operation early, or fails, is handled where it happens.

use std::fmt;
use std::sync::OnceLock;

use crate::features::Feature;

/// A kernel's version, as kernel.org numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u16, u16, u16);

/// What does not work, and where.
#[derive(Debug)]
pub(crate) struct Bug {
    feature: Feature,
    /// The first version that has the bug.
    from: Version,
    /// The first one after it that has not.
    until: Version,
    what: &'static str,
    source: &'static str,
}

const ACCEPTS_ANOTHER: &str = "when completions overflow, an accept gives the number of another descriptor than the one it made";
const ACCEPTS_ANOTHER_FIX: &str = "https://git.kernel.org/linus/a37ee9e117ef";

/// It came with "don't overflow multishot accept" (1bfed2334971) in 6.6, and with that to the stable kernels.
const fn accepts_another(from: Version, until: Version) -> Bug {
    Bug {
        feature: Feature::MultishotAccept,
        from,
        until,
        what: ACCEPTS_ANOTHER,
        source: ACCEPTS_ANOTHER_FIX,
    }
}

const BUGS: &[Bug] = &[
    accepts_another(Version(6, 1, 54), Version(6, 1, 79)),
    // 6.5.3, but Ubuntu's 6.5 calls itself 6.5.0 for ever.
    accepts_another(Version(6, 5, 0), Version(6, 6, 18)),
    accepts_another(Version(6, 7, 0), Version(6, 7, 6)),
];

/// The bug of the running kernel because of which a feature is not used.
pub(crate) fn of(feature: Feature) -> Option<&'static Bug> {
    static RUNNING: OnceLock<Option<Version>> = OnceLock::new();
    bug(feature, (*RUNNING.get_or_init(running))?)
}

fn bug(feature: Feature, version: Version) -> Option<&'static Bug> {
    let has = |bug: &&Bug| bug.feature == feature && (bug.from..bug.until).contains(&version);
    BUGS.iter().find(has)
}

fn running() -> Option<Version> {
    let name = rustix::system::uname();
    Version::parse(&name.release().to_string_lossy(), &name.version().to_string_lossy())
}

impl Version {
    /// The version that a kernel gives as its release, for instance `6.1.57-android14-11`. Debian's kernels have a zero in
    /// place of the last number there, and the version among what they say of their build.
    fn parse(release: &str, build: &str) -> Option<Version> {
        let debian = build.split_once("Debian ").map(|(_, version)| version);
        debian.and_then(Version::numbers).or_else(|| Version::numbers(release))
    }

    /// The numbers at the start of a text; only the first two must be there.
    fn numbers(text: &str) -> Option<Version> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Version(major, minor, numbers.next().flatten().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bug { from, until, what, source, .. } = self;
        write!(f, "a bug of Linux from {from} until {until}: {what} ({source})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        let releases = [
            ("6.18.44", "", Version(6, 18, 44)),
            ("6.5", "", Version(6, 5, 0)),
            ("6.8.0-rc3", "", Version(6, 8, 0)),
            ("6.8-rc3", "", Version(6, 8, 0)),
            ("6.5.0-41-generic", "#41~22.04.2-Ubuntu SMP PREEMPT_DYNAMIC", Version(6, 5, 0)),
            (
                "6.1.0-18-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)",
                Version(6, 1, 76),
            ),
            ("6.1.0-0.deb11.5-amd64", "#1 SMP Debian 6.1.12-1~bpo11+1", Version(6, 1, 12)),
            ("5.15.146.1-microsoft-standard-WSL2", "#1 SMP Thu Jan 11", Version(5, 15, 146)),
            ("6.1.57-android14-11-g0123456789ab", "#1 SMP PREEMPT", Version(6, 1, 57)),
            ("5.14.0-427.13.1.el9_4.x86_64", "#1 SMP PREEMPT_DYNAMIC", Version(5, 14, 0)),
            ("6.6.8-arch1-1", "#1 SMP PREEMPT_DYNAMIC", Version(6, 6, 8)),
            ("6.1.79+", "", Version(6, 1, 79)),
            // A build that speaks of Debian and tells nothing.
            ("6.1.79", "#1 SMP Debian unknown", Version(6, 1, 79)),
        ];
        for (release, build, version) in releases {
            assert_eq!(Version::parse(release, build), Some(version), "{release} {build}");
        }
        for unknown in ["", "linux", "6", "6.", ".1", "6.x", "99999.1"] {
            assert_eq!(Version::parse(unknown, ""), None, "{unknown}");
        }
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(running().is_some_and(|version| version >= Version(5, 1, 0)));
    }

    #[test]
    fn a_bug_ends_with_the_version_that_fixes_it() {
        let has = |major, minor, patch| {
            bug(Feature::MultishotAccept, Version(major, minor, patch)).is_some()
        };
        assert!(!has(6, 1, 53) && has(6, 1, 54) && has(6, 1, 78) && !has(6, 1, 79));
        assert!(!has(6, 2, 0) && has(6, 5, 13) && has(6, 6, 1) && has(6, 6, 17) && !has(6, 6, 18));
        assert!(has(6, 7, 4) && !has(6, 7, 6) && !has(6, 8, 0) && !has(6, 18, 44));
        assert!(bug(Feature::MultishotReceive, Version(6, 6, 1)).is_none());
    }

    #[test]
    fn every_bug_has_a_range_and_a_source() {
        for bug in BUGS {
            assert!(bug.from < bug.until, "{bug}");
            assert!(bug.source.starts_with("https://") && bug.to_string().contains(bug.source));
        }
    }
}
