//! The server on both engines: with the client and the benchmark of Redis itself, and at the corners of the protocol.

mod common;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::thread;

use common::Redis;
use support::{Pattern, Random, eventually};

on_both_engines!(
    redis_benchmark_finds_no_error_in_any_of_its_tests,
    redis_benchmark_finds_no_error_with_pipelines_of_larger_values,
    redis_cli_is_understood,
    each_byte_may_come_alone,
    ten_thousand_requests_in_one_write_are_answered_in_order,
    inline_commands_are_split_and_unquoted,
    malformed_requests_are_named_and_end_the_connection,
    what_came_before_a_malformed_request_is_answered,
    claimed_lengths_allocate_nothing,
    a_value_of_64_mib_comes_back,
    large_arguments_may_stand_anywhere_in_a_request,
    requests_may_be_cut_anywhere,
    small_values_do_not_pin_what_they_came_in,
    a_client_that_never_reads_costs_bounded_memory,
    wrong_types_and_arities_are_refused,
    set_takes_its_options,
    numbers_are_as_strict_as_in_redis,
    lists_keep_their_order,
    sets_and_hashes_count_what_is_new,
    sorted_sets_are_sorted,
    keys_expire,
    expired_keys_go_without_being_looked_at,
    hello_chooses_the_protocol,
    info_counts,
    quit_ends_the_connection_behind_its_reply,
    random_bytes_do_no_harm,
    sigterm_ends_it_with_code_0_and_one_line_of_json,
);

fn redis_benchmark_finds_no_error_in_any_of_its_tests(redis: Redis) {
    redis.benchmark(&["-n", "2000", "-c", "50", "-q"]);
    // 2000 pushed and popped at either end, and 2000 more for LRANGE.
    assert_eq!(redis.cli(&["llen", "mylist"]), "2000");
    assert_eq!(redis.cli(&["get", "counter:__rand_int__"]), "2000");
    let value = redis.cli(&["get", "key:__rand_int__"]);
    assert_eq!(value.len(), 3, "{value}");
    assert_eq!(redis.cli(&["hget", "myhash", "element:__rand_int__"]), value);
    assert_eq!(redis.cli(&["lrange", "mylist", "0", "1"]), format!("{value}\n{value}"));
    assert_eq!(redis.cli(&["exists", "myset", "myzset"]), "0", "all was popped");
}

fn redis_benchmark_finds_no_error_with_pipelines_of_larger_values(redis: Redis) {
    let tests = "ping,set,get,incr,lpush,lpop,sadd,hset,lrange_100,mset";
    redis.benchmark(&["-t", tests, "-n", "2000", "-c", "50", "-P", "16", "-q", "-d", "1024"]);
    assert_eq!(redis.cli(&["llen", "mylist"]), "2000");
    assert_eq!(redis.cli(&["get", "counter:__rand_int__"]), "2000");
    assert_eq!(redis.cli(&["smembers", "myset"]), "element:__rand_int__");
    let value = redis.cli(&["get", "key:__rand_int__"]);
    assert_eq!(value.len(), 1024, "{value}");
    assert_eq!(redis.cli(&["hget", "myhash", "element:__rand_int__"]), value);
    let list = redis.cli(&["lrange", "mylist", "0", "-1"]);
    assert_eq!(list.lines().count(), 2000);
    assert!(list.lines().all(|element| element == value));
}

fn redis_cli_is_understood(redis: Redis) {
    assert_eq!(redis.cli(&["ping"]), "PONG");
    assert_eq!(redis.cli(&["set", "a key", "a value"]), "OK");
    assert_eq!(redis.cli(&["get", "a key"]), "a value");
    assert_eq!(redis.cli(&["config", "get", "save"]), "save\n");
    assert_eq!(redis.cli(&["command", "docs"]), "");
    assert_eq!(redis.cli(&["-n", "0", "dbsize"]), "1");
}

fn each_byte_may_come_alone(redis: Redis) {
    let mut client = redis.connect();
    let stream = b"*3\r\n$3\r\nSET\r\n$10\r\n0123456789\r\n$0\r\n\r\nPING\r\n\r\n*0\r\n\
        *2\r\n$6\r\nSTRLEN\r\n$10\r\n0123456789\r\nECHO \"a b\"\n*-1\r\n*01\r\n";
    for byte in stream {
        client.send(&[*byte]);
    }
    client.receive("+OK\r\n+PONG\r\n:0\r\n$3\r\na b\r\n");
    client.receive_to_end("-ERR Protocol error: invalid multibulk length\r\n");
}

