//! Senders that wait beside each other, in orders that a seed draws: none of them sleeps while there is room, and each message is
//! whole, once, and in the order of its sender.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::spies::NoBell;
use super::{Limits, Sender, Shared, pair};
use crate::buffer::{Chain, LinkBuffer};
use crate::clock::Clock;
use crate::command::Command;
use crate::mailbox::Mailbox;
use crate::poll::Pending;
use crate::timer::Tick;
use crate::token::Token;

/// A clock that is moved by hand.
#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Tick {
        self.0.load(SeqCst)
    }

    fn tick_of(&self, _: Instant) -> Tick {
        Tick::MAX
    }
}

#[derive(Default)]
struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// What a call says: bytes that are left in the message, and how it has ended.
type Sending = Pin<Box<dyn Future<Output = (usize, std::io::Result<()>)>>>;

struct Rival {
    sent: u64,
    sending: Option<(Sending, Tick, bool)>,
    ready: Arc<Ready>,
}

struct World {
    rng: u64,
    clock: Arc<Hand>,
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
    sender: Sender,
    rivals: Vec<Rival>,
    left: Vec<Sending>,
    /// With the kernel, and taken by it.
    lent: Chain,
    stream: Vec<u8>,
    told: bool,
    timeout: Option<Tick>,
    timed_out: u64,
}

const MESSAGE_MAX: u64 = 60;

impl World {
    fn new(seed: u64) -> World {
        let clock = Arc::<Hand>::default();
        let mailbox = Arc::new(Mailbox::new(Arc::new(NoBell), clock.clone()));
        let timeout = (seed % 3 == 0).then_some(20);
        let limits = Limits {
            output_high_bytes: [0, 1, 50, 200][seed as usize % 4],
            write_timeout: timeout.map(Duration::from_millis),
            ..Limits::default()
        };
        let token = Token::new(0, 0);
        let (shared, reader, writer) = pair(None, mailbox.clone(), token, 0, &limits, false);
        // The connection outlives it.
        drop(reader);
        let rivals = (0..1 + seed % 5)
            .map(|_| Rival { sent: 0, sending: None, ready: Arc::default() })
            .collect();
        let sender = writer.into_sender().expect("nothing is staged");
        World {
            rng: seed,
            clock,
            mailbox,
            shared,
            sender,
            rivals,
            left: Vec::new(),
            lent: Chain::new(),
            stream: Vec::new(),
            told: false,
            timeout,
            timed_out: 0,
        }
    }

