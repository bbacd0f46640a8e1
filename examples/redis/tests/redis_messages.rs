//! What connections on different pollers have to do with each other: messages, transactions, scans under changes, CLIENT.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Client, Redis};
use support::{Random, eventually, scaled};

on_both_engines!(
    every_subscriber_gets_every_message_once_and_in_order,
    a_message_comes_between_replies_and_never_within_one,
    messages_come_while_a_request_is_incomplete,
    large_messages_are_whole,
    who_unsubscribes_gets_nothing_more,
    a_subscriber_that_never_reads_is_cut_off,
    a_subscriber_that_reads_slowly_loses_nothing,
    the_end_of_a_client_ends_its_subscriptions,
    a_transaction_is_atomic,
    optimistic_locks_lose_no_update,
    an_expired_key_was_changed,
    a_scan_finds_what_is_there_all_the_time,
    names_and_transactions_are_bounded,
    clients_see_and_end_each_other,
    a_shutdown_ends_subscribers,
);

fn array(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

/// Subscribes, and reads the confirmation.
fn subscribe(redis: &Redis, channel: &str) -> Client {
    let mut client = redis.connect();
    let confirmed = format!("{}:1\r\n", array(&["subscribe", channel]).replace("*2", "*3"));
    client.ask(&format!("SUBSCRIBE {channel}\r\n"), &confirmed);
    client
}

fn every_subscriber_gets_every_message_once_and_in_order(redis: Redis) {
    const SUBSCRIBERS: usize = 8;
    const PUBLISHERS: usize = 4;
    let messages = scaled(5000);
    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| subscribe(&redis, "news")).collect();
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let mut client = redis.connect();
            scope.spawn(move || {
                for batch in (0..messages).collect::<Vec<_>>().chunks(50) {
                    let requests: String =
                        batch.iter().map(|n| format!("PUBLISH news {publisher}:{n}\r\n")).collect();
                    client.ask(&requests, &format!(":{SUBSCRIBERS}\r\n").repeat(batch.len()));
                }
            });
        }
        let mut orders = Vec::new();
        for mut client in subscribers {
            orders.push(scope.spawn(move || {
                let mut order = Vec::new();
                let mut next = [0; PUBLISHERS];
                for _ in 0..messages * PUBLISHERS {
                    client.receive("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n");
                    client.line();
                    let line = client.line();
                    let (publisher, n) = line.split_once(':').expect("a message");
                    let publisher: usize = publisher.parse().expect("a number");
                    assert_eq!(n, next[publisher].to_string(), "of publisher {publisher}");
                    next[publisher] += 1;
                    order.push(line);
                }
                client.ask("PING\r\n", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
                order
            }));
        }
        let mut orders = orders.into_iter().map(|order| order.join().expect("no panic"));
        let first = orders.next().expect("a subscriber");
        assert!(orders.all(|order| order == first), "all see one order");
    });
}

fn a_message_comes_between_replies_and_never_within_one(redis: Redis) {
    let rounds = scaled(2000);
    let mut client = redis.connect();
    client.send(b"HELLO 3\r\n");
    while client.line() != "*0" {}
    client.ask("SUBSCRIBE news\r\n", ">3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    let value = "v".repeat(3000);
    client.ask(&format!("SET k {value}\r\n"), "+OK\r\n");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut publisher = redis.connect();
        let over = &over;
        let published = scope.spawn(move || {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                publisher.ask(&format!("PUBLISH news {count}\r\n"), ":1\r\n");
                count += 1;
            }
            count
        });
        let mut next = 0;
        let mut message = |client: &mut Client| {
            client.receive("$7\r\nmessage\r\n$4\r\nnews\r\n");
            client.line();
            assert_eq!(client.line(), next.to_string());
            next += 1;
            next
        };
        for _ in 0..rounds {
            client.send(b"GET k\r\nMULTI\r\nGET k\r\nPING\r\nEXEC\r\n");
            let bulk = format!("{value}\r\n");
            for (head, rest) in [
                ("$3000", &*bulk),
                ("+OK", ""),
                ("+QUEUED", ""),
                ("+QUEUED", ""),
                ("*2", &format!("$3000\r\n{bulk}+PONG\r\n")),
            ] {
                loop {
                    let line = client.line();
                    if line == head {
                        break;
                    }
                    assert_eq!(line, ">3");
                    message(&mut client);
                }
                client.receive(rest);
            }
        }
        over.store(true, Ordering::Relaxed);
        let count = published.join().expect("no panic");
        client.send(b"PING\r\n");
        while client.line() == ">3" {
            message(&mut client);
        }
        client.send(b"PUBLISH news last\r\n");
        client.receive(">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$4\r\nlast\r\n:1\r\n");
        assert_eq!(next, count, "all came before the last reply");
    });
}

