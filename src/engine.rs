//! Which engine, and why.

use std::env;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use duopoll_core::{
    Capabilities, Deregister, EngineStats, Kind, Notify, Operators, Pending, Poll, Pool, Token,
};
#[cfg(feature = "epoll")]
use duopoll_epoll::Epoll;
#[cfg(feature = "uring")]
use duopoll_uring::{Features, Uring};

use crate::trace;

/// The environment variable that decides where the program left it to [`Engine::Auto`]: `auto`, `epoll` or `uring`.
pub(crate) const ENGINE_VARIABLE: &str = "DUOPOLL_ENGINE";

/// The environment variable that decides what may be used of io_uring, where the program does not say.
#[cfg(feature = "uring")]
const URING_VARIABLE: &str = "DUOPOLL_URING";

/// Which engine to use.
///
/// Which ones there are is a matter of cargo features; which one is used is decided when pollers start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// io_uring where a self-test proves that it works, else epoll. The environment variable `DUOPOLL_ENGINE`
    /// overrides this choice, and this one only.
    #[default]
    Auto,
    /// epoll.
    Epoll,
    /// io_uring, or an error that says why not.
    Uring,
}

impl FromStr for Engine {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Engine> {
        match text {
            "auto" => Ok(Engine::Auto),
            "epoll" => Ok(Engine::Epoll),
            "uring" => Ok(Engine::Uring),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("unknown engine `{text}`: auto, epoll or uring"),
            )),
        }
    }
}

/// What a poller runs on, and why not on something else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineReport {
    /// The engine: `"epoll"` or `"uring"`.
    pub engine: &'static str,
    /// What is used of it on this kernel.
    pub tier: String,
    /// Why io_uring was passed over, if it was.
    pub fallback: Option<String>,
}

impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.engine, self.tier)?;
        match &self.fallback {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// What a program says about the engine of a poller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) engine: Engine,
    /// None: the environment decides, or all of them.
    #[cfg(feature = "uring")]
    pub(crate) uring: Option<Features>,
    /// The most bytes that it may have with the kernel for sends without a copy, if it is said.
    #[cfg(feature = "zerocopy")]
    pub(crate) pinned_bytes: Option<usize>,
}

/// The engine of a poller.
#[derive(Debug)]
pub(crate) enum AnyPoll {
    #[cfg(feature = "epoll")]
    Epoll(Box<Epoll>),
    #[cfg(feature = "uring")]
    Uring(Box<Uring>),
    /// Never there: the build has stopped with an error of its own, and this keeps it the only one.
    #[cfg(not(any(feature = "epoll", feature = "uring")))]
    None(std::convert::Infallible),
}

impl AnyPoll {
    /// Makes the engine, on the thread that will run it.
    pub(crate) fn new(choice: Choice, pool: Option<&Pool>) -> io::Result<(AnyPoll, EngineReport)> {
        let engine = choice.engine.overridden()?;
        // A typo is an error, whichever engine it would have been for.
        #[cfg(feature = "uring")]
        let choice = Choice { uring: Some(choice.uring.map_or_else(allowed, Ok)?), ..choice };
        match engine {
            Engine::Epoll => AnyPoll::epoll(None),
            Engine::Uring => AnyPoll::uring(choice, pool),
            Engine::Auto => AnyPoll::uring(choice, pool).or_else(|refused| {
                let reason = refused.to_string();
                static LOGGED: Once = Once::new();
                LOGGED.call_once(|| log::warn!("using epoll: {reason}"));
                trace::falls_back(&reason);
                AnyPoll::epoll(Some(reason))
            }),
        }
    }

    #[cfg(feature = "epoll")]
    fn epoll(fallback: Option<String>) -> io::Result<(AnyPoll, EngineReport)> {
        Ok(AnyPoll::Epoll(Box::new(Epoll::new()?)).reported("epoll", fallback))
    }