    fn below(&mut self, n: u64) -> u64 {
        // splitmix64
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    /// Begins a message, or a wait until all is sent.
    fn begin(&mut self, index: usize) {
        if self.rivals[index].sending.is_some() {
            return;
        }
        let (sender, number) = (self.sender.clone(), self.rivals[index].sent);
        let drains = self.below(8) == 0;
        let sending: Sending = if drains {
            Box::pin(async move { (0, sender.drain().await) })
        } else {
            let length = self.below(MESSAGE_MAX);
            Box::pin(async move {
                let mut message = LinkBuffer::new();
                message.write(&[length as u8, index as u8, number as u8]).expect("memory");
                message.write(&vec![number as u8; length as usize]).expect("memory");
                let result = sender.send(&mut message).await;
                (message.len() + message.reserved_len(), result)
            })
        };
        self.rivals[index].sending = Some((sending, self.clock.now(), drains));
        self.poll(index);
    }

    fn poll(&mut self, index: usize) {
        let now = self.clock.now();
        let Rival { sent, sending, ready } = &mut self.rivals[index];
        let Some((future, since, drains)) = sending else { return };
        ready.0.store(false, SeqCst);
        let waker = Waker::from(ready.clone());
        let Poll::Ready((left, result)) = future.as_mut().poll(&mut Context::from_waker(&waker))
        else {
            return;
        };
        match result {
            Ok(()) => {
                assert_eq!(left, 0);
                *sent += u64::from(!*drains);
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
                let timeout = self.timeout.expect("there is one");
                assert!(now > *since + timeout, "{now}, since {since}");
                assert!(*drains || left > 0, "a message that was not sent is still there");
                self.timed_out += 1;
            }
        }
        *sending = None;
    }

    /// A turn of the poller: what it is told, and what the kernel takes of it.
    fn turn(&mut self) {
        let mut commands = Vec::new();
        self.mailbox.take(&mut commands);
        self.told |= commands.iter().any(|command| !matches!(command, Command::Forget(_)));
        let now = self.clock.now();
        let mut expired = self.shared.expire(now, None, true);
        if let super::Expired::Ask = expired {
            let pending = Pending { bytes: 0, ended: false, room: false };
            expired = self.shared.expire(now, Some(pending), true);
        }
        if let super::Expired::Looked { effects, .. } = expired {
            effects.perform();
        }
        if self.told || !self.lent.is_empty() {
            self.told = false;
            if self.shared.take_output(&mut self.lent).is_ok() {
                let n = 1 + self.below(self.lent.len() as u64) as usize;
                let mut taken = self.lent.split_to(n);
                while let Some(slice) = taken.pop() {
                    self.stream.extend_from_slice(&slice);
                }
                let moved = self.shared.sent(n, &mut self.lent, || 0);
                crate::connection::wake(moved.waker);
            }
        }
    }

    fn step(&mut self) {
        let index = self.below(self.rivals.len() as u64) as usize;
        match self.below(12) {
            0..=3 => self.begin(index),
            4..=6 => self.turn(),
            7 => {
                // Given up, or left behind, and never polled again.
                match self.rivals[index].sending.take() {
                    Some((sending, ..)) if self.below(4) == 0 => self.left.push(sending),
                    sending => drop(sending),
                }
            }
            8 => {
                let ticks = self.below(9);
                self.clock.0.fetch_add(ticks, SeqCst);
            }
            _ => {
                if self.rivals[index].ready.0.load(SeqCst) {
                    self.poll(index);
                }
            }
        }
    }

    /// Lets everything come to rest: then nobody waits.
    fn rest(&mut self) {
        for _ in 0..10_000 {
            for index in 0..self.rivals.len() {
                if self.rivals[index].ready.0.load(SeqCst) {
                    self.poll(index);
                }
            }
            self.turn();
            let waits = self.rivals.iter().any(|rival| rival.sending.is_some());
            if !waits && self.sender.unsent_len() == 0 {
                break;
            }
        }
        let waits = self.rivals.iter().filter(|rival| rival.sending.is_some()).count();
        assert_eq!(waits, 0, "they wait, and there is room: {:?}", self.sender);
        assert_eq!(self.sender.unsent_len(), 0);
    }

    fn check(&self) {
        let mut next = HashMap::<u8, u64>::new();
        let mut rest = &self.stream[..];
        while let [length, sender, number, behind @ ..] = rest {
            let (body, behind) = behind.split_at(usize::from(*length));
            assert!(body.iter().all(|byte| byte == number), "a message is torn");
            let expected = next.entry(*sender).or_default();
            assert_eq!(*number, *expected as u8, "of sender {sender}");
            *expected += 1;
            rest = behind;
        }
        assert!(rest.is_empty());
        for (index, rival) in self.rivals.iter().enumerate() {
            assert_eq!(next.get(&(index as u8)).copied().unwrap_or(0), rival.sent);
        }
    }
}

#[test]
fn none_sleeps_while_there_is_room() {
    // Miri is slow.
    let (seeds, steps) = if cfg!(miri) { (4, 100) } else { (3000, 300) };
    let mut timed_out = 0;
    for seed in 0..seeds {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step();
        }
        world.rest();
        world.check();
        timed_out += world.timed_out;
    }
    assert!(cfg!(miri) || timed_out > 100, "{timed_out} have timed out");
}
