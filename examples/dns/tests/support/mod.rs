//! The resolver as a process, clients with raw sockets, and an upstream that does what the name that it is asked for says.
#![allow(dead_code, unreachable_pub, reason = "not every test needs all of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::message_builder::OptBuilder;
use domain::base::name::FlattenInto;
use domain::base::{Message, MessageBuilder, Name, ParsedName, Record, Serial, Ttl};
use domain::rdata::{A, Soa};

/// How long anything may take before the test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const ENGINES: [&str; 2] = ["epoll", "uring"];

/// What is told by those who may be right, and by those who are not.
pub const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const WRONG: Ipv4Addr = Ipv4Addr::new(6, 6, 6, 6);

/// The resolver, which is killed when it is dropped.
pub struct Resolver {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Where it listens.
    pub addresses: Vec<SocketAddr>,
}

impl Resolver {
    /// With the arguments of a line.
    pub fn start(line: &str) -> Resolver {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dns"));
        command.args(line.split_whitespace()).stderr(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the resolver");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let words = line.split_whitespace().skip(2);
        let addresses = words.map_while(|word| word.parse().ok()).collect();
        Resolver { child, stdout, addresses }
    }

    pub fn client(&self) -> Client {
        Client::of(self.addresses[0])
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: it is a child that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// A figure, as it is now.
    pub fn figure(&mut self, name: &str) -> u64 {
        self.signal(libc::SIGUSR1);
        let line = self.line();
        let mut pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        let (_, value) = pairs.find(|pair| pair.0 == name).unwrap_or_else(|| panic!("in {line}"));
        value.parse().expect("a number")
    }

    /// Waits until a figure is there.
    pub fn comes_to(&mut self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.figure(name) != value {
            assert!(begun.elapsed() < PATIENCE, "{name} is not {value}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line
    }

    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(2));
        }
        self.child.wait().expect("a child")
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket that asks.
pub struct Client(UdpSocket);

impl Client {
    pub fn of(resolver: SocketAddr) -> Client {
        let any = if resolver.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(any).expect("bound");
        // Only what comes from the address that was asked.
        socket.connect(resolver).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Client(socket)
    }

    pub fn send(&self, message: &[u8]) {
        self.0.send(message).expect("sent");
    }

    pub fn receive(&self) -> Reply {
        let mut bytes = vec![0; 65_536];
        let len = self.0.recv(&mut bytes).expect("a reply");
        bytes.truncate(len);
        Reply(Message::from_octets(bytes).expect("a message"))
    }

    pub fn ask(&self, message: &[u8]) -> Reply {
        self.send(message);
        let reply = self.receive();
        assert_eq!(reply.0.as_slice()[..2], message[..2], "the number");
        reply
    }

    /// Whether nothing comes for a while.
    pub fn is_silent(&self) -> bool {
        self.0.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
        let received = self.0.recv(&mut [0; 1]);
        self.0.set_read_timeout(Some(PATIENCE)).expect("a socket");
        received.is_err()
    }
}

/// A query for an address: recursion desired.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    query_of(id, name, 1)
}

pub fn query_of(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(qtype.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The same with EDNS.
pub fn with_edns(mut query: Vec<u8>, udp_bytes: u16, version: u8, dnssec_ok: bool) -> Vec<u8> {
    query[11] += 1;
    let [high, low] = udp_bytes.to_be_bytes();
    query.extend([0, 0, 41, high, low, 0, version, u8::from(dnssec_ok) << 7, 0, 0, 0]);
    query
}

/// With its length in front, as over TCP.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

pub fn read_framed(stream: &mut impl Read) -> Reply {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).expect("a reply");
    Reply(Message::from_octets(bytes).expect("a message"))
}

/// What a client gets.
pub struct Reply(pub Message<Vec<u8>>);

impl Reply {
    pub fn id(&self) -> u16 {
        self.0.header().id()
    }

    pub fn rcode(&self) -> Rcode {
        assert!(self.0.header().qr());
        self.0.header().rcode()
    }

    pub fn is_truncated(&self) -> bool {
        self.0.header().tc()
    }

    /// The addresses, with the TTLs.
    pub fn addresses(&self) -> Vec<(Ipv4Addr, u32)> {
        let records = self.0.answer().expect("in order").limit_to::<A>();
        records
            .map(|record| record.expect("an address"))
            .map(|record| (record.data().addr(), record.ttl().as_secs()))
            .collect()
    }

    pub fn address(&self) -> Ipv4Addr {
        self.addresses().first().expect("an answer").0
    }

    pub fn ttl(&self) -> u32 {
        self.addresses().first().expect("an answer").1
    }

    /// The TTL of the SOA.
    pub fn negative_ttl(&self) -> u32 {
        let mut records =
            self.0.authority().expect("in order").limit_to::<Soa<ParsedName<&[u8]>>>();
        records.next().expect("an SOA").expect("in order").ttl().as_secs()
    }
}

/// What an upstream was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub name: String,
    pub id: u16,
    pub from: SocketAddr,
    pub tcp: bool,
    pub dnssec_ok: bool,
}

/// An upstream. Its threads end with the process.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
    /// Who is asked what is to go round in circles.
    circle: Arc<Mutex<Option<SocketAddr>>>,
    /// Whether what was held back may go.
    released: Arc<(Mutex<bool>, Condvar)>,
}

impl Upstream {
    pub fn start() -> Upstream {
        Upstream::at(Ipv4Addr::LOCALHOST.into())
    }

