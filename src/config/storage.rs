//! What the ledger retains, what an append waits for, and the table's snapshots and scrub.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;

use super::values::{at_least, bytes_of, number, size, span};
use super::{ConfigError, LedgerAddress, wrong};
use consentd_bench::fixture::MAX_PAIRS;
use consentd_ledger::{Durability, NotADurability, Retention};

/// The least of the ledger's file that is kept in memory, in bytes.
const MIN_LEDGER_CACHE_BYTES: usize = 1024 * 1024;

/// What the ledger retains, what an append waits for, and the table's snapshots and scrub.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct StorageArgs {
    /// How long the ledger's log, which names users, is kept [default: 24h]
    #[arg(long, env = "CONSENTD_LOG_RETENTION", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub log_retention: Option<Duration>,
    /// How many entries the ledger's log keeps at most [default: 1000000]
    #[arg(long, env = "CONSENTD_LOG_ENTRIES", value_name = "N", value_parser = number::<u64>)]
    pub log_entries: Option<u64>,
    /// How long inbound and failure events stay in histories; others stay for good [default: 90d]
    #[arg(long, env = "CONSENTD_HISTORY_RETENTION", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub history_retention: Option<Duration>,
    /// Make a new ledger in a file, in which nobody has opted out, though its folder has what a
    /// ledger leaves behind [default: false]
    #[arg(
        long, env = "CONSENTD_NEW", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
    )]
    pub new: Option<bool>,
    /// What an append in Redis waits for: ledger (what that Redis is configured for), replicas:N, or
    /// aof (synced; Redis 7.2) [default: ledger]
    #[arg(long, env = "CONSENTD_DURABILITY", value_name = "WHAT")]
    pub durability: Option<String>,
    /// Compare one bucket of the ledger in Redis with the table this often, or never
    /// [default: 10s]
    #[arg(long, env = "CONSENTD_SCRUB_EVERY", value_name = "TIME")]
    pub scrub_every: Option<String>,
    /// Save the table in this file and begin with it: a restart need not read all of the ledger in
    /// Redis
    #[arg(long, env = "CONSENTD_SNAPSHOT", value_name = "PATH")]
    pub snapshot: Option<PathBuf>,
    /// How often to save it beside the end of a drain, or never [default: 5m]
    #[arg(long, env = "CONSENTD_SNAPSHOT_EVERY", value_name = "TIME")]
    pub snapshot_every: Option<String>,
    /// How much of the ledger's file to keep in memory [default: 64MiB]
    #[arg(long, env = "CONSENTD_LEDGER_CACHE", value_name = "SIZE", value_parser = size)]
    pub ledger_cache: Option<ByteSize>,
    /// For load tests: hold this many pairs that nobody recorded, beside an empty ledger; `bench
    /// requests` asks about them [default: 0]
    #[arg(long, env = "CONSENTD_SYNTHETIC", value_name = "N")]
    pub synthetic: Option<u64>,
}

impl StorageArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            log_retention: self.log_retention.or(weaker.log_retention),
            log_entries: self.log_entries.or(weaker.log_entries),
            history_retention: self.history_retention.or(weaker.history_retention),
            new: self.new.or(weaker.new),
            durability: self.durability.or(weaker.durability),
            scrub_every: self.scrub_every.or(weaker.scrub_every),
            snapshot: self.snapshot.or(weaker.snapshot),
            snapshot_every: self.snapshot_every.or(weaker.snapshot_every),
            ledger_cache: self.ledger_cache.or(weaker.ledger_cache),
            synthetic: self.synthetic.or(weaker.synthetic),
        }
    }

    /// Validates the settings for this ledger.
    pub(super) fn validate(&self, ledger: &LedgerAddress) -> Result<StorageSettings, ConfigError> {
        let default = Retention::default();
        let retention = Retention {
            log: self.log_retention.unwrap_or(default.log),
            log_entries: at_least(1, "--log-entries", self.log_entries, default.log_entries)?,
            history: self.history_retention.unwrap_or(default.history),
        };
        let durability = self.durability.as_deref().unwrap_or("ledger");
        let scrub_every = self.scrub_every.as_deref().unwrap_or("10s");
        let ledger_cache = self.ledger_cache.unwrap_or(ByteSize::mib(64));
        let synthetic = self.synthetic.unwrap_or(0);
        if synthetic > MAX_PAIRS {
            return Err(wrong("--synthetic", format!("must be {MAX_PAIRS} or less")));
        }
        Ok(StorageSettings {
            retention,
            new: self.new.unwrap_or(false),
            snapshot: self.snapshot(ledger)?,
            durability: durability
                .parse()
                .map_err(|error: NotADurability| wrong("--durability", error.to_string()))?,
            scrub_every: interval("--scrub-every", scrub_every, Duration::from_millis(10), "10s")?,
            ledger_cache: bytes_of(MIN_LEDGER_CACHE_BYTES, "--ledger-cache", ledger_cache)?,
            synthetic,
        })
    }

    /// The table's snapshot file, and how often it is saved between the start and the drain.
    fn snapshot(
        &self,
        ledger: &LedgerAddress,
    ) -> Result<Option<(PathBuf, Option<Duration>)>, ConfigError> {
        let (path, every) = (self.snapshot.as_deref(), self.snapshot_every.as_deref());
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return match every {
                Some(_) => Err(wrong("--snapshot-every", "needs --snapshot, where to save it")),
                None => Ok(None),
            };
        };
        if matches!(ledger, LedgerAddress::File(_)) {
            let why = "is for a ledger in Redis: one in a file is read from there as fast";
            return Err(wrong("--snapshot", why));
        }
        if path.file_name().is_none() || path.is_dir() {
            let why = "must be a file's path, such as /var/lib/consentd/table";
            return Err(wrong("--snapshot", why));
        }
        let least = Duration::from_millis(100);
        let every = interval("--snapshot-every", every.unwrap_or("5m"), least, "5m")?;
        Ok(Some((path.to_owned(), every)))
    }
}

/// What the ledger retains, what an append waits for, and the table's snapshots and scrub.
#[derive(Clone, Debug)]
pub struct StorageSettings {
    /// How long the ledger keeps its log and its perishable history entries.
    pub retention: Retention,
    /// Whether a ledger's file is made although its folder shows that there was one.
    pub new: bool,
    /// What an append in Redis waits for.
    pub durability: Durability,
    /// How often one bucket of a ledger in Redis is compared with the table; never if unset.
    pub scrub_every: Option<Duration>,
    /// The table's snapshot file, and how often it is saved; at the drain alone if unset.
    pub snapshot: Option<(PathBuf, Option<Duration>)>,
    /// How much of the ledger's file is kept in memory, in bytes.
    pub ledger_cache: usize,
    /// The number of made-up pairs in the table, for load tests.
    pub synthetic: u64,
}

/// Parses a duration of at least `least`, or `never`.
fn interval(
    setting: &'static str,
    text: &str,
    least: Duration,
    example: &str,
) -> Result<Option<Duration>, ConfigError> {
    if text == "never" {
        return Ok(None);
    }
    let every = span(text).map_err(|why| wrong(setting, format!("{why}; or never")))?;
    if every < least {
        let least = humantime::format_duration(least);
        return Err(wrong(
            setting,
            format!("must be {least} or more, such as {example}, or never"),
        ));
    }
    Ok(Some(every))
}
