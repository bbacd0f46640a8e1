//! Wake-ups across threads: how long it takes until something on another thread has gone on, and has said so.
//!
//! The thread that measures and the pollers are on different cores, and every wake-up finds the other side asleep,
//! or about to be.
//!
//! `cargo bench -p duopoll-benches --bench wakeups`

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duopoll::{Connection, Engine, EventLoop, Listener, Pollers, Server};
use duopoll_benches::servers;

mod common;

const TASKS: [usize; 2] = [1, 64];
const MESSAGE: [u8; 64] = *b"sixty-four bytes that go to a poller and come back from there...";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question to a poller through its mailbox, and the answer. Two threads with channels stand beside it.
fn calls(c: &mut Criterion) {
    let mut group = common::group(c, "call to a poller and back");
    for (name, engine) in common::engines() {
        let pollers = common::apart(|| Pollers::options().engine(engine).count(1).start());
        let pollers = pollers.expect("a poller");
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| assert_eq!(pollers.stats_of_each()[0].pollers, 1));
        });
    }
    let (question, questions) = mpsc::channel::<u64>();
    let (answer, answers) = mpsc::channel();
    let other = common::apart(|| {
        thread::spawn(move || questions.into_iter().for_each(|q| answer.send(q).expect("a reader")))
    });
    let mut count = 0;
    group.bench_function(BenchmarkId::from_parameter("two channels"), |b| {
        b.iter(|| {
            count += 1;
            question.send(count).expect("a reader");
            assert_eq!(answers.recv(), Ok(count));
        });
    });
    drop(question);
    other.join().expect("no panic");
    group.finish();
}

/// Tasks of connections, on their poller, are woken by another thread, which waits until all of them have run.
fn tasks(c: &mut Criterion) {
    for count in TASKS {
        let mut group =
            common::group(c, &format!("tasks on a poller, woken from outside: {count}"));
        group.throughput(Throughput::Elements(count as u64));
        for (name, engine) in common::engines() {
            let waiting = Waiting::start(engine, count);
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| waiting.wake_all());
            });
        }
        group.finish();
    }
}

/// A request of 64 bytes, answered on the connection's poller or on another thread: there the connection's waiter is
/// woken by the poller, and the poller by its flush.
fn elsewhere(c: &mut Criterion) {
    let mut group = common::group(c, "echo of 64 B, by where it is handled");
    for (name, engine) in common::engines() {
        let server = common::apart(|| servers::duopoll::start("127.0.0.1:0", engine));
        let here = (BenchmarkId::new("on the poller", name), server.expect("a server"));
        let there = (BenchmarkId::new("on another thread", name), echo_elsewhere(engine));
        for (id, server) in [here, there] {
            let mut stream = connect(&server);
            group.bench_function(id, |b| {
                b.iter(|| {
                    stream.write_all(&MESSAGE).expect("a request");
                    let mut answer = [0; MESSAGE.len()];
                    stream.read_exact(&mut answer).expect("an answer");
                    assert_eq!(answer, MESSAGE);
                });
            });
        }
    }
    group.finish();
}

/// Echoes on a thread for each connection.
fn echo_elsewhere(engine: Engine) -> Server {
    let spawn = |task| drop(thread::spawn(move || pollster::block_on(task)));
    let serve = |mut connection: Connection| async move {
        while connection.next_request().await? {
            let (reader, writer) = connection.split();
            writer.append(reader.buffer_mut());
            writer.flush().await?;
        }
        Ok(())
    };
    let service =
        EventLoop::builder().engine(engine).pollers(1).on_connection_spawned(spawn, serve);
    let listener = Listener::bind("127.0.0.1:0").expect("an address");
    common::apart(|| service.serve(listener)).expect("a server")
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr().to_string()).expect("a connection");
    stream.set_nodelay(true).expect("TCP");
    stream.set_read_timeout(Some(PATIENCE)).expect("TCP");
    stream
}

/// A server whose connections wait for another thread, each for its own signal.
struct Waiting {
    signals: Arc<Vec<Signal>>,
    answers: Arc<Answers>,
    _server: Server,
    _clients: Vec<TcpStream>,
}

/// How often something has happened, and who waits for it to happen again.
#[derive(Default)]
struct Signal {
    count: AtomicU64,
    waiter: Mutex<Option<Waker>>,
}

struct Answers {
    count: AtomicUsize,
    /// All of them, for the thread that waits.
    wanted: usize,
    asker: Thread,
}

impl Waiting {
    fn start(engine: Engine, count: usize) -> Waiting {
        let signals: Vec<_> = std::iter::repeat_with(Signal::default).take(count).collect();
        let signals = Arc::new(signals);
        let asker = thread::current();
        let answers = Arc::new(Answers { count: AtomicUsize::new(0), wanted: count, asker });
        let connected = AtomicUsize::new(0);
        let (ours, to) = (signals.clone(), answers.clone());
        let service = EventLoop::builder()
            .engine(engine)
            .pollers(1)
            .on_connect(async move |_: &mut Connection| {
                let signal = &ours[connected.fetch_add(1, Ordering::Relaxed)];
                let mut seen = 0;
                loop {
                    // The first answer says that the task is there.
                    to.add();
                    seen = signal.after(seen).await;
                }
            })
            .on_request(async |_: &mut Connection| Ok(()));
        let listener = Listener::bind("127.0.0.1:0").expect("an address");
        let server = common::apart(|| service.serve(listener)).expect("a server");
        let clients = (0..count).map(|_| connect(&server)).collect();
        answers.wait();
        Waiting { signals, answers, _server: server, _clients: clients }
    }

    fn wake_all(&self) {
        self.signals.iter().for_each(Signal::raise);
        self.answers.wait();
    }
}

impl Signal {
    fn raise(&self) {
        let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        self.count.fetch_add(1, Ordering::Relaxed);
        let waker = waiter.take();
        drop(waiter);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The count when it is no longer `seen`.
    async fn after(&self, seen: u64) -> u64 {
        poll_fn(|cx| {
            let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
            match self.count.load(Ordering::Relaxed) {
                count if count == seen => {
                    *waiter = Some(cx.waker().clone());
                    Poll::Pending
                }
                count => Poll::Ready(count),
            }
        })
        .await
    }
}

impl Answers {
    fn add(&self) {
        if self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.wanted {
            self.asker.unpark();
        }
    }

    /// Waits for all of them, and begins to count anew.
    fn wait(&self) {
        while self.count.load(Ordering::Acquire) < self.wanted {
            thread::park_timeout(PATIENCE);
        }
        self.count.store(0, Ordering::Release);
    }
}

criterion_group!(benches, calls, tasks, elsewhere);
criterion_main!(benches);
