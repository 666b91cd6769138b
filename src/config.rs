//! Flags, environment and file become validated settings. The only reader of the environment.
//!
//! A setting is taken from its flag, else from its `CONSENTD_` variable, else from the file, else
//! it has its default. [`ServeArgs`] is what was said, [`Settings`] is what it means.

mod bounds;
mod config_file;
mod decision_log;
mod keywords;
mod ledger;
mod listeners;
mod policy;
mod snapshot;
mod telemetry;
mod used_files;
mod webhook;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;

use self::bounds::{at_least, at_most, bytes_of};
use self::decision_log::with_decision_log_args;
pub use self::keywords::KeywordArgs;
use self::ledger::with_ledger_args;
pub use self::ledger::{LedgerAddress, LedgerArgs};
use self::listeners::listen;
pub use self::policy::PolicyArgs;
use self::policy::{names, policy};
use self::telemetry::{log, traces};
pub use self::webhook::{WebhookArgs, WebhookSettings, WebhookSources, WhatsappArgs};
use crate::budget::{MIN_BYTES, MIN_CONNECTION_BYTES};
use crate::decision_log::DecisionLogSettings;
use crate::net::socket::Address;
use crate::synthetic::MAX_PAIRS;
use crate::telemetry::TraceSettings;
use consentd_core::decision::Policy;
use consentd_core::event::PlatformNames;
use consentd_core::keyword::KeywordSettings;
use consentd_ledger::{Durability, NotADurability, Retention};
use consentd_os::access;
use consentd_os::files::UsedFile;