fn messages_come_while_a_request_is_incomplete(redis: Redis) {
    let mut publisher = redis.connect();
    let long = "x".repeat(100_000);
    let requests = [
        ("*2\r\n$4\r\nPI", "NG\r\n$1\r\na\r\n", "a"),
        ("*2\r\n$4\r\nPING\r\n$100000\r\n", &format!("{long}\r\n"), &long),
    ];
    for (begun, rest, payload) in requests {
        let mut client = subscribe(&redis, "news");
        client.send(begun.as_bytes());
        for _ in 0..10 {
            publisher.ask("PUBLISH news x\r\n", ":1\r\n");
            client.receive("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\nx\r\n");
        }
        client.ask(rest, &format!("*2\r\n$4\r\npong\r\n${}\r\n{payload}\r\n", payload.len()));
        drop(client);
        eventually("the subscriber is gone", || {
            publisher.send(b"PUBLISH news x\r\n");
            publisher.line() == ":0"
        });
    }
}

fn large_messages_are_whole(redis: Redis) {
    let mut subscribers: Vec<_> = (0..3).map(|_| subscribe(&redis, "news")).collect();
    let mut pattern = redis.connect();
    pattern.ask("PSUBSCRIBE n*\r\n", "*3\r\n$10\r\npsubscribe\r\n$2\r\nn*\r\n:1\r\n");
    let mut publisher = redis.connect();
    for len in [0, 4095, 4096, 20_000, 70_000, 1 << 20] {
        let bulk = format!("${len}\r\n{}\r\n", "m".repeat(len));
        let request = format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n{bulk}");
        publisher.ask(&request, ":4\r\n");
        for subscriber in &mut subscribers {
            subscriber.receive(&format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n{bulk}"));
        }
        pattern.receive(&format!("*4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n{bulk}"));
    }
}

/// What was published before an UNSUBSCRIBE was run comes before its confirmation, and nothing after it: as many messages come as
/// the publisher was told of.
fn who_unsubscribes_gets_nothing_more(redis: Redis) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut publisher = redis.connect();
        let over = &over;
        let publishing = scope.spawn(move || {
            let mut received = 0;
            while !over.load(Ordering::Relaxed) {
                publisher.send("PUBLISH news x\r\n".repeat(10).as_bytes());
                received += (0..10).filter(|_| publisher.line() == ":1").count();
            }
            received
        });
        let mut client = redis.connect();
        let mut messages = 0;
        for _ in 0..scaled(1000) {
            client.ask("SUBSCRIBE news\r\n", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
            let mut unsubscribing = false;
            loop {
                client.receive("*3\r\n");
                let kind = (client.line(), client.line()).1;
                client.receive("$4\r\nnews\r\n");
                if kind == "unsubscribe" {
                    break;
                }
                assert_eq!(kind, "message");
                client.receive("$1\r\nx\r\n");
                messages += 1;
                if !std::mem::replace(&mut unsubscribing, true) {
                    client.send(b"UNSUBSCRIBE news\r\nPING\r\n");
                }
            }
            client.receive(":0\r\n+PONG\r\n");
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(publishing.join().expect("no panic"), messages);
    });
}

