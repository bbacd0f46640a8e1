//! Commands on sets and hashes.

use super::{Call, Outcome, SYNTAX, wrong_arity};
use crate::values::{Fields, Set, Text};

pub(super) fn sadd(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let set = call.store.find_or_make::<Set>(key)?;
    let mut added = 0;
    for index in 2..call.args.len() {
        let name = || call.args.text(index);
        added += usize::from(set.insert(call.args.get(index), name, ()));
    }
    if added > 0 {
        call.store.touch(key);
    }
    call.reply.count(added);
    Ok(())
}

pub(super) fn srem(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let mut removed = 0;
    if let Some(set) = call.store.find::<Set>(key)? {
        removed = call.args.from(2).filter(|name| set.remove(name)).count();
        if set.is_empty() {
            call.store.remove(key);
        } else if removed > 0 {
            call.store.touch(key);
        }
    }
    call.reply.count(removed);
    Ok(())
}

pub(super) fn scard(call: &mut Call<'_, '_>) -> Outcome {
    let set = call.store.read_as::<Set>(call.args.get(1))?;
    call.reply.count(set.map_or(0, |set| set.len()));
    Ok(())
}

pub(super) fn sismember(call: &mut Call<'_, '_>) -> Outcome {
    let set = call.store.read_as::<Set>(call.args.get(1))?;
    let found = set.is_some_and(|set| set.get(call.args.get(2)).is_some());
    call.reply.count(usize::from(found));
    Ok(())
}

pub(super) fn smembers(call: &mut Call<'_, '_>) -> Outcome {
    let Some(set) = call.store.read_as::<Set>(call.args.get(1))? else {
        call.reply.set(0);
        return Ok(());
    };
    call.reply.set(set.len());
    for (name, ()) in set.iter() {
        call.reply.text(name);
    }
    Ok(())
}

pub(super) fn spop(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let count = match call.args.len() {
        2 => None,
        3 => Some(call.count(2)?),
        _ => return Err(SYNTAX),
    };
    let len = call.store.find::<Set>(key)?.map_or(0, |set| set.len());
    let popped = count.unwrap_or(1).min(len);
    match count {
        Some(_) => call.reply.set(popped),
        None if len == 0 => call.reply.null(),
        None => {}
    }
    for left in (0..len).rev().take(popped) {
        let place = call.store.random_below(left + 1);
        if let Some(set) = call.store.find::<Set>(key)? {
            if let Some((name, ())) = set.remove_at(place) {
                call.reply.text(&name);
            }
        }
    }
    if popped == len {
        call.store.remove(key);
    } else if popped > 0 {
        call.store.touch(key);
    }
    Ok(())
}

pub(super) fn hset(call: &mut Call<'_, '_>) -> Outcome {
    let added = set_fields(call, "hset")?;
    call.reply.count(added);
    Ok(())
}

pub(super) fn hmset(call: &mut Call<'_, '_>) -> Outcome {
    set_fields(call, "hmset")?;
    call.reply.ok();
    Ok(())
}

/// Sets fields; returns how many are new.
fn set_fields(call: &mut Call<'_, '_>, name: &str) -> Result<usize, crate::reply::Error> {
    if call.args.len() % 2 != 0 {
        return Err(wrong_arity(name));
    }
    let key = call.args.get(1);
    let fields = call.store.find_or_make::<Fields>(key)?;
    let mut added = 0;
    for index in (2..call.args.len()).step_by(2) {
        let name = || Text::from(call.args.get(index));
        let value = call.args.text(index + 1);
        added += usize::from(fields.insert(call.args.get(index), name, value));
    }
    call.store.touch(key);
    Ok(added)
}

pub(super) fn hget(call: &mut Call<'_, '_>) -> Outcome {
    let fields = call.store.read_as::<Fields>(call.args.get(1))?;
    call.reply.text_or_null(fields.and_then(|fields| fields.get(call.args.get(2))));
    Ok(())
}

pub(super) fn hgetall(call: &mut Call<'_, '_>) -> Outcome {
    let Some(fields) = call.store.read_as::<Fields>(call.args.get(1))? else {
        call.reply.map(0);
        return Ok(());
    };
    call.reply.map(fields.len());
    for (name, value) in fields.iter() {
        call.reply.text(name);
        call.reply.text(value);
    }
    Ok(())
}

pub(super) fn hlen(call: &mut Call<'_, '_>) -> Outcome {
    let fields = call.store.read_as::<Fields>(call.args.get(1))?;
    call.reply.count(fields.map_or(0, |fields| fields.len()));
    Ok(())
}

pub(super) fn hdel(call: &mut Call<'_, '_>) -> Outcome {
    let key = call.args.get(1);
    let mut removed = 0;
    if let Some(fields) = call.store.find::<Fields>(key)? {
        removed = call.args.from(2).filter(|name| fields.remove(name)).count();
        if fields.is_empty() {
            call.store.remove(key);
        } else if removed > 0 {
            call.store.touch(key);
        }
    }
    call.reply.count(removed);
    Ok(())
}
