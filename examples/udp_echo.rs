//! Echoes datagrams: whatever arrives goes back to where it came from.
//!
//! ```text
//! cargo run --release --example udp_echo -- --listen 127.0.0.1:7000
//! ```

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use duopoll::udp::{Datagram, Outgoing, UdpServer, UdpSocket};
use duopoll::{Engine, Pollers};
use lexopt::prelude::*;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const HELP: &str = "Echoes datagrams.

Flags:
  --listen HOST:PORT         (default: 127.0.0.1:7000)
  --engine auto|epoll|uring  auto takes io_uring where it works, else epoll (default: auto, or what the
                             environment variable DUOPOLL_ENGINE says)
  --pollers N                threads, each with a socket of its own (default: 1)
  --gro                      receive what comes together in one, and send it back in one
  --help                     print this

Prints one line when it is ready. SIGINT and SIGTERM end it. Exit code 0 then, 1 if the system refuses something, 2 for a bad flag.
";

/// How long the last replies may take.
const GRACE: Duration = Duration::from_secs(1);

struct Flags {
    listen: SocketAddr,
    engine: Engine,
    pollers: usize,
    gro: bool,
}

fn main() -> ExitCode {
    let flags = match parse() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match serve(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: &Flags) -> io::Result<()> {
    // Before the server starts, so that none is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let pollers = Pollers::options().engine(flags.engine).count(flags.pollers).start()?;
    // The kernel tells to which address a datagram was sent, so that the reply comes from there.
    let options = UdpSocket::options().local_address(true).gro(flags.gro);
    let server = UdpServer::serve(&pollers, options, flags.listen, echo)?;
    let engine = pollers.engine_reports().first().map_or("none", |report| report.engine);
    println!("listening on {} engine={engine} pollers={}", server.local_addr(), flags.pollers);
    signals.forever().next();
    server.shutdown(GRACE);
    Ok(())
}

async fn echo(socket: &mut UdpSocket, datagrams: &mut Vec<Datagram>) {
    for datagram in datagrams.drain(..) {
        let reply = Outgoing::reply(datagram.bytes.clone(), &datagram);
        socket.stage(match datagram.segment_bytes {
            Some(bytes) => reply.segments(bytes as u16),
            None => reply,
        });
    }
}

fn parse() -> Result<Option<Flags>, lexopt::Error> {
    let listen = SocketAddr::from(([127, 0, 0, 1], 7000));
    let mut flags = Flags { listen, engine: Engine::Auto, pollers: 1, gro: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => {
                let text = parser.value()?.string()?;
                let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
                flags.listen = addresses.next().ok_or("no address")?;
            }
            Long("engine") => flags.engine = parser.value()?.parse()?,
            Long("pollers") => flags.pollers = parser.value()?.parse()?,
            Long("gro") => flags.gro = true,
            Long("help") => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(flags))
}
