//! What the server says, byte for byte beside what redis-server 7.0 says to the same.
//!
//! What may differ, and is made alike before it is compared:
//! - the version of the server and the number of the client in the reply to HELLO.
//!
//! What differs, and is not among the inputs: what INFO, COMMAND and CLIENT LIST tell of the server, the order of what has none,
//! what Redis has and this server has not, and the commands of later versions that are there for clients of today (CLIENT SETINFO,
//! CLIENT NO-TOUCH). A message from a client to itself within EXEC comes behind the reply, as since Redis 7.2. Redis takes
//! up to 2147483647 arguments, here there are at most 1048576; it takes a NUL for the end of a line that has none, and cursors
//! below 0.

mod common;
#[path = "redis_comparison/inputs.rs"]
mod inputs;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::Redis;
use inputs::{CONVERSATIONS, NEWER, RAW, RAW_WITH_PASSWORD, REQUESTS, WITH_PASSWORD};
use support::{PATIENCE, eventually};

on_both_engines!(
    it_answers_as_redis_does,
    it_answers_bytes_as_redis_does,
    conversations_are_those_of_redis,
);

#[test]
fn who_has_not_said_the_password_is_answered_as_by_redis() {
    for engine in ["epoll", "uring"] {
        let ours = Redis::start_with(engine, &["--password", "secret"]);
        let theirs = Theirs::start(&["--requirepass", "secret"]);
        let mut compared = Compared::new(ours, theirs);
        compared.flush = "AUTH secret\r\nFLUSHALL\r\n";
        WITH_PASSWORD.iter().for_each(|requests| compared.requests("", requests));
        RAW_WITH_PASSWORD.iter().for_each(|bytes| compared.bytes(bytes.as_bytes()));
    }
}

fn it_answers_as_redis_does(ours: Redis) {
    let mut compared = Compared::new(ours, Theirs::start(&[]));
    for requests in REQUESTS {
        compared.requests("", requests);
        compared.requests("HELLO 3\r\n", requests);
    }
    NEWER.iter().for_each(|requests| compared.requests("HELLO 3\r\n", requests));
    assert!(compared.count > 800, "{} inputs", compared.count);
}

fn it_answers_bytes_as_redis_does(ours: Redis) {
    let mut compared = Compared::new(ours, Theirs::start(&[]));
    for bytes in RAW {
        compared.bytes(bytes.as_bytes());
    }
}

fn conversations_are_those_of_redis(ours: Redis) {
    let mut compared = Compared::new(ours, Theirs::start(&[]));
    for steps in CONVERSATIONS {
        compared.flush();
        let people = steps.iter().map(|(who, ..)| who + 1).max().expect("somebody speaks");
        let mut ours: Vec<_> = (0..people).map(|_| compared.ours.connect().stream).collect();
        let mut theirs: Vec<_> = (0..people).map(|_| compared.theirs.connect()).collect();
        for (who, requests, replies) in *steps {
            let request = inline(requests);
            let said = say(&mut ours[*who], &request, *replies);
            let expected = say(&mut theirs[*who], &request, *replies);
            compared.note(&said, &expected, || format!("{requests} of {steps:?}"));
        }
    }
}

/// Both servers.
struct Compared {
    ours: Redis,
    theirs: Theirs,
    flush: &'static str,
    count: usize,
    differences: Vec<String>,
}

impl Drop for Compared {
    /// All differences are told, not the first.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let differences = self.differences.concat();
            assert!(
                differences.is_empty(),
                "{} of {} differ:\n{differences}",
                self.differences.len(),
                self.count
            );
        }
    }
}

impl Compared {
    fn note(&mut self, said: &[u8], expected: &[u8], input: impl Fn() -> String) {
        self.count += 1;
        let (said, expected) = (alike(said), alike(expected));
        if said != expected {
            let input = input();
            self.differences.push(format!("{input}\n   it says: {said}\nRedis says: {expected}\n"));
        }
    }

    fn new(ours: Redis, theirs: Theirs) -> Compared {
        Compared { ours, theirs, flush: "FLUSHALL\r\n", count: 0, differences: Vec::new() }
    }

    /// Requests as they stand, and as arrays of bulk strings.
    fn requests(&mut self, before: &str, requests: &str) {
        self.bytes(format!("{before}{}", inline(requests)).as_bytes());
        if !requests.contains(['"', '\'']) {
            let arrays: String = requests.split("; ").map(array).collect();
            self.bytes(format!("{before}{arrays}").as_bytes());
        }
    }

