//! Commands on the connection: who the client is, and how it is spoken with.

use std::time::{SystemTime, UNIX_EPOCH};

use super::client::check_name;
use super::{Call, Outcome, REDIS_VERSION, SYNTAX, wrong_arity};
use crate::numbers::parse_int;
use crate::reply::{Error, error};
use crate::session::{Replies, Session};
use crate::store::Store;

const BAD_DATABASE: Error = error("DB index is out of range");
const BAD_PROTOCOL: Error = error("Protocol version is not an integer or out of range");
const NO_PROTOCOL: Error = error("NOPROTO unsupported protocol version");
const NO_PASSWORD: Error = error(
    "AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
);
const WRONG_PASSWORD: Error =
    error("WRONGPASS invalid username-password pair or user is disabled.");
const HELLO_NEEDS_PASSWORD: Error = error(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
);

/// The user whom everybody is.
const USER: &[u8] = b"default";

pub(super) fn ping(call: &mut Call<'_, '_>) -> Outcome {
    let only_listens = call.session.is_subscriber() && !call.reply.resp3;
    match call.args.len() {
        1 | 2 if only_listens => {
            call.reply.array(2);
            call.reply.bulk(b"pong");
            call.reply.bulk(call.args.get(1));
        }
        1 => call.reply.raw("+PONG\r\n"),
        2 => call.reply.text(&call.args.text(1)),
        _ => return Err(wrong_arity("ping")),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.text(&call.args.text(1));
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.ok();
    call.reply.close();
    Ok(())
}

/// There is one database.
pub(super) fn select(call: &mut Call<'_, '_>) -> Outcome {
    if call.int(1)? != 0 {
        return Err(BAD_DATABASE);
    }
    call.reply.ok();
    Ok(())
}

pub(super) fn time(call: &mut Call<'_, '_>) -> Outcome {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    call.reply.array(2);
    call.reply.bulk(now.as_secs().to_string().as_bytes());
    call.reply.bulk(now.subsec_micros().to_string().as_bytes());
    Ok(())
}

pub(super) fn auth(call: &mut Call<'_, '_>) -> Outcome {
    let (user, password) = match call.args.len() {
        2 if call.store.password.is_none() => return Err(NO_PASSWORD),
        2 => (USER, call.args.get(1)),
        3 => (call.args.get(1), call.args.get(2)),
        _ => return Err(SYNTAX),
    };
    authenticate(call.store, call.session, user, password)?;
    call.reply.ok();
    Ok(())
}

fn authenticate(store: &Store, session: &mut Session, user: &[u8], password: &[u8]) -> Outcome {
    let is_right = store.password.as_ref().is_none_or(|right| is_same(right, password));
    if user != USER || !is_right {
        return Err(WRONG_PASSWORD);
    }
    session.authenticated = true;
    Ok(())
}

/// Takes as long for any text of one length, so that nobody learns from the time how much of it is right.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |bits, (one, other)| bits | (one ^ other));
    std::hint::black_box(differing) == 0 && one.len() == other.len()
}

pub(super) fn hello(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    let resp3 = match args.len() {
        1 => call.session.resp3,
        _ => match parse_int(args.get(1)).ok_or(BAD_PROTOCOL)? {
            2 => false,
            3 => true,
            _ => return Err(NO_PROTOCOL),
        },
    };
    let (mut name, mut user) = (None, None);
    let mut index = 2;
    while index < args.len() {
        let more = args.len() - index - 1;
        if args.is(index, "AUTH") && more >= 2 {
            user = Some((args.get(index + 1), args.get(index + 2)));
            index += 3;
        } else if args.is(index, "SETNAME") && more >= 1 {
            name = Some(check_name(args.get(index + 1))?);
            index += 2;
        } else {
            let option = args.get(index);
            return Err(Error::Owned([b"Syntax error in HELLO option '", option, b"'"].concat()));
        }
    }
    if let Some((user, password)) = user {
        authenticate(call.store, call.session, user, password)?;
    }
    if !call.session.authenticated {
        return Err(HELLO_NEEDS_PASSWORD);
    }
    if let Some(name) = name {
        call.session.client.facts().name = name;
    }
    call.session.resp3 = resp3;
    call.reply.resp3 = resp3;
    call.session.publish_facts();

    call.reply.map(7);
    call.field("server", "redis");
    call.field("version", REDIS_VERSION);
    call.reply.bulk(b"proto");
    call.reply.int(if resp3 { 3 } else { 2 });
    call.reply.bulk(b"id");
    call.reply.int(call.session.client.id as i64);
    call.field("mode", "standalone");
    call.field("role", "master");
    call.reply.bulk(b"modules");
    call.reply.array(0);
    Ok(())
}

/// Has the connection be as a new one.
pub(super) fn reset(call: &mut Call<'_, '_>) -> Outcome {
    let session = &mut *call.session;
    session.transaction = None;
    session.unwatch(call.store);
    session.unsubscribe(call.store);
    session.authenticated = call.store.password.is_none();
    session.replies = Replies::On;
    session.resp3 = false;
    session.client.facts().name.clear();
    session.publish_facts();
    call.reply.resp3 = false;
    call.reply.is_muted = false;
    call.reply.word("RESET");
    Ok(())
}