    #[cfg(not(feature = "epoll"))]
    fn epoll(fallback: Option<String>) -> io::Result<(AnyPoll, EngineReport)> {
        let reason = fallback.map(|reason| format!("; {reason}")).unwrap_or_default();
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("epoll is not in this build: enable the feature `epoll`{reason}"),
        ))
    }

    #[cfg(feature = "uring")]
    fn uring(choice: Choice, pool: Option<&Pool>) -> io::Result<(AnyPoll, EngineReport)> {
        let allowed = choice.uring.unwrap_or(Features::ALL);
        let pool = pool.unwrap_or_else(|| Pool::global()).clone();
        Ok(AnyPoll::Uring(Box::new(Uring::with_pool(allowed, pool)?)).reported("uring", None))
    }

    #[cfg(not(feature = "uring"))]
    fn uring(_: Choice, _: Option<&Pool>) -> io::Result<(AnyPoll, EngineReport)> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "io_uring is not in this build: enable the feature `uring`",
        ))
    }

    fn reported(self, engine: &'static str, fallback: Option<String>) -> (AnyPoll, EngineReport) {
        let tier = self.capabilities().tier;
        (self, EngineReport { engine, tier, fallback })
    }
}

impl Engine {
    /// The choice, after the environment has had its say.
    fn overridden(self) -> io::Result<Engine> {
        match (self, env::var(ENGINE_VARIABLE)) {
            (Engine::Auto, Ok(text)) if !text.is_empty() => {
                text.parse().map_err(|error: io::Error| {
                    io::Error::new(error.kind(), format!("{ENGINE_VARIABLE}: {error}"))
                })
            }
            _ => Ok(self),
        }
    }
}

/// What may be used of io_uring.
#[cfg(feature = "uring")]
fn allowed() -> io::Result<Features> {
    match env::var(URING_VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|error: io::Error| {
            io::Error::new(error.kind(), format!("{URING_VARIABLE}: {error}"))
        }),
        _ => Ok(Features::ALL),
    }
}

/// Calls the engine that there is.
macro_rules! on_engine {
    ($any:expr, $poll:ident => $call:expr) => {
        match $any {
            #[cfg(feature = "epoll")]
            AnyPoll::Epoll($poll) => $call,
            #[cfg(feature = "uring")]
            AnyPoll::Uring($poll) => $call,
            #[cfg(not(any(feature = "epoll", feature = "uring")))]
            AnyPoll::None(never) => match *never {},
        }
    };
}

impl Poll for AnyPoll {
    unsafe fn register<O: Operators>(
        &mut self,
        token: Token,
        fd: RawFd,
        kind: Kind,
        operators: &mut O,
    ) -> io::Result<()> {
        // SAFETY: promised by the caller.
        on_engine!(self, poll => unsafe { poll.register(token, fd, kind, operators) })
    }

    fn receive<O: Operators>(&mut self, token: Token, operators: &mut O) {
        on_engine!(self, poll => poll.receive(token, operators))
    }

    #[inline(always)]
    fn send<O: Operators>(&mut self, token: Token, operators: &mut O) {
        on_engine!(self, poll => poll.send(token, operators))
    }

    fn watch_room(&mut self, token: Token) {
        on_engine!(self, poll => poll.watch_room(token))
    }

    fn deregister<O: Operators>(&mut self, token: Token, how: Deregister, operators: &mut O) {
        on_engine!(self, poll => poll.deregister(token, how, operators))
    }

    fn wait<O: Operators>(
        &mut self,
        timeout: Option<Duration>,
        operators: &mut O,
    ) -> io::Result<()> {
        on_engine!(self, poll => poll.wait(timeout, operators))
    }

    fn has_more(&mut self) -> bool {
        on_engine!(self, poll => poll.has_more())
    }

    fn pending(&mut self, token: Token) -> Pending {
        on_engine!(self, poll => poll.pending(token))
    }

    fn waker(&self) -> Arc<dyn Notify> {
        on_engine!(self, poll => poll.waker())
    }

    fn capabilities(&self) -> Capabilities {
        on_engine!(self, poll => poll.capabilities())
    }

    fn stats(&self) -> EngineStats {
        on_engine!(self, poll => poll.stats())
    }
}
