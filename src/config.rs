//! Flags, environment variables and the configuration file become validated settings. Nothing else
//! reads the environment.
//!
//! The precedence is: flag, `CONSENTD_` variable, file, default. [`ServeArgs`] holds the settings as
//! they were given, [`Settings`] as they were validated. The settings of one subject, their flags and
//! their validation are in one file: [`listeners`], [`limits`] and so on.

#![allow(
    rustdoc::bare_urls,
    clippy::doc_markdown,
    reason = "the doc comments of flags are help texts, shown on a terminal"
)]

mod businesses;
mod config_file;
mod decision_log;
mod keywords;
mod ledger;
mod limits;
mod listeners;
mod policy;
mod storage;
mod telemetry;
mod tls;
mod used_files;
mod values;
mod webhook;
mod webhook_doctor;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

pub use self::businesses::{BusinessArgs, BusinessSource};
pub use self::decision_log::DecisionLogArgs;
pub use self::keywords::KeywordArgs;
pub use self::ledger::{LedgerAddress, LedgerArgs};
pub use self::limits::{LimitArgs, LimitSettings};
pub use self::listeners::{DEFAULT_GRPC_ADDRESS, ListenerArgs, Listeners};
pub use self::policy::{PastPolicyArgs, PolicyArgs, statement_names};
pub use self::storage::{StorageArgs, StorageSettings};
pub use self::telemetry::TelemetryArgs;
pub use self::tls::{RoleArgs, TlsArgs, TlsListener, TlsSettings};
pub use self::webhook::{
    WebhookArgs, WebhookListenerArgs, WebhookSettings, WebhookSources, WhatsappArgs,
};
pub use self::webhook_doctor::{DoctorArgs, ReceiverReview};
use crate::decision_log::DecisionLogSettings;
use crate::grpc::Roles;
use crate::net::socket::Address;
use crate::telemetry::TraceSettings;
use consentd_core::country_list::CountryList;
use consentd_core::decision::Policy;
use consentd_core::event::PlatformNames;
use consentd_core::keyword::KeywordSettings;
use consentd_os::files::UsedFile;
use consentd_os::io_hint;

/// The settings of a sidecar as they were given, by flags and variables or by the file.
///
/// The order of the groups is that of `serve --help`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Read further settings, keywords and WhatsApp's numbers from this TOML file; flags and
    /// environment override it
    #[arg(long, env = "CONSENTD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The ledger.
    #[command(flatten)]
    pub ledger: LedgerArgs,
    /// The businesses that the table holds.
    #[command(flatten)]
    pub businesses: BusinessArgs,
    /// The listeners, but for webhooks.
    #[command(flatten)]
    pub listeners: ListenerArgs,
    /// TLS on the listeners.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// The receiver of webhooks.
    #[command(flatten)]
    pub webhook: WebhookListenerArgs,
    /// The rules that an operator may set.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Bounds on threads, connections, calls, memory and time.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// The ledger's retention, appends, snapshots and scrub.
    #[command(flatten)]
    pub storage: StorageArgs,
    /// Log and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// The decision log.
    #[command(flatten)]
    pub decision_log: DecisionLogArgs,
    /// The table `[keywords]`, which the file alone can have.
    #[arg(skip)]
    pub keywords: Option<KeywordArgs>,
    /// The table `[whatsapp]`, which the file alone can have.
    #[arg(skip)]
    pub whatsapp: Option<WhatsappArgs>,
    /// The table `[roles]`, which the file alone can have.
    #[arg(skip)]
    pub roles: Option<RoleArgs>,
}

/// Why settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path}: {source}{}", io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is no TOML, or a value in it has the wrong type.
    #[error("{path}: {source}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error, with its line and column.
        source: Box<toml::de::Error>,
    },
    /// The file has an unknown key.
    #[error("{path}, line {line}: unknown key `{key}`; did you mean `{nearest}`?")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The known key that is spelt most alike.
        nearest: String,
    },
    /// A setting has an invalid value.
    #[error("{setting}: {why}")]
    Value {
        /// The setting's flag.
        setting: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
}

fn wrong(setting: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { setting, why: why.into() }
}