/// Declares the settings that flags, environment and file share, and how one overrides another.
macro_rules! serve_args {
    ($($(#[$attribute:meta])* $field:ident: $type:ty,)*) => {
        /// What was said, by flags and environment or by a file.
        #[allow(
            rustdoc::bare_urls,
            clippy::doc_markdown,
            reason = "these comments are the help that a terminal shows"
        )]
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct ServeArgs {
            /// Read further settings, keywords and WhatsApp's numbers from this TOML file; flags and
            /// environment override it
            #[arg(long, env = "CONSENTD_CONFIG", value_name = "FILE")]
            #[serde(skip)]
            pub config: Option<PathBuf>,
            $($(#[$attribute])* pub $field: Option<$type>,)*
            /// What the file alone can say of keywords.
            #[arg(skip)]
            pub keywords: Option<KeywordArgs>,
            /// What the file alone can say of WhatsApp.
            #[arg(skip)]
            pub whatsapp: Option<WhatsappArgs>,
        }

        impl ServeArgs {
            /// These settings, and where they say nothing `weaker` ones.
            #[must_use]
            pub fn or(self, weaker: Self) -> Self {
                Self {
                    config: self.config,
                    $($field: self.$field.or(weaker.$field),)*
                    keywords: self.keywords.or(weaker.keywords),
                    whatsapp: self.whatsapp.or(weaker.whatsapp),
                }
            }
        }
    };
}

with_decision_log_args! { with_ledger_args! { serve_args! {
    /// Where to serve gRPC over TCP: HOST:PORT, port 0 for any free one, or none
    /// [default: 127.0.0.1:50051]
    #[arg(long, env = "CONSENTD_LISTEN", value_name = "ADDR")]
    listen: String,
    /// Serve gRPC on this Unix socket too: a path (mode 0660), or @NAME for an abstract one
    #[arg(long, env = "CONSENTD_UNIX", value_name = "PATH")]
    unix: String,
    /// Where to serve a page for people, /metrics, /livez and /readyz over HTTP: HOST:PORT, or none
    /// [default: 127.0.0.1:9464]
    #[arg(long, env = "CONSENTD_ADMIN", value_name = "ADDR")]
    admin: String,
    /// Put a form on that page that answers checks and shows what they rest on; on a loopback
    /// address alone, since whoever opens the page can ask about anybody [default: false]
    #[arg(
        long, env = "CONSENTD_ADMIN_CHECKS", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
    )]
    admin_checks: bool,
    /// Serve RecordService here and not on the main listeners: HOST:PORT, unix:PATH or unix:@NAME
    #[arg(long, env = "CONSENTD_RECORD", value_name = "ADDR")]
    record: String,
    /// Bearer tokens that may record, one a line; needed where RecordService is served on an
    /// address that is neither loopback nor a Unix socket
    #[arg(long, env = "CONSENTD_RECORD_TOKEN_FILE", value_name = "FILE")]
    record_token_file: PathBuf,
    /// Receive WhatsApp's webhooks here over HTTP and record what they say: HOST:PORT, or none;
    /// needs the two flags below, and [whatsapp.numbers] in --config [default: none]
    #[arg(long, env = "CONSENTD_WEBHOOK", value_name = "ADDR")]
    webhook: String,
    /// The app's secret, by which webhooks are signed; one a line, and as many files as you like
    /// (in the variable with commas between): each is accepted, so that the secret can be replaced;
    /// read again when it changes
    #[arg(
        long, env = "CONSENTD_WEBHOOK_APP_SECRET_FILE", value_name = "FILE", value_delimiter = ','
    )]
    webhook_app_secret_file: Vec<PathBuf>,
    /// The token that the platform gives in its handshake; read again when it changes
    #[arg(long, env = "CONSENTD_WEBHOOK_VERIFY_TOKEN_FILE", value_name = "FILE")]
    webhook_verify_token_file: PathBuf,
    /// Deny as STALE once the table's last proof is older than this [default: 5s]
    #[arg(long, env = "CONSENTD_MAX_STALENESS", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    max_staleness: Duration,
    /// How long after the user's last message anything may be answered [default: 24h]
    #[arg(long, env = "CONSENTD_WINDOW", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    window: Duration,
    /// Close the window by so much earlier than WhatsApp does [default: 60s]
    #[arg(long, env = "CONSENTD_WINDOW_MARGIN", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    window_margin: Duration,
    /// Classes for which an open window stands in for an opt-in, comma-separated, or none
    /// [default: marketing,utility,authentication,service]
    #[arg(long, env = "CONSENTD_WINDOW_IMPLIES", value_name = "CLASSES")]
    window_implies: String,
    /// Classes that are still allowed while the proof is merely late, comma-separated, or none
    /// [default: none]
    #[arg(long, env = "CONSENTD_STALE_ALLOW", value_name = "CLASSES")]
    stale_allow: String,
    /// Names by which a statement may call WhatsApp, comma-separated, in place of the built-in ones
    #[arg(long, env = "CONSENTD_PLATFORM_NAMES", value_name = "NAMES")]
    platform_names: String,
    /// Threads that serve [default: 2, or the CPUs that this process may use where that is less]
    #[arg(long, env = "CONSENTD_WORKERS", value_name = "N", value_parser = number::<usize>)]
    workers: usize,
    /// gRPC connections at once, on each listener; beyond them only probes are answered
    /// [default: 1024]
    #[arg(long, env = "CONSENTD_MAX_CONNECTIONS", value_name = "N", value_parser = number::<usize>)]
    max_connections: usize,
    /// Checks being answered at once, or waiting for a revision, on all listeners together;
    /// recordings have a quarter as many places of their own [default: 4096]
    #[arg(long, env = "CONSENTD_MAX_IN_FLIGHT", value_name = "N", value_parser = number::<usize>)]
    max_in_flight: usize,
    /// Bytes of all that is not answered yet, on all listeners together; checks, recordings,
    /// webhooks and probes have parts of their own; 32MiB or more [default: 64MiB]
    #[arg(long, env = "CONSENTD_MAX_REQUEST_BYTES", value_name = "SIZE", value_parser = size)]
    max_request_bytes: ByteSize,
    /// The most of them for one connection; where little is free, it gets half of that at the most;
    /// 5MiB or more [default: 8MiB]
    #[arg(long, env = "CONSENTD_MAX_CONNECTION_BYTES", value_name = "SIZE", value_parser = size)]
    max_connection_bytes: ByteSize,
    /// Requests of one BatchCanSend [default: 1000]
    #[arg(long, env = "CONSENTD_MAX_BATCH", value_name = "N", value_parser = number::<usize>)]
    max_batch: usize,
    /// Users of one message of FilterRecipients, of 2 MiB at the most [default: 10000]
    #[arg(long, env = "CONSENTD_MAX_RECIPIENTS", value_name = "N", value_parser = number::<usize>)]
    max_recipients: usize,
    /// Streams of WatchConsents at once, on all listeners together; 0 for none [default: 100]
    #[arg(long, env = "CONSENTD_MAX_WATCHERS", value_name = "N", value_parser = number::<usize>)]
    max_watchers: usize,
    /// Ask a connection to end after this long; clients connect again [default: 1h]
    #[arg(long, env = "CONSENTD_MAX_CONNECTION_AGE", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    max_connection_age: Duration,
    /// How long a shutdown waits for what was begun [default: 10s]
    #[arg(long, env = "CONSENTD_DRAIN_TIMEOUT", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    drain_timeout: Duration,
    /// How long the ledger's log, which names users, is kept [default: 24h]
    #[arg(long, env = "CONSENTD_LOG_RETENTION", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    log_retention: Duration,
    /// How many entries the ledger's log keeps at most [default: 1000000]
    #[arg(long, env = "CONSENTD_LOG_ENTRIES", value_name = "N", value_parser = number::<u64>)]
    log_entries: u64,
    /// How long inbound and failure events stay in histories; others stay for good [default: 90d]
    #[arg(long, env = "CONSENTD_HISTORY_RETENTION", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    history_retention: Duration,
    /// Make a new ledger in a file, in which nobody has opted out, though its folder has what a
    /// ledger leaves behind [default: false]
    #[arg(
        long, env = "CONSENTD_NEW", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
    )]
    new: bool,
    /// What an append in Redis waits for: ledger (what that Redis is configured for), replicas:N, or
    /// aof (synced; Redis 7.2) [default: ledger]
    #[arg(long, env = "CONSENTD_DURABILITY", value_name = "WHAT")]
    durability: String,
    /// Compare one bucket of the ledger in Redis with the table this often, or never
    /// [default: 10s]
    #[arg(long, env = "CONSENTD_SCRUB_EVERY", value_name = "TIME")]
    scrub_every: String,
    /// Save the table in this file and begin with it: a restart need not read all of the ledger in
    /// Redis
    #[arg(long, env = "CONSENTD_SNAPSHOT", value_name = "PATH")]
    snapshot: PathBuf,
    /// How often to save it beside the end of a drain, or never [default: 5m]
    #[arg(long, env = "CONSENTD_SNAPSHOT_EVERY", value_name = "TIME")]
    snapshot_every: String,
    /// How much of the ledger's file to keep in memory [default: 64MiB]
    #[arg(long, env = "CONSENTD_LEDGER_CACHE", value_name = "SIZE", value_parser = size)]
    ledger_cache: ByteSize,
    /// For load tests: hold this many pairs that nobody recorded, beside an empty ledger; `bench
    /// requests` asks about them [default: 0]
    #[arg(long, env = "CONSENTD_SYNTHETIC", value_name = "N")]
    synthetic: u64,
    /// What to log to standard error, for people on a terminal and in JSON elsewhere: a level, or
    /// directives such as info,consentd=debug [default: info]
    #[arg(long, env = "CONSENTD_LOG", value_name = "FILTER")]
    log: String,
    /// Export sampled traces to this OpenTelemetry collector, by OTLP over gRPC: http://HOST:PORT,
    /// or none [default: none]
    #[arg(long, env = "CONSENTD_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: String,
    /// The share of calls to sample, of those that bring no traceparent; others are sampled as
    /// their caller's trace is [default: 0.01]
    #[arg(long, env = "CONSENTD_OTLP_SAMPLE", value_name = "RATIO", value_parser = ratio)]
    otlp_sample: f64,
} } }

