//! Commands on keys, whatever they hold.

use super::{Call, Outcome, SYNTAX, unknown_subcommand, wrong_arity};
use crate::clock::clock;
use crate::encoding;
use crate::reply::{Error, error};

const NX_WITH_OTHERS: Error =
    error("NX and XX, GT or LT options at the same time are not compatible");
const GT_WITH_LT: Error = error("GT and LT options at the same time are not compatible");

pub(super) fn del(call: &mut Call<'_, '_>) -> Outcome {
    let removed = call.args.from(1).filter(|key| call.store.remove(key)).count();
    call.reply.count(removed);
    Ok(())
}

pub(super) fn exists(call: &mut Call<'_, '_>) -> Outcome {
    let found = call.args.from(1).filter(|key| call.store.read(key).is_some()).count();
    call.reply.count(found);
    Ok(())
}

pub(super) fn kind(call: &mut Call<'_, '_>) -> Outcome {
    let value = call.store.read(call.args.get(1));
    call.reply.word(value.map_or("none", |value| value.kind()));
    Ok(())
}

pub(super) fn object(call: &mut Call<'_, '_>) -> Outcome {
    if !call.args.is(1, "ENCODING") {
        return Err(unknown_subcommand(call.args));
    }
    if call.args.len() != 3 {
        return Err(wrong_arity("object|encoding"));
    }
    match call.store.read(call.args.get(2)) {
        Some(value) => call.reply.bulk(encoding::of(value).as_bytes()),
        None => call.reply.null(),
    }
    Ok(())
}

pub(super) fn dbsize(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.count(call.store.len());
    Ok(())
}

/// FLUSHALL and FLUSHDB are one: there is one database.
pub(super) fn flush(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
        1 => {}
        2 if call.args.is(1, "ASYNC") || call.args.is(1, "SYNC") => {}
        _ => return Err(SYNTAX),
    }
    call.store.clear();
    call.reply.ok();
    Ok(())
}

pub(super) fn expire(call: &mut Call<'_, '_>) -> Outcome {
    set_deadline(call, 1000, "expire")
}

pub(super) fn pexpire(call: &mut Call<'_, '_>) -> Outcome {
    set_deadline(call, 1, "pexpire")
}

fn set_deadline(call: &mut Call<'_, '_>, unit: i64, name: &str) -> Outcome {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for index in 3..call.args.len() {
        let option = match () {
            () if call.args.is(index, "NX") => &mut nx,
            () if call.args.is(index, "XX") => &mut xx,
            () if call.args.is(index, "GT") => &mut gt,
            () if call.args.is(index, "LT") => &mut lt,
            () => {
                let text = [b"Unsupported option ", call.args.get(index)].concat();
                return Err(Error::Owned(text));
            }
        };
        *option = true;
    }
    if nx && (xx || gt || lt) {
        return Err(NX_WITH_OTHERS);
    }
    if gt && lt {
        return Err(GT_WITH_LT);
    }
    let now = clock();
    let time = call.int(2)?.checked_mul(unit).and_then(|time| time.checked_add(now));
    let deadline = time.ok_or_else(|| {
        let text = format!("invalid expire time in '{name}' command");
        Error::Owned(text.into_bytes())
    })?;

    let key = call.args.get(1);
    let set = match call.store.deadline(key) {
        None => false,
        Some(old) => {
            !(nx && old.is_some()
                || xx && old.is_none()
                || gt && old.is_none_or(|old| deadline <= old)
                || lt && old.is_some_and(|old| deadline >= old))
        }
    };
    if set && deadline <= now {
        call.store.remove(key);
    } else if set {
        call.store.set_deadline(key, Some(deadline));
    }
    call.reply.count(usize::from(set));
    Ok(())
}

pub(super) fn persist(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let had = call.store.deadline(key).flatten().is_some();
    if had {
        call.store.set_deadline(key, None);
    }
    call.reply.count(usize::from(had));
    Ok(())
}

pub(super) fn ttl(call: &mut Call<'_, '_>) -> Outcome {
    time_left(call, |left| left.saturating_add(500) / 1000)
}

pub(super) fn pttl(call: &mut Call<'_, '_>) -> Outcome {
    time_left(call, |left| left)
}

fn time_left(call: &mut Call<'_, '_>, in_unit: fn(i64) -> i64) -> Outcome {
    let left = match call.store.deadline(call.args.get(1)) {
        None => -2,
        Some(None) => -1,
        Some(Some(deadline)) => in_unit((deadline - clock()).max(0)),
    };
    call.reply.int(left);
    Ok(())
}
