//! Parses the URL of a Redis, and combines it with the other settings of the connection.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::credentials::{Credentials, Password, Secret};
use crate::redis::server_info::Topology;
use consentd_tls::ClientFiles;

mod error;

pub use self::error::{InvalidTarget, TargetError};

/// The default port of Redis.
const REDIS_PORT: u16 = 6379;
/// The default port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;
/// The maximum number of Sentinels, or of nodes of a Cluster, in a URL. Usual numbers are three to six.
const MAX_NODES: usize = 32;
/// The highest number of a database. Redis has 16 databases by default.
const MAX_DATABASE: u32 = 65_535;

/// The address of a Redis, with the credentials and TLS files for it. Its `Debug` and `Display` show no
/// credentials.
#[derive(Clone)]
pub struct Target {
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Credentials,
    pub(crate) database: u32,
    /// The files for TLS; `None` without TLS.
    pub(crate) tls: Option<ClientFiles>,
    accept_unfenced: bool,
    described: String,
}

/// The primary's address, or the Sentinels or nodes that name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Endpoint {
    /// The server at a fixed address.
    Server(Address),
    /// The server that the Sentinels name.
    Sentinels {
        /// The configured Sentinels.
        sentinels: Vec<Address>,
        /// The primary's name at the Sentinels.
        master: String,
        /// The credentials for the Sentinels.
        credentials: Credentials,
    },
    /// The node of a Cluster that owns the ledger's slot. These nodes are asked first, and name the others.
    Cluster(Vec<Address>),
}

/// The address of one server.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Address {
    /// A host's name or IP address (without brackets), and the port.
    Tcp(Arc<str>, u16),
    /// A socket's path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The settings of a Redis besides its URL.
#[derive(Clone, Default)]
pub struct TargetOptions {
    /// The user's name.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// The file that holds the password, read for each connection.
    pub password_file: Option<PathBuf>,
    /// The number of the database.
    pub database: Option<u32>,
    /// The file of trusted CA certificates, in place of the system's. This file and the next two are read
    /// for each connection.
    pub ca_file: Option<PathBuf>,
    /// The file of the client's certificate.
    pub cert_file: Option<PathBuf>,
    /// The file of the key of the client's certificate.
    pub key_file: Option<PathBuf>,
    /// The user's name at the Sentinels.
    pub sentinel_user: Option<String>,
    /// The password at the Sentinels.
    pub sentinel_password: Option<String>,
    /// The file that holds the password at the Sentinels, read for each connection.
    pub sentinel_password_file: Option<PathBuf>,
    /// Whether to accept a primary that would not notice being cut off (`min-replicas-to-write 0`).
    pub accept_unfenced: bool,
}

impl Target {
    /// Combines a URL and the other settings.
    ///
    /// # Errors
    ///
    /// [`InvalidTarget`] if a setting is invalid, or contradicts another one.
    pub fn new(url: &str, options: TargetOptions) -> Result<Self, InvalidTarget> {
        let parsed =
            ParsedUrl::parse(url).map_err(|why| InvalidTarget { setting: "--ledger", why })?;
        parsed.with(options)
    }

    /// The address for logs and messages, without credentials.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.described
    }

    /// Whether to accept a primary that would not notice being cut off (`min-replicas-to-write 0`).
    #[must_use]
    pub fn accepts_unfenced(&self) -> bool {
        self.accept_unfenced
    }

    /// How the primary is located.
    #[must_use]
    pub fn topology(&self) -> Topology {
        match self.endpoint {
            Endpoint::Server(_) => Topology::Single,
            Endpoint::Sentinels { .. } => Topology::Sentinels,
            Endpoint::Cluster(_) => Topology::Cluster,
        }
    }

    /// Whether a text is the URL of a Redis and contains a password.
    #[must_use]
    pub fn has_password(text: &str) -> bool {
        ParsedUrl::parse(text).is_ok_and(|parsed| parsed.password.is_some())
    }

    /// Whether a text has the scheme of a Redis, and so is not a file's path.
    #[must_use]
    pub fn is_meant_by(text: &str) -> bool {
        text.split_once(':').is_some_and(|(scheme, _)| Scheme::named(scheme).is_some())
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(url: &str) -> Result<Self, InvalidTarget> {
        Self::new(url, TargetOptions::default())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.described).finish()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.described)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scheme {
    Tcp { tls: bool },
    Unix,
    Sentinel { tls: bool },
    Cluster { tls: bool },
}