fn ten_thousand_requests_in_one_write_are_answered_in_order(redis: Redis) {
    const REQUESTS: usize = 10_000;
    let mut client = redis.connect();
    let requests: String = (0..REQUESTS)
        .map(|n| match n % 4 {
            0 => format!("*3\r\n$3\r\nSET\r\n$1\r\nn\r\n$5\r\n{n:05}\r\n"),
            1 => "*2\r\n$3\r\nGET\r\n$1\r\nn\r\n".to_owned(),
            2 => "INCR count\r\n".to_owned(),
            _ => format!("*2\r\n$4\r\nECHO\r\n$300\r\n{n:0300}\r\n"),
        })
        .collect();
    let replies: String = (0..REQUESTS)
        .map(|n| match n % 4 {
            0 => "+OK\r\n".to_owned(),
            1 => format!("$5\r\n{:05}\r\n", n - 1),
            2 => format!(":{}\r\n", n / 4 + 1),
            _ => format!("$300\r\n{n:0300}\r\n"),
        })
        .collect();
    let mut sender = client.stream.try_clone().expect("a descriptor");
    let sending = thread::spawn(move || sender.write_all(requests.as_bytes()));
    client.receive(&replies);
    sending.join().expect("no panic").expect("sent");
}

fn inline_commands_are_split_and_unquoted(redis: Redis) {
    let mut client = redis.connect();
    client.ask("\r\n\n  \r\nPING\n", "+PONG\r\n");
    client.ask("  ping \t hello \r\n", "$5\r\nhello\r\n");
    client.ask("ECHO \"a\\x41\\n\\r\\t\\b\\a\\\\\\\"\"\r\n", "$9\r\naA\n\r\t\x08\x07\\\"\r\n");
    client.ask("ECHO 'it\\'s \\n'\r\n", "$7\r\nit's \\n\r\n");
    client.ask("SET \"\" ''\r\nEXISTS \"\"\r\n", "+OK\r\n:1\r\n");
    let long = "x".repeat(60_000);
    client.ask(&format!("ECHO {long}\r\n"), &format!("$60000\r\n{long}\r\n"));
}

/// Each with what Redis 7.0 says to it.
fn malformed_requests_are_named_and_end_the_connection(redis: Redis) {
    let long = "1".repeat(70_000);
    let cases = [
        ("*x\r\n", "invalid multibulk length"),
        ("*\r\n", "invalid multibulk length"),
        ("*03\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*1 \r\n", "invalid multibulk length"),
        ("*1048577\r\n", "invalid multibulk length"),
        ("*99999999999999999999\r\n", "invalid multibulk length"),
        ("*1\r\n$x\r\n", "invalid bulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$00\r\n", "invalid bulk length"),
        ("*1\r\n$4 \r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\n$99999999999999999999\r\n", "invalid bulk length"),
        ("*1\r\n:3\r\n", "expected '$', got ':'"),
        ("*2\r\n$4\r\nECHO\r\nhello\r\n", "expected '$', got 'h'"),
        ("*1\r\n\r\n", "expected '$', got ' '"),
        ("PING 'a\r\n", "unbalanced quotes in request"),
        ("PING \"a\"b\r\n", "unbalanced quotes in request"),
        (&long, "too big inline request"),
        (&format!("*{long}"), "too big mbulk count string"),
        (&format!("*1\r\n${long}"), "too big bulk count string"),
    ];
    for (request, text) in cases {
        let mut client = redis.connect();
        client.send(request.as_bytes());
        client.receive_to_end(&format!("-ERR Protocol error: {text}\r\n"));
    }
}

fn what_came_before_a_malformed_request_is_answered(redis: Redis) {
    let mut client = redis.connect();
    client.send(b"SET k v\r\nGET k\r\n*1\r\n!\r\nFLUSHALL\r\n");
    client.receive_to_end("+OK\r\n$1\r\nv\r\n-ERR Protocol error: expected '$', got '!'\r\n");
    redis.connect().ask("GET k\r\n", "$1\r\nv\r\n");
}