    pub fn at(address: IpAddr) -> Upstream {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind((address, 0)).expect("bound");
            // Somebody may have the same number of UDP.
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")) {
                break (tcp, Arc::new(udp));
            }
        };
        let address = tcp.local_addr().expect("bound");
        let upstream = Upstream {
            address,
            log: Arc::default(),
            circle: Arc::default(),
            released: Arc::default(),
        };
        let this = upstream.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let (len, from) = udp.recv_from(&mut bytes).expect("received");
                let (udp, query) = (udp.clone(), bytes[..len].to_vec());
                let asked = this.note(&query, from, false);
                let this = this.clone();
                thread::spawn(move || {
                    if asked.name.to_ascii_lowercase().starts_with("held") {
                        this.hold();
                    }
                    match this.next() {
                        Some(next) => pass_on(&udp, &query, next, asked.from),
                        None => serve(&udp, &query, &asked),
                    }
                });
            }
        });
        let this = upstream.clone();
        thread::spawn(move || {
            loop {
                let (mut stream, from) = tcp.accept().expect("accepted");
                let query = read_framed(&mut stream).0.into_octets();
                let asked = this.note(&query, from, true);
                let _ = stream.write_all(&framed(&right(&query, &asked.name)));
            }
        });
        upstream
    }

    fn note(&self, query: &[u8], from: SocketAddr, tcp: bool) -> Asked {
        let message = Message::from_octets(query).expect("a message");
        let question = message.sole_question().expect("a question");
        let opt = message.opt().expect("EDNS");
        let (name, id) = (question.qname().to_string(), message.header().id());
        let asked = Asked { name, id, from, tcp, dnssec_ok: opt.dnssec_ok() };
        self.log.lock().expect("no panic").push(asked.clone());
        asked
    }

    /// Passes everything on to a resolver from now on.
    pub fn ask_instead(&self, resolver: SocketAddr) {
        *self.circle.lock().expect("no panic") = Some(resolver);
    }

    fn next(&self) -> Option<SocketAddr> {
        *self.circle.lock().expect("no panic")
    }

    fn hold(&self) {
        let (released, told) = &*self.released;
        let released = released.lock().expect("no panic");
        drop(told.wait_while(released, |released| !*released).expect("no panic"));
    }

    /// What was held back goes now.
    pub fn release(&self) {
        let (released, told) = &*self.released;
        *released.lock().expect("no panic") = true;
        told.notify_all();
    }

    /// What it was asked of a name.
    pub fn asked(&self, name: &str) -> Vec<Asked> {
        let log = self.log.lock().expect("no panic");
        log.iter().filter(|asked| asked.name == name).cloned().collect()
    }
}

fn pass_on(socket: &UdpSocket, query: &[u8], next: SocketAddr, back: SocketAddr) {
    let client = Client::of(next);
    client.send(query);
    let mut bytes = [0; 4096];
    let len = client.0.recv(&mut bytes).expect("a reply");
    let _ = socket.send_to(&bytes[..len], back);
}