impl Scheme {
    /// The scheme of this name. Other clients' names for the same are accepted.
    fn named(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "redis" | "valkey" => Self::Tcp { tls: false },
            "rediss" | "valkeys" => Self::Tcp { tls: true },
            "redis+unix" | "redis+socket" | "redis-socket" | "unix" => Self::Unix,
            "redis+sentinel" | "redis-sentinel" => Self::Sentinel { tls: false },
            "rediss+sentinel" | "rediss-sentinel" => Self::Sentinel { tls: true },
            "redis+cluster" | "redis-cluster" | "valkey+cluster" => Self::Cluster { tls: false },
            "rediss+cluster" | "rediss-cluster" | "valkeys+cluster" => Self::Cluster { tls: true },
            _ => return None,
        })
    }
}

/// The parts of a URL.
struct ParsedUrl {
    scheme: Scheme,
    endpoint: Endpoint,
    user: Option<String>,
    password: Option<String>,
    database: Option<u32>,
}

impl ParsedUrl {
    fn parse(url: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = url.trim().split_once(':').ok_or(TargetError::Scheme)?;
        let scheme = Scheme::named(scheme).ok_or(TargetError::Scheme)?;
        match scheme {
            Scheme::Unix => Self::unix(scheme, rest),
            Scheme::Tcp { .. } | Scheme::Sentinel { .. } | Scheme::Cluster { .. } => {
                Self::hosts(scheme, rest.strip_prefix("//").ok_or(TargetError::Scheme)?)
            }
        }
    }