fn claimed_lengths_allocate_nothing(redis: Redis) {
    let before = redis.resident_bytes();
    let mut clients: Vec<_> = (0..100).map(|_| redis.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        let claim = match index % 3 {
            0 => "*1048576\r\n$4\r\nMGET\r\n",
            1 => "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n",
            _ => "*1048576\r\n$536870912\r\n",
        };
        // The answer says that the claim was seen, which came with the request.
        client.ask(&format!("PING\r\n{claim}0123456789"), "+PONG\r\n");
    }
    let growth = redis.resident_bytes().saturating_sub(before);
    assert!(growth < 16 << 20, "{growth} bytes for claims");
}

fn a_value_of_64_mib_comes_back(redis: Redis) {
    const LEN: usize = 64 << 20;
    let mut client = redis.connect();
    client.send(format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${LEN}\r\n").as_bytes());
    let mut pattern = Pattern::new(64);
    let mut left = LEN;
    while left > 0 {
        let piece = pattern.next(left);
        client.send(piece);
        left -= piece.len();
    }
    client.ask("\r\n", "+OK\r\n");
    client.ask("STRLEN large\r\n", &format!(":{LEN}\r\n"));
    client.ask("GET large\r\n", &format!("${LEN}\r\n"));
    let (mut pattern, mut left, mut buffer) = (Pattern::new(64), LEN, vec![0; 1 << 20]);
    while left > 0 {
        let n = left.min(buffer.len());
        client.stream.read_exact(&mut buffer[..n]).expect("the value");
        assert!(pattern.matches(&buffer[..n]), "{left} bytes before the end");
        left -= n;
    }
    client.receive("\r\n");
    client.ask("DEL large\r\n", ":1\r\n");
}

fn large_arguments_may_stand_anywhere_in_a_request(redis: Redis) {
    let mut random = Random::new(11);
    let mut client = redis.connect();
    for _ in 0..20 {
        let lens: Vec<usize> = (0..20).map(|_| random.length(300_000)).collect();
        let (mut request, mut reply) = (format!("*{}\r\n$4\r\nMSET\r\n", 41), String::new());
        for (key, len) in lens.iter().enumerate() {
            let value = key.to_string().repeat(len / key.to_string().len());
            let bulk = format!("${}\r\n{value}\r\n", value.len());
            request += &format!("${}\r\n{key}\r\n{bulk}", key.to_string().len());
            reply += &bulk;
        }
        let keys: String = (0..20).map(|key| format!(" {key}")).collect();
        client.ask(&request, "+OK\r\n");
        client.ask(&format!("MGET{keys}\r\n"), &format!("*20\r\n{reply}"));
    }
}

fn requests_may_be_cut_anywhere(redis: Redis) {
    let mut random = Random::new(5);
    for _ in 0..20 {
        let (mut requests, mut replies) = (String::new(), String::new());
        for n in 0..50 {
            let value = n.to_string().repeat(random.length(40_000));
            let bulk = format!("${}\r\n{value}\r\n", value.len());
            requests += &format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n{bulk}GET k\r\n");
            replies += &format!("+OK\r\n{bulk}");
        }
        let mut client = redis.connect();
        let mut sender = client.stream.try_clone().expect("a descriptor");
        thread::scope(|scope| {
            let random = &mut random;
            scope.spawn(move || {
                let mut rest = requests.as_bytes();
                while !rest.is_empty() {
                    let (piece, later) = rest.split_at(random.length(rest.len().min(30_000)));
                    sender.write_all(piece).expect("sent");
                    rest = later;
                }
            });
            client.receive(&replies);
        });
    }
}

fn small_values_do_not_pin_what_they_came_in(redis: Redis) {
    let mut client = redis.connect();
    let large = "x".repeat(60_000);
    let before = redis.resident_bytes();
    for n in 0..2000 {
        let request = format!(
            "*5\r\n$4\r\nMSET\r\n$4\r\n{n:04}\r\n$50\r\n{n:050}\r\n$1\r\nk\r\n$60000\r\n{large}\r\n"
        );
        client.ask(&request, "+OK\r\n");
    }
    client.ask("DBSIZE\r\n", ":2001\r\n");
    let growth = redis.resident_bytes().saturating_sub(before);
    assert!(growth < 16 << 20, "{growth} bytes for 2000 values of 50 bytes");
}

fn a_client_that_never_reads_costs_bounded_memory(redis: Redis) {
    const REQUESTS: usize = 50_000;
    let mut client = redis.connect();
    let value = "y".repeat(3000);
    client.ask(&format!("SET k {value}\r\n"), "+OK\r\n");
    let before = redis.resident_bytes();
    client.send("GET k\r\n".repeat(REQUESTS).as_bytes());
    // The others do not wait for it; and when they were served, it was too, as far as it ever will be.
    let mut other = redis.connect();
    for _ in 0..1000 {
        other.ask("PING\r\n", "+PONG\r\n");
    }
    let growth = redis.resident_bytes().saturating_sub(before);
    assert!(growth < 24 << 20, "{growth} bytes for 150 MB of replies that nobody reads");
    let reply = format!("$3000\r\n{value}\r\n");
    for _ in 0..REQUESTS {
        client.receive(&reply);
    }
}

fn wrong_types_and_arities_are_refused(redis: Redis) {
    let mut client = redis.connect();
    client.ask("SET string v\r\nRPUSH list v\r\nHSET hash f v\r\n", "+OK\r\n:1\r\n:1\r\n");
    let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
    for request in [
        "GET list",
        "INCR list",
        "APPEND list v",
        "STRLEN hash",
        "SET list v GET",
        "LPUSH string v",
        "RPOP string",
        "LPOP hash 2",
        "LRANGE string 0 -1",
        "LLEN string",
        "SADD list v",
        "SPOP list",
        "SPOP list 2",
        "SCARD hash",
        "SMEMBERS string",
        "HSET string f v",
        "HGET list f",
        "HGETALL list",
        "HLEN string",
        "ZADD string 1 m",
        "ZPOPMIN list",
        "ZRANGE hash 0 -1",
        "ZSCORE list m",
    ] {
        client.ask(&format!("{request}\r\n"), wrong);
    }
    client.ask("MGET string list nothing\r\n", "*3\r\n$1\r\nv\r\n$-1\r\n$-1\r\n");
    client.ask("TYPE string\r\nTYPE list\r\n", "+string\r\n+list\r\n");
    for (request, name) in [
        ("GET", "get"),
        ("gEt a b", "get"),
        ("SET k", "set"),
        ("MSET a b c", "mset"),
        ("HSET h f", "hset"),
        ("HSET h f v g", "hset"),
        ("PING a b", "ping"),
        ("DEL", "del"),
        ("LPOP l 1 2", "lpop"),
        ("CONFIG GET", "config|get"),
        ("ZADD z 1", "zadd"),
    ] {
        let refusal = format!("-ERR wrong number of arguments for '{name}' command\r\n");
        client.ask(&format!("{request}\r\n"), &refusal);
    }
    let unknown = "-ERR unknown command 'Foo', with args beginning with: 'a' 'b c' \r\n";
    client.ask("Foo a 'b c'\r\n", unknown);
    client.ask("CLIENT FOO\r\n", "-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n");
}

fn set_takes_its_options(redis: Redis) {
    let mut client = redis.connect();
    client.ask("SET k 1 XX\r\nSET k 1 NX\r\nSET k 2 NX\r\n", "$-1\r\n+OK\r\n$-1\r\n");
    client.ask("SET k 3 GET\r\nSET k 4 xx get\r\n", "$1\r\n1\r\n$1\r\n3\r\n");
    client.ask("SET k 5 NX GET\r\nGET k\r\n", "$1\r\n4\r\n$1\r\n4\r\n");
    client.ask(
        "SET k v EX 100\r\nTTL k\r\nSET k w KEEPTTL\r\nTTL k\r\n",
        "+OK\r\n:100\r\n+OK\r\n:100\r\n",
    );
    client.ask("SET k v\r\nTTL k\r\nTTL none\r\n", "+OK\r\n:-1\r\n:-2\r\n");
    client.ask("SET k v PX 99900\r\nTTL k\r\n", "+OK\r\n:100\r\n");
    client.ask("SET k v PXAT 1\r\nGET k\r\n", "+OK\r\n$-1\r\n");
    for options in ["NX XX", "EX", "EX 1 PX 1", "KEEPTTL EX 1", "FOO"] {
        client.ask(&format!("SET k v {options}\r\n"), "-ERR syntax error\r\n");
    }
    for options in ["EX 0", "EX -1", "PX 9223372036854775807", "EX 9223372036854775807"] {
        let refusal = "-ERR invalid expire time in 'set' command\r\n";
        client.ask(&format!("SET k v {options}\r\n"), refusal);
    }
}

fn numbers_are_as_strict_as_in_redis(redis: Redis) {
    let mut client = redis.connect();
    let not_an_integer = "-ERR value is not an integer or out of range\r\n";
    for value in ["''", "01", "+1", "' 1'", "'1 '", "1.0", "-0", "x", "9223372036854775808"] {
        client.ask(&format!("SET n {value}\r\nINCR n\r\n"), &format!("+OK\r\n{not_an_integer}"));
    }
    client.ask("SET n 9223372036854775806\r\nINCR n\r\n", "+OK\r\n:9223372036854775807\r\n");
    client.ask("INCR n\r\n", "-ERR increment or decrement would overflow\r\n");
    client.ask("DECRBY n -9223372036854775808\r\n", "-ERR decrement would overflow\r\n");
    client.ask("INCRBY m -9223372036854775808\r\n", ":-9223372036854775808\r\n");
    client.ask("DECR m\r\n", "-ERR increment or decrement would overflow\r\n");
    client.ask("INCRBY m 1.5\r\n", not_an_integer);
    client.ask(
        "EXPIRE m 9223372036854775807\r\n",
        "-ERR invalid expire time in 'expire' command\r\n",
    );
    client.ask("LPOP l -1\r\n", "-ERR value is out of range, must be positive\r\n");
}

fn lists_keep_their_order(redis: Redis) {
    let mut client = redis.connect();
    client.ask("RPUSH l c d\r\nLPUSH l b a\r\nLLEN l\r\n", ":2\r\n:4\r\n:4\r\n");
    client.ask("LRANGE l 1 -2\r\n", "*2\r\n$1\r\nb\r\n$1\r\nc\r\n");
    client.ask(
        "LRANGE l -100 0\r\nLRANGE l 3 1\r\nLRANGE l 4 9\r\n",
        "*1\r\n$1\r\na\r\n*0\r\n*0\r\n",
    );
    client.ask("LPOP l\r\nRPOP l 2\r\n", "$1\r\na\r\n*2\r\n$1\r\nd\r\n$1\r\nc\r\n");
    client.ask("LPOP l 0\r\nLPOP l 9\r\n", "*0\r\n*1\r\n$1\r\nb\r\n");
    client.ask("EXISTS l\r\nLPOP l\r\nLPOP l 2\r\n", ":0\r\n$-1\r\n*-1\r\n");
}

fn sets_and_hashes_count_what_is_new(redis: Redis) {
    let mut client = redis.connect();
    client.ask("SADD s a b a\r\nSADD s a\r\nSCARD s\r\n", ":2\r\n:0\r\n:2\r\n");
    client.ask("SREM s b x\r\nSMEMBERS s\r\n", ":1\r\n*1\r\n$1\r\na\r\n");
    client.ask("SPOP s\r\nSPOP s\r\nSPOP s 3\r\nEXISTS s\r\n", "$1\r\na\r\n$-1\r\n*0\r\n:0\r\n");
    client.ask("HSET h f 1 g 2\r\nHSET h f 3\r\nHLEN h\r\n", ":2\r\n:0\r\n:2\r\n");
    client.ask("HGET h f\r\nHGET h x\r\n", "$1\r\n3\r\n$-1\r\n");
    client.ask("HGETALL h\r\n", "*4\r\n$1\r\nf\r\n$1\r\n3\r\n$1\r\ng\r\n$1\r\n2\r\n");
    client.ask("HDEL h f g\r\nEXISTS h\r\n", ":2\r\n:0\r\n");
    // Many members, popped in any order, each once.
    let members: String = (0..1000).map(|n| format!(" {n}")).collect();
    client.ask(&format!("SADD many{members}\r\n"), ":1000\r\n");
    let mut seen = [false; 1000];
    for _ in 0..1000 {
        client.send(b"SPOP many\r\n");
        client.line();
        let member: usize = client.line().parse().expect("a member");
        assert!(!std::mem::replace(&mut seen[member], true), "{member} came twice");
    }
    client.ask("EXISTS many\r\n", ":0\r\n");
}

fn sorted_sets_are_sorted(redis: Redis) {
    let mut client = redis.connect();
    client.ask("ZADD z 2 b 1 a 2 c -inf low 1.5 m\r\nZADD z 3 a\r\n", ":5\r\n:0\r\n");
    client.ask(
        "ZRANGE z 0 -1 WITHSCORES\r\n",
        "*10\r\n$3\r\nlow\r\n$4\r\n-inf\r\n$1\r\nm\r\n$3\r\n1.5\r\n$1\r\nb\r\n$1\r\n2\r\n\
         $1\r\nc\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n3\r\n",
    );
    client.ask(
        "ZRANGE z 0 0 REV\r\nZPOPMIN z\r\n",
        "*1\r\n$1\r\na\r\n*2\r\n$3\r\nlow\r\n$4\r\n-inf\r\n",
    );
    client.ask("ZADD z NX CH 9 a 1 n\r\nZADD z GT CH 1 a 9 n\r\n", ":1\r\n:1\r\n");
    client
        .ask("ZADD z INCR 0.1 m\r\nZADD z XX INCR 1 x\r\n", "$18\r\n1.6000000000000001\r\n$-1\r\n");
    client.ask(
        "ZADD z nan a\r\nZADD z NX XX 1 a\r\n",
        "-ERR value is not a valid float\r\n\
        -ERR XX and NX options at the same time are not compatible\r\n",
    );
    client.ask(
        "ZPOPMIN z 1\r\nZREM z b c a n\r\nEXISTS z\r\n",
        "*2\r\n$1\r\nm\r\n$18\r\n1.6000000000000001\r\n:4\r\n:0\r\n",
    );
}

fn keys_expire(redis: Redis) {
    let mut client = redis.connect();
    client.ask("SET k v PX 1\r\n", "+OK\r\n");
    eventually("the key is gone", || {
        client.send(b"EXISTS k\r\n");
        client.line() == ":0"
    });
    client.ask("GET k\r\nTTL k\r\nSET k v NX\r\n", "$-1\r\n:-2\r\n+OK\r\n");
    client.ask("EXPIRE k 100\r\nTTL k\r\nEXPIRE none 1\r\n", ":1\r\n:100\r\n:0\r\n");
    client.ask("EXPIRE k 50 GT\r\nEXPIRE k 50 LT\r\nTTL k\r\n", ":0\r\n:1\r\n:50\r\n");
    client.ask("INCR n\r\nEXPIRE n 9\r\nINCR n\r\nTTL n\r\n", ":1\r\n:1\r\n:2\r\n:9\r\n");
    client.ask("PERSIST n\r\nTTL n\r\nEXPIRE n 0\r\nEXISTS n\r\n", ":1\r\n:-1\r\n:1\r\n:0\r\n");
}

fn expired_keys_go_without_being_looked_at(redis: Redis) {
    let mut client = redis.connect();
    for n in 0..1000 {
        client.ask(&format!("SET k{n} v PX 50\r\n"), "+OK\r\n");
    }
    eventually("all keys are gone", || {
        client.send(b"DBSIZE\r\n");
        client.line() == ":0"
    });
}

fn hello_chooses_the_protocol(redis: Redis) {
    let mut client = redis.connect();
    client.ask("HELLO 4\r\nHELLO 1\r\n", &"-NOPROTO unsupported protocol version\r\n".repeat(2));
    let about = |id: u32, proto: u32| {
        format!(
            "$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n\
             $5\r\nproto\r\n:{proto}\r\n$2\r\nid\r\n:{id}\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n\
             $4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
        )
    };
    client.ask("HELLO 2\r\n", &format!("*14\r\n{}", about(1, 2)));
    client.ask("GET none\r\nHELLO 3\r\n", &format!("$-1\r\n%7\r\n{}", about(1, 3)));
    client.ask("GET none\r\nHELLO\r\n", &format!("_\r\n%7\r\n{}", about(1, 3)));
    client.ask("CLIENT SETNAME me\r\nCLIENT SETINFO lib-name x\r\n", "+OK\r\n+OK\r\n");
    client.ask("SELECT 0\r\nSELECT 1\r\n", "+OK\r\n-ERR DB index is out of range\r\n");
    // Of this connection only.
    redis.connect().ask("GET none\r\n", "$-1\r\n");
}

fn info_counts(redis: Redis) {
    redis.connect().ask(
        "MSET a 1 b 2\r\nEXPIRE a 100\r\nGET a\r\nQUIT\r\n",
        "+OK\r\n:1\r\n$1\r\n1\r\n+OK\r\n",
    );
    eventually("one client is left", || {
        redis.cli(&["info", "clients"]).contains("connected_clients:1\r\n")
    });
    let info = redis.cli(&["info"]);
    for line in ["# Server", "redis_version:7.", "keyspace_hits:1\r\n", "db0:keys=2,expires=1,"] {
        assert!(info.contains(line), "no {line:?} in: {info}");
    }
}

fn quit_ends_the_connection_behind_its_reply(redis: Redis) {
    let mut client = redis.connect();
    client.send(b"SET k v\r\nQUIT\r\nDEL k\r\n");
    client.receive_to_end("+OK\r\n+OK\r\n");
    redis.connect().ask("EXISTS k\r\n", ":1\r\n");
}

/// Half of the inputs are noise, half are requests of known commands with arguments that may be anything.
fn random_bytes_do_no_harm(redis: Redis) {
    const INPUTS: usize = 3000;
    const WORDS: &str = "PING ECHO SET GET DEL EXISTS INCR INCRBY MGET MSET LPUSH RPUSH LPOP RPOP \
        LRANGE LLEN SADD SPOP SCARD SMEMBERS SREM HSET HGET HGETALL HDEL ZADD ZPOPMIN ZPOPMAX \
        ZRANGE ZREM EXPIRE TTL PERSIST TYPE CONFIG COMMAND INFO SELECT FLUSHALL DBSIZE CLIENT HELLO \
        QUIT APPEND EX PX NX XX KEEPTTL CH GT LT REV WITHSCORES LIMIT COUNT DOCS a b c 0 1 -1 2 1.5 \
        inf -inf nan 9223372036854775807 -9223372036854775808 ' \" \\x *1 $4";
    let words: Vec<&str> = WORDS.split_ascii_whitespace().collect();
    let mut random = Random::new(2026);
    for _ in 0..INPUTS {
        let mut input = Vec::new();
        for _ in 0..random.between(1, 4) {
            if random.between(0, 3) == 0 {
                let noise = b"*$:-+0123456789\r\n\r\n\r\n \t\"'\\xPING\0\xff";
                let len = random.between(1, 60);
                input.extend((0..len).map(|_| noise[random.next() as usize % noise.len()]));
                continue;
            }
            let args = random.between(1, 6);
            input.extend(format!("*{args}\r\n").bytes());
            for _ in 0..args {
                let word = words[random.next() as usize % words.len()];
                input.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
            }
        }
        let mut client = redis.connect();
        client.send(&input);
        client.stream.shutdown(std::net::Shutdown::Write).expect("a FIN");
        // It answers or not, and may reset what is malformed; but it ends.
        let ended = client.stream.read_to_end(&mut Vec::new());
        if let Err(error) = ended {
            let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
            assert!(reset, "{error} after {}", input.escape_ascii());
        }
    }
    assert_eq!(redis.cli(&["ping"]), "PONG");
    redis.stop();
}

fn sigterm_ends_it_with_code_0_and_one_line_of_json(redis: Redis) {
    let mut client = redis.connect();
    client.ask("PING\r\n", "+PONG\r\n");
    let rest = redis.stop();
    assert_eq!(rest.lines().count(), 1, "{rest}");
    assert!(rest.starts_with('{') && rest.ends_with("}\n"), "{rest}");
    assert!(rest.contains("\"requests\": 1"), "{rest}");
    assert!(rest.contains("\"handler_panics\": 0"), "{rest}");
    client.receive_to_end("");
}
