//! The command line.

use std::ffi::OsString;
use std::path::Path;

use lexopt::prelude::*;

use crate::config::{Config, Listen, Tls, Upstream, Version};
use crate::values::value;

pub(crate) const HELP: &str = "A TCP proxy: what clients send goes to an upstream, and back, and nothing is copied.

  proxy --listen 127.0.0.1:6380 --upstream 127.0.0.1:6379 --upstream 127.0.0.1:6389

Addresses are HOST:PORT, unix:PATH or unix:@NAME; an upstream may be a name, which is resolved for each connection.
Seconds may have a fraction.

Where from and where to:
  --listen ADDRESS           again for more
  --upstream ADDRESS         again for more
  --config FILE              a file in TOML, with settings of single listeners and upstreams, too; what flags say
                             comes on top. docs/proxy.md has its keys
  --balance round-robin|random|least
                             who gets the next connection: least is who has the fewest (default: round-robin)
  --accept-proxy             clients begin with a PROXY header, version 1 or 2
  --send-proxy v1|v2         upstreams are sent one
  --tls-certificate FILE     clients speak TLS; with the key, both in PEM
  --tls-key FILE

What if something fails:
  --connect-timeout SECONDS  (default: 2)
  --tries N                  upstreams that are tried for one connection (default: 3)
  --health-interval SECONDS  each upstream is connected to so often; 0 is never (default: 2)
  --health-timeout SECONDS   (default: 1)
  --health-fall N            failures in a row before one is down (default: 3)
  --health-rise N            successes in a row before it is up again (default: 2)
  --eject-after N            failures of clients' connections in a row before one is left alone; 0 is never (default: 5)
  --eject-time SECONDS       for so long, and twice as long each time in a row, up to 16 times (default: 10)

Limits:
  --max-connections N        clients at once; others wait (default: no limit)
  --max-per-source N         clients of one address at once; others are reset (default: no limit)
  --memory-budget-mib N      what all may hold in memory; those whose peers do not read are reset when it is used up
                             (default: half of the memory there is)
  --idle-timeout SECONDS     ends what moves nothing for so long (default: 3600)
  --write-timeout SECONDS    ends what takes nothing for so long (default: 60)
  --begin-timeout SECONDS    for the PROXY header, and for the TLS handshake (default: 5)

The process:
  --engine auto|epoll|uring  auto takes io_uring where it works, else epoll (default: auto, or what the
                             environment variable DUOPOLL_ENGINE says)
  --pollers N                threads (default: 1)
  --admin ADDRESS            /metrics for Prometheus, and /healthz
  --access-log               a line for each connection, on the standard error
  --log-json                 all that is logged as JSON
  --verbose                  what goes wrong with single connections, too
  --grace SECONDS            how long connections may go on after SIGINT, SIGTERM or SIGHUP (default: 30); again, and it is 0
  --handover PATH            a Unix socket: what runs there hands its listeners over, and goes on to its end. Then the
                             next one can take over there
  --systemd                  listen at the sockets of a systemd socket unit
  --help                     print this

Prints one line when it is ready. Exit code 0 at the end, 1 if the system refuses something, 2 for a bad flag.
";

/// What applies to every listener or upstream that the flags name.
#[derive(Default)]
struct ForEach {
    accept_proxy: bool,
    send_proxy: Option<Version>,
    certificate: Option<OsString>,
    key: Option<OsString>,
}

/// The configuration, or none if help was asked for.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Option<Config>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut config, mut each) = (Config::default(), ForEach::default());
    let (mut listen, mut upstream) = (Vec::new(), Vec::new());
    let mut first = true;
    while let Some(arg) = parser.next()? {
        let name = match arg {
            Long(name) => name.to_owned(),
            Short('h') => return Ok(None),
            _ => return Err(arg.unexpected()),
        };
        match &*name {
            "help" => return Ok(None),
            "config" if first => config = Config::read(Path::new(&parser.value()?))?,
            "config" => return Err("--config comes first".into()),
            "listen" => listen.push(value(&name, &mut parser)?),
            "upstream" => upstream.push(parser.value()?.string()?),
            "accept-proxy" => each.accept_proxy = true,
            "send-proxy" => each.send_proxy = Some(value(&name, &mut parser)?),
            "tls-certificate" => each.certificate = Some(parser.value()?),
            "tls-key" => each.key = Some(parser.value()?),
            _ => set(&mut config, &name, &mut parser)?,
        }
        first = false;
    }
    let tls = match (each.certificate, each.key) {
        (Some(certificate), Some(key)) => {
            Some(Tls { certificate: certificate.into(), key: key.into() })
        }
        (None, None) => None,
        _ => return Err("--tls-certificate and --tls-key need each other".into()),
    };
    config.listen.extend(listen.into_iter().map(|address| Listen {
        address,
        accept_proxy: each.accept_proxy,
        tls: tls.clone(),
    }));
    let send_proxy = each.send_proxy;
    config.upstream.extend(upstream.into_iter().map(|address| Upstream { address, send_proxy }));
    config.check()?;
    Ok(Some(config))
}