    /// Parses what follows `redis+unix:`: a path, after up to two additional slashes.
    fn unix(scheme: Scheme, rest: &str) -> Result<Self, TargetError> {
        let (endpoint, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, password, path) = match endpoint.strip_prefix("//") {
            None => (None, None, endpoint),
            Some(endpoint) => match endpoint.rsplit_once('@') {
                None => (None, None, endpoint),
                Some((said, path)) => {
                    let (user, password) = parse_credentials(said)?;
                    (user, password, path)
                }
            },
        };
        let path = decoded(path)?;
        if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
            return Err(TargetError::Path);
        }
        let database = match query.split_once('=') {
            None if query.is_empty() => None,
            Some(("db", number)) => Some(database(number)?),
            _ => return Err(TargetError::Query("a socket's address takes ?db=N alone")),
        };
        let endpoint = Endpoint::Server(Address::Unix(path.into()));
        Ok(Self { scheme, endpoint, user, password, database })
    }

    /// Parses what follows `redis://`, `redis+sentinel://` or `redis+cluster://`.
    fn hosts(scheme: Scheme, rest: &str) -> Result<Self, TargetError> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        if behind.contains('@') {
            return Err(TargetError::StrayAt);
        }
        let (user, password, hosts) = match authority.rsplit_once('@') {
            None => (None, None, authority),
            Some((said, hosts)) => {
                let (user, password) = parse_credentials(said)?;
                (user, password, hosts)
            }
        };
        if behind.contains(['?', '#']) {
            let right = "give the database as /N, and the rest by --ledger-... settings";
            return Err(TargetError::Query(right));
        }
        let mut path = behind.trim_start_matches('/').trim_end_matches('/').split('/');
        let first = path.next().unwrap_or_default();
        let (endpoint, number) = match scheme {
            Scheme::Tcp { .. } if hosts.contains(',') => return Err(TargetError::Several),
            Scheme::Tcp { .. } | Scheme::Unix => {
                (Endpoint::Server(address(hosts, REDIS_PORT, "redis://HOST:PORT")?), first)
            }
            Scheme::Sentinel { .. } => (named(hosts, first)?, path.next().unwrap_or_default()),
            Scheme::Cluster { .. } if !["", "0"].contains(&first) => {
                return Err(TargetError::ClusterDatabase);
            }
            Scheme::Cluster { .. } => {
                const RIGHT: &str = "redis+cluster://HOST:PORT,HOST:PORT";
                (Endpoint::Cluster(addresses(hosts, REDIS_PORT, RIGHT)?), first)
            }
        };
        let database = match (number, path.next()) {
            ("", None) => None,
            (number, None) => Some(database(number)?),
            (_, Some(_)) => return Err(TargetError::Database),
        };
        Ok(Self { scheme, endpoint, user, password, database })
    }

    /// Combines the URL with the other settings.
    fn with(mut self, options: TargetOptions) -> Result<Target, InvalidTarget> {
        let wrong = |setting, why| Err(InvalidTarget { setting, why });
        if self.user.is_some() && options.user.is_some() {
            return wrong("--ledger-user", TargetError::Twice("in --ledger"));
        }
        if self.password.is_some() && options.password_file.is_some() {
            return wrong("--ledger-password-file", TargetError::Twice("in --ledger"));
        }
        if self.database.is_some() && options.database.is_some_and(|n| Some(n) != self.database) {
            return wrong("--ledger-database", TargetError::Twice("in --ledger"));
        }
        if options.database.is_some_and(|number| number > MAX_DATABASE) {
            return wrong("--ledger-database", TargetError::Database);
        }
        let is_cluster = matches!(self.endpoint, Endpoint::Cluster(_));
        if is_cluster && options.database.is_some_and(|number| number != 0) {
            return wrong("--ledger-database", TargetError::ClusterDatabase);
        }
        // A file takes precedence over a password in the environment, which may be meant for another
        // command.
        let said = self.password.or(options.password);
        let credentials = Credentials {
            user: self.user.or(options.user),
            password: Password::of(said, options.password_file),
        };
        let tls = tls_files(self.scheme, options.ca_file, options.cert_file, options.key_file)?;
        let at_sentinels = Credentials {
            user: options.sentinel_user,
            password: Password::of(options.sentinel_password, options.sentinel_password_file),
        };
        match &mut self.endpoint {
            Endpoint::Sentinels { credentials, .. } => *credentials = at_sentinels,
            // A flag for Sentinels is an error; a password in the environment may be meant for another
            // command.
            Endpoint::Server(_) | Endpoint::Cluster(_) if at_sentinels.user.is_some() => {
                return wrong("--ledger-sentinel-user", TargetError::NoSentinels);
            }
            Endpoint::Server(_) | Endpoint::Cluster(_)
                if matches!(at_sentinels.password, Password::File(_)) =>
            {
                return wrong("--ledger-sentinel-password-file", TargetError::NoSentinels);
            }
            Endpoint::Server(_) | Endpoint::Cluster(_) => {}
        }
        let database = self.database.or(options.database).unwrap_or(0);
        let described = described(&self.endpoint, tls.is_some(), database);
        let accept_unfenced = options.accept_unfenced;
        Ok(Target {
            endpoint: self.endpoint,
            credentials,
            database,
            tls,
            accept_unfenced,
            described,
        })
    }
}

/// The files for TLS; `None` if the scheme is without TLS.
fn tls_files(
    scheme: Scheme,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<ClientFiles>, InvalidTarget> {
    const FLAGS: [&str; 3] = ["--ledger-ca-file", "--ledger-cert-file", "--ledger-key-file"];
    let wrong = |setting, why| Err(InvalidTarget { setting, why });
    let has_tls = match scheme {
        Scheme::Unix => false,
        Scheme::Tcp { tls } | Scheme::Sentinel { tls } | Scheme::Cluster { tls } => tls,
    };
    if !has_tls {
        let given = [&ca, &certificate, &key].into_iter().zip(FLAGS);
        let flag = given.filter(|(file, _)| file.is_some()).map(|(_, flag)| flag).next();
        return flag.map_or(Ok(None), |flag| wrong(flag, TargetError::NoTls));
    }
    let [_, of_certificate, of_key] = FLAGS;
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return wrong(of_certificate, TargetError::Half(of_key)),
        (None, Some(_)) => return wrong(of_key, TargetError::Half(of_certificate)),
    };
    Ok(Some(ClientFiles { ca, own }))
}

