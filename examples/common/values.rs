//! The values of flags.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use lexopt::ValueExt;

/// The value of a flag. An error names it.
pub(crate) fn value<T: FromStr<Err: Display>>(
    name: &str,
    parser: &mut lexopt::Parser,
) -> Result<T, lexopt::Error> {
    let text = parser.value()?.string()?;
    text.parse().map_err(|error: T::Err| format!("--{name} {text}: {error}").into())
}

/// Seconds, perhaps with a fraction.
#[allow(dead_code, reason = "not every example has such a flag")]
pub(crate) fn seconds(name: &str, parser: &mut lexopt::Parser) -> Result<Duration, lexopt::Error> {
    let seconds: f64 = value(name, parser)?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| format!("--{name} {seconds}: {error}").into())
}
