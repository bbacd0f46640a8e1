//! CLIENT: who is connected, and what a client says of itself.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{COMMANDS, Call, Outcome, SYNTAX, unknown_subcommand, wrong_arity};
use crate::client::Client;
use crate::clock::clock;
use crate::numbers::parse_int;
use crate::reply::{Error, error};
use crate::session::Replies;

const BAD_NAME: Error =
    error("Client names cannot contain spaces, newlines or special characters.");
const NO_SUCH_CLIENT: Error = error("No such client");
const BAD_ID: Error = error("client-id should be greater than 0");
/// A name longer than this is refused, in bytes: every client could keep one.
const NAME_BYTES_MAX: usize = 1024;
const LONG_NAME: Error = error("Client names cannot be longer than 1024 bytes.");

pub(super) fn client(call: &mut Call<'_, '_>) -> Outcome {
    let (run, arity): (fn(&mut Call<'_, '_>) -> Outcome, _) =
        match &call.args.get(1).to_ascii_lowercase()[..] {
            b"getname" => (get_name, 2),
            b"getredir" => (get_redirection, 2),
            b"id" => (id, 2),
            b"info" => (info, 2),
            b"kill" => (kill, -3),
            b"list" => (list, -2),
            b"no-evict" | b"no-touch" => (switch, 3),
            b"reply" => (reply, 3),
            b"setinfo" => (set_info, 4),
            b"setname" => (set_name, 3),
            _ => return Err(unknown_subcommand(call.args)),
        };
    if !super::arity_fits(arity, call.args.len()) {
        let name = String::from_utf8_lossy(call.args.get(1)).to_ascii_lowercase();
        return Err(wrong_arity(&format!("client|{name}")));
    }
    run(call)
}

/// The name that a client gives itself.
pub(super) fn check_name(name: &[u8]) -> Result<String, Error> {
    if name.len() > NAME_BYTES_MAX {
        return Err(LONG_NAME);
    }
    match std::str::from_utf8(name) {
        Ok(text) if name.iter().all(u8::is_ascii_graphic) => Ok(text.to_owned()),
        _ => Err(BAD_NAME),
    }
}

fn set_name(call: &mut Call<'_, '_>) -> Outcome {
    let name = check_name(call.args.get(2))?;
    call.session.client.facts().name = name;
    call.reply.ok();
    Ok(())
}

fn get_name(call: &mut Call<'_, '_>) -> Outcome {
    let name = call.session.client.facts().name.clone();
    if name.is_empty() {
        call.reply.null()
    } else {
        call.reply.bulk(name.as_bytes())
    }
    Ok(())
}

fn set_info(call: &mut Call<'_, '_>) -> Outcome {
    let value = call.args.get(3);
    let text = std::str::from_utf8(value).ok().filter(|_| value.iter().all(u8::is_ascii_graphic));
    let fact = match &call.args.get(2).to_ascii_lowercase()[..] {
        b"lib-name" => "lib-name",
        b"lib-ver" => "lib-ver",
        _ => {
            let text = [b"Unrecognized option '", call.args.get(2), b"'"].concat();
            return Err(Error::Owned(text));
        }
    };
    let Some(text) = text.filter(|text| text.len() <= NAME_BYTES_MAX) else {
        let text = format!("{fact} cannot contain spaces, newlines or special characters.");
        return Err(Error::Owned(text.into_bytes()));
    };
    let mut facts = call.session.client.facts();
    match fact {
        "lib-name" => facts.library = text.to_owned(),
        _ => facts.library_version = text.to_owned(),
    }
    drop(facts);
    call.reply.ok();
    Ok(())
}

fn id(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.int(call.session.client.id as i64);
    Ok(())
}

/// Nothing is tracked, so nobody is told of it elsewhere.
fn get_redirection(call: &mut Call<'_, '_>) -> Outcome {
    call.reply.int(-1);
    Ok(())
}

/// Nobody is evicted, and no key either.
fn switch(call: &mut Call<'_, '_>) -> Outcome {
    if !call.args.is(2, "ON") && !call.args.is(2, "OFF") {
        return Err(SYNTAX);
    }
    call.reply.ok();
    Ok(())
}

fn reply(call: &mut Call<'_, '_>) -> Outcome {
    call.session.replies = match () {
        () if call.args.is(2, "ON") => Replies::On,
        () if call.args.is(2, "OFF") => Replies::Off,
        () if call.args.is(2, "SKIP") && call.session.replies == Replies::Off => Replies::Off,
        () if call.args.is(2, "SKIP") => Replies::SkipNext,
        () => return Err(SYNTAX),
    };
    call.reply.is_muted = call.session.replies != Replies::On;
    if call.session.replies == Replies::On {
        call.reply.ok();
    }
    Ok(())
}

fn info(call: &mut Call<'_, '_>) -> Outcome {
    let mut text = String::new();
    describe(&call.session.client, clock(), &mut text);
    call.reply.verbatim(&text);
    Ok(())
}