/// Parses the user and the password before an @.
fn parse_credentials(said: &str) -> Result<(Option<String>, Option<String>), TargetError> {
    let (user, password) = match said.split_once(':') {
        None => (said, None),
        Some((user, password)) => (user, Some(decoded(password)?)),
    };
    let user = Some(decoded(user)?).filter(|user| !user.is_empty());
    Ok((user, password.filter(|password| !password.is_empty())))
}

fn decoded(text: &str) -> Result<String, TargetError> {
    let encodes = |rest: &str| {
        rest.as_bytes().get(..2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(encodes) {
        return Err(TargetError::Percent);
    }
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| TargetError::Percent)?.into_owned())
}

fn database(number: &str) -> Result<u32, TargetError> {
    let read = number.parse().ok().filter(|number| *number <= MAX_DATABASE);
    // Rust also parses "+1".
    read.filter(|_| !number.starts_with('+')).ok_or(TargetError::Database)
}

/// Parses a host with an optional port.
fn address(text: &str, port: u16, right: &'static str) -> Result<Address, TargetError> {
    let (host, said) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(TargetError::Host(right))?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| TargetError::Host(right))?;
            match behind.strip_prefix(':') {
                None if behind.is_empty() => (host, None),
                Some(port) => (host, Some(port)),
                None => return Err(TargetError::Port),
            }
        }
        None => match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => (host, Some(port)),
        },
    };
    if host.is_empty() {
        return Err(TargetError::NoHost(right));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !text.starts_with('[') && !host.chars().all(is_name) {
        return Err(TargetError::Host(right));
    }
    let digits = |port: &str| port.bytes().all(|digit| digit.is_ascii_digit());
    let port = match said {
        None => port,
        Some(said) if digits(said) => {
            said.parse().ok().filter(|port| *port > 0).ok_or(TargetError::Port)?
        }
        Some(_) => return Err(TargetError::Port),
    };
    Ok(Address::Tcp(host.into(), port))
}

/// Parses a list of hosts with optional ports; one that is given twice counts once.
fn addresses(hosts: &str, port: u16, right: &'static str) -> Result<Vec<Address>, TargetError> {
    let mut all = Vec::new();
    for host in hosts.split(',').map(str::trim) {
        let one = address(host, port, right)?;
        if !all.contains(&one) {
            all.push(one);
        }
    }
    if all.len() > MAX_NODES { Err(TargetError::TooMany) } else { Ok(all) }
}

fn named(hosts: &str, master: &str) -> Result<Endpoint, TargetError> {
    const RIGHT: &str = "redis+sentinel://HOST:PORT,HOST:PORT/MASTER";
    let sentinels = addresses(hosts, SENTINEL_PORT, RIGHT)?;
    let master = decoded(master)?;
    if master.is_empty() || master.contains(char::is_whitespace) {
        return Err(TargetError::Master);
    }
    Ok(Endpoint::Sentinels { sentinels, master, credentials: Credentials::default() })
}

fn described(endpoint: &Endpoint, tls: bool, database: u32) -> String {
    let s = if tls { "s" } else { "" };
    let list =
        |hosts: &[Address]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (base, slash) = match endpoint {
        Endpoint::Server(Address::Unix(path)) => {
            (format!("redis+unix://{}", path.display()), "?db=")
        }
        Endpoint::Server(address) => (format!("redis{s}://{address}"), "/"),
        Endpoint::Sentinels { sentinels, master, .. } => {
            (format!("redis{s}+sentinel://{}/{master}", list(sentinels)), "/")
        }
        Endpoint::Cluster(nodes) => (format!("redis{s}+cluster://{}", list(nodes)), "/"),
    };
    if database == 0 { base } else { format!("{base}{slash}{database}") }
}

impl Password {
    /// The file, if one is named, otherwise the given password.
    fn of(said: Option<String>, file: Option<PathBuf>) -> Self {
        match (file, said) {
            (Some(file), _) => Self::File(file),
            (None, Some(said)) => Self::Given(Secret::new(said)),
            (None, None) => Self::None,
        }
    }
}

#[cfg(test)]
mod tests;
