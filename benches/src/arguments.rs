//! What is read from the command lines of these programs, and what is refused before anything is measured.

use std::fmt::Display;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

/// The most rounds that may be asked for.
const ROUNDS_MAX: usize = 10_000;
/// The longest that may be measured at a time, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// The value that follows an option.
pub fn value<'a, S: AsRef<str> + ?Sized + 'a>(
    words: &mut impl Iterator<Item = &'a S>,
    option: &str,
) -> Result<&'a str, String> {
    words.next().map(AsRef::as_ref).ok_or_else(|| format!("{option} needs a value"))
}

/// Anything that is read from its text.
pub fn number<T: FromStr>(text: &str, option: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{option} does not take {text:?}"))
}

/// A number that is not below `least`.
pub fn at_least<T: FromStr + PartialOrd + Display>(
    least: T,
    text: &str,
    option: &str,
) -> Result<T, String> {
    let number = number(text, option)?;
    if number < least {
        return Err(format!("{option}: {text:?} is less than {least}"));
    }
    Ok(number)
}

/// How many rounds.
pub fn rounds(text: &str, option: &str) -> Result<usize, String> {
    let rounds = at_least(1, text, option)?;
    if rounds > ROUNDS_MAX {
        return Err(format!("{option}: {text:?} is more than {ROUNDS_MAX}"));
    }
    Ok(rounds)
}

/// How long something is measured: a millisecond at least.
pub fn seconds(text: &str, option: &str) -> Result<Duration, String> {
    let seconds: f64 = number(text, option)?;
    // Not a number is in no range.
    if !(0.001..=SECONDS_MAX).contains(&seconds) {
        return Err(format!("{option}: {text:?} is not between 0.001 and {SECONDS_MAX}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// What a program has told another one of its own.
pub fn parse<T: FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("{text:?} is not understood")))
}

/// Measures what the words ask for, or says how the program is used.
pub fn run<P>(
    words: &[&str],
    help: &str,
    read: impl FnOnce(&[&str]) -> Result<P, String>,
    measure: impl FnOnce(P) -> io::Result<()>,
) -> io::Result<()> {
    if words.iter().any(|word| matches!(*word, "--help" | "-h")) {
        show(&format!("{help}\n"));
        return Ok(());
    }
    measure(read(words).map_err(|why| io::Error::other(format!("{why}\n\n{help}")))?)
}

/// Prints to a reader that may go away, such as `head`.
pub fn show(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_at_least_one_round() {
        assert_eq!(rounds("3", "--rounds"), Ok(3));
        for wrong in ["0", "-1", "1.5", "x", "", "inf", "10001", "99999999999999999999"] {
            assert!(rounds(wrong, "--rounds").is_err(), "{wrong}");
        }
        assert_eq!(rounds("x", "--rounds").unwrap_err(), "--rounds does not take \"x\"");
    }

    #[test]
    fn what_is_measured_lasts() {
        assert_eq!(seconds("0.1", "--seconds"), Ok(Duration::from_millis(100)));
        assert_eq!(seconds("4", "--seconds"), Ok(Duration::from_secs(4)));
        for wrong in ["0", "-0", "-1", "nan", "inf", "-inf", "1e-9", "1e300", "x", ""] {
            assert!(seconds(wrong, "--seconds").is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_may_be_missing() {
        let words = ["3".to_owned()];
        let mut words = words.iter();
        assert_eq!(value(&mut words, "--rounds"), Ok("3"));
        assert_eq!(value(&mut words, "--rounds").unwrap_err(), "--rounds needs a value");
    }
}