fn list(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    let mut ids = None;
    let mut kind = None;
    match args.len() {
        2 => {}
        4 if args.is(2, "TYPE") => kind = Some(wants_subscribers(args.get(3))?),
        len if len >= 4 && args.is(2, "ID") => {
            let parsed: Option<Vec<_>> = args.from(3).map(parse_int).collect();
            ids = Some(parsed.ok_or(error("Invalid client ID"))?);
        }
        _ => return Err(SYNTAX),
    }
    let (mut text, now) = (String::new(), clock());
    for client in call.store.clients.iter() {
        let is_wanted = ids.as_ref().is_none_or(|ids| ids.contains(&(client.id as i64)));
        if is_wanted && kind.is_none_or(|kind| kind == Some(client.is_subscriber())) {
            describe(client, now, &mut text);
        }
    }
    call.reply.verbatim(&text);
    Ok(())
}

/// Whether a kind of clients is that of subscribers; neither, if it is one that there is none of.
fn wants_subscribers(kind: &[u8]) -> Result<Option<bool>, Error> {
    match &kind.to_ascii_lowercase()[..] {
        b"normal" => Ok(Some(false)),
        b"pubsub" => Ok(Some(true)),
        b"master" | b"replica" | b"slave" => Ok(None),
        _ => Err(Error::Owned([b"Unknown client type '", kind, b"'"].concat())),
    }
}

/// Writes a line about a client. Writing to a `String` cannot fail.
fn describe(client: &Arc<Client>, now: i64, text: &mut String) {
    let facts = client.facts().clone();
    let seconds = |since: i64| (now - since).max(0) / 1000;
    let command = COMMANDS.get(usize::from(client.last_command.load(Ordering::Relaxed)));
    let flags = match (facts.queued, facts.channels + facts.patterns) {
        (Some(_), 0) => "x",
        (Some(_), _) => "xP",
        (None, 0) => "N",
        (None, _) => "P",
    };
    let _ = writeln!(
        text,
        "id={} addr={} laddr={} name={} age={} idle={} flags={flags} db=0 sub={} psub={} ssub=0 \
         multi={} obl={} events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
        client.id,
        client.address,
        client.local_address,
        facts.name,
        seconds(client.since),
        seconds(client.last_seen.load(Ordering::Relaxed)),
        facts.channels,
        facts.patterns,
        facts.queued.map_or(-1, |queued| queued as i64),
        client.control.unsent_bytes(),
        command.map_or("NULL", |command| command.name),
        if facts.resp3 { 3 } else { 2 },
        facts.library,
        facts.library_version,
    );
}

/// Which clients are to be ended.
#[derive(Default)]
struct Filter<'a> {
    id: Option<i64>,
    address: Option<&'a [u8]>,
    local_address: Option<&'a [u8]>,
    subscribers: Option<Option<bool>>,
    includes_caller: bool,
}

impl Filter<'_> {
    fn fits(&self, client: &Client, is_caller: bool) -> bool {
        (self.includes_caller || !is_caller)
            && self.id.is_none_or(|id| id == client.id as i64)
            && self.address.is_none_or(|address| address == client.address.as_bytes())
            && self.local_address.is_none_or(|address| address == client.local_address.as_bytes())
            && self.subscribers.is_none_or(|kind| kind == Some(client.is_subscriber()))
    }
}

fn kill(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    if args.len() == 3 {
        let filter =
            Filter { address: Some(args.get(2)), includes_caller: true, ..Filter::default() };
        if end(call, &filter) == 0 {
            return Err(NO_SUCH_CLIENT);
        }
        call.reply.ok();
        return Ok(());
    }
    let mut filter = Filter::default();
    for index in (2..args.len()).step_by(2) {
        let value = args.get(index + 1);
        match &args.get(index).to_ascii_lowercase()[..] {
            _ if index + 1 == args.len() => return Err(SYNTAX),
            b"id" => match parse_int(value) {
                Some(id) if id > 0 => filter.id = Some(id),
                _ => return Err(BAD_ID),
            },
            b"addr" => filter.address = Some(value),
            b"laddr" => filter.local_address = Some(value),
            b"type" => filter.subscribers = Some(wants_subscribers(value)?),
            b"user" if value == b"default" => {}
            b"user" => {
                let text = [b"No such user '", value, b"'"].concat();
                return Err(Error::Owned(text));
            }
            b"skipme" if value.eq_ignore_ascii_case(b"yes") => filter.includes_caller = false,
            b"skipme" if value.eq_ignore_ascii_case(b"no") => filter.includes_caller = true,
            _ => return Err(SYNTAX),
        }
    }
    let ended = end(call, &filter);
    call.reply.count(ended);
    Ok(())
}

/// Ends those that fit, and says how many: the caller behind its reply, the others at once.
fn end(call: &mut Call<'_, '_>, filter: &Filter<'_>) -> usize {
    let own = call.session.client.id;
    let fit = |client: &&Arc<Client>| filter.fits(client, client.id == own);
    let mut ended = 0;
    for client in call.store.clients.iter().filter(fit) {
        ended += 1;
        match client.id == own {
            true => call.reply.close(),
            false => client.end(),
        }
    }
    ended
}
