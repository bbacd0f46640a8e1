//! CONFIG: what clients ask for. Nothing of it can be changed.

use super::{Call, Outcome, unknown_subcommand, wrong_arity};
use crate::glob::{Case, matches};

/// In alphabetical order.
const CONFIG: &[(&str, &str)] = &[
    ("appendonly", "no"),
    ("client-output-buffer-limit", "normal 0 0 0 slave 0 0 0 pubsub 8388608 8388608 0"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("notify-keyspace-events", ""),
    ("proto-max-bulk-len", "536870912"),
    ("save", ""),
    ("timeout", "0"),
];

pub(super) fn config(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    if args.is(1, "RESETSTAT") {
        call.store.stats.reset();
        call.reply.ok();
        return Ok(());
    }
    if !args.is(1, "GET") {
        return Err(unknown_subcommand(args));
    }
    if args.len() < 3 {
        return Err(wrong_arity("config|get"));
    }
    let wanted =
        |name: &str| args.from(2).any(|pattern| matches(pattern, name.as_bytes(), Case::Ignored));
    let found = || CONFIG.iter().filter(|(name, _)| wanted(name));
    call.reply.map(found().count());
    for (name, value) in found() {
        call.field(name, value);
    }
    Ok(())
}
