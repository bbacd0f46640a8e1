//! Commands on strings.

use super::{Call, NOT_AN_INTEGER, Outcome, SYNTAX, wrong_arity};
use crate::clock::clock;
use crate::numbers::{Digits, parse_int};
use crate::reply::{Error, error};
use crate::resp::BULK_BYTES_MAX;
use crate::values::Text;

const TOO_LONG: Error = error("string exceeds maximum allowed size (proto-max-bulk-len)");
const OVERFLOW: Error = error("increment or decrement would overflow");
const DECREMENT_OVERFLOW: Error = error("decrement would overflow");

pub(super) fn get(call: &mut Call<'_, '_>) -> Outcome {
    match call.store.read_as::<Text>(call.args.get(1))? {
        Some(text) => call.reply.text(text),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn mget(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.array(call.args.len() - 1);
    for key in call.args.from(1) {
        // What is no string counts as nothing.
        let text = call.store.read_as::<Text>(key).unwrap_or_default();
        call.reply.text_or_null(text.map(|text| &*text));
    }
    Ok(())
}

/// Options of SET.
#[derive(Default)]
struct SetOptions {
    if_absent: bool,
    if_present: bool,
    get: bool,
    keep_deadline: bool,
    /// Where the expiry is among the arguments, and how to read it.
    expiry: Option<(usize, Expiry)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Expiry {
    seconds: bool,
    absolute: bool,
}

impl SetOptions {
    fn parse(call: &Call<'_, '_>) -> Result<SetOptions, Error> {
        let args = call.args;
        let mut options = SetOptions::default();
        let mut index = 3;
        while index < args.len() {
            let expiry = match () {
                () if args.is(index, "EX") => Some(Expiry { seconds: true, absolute: false }),
                () if args.is(index, "PX") => Some(Expiry { seconds: false, absolute: false }),
                () if args.is(index, "EXAT") => Some(Expiry { seconds: true, absolute: true }),
                () if args.is(index, "PXAT") => Some(Expiry { seconds: false, absolute: true }),
                () => None,
            };
            if let Some(expiry) = expiry {
                // The same one twice is not refused; the last one counts.
                let other = options.expiry.is_some_and(|(_, earlier)| earlier != expiry);
                if other || options.keep_deadline || index + 1 >= args.len() {
                    return Err(SYNTAX);
                }
                options.expiry = Some((index + 1, expiry));
                index += 2;
                continue;
            }
            if args.is(index, "NX") && !options.if_present {
                options.if_absent = true;
            } else if args.is(index, "XX") && !options.if_absent {
                options.if_present = true;
            } else if args.is(index, "GET") {
                options.get = true;
            } else if args.is(index, "KEEPTTL") && options.expiry.is_none() {
                options.keep_deadline = true;
            } else {
                return Err(SYNTAX);
            }
            index += 1;
        }
        Ok(options)
    }
}

/// Reads when a key is to expire.
fn expiry(call: &Call<'_, '_>, index: usize, how: Expiry, name: &str) -> Result<i64, Error> {
    let invalid = || {
        let text = format!("invalid expire time in '{name}' command");
        Error::Owned(text.into_bytes())
    };
    let time = call.int(index)?;
    let unit = if how.seconds { 1000 } else { 1 };
    let time = time.checked_mul(unit).filter(|time| *time > 0).ok_or_else(invalid)?;
    let base = if how.absolute { 0 } else { clock() };
    time.checked_add(base).ok_or_else(invalid)
}

pub(super) fn set(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    if call.args.len() == 3 {
        call.store.set(key, call.text(2));
        call.reply.ok();
        return Ok(());
    }
    let options = SetOptions::parse(call)?;
    let deadline = match options.expiry {
        Some((index, how)) => Some(expiry(call, index, how, "set")?),
        None => None,
    };
    if options.get {
        get(call)?;
    }
    let exists = call.store.contains(key);
    if options.if_absent && exists || options.if_present && !exists {
        if !options.get {
            call.reply.null();
        }
        return Ok(());
    }
    let kept = if options.keep_deadline { call.store.deadline(key).flatten() } else { None };
    call.store.set(key, call.text(2));
    if let Some(deadline) = deadline.or(kept) {
        call.store.set_deadline(key, Some(deadline));
    }
    if !options.get {
        call.reply.ok();
    }
    Ok(())
}

pub(super) fn setex(call: &mut Call<'_, '_>) -> Outcome {
    set_expiring(call, Expiry { seconds: true, absolute: false }, "setex")
}

pub(super) fn psetex(call: &mut Call<'_, '_>) -> Outcome {
    set_expiring(call, Expiry { seconds: false, absolute: false }, "psetex")
}

fn set_expiring(call: &mut Call<'_, '_>, how: Expiry, name: &str) -> Outcome {
    let deadline = expiry(call, 2, how, name)?;
    let key = call.args.get(1);
    call.store.set(key, call.text(3));
    call.store.set_deadline(key, Some(deadline));
    call.reply.ok();
    Ok(())
}

pub(super) fn setnx(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let absent = !call.store.contains(key);
    if absent {
        call.store.set(key, call.text(2));
    }
    call.reply.count(usize::from(absent));
    Ok(())
}

pub(super) fn mset(call: &mut Call<'_, '_>) -> Outcome {
    if call.args.len() % 2 == 0 {
        return Err(wrong_arity("mset"));
    }
    for index in (1..call.args.len()).step_by(2) {
        call.store.set(call.args.get(index), call.text(index + 1));
    }
    call.reply.ok();
    Ok(())
}

pub(super) fn incr(call: &mut Call<'_, '_>) -> Outcome {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_, '_>) -> Outcome {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_, '_>) -> Outcome {
    add(call, call.int(2)?)
}

pub(super) fn decrby(call: &mut Call<'_, '_>) -> Outcome {
    let amount = call.int(2)?.checked_neg().ok_or(DECREMENT_OVERFLOW)?;
    add(call, amount)
}

fn add(call: &mut Call<'_, '_>, amount: i64) -> Outcome {
    let key = call.args.get(1);
    let sum = match call.store.find::<Text>(key)? {
        Some(text) => {
            let value = parse_int(text).ok_or(NOT_AN_INTEGER)?;
            let sum = value.checked_add(amount).ok_or(OVERFLOW)?;
            // In place, because the key keeps its deadline.
            *text = Digits::of(sum).as_bytes().into();
            call.store.touch(key);
            sum
        }
        None => {
            call.store.set(key, Digits::of(amount).as_bytes().into());
            amount
        }
    };
    call.reply.int(sum);
    Ok(())
}

pub(super) fn append(call: &mut Call<'_, '_>) -> Outcome {
    let (key, tail) = (call.args.get(1), call.args.get(2));
    let text = call.store.find_or_make::<Text>(key)?;
    let len = text.len() + tail.len();
    if len > BULK_BYTES_MAX {
        return Err(TOO_LONG);
    }
    *text = [&**text, tail].concat().into();
    call.reply.count(len);
    call.store.touch(key);
    Ok(())
}

pub(super) fn strlen(call: &mut Call<'_, '_>) -> Outcome {
    let text = call.store.read_as::<Text>(call.args.get(1))?;
    call.reply.count(text.map_or(0, |text| text.len()));
    Ok(())
}
