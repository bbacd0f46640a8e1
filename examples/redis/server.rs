//! Commands on the server and the connection.

use std::fmt::Write;

use super::{COMMANDS, Call, Outcome, unknown_subcommand, wrong_arity};
use crate::numbers::parse_int;
use crate::reply::{Error, error};

/// Clients choose by it what they may send.
const REDIS_VERSION: &str = "7.0.15";

const BAD_DATABASE: Error = error("DB index is out of range");
const BAD_PROTOCOL: Error = error("Protocol version is not an integer or out of range");
const NO_PROTOCOL: Error = error("NOPROTO unsupported protocol version");
const BAD_CLIENT_NAME: Error =
    error("Client names cannot contain spaces, newlines or special characters.");

/// What clients ask for, in alphabetical order.
const CONFIG: &[(&str, &str)] = &[
    ("appendonly", "no"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("proto-max-bulk-len", "536870912"),
    ("save", ""),
    ("timeout", "0"),
];

pub(super) fn ping(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
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

pub(super) fn hello(call: &mut Call<'_, '_>) -> Outcome {
    if call.args.len() > 1 {
        match parse_int(call.args.get(1)).ok_or(BAD_PROTOCOL)? {
            2 => {}
            _ => return Err(NO_PROTOCOL),
        }
    }
    let mut index = 2;
    while index < call.args.len() {
        if !call.args.is(index, "SETNAME") || index + 1 == call.args.len() {
            let option = call.args.get(index);
            return Err(Error::Owned([b"Syntax error in HELLO option '", option, b"'"].concat()));
        }
        check_client_name(call.args.get(index + 1))?;
        index += 2;
    }
    call.reply.array(12);
    call.field("server", "redis");
    call.field("version", REDIS_VERSION);
    call.reply.bulk(b"proto");
    call.reply.int(2);
    call.field("mode", "standalone");
    call.field("role", "master");
    call.reply.bulk(b"modules");
    call.reply.array(0);
    Ok(())
}

/// Names are taken and forgotten.
pub(super) fn client(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
        _ if call.args.is(1, "SETNAME") => {
            if call.args.len() != 3 {
                return Err(wrong_arity("client|setname"));
            }
            check_client_name(call.args.get(2))?;
        }
        _ if call.args.is(1, "SETINFO") => {
            if call.args.len() != 4 {
                return Err(wrong_arity("client|setinfo"));
            }
        }
        _ => return Err(unknown_subcommand(call.args)),
    }
    call.reply.ok();
    Ok(())
}

fn check_client_name(name: &[u8]) -> Outcome {
    if name.iter().all(u8::is_ascii_graphic) { Ok(()) } else { Err(BAD_CLIENT_NAME) }
}

/// Clients that want to know more about the commands are told nothing.
pub(super) fn command(call: &mut Call<'_, '_>) -> Outcome {
    match call.args.len() {
        1 => call.reply.array(0),
        _ if call.args.is(1, "DOCS") || call.args.is(1, "INFO") => call.reply.array(0),
        2 if call.args.is(1, "COUNT") => call.reply.count(COMMANDS.len()),
        _ if call.args.is(1, "COUNT") => return Err(wrong_arity("command|count")),
        _ => return Err(unknown_subcommand(call.args)),
    }
    Ok(())
}

pub(super) fn config(call: &mut Call<'_, '_>) -> Outcome {
    if call.args.is(1, "RESETSTAT") {
        call.store.stats.reset();
        call.reply.ok();
        return Ok(());
    }
    if !call.args.is(1, "GET") {
        return Err(unknown_subcommand(call.args));
    }
    if call.args.len() < 3 {
        return Err(wrong_arity("config|get"));
    }
    let args = call.args;
    let wanted = |name: &str| args.from(2).any(|pattern| matches(pattern, name.as_bytes()));
    let found = || CONFIG.iter().filter(|(name, _)| wanted(name));
    call.reply.array(2 * found().count());
    for (name, value) in found() {
        call.field(name, value);
    }
    Ok(())
}

/// Whether a name fits a pattern, in which `*` stands for anything and `?` for one letter.
fn matches(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // Where to go on, with one letter more for the last star, when the rest does not fit.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, name) {
            ([b'*', rest @ ..], _) => {
                retry = Some((rest, name));
                pattern = rest;
            }
            ([], []) => return true,
            ([wanted, pattern_rest @ ..], [letter, name_rest @ ..])
                if *wanted == b'?' || wanted.eq_ignore_ascii_case(letter) =>
            {
                (pattern, name) = (pattern_rest, name_rest);
            }
            _ => match retry {
                Some((star_rest, [_, later @ ..])) => {
                    retry = Some((star_rest, later));
                    (pattern, name) = (star_rest, later);
                }
                _ => return false,
            },
        }
    }
}

pub(super) fn info(call: &mut Call<'_, '_>) -> Outcome {
    let args = call.args;
    let wanted = |section: &str| {
        let all = ["default", "all", "everything"];
        let is = |arg: &[u8], name: &str| arg.eq_ignore_ascii_case(name.as_bytes());
        args.len() == 1
            || args.from(1).any(|arg| is(arg, section) || all.iter().any(|name| is(arg, name)))
    };
    let mut text = String::new();
    for (name, write) in SECTIONS {
        if wanted(name) {
            let gap = if text.is_empty() { "" } else { "\r\n" };
            let (first, rest) = name.split_at(1);
            let _ = write!(text, "{gap}# {}{rest}\r\n", first.to_ascii_uppercase());
            write(call, &mut text);
        }
    }
    call.reply.bulk(text.as_bytes());
    Ok(())
}

/// Writes one section of INFO. Writing to a `String` cannot fail.
type Section = fn(&Call<'_, '_>, &mut String);

const SECTIONS: &[(&str, Section)] = &[
    ("server", info_server),
    ("clients", info_clients),
    ("stats", info_stats),
    ("keyspace", info_keyspace),
];

fn info_server(call: &Call<'_, '_>, text: &mut String) {
    let uptime = call.store.stats.started.elapsed().as_secs();
    let _ = write!(
        text,
        "redis_version:{REDIS_VERSION}\r\n\
         redis_mode:standalone\r\n\
         server_name:duopoll\r\n\
         duopoll_version:{}\r\n\
         arch_bits:{}\r\n\
         process_id:{}\r\n\
         uptime_in_seconds:{uptime}\r\n",
        env!("CARGO_PKG_VERSION"),
        usize::BITS,
        std::process::id(),
    );
}

fn info_clients(call: &Call<'_, '_>, text: &mut String) {
    let _ = write!(text, "connected_clients:{}\r\n", call.store.stats.clients);
}

fn info_stats(call: &Call<'_, '_>, text: &mut String) {
    let stats = &call.store.stats;
    let _ = write!(
        text,
        "total_connections_received:{}\r\n\
         total_commands_processed:{}\r\n\
         expired_keys:{}\r\n\
         keyspace_hits:{}\r\n\
         keyspace_misses:{}\r\n",
        stats.connections, stats.commands, stats.expired, stats.hits, stats.misses,
    );
}

fn info_keyspace(call: &Call<'_, '_>, text: &mut String) {
    let (keys, expires) = (call.store.len(), call.store.expiring_len());
    if keys > 0 {
        let _ = write!(text, "db0:keys={keys},expires={expires},avg_ttl=0\r\n");
    }
}