fn a_subscriber_that_never_reads_is_cut_off(redis: Redis) {
    const MESSAGE: usize = 10_000;
    let mut silent = subscribe(&redis, "news");
    let mut other = subscribe(&redis, "news");
    let mut publisher = redis.connect();
    let before = redis.resident_bytes();
    let message =
        format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n${MESSAGE}\r\n{}\r\n", "m".repeat(MESSAGE));
    let head = format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${MESSAGE}\r\n");
    let (mut most, mut count, mut cut) = (0, 0, 0);
    // For a while after it was cut off, too.
    while cut < 2000 {
        publisher.send(message.as_bytes());
        cut += usize::from(publisher.line() == ":1");
        other.receive(&head);
        other.receive(&format!("{}\r\n", "m".repeat(MESSAGE)));
        count += 1;
        most = most.max(if count % 100 == 0 { redis.resident_bytes() } else { 0 });
        assert!(count < 20_000, "it is never cut off");
    }
    let growth = most.saturating_sub(before);
    assert!(growth < 48 << 20, "{growth} bytes for one that does not read");
    // It was sent a part of what there was, and then a reset.
    let mut rest = Vec::new();
    let ended = silent.stream.read_to_end(&mut rest).expect_err("a reset");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    assert!(rest.len() < count * MESSAGE);
}

/// It may have megabytes waiting, as long as it reads.
fn a_subscriber_that_reads_slowly_loses_nothing(redis: Redis) {
    let messages = scaled(100);
    let payload = "m".repeat(50_000);
    let bulk = format!("$50000\r\n{payload}\r\n");
    let mut client = subscribe(&redis, "news");
    let mut publisher = redis.connect();
    for _ in 0..3 {
        for _ in 0..messages {
            publisher.ask(&format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n{bulk}"), ":1\r\n");
        }
        for _ in 0..messages {
            client.receive(&format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n{bulk}"));
        }
    }
    client.ask("PING\r\n", "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
}

fn the_end_of_a_client_ends_its_subscriptions(redis: Redis) {
    let mut other = redis.connect();
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..5).map(|_| subscribe(&redis, "news")).collect();
        other.ask("PUBSUB NUMSUB news\r\n", "*2\r\n$4\r\nnews\r\n:5\r\n");
        clients[0].send(b"QUIT\r\n");
        clients[1].send(b"*x\r\n");
        clients[2].stream.shutdown(std::net::Shutdown::Write).expect("a FIN");
        eventually("three of them have gone", || {
            other.send(b"PUBSUB NUMSUB news\r\n");
            other.receive("*2\r\n$4\r\nnews\r\n");
            other.line() == ":2"
        });
        drop(clients);
        eventually("all have gone", || {
            other.send(b"PUBSUB CHANNELS\r\n");
            other.line() == "*0" || {
                other.receive("$4\r\nnews\r\n");
                false
            }
        });
    }
}

fn a_transaction_is_atomic(redis: Redis) {
    const WRITERS: usize = 3;
    let rounds = scaled(2000);
    redis.connect().ask("MSET a 0 b 0\r\n", "+OK\r\n");
    let running = AtomicBool::new(true);
    thread::scope(|scope| {
        let running = &running;
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let mut client = redis.connect();
                scope.spawn(move || {
                    for _ in 0..rounds {
                        client.ask(
                            "MULTI\r\nINCR a\r\nGET b\r\nINCR b\r\nEXEC\r\n",
                            "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n",
                        );
                        let lines: Vec<_> = (0..4).map(|_| client.line()).collect();
                        let number =
                            |line: &str| line.trim_start_matches(':').parse::<u64>().expect("one");
                        // Nobody has come between.
                        assert_eq!(number(&lines[0]), number(&lines[2]) + 1);
                        assert_eq!(number(&lines[0]), number(&lines[3]));
                    }
                })
            })
            .collect();
        let mut reader = redis.connect();
        let reading = scope.spawn(move || {
            while running.load(Ordering::Relaxed) {
                reader.send(b"MGET a b\r\n");
                let lines: Vec<_> = (0..5).map(|_| reader.line()).collect();
                assert_eq!(lines[2], lines[4]);
            }
        });
        let ended: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        running.store(false, Ordering::Relaxed);
        reading.join().expect("no panic");
        assert!(ended.iter().all(Result::is_ok));
    });
    let sum = (WRITERS * rounds).to_string();
    redis.connect().ask("GET a\r\n", &format!("${}\r\n{sum}\r\n", sum.len()));
}

