//! How long each scenario is measured, on which servers, in how many rounds.
//!
//! Time is short: fifteen servers, sixty scenarios, five rounds of two seconds would take hours. The
//! full plan gives the key scenarios (64 B and 1 KiB on 100 and 1,000 connections) to every server in
//! five rounds, to the slower peers in three of them, and the rest to the core servers with shorter
//! windows. Whoever names scenarios gets them measured at full length on every server.

use std::time::Duration;

use crate::proxy;
use crate::quic;
use crate::scenario::{self, Scenario, Work};
use crate::servers::{self, Role, Server};
use crate::udp;
use crate::web;

/// Which plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// About a minute.
    Quick,
    /// Below twenty minutes.
    Full,
    /// Everything on everything, for hours; or what was named.
    Thorough,
}

/// A scenario with its servers and times.
#[derive(Clone)]
pub struct Step {
    /// What is measured.
    pub scenario: Scenario,
    /// Echo servers, in the order of a round. Empty for RESP and the web, which have servers of their own.
    pub servers: Vec<&'static Server>,
    /// Web servers, in the order of a round. Empty for the others.
    pub web_servers: Vec<&'static web::Server>,
    /// Proxies, in the order of a round. Empty for the others.
    pub proxies: Vec<&'static proxy::Server>,
    /// Servers of datagrams, in the order of a round. Empty for the others.
    pub udp_servers: Vec<&'static udp::Server>,
    /// Servers of QUIC, in the order of a round. Empty for the others.
    pub quic_servers: Vec<&'static quic::Server>,
    /// Rounds.
    pub rounds: usize,
    /// Whether peers outside the core sit out every second round.
    pub spare_peers: bool,
    /// Time before the measured window, in milliseconds.
    pub warm_ms: u64,
    /// The measured window, in milliseconds.
    pub measure_ms: u64,
    /// Whether system calls are counted in a pass of their own.
    pub trace: bool,
    /// Whether this project's servers of another revision take part, too.
    pub against: bool,
}

impl Step {
    /// Whether a server takes part in a round.
    pub fn takes_part(&self, server: &Server, round: usize) -> bool {
        !self.spare_peers || server.is_core() || round.is_multiple_of(2)
    }

    /// Runs of the load generator in this step, given the number of RESP servers.
    pub fn cells(&self, resp_servers: usize) -> usize {
        match self.scenario.work {
            Work::Resp { .. } => resp_servers * self.rounds,
            Work::Load(_) => (0..self.rounds)
                .map(|round| {
                    let present = self.servers.iter().filter(|s| self.takes_part(s, round));
                    self.entrants(present.map(|server| server.role))
                })
                .sum(),
            _ => self.servers_all() * self.rounds,
        }
    }

    /// Servers in this step, whichever they are, but those of RESP.
    fn servers_all(&self) -> usize {
        self.entrants(self.roles())
    }

    fn roles(&self) -> impl Iterator<Item = Role> {
        (self.servers.iter().map(|server| server.role))
            .chain(self.web_servers.iter().map(|server| server.role))
            .chain(self.proxies.iter().map(|server| server.role))
            .chain(self.udp_servers.iter().map(|server| server.role))
            .chain(self.quic_servers.iter().map(|server| server.role))
    }

    /// Whether one of this project's servers takes part that another revision can be compared by.
    pub fn has_ours(&self) -> bool {
        !matches!(self.scenario.work, Work::Resp { .. }) && self.roles().any(|it| it == Role::Ours)
    }

    /// How many take part, those of another revision included.
    fn entrants(&self, roles: impl Iterator<Item = Role>) -> usize {
        roles.map(|role| if self.against && role == Role::Ours { 2 } else { 1 }).sum()
    }

    /// About how long a run of the load generator takes, with the start of the server.
    pub fn cell_time(&self) -> Duration {
        let (connections, settle_ms, runs) = match &self.scenario.work {
            Work::Load(shape) | Work::Proxy { shape, .. } => (
                shape.connections + shape.idle + shape.slow,
                if shape.settle { SETTLE_MS } else { 0 },
                if shape.slow > 0 { 2 } else { 1 },
            ),
            Work::Resp { .. } | Work::Udp(_) => (0, 0, 1),
            Work::Quic(shape) => (shape.connections * HANDSHAKE_FACTOR, 0, 1),
            Work::Web(shape) => return self.cell_time_web(shape),
        };
        let run_ms = self.warm_ms + self.measure_ms + settle_ms + 60;
        Duration::from_millis(run_ms * runs + connections as u64 * 50 / 1000)
    }

