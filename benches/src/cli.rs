//! The command line of `compare`, and the two parts that it starts itself as: a server and the load
//! generator.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::de::DeserializeOwned;

use crate::address::Address;
use crate::arguments::{self, number, show, value};
use crate::load::{self, Outcome};
use crate::plan::{self, Choice, Profile, Step};
use crate::process;
use crate::proxy;
use crate::quic;
use crate::report;
use crate::resp::RespServer;
use crate::revision::Revision;
use crate::rounds::{self, Settings, minutes};
use crate::scenario;
use crate::servers::{self, Options, Start};
use crate::sys;
use crate::udp::shape::Ask;
use crate::udp::{self, mmsg, service};
use crate::web;
use crate::web::shape::App;

const HELP: &str = "\
Compares echo, RESP, HTTP, gRPC, UDP and QUIC servers, and proxies, each in a process of its own, in interleaved rounds.

compare [OPTIONS]
  --quick                 about a minute
  --thorough              every scenario on every server at full length: hours
                          (without either: echo, RPC and RESP, below half an hour)
  --only A,B              scenarios by name, group or glob (echo-64x100, http, quic, 'echo-64k*'),
                          at full length on every server unless --quick is given
  --servers A,B           echo, web, UDP, QUIC servers and proxies by name
  --rounds N              rounds instead of the plan's
  --seconds S             measured window instead of the plan's
  --against REV           this project's servers beside those of that revision, which is built first; not of RESP
  --resp-server NAME=CMD  a further RESP server; {port} in CMD becomes its port; may repeat
  --server-core N         core of the servers (0)
  --client-core N         core of the load generator (1)
  --instructions          count instructions by callgrind, of echo and the web, except on io_uring
  --no-trace              do not count system calls
  --resume                leave out what FOLDER has already, with as many rounds and the same window; the rest is added to it,
                          and takes the place of what is there of the same scenario
  --out FOLDER            where compare.md, compare.json and svg/ go (target/compare; below CARGO_TARGET_DIR, if that is set)
  --list                  list servers and scenarios

compare serve NAME --listen ADDRESS [--burst BYTES] [--framed]
  runs one server; ADDRESS is IP:PORT or unix:PATH, BYTES is what arrives together,
  framed messages have their length in front

compare web NAME --listen IP:PORT --app plain|json|grpc [--threads N] [--tls FOLDER]
  runs one server of HTTP or gRPC; FOLDER has certificate.pem and key.pem

compare proxy NAME --listen IP:PORT --upstream IP:PORT [--threads N] [--tls FOLDER]
  runs one proxy; FOLDER has certificate.pem and key.pem

compare udp NAME --listen IP:PORT --ask echo|receive|send|bulk --bytes N
  runs one server of datagrams; N is what a datagram has

compare quic NAME --listen IP:PORT --ask echo|receive|send --tls FOLDER [--threads N]
  runs one server of QUIC; FOLDER has certificate.pem and key.pem

compare load SPEC, compare udp-load SPEC, compare quic-load SPEC
  runs a load generator with a specification in JSON and prints the outcome in JSON
";

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("serve") => serve(&words[1..]),
        Some("web") => serve_web(&words[1..]),
        Some("proxy") => serve_proxy(&words[1..]),
        Some("udp") => serve_udp(&words[1..]),
        Some("quic") => serve_quic(&words[1..]),
        Some("load") => generate(&words[1..], load::run),
        Some("udp-load") => generate(&words[1..], udp::load::run),
        #[cfg(feature = "quic")]
        Some("quic-load") => generate(&words[1..], quic::load::run),
        _ => compare(&words),
    };
    process::exit_code("compare", result)
}