fn optimistic_locks_lose_no_update(redis: Redis) {
    const CLIENTS: usize = 4;
    let rounds = scaled(500);
    redis.connect().ask("SET n 0\r\n", "+OK\r\n");
    let refused: usize = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = redis.connect();
                scope.spawn(move || {
                    let (mut done, mut refused) = (0, 0);
                    while done < rounds {
                        client.ask("WATCH n\r\n", "+OK\r\n");
                        client.send(b"GET n\r\n");
                        client.line();
                        let n: usize = client.line().parse().expect("a number");
                        let set = format!("MULTI\r\nSET n {}\r\nEXEC\r\n", n + 1);
                        client.ask(&set, "+OK\r\n+QUEUED\r\n");
                        match &*client.line() {
                            "*1" => {
                                client.receive("+OK\r\n");
                                done += 1;
                            }
                            other => {
                                assert_eq!(other, "*-1");
                                refused += 1;
                            }
                        }
                    }
                    refused
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    let sum = (CLIENTS * rounds).to_string();
    redis.connect().ask("GET n\r\n", &format!("${}\r\n{sum}\r\n", sum.len()));
    println!("{refused} were refused");
}

fn an_expired_key_was_changed(redis: Redis) {
    let (mut client, mut other) = (redis.connect(), redis.connect());
    client.ask("SET k v PX 50\r\nWATCH k\r\n", "+OK\r\n+OK\r\n");
    eventually("it has expired", || {
        other.send(b"EXISTS k\r\n");
        other.line() == ":0"
    });
    client.ask("MULTI\r\nPING\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n");
    // One that nobody has looked at.
    client.ask("SET k v PX 1\r\nWATCH k\r\n", "+OK\r\n+OK\r\n");
    eventually("it has expired", || {
        other.send(b"DBSIZE\r\n");
        other.line() == ":0"
    });
    client.ask("MULTI\r\nPING\r\nEXEC\r\n", "+OK\r\n+QUEUED\r\n*-1\r\n");
}

/// A request about a name.
type Request = fn(&str) -> String;

/// Whatever is added and removed meanwhile.
fn a_scan_finds_what_is_there_all_the_time(redis: Redis) {
    let members = scaled(2000);
    let mut random = Random::new(7);
    let scans: [(&str, Request, Request, usize); 4] = [
        ("SCAN", |name| format!("SET {name} v\r\n"), |name| format!("DEL {name}\r\n"), 1),
        ("HSCAN h", |name| format!("HSET h {name} v\r\n"), |name| format!("HDEL h {name}\r\n"), 2),
        ("SSCAN s", |name| format!("SADD s {name}\r\n"), |name| format!("SREM s {name}\r\n"), 1),
        ("ZSCAN z", |name| format!("ZADD z 1 {name}\r\n"), |name| format!("ZREM z {name}\r\n"), 2),
    ];
    for (scan, add, remove, step) in scans {
        let (mut client, mut other) = (redis.connect(), redis.connect());
        client.ask("FLUSHALL\r\n", "+OK\r\n");
        // Half of them stay, spread among the others.
        let mut passing = Vec::new();
        for n in 0..members {
            for kind in ["stays", "passes"] {
                other.send(add(&format!("{kind}{n}")).as_bytes());
                other.line();
            }
            passing.push(format!("passes{n}"));
        }
        let mut found = HashSet::new();
        let mut cursor = "0".to_owned();
        let mut calls = 0;
        loop {
            client.send(format!("{scan} {cursor} COUNT 20\r\n").as_bytes());
            client.receive("*2\r\n");
            client.line();
            cursor = client.line();
            let len: usize = client.line()[1..].parse().expect("a length");
            for place in 0..len {
                client.line();
                let name = client.line();
                if place % step == 0 {
                    found.insert(name);
                }
            }
            calls += 1;
            if cursor == "0" {
                break;
            }
            // Some go, some come, and some that stay are changed.
            for _ in 0..20 {
                let request = match random.between(0, 2) {
                    0 if !passing.is_empty() => {
                        let at = random.next() as usize % passing.len();
                        remove(&passing.swap_remove(at))
                    }
                    1 => {
                        passing.push(format!("passes{}", random.next()));
                        add(passing.last().expect("one"))
                    }
                    _ => {
                        let n = random.next() as usize % members;
                        match scan {
                            "ZSCAN z" => format!("ZADD z {} stays{n}\r\n", random.next() % 1000),
                            _ => add(&format!("stays{n}")),
                        }
                    }
                };
                other.send(request.as_bytes());
                other.line();
            }
        }
        assert!(calls > members / 20, "{calls} calls");
        for n in 0..members {
            assert!(found.contains(&format!("stays{n}")), "stays{n} was not found by {scan}");
        }
    }
}

fn names_and_transactions_are_bounded(redis: Redis) {
    let before = redis.resident_bytes();
    let refused =
        "-ERR too many names: this client watches, or is subscribed to, as many as it may\r\n";
    let names =
        |n: usize| (0..1000).map(|k| format!(" {}{n}:{k}", "x".repeat(400))).collect::<String>();
    for command in ["WATCH", "SUBSCRIBE", "PSUBSCRIBE"] {
        let mut client = redis.connect();
        let mut commands = 0;
        loop {
            client.send(
                array(&format!("{command}{}", names(commands)).split(' ').collect::<Vec<_>>())
                    .as_bytes(),
            );
            match &*client.line() {
                "+OK" => {}
                "*3" => {
                    (0..4).for_each(|_| drop(client.line()));
                    (1..1000).for_each(|_| (0..6).map(|_| client.line()).for_each(drop));
                    // The last line of the last is read.
                    client.line();
                }
                line => {
                    assert_eq!(format!("{line}\r\n"), refused);
                    break;
                }
            }
            commands += 1;
            assert!(commands < 100, "{command} has no bound");
        }
        assert!(commands > 2);
    }
    let mut client = redis.connect();
    client.ask("MULTI\r\n", "+OK\r\n");
    let request = array(&["SET", "k", &"v".repeat(100_000)]);
    let mut commands = 0;
    loop {
        client.send(request.as_bytes());
        match &*client.line() {
            "+QUEUED" => commands += 1,
            line => {
                assert_eq!(line, "-ERR too long a transaction: its commands take more than 32 MiB");
                break;
            }
        }
        assert!(commands < 1000, "a transaction has no bound");
    }
    assert!(commands > 100);
    client.ask("PING\r\n", "+QUEUED\r\n");
    client.ask("EXEC\r\n", "-EXECABORT Transaction discarded because of previous errors.\r\n");
    client.ask("GET k\r\n", "$-1\r\n");
    drop(client);
    eventually("the memory is free", || redis.resident_bytes().saturating_sub(before) < 64 << 20);
}

fn clients_see_and_end_each_other(redis: Redis) {
    let mut one = redis.connect();
    let address = one.stream.local_addr().expect("connected").to_string();
    one.ask(
        "CLIENT SETNAME one\r\nCLIENT SETINFO LIB-NAME mine\r\nCLIENT ID\r\n",
        "+OK\r\n+OK\r\n:1\r\n",
    );
    let mut two = subscribe(&redis, "news");
    let list = redis.cli(&["client", "list"]);
    let lines: Vec<&str> = list.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 3, "{list}");
    let of_one = format!("id=1 addr={address} laddr=127.0.0.1:{} name=one ", redis.port());
    assert!(lines[0].starts_with(&of_one) && lines[0].contains(" lib-name=mine "), "{list}");
    assert!(lines[0].contains(" flags=N ") && lines[0].contains(" cmd=client "), "{list}");
    assert!(lines[1].contains(" flags=P ") && lines[1].contains(" sub=1 "), "{list}");
    one.ask("CLIENT KILL TYPE pubsub\r\n", ":1\r\n");
    two.ends();
    let mut three = redis.connect();
    three.ask(&format!("CLIENT KILL {address}\r\n"), "+OK\r\n");
    one.ends();
    three.send(b"CLIENT KILL SKIPME no\r\nPING\r\n");
    three.receive_to_end(":1\r\n");
}

fn a_shutdown_ends_subscribers(redis: Redis) {
    let mut client = subscribe(&redis, "news");
    let stats = redis.stop();
    assert!(stats.contains("\"handler_errors\": 0"), "{stats}");
    client.receive_to_end("");
}