    fn cell_time_web(&self, shape: &web::shape::Shape) -> Duration {
        Duration::from_millis(match shape {
            // A handshake costs the client more than the server.
            shape if shape.silent => {
                1000 + shape.connections as u64 * if shape.tls { 1 } else { 0 }
            }
            shape if shape.http2 => self.warm_ms + self.measure_ms + 200,
            _ => (self.warm_ms.div_ceil(1000) + self.measure_ms.div_ceil(1000)) * 1100 + 100,
        })
    }

    /// About how long the step takes.
    pub fn estimate(&self, resp_servers: usize) -> Duration {
        let trace_ms = match self.scenario.work {
            _ if !self.trace => 0,
            Work::Web(_) => self.servers_all() as u64 * 1600,
            _ => self.servers_all() as u64 * 1300,
        };
        self.cell_time() * self.cells(resp_servers) as u32 + Duration::from_millis(trace_ms)
    }
}

/// How much longer a connection of QUIC takes to begin than one of TCP.
const HANDSHAKE_FACTOR: usize = 20;

/// How long a server's memory settles after the close, in milliseconds.
pub const SETTLE_MS: u64 = 200;

/// What the command line narrows.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Scenario patterns; empty for the profile's own.
    pub only: Vec<String>,
    /// Server names; empty for the profile's own.
    pub servers: Vec<String>,
    /// Rounds instead of the profile's.
    pub rounds: Option<usize>,
    /// The measured window in milliseconds, instead of the profile's.
    pub measure_ms: Option<u64>,
    /// Whether this project's servers of another revision take part, too.
    pub against: bool,
}

/// Lays out the steps of a run.
pub fn steps(profile: Profile, choice: &Choice) -> Result<Vec<Step>, String> {
    for name in &choice.servers {
        let is_known = servers::find(name).is_some()
            || web::find(name).is_some()
            || proxy::find(name).is_some()
            || udp::find(name).is_some()
            || quic::find(name).is_some();
        if !is_known {
            return Err(match feature_of(name) {
                Some(feature) => {
                    format!("{name:?} needs the feature `{feature}`, which this build is without")
                }
                None => format!("no server named {name:?}; see --list"),
            });
        }
    }
    let named = !choice.only.is_empty();
    for pattern in &choice.only {
        if !scenario::all().iter().any(|scenario| scenario::matches(scenario, pattern)) {
            return Err(format!("no scenario matches {pattern:?}; see --list"));
        }
    }
    let profile = if named && profile == Profile::Full { Profile::Thorough } else { profile };
    let mut steps = Vec::new();
    for scenario in scenario::all() {
        let wanted = !named || choice.only.iter().any(|only| scenario::matches(&scenario, only));
        if !wanted {
            continue;
        }
        let Some(mut step) = step(profile, scenario, named) else {
            continue;
        };
        let all = choice.servers.is_empty();
        let chosen = |name| all || choice.servers.iter().any(|chosen| chosen == name);
        match step.scenario.work.clone() {
            Work::Web(shape) => {
                let able = |server: &&web::Server| (server.serves)(&shape) && chosen(server.name);
                step.servers.clear();
                step.web_servers = web::all().iter().filter(able).collect();
                step.spare_peers = false;
            }
            Work::Proxy { shape, threads } => {
                let able = |server: &&proxy::Server| {
                    (threads == 1 || server.has_threads)
                        && (!shape.tls || server.speaks_tls)
                        && chosen(server.name)
                };
                step.servers.clear();
                step.proxies = proxy::all().iter().filter(able).collect();
                step.spare_peers = false;
            }
            Work::Udp(shape) => {
                let able =
                    |server: &&udp::Server| (server.serves)(shape.ask) && chosen(server.name);
                step.servers.clear();
                step.udp_servers = udp::all().iter().filter(able).collect();
                step.spare_peers = false;
            }
            Work::Quic(shape) => {
                let able = |server: &&quic::Server| {
                    (shape.threads == 1 || server.on_two_threads) && chosen(server.name)
                };
                step.servers.clear();
                step.quic_servers = quic::all().iter().filter(able).collect();
                step.spare_peers = false;
            }
            Work::Load(_) | Work::Resp { .. } if !all => {
                step.servers = servers::all().iter().filter(|server| chosen(server.name)).collect();
                step.spare_peers = false;
            }
            Work::Load(_) | Work::Resp { .. } => {}
        }
        step.rounds = choice.rounds.unwrap_or(step.rounds);
        step.measure_ms = choice.measure_ms.unwrap_or(step.measure_ms);
        step.against = choice.against;
        let has_own = matches!(step.scenario.work, Work::Resp { .. });
        if all || has_own || step.servers_all() > 0 {
            steps.push(step);
        }
    }
    if steps.is_empty() {
        return Err("none of these servers takes part in any of these scenarios; see --list".into());
    }
    Ok(steps)
}