/// Does over UDP what the first label says.
fn serve(socket: &UdpSocket, query: &[u8], asked: &Asked) {
    let send = |bytes: &[u8]| drop(socket.send_to(bytes, asked.from));
    let answer = right(query, &asked.name);
    let lie = address_of(query, WRONG);
    match asked.name.split('.').next().expect("a label") {
        "silent" => return,
        "wrongid" => {
            let mut lie = lie;
            lie[0] ^= 1;
            send(&lie);
        }
        "wrongquestion" => {
            let mut lie = lie;
            // A letter of the name.
            lie[13] ^= 1;
            send(&lie);
        }
        "wrongtype" => {
            let mut other = query.to_vec();
            let at = 12 + asked.name.len() + 2;
            other[at + 1] = 28;
            send(&address_of(&other, WRONG));
        }
        "wrongsender" => {
            let other = UdpSocket::bind((asked.from.ip(), 0)).expect("bound");
            let _ = other.send_to(&lie, asked.from);
        }
        "query" => send(query),
        "garbage" => {
            send(b"");
            send(b"\xff");
            send(&[0xff; 700]);
            send(&query[..2]);
            // In order as far as the question.
            let mut cut = lie;
            cut.truncate(lie_end(query));
            cut[0] ^= 0x80;
            send(&cut);
        }
        "broken" => {
            let mut cut = answer;
            cut.truncate(cut.len() - 3);
            return send(&cut);
        }
        "big" => {
            let mut cut = address_of(query, WRONG);
            cut[2] |= 2;
            return send(&cut);
        }
        _ => {}
    }
    send(&answer);
}

fn lie_end(query: &[u8]) -> usize {
    query.len() - 5
}

fn reply(query: &[u8]) -> MessageBuilder<Vec<u8>> {
    let message = Message::from_octets(query).expect("a message");
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(message.header().id());
    builder.header_mut().set_qr(true);
    builder.header_mut().set_aa(true);
    builder
}

/// An answer with that address.
fn address_of(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    many(query, 1, 300, |_| address)
}

fn many(query: &[u8], count: u32, ttl: u32, address: impl Fn(u32) -> Ipv4Addr) -> Vec<u8> {
    let message = Message::from_octets(query).expect("a message");
    let question = message.sole_question().expect("a question");
    let name: Name<Vec<u8>> = question.qname().try_flatten_into().expect("a name");
    let mut builder = reply(query).question();
    builder.push(question).expect("room");
    let mut builder = builder.answer();
    for number in 0..count {
        let data = A::new(address(number));
        builder.push(Record::new(&name, Class::IN, Ttl::from_secs(ttl), data)).expect("room");
    }
    let mut builder = builder.additional();
    let size = |opt: &mut OptBuilder<'_, Vec<u8>>| {
        opt.set_udp_payload_size(1232);
        Ok(())
    };
    builder.opt(size).expect("room");
    builder.finish()
}

/// What is right for a name: its first label may end with a number of addresses, or be one of those that are not there.
fn right(query: &[u8], name: &str) -> Vec<u8> {
    let label = name.split('.').next().expect("a label");
    let message = Message::from_octets(query).expect("a message");
    let question = message.sole_question().expect("a question");
    match label {
        "nx" | "nodata" | "nosoa" | "servfail" => {
            let mut builder = reply(query);
            let rcode = match label {
                "nodata" => Rcode::NOERROR,
                "servfail" => Rcode::SERVFAIL,
                _ => Rcode::NXDOMAIN,
            };
            builder.header_mut().set_rcode(rcode);
            let mut builder = builder.question();
            builder.push(question).expect("room");
            let mut builder = builder.authority();
            if label == "nx" || label == "nodata" {
                let zone = Name::vec_from_str("test").expect("a name");
                let (hour, minimum) = (Ttl::from_secs(3600), Ttl::from_secs(30));
                let soa = Soa::new(&zone, &zone, Serial::from(1), hour, hour, hour, minimum);
                builder.push(Record::new(&zone, Class::IN, hour, soa)).expect("room");
            }
            builder.finish()
        }
        "big" => many(query, 200, 300, |number| Ipv4Addr::from(0x0a00_0000 + number)),
        "two" => many(query, 1, 2, |_| RIGHT),
        "zero" => many(query, 1, 0, |_| RIGHT),
        "sixty" => many(query, 60, 300, |number| Ipv4Addr::from(0x0a00_0000 + number)),
        _ if question.qtype() != Rtype::A => many(query, 0, 300, |_| RIGHT),
        _ => address_of(query, RIGHT),
    }
}
