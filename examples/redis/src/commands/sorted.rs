//! Commands on sorted sets.

use super::lists::range;
use super::{Call, Outcome, SYNTAX};
use crate::numbers::parse_float;
use crate::reply::{Error, error};
use crate::values::{Sorted, Text};

const NOT_A_FLOAT: Error = error("value is not a valid float");
const NOT_A_NUMBER: Error = error("resulting score is not a number (NaN)");
const XX_WITH_NX: Error = error("XX and NX options at the same time are not compatible");
const GT_LT_NX: Error = error("GT, LT, and/or NX options at the same time are not compatible");
const INCR_ONE: Error = error("INCR option supports a single increment-element pair");
const LIMIT_ALONE: Error =
    error("syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX");

/// Options of ZADD.
#[derive(Default)]
struct AddOptions {
    if_absent: bool,
    if_present: bool,
    if_greater: bool,
    if_less: bool,
    count_changed: bool,
    increment: bool,
    /// Where the pairs begin.
    pairs: usize,
}

impl AddOptions {
    fn parse(call: &Call<'_, '_>) -> Result<AddOptions, Error> {
        let args = call.args;
        let mut options = AddOptions { pairs: 2, ..AddOptions::default() };
        while options.pairs < args.len() {
            let option = match () {
                () if args.is(options.pairs, "NX") => &mut options.if_absent,
                () if args.is(options.pairs, "XX") => &mut options.if_present,
                () if args.is(options.pairs, "GT") => &mut options.if_greater,
                () if args.is(options.pairs, "LT") => &mut options.if_less,
                () if args.is(options.pairs, "CH") => &mut options.count_changed,
                () if args.is(options.pairs, "INCR") => &mut options.increment,
                () => break,
            };
            *option = true;
            options.pairs += 1;
        }
        let AddOptions { if_absent, if_present, if_greater, if_less, .. } = options;
        match args.len() - options.pairs {
            len if len == 0 || len % 2 != 0 => Err(SYNTAX),
            _ if if_absent && if_present => Err(XX_WITH_NX),
            _ if if_greater && if_less || if_absent && (if_greater || if_less) => Err(GT_LT_NX),
            len if options.increment && len > 2 => Err(INCR_ONE),
            _ => Ok(options),
        }
    }

    /// The score that a member gets; none if it stays as it is.
    fn score(&self, old: Option<f64>, given: f64) -> Result<Option<f64>, Error> {
        let Some(old) = old else { return Ok((!self.if_present).then_some(given)) };
        if self.if_absent {
            return Ok(None);
        }
        let new = if self.increment { old + given } else { given };
        if new.is_nan() {
            return Err(NOT_A_NUMBER);
        }
        let refused = self.if_greater && new <= old || self.if_less && new >= old;
        Ok((!refused).then_some(new))
    }
}

pub(super) fn zadd(call: &mut Call<'_, '_>) -> Outcome {
    let options = AddOptions::parse(call)?;
    let key = call.args.get(1);
    let pairs = (options.pairs..call.args.len()).step_by(2);
    // All are read before the first is added.
    for index in pairs.clone() {
        parse_float(call.args.get(index)).ok_or(NOT_A_FLOAT)?;
    }
    let absent = call.store.find::<Sorted>(key)?.is_none();
    let (mut added, mut changed, mut score) = (0, 0, None);
    if !(absent && options.if_present) {
        let sorted = call.store.find_or_make::<Sorted>(key)?;
        for index in pairs {
            let name = call.args.get(index + 1);
            let given = parse_float(call.args.get(index)).ok_or(NOT_A_FLOAT)?;
            let old = sorted.score(name);
            score = options.score(old, given)?;
            let Some(new) = score else { continue };
            if old != Some(new) {
                sorted.insert(Text::from(name), new);
                added += usize::from(old.is_none());
                changed += 1;
            }
        }
    }
    if changed > 0 {
        call.store.touch(key);
    }
    match score {
        Some(score) if options.increment => call.reply.float(score),
        None if options.increment => call.reply.null(),
        _ => call.reply.count(if options.count_changed { changed } else { added }),
    }
    Ok(())
}

pub(super) fn zcard(call: &mut Call<'_, '_>) -> Outcome {
    let sorted = call.store.read_as::<Sorted>(call.args.get(1))?;
    call.reply.count(sorted.map_or(0, |sorted| sorted.len()));
    Ok(())
}

pub(super) fn zscore(call: &mut Call<'_, '_>) -> Outcome {
    let sorted = call.store.read_as::<Sorted>(call.args.get(1))?;
    match sorted.and_then(|sorted| sorted.score(call.args.get(2))) {
        Some(score) => call.reply.float(score),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn zrem(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let mut removed = 0;
    if let Some(sorted) = call.store.find::<Sorted>(key)? {
        removed = call.args.from(2).filter(|name| sorted.remove(name)).count();
        if sorted.is_empty() {
            call.store.remove(key);
        } else if removed > 0 {
            call.store.touch(key);
        }
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn zpopmin(call: &mut Call<'_, '_>) -> Outcome {
    pop(call, false)
}

pub(super) fn zpopmax(call: &mut Call<'_, '_>) -> Outcome {
    pop(call, true)
}

fn pop(call: &mut Call<'_, '_>, highest: bool) -> Outcome {
    let key = call.args.get(1);
    // Those of a count are pairs, where the protocol has them.
    let (count, in_pairs) = match call.args.len() {
        2 => (1, false),
        3 => (call.count(2)?, call.reply.resp3),
        _ => return Err(SYNTAX),
    };
    let Some(sorted) = call.store.find::<Sorted>(key)? else {
        call.reply.array(0);
        return Ok(());
    };
    let count = count.min(sorted.len());
    call.reply.array(if in_pairs { count } else { 2 * count });
    for (name, score) in (0..count).map_while(|_| sorted.pop(highest)) {
        if in_pairs {
            call.reply.array(2);
        }
        call.reply.text(&name);
        call.reply.float(score);
    }
    if sorted.is_empty() {
        call.store.remove(key);
    } else if count > 0 {
        call.store.touch(key);
    }
    Ok(())
}

/// By places only: neither BYSCORE nor BYLEX.
pub(super) fn zrange(call: &mut Call<'_, '_>) -> Outcome {
    let (mut with_scores, mut reverse, mut limit) = (false, false, false);
    let mut index = 4;
    while index < call.args.len() {
        if call.args.is(index, "WITHSCORES") {
            with_scores = true;
        } else if call.args.is(index, "REV") {
            reverse = true;
        } else if call.args.is(index, "LIMIT") && index + 2 < call.args.len() {
            call.int(index + 1)?;
            call.int(index + 2)?;
            limit = true;
            index += 2;
        } else {
            return Err(SYNTAX);
        }
        index += 1;
    }
    if limit {
        return Err(LIMIT_ALONE);
    }
    let (start, stop) = (call.int(2)?, call.int(3)?);
    let Some(sorted) = call.store.read_as::<Sorted>(call.args.get(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    let range = range(start, stop, sorted.len());
    let in_pairs = with_scores && call.reply.resp3;
    call.reply.array(range.len() * if with_scores && !in_pairs { 2 } else { 1 });
    let mut put = |(name, score): (&Text, f64)| {
        if in_pairs {
            call.reply.array(2);
        }
        call.reply.text(name);
        if with_scores {
            call.reply.float(score);
        }
    };
    let members = sorted.iter();
    if reverse {
        members.rev().skip(range.start).take(range.len()).for_each(&mut put);
    } else {
        members.skip(range.start).take(range.len()).for_each(&mut put);
    }
    Ok(())
}