/// The validated settings of a sidecar.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The ledger.
    pub ledger: LedgerAddress,
    /// Where the businesses are named that the table holds, if it does not hold all.
    pub businesses: Option<BusinessSource>,
    /// The files that flags name, each of which serves one purpose alone.
    pub files: Vec<UsedFile>,
    /// What the ledger retains, what an append waits for, and the table's snapshots and scrub.
    pub storage: StorageSettings,
    /// Where the sidecar listens, but for webhooks.
    pub listeners: Listeners,
    /// TLS on the listeners, if they serve it.
    pub tls: Option<TlsSettings>,
    /// The roles of clients by the names in their certificates, if they count.
    pub roles: Option<Roles>,
    /// The receiver of webhooks, if there is one.
    pub webhook: Option<WebhookSettings>,
    /// The staleness of the table beyond which checks are denied.
    pub max_staleness: Duration,
    /// The rules that an operator may set.
    pub policy: Policy,
    /// The countries that get no marketing templates.
    pub blocked_countries: CountryList,
    /// The names by which a statement may call WhatsApp.
    pub names: PlatformNames,
    /// The keywords.
    pub keywords: KeywordSettings,
    /// Bounds on threads, connections, calls, memory and time.
    pub limits: LimitSettings,
    /// The filter of the process' log.
    pub log: String,
    /// The collector of traces, if there is one.
    pub traces: Option<TraceSettings>,
    /// The decision log, if there is one.
    pub decision_log: Option<DecisionLogSettings>,
}

impl ServeArgs {
    /// Parses the text of a configuration file.
    ///
    /// # Errors
    ///
    /// An error names the line and column.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        config_file::parse(text)
    }

    /// Merges these settings with those of the file that they name, and validates them.
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

    /// These settings; where one is unset, that of `weaker`.
    fn or(self, weaker: Self) -> Self {
        Self {
            config: self.config,
            ledger: self.ledger.or(weaker.ledger),
            businesses: self.businesses.or(weaker.businesses),
            listeners: self.listeners.or(weaker.listeners),
            tls: self.tls.or(weaker.tls),
            webhook: self.webhook.or(weaker.webhook),
            policy: self.policy.or(weaker.policy),
            limits: self.limits.or(weaker.limits),
            storage: self.storage.or(weaker.storage),
            telemetry: self.telemetry.or(weaker.telemetry),
            decision_log: self.decision_log.or(weaker.decision_log),
            keywords: self.keywords.or(weaker.keywords),
            whatsapp: self.whatsapp.or(weaker.whatsapp),
            roles: self.roles.or(weaker.roles),
        }
    }

    fn validate(self) -> Result<Settings, ConfigError> {
        let listeners = self.listeners.clone().validate(self.webhook.webhook.is_some())?;
        let max_staleness = self.policy.max_staleness()?;
        let names = self.policy.platform_names()?;
        let keywords = self.keywords.clone().unwrap_or_default().settings(&names)?;
        let decision_log = self.decision_log.validate()?;
        let ledger = self.ledger.address()?;
        let storage = self.storage.validate(&ledger)?;
        let is_tcp = |address: &Address| matches!(address, Address::Tcp(_));
        let tls = self.tls.clone().validate(|listener| match listener {
            TlsListener::Listen => listeners.listen.iter().any(is_tcp),
            TlsListener::Record => listeners.record.as_ref().is_some_and(is_tcp),
            TlsListener::Webhook => self.webhook.webhook.is_some(),
            TlsListener::Admin => listeners.admin.is_some(),
        })?;
        let files = used_files::collect(&self, &ledger, decision_log.as_ref(), &listeners)?;
        Ok(Settings {
            businesses: self.businesses.validate(&ledger)?,
            ledger,
            files,
            storage,
            listeners,
            roles: self.roles.as_ref().map(|roles| tls::roles(roles, &self.tls)).transpose()?,
            tls,
            webhook: self.webhook.validate(self.config.as_deref())?,
            max_staleness,
            policy: self.policy.policy()?,
            blocked_countries: self.policy.blocked_countries()?,
            names,
            keywords,
            limits: self.limits.validate()?,
            log: self.telemetry.log()?,
            traces: self.telemetry.traces()?,
            decision_log,
        })
    }
}

#[cfg(test)]
mod tests;
