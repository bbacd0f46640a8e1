//! Commands: the table of them, and how a request finds its own.

mod client;
mod command;
mod config;
mod connection;
mod info;
mod keys;
mod lists;
mod messages;
mod scan;
mod sorted;
mod strings;
mod tables;
mod transactions;

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use crate::numbers::parse_int;
use crate::reply::{Error, Reply, error};
use crate::resp::Args;
use crate::session::{Replies, Session};
use crate::store::Store;
use crate::values::Text;

/// Clients choose by it what they may send.
const REDIS_VERSION: &str = "7.0.15";

const NOT_AN_INTEGER: Error = error("value is not an integer or out of range");
const NOT_POSITIVE: Error = error("value is out of range, must be positive");
const SYNTAX: Error = error("syntax error");
const NOT_AUTHENTICATED: Error = error("NOAUTH Authentication required.");

/// A request that is run.
struct Call<'a, 'r> {
    store: &'a mut Store,
    session: &'a mut Session,
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
    traits: u16,
    run: fn(&mut Call<'_, '_>) -> Outcome,
}

/// It changes the keys.
const WRITE: u16 = 1;
/// It reads them.
const READ: u16 = 2;
/// It takes no longer for more or larger keys.
const FAST: u16 = 4;
/// Its first argument is a key.
const KEY: u16 = 8;
/// All its arguments are.
const KEYS: u16 = 16;
/// Every second one is.
const PAIRS: u16 = 32;
/// It needs no password.
const OPEN: u16 = 64;
/// A client of the older protocol may send it while it is subscribed.
const LISTENING: u16 = 128;
/// It is run at once within a transaction.
const AT_ONCE: u16 = 256;
/// It is about messages.
const MESSAGES: u16 = 512;

const fn command(
    name: &'static str,
    arity: i8,
    traits: u16,
    run: fn(&mut Call<'_, '_>) -> Outcome,
) -> Command {
    Command { name, arity, traits, run }
}

const COMMANDS: &[Command] = &[
    command("append", 3, WRITE | FAST | KEY, strings::append),
    command("auth", -2, FAST | OPEN, connection::auth),
    command("client", -2, 0, client::client),
    command("command", -1, 0, command::command),
    command("config", -2, 0, config::config),
    command("dbsize", 1, READ | FAST, keys::dbsize),
    command("decr", 2, WRITE | FAST | KEY, strings::decr),
    command("decrby", 3, WRITE | FAST | KEY, strings::decrby),
    command("del", -2, WRITE | KEYS, keys::del),
    command("discard", 1, FAST | AT_ONCE, transactions::discard),
    command("echo", 2, FAST, connection::echo),
    command("exec", 1, AT_ONCE, transactions::exec),
    command("exists", -2, READ | FAST | KEYS, keys::exists),
    command("expire", -3, WRITE | FAST | KEY, keys::expire),
    command("flushall", -1, WRITE, keys::flush),
    command("flushdb", -1, WRITE, keys::flush),
    command("get", 2, READ | FAST | KEY, strings::get),
    command("hdel", -3, WRITE | FAST | KEY, tables::hdel),
    command("hello", -1, FAST | OPEN, connection::hello),
    command("hget", 3, READ | FAST | KEY, tables::hget),
    command("hgetall", 2, READ | KEY, tables::hgetall),
    command("hlen", 2, READ | FAST | KEY, tables::hlen),
    command("hmset", -4, WRITE | FAST | KEY, tables::hmset),
    command("hscan", -3, READ | KEY, scan::hscan),
    command("hset", -4, WRITE | FAST | KEY, tables::hset),
    command("incr", 2, WRITE | FAST | KEY, strings::incr),
    command("incrby", 3, WRITE | FAST | KEY, strings::incrby),
    command("info", -1, 0, info::info),
    command("keys", 2, READ, scan::keys),
    command("llen", 2, READ | FAST | KEY, lists::llen),
    command("lpop", -2, WRITE | FAST | KEY, lists::lpop),
    command("lpush", -3, WRITE | FAST | KEY, lists::lpush),
    command("lrange", 4, READ | KEY, lists::lrange),
    command("mget", -2, READ | FAST | KEYS, strings::mget),
    command("mset", -3, WRITE | PAIRS, strings::mset),
    command("multi", 1, FAST | AT_ONCE, transactions::multi),
    command("object", -2, READ, keys::object),
    command("persist", 2, WRITE | FAST | KEY, keys::persist),
    command("pexpire", -3, WRITE | FAST | KEY, keys::pexpire),
    command("ping", -1, FAST | LISTENING, connection::ping),
    command("psetex", 4, WRITE | KEY, strings::psetex),
    command("psubscribe", -2, MESSAGES | LISTENING, messages::psubscribe),
    command("pttl", 2, READ | FAST | KEY, keys::pttl),
    command("publish", 3, MESSAGES | FAST, messages::publish),
    command("pubsub", -2, 0, messages::pubsub),
    command("punsubscribe", -1, MESSAGES | LISTENING, messages::punsubscribe),
    command("quit", -1, FAST | OPEN | LISTENING | AT_ONCE, connection::quit),
    command("reset", 1, FAST | OPEN | LISTENING | AT_ONCE, connection::reset),
    command("rpop", -2, WRITE | FAST | KEY, lists::rpop),
    command("rpush", -3, WRITE | FAST | KEY, lists::rpush),
    command("sadd", -3, WRITE | FAST | KEY, tables::sadd),
    command("scan", -2, READ, scan::scan),
    command("scard", 2, READ | FAST | KEY, tables::scard),
    command("select", 2, FAST, connection::select),
    command("set", -3, WRITE | KEY, strings::set),
    command("setex", 4, WRITE | KEY, strings::setex),
    command("setnx", 3, WRITE | FAST | KEY, strings::setnx),
    command("sismember", 3, READ | FAST | KEY, tables::sismember),
    command("smembers", 2, READ | KEY, tables::smembers),
    command("spop", -2, WRITE | FAST | KEY, tables::spop),
    command("srem", -3, WRITE | FAST | KEY, tables::srem),
    command("sscan", -3, READ | KEY, scan::sscan),
    command("strlen", 2, READ | FAST | KEY, strings::strlen),
    command("subscribe", -2, MESSAGES | LISTENING, messages::subscribe),
    command("time", 1, FAST, connection::time),
    command("ttl", 2, READ | FAST | KEY, keys::ttl),
    command("type", 2, READ | FAST | KEY, keys::kind),
    command("unlink", -2, WRITE | FAST | KEYS, keys::del),
    command("unsubscribe", -1, MESSAGES | LISTENING, messages::unsubscribe),
    command("unwatch", 1, FAST, transactions::unwatch),
    command("watch", -2, FAST | KEYS | AT_ONCE, transactions::watch),
    command("zadd", -4, WRITE | FAST | KEY, sorted::zadd),
    command("zcard", 2, READ | FAST | KEY, sorted::zcard),
    command("zpopmax", -2, WRITE | FAST | KEY, sorted::zpopmax),
    command("zpopmin", -2, WRITE | FAST | KEY, sorted::zpopmin),
    command("zrange", -4, READ | KEY, sorted::zrange),
    command("zrem", -3, WRITE | FAST | KEY, sorted::zrem),
    command("zscan", -3, READ | KEY, scan::zscan),
    command("zscore", 3, READ | FAST | KEY, sorted::zscore),
];

