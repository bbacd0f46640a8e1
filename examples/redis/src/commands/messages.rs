//! Messages: who publishes them, and who has subscribed.

use duopoll::Slice;

use super::{Call, Outcome, unknown_subcommand, wrong_arity};
use crate::client::Client;
use crate::glob::{Case, matches};
use crate::outbox::{Message, SHARED_BYTES_MIN};
use crate::reply::{Error, Reply, error};
use crate::session::{Names, Session};
use crate::store::Store;
use crate::values::Text;

const MISUSED_CHANNELS: Error =
    error("unknown subcommand or wrong number of arguments for 'CHANNELS'. Try PUBSUB HELP.");

/// What a client has subscribed to: channels, or patterns of them.
struct Kind {
    subscribed: &'static str,
    unsubscribed: &'static str,
    names: fn(&mut Session) -> &mut Names,
    add: fn(&mut Store, &[u8], &Session),
    remove: fn(&mut Store, &[u8], &Session),
}

const CHANNELS: Kind = Kind {
    subscribed: "subscribe",
    unsubscribed: "unsubscribe",
    names: |session| &mut session.channels,
    add: |store, name, session| store.channels.add(name, &session.client),
    remove: |store, name, session| store.channels.remove(name, &session.client),
};

const PATTERNS: Kind = Kind {
    subscribed: "psubscribe",
    unsubscribed: "punsubscribe",
    names: |session| &mut session.patterns,
    add: |store, name, session| store.patterns.add(name, &session.client),
    remove: |store, name, session| store.patterns.remove(name, &session.client),
};

pub(super) fn subscribe(call: &mut Call<'_, '_>) -> Outcome {
    add(call, &CHANNELS)
}

pub(super) fn psubscribe(call: &mut Call<'_, '_>) -> Outcome {
    add(call, &PATTERNS)
}

pub(super) fn unsubscribe(call: &mut Call<'_, '_>) -> Outcome {
    remove(call, &CHANNELS)
}

pub(super) fn punsubscribe(call: &mut Call<'_, '_>) -> Outcome {
    remove(call, &PATTERNS)
}

fn add(call: &mut Call<'_, '_>, kind: &Kind) -> Outcome {
    (kind.names)(call.session).check_room(call.args.from(1))?;
    for name in call.args.from(1) {
        if (kind.names)(call.session).insert(name) {
            (kind.add)(call.store, name, call.session);
        }
        tell(call, kind.subscribed, Some(name));
    }
    call.session.publish_facts();
    Ok(())
}

fn remove(call: &mut Call<'_, '_>, kind: &Kind) -> Outcome {
    if call.args.len() > 1 {
        for name in call.args.from(1) {
            if (kind.names)(call.session).remove(name) {
                (kind.remove)(call.store, name, call.session);
            }
            tell(call, kind.unsubscribed, Some(name));
        }
    } else {
        let all: Vec<Text> = (kind.names)(call.session).iter().cloned().collect();
        for name in &all {
            (kind.names)(call.session).remove(name);
            (kind.remove)(call.store, name, call.session);
            tell(call, kind.unsubscribed, Some(name));
        }
        if all.is_empty() {
            tell(call, kind.unsubscribed, None);
        }
    }
    call.session.publish_facts();
    Ok(())
}

/// Confirms what has come of a name, and how many there are now. Also to a client that wants no replies.
fn tell(call: &mut Call<'_, '_>, what: &str, name: Option<&[u8]>) {
    let is_muted = std::mem::take(&mut call.reply.is_muted);
    call.reply.push(3);
    call.reply.bulk(what.as_bytes());
    match name {
        Some(name) => call.reply.bulk(name),
        None => call.reply.null(),
    }
    call.reply.count(call.session.channels.len() + call.session.patterns.len());
    call.reply.is_muted = is_muted;
}

pub(super) fn publish(call: &mut Call<'_, '_>) -> Outcome {
    let (channel, payload) = (call.args.get(1), call.args.get(2));
    // A large one is shared by all who get it.
    let shared = (payload.len() >= SHARED_BYTES_MIN).then(|| match call.args.text(2) {
        Text::Slice(slice) => slice,
        text => Slice::from(text.to_vec()),
    });
    let Call { store, session, reply, .. } = call;
    let Store { channels, patterns, wakers, .. } = &mut **store;
    // Says whether the client gets it.
    let mut give = |client: &Client, message: &Message| {
        if client.id == session.client.id && !session.executes {
            put(reply, message);
            return true;
        }
        client.deliver(message, wakers)
    };
    let mut receivers = 0;
    let clients = channels.clients(channel);
    if clients.len() > 0 {
        let message = Message::new(&[b"message", channel], payload, shared.as_ref());
        receivers += clients.filter(|client| give(client, &message)).count();
    }
    for (pattern, clients) in patterns.iter() {
        if matches(pattern, channel, Case::Matters) {
            let parts: [&[u8]; 3] = [b"pmessage", pattern, channel];
            let message = Message::new(&parts, payload, shared.as_ref());
            receivers += clients.filter(|client| give(client, &message)).count();
        }
    }
    call.reply.count(receivers);
    Ok(())
}

/// To whom it comes from: before the reply.
fn put(reply: &mut Reply<'_>, message: &Message) {
    let resp3 = reply.resp3;
    reply.append(|buffer| message.write(buffer, resp3));
}

pub(super) fn pubsub(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    if args.is(1, "NUMPAT") && args.len() == 2 {
        call.reply.count(call.store.patterns.len());
    } else if args.is(1, "NUMSUB") {
        call.reply.array(2 * (args.len() - 2));
        for channel in args.from(2) {
            call.reply.bulk(channel);
            call.reply.count(call.store.channels.clients(channel).len());
        }
    } else if args.is(1, "CHANNELS") && args.len() <= 3 {
        let fits = |name: &Text| args.len() == 2 || matches(args.get(2), name, Case::Matters);
        let found = || call.store.channels.iter().map(|(name, _)| name).filter(|name| fits(name));
        call.reply.array(found().count());
        for name in found() {
            call.reply.text(name);
        }
    } else {
        return Err(match () {
            () if args.is(1, "NUMPAT") => wrong_arity("pubsub|numpat"),
            () if args.is(1, "CHANNELS") => MISUSED_CHANNELS,
            () => unknown_subcommand(args),
        });
    }
    Ok(())
}
