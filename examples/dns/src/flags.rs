//! The command line.

use std::ffi::OsString;
use std::net::{SocketAddr, UdpSocket};

use lexopt::prelude::*;

use crate::config::Config;
use crate::values::{seconds, value};

pub(crate) const HELP: &str = "A DNS resolver that asks others, and keeps what they answer.

  dns --listen 192.168.1.1:53 --upstream 9.9.9.9:53 --upstream [2620:fe::fe]:53

Addresses are IP:PORT. Seconds may have a fraction.

  --listen ADDRESS           UDP and TCP; again for more (default: 127.0.0.1:5353). One of IPv6 is for IPv6 only: for
                             all addresses of a machine there are 0.0.0.0:53 and [::]:53, and replies come from the
                             address that was asked
  --upstream ADDRESS         who is asked, over UDP, and over TCP for what is too long; again for more. Who has answered
                             last is asked first
  --timeout SECONDS          how long one has, before the next is asked; each is asked twice (default: 1)
  --cache N                  answers that are kept (default: 10000)
  --max-per-source N         queries of one address per second; what is over is dropped, and refused over TCP (default:
                             no limit)
  --max-outstanding N        questions that upstreams are asked at once; others fail (default: 1000)
  --idle-timeout SECONDS     ends TCP connections on which nothing moves for so long (default: 10)
  --engine auto|epoll|uring  auto takes io_uring where it works, else epoll (default: auto, or what the
                             environment variable DUOPOLL_ENGINE says)
  --pollers N                threads, each with a UDP socket of its own (default: 1)
  --grace SECONDS            how long queries may go on after a signal (default: 5); again, and it is 0
  --help                     print this

Prints one line when it is ready, and one with figures at SIGUSR1 and at the end. SIGINT and SIGTERM end it gracefully.
Exit code 0 then, 1 if the system refuses something, 2 for a bad flag.
";

/// The configuration, or none if help was asked for.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Option<Config>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut config = Config::default();
    while let Some(arg) = parser.next()? {
        let name = match arg {
            Long(name) => name.to_owned(),
            Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        };
        if name == "help" {
            return Ok(None);
        }
        set(&mut config, &name, &mut parser)?;
    }
    if config.listen.is_empty() {
        config.listen.push(SocketAddr::from(([127, 0, 0, 1], 5353)));
    }
    // One of IPv4 may be written as one of IPv6.
    for upstream in &mut config.upstream {
        upstream.set_ip(upstream.ip().to_canonical());
    }
    check(&config)?;
    Ok(Some(config))
}

fn set(config: &mut Config, name: &str, parser: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
    match name {
        "listen" => config.listen.push(value(name, parser)?),
        "upstream" => config.upstream.push(value(name, parser)?),
        "engine" => config.engine = value(name, parser)?,
        "pollers" => config.pollers = value(name, parser)?,
        "cache" => config.cache = value(name, parser)?,
        "max-per-source" => config.max_per_source = Some(value(name, parser)?),
        "max-outstanding" => config.max_outstanding = value(name, parser)?,
        "timeout" => config.timeout = seconds(name, parser)?,
        "idle-timeout" => config.idle_timeout = seconds(name, parser)?,
        "grace" => config.grace = seconds(name, parser)?,
        _ => return Err(format!("invalid option '--{name}'").into()),
    }
    Ok(())
}

fn check(config: &Config) -> Result<(), lexopt::Error> {
    if config.upstream.is_empty() {
        return Err("there is nobody to ask: --upstream ADDRESS".into());
    }
    if !(1..=1024).contains(&config.pollers) {
        return Err("--pollers must be from 1 to 1024".into());
    }
    if config.max_per_source == Some(0) {
        return Err("--max-per-source must be at least 1".into());
    }
    if config.timeout.is_zero() || config.max_outstanding == 0 {
        return Err("--timeout and --max-outstanding must be more than 0".into());
    }
    for upstream in &config.upstream {
        if config.listen.iter().any(|listen| is_same(listen, upstream)) {
            return Err(format!("--upstream {upstream}: that would be this resolver itself").into());
        }
    }
    Ok(())
}

/// Whether who listens there is who would be asked there.
fn is_same(listen: &SocketAddr, upstream: &SocketAddr) -> bool {
    let (at, asked) = (listen.ip(), upstream.ip());
    if listen.port() != upstream.port() || at.is_ipv4() != asked.is_ipv4() {
        return false;
    }
    // An address of this machine can be bound.
    let is_ours = || asked.is_unspecified() || UdpSocket::bind((asked, 0)).is_ok();
    at == asked || at.is_unspecified() && is_ours()
}
