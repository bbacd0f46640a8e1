//! The server and the clients that people have, as they are by default: redis-py, go-redis, redis-rs, ioredis and node-redis. Each
//! sets and gets, runs transactions, locks optimistically, scans, publishes and subscribes.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use ::redis::{Commands, Connection, ProtocolVersion};
use common::Redis;
use support::PATIENCE;

on_both_engines!(
    redis_py_finds_no_error,
    redis_py_5_finds_no_error,
    go_redis_finds_no_error,
    redis_rs_finds_no_error,
    ioredis_finds_no_error,
    node_redis_finds_no_error,
);

/// Where `ci/clients.sh` installs a client.
fn installed(name: &str) -> PathBuf {
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let clients = of("DUOPOLL_TEST_CLIENTS").unwrap_or_else(|| {
        let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")));
        cache.expect("a home").join("duopoll-clients")
    });
    let client = clients.join(name);
    let missing =
        || format!("{} is missing: run ci/clients.sh, which installs it", client.display());
    assert!(client.exists(), "{}", missing());
    client
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis_clients").join(name)
}

/// A program that fails if it takes too long: a client that waits for a reply for ever has found an error, too.
fn patient(program: PathBuf) -> Command {
    let mut command = Command::new("timeout");
    command.arg((2 * PATIENCE.as_secs()).to_string()).arg(program);
    command
}

/// It ends well. What it prints is shown if it does not.
fn ends_well(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {printed}{complaint}");
}

fn python(name: &str, redis: &Redis) {
    let mut python = patient(installed(name).join("bin/python"));
    ends_well(python.arg(script("client.py")).arg(redis.port()));
}

fn node(name: &str, redis: &Redis) {
    // With the modules of the newest redis-py comes Node.js.
    let mut node = patient(installed("redis_py").join("bin/node"));
    node.env("NODE_PATH", installed("redis_node").join("node_modules"));
    ends_well(node.arg(script("node").join(name)).arg(redis.port()));
}

fn redis_py_finds_no_error(redis: Redis) {
    python("redis_py", &redis);
}

fn redis_py_5_finds_no_error(redis: Redis) {
    python("redis_py_5", &redis);
}

fn go_redis_finds_no_error(redis: Redis) {
    let mut client = patient(installed("goredis/goredis"));
    ends_well(client.arg(format!("127.0.0.1:{}", redis.port())));
}

fn ioredis_finds_no_error(redis: Redis) {
    node("ioredis.js", &redis);
}

fn node_redis_finds_no_error(redis: Redis) {
    node("node_redis.js", &redis);
}

fn redis_rs_finds_no_error(redis: Redis) {
    for suffix in ["", "?protocol=resp3"] {
        let url = format!("redis://127.0.0.1:{}/{suffix}", redis.port());
        let client = ::redis::Client::open(url).expect("an address");
        let connect = || {
            let connection = client.get_connection().expect("connected");
            connection.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
            connection
        };
        let mut connection = connect();
        () = ::redis::cmd("FLUSHALL").query(&mut connection).expect("flushed");
        rs_values(&mut connection);
        rs_transactions(connect);
        rs_messages(&mut connection, connect());
        assert_eq!(
            client.get_connection_info().redis_settings().protocol(),
            match suffix {
                "" => ProtocolVersion::RESP2,
                _ => ProtocolVersion::RESP3,
            }
        );
    }
}

fn rs_values(connection: &mut Connection) {
    () = connection.set("a", 1).expect("set");
    assert_eq!(connection.get("a"), Ok(1));
    assert_eq!(connection.get("none"), Ok(None::<String>));
    () = connection.hset_multiple("h", &[("f", "1"), ("g", "2")]).expect("set");
    let fields: std::collections::BTreeMap<String, u32> = connection.hgetall("h").expect("fields");
    assert_eq!(fields.into_iter().collect::<Vec<_>>(), [("f".to_owned(), 1), ("g".to_owned(), 2)]);
    () = connection.zadd("z", "m", 1.5).expect("added");
    assert_eq!(connection.zscore("z", "m"), Ok(1.5));
    let error = connection.incr::<_, _, i64>("h", 1).expect_err("another kind of value");
    assert_eq!(error.code(), Some("WRONGTYPE"));

    let mut pipe = ::redis::pipe();
    for n in 0..500 {
        pipe.set(format!("scan:{n}"), n).ignore();
    }
    () = pipe.query(connection).expect("set");
    let found = connection.scan_match::<_, String>("scan:*").expect("a scan");
    assert_eq!(found.map(|key| key.expect("a key")).collect::<HashSet<_>>().len(), 500);
}

fn rs_transactions(connect: impl Fn() -> Connection) {
    const CLIENTS: usize = 4;
    const ROUNDS: usize = 50;
    let mut connection = connect();
    let mut pipe = ::redis::pipe();
    pipe.atomic().incr("tx", 1).get("tx");
    assert_eq!(pipe.query(&mut connection), Ok((1, "1".to_owned())));

    let count_up = |mut connection: Connection| {
        for _ in 0..ROUNDS {
            let counted = ::redis::transaction(&mut connection, &["n"], |connection, pipe| {
                let n: Option<usize> = connection.get("n")?;
                pipe.set("n", n.unwrap_or(0) + 1).query(connection)
            });
            () = counted.expect("counted");
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let connection = connect();
            scope.spawn(move || count_up(connection));
        }
    });
    assert_eq!(connection.get("n"), Ok(CLIENTS * ROUNDS));
}

fn rs_messages(connection: &mut Connection, mut subscriber: Connection) {
    const MESSAGES: usize = 100;
    let mut pubsub = subscriber.as_pubsub();
    pubsub.subscribe("news").expect("subscribed");
    pubsub.psubscribe("n*").expect("subscribed");
    for n in 0..MESSAGES {
        assert_eq!(connection.publish("news", n), Ok(2));
    }
    for n in 0..MESSAGES {
        for by_pattern in [false, true] {
            let message = pubsub.get_message().expect("a message");
            assert_eq!(message.get_payload(), Ok(n));
            assert_eq!(message.from_pattern(), by_pattern);
            assert_eq!(message.get_channel_name(), "news");
        }
    }
    drop(pubsub);
    // It is a connection as before.
    () = subscriber.set("after", 1).expect("set");
}
