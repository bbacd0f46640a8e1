//! INFO: figures of the server, section by section.

use std::fmt::Write;

use super::{Call, Outcome, REDIS_VERSION};

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
    call.reply.verbatim(&text);
    Ok(())
}

/// Writes one section of INFO. Writing to a `String` cannot fail.
type Section = fn(&Call<'_, '_>, &mut String);

const SECTIONS: &[(&str, Section)] = &[
    ("server", info_server),
    ("clients", info_clients),
    ("memory", info_memory),
    ("persistence", info_persistence),
    ("stats", info_stats),
    ("replication", info_replication),
    ("cluster", info_cluster),
    ("keyspace", info_keyspace),
];

fn info_server(call: &Call<'_, '_>, text: &mut String) {
    let uptime = call.store.stats.started.elapsed().as_secs();
    let _ = write!(
        text,
        "redis_version:{REDIS_VERSION}\r\n\
         redis_mode:standalone\r\n\
         os:Linux\r\n\
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
    let clients = &call.store.clients;
    let subscribers = clients.iter().filter(|client| client.is_subscriber()).count();
    let _ = write!(
        text,
        "connected_clients:{}\r\nblocked_clients:0\r\npubsub_clients:{subscribers}\r\n",
        clients.iter().count(),
    );
}

/// What the process has, by the kernel's account.
fn info_memory(_: &Call<'_, '_>, text: &mut String) {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|pages| pages.split(' ').nth(1)?.parse::<usize>().ok());
    let bytes = pages.unwrap_or(0) * PAGE_BYTES;
    let _ = write!(
        text,
        "used_memory:{bytes}\r\nused_memory_rss:{bytes}\r\nmaxmemory:0\r\n\
         maxmemory_policy:noeviction\r\n",
    );
}

/// A page, in bytes, on most machines.
const PAGE_BYTES: usize = 4096;

fn info_persistence(_: &Call<'_, '_>, text: &mut String) {
    let _ = write!(text, "loading:0\r\nrdb_bgsave_in_progress:0\r\naof_enabled:0\r\n");
}

fn info_replication(_: &Call<'_, '_>, text: &mut String) {
    let _ = write!(text, "role:master\r\nconnected_slaves:0\r\n");
}

fn info_cluster(_: &Call<'_, '_>, text: &mut String) {
    let _ = write!(text, "cluster_enabled:0\r\n");
}

fn info_stats(call: &Call<'_, '_>, text: &mut String) {
    let stats = &call.store.stats;
    let _ = write!(
        text,
        "total_connections_received:{}\r\n\
         total_commands_processed:{}\r\n\
         expired_keys:{}\r\n\
         keyspace_hits:{}\r\n\
         keyspace_misses:{}\r\n\
         pubsub_channels:{}\r\n\
         pubsub_patterns:{}\r\n",
        stats.connections,
        stats.commands,
        stats.expired,
        stats.hits,
        stats.misses,
        call.store.channels.len(),
        call.store.patterns.len(),
    );
}

fn info_keyspace(call: &Call<'_, '_>, text: &mut String) {
    let (keys, expires) = (call.store.len(), call.store.expiring_len());
    if keys > 0 {
        let _ = write!(text, "db0:keys={keys},expires={expires},avg_ttl=0\r\n");
    }
}
