//! What a call costs among many on few connections: duopoll's `mux` at both ends, netpoll's own at both ends, and the same with
//! tokio's tasks and channels.
//!
//! ```text
//! cargo run --release -p duopoll-benches --bin mux -- --calls 500000 --rounds 5
//! ```
//!
//! Each round has a server and a client of each, processes of their own. What counts is the processor time of both, for a call
//! of 1 KiB on 4 connections from 100 tasks.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use duopoll::mux::{self, Client, Head, Kind, Protocol};
use duopoll::{Connection, Dialer, Engine, EventLoop, LinkBuffer, Listener, Pollers, Slice, task};
use duopoll_benches::arguments;
use duopoll_benches::awake::Awake;
use duopoll_benches::golang;
use duopoll_benches::process;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

const HELP: &str = "mux [--calls N] [--rounds N]

Processor time of a call of 1 KiB among many on 4 connections: duopoll's mux, netpoll's own and tokio's tasks, each at both ends.

  --calls   of each in a round (default: 300000)
  --rounds  how often; the median counts (default: 5)";

const CONNECTIONS: u64 = 4;
const TASKS: u64 = 100;
const BODY_BYTES: usize = 1024;
const PEERS: [&str; 4] = ["netpoll", "tokio", "duopoll-epoll", "duopoll-uring"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["serve", peer, address] => serve(peer, address),
        ["call", peer, address, calls] => call(peer, address, calls.parse().unwrap_or(0)),
        _ => arguments::run(&args, HELP, read, |(calls, rounds)| compare(calls, rounds)),
    };
    process::exit_code("mux", result)
}

/// Twelve bytes: how many follow, and the number of the call. Whoever reads knows what comes.
#[derive(Clone, Copy)]
struct Twelve(Kind);

impl Protocol for Twelve {
    const HEADER_BYTES: usize = 12;

    fn read(&self, header: &[u8]) -> io::Result<Head> {
        let (length, number) = parse(header.try_into().expect("twelve bytes"));
        Ok(Head { kind: self.0, number, body_bytes: length })
    }

    fn write(&self, head: Head, header: &mut [u8]) -> io::Result<()> {
        header.copy_from_slice(&header_of(head.body_bytes, head.number));
        Ok(())
    }
}

fn parse(header: &[u8; 12]) -> (usize, u64) {
    let (length, number) = header.split_at(4);
    let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
    (length as usize, u64::from_be_bytes(number.try_into().expect("eight bytes")))
}

fn header_of(length: usize, number: u64) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(&(length as u32).to_be_bytes());
    header[4..].copy_from_slice(&number.to_be_bytes());
    header
}

fn engine(peer: &str) -> io::Result<Engine> {
    peer.strip_prefix("duopoll-").unwrap_or(peer).parse()
}

fn serve(peer: &str, address: &str) -> io::Result<()> {
    if peer == "tokio" {
        return tokio::runtime::Runtime::new()?.block_on(serve_tokio(address));
    }
    let service = EventLoop::builder().engine(engine(peer)?).pollers(1).on_connection(
        async |connection: Connection| {
            let echo = async |request: Slice| Ok(LinkBuffer::from(request));
            mux::serve(connection, Twelve(Kind::Request), mux::CALLS_MAX, echo).await
        },
    );
    service.serve_here(Listener::bind(address)?, |_| std::future::pending()).map(drop)
}

