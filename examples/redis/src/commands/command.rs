//! COMMAND: which commands there are, and what arguments they take. There is no documentation of them here.

use super::{
    AT_ONCE, COMMANDS, Call, Command, FAST, KEY, KEYS, MESSAGES, OPEN, Outcome, PAIRS, READ, WRITE,
    find, unknown_subcommand, wrong_arity,
};

pub(super) fn command(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    if args.len() == 1 || args.is(1, "INFO") && args.len() == 2 {
        call.reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| describe(call, command));
    } else if args.is(1, "INFO") {
        call.reply.array(args.len() - 2);
        for name in args.from(2) {
            match find(name) {
                Some(index) => describe(call, &COMMANDS[usize::from(index)]),
                None => call.reply.null(),
            }
        }
    } else if args.is(1, "DOCS") {
        call.reply.map(0);
    } else if args.is(1, "COUNT") && args.len() == 2 {
        call.reply.count(COMMANDS.len());
    } else if args.is(1, "COUNT") {
        return Err(wrong_arity("command|count"));
    } else if args.is(1, "LIST") && args.len() == 2 {
        call.reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| call.reply.bulk(command.name.as_bytes()));
    } else {
        return Err(unknown_subcommand(args));
    }
    Ok(())
}

/// Replies with what there is to say of one: its name and arity, its flags, and where its keys are.
fn describe(call: &mut Call<'_, '_>, command: &Command) {
    let has = |traits| command.traits & traits != 0;
    let flags = [
        ("write", WRITE),
        ("readonly", READ),
        ("fast", FAST),
        ("no_auth", OPEN),
        ("pubsub", MESSAGES),
        ("noscript", MESSAGES | AT_ONCE),
    ];
    let flags = flags.iter().filter(|(_, traits)| has(*traits));
    // The first, the last, and how far one is from the next.
    let keys = match () {
        () if has(KEY) => [1, 1, 1],
        () if has(KEYS) => [1, -1, 1],
        () if has(PAIRS) => [1, -1, 2],
        () => [0, 0, 0],
    };
    call.reply.array(10);
    call.reply.bulk(command.name.as_bytes());
    call.reply.int(command.arity.into());
    call.reply.set(flags.clone().count());
    flags.for_each(|(name, _)| call.reply.word(name));
    keys.into_iter().for_each(|key| call.reply.int(key));
    // Categories, hints, the same about keys at length, and subcommands.
    call.reply.set(0);
    for _ in 0..3 {
        call.reply.array(0);
    }
}