/// Runs a request and stages its reply.
#[inline]
pub(crate) fn run(store: &mut Store, session: &mut Session, reply: &mut Reply<'_>, args: Args<'_>) {
    if args.len() == 0 {
        return;
    }
    store.stats.commands += 1;
    let is_plain = session.is_plain();
    let call = &mut Call { store, session, reply, args };
    if !is_plain {
        return run_with_care(call);
    }
    match look_up(args) {
        Ok(index) => {
            call.session.client.last_command.store(index, Ordering::Relaxed);
            call.run(index);
        }
        Err(error) => refuse(call, &error),
    }
}

/// Runs the command of a client that has yet to say the password, is within a transaction, may only listen, or wants no replies.
#[cold]
fn run_with_care(call: &mut Call<'_, '_>) {
    if call.session.replies == Replies::SkipNext {
        call.session.replies = Replies::Skip;
    }
    call.reply.is_muted = call.session.replies != Replies::On;
    match look_up(call.args).and_then(|index| may_run(index, call.session)) {
        Err(error) => refuse(call, &error),
        Ok(index) => {
            call.session.client.last_command.store(index, Ordering::Relaxed);
            match COMMANDS[usize::from(index)].traits & AT_ONCE {
                0 if call.session.transaction.is_some() => transactions::queue(index, call),
                _ => call.run(index),
            }
        }
    }
    if call.session.replies == Replies::Skip {
        call.session.replies = Replies::On;
    }
    call.reply.is_muted = false;
}

/// Whether a client may run a command as things stand with it.
fn may_run(index: u8, session: &Session) -> Result<u8, Error> {
    let Command { name, traits, .. } = COMMANDS[usize::from(index)];
    if !session.authenticated && traits & OPEN == 0 {
        return Err(NOT_AUTHENTICATED);
    }
    if session.is_subscriber() && !session.resp3 && traits & LISTENING == 0 {
        let text = format!(
            "Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
        );
        return Err(Cow::Owned(text.into_bytes()));
    }
    Ok(index)
}

/// Says why a request is not run. A transaction that it was meant for is not run either.
#[cold]
fn refuse(call: &mut Call<'_, '_>, error: &Error) {
    if is_http(call.args.get(0)) {
        return call.reply.cut();
    }
    match &mut call.session.transaction {
        _ if call.args.is(0, "EXEC") => transactions::abort(call, error),
        Some(transaction) => {
            transaction.refused = true;
            call.reply.error(error);
        }
        None => call.reply.error(error),
    }
}

/// The command that a request is of.
#[inline]
fn look_up(args: Args<'_>) -> Result<u8, Error> {
    match find(args.get(0)) {
        Some(index) if arity_fits(COMMANDS[usize::from(index)].arity, args.len()) => Ok(index),
        Some(index) => Err(wrong_arity(COMMANDS[usize::from(index)].name)),
        None => Err(unknown(args)),
    }
}

/// A browser that was told to send a form here begins so. What follows would be run otherwise.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
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
    #[inline]
    fn run(&mut self, index: u8) {
        if let Err(error) = (COMMANDS[usize::from(index)].run)(self) {
            self.reply.error(&error);
        }
    }

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

/// The place of the command of a name, in whatever case.
#[inline]
fn find(name: &[u8]) -> Option<u8> {
    let mut slot = slot(name);
    loop {
        let index = SLOTS[slot];
        let command = COMMANDS.get(usize::from(index))?;
        if name.eq_ignore_ascii_case(command.name.as_bytes()) {
            return Some(index);
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