    /// On a connection of their own, of an empty server. Their end is the end of what is said.
    fn bytes(&mut self, input: &[u8]) {
        self.flush();
        let mut ours = self.ours.connect().stream;
        let said = whole(&mut ours, input, |stream| stream.shutdown(Shutdown::Write));
        let mut theirs = self.theirs.connect();
        let expected = whole(&mut theirs, input, |stream| stream.shutdown(Shutdown::Write));
        self.note(&said, &expected, || input.escape_ascii().to_string());
    }

    fn flush(&self) {
        let flush = self.flush.as_bytes();
        whole(&mut self.ours.connect().stream, flush, |stream| stream.shutdown(Shutdown::Write));
        whole(&mut self.theirs.connect(), flush, |stream| stream.shutdown(Shutdown::Write));
    }
}

fn inline(requests: &str) -> String {
    requests.split("; ").map(|request| format!("{request}\r\n")).collect()
}

fn array(request: &str) -> String {
    let words: Vec<&str> = request.split(' ').collect();
    let bulks: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
    format!("*{}\r\n{bulks}", words.len())
}

/// Says something, and all that comes until the end. The other end may reset what it has not read to its end.
fn whole<S: Read + Write>(
    stream: &mut S,
    input: &[u8],
    end: impl Fn(&S) -> std::io::Result<()>,
) -> Vec<u8> {
    let mut said = Vec::new();
    let sent = stream.write_all(input).and_then(|()| end(stream));
    let ended = sent.and_then(|()| stream.read_to_end(&mut said).map(drop));
    if let Err(error) = ended {
        let kinds = [
            std::io::ErrorKind::ConnectionReset,
            std::io::ErrorKind::BrokenPipe,
            std::io::ErrorKind::NotConnected,
        ];
        assert!(kinds.contains(&error.kind()), "{error} after {}", input.escape_ascii());
    }
    said
}

/// Says something, and so many replies and messages that come.
fn say(stream: &mut (impl Read + Write), request: &str, replies: usize) -> Vec<u8> {
    stream.write_all(request.as_bytes()).expect("sent");
    let mut said = Vec::new();
    for _ in 0..replies {
        read_value(stream, &mut said);
    }
    said
}

fn read_value(stream: &mut impl Read, said: &mut Vec<u8>) {
    let start = said.len();
    let mut byte = [0];
    while !said[start..].ends_with(b"\r\n") {
        stream.read_exact(&mut byte).expect("a reply");
        said.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&said[start..]).into_owned();
    let number = line[1..].trim_end().parse::<i64>().unwrap_or(-1);
    match said[start] {
        b'$' | b'=' if number >= 0 => {
            let mut bytes = vec![0; number as usize + 2];
            stream.read_exact(&mut bytes).expect("a reply");
            said.append(&mut bytes);
        }
        b'*' | b'~' | b'>' => (0..number).for_each(|_| read_value(stream, said)),
        b'%' => (0..2 * number).for_each(|_| read_value(stream, said)),
        _ => {}
    }
}

/// Without what may differ: what is behind these lines, in so many lines.
fn alike(said: &[u8]) -> String {
    let mut said = said.escape_ascii().to_string();
    for (before, lines) in [("$7\\r\\nversion\\r\\n", 2), ("$2\\r\\nid\\r\\n", 1)] {
        let mut parts = said.split(before);
        let first = parts.next().unwrap_or_default().to_owned();
        let rest = parts.map(|part| part.splitn(lines + 1, "\\r\\n").nth(lines).expect("lines"));
        said = rest.fold(first, |alike, part| alike + before + part);
    }
    said
}

/// A redis-server of this test's.
struct Theirs {
    child: Child,
    socket: PathBuf,
}

impl Theirs {
    fn start(args: &[&str]) -> Theirs {
        static NUMBERS: AtomicU32 = AtomicU32::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("duopoll-redis-{}-{number}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--databases", "1", "--save", "", "--unixsocket"])
            .arg(&socket);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        let said = Command::new("redis-server").arg("--version").output().unwrap_or_else(|error| {
            panic!("redis-server cannot be run: {error}. It is in Debian's package of this name.")
        });
        // Others word some of their errors in other ways.
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains("v=7.0."),
            "it is compared with redis-server 7.0, and this is: {said}"
        );
        let child = command.spawn().expect("redis-server runs");
        let theirs = Theirs { child, socket };
        eventually("redis-server listens", || UnixStream::connect(&theirs.socket).is_ok());
        theirs
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
