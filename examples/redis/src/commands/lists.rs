//! Commands on lists.

use super::{Call, Outcome, wrong_arity};
use crate::values::{List, Text};

pub(super) fn lpush(call: &mut Call<'_, '_>) -> Outcome {
    push(call, List::push_front)
}

pub(super) fn rpush(call: &mut Call<'_, '_>) -> Outcome {
    push(call, List::push_back)
}

fn push(call: &mut Call<'_, '_>, put: fn(&mut List, Text)) -> Outcome {
    let key = call.args.get(1);
    let list = call.store.find_or_make::<List>(key)?;
    for index in 2..call.args.len() {
        put(list, call.args.text(index));
    }
    call.reply.count(list.len());
    call.store.touch(key);
    Ok(())
}

pub(super) fn lpop(call: &mut Call<'_, '_>) -> Outcome {
    pop(call, List::pop_front, "lpop")
}

pub(super) fn rpop(call: &mut Call<'_, '_>) -> Outcome {
    pop(call, List::pop_back, "rpop")
}

fn pop(call: &mut Call<'_, '_>, take: fn(&mut List) -> Option<Text>, name: &str) -> Outcome {
    let key = call.args.get(1);
    let count = match call.args.len() {
        2 => None,
        3 => Some(call.count(2)?),
        _ => return Err(wrong_arity(name)),
    };
    let Some(list) = call.store.find::<List>(key)? else {
        match count {
            Some(_) => call.reply.null_array(),
            None => call.reply.null(),
        }
        return Ok(());
    };
    match count {
        Some(count) => {
            let count = count.min(list.len());
            call.reply.array(count);
            for text in (0..count).map_while(|_| take(list)) {
                call.reply.text(&text);
            }
        }
        None => call.reply.text_or_null(take(list).as_ref()),
    }
    if list.is_empty() {
        call.store.remove(key);
    } else if count != Some(0) {
        call.store.touch(key);
    }
    Ok(())
}

pub(super) fn llen(call: &mut Call<'_, '_>) -> Outcome {
    let list = call.store.read_as::<List>(call.args.get(1))?;
    call.reply.count(list.map_or(0, |list| list.len()));
    Ok(())
}

pub(super) fn lrange(call: &mut Call<'_, '_>) -> Outcome {
    let (start, stop) = (call.int(2)?, call.int(3)?);
    let Some(list) = call.store.read_as::<List>(call.args.get(1))? else {
        call.reply.array(0);
        return Ok(());
    };
    let range = range(start, stop, list.len());
    call.reply.array(range.len());
    for text in list.range(range) {
        call.reply.text(text);
    }
    Ok(())
}

/// The places from `start` through `stop` among `len`; negative ones count from the end.
pub(super) fn range(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    // No memory holds more.
    let count = len as i64;
    let from_front = |at: i64| if at < 0 { at.saturating_add(count) } else { at };
    let start = from_front(start).clamp(0, count);
    let end = from_front(stop).saturating_add(1).clamp(start, count);
    start as usize..end as usize
}
