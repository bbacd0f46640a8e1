//! What the engine uses of the kernel beyond the base, and what can be turned off.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::unavailable::Unavailable;

/// Something that not every kernel can do, and that the engine does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// Completions run when the poller enters the kernel to wait, and never as an interruption
    /// (`IORING_SETUP_DEFER_TASKRUN`, Linux 6.1).
    DeferredCompletions,
    /// Completions run when the poller enters the kernel for any reason (`IORING_SETUP_COOP_TASKRUN`, Linux 5.19).
    CooperativeCompletions,
    /// A stream is armed once, and receives into buffers that all streams of a poller share (Linux 6.0). An idle
    /// connection has no buffer then.
    MultishotReceive,
    /// A shared buffer is used up piece by piece, by one message after another (`IOU_PBUF_RING_INC`, Linux 6.12).
    IncrementalBuffers,
    /// A poller that waits does not count as waiting for a disk (`IORING_ENTER_NO_IOWAIT`, Linux 6.15).
    NoIowait,
    /// Large pieces are sent without a copy (`IORING_OP_SENDMSG_ZC`), and the kernel says whether it has copied them all
    /// the same (`IORING_SEND_ZC_REPORT_USAGE`, Linux 6.2).
    #[cfg(feature = "zerocopy")]
    ZeroCopySend,
}

impl Feature {
    /// All there are.
    pub const ALL: &[Feature] = &[
        Feature::DeferredCompletions,
        Feature::CooperativeCompletions,
        Feature::MultishotReceive,
        Feature::IncrementalBuffers,
        Feature::NoIowait,
        #[cfg(feature = "zerocopy")]
        Feature::ZeroCopySend,
    ];

    /// Its name, as reports show it and [`Features`] are given by.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::DeferredCompletions => "deferred-completions",
            Feature::CooperativeCompletions => "cooperative-completions",
            Feature::MultishotReceive => "multishot-receive",
            Feature::IncrementalBuffers => "incremental-buffers",
            Feature::NoIowait => "no-iowait",
            #[cfg(feature = "zerocopy")]
            Feature::ZeroCopySend => "zero-copy-send",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of features: those that may be used, where the kernel proves to have them.
///
/// As text, either the names of those that may be used, or with a `-` in front of each of those that may not, separated
/// by commas; or `all`, or `base`:
///
/// ```
/// use duopoll_uring::{Feature, Features};
///
/// let without: Features = "-multishot-receive,-no-iowait".parse()?;
/// assert!(without.contains(Feature::IncrementalBuffers) && !without.contains(Feature::NoIowait));
/// assert_eq!("base".parse::<Features>()?, Features::BASE);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Features(u8);

impl Features {
    /// None: what every kernel can do on which the engine runs.
    pub const BASE: Features = Features(0);
    /// Those of Linux 6.1.
    pub const LINUX_6_1: Features = Features::BASE
        .with(Feature::DeferredCompletions)
        .with(Feature::CooperativeCompletions)
        .with(Feature::MultishotReceive);
    /// All of them.
    pub const ALL: Features = {
        let (mut all, mut index) = (Features::BASE, 0);
        while index < Feature::ALL.len() {
            all = all.with(Feature::ALL[index]);
            index += 1;
        }
        all
    };

    /// With one more.
    pub const fn with(self, feature: Feature) -> Features {
        Features(self.0 | feature.bit())
    }

    /// With one less.
    pub const fn without(self, feature: Feature) -> Features {
        Features(self.0 & !feature.bit())
    }

    /// Whether it is among them.
    pub const fn contains(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }
}

/// All of them.
impl Default for Features {
    fn default() -> Features {
        Features::ALL
    }
}

impl FromStr for Features {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Features> {
        match text {
            "all" => return Ok(Features::ALL),
            "base" => return Ok(Features::BASE),
            _ => {}
        }
        let start = if text.starts_with('-') { Features::ALL } else { Features::BASE };
        text.split(',').try_fold(start, |features, item| {
            let (name, less) = match item.strip_prefix('-') {
                Some(name) => (name, true),
                None => (item, false),
            };
            let found = Feature::ALL.iter().find(|feature| feature.name() == name);
            match found {
                Some(feature) if less => Ok(features.without(*feature)),
                Some(feature) => Ok(features.with(*feature)),
                None => Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "`{name}` is no feature of io_uring: all, base, {}",
                        names(Features::ALL)
                    ),
                )),
            }
        })
    }
}

fn names(features: Features) -> String {
    let names = Feature::ALL.iter().filter(|feature| features.contains(**feature));
    names.map(|feature| feature.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tier = if self.contains(Feature::IncrementalBuffers) {
            "6.12 tier"
        } else if self.contains(Feature::MultishotReceive) {
            "6.1 tier"
        } else {
            "base tier"
        };
        f.write_str(tier)?;
        if *self == Features::BASE { Ok(()) } else { write!(f, ": {}", names(*self)) }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = Feature::ALL.iter().filter(|feature| self.contains(**feature));
        f.debug_set().entries(features).finish()
    }
}

/// What the running kernel has proven: see [`probe`](crate::probe()).
///
/// Its [`Display`](fmt::Display) is a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Why there is no io_uring at all, if there is none.
    pub unavailable: Option<Unavailable>,
    /// Each feature; none if there is no io_uring.
    pub features: Vec<FeatureReport>,
}

/// What is known of one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeatureReport {
    /// Which one.
    pub feature: Feature,
    /// Whether the kernel has passed its test.
    pub supported: bool,
    /// Whether the engine uses it.
    pub used: bool,
    /// Why, or why not.
    pub reason: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(unavailable) = &self.unavailable {
            return write!(f, "{unavailable}");
        }
        let yes = |yes| if yes { "yes" } else { "no" };
        write!(f, "{:<24} {:<10} {:<5} reason", "feature", "supported", "used")?;
        for FeatureReport { feature, supported, used, reason } in &self.features {
            let (supported, used) = (yes(*supported), yes(*used));
            write!(f, "\n{:<24} {supported:<10} {used:<5} {reason}", feature.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_as_it_is_named() {
        let parse = |text: &str| text.parse::<Features>();
        assert_eq!(parse("all").expect("a set"), Features::ALL);
        let one = parse("no-iowait").expect("a set");
        assert_eq!(one, Features::BASE.with(Feature::NoIowait));
        for &feature in Feature::ALL {
            let without = parse(&format!("-{feature}")).expect("a set");
            assert_eq!(without, Features::ALL.without(feature));
            assert_ne!(without, Features::ALL);
        }
        for wrong in ["", "multishot", "-all", "no-iowait,,", " base"] {
            assert_eq!(parse(wrong).expect_err(wrong).kind(), io::ErrorKind::InvalidInput);
        }
    }
}
