//! Commands: the table of them, and how a request finds its own.

mod keys;
mod lists;
mod server;
mod sorted;
mod strings;
mod tables;

use std::borrow::Cow;

use crate::numbers::parse_int;
use crate::reply::{Error, Reply, error};
use crate::resp::Args;
use crate::store::Store;
use crate::values::Text;

const NOT_AN_INTEGER: Error = error("value is not an integer or out of range");
const NOT_POSITIVE: Error = error("value is out of range, must be positive");
const SYNTAX: Error = error("syntax error");

/// A request that is run.
struct Call<'a, 'r> {
    store: &'a mut Store,
    reply: &'a mut Reply<'r>,
    args: Args<'a>,
}

/// A command that fails has not replied, and changed nothing.
type Outcome = Result<(), Error>;

struct Command {
    /// In lower case.
    name: &'static str,
    /// How many arguments it takes, its name included; if negative, at least so many.
    arity: i8,
    run: fn(&mut Call<'_, '_>) -> Outcome,
}

const fn command(name: &'static str, arity: i8, run: fn(&mut Call<'_, '_>) -> Outcome) -> Command {
    Command { name, arity, run }
}

const COMMANDS: &[Command] = &[
    command("append", 3, strings::append),
    command("client", -2, server::client),
    command("command", -1, server::command),
    command("config", -2, server::config),
    command("dbsize", 1, keys::dbsize),
    command("decr", 2, strings::decr),
    command("decrby", 3, strings::decrby),
    command("del", -2, keys::del),
    command("echo", 2, server::echo),
    command("exists", -2, keys::exists),
    command("expire", -3, keys::expire),
    command("flushall", -1, keys::flush),
    command("flushdb", -1, keys::flush),
    command("get", 2, strings::get),
    command("hdel", -3, tables::hdel),
    command("hello", -1, server::hello),
    command("hget", 3, tables::hget),
    command("hgetall", 2, tables::hgetall),
    command("hlen", 2, tables::hlen),
    command("hmset", -4, tables::hmset),
    command("hset", -4, tables::hset),
    command("incr", 2, strings::incr),
    command("incrby", 3, strings::incrby),
    command("info", -1, server::info),
    command("llen", 2, lists::llen),
    command("lpop", -2, lists::lpop),
    command("lpush", -3, lists::lpush),
    command("lrange", 4, lists::lrange),
    command("mget", -2, strings::mget),
    command("mset", -3, strings::mset),
    command("persist", 2, keys::persist),
    command("pexpire", -3, keys::pexpire),
    command("ping", -1, server::ping),
    command("psetex", 4, strings::psetex),
    command("pttl", 2, keys::pttl),
    command("quit", -1, server::quit),
    command("rpop", -2, lists::rpop),
    command("rpush", -3, lists::rpush),
    command("sadd", -3, tables::sadd),
    command("scard", 2, tables::scard),
    command("select", 2, server::select),
    command("set", -3, strings::set),
    command("setex", 4, strings::setex),
    command("setnx", 3, strings::setnx),
    command("sismember", 3, tables::sismember),
    command("smembers", 2, tables::smembers),
    command("spop", -2, tables::spop),
    command("srem", -3, tables::srem),
    command("strlen", 2, strings::strlen),
    command("ttl", 2, keys::ttl),
    command("type", 2, keys::kind),
    command("unlink", -2, keys::del),
    command("zadd", -4, sorted::zadd),
    command("zcard", 2, sorted::zcard),
    command("zpopmax", -2, sorted::zpopmax),
    command("zpopmin", -2, sorted::zpopmin),
    command("zrange", -4, sorted::zrange),
    command("zrem", -3, sorted::zrem),
    command("zscore", 3, sorted::zscore),
];

/// Runs a request and stages its reply.
#[inline]
pub(crate) fn run(store: &mut Store, reply: &mut Reply<'_>, args: Args<'_>) {
    if args.len() == 0 {
        return;
    }
    store.stats.commands += 1;
    let outcome = match find(args.get(0)) {
        Some(command) if arity_fits(command.arity, args.len()) => {
            (command.run)(&mut Call { store, reply, args })
        }
        Some(command) => Err(wrong_arity(command.name)),
        None => Err(unknown(args)),
    };
    if let Err(error) = outcome {
        reply.error(&error);
    }
}