fn call(peer: &str, address: &str, calls: u64) -> io::Result<()> {
    if peer == "tokio" {
        return tokio::runtime::Runtime::new()?.block_on(call_tokio(address, calls));
    }
    Pollers::options().engine(engine(peer)?).block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = Dialer::new().dial(address).await?;
            clients.push(Client::new(connection, Twelve(Kind::Reply))?);
        }
        let body = Slice::from(vec![7; BODY_BYTES]);
        let tasks: Vec<_> = (0..TASKS)
            .map(|number| {
                let (clients, body) = (clients.clone(), body.clone());
                task::spawn_local(async move {
                    for call in (number..calls).step_by(TASKS as usize) {
                        let client = &clients[(call % CONNECTIONS) as usize];
                        let reply = client.call(&mut LinkBuffer::from(body.clone())).await?;
                        assert_eq!(reply.len(), BODY_BYTES);
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })?
}

type Message = (u64, Vec<u8>);

async fn next(reader: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Message> {
    let mut header = [0; 12];
    reader.read_exact(&mut header).await?;
    let (length, number) = parse(&header);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok((number, body))
}

/// Writes what comes through a channel, as much as there is with one system call.
async fn write(
    mut messages: mpsc::Receiver<Message>,
    mut writer: impl AsyncWriteExt + Unpin,
) -> io::Result<()> {
    let (mut batch, mut bytes) = (Vec::new(), Vec::new());
    while messages.recv_many(&mut batch, 256).await > 0 {
        for (number, body) in batch.drain(..) {
            bytes.extend_from_slice(&header_of(body.len(), number));
            bytes.extend_from_slice(&body);
        }
        writer.write_all(&bytes).await?;
        bytes.clear();
    }
    Ok(())
}

async fn serve_tokio(address: &str) -> io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let (replies, messages) = mpsc::channel(1024);
        tokio::spawn(write(messages, writer));
        tokio::spawn(async move {
            let mut reader = BufReader::with_capacity(64 << 10, reader);
            while let Ok(request) = next(&mut reader).await {
                let replies = replies.clone();
                tokio::spawn(async move { replies.send(request).await });
            }
        });
    }
}

/// The calls of one connection that wait.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>>;

async fn call_tokio(address: &str, calls: u64) -> io::Result<()> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let (requests, messages) = mpsc::channel(1024);
        let waiting = Waiting::default();
        tokio::spawn(write(messages, writer));
        let replied = waiting.clone();
        tokio::spawn(async move {
            let mut reader = BufReader::with_capacity(64 << 10, reader);
            while let Ok((number, body)) = next(&mut reader).await {
                let call = replied.lock().expect("no panic").remove(&number);
                call.map(|call| call.send(body));
            }
        });
        clients.push((requests, waiting));
    }
    let clients = Arc::new(clients);
    let numbers = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (clients, numbers) = (clients.clone(), numbers.clone());
            tokio::spawn(async move {
                for call in (task..calls).step_by(TASKS as usize) {
                    let (requests, waiting) = &clients[(call % CONNECTIONS) as usize];
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let (tell, told) = oneshot::channel();
                    waiting.lock().expect("no panic").insert(number, tell);
                    requests.send((number, vec![7; BODY_BYTES])).await.expect("it is open");
                    assert_eq!(told.await.expect("a reply").len(), BODY_BYTES);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// How many calls, and how many rounds.
fn read(words: &[&str]) -> Result<(u64, usize), String> {
    let (mut calls, mut rounds) = (300_000, 5);
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || arguments::value(&mut words, word);
        match word {
            "--calls" => calls = arguments::at_least(1, value()?, word)?,
            "--rounds" => rounds = arguments::rounds(value()?, word)?,
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    Ok((calls, rounds))
}

fn compare(calls: u64, rounds: usize) -> io::Result<()> {
    let go = golang::build().map_err(|why| eprintln!("{why}")).ok();
    let _awake = Awake::keep_or_say();
    let mut costs: HashMap<&str, Vec<f64>> = HashMap::new();
    for round in 0..rounds {
        // Nobody is always the first.
        for turn in 0..PEERS.len() {
            let peer = PEERS[(turn + round) % PEERS.len()];
            let program = |verb: &str| match (peer, &go) {
                ("netpoll", None) => None,
                ("netpoll", Some(go)) => {
                    let mut command = Command::new(go);
                    command.arg(if verb == "serve" { "mux-server" } else { "mux-client" });
                    Some(command)
                }
                _ => {
                    let mut command = Command::new(std::env::current_exe().ok()?);
                    command.args([verb, peer]);
                    Some(command)
                }
            };
            let (Some(server), Some(client)) = (program("serve"), program("call")) else {
                continue;
            };
            let cost = measure(server, client, peer == "netpoll", calls)?;
            costs.entry(peer).or_default().push(cost);
        }
    }
    println!("{:<14} {:>9} {:>9} {:>9}", "", "us/call", "x netpoll", "x tokio");
    let median = |peer: &str| {
        let mut all = costs.get(peer)?.clone();
        all.sort_by(f64::total_cmp);
        Some(all[all.len() / 2])
    };
    for peer in PEERS {
        let Some(cost) = median(peer) else { continue };
        let to =
            |other: &str| median(other).map_or("-".into(), |other| format!("{:.2}", cost / other));
        println!("{peer:<14} {:>9.2} {:>9} {:>9}", cost, to("netpoll"), to("tokio"));
    }
    Ok(())
}

/// Processor time of a server and its client, in microseconds a call.
fn measure(mut server: Command, mut client: Command, is_go: bool, calls: u64) -> io::Result<f64> {
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // It ends with this program.
    // SAFETY: prctl(2) is safe between fork and exec.
    unsafe {
        server.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut server = server.arg(address.to_string()).spawn()?;
    while TcpStream::connect(address).is_err() {
        thread::sleep(Duration::from_millis(5));
    }
    client.arg(address.to_string()).arg(calls.to_string());
    if is_go {
        client.args([TASKS.to_string(), CONNECTIONS.to_string(), BODY_BYTES.to_string()]);
    }
    let client = client.spawn()?;
    let (used, succeeded) = reap(client)?;
    server.kill()?;
    let (served, _) = reap(server)?;
    match succeeded {
        true => Ok((used + served).as_secs_f64() * 1e6 / calls as f64),
        false => Err(io::Error::other("a client has failed")),
    }
}

/// Waits for a process. Its processor time, and whether it succeeded.
fn reap(child: Child) -> io::Result<(Duration, bool)> {
    let mut status = 0;
    // SAFETY: an rusage is numbers, which may be zero.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes both. Nobody else waits for the child.
    let waited = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
    if waited == -1 {
        return Err(io::Error::last_os_error());
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok((time(usage.ru_utime) + time(usage.ru_stime), status == 0))
}
