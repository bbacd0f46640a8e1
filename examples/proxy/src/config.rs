//! What the proxy is told: by flags, by a file, or by both.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use duopoll::{Address, Engine};
use serde::de::{Error, IntoDeserializer};
use serde::{Deserialize, Deserializer};

/// All of it. In a file the names are these, with `-` for `_`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) listen: Vec<Listen>,
    pub(crate) upstream: Vec<Upstream>,
    pub(crate) balance: Balance,
    #[serde(deserialize_with = "parsed")]
    pub(crate) engine: Engine,
    pub(crate) pollers: usize,
    /// Where `/metrics` and `/healthz` are.
    #[serde(deserialize_with = "some")]
    pub(crate) admin: Option<Address>,
    /// Where a new process takes over.
    pub(crate) handover: Option<PathBuf>,
    /// Sockets that systemd has opened.
    pub(crate) systemd: bool,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_per_source: Option<usize>,
    pub(crate) memory_budget_mib: Option<usize>,
    pub(crate) connect_timeout: Seconds,
    /// Upstreams that are tried for one connection.
    pub(crate) tries: usize,
    pub(crate) idle_timeout: Seconds,
    pub(crate) write_timeout: Seconds,
    /// For the PROXY header and the TLS handshake.
    pub(crate) begin_timeout: Seconds,
    pub(crate) grace: Seconds,
    pub(crate) health: Health,
    pub(crate) ejection: Ejection,
    pub(crate) log: Log,
}

/// A listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Listen {
    #[serde(deserialize_with = "parsed")]
    pub(crate) address: Address,
    /// Clients begin with a PROXY header.
    #[serde(default)]
    pub(crate) accept_proxy: bool,
    /// Clients speak TLS.
    pub(crate) tls: Option<Tls>,
}

/// Files in PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tls {
    /// The chain, the server's own certificate first.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Where connections go.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Upstream {
    /// `HOST:PORT`, also with a name, or `unix:PATH`.
    pub(crate) address: String,
    /// It is sent a PROXY header.
    pub(crate) send_proxy: Option<Version>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Version {
    V1,
    V2,
}

/// Who gets the next connection, of those that are up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Balance {
    #[default]
    RoundRobin,
    Random,
    /// Whoever has the fewest.
    Least,
}

/// Active checks: whether an upstream can be connected to.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Health {
    /// None are made if this is zero.
    pub(crate) interval: Seconds,
    pub(crate) timeout: Seconds,
    /// Checks in a row that it fails before it is down.
    pub(crate) fall: u32,
    /// Checks in a row that it passes before it is up again.
    pub(crate) rise: u32,
}

/// What is learned from clients' connections: an upstream that fails them is left alone for a while.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Ejection {
    /// Connections in a row that fail; never if it is 0.
    pub(crate) failures: u32,
    /// For how long; twice as long each time in a row, up to 16 times as long.
    pub(crate) time: Seconds,
}

/// What is logged, to the standard error.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Log {
    /// A line for each connection.
    pub(crate) access: bool,
    pub(crate) json: bool,
    /// What goes wrong with single connections, too.
    pub(crate) verbose: bool,
}

/// A time in seconds, which may have a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: Vec::new(),
            upstream: Vec::new(),
            balance: Balance::default(),
            engine: Engine::Auto,
            pollers: 1,
            admin: None,
            handover: None,
            systemd: false,
            max_connections: None,
            max_per_source: None,
            memory_budget_mib: None,
            connect_timeout: Seconds::from_millis(2000),
            tries: 3,
            idle_timeout: Seconds::from_millis(3_600_000),
            write_timeout: Seconds::from_millis(60_000),
            begin_timeout: Seconds::from_millis(5000),
            grace: Seconds::from_millis(30_000),
            health: Health::default(),
            ejection: Ejection::default(),
            log: Log::default(),
        }
    }
}

impl Default for Health {
    fn default() -> Health {
        let (interval, timeout) = (Seconds::from_millis(2000), Seconds::from_millis(1000));
        Health { interval, timeout, fall: 3, rise: 2 }
    }
}

impl Default for Ejection {
    fn default() -> Ejection {
        Ejection { failures: 5, time: Seconds::from_millis(10_000) }
    }
}

impl Config {
    /// What a file says.
    pub(crate) fn read(path: &Path) -> Result<Config, String> {
        let named = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| named(&error))?;
        toml::from_str(&text).map_err(|error| named(&error))
    }

    /// Whether it can be done.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() && !self.systemd {
            return Err("there is nowhere to listen: --listen ADDRESS, or --systemd".into());
        }
        for (index, listen) in self.listen.iter().enumerate() {
            let is_some_port = listen.address.tcp().is_some_and(|address| address.port() == 0);
            let same = |other: &Listen| other.address == listen.address;
            if !is_some_port && self.listen[..index].iter().any(same) {
                return Err(format!("{} is listened at twice", listen.address));
            }
        }
        for (index, upstream) in self.upstream.iter().enumerate() {
            upstream.check()?;
            let same = |other: &Upstream| other.address == upstream.address;
            if self.upstream[..index].iter().any(same) {
                return Err(format!("the upstream {} is there twice", upstream.address));
            }
        }
        if self.upstream.is_empty() {
            return Err("there is nowhere to go: --upstream ADDRESS".into());
        }
        let one_each = [
            ("tries", self.tries as u64),
            ("max-connections", self.max_connections.unwrap_or(1) as u64),
            ("max-per-source", self.max_per_source.unwrap_or(1) as u64),
            ("memory-budget-mib", self.memory_budget_mib.unwrap_or(1) as u64),
            ("health.fall", self.health.fall.into()),
            ("health.rise", self.health.rise.into()),
            ("idle-timeout", self.idle_timeout.0.as_nanos() as u64),
            ("write-timeout", self.write_timeout.0.as_nanos() as u64),
        ];
        if let Some((name, _)) = one_each.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must be more than 0"));
        }
        if !(1..=1024).contains(&self.pollers) {
            return Err("pollers must be from 1 to 1024".into());
        }
        Ok(())
    }
}

impl Upstream {
    /// Whether it is an address, or the name of a host and a port.
    fn check(&self) -> Result<(), String> {
        let address = &self.address;
        let is_tcp = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        let is_unix = address.strip_prefix("unix:").is_some_and(|path| !path.is_empty());
        if (is_tcp || is_unix) && !address.contains(char::is_control) {
            return Ok(());
        }
        Err(format!("the upstream {address:?} is neither HOST:PORT nor unix:PATH nor unix:@NAME"))
    }
}

impl Seconds {
    const fn from_millis(millis: u64) -> Seconds {
        Seconds(Duration::from_millis(millis))
    }
}

impl std::str::FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seconds, String> {
        let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
        Seconds::try_from(seconds)
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Seconds, String> {
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        Ok(Seconds(duration))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Seconds::try_from(seconds).map_err(D::Error::custom)
    }
}

impl std::str::FromStr for Balance {
    type Err = String;

    fn from_str(text: &str) -> Result<Balance, String> {
        named(text)
    }
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Version, String> {
        named(text)
    }
}

/// One of the names that a file may have, too.
fn named<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    T::deserialize(text).map_err(|error| error.to_string())
}

fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn some<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    parsed(deserializer).map(Some)
}