/// The most threads that serve; each takes a stack, and none is gained beyond the CPUs.
const MAX_WORKERS: usize = 1_024;
/// The least of the ledger's file that is kept in memory, in bytes.
const MIN_LEDGER_CACHE: usize = 1024 * 1024;
/// The most connections of a listener; the system's own limit is lower.
const MAX_CONNECTIONS: usize = 1 << 20;

fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, such as 5s, 250ms or 24h"))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, such as 1000".to_owned())
}

fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "must be a number and its unit, such as 64MiB".to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "must be a number from 0 to 1, such as 0.01".to_owned())
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}{}", access::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {source}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// The file has a key that is none.
    #[error("{path}, line {line}: unknown key `{key}`; did you mean `{meant}`?")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The nearest that is one.
        meant: String,
    },
    /// A setting has a value that it must not have.
    #[error("{setting}: {why}")]
    Value {
        /// The setting, by its flag.
        setting: &'static str,
        /// What was wrong, and what would be right.
        why: String,
    },
}

fn wrong(setting: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { setting, why: why.into() }
}

/// What a sidecar is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the ledger is.
    pub ledger: LedgerAddress,
    /// Whether a ledger's file is made where one seems to be missing.
    pub new: bool,
    /// The files that flags name, no two of which are one where that would do harm.
    pub files: Vec<UsedFile>,
    /// How much of its file to keep in memory, in bytes.
    pub ledger_cache: usize,
    /// What an append in Redis waits for.
    pub durability: Durability,
    /// How often a bucket of a ledger in Redis is compared with the table.
    pub scrub_every: Option<Duration>,
    /// Where the table is saved, and how often.
    pub snapshot: Option<(PathBuf, Option<Duration>)>,
    /// How many pairs to hold that nobody recorded.
    pub synthetic: u64,
    /// How long the ledger keeps what it need not keep for good.
    pub retention: Retention,
    /// Where to serve gRPC.
    pub listen: Vec<Address>,
    /// Where to serve metrics, probes and the page.
    pub admin: Option<String>,
    /// Whether the page answers checks.
    pub admin_checks: bool,
    /// Where to serve recordings; on every address of `listen`, where unset.
    pub record: Option<Address>,
    /// The tokens that may record.
    pub record_token_file: Option<PathBuf>,
    /// Where to receive webhooks, if anywhere.
    pub webhook: Option<WebhookSettings>,
    /// The longest staleness at which checks are still answered.
    pub max_staleness: Duration,
    /// What an operator may set of the rules.
    pub policy: Policy,
    /// The names by which a statement may call WhatsApp.
    pub names: PlatformNames,
    /// The keywords.
    pub keywords: KeywordSettings,
    /// Threads that serve.
    pub workers: usize,
    /// Connections of each listener.
    pub max_connections: usize,
    /// Checks at once.
    pub max_in_flight: usize,
    /// Bytes of all that is not answered yet.
    pub max_request_bytes: usize,
    /// Bytes of that for one connection.
    pub max_connection_bytes: usize,
    /// Requests of a batch.
    pub max_batch: usize,
    /// Users of one message of a campaign.
    pub max_recipients: usize,
    /// Who may watch at once.
    pub max_watchers: usize,
    /// When a connection is asked to end.
    pub max_connection_age: Duration,
    /// How long a shutdown waits.
    pub drain_timeout: Duration,
    /// What to log.
    pub log: String,
    /// Where traces go, if anywhere.
    pub traces: Option<TraceSettings>,
    /// Where decisions are logged, if anywhere.
    pub decision_log: Option<DecisionLogSettings>,
}