fn set(config: &mut Config, name: &str, parser: &mut lexopt::Parser) -> Result<(), lexopt::Error> {
    match name {
        "balance" => config.balance = value(name, parser)?,
        "engine" => config.engine = value(name, parser)?,
        "pollers" => config.pollers = value(name, parser)?,
        "admin" => config.admin = Some(value(name, parser)?),
        "handover" => config.handover = Some(parser.value()?.into()),
        "systemd" => config.systemd = true,
        "max-connections" => config.max_connections = Some(value(name, parser)?),
        "max-per-source" => config.max_per_source = Some(value(name, parser)?),
        "memory-budget-mib" => config.memory_budget_mib = Some(value(name, parser)?),
        "connect-timeout" => config.connect_timeout = value(name, parser)?,
        "tries" => config.tries = value(name, parser)?,
        "idle-timeout" => config.idle_timeout = value(name, parser)?,
        "write-timeout" => config.write_timeout = value(name, parser)?,
        "begin-timeout" => config.begin_timeout = value(name, parser)?,
        "grace" => config.grace = value(name, parser)?,
        "health-interval" => config.health.interval = value(name, parser)?,
        "health-timeout" => config.health.timeout = value(name, parser)?,
        "health-fall" => config.health.fall = value(name, parser)?,
        "health-rise" => config.health.rise = value(name, parser)?,
        "eject-after" => config.ejection.failures = value(name, parser)?,
        "eject-time" => config.ejection.time = value(name, parser)?,
        "access-log" => config.log.access = true,
        "log-json" => config.log.json = true,
        "verbose" => config.log.verbose = true,
        _ => return Err(format!("invalid option '--{name}'").into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Config, String> {
        let arguments = line.split_whitespace().map(OsString::from);
        let parsed = parse(arguments).map_err(|error| error.to_string())?;
        Ok(parsed.expect("no help"))
    }

    #[test]
    fn flags_and_files_say_the_same() {
        let file = std::env::temp_dir().join(format!("proxy-{}.toml", std::process::id()));
        let text = r#"
            balance = "least"
            idle-timeout = 1.5
            admin = "127.0.0.1:9000"
            engine = "epoll"
            [[listen]]
            address = "127.0.0.1:1"
            accept-proxy = true
            tls = { certificate = "c", key = "k" }
            [[upstream]]
            address = "localhost:2"
            send-proxy = "v2"
            [health]
            interval = 0
        "#;
        std::fs::write(&file, text).expect("written");
        let read = parsed(&format!("--config {}", file.display())).expect("a configuration");
        let both = parsed(&format!("--config {} --listen [::1]:3", file.display()));
        std::fs::remove_file(&file).expect("removed");
        let said = parsed(
            "--balance least --idle-timeout 1.5 --admin 127.0.0.1:9000 --engine epoll --listen 127.0.0.1:1 \
             --accept-proxy --tls-certificate c --tls-key k --upstream localhost:2 --send-proxy v2 --health-interval 0",
        );
        assert_eq!(format!("{read:?}"), format!("{:?}", said.expect("a configuration")));
        assert_eq!(both.expect("a configuration").listen.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, part) in [
            ("--upstream a:1", "nowhere to listen"),
            ("--listen 127.0.0.1:1", "nowhere to go"),
            ("--listen nonsense --upstream a:1", "--listen nonsense"),
            ("--listen 127.0.0.1:1 --upstream a:1 --tries 0", "tries must be more than 0"),
            ("--listen 127.0.0.1:1 --upstream a:1 --pollers 0", "pollers must be"),
            ("--listen 127.0.0.1:1 --upstream a:1 --grace -1", "--grace -1"),
            ("--listen 127.0.0.1:1 --upstream a:1 --balance best", "--balance best"),
            ("--listen 127.0.0.1:1 --upstream a:1 --tls-key k", "need each other"),
            ("--listen 127.0.0.1:1 --config f", "comes first"),
            ("--config /nonexistent", "/nonexistent"),
            ("--listen 127.0.0.1:1 --upstream nonsense", "neither HOST:PORT"),
            ("--listen 127.0.0.1:1 --upstream a:1 --upstream a:1", "there twice"),
            ("--listen 127.0.0.1:1 --listen 127.0.0.1:1 --upstream a:1", "listened at twice"),
            ("--listen 127.0.0.1:1 --upstream a:1 --idle-timeout 0", "idle-timeout must"),
            ("--more", "invalid option '--more'"),
        ] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
