//! The few statistics that the report needs.

use serde::Serialize;

/// How sure an interval shall be of the median, where there are values enough.
const CONFIDENCE: f64 = 0.95;

/// A median, and the interval that it lies in. NaN of nothing, `null` in JSON; a single value has no interval either.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The median of the values.
    pub median: f64,
    /// The lower end of the interval: one of the values.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// Of ratios: whether the interval has 1 in it, so that there may be no difference.
    pub fn may_be_one(&self) -> bool {
        self.low <= 1.0 && self.high >= 1.0
    }
}

/// The median with the order statistics around it that hold the true one with the [`confidence`] of their number, whatever the
/// distribution is: how many of the values lie below it is binomial.
pub fn estimate(values: impl IntoIterator<Item = f64>) -> Estimate {
    let sorted = sorted(values);
    let Some(last) = sorted.len().checked_sub(1) else {
        return Estimate { median: f64::NAN, low: f64::NAN, high: f64::NAN };
    };
    if last == 0 {
        return Estimate { median: sorted[0], low: f64::NAN, high: f64::NAN };
    }
    let left_out = left_out(sorted.len());
    Estimate { median: middle(&sorted), low: sorted[left_out], high: sorted[last - left_out] }
}

/// How sure the interval of so many values is.
pub fn confidence(count: usize) -> f64 {
    if count == 0 { 0.0 } else { 1.0 - 2.0 * below(count, left_out(count)) }
}

/// How many values at either end are no part of the interval. None, if there are too few for any certainty.
fn left_out(count: usize) -> usize {
    (1..count.div_ceil(2))
        .take_while(|out| 1.0 - 2.0 * below(count, *out) >= CONFIDENCE)
        .last()
        .unwrap_or(0)
}

/// The probability that no more than `most` of `count` coins fall on one side.
fn below(count: usize, most: usize) -> f64 {
    let mut term = 0.5_f64.powi(count as i32);
    let mut sum = term;
    for k in 1..=most {
        term *= (count - k + 1) as f64 / k as f64;
        sum += term;
    }
    sum
}

/// The median; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    middle(&sorted(values))
}

/// The smallest; NaN of nothing.
pub fn minimum(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().filter(|value| value.is_finite()).fold(f64::NAN, f64::min)
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([f64::NAN, 5.0]), 5.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn minimum_skips_what_failed() {
        assert_eq!(minimum([3.0, f64::NAN, 2.0]), 2.0);
        assert!(minimum([]).is_nan());
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // Order statistics for the median at 95 %, as in any textbook: 6 values, all; 9, without one at either end; 20, without 5.
        let of = |count: usize| (left_out(count), (confidence(count) * 1e3).round() / 1e3);
        assert_eq!(of(1), (0, 0.0));
        assert_eq!(of(3), (0, 0.75));
        assert_eq!(of(5), (0, 0.938));
        assert_eq!(of(6), (0, 0.969));
        assert_eq!(of(9), (1, 0.961));
        assert_eq!(of(20), (5, 0.959));
    }

    #[test]
    fn an_interval_is_made_of_values() {
        let values = [1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0];
        assert_eq!(estimate(values), Estimate { median: 5.0, low: 2.0, high: 8.0 });
        assert!(estimate([]).low.is_nan() && !estimate([]).may_be_one());
        assert!(estimate([1.0]).low.is_nan() && !estimate([1.0]).may_be_one());
        assert_eq!(estimate([1.0]).median, 1.0);
        assert!(estimate([0.9, 1.2]).may_be_one());
        assert!(!estimate([0.9, 0.99]).may_be_one());
    }
}