impl ServeArgs {
    /// These settings and those of the file that they name, validated.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting or the file.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let args = match &self.config {
            None => self,
            Some(path) => {
                let file = config_file::read(path)?;
                self.or(file)
            }
        };
        args.validate()
    }

    fn validate(self) -> Result<Settings, ConfigError> {
        let retention = Retention::default();
        let retention = Retention {
            log: self.log_retention.unwrap_or(retention.log),
            log_entries: at_least(1, "--log-entries", self.log_entries, retention.log_entries)?,
            history: self.history_retention.unwrap_or(retention.history),
        };
        let (listen, admin, record) = (
            listen(self.listen.as_deref(), self.unix.as_deref(), self.webhook.is_some())?,
            optional(self.admin.as_deref().unwrap_or("127.0.0.1:9464")),
            self.record.as_deref().map(|text| address("--record", text)).transpose()?,
        );
        if let Some(admin) = admin
            && !matches!(admin.parse(), Ok(Address::Tcp(_)))
        {
            return Err(wrong("--admin", "must be HOST:PORT such as 127.0.0.1:9464, or none"));
        }
        let admin_checks = self.admin_checks.unwrap_or(false);
        if admin_checks && admin.is_none() {
            let why = "the form is on the admin listener's page: give --admin a loopback address, \
                       such as 127.0.0.1:9464";
            return Err(wrong("--admin-checks", why));
        }
        let max_staleness = self.max_staleness.unwrap_or(Duration::from_secs(5));
        if max_staleness < Duration::from_millis(10) || max_staleness > Duration::from_hours(24) {
            return Err(wrong("--max-staleness", "must be from 10ms to 24h, such as 5s"));
        }
        let decision_log = decision_log::of(&self)?;
        let ledger = self.ledger_args().address()?;
        let (snapshot, every) = (self.snapshot.as_deref(), self.snapshot_every.as_deref());
        let snapshot = snapshot::of(snapshot, every, &ledger)?;
        let files =
            used_files::of(&self, &ledger, decision_log.as_ref(), &listen, record.as_ref())?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Settings {
            decision_log,
            snapshot,
            ledger,
            new: self.new.unwrap_or(false),
            files,
            durability: durability(self.durability.as_deref().unwrap_or("ledger"))?,
            scrub_every: snapshot::scrub_every(self.scrub_every.as_deref().unwrap_or("10s"))?,
            synthetic: synthetic(self.synthetic.unwrap_or(0))?,
            ledger_cache: bytes_of(
                MIN_LEDGER_CACHE,
                "--ledger-cache",
                self.ledger_cache.unwrap_or(ByteSize::mib(64)),
            )?,
            retention,
            listen,
            admin: admin.map(str::to_owned),
            admin_checks,
            record,
            webhook: webhook::of(&self)?,
            record_token_file: self.record_token_file,
            max_staleness,
            policy: policy(
                self.window,
                self.window_margin,
                self.window_implies.as_deref(),
                self.stale_allow.as_deref(),
            )?,
            names: names(self.platform_names.as_deref())?,
            keywords: self.keywords.unwrap_or_default().settings()?,
            workers: at_most(MAX_WORKERS, "--workers", self.workers, cpus.min(2))?,
            max_connections: at_most(
                MAX_CONNECTIONS,
                "--max-connections",
                self.max_connections,
                1_024,
            )?,
            max_in_flight: at_least(1, "--max-in-flight", self.max_in_flight, 4_096)?,
            max_request_bytes: bytes_of(
                MIN_BYTES,
                "--max-request-bytes",
                self.max_request_bytes.unwrap_or(ByteSize::mib(64)),
            )?,
            max_connection_bytes: bytes_of(
                MIN_CONNECTION_BYTES,
                "--max-connection-bytes",
                self.max_connection_bytes.unwrap_or(ByteSize::mib(8)),
            )?,
            max_batch: at_least(1, "--max-batch", self.max_batch, 1_000)?,
            max_recipients: at_least(1, "--max-recipients", self.max_recipients, 10_000)?,
            max_watchers: self.max_watchers.unwrap_or(100),
            max_connection_age: self.max_connection_age.unwrap_or(Duration::from_hours(1)),
            drain_timeout: self.drain_timeout.unwrap_or(Duration::from_secs(10)),
            log: log(self.log.unwrap_or_else(|| "info".to_owned()))?,
            traces: traces(self.otlp_endpoint.as_deref(), self.otlp_sample.unwrap_or(0.01))?,
        })
    }
}

/// A setting that may be `none`.
fn optional(text: &str) -> Option<&str> {
    (text != "none").then_some(text)
}

fn durability(text: &str) -> Result<Durability, ConfigError> {
    text.parse().map_err(|error: NotADurability| wrong("--durability", error.to_string()))
}

fn synthetic(count: u64) -> Result<u64, ConfigError> {
    if count > MAX_PAIRS {
        return Err(wrong("--synthetic", format!("must be {MAX_PAIRS} or less")));
    }
    Ok(count)
}

fn address(setting: &'static str, text: &str) -> Result<Address, ConfigError> {
    text.parse().map_err(|error| wrong(setting, format!("{text:?} {error}")))
}

#[cfg(test)]
mod tests;