/// The feature that brings a server, whatever this build has.
fn feature_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "tokio" | "tokio-mt" => "tokio",
        "monoio" | "monoio-epoll" => "monoio",
        "compio" => "compio",
        "glommio" => "glommio",
        "may" => "may",
        "ntex" => "ntex",
        "quinn-udp" => "quinn-udp",
        quic::YARDSTICK => "quic",
        "compio-quic" => "compio-quic",
        _ => return None,
    })
}

/// The profile's step for a scenario, if it has one. A quick run of named scenarios is short on
/// whatever was named.
fn step(profile: Profile, scenario: Scenario, named: bool) -> Option<Step> {
    let name = scenario.name.as_str();
    let key = matches!(name, "echo-64x100" | "echo-64x1000" | "echo-1kx100" | "echo-1kx1000");
    let everyone: Vec<&Server> = servers::all().iter().collect();
    let core: Vec<&Server> = everyone.iter().copied().filter(|server| server.is_core()).collect();
    let closed_at_100 = matches!(name, "echo-64x100" | "echo-1kx100");
    match profile {
        Profile::Quick => {
            let in_quick = closed_at_100
                || matches!(name, "open-64x100-50" | "unix-64x100" | "resp-get-p16" | "churn");
            (in_quick || named).then_some(Step {
                servers: if closed_at_100 { everyone } else { core },
                web_servers: Vec::new(),
                proxies: Vec::new(),
                udp_servers: Vec::new(),
                quic_servers: Vec::new(),
                against: false,
                scenario,
                rounds: 1,
                spare_peers: false,
                warm_ms: 250,
                measure_ms: 600,
                trace: false,
            })
        }
        Profile::Full => {
            let rest = match scenario.group {
                "echo" => name != "echo-1mx1000",
                "open" => name.starts_with("open-64x100-"),
                "unix" => matches!(name, "unix-64x100" | "unix-1kx100" | "unix-open-64x100-50"),
                "resp" => !name.starts_with("resp-ping"),
                // An hour of their own.
                "http" | "h2" | "grpc" | "tls" | "proxy" | "udp" | "quic" => false,
                _ => true,
            };
            let slow = scenario.group == "slow";
            let ours_or_classic =
                |server: &&Server| matches!(server.role, Role::Ours | Role::Yardstick);
            let servers = match scenario.group {
                "slow" => core.into_iter().filter(ours_or_classic).collect(),
                // These are the scenarios of its own benchmark.
                "rpc" => core.into_iter().chain(servers::find("netpoll")).collect(),
                _ if key => everyone,
                _ => core,
            };
            (key || rest).then_some(Step {
                servers,
                web_servers: Vec::new(),
                proxies: Vec::new(),
                udp_servers: Vec::new(),
                quic_servers: Vec::new(),
                against: false,
                scenario,
                rounds: if key { 5 } else { 3 },
                spare_peers: key,
                warm_ms: if key { 500 } else { 200 },
                // Slow senders need more than a second to send at all.
                measure_ms: if key || slow { 1500 } else { 550 },
                trace: closed_at_100,
            })
        }
        Profile::Thorough => Some(Step {
            // Beside thousands of other connections it would be their beginning that is counted.
            trace: match &scenario.work {
                Work::Load(shape) | Work::Proxy { shape, .. } => shape.idle + shape.slow < 1000,
                Work::Web(shape) => !shape.silent && shape.threads == 1,
                Work::Udp(_) => true,
                Work::Quic(shape) => shape.connections < 100 && shape.threads == 1,
                Work::Resp { .. } => false,
            },
            scenario,
            servers: everyone,
            web_servers: Vec::new(),
            proxies: Vec::new(),
            udp_servers: Vec::new(),
            quic_servers: Vec::new(),
            against: false,
            rounds: 5,
            spare_peers: false,
            warm_ms: 500,
            measure_ms: 1500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(profile: Profile) -> Duration {
        let steps = steps(profile, &Choice::default()).unwrap();
        steps.iter().map(|step| step.estimate(3)).sum()
    }

    #[test]
    fn quick_takes_about_a_minute() {
        assert!(total(Profile::Quick) < Duration::from_secs(75), "{:?}", total(Profile::Quick));
    }

    #[test]
    fn full_stays_below_twenty_minutes() {
        let limit = Duration::from_secs(19 * 60);
        assert!(total(Profile::Full) < limit, "{:?}", total(Profile::Full));
    }

    #[test]
    fn named_scenarios_run_at_full_length_on_every_server() {
        let choice = Choice { only: vec!["churn".into()], ..Choice::default() };
        let steps = steps(Profile::Full, &choice).unwrap();
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].rounds, 5);
        assert_eq!(steps[0].measure_ms, 1500);
        assert_eq!(steps[0].servers.len(), servers::all().len());
    }

    #[test]
    fn web_scenarios_run_on_servers_that_can_serve_them() {
        let only = vec!["http-hello-64".into(), "http-post".into()];
        let steps = steps(Profile::Full, &Choice { only, ..Choice::default() }).unwrap();
        let has = |step: &Step, name| step.web_servers.iter().any(|server| server.name == name);
        assert!(steps.iter().all(|step| step.servers.is_empty() && has(step, "go")));
        assert!(has(
            steps.iter().find(|step| step.scenario.name == "http-hello-64").unwrap(),
            "nginx"
        ));
        assert!(!has(
            steps.iter().find(|step| step.scenario.name == "http-post").unwrap(),
            "nginx"
        ));
    }

    #[test]
    fn clients_with_tls_go_to_proxies_that_speak_it() {
        let only = vec!["proxy-64x64".into(), "proxy-tls-64x64".into()];
        let steps = steps(Profile::Full, &Choice { only, ..Choice::default() }).unwrap();
        for step in steps {
            let has = |name| step.proxies.iter().any(|proxy| proxy.name == name);
            assert!(has("haproxy") && has("nginx") && has("duopoll-epoll"));
            assert_eq!(has("floor-copy"), step.scenario.name == "proxy-64x64");
        }
    }

    #[test]
    fn datagrams_go_to_servers_that_can_serve_them() {
        let choice = Choice { only: vec!["udp".into()], ..Choice::default() };
        for step in steps(Profile::Full, &choice).unwrap() {
            let has = |name| step.udp_servers.iter().any(|server| server.name == name);
            assert!(step.servers.is_empty() && has("floor-mmsg"), "{}", step.scenario.name);
            assert_eq!(has("floor-gro"), step.scenario.name == "udp-bulk");
        }
    }

    #[cfg(feature = "compio-quic")]
    #[test]
    fn two_threads_of_quic_are_for_servers_that_have_them() {
        let choice = Choice { only: vec!["quic".into()], ..Choice::default() };
        for step in steps(Profile::Full, &choice).unwrap() {
            let has = |name| step.quic_servers.iter().any(|server| server.name == name);
            assert!(step.servers.is_empty() && has(quic::YARDSTICK), "{}", step.scenario.name);
            assert_eq!(has("compio-quic"), !step.scenario.name.ends_with("-2t"));
        }
    }

    #[test]
    fn servers_of_another_revision_take_time() {
        let only = vec!["echo-64x100".into(), "http-hello-64".into()];
        let servers = vec!["classic".into(), "go".into(), "duopoll-epoll".into()];
        let choice = Choice { only, servers, rounds: Some(3), ..Choice::default() };
        let alone = steps(Profile::Full, &choice).unwrap();
        let against = steps(Profile::Full, &Choice { against: true, ..choice }).unwrap();
        for (alone, against) in alone.iter().zip(&against) {
            let ours = if cfg!(feature = "http") || alone.scenario.group == "echo" { 3 } else { 0 };
            assert_eq!(against.cells(0), alone.cells(0) + ours, "{}", alone.scenario.name);
            assert_eq!(against.estimate(0) > alone.estimate(0), ours > 0);
        }
    }

    #[test]
    fn what_a_build_is_without_is_told() {
        let names = ["tokio", "monoio-epoll", "glommio", "ntex", "quinn-udp", "tokio-ct"];
        for name in names {
            let choice = Choice { servers: vec![name.into()], ..Choice::default() };
            if let Err(error) = steps(Profile::Full, &choice) {
                assert!(error.contains("needs the feature"), "{error}");
            }
        }
        let built = servers::all().iter().map(|server| (server.name, server.role));
        let built = built.chain(udp::all().iter().map(|server| (server.name, server.role)));
        // Go's servers are in every build, and in this test whatever has no feature.
        for (name, role) in built.filter(|(_, role)| *role == Role::Peer) {
            let is_go = matches!(name, "netpoll" | "gnet" | "go-net" | "go");
            assert!(is_go || feature_of(name).is_some(), "{name}: {role:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        let unknown = Choice { servers: vec!["apache".into()], ..Choice::default() };
        assert!(steps(Profile::Full, &unknown).is_err());
        let unknown = Choice { only: vec!["gopher".into()], ..Choice::default() };
        assert!(steps(Profile::Full, &unknown).is_err());
    }
}