fn serve(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let name = value(&mut words, "serve")?;
    let mut listen = None;
    let mut burst_bytes = 4096;
    let mut framed = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => listen = Some(value(&mut words, word)?.parse()?),
            "--burst" => burst_bytes = number(value(&mut words, word)?, word)?,
            "--framed" => framed = true,
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    let server = servers::find(name).ok_or_else(|| format!("no server named {name:?}"))?;
    let listen = listen.ok_or("serve needs --listen ADDRESS")?;
    let options = Options { listen, burst_bytes, framed };
    let describe = |error: io::Error| format!("{name}: {error}");
    sys_limits().map_err(describe)?;
    match server.start {
        Start::Function(run) => run(&options).map_err(describe),
        Start::Go(library) => {
            let executable = crate::golang::build()?;
            let status = crate::golang::command(&executable, library, &options).status();
            Err(status.map_or_else(describe, |status| format!("{name} ended with {status}")))
        }
    }
}

fn serve_web(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let name = value(&mut words, "web")?;
    let (mut listen, mut app, mut tls, mut threads) = (None, None, None, 1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => listen = Some(value(&mut words, word)?.parse::<Address>()?),
            "--app" => app = App::find(value(&mut words, word)?),
            "--tls" => tls = Some(PathBuf::from(value(&mut words, word)?)),
            "--threads" => threads = number(value(&mut words, word)?, word)?,
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    let describe = |error: io::Error| format!("{name}: {error}");
    let server = web::find(name).ok_or_else(|| format!("no web server named {name:?}"))?;
    let listen = listen.ok_or("web needs --listen ADDRESS")?.tcp().map_err(describe)?;
    let app = app.ok_or("web needs --app plain, json or grpc")?;
    sys_limits().map_err(describe)?;
    match server.start {
        web::Start::Function(run) => {
            let options = web::Options { listen, app, http2: false, tls, threads, pinned: false };
            run(&options).map_err(describe)
        }
        web::Start::Go | web::Start::Nginx => Err(format!("{name} is a program of its own")),
    }
}

fn serve_proxy(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let name = value(&mut words, "proxy")?;
    let (mut listen, mut upstream, mut threads, mut tls) = (None, None, 1, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => listen = Some(number(value(&mut words, word)?, word)?),
            "--upstream" => upstream = Some(number(value(&mut words, word)?, word)?),
            "--tls" => tls = Some(PathBuf::from(value(&mut words, word)?)),
            "--threads" => threads = number(value(&mut words, word)?, word)?,
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    let describe = |error: io::Error| format!("{name}: {error}");
    let server = proxy::find(name).ok_or_else(|| format!("no proxy named {name:?}"))?;
    let listen = listen.ok_or("proxy needs --listen IP:PORT")?;
    let upstream = upstream.ok_or("proxy needs --upstream IP:PORT")?;
    sys_limits().map_err(describe)?;
    match server.start {
        proxy::Start::Function(run) => {
            run(&proxy::Options { listen, upstream, threads, tls }).map_err(describe)
        }
        _ => Err(format!("{name} is a program of its own")),
    }
}

fn serve_udp(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let name = value(&mut words, "udp")?;
    let (mut listen, mut ask, mut bytes) = (None, None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => listen = Some(number(value(&mut words, word)?, word)?),
            "--ask" => ask = Ask::find(value(&mut words, word)?),
            "--bytes" => bytes = Some(number(value(&mut words, word)?, word)?),
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    let server = udp::find(name).ok_or_else(|| format!("no UDP server named {name:?}"))?;
    let listen = listen.ok_or("udp needs --listen IP:PORT")?;
    let ask = ask.ok_or("udp needs --ask echo, receive, send or bulk")?;
    let bytes = bytes.ok_or("udp needs --bytes N")?;
    if !(service::HEADER_BYTES..=mmsg::ROOM_BYTES).contains(&bytes) {
        return Err(format!("--bytes: {bytes} are too few or too many"));
    }
    match server.start {
        udp::Start::Function(run) => {
            run(&udp::Options { listen, ask, bytes }).map_err(|error| format!("{name}: {error}"))
        }
        udp::Start::Go => Err(format!("{name} is a program of its own")),
    }
}

fn serve_quic(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let name = value(&mut words, "quic")?;
    let (mut listen, mut ask, mut tls, mut threads) = (None, None, None, 1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--listen" => listen = Some(number(value(&mut words, word)?, word)?),
            "--ask" => ask = quic::shape::Ask::find(value(&mut words, word)?),
            "--tls" => tls = Some(PathBuf::from(value(&mut words, word)?)),
            "--threads" => threads = number(value(&mut words, word)?, word)?,
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    let server = quic::find(name).ok_or_else(|| format!("no QUIC server named {name:?}"))?;
    let options = quic::Options {
        listen: listen.ok_or("quic needs --listen IP:PORT")?,
        ask: ask.ok_or("quic needs --ask echo, receive or send")?,
        certificate: tls.ok_or("quic needs --tls FOLDER")?,
        threads,
    };
    (server.run)(&options).map_err(|error| format!("{name}: {error}"))
}

fn sys_limits() -> io::Result<()> {
    crate::sys::raise_descriptor_limit().map(drop)
}

fn generate<S: DeserializeOwned>(
    words: &[String],
    run: impl FnOnce(&S) -> io::Result<Outcome>,
) -> Result<(), String> {
    let [spec] = words else {
        return Err("a load generator takes one specification".into());
    };
    let spec = serde_json::from_str(spec).map_err(|error| error.to_string())?;
    let outcome = run(&spec).map_err(|error| error.to_string())?;
    println!("{}", serde_json::to_string(&outcome).map_err(|error| error.to_string())?);
    Ok(())
}

fn compare(words: &[String]) -> Result<(), String> {
    let mut profile = Profile::Full;
    let mut choice = Choice::default();
    let mut settings = Settings {
        server_core: 0,
        client_core: 1,
        trace: true,
        resp_servers: [RespServer::redis()].into_iter().chain(RespServer::ours()).collect(),
        out: process::results_folder(),
        command: format!("compare {}", words.join(" ")).trim_end().to_owned(),
        resume: false,
        against: None,
        instructions: false,
    };
    let names = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let (mut against, mut listing) = (None, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" | "--thorough" if profile != Profile::Full => {
                return Err("either --quick or --thorough, and once".into());
            }
            "--quick" => profile = Profile::Quick,
            "--thorough" => profile = Profile::Thorough,
            "--only" => choice.only.extend(names(value(&mut words, word)?)),
            "--servers" => choice.servers.extend(names(value(&mut words, word)?)),
            "--rounds" => choice.rounds = Some(arguments::rounds(value(&mut words, word)?, word)?),
            "--seconds" => {
                let window = arguments::seconds(value(&mut words, word)?, word)?;
                choice.measure_ms = Some(window.as_millis() as u64);
            }
            "--resp-server" => {
                settings.resp_servers.push(RespServer::parse(value(&mut words, word)?)?);
            }
            "--server-core" => settings.server_core = core(value(&mut words, word)?, word)?,
            "--client-core" => settings.client_core = core(value(&mut words, word)?, word)?,
            "--no-trace" => settings.trace = false,
            "--resume" => settings.resume = true,
            "--instructions" => settings.instructions = true,
            "--against" => against = Some(value(&mut words, word)?),
            "--out" => match value(&mut words, word)? {
                "" => return Err("--out needs the name of a folder".into()),
                folder => settings.out = PathBuf::from(folder),
            },
            "--list" => listing = true,
            "--help" | "-h" => {
                show(HELP);
                return Ok(());
            }
            // Passed by `cargo bench`.
            "--bench" => {}
            other => return Err(format!("unknown option {other:?}; see --help")),
        }
    }
    choice.against = against.is_some();
    let steps = plan::steps(profile, &choice)?;
    if against.is_some() && !steps.iter().any(Step::has_ours) {
        return Err(
            "--against: none of this project's servers is measured that can be compared".into()
        );
    }
    if listing {
        show(&list());
        return Ok(());
    }
    // Before anything is built or measured for it.
    report::prepare(&settings.out).map_err(|error| error.to_string())?;
    if let Some(revision) = against {
        let with_proxy = steps.iter().any(|step| !step.proxies.is_empty());
        settings.against = Some(Revision::build(revision, with_proxy)?);
    }
    rounds::run(&steps, &settings).map_err(|error| error.to_string())
}

/// A core that this process may run on.
fn core(text: &str, option: &str) -> Result<usize, String> {
    let core = number(text, option)?;
    // Tried by a thread that has nothing else to do.
    let tried = std::thread::spawn(move || sys::pin_to_core(core)).join();
    match tried {
        Ok(Ok(())) => Ok(core),
        _ => Err(format!("{option}: this process may not run on core {core}")),
    }
}

fn list() -> String {
    let mut text = String::from("Servers:\n");
    for server in servers::all() {
        text += &format!("  {:<14} {}\n", server.name, server.about);
    }
    text += "Web servers:\n";
    for server in web::all() {
        text += &format!("  {:<14} {}\n", server.name, server.about);
    }
    text += "Proxies:\n";
    for server in proxy::all() {
        text += &format!("  {:<14} {}\n", server.name, server.about);
    }
    text += "UDP servers:\n";
    for server in udp::all() {
        text += &format!("  {:<14} {}\n", server.name, server.about);
    }
    text += "QUIC servers:\n";
    for server in quic::all() {
        text += &format!("  {:<14} {}\n", server.name, server.about);
    }
    text += "Scenarios, with the time that a full run takes for them; one that is named by --only takes more:\n";
    let resp_servers = 1 + RespServer::ours().len();
    let steps = |profile| plan::steps(profile, &Choice::default()).unwrap_or_default();
    let full = steps(Profile::Full);
    for scenario in scenario::all() {
        let step = full.iter().find(|step| step.scenario == scenario);
        let time = step.map_or("–".into(), |step| minutes(step.estimate(resp_servers)));
        text += &format!("  {:<20} {time:>6}  {}\n", scenario.name, scenario.title);
    }
    let total = |profile| {
        let times = steps(profile).into_iter().map(|step| step.estimate(resp_servers));
        minutes(times.sum())
    };
    let (quick, full) = (total(Profile::Quick), total(Profile::Full));
    text += &format!("In all: {full}, quick: {quick}, thorough: {}\n", total(Profile::Thorough));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a command line. Nothing is measured if it is right.
    fn complaint(words: &str) -> Option<String> {
        let words: Vec<String> = words.split(' ').chain(["--list"]).map(str::to_owned).collect();
        compare(&words).err()
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert_eq!(complaint("--rounds 1 --seconds 0.5 --only churn"), None);
        for rounds in ["0", "-1", "x"] {
            assert!(
                complaint(&format!("--rounds {rounds}")).is_some_and(|it| it.contains("--rounds"))
            );
        }
        for seconds in ["0", "-1", "nan", "inf", "x"] {
            assert!(
                complaint(&format!("--seconds {seconds}"))
                    .is_some_and(|it| it.contains("--seconds"))
            );
        }
    }

    #[test]
    fn names_are_looked_at_before_they_are_listed() {
        assert!(complaint("--only gopher").is_some_and(|it| it.contains("gopher")));
        assert!(complaint("--servers apache").is_some_and(|it| it.contains("apache")));
    }

    #[test]
    fn what_would_measure_nothing_is_refused() {
        let wrong = [
            "--only echo-64x1 --servers floor-mmsg",
            "--only echo-64x1 --servers classic --against HEAD",
            "--only resp-get-p1 --against HEAD",
            "--server-core 1000",
            "--client-core x",
            "--quick --thorough",
            "--out ",
        ];
        for words in wrong {
            assert!(complaint(words).is_some(), "{words}");
        }
        assert_eq!(complaint("--only echo-64x1 --servers duopoll-epoll --against HEAD"), None);
    }
}