fn arity_fits(arity: i8, args: usize) -> bool {
    let least = usize::from(arity.unsigned_abs());
    if arity < 0 { args >= least } else { args == least }
}

fn wrong_arity(name: &str) -> Error {
    Cow::Owned(format!("wrong number of arguments for '{name}' command").into_bytes())
}

fn unknown(args: Args<'_>) -> Error {
    let mut text = b"unknown command '".to_vec();
    text.extend_from_slice(excerpt(args.get(0), EXCERPT_BYTES_MAX));
    text.extend_from_slice(b"', with args beginning with: ");
    let start = text.len();
    for arg in args.from(1) {
        let Some(room) = EXCERPT_BYTES_MAX.checked_sub(text.len() - start).filter(|room| *room > 0)
        else {
            break;
        };
        text.push(b'\'');
        text.extend_from_slice(excerpt(arg, room));
        text.extend_from_slice(b"' ");
    }
    Cow::Owned(text)
}

fn unknown_subcommand(args: Args<'_>) -> Error {
    let mut text = b"unknown subcommand '".to_vec();
    text.extend_from_slice(excerpt(args.get(1), EXCERPT_BYTES_MAX));
    text.extend_from_slice(b"'. Try ");
    text.extend_from_slice(&args.get(0).to_ascii_uppercase());
    text.extend_from_slice(b" HELP.");
    Cow::Owned(text)
}

/// How much of a request an error repeats, in bytes.
const EXCERPT_BYTES_MAX: usize = 128;

/// The front of an argument, up to the first NUL, where C's formats end it.
fn excerpt(bytes: &[u8], max: usize) -> &[u8] {
    let end = bytes.iter().take(max).take_while(|byte| **byte != 0).count();
    &bytes[..end]
}

impl Call<'_, '_> {
    fn int(&self, index: usize) -> Result<i64, Error> {
        parse_int(self.args.get(index)).ok_or(NOT_AN_INTEGER)
    }

    /// A count, where Redis has its own text for a bad one.
    fn count(&self, index: usize) -> Result<usize, Error> {
        let count = parse_int(self.args.get(index)).and_then(|count| usize::try_from(count).ok());
        count.ok_or(NOT_POSITIVE)
    }

    fn text(&self, index: usize) -> Text {
        self.args.text(index)
    }

    /// Replies with a name and a value.
    fn field(&mut self, name: &str, value: &str) {
        self.reply.bulk(name.as_bytes());
        self.reply.bulk(value.as_bytes());
    }
}

/// Names hashed at compile time: an index of [`COMMANDS`], or [`NONE`].
static SLOTS: [u8; SLOT_COUNT] = slots();
const SLOT_COUNT: usize = 256;
const NONE: u8 = u8::MAX;

/// The command of a name, in whatever case.
#[inline]
fn find(name: &[u8]) -> Option<&'static Command> {
    let mut slot = slot(name);
    loop {
        let command = COMMANDS.get(usize::from(SLOTS[slot]))?;
        if name.eq_ignore_ascii_case(command.name.as_bytes()) {
            return Some(command);
        }
        slot = (slot + 1) % SLOT_COUNT;
    }
}

/// The slot of a name: from its length and four of its letters, whose case does not count.
#[inline]
const fn slot(name: &[u8]) -> usize {
    let len = name.len();
    if len == 0 {
        return 0;
    }
    let letters = [name[0], name[len / 3], name[len * 2 / 3], name[len - 1]];
    let key = (u32::from_le_bytes(letters) | 0x2020_2020).wrapping_add(len as u32);
    (key.wrapping_mul(0x9e37_79b1) >> 24) as usize
}

const fn slots() -> [u8; SLOT_COUNT] {
    let mut slots = [NONE; SLOT_COUNT];
    let mut index = 0;
    while index < COMMANDS.len() {
        let mut at = slot(COMMANDS[index].name.as_bytes());
        while slots[at] != NONE {
            at = (at + 1) % SLOT_COUNT;
        }
        slots[at] = index as u8;
        index += 1;
    }
    slots
}

const _: () = assert!(COMMANDS.len() < SLOT_COUNT / 2, "lookups end at a free slot");
