//! Settings of WhatsApp's webhooks. The configuration file and the secrets are reloaded while the
//! process runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use http::HeaderName;
use serde::Deserialize;

use super::values::{address, number, span, unless_none};
use super::{
    ConfigError, DecisionLogArgs, LedgerAddress, LedgerArgs, LimitArgs, ListenerArgs, PolicyArgs,
    ServeArgs, Settings, StorageArgs, TelemetryArgs, TlsArgs, config_file, wrong,
};
use crate::net::socket::Address;
use crate::secrets::Secrets;
use crate::webhook::{APP_SIGNATURE, ReceiverConfig, Signer};
use crate::whatsapp::Rules;
use consentd_core::hidden_chars;
use consentd_core::id::{BusinessId, PhoneNumberId};

/// Where `consentd webhook` listens by default.
pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// The most secrets of a setting at once: the current one, and those that it replaces.
const MAX_SECRETS: usize = 16;

/// The table `[whatsapp]` of the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WhatsappArgs {
    /// The business id of each `phone_number_id`.
    numbers: HashMap<String, String>,
    /// The business id of each WhatsApp business account, for updates about templates.
    accounts: HashMap<String, String>,
    /// The types of messages that open the window, in place of the default ones.
    opens_window: Option<Vec<String>>,
    /// Whether a `signup` among the preferences is an opt-in; false by default, as it is undocumented.
    undocumented_signup: bool,
}

impl WhatsappArgs {
    pub(super) fn rules(self) -> Result<Rules, ConfigError> {
        let bad = |why: String| Err(wrong("whatsapp", why));
        if self.numbers.is_empty() {
            return bad("name the business of each phone_number_id in [whatsapp.numbers], as in \
                        106540352242922 = \"acme\""
                .to_owned());
        }
        for (number, business) in &self.numbers {
            if let Some(hidden) = hidden_chars::find(number) {
                return bad(format!("numbers: {number}: the phone_number_id {hidden}"));
            }
            // Stops are kept by the number, and a stop whose number cannot be kept is one at any number.
            if let Err(violation) = PhoneNumberId::parse(number) {
                return bad(format!("numbers: {number}: {violation}"));
            }
            if let Err(violation) = BusinessId::parse(business) {
                return bad(format!("numbers: {number}: {violation}"));
            }
        }
        for (account, business) in &self.accounts {
            if let Some(hidden) = hidden_chars::find(account) {
                return bad(format!("accounts: {account}: the account's id {hidden}"));
            }
            if let Err(violation) = BusinessId::parse(business) {
                return bad(format!("accounts: {account}: {violation}"));
            }
        }
        let mut rules = Rules::new(self.numbers);
        rules.accounts = self.accounts;
        rules.takes_signup = self.undocumented_signup;
        if let Some(types) = self.opens_window {
            if types.iter().any(|kind| kind.trim() != kind || kind.is_empty()) {
                return bad("opens-window: must be types of messages, such as text".to_owned());
            }
            // The parser of webhooks compares types in lower case.
            rules.opens_window = types.iter().map(|kind| kind.to_ascii_lowercase()).collect();
        }
        Ok(rules)
    }
}

/// Settings of the receiver of webhooks.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Its address, `HOST:PORT`.
    pub address: String,
    /// The files of its secrets and numbers.
    pub sources: WebhookSources,
}

/// The files of the receiver's secrets and numbers, which can be reloaded.
#[derive(Clone, Debug)]
pub struct WebhookSources {
    config: PathBuf,
    app_secrets: Vec<PathBuf>,
    /// The header that a BSP signs in, and the files of its secrets.
    provider: Option<(HeaderName, Vec<PathBuf>)>,
    verify_token: Option<PathBuf>,
}

impl WebhookSources {
    /// The headers that a request may be signed in.
    pub(super) fn headers(&self) -> Vec<String> {
        let app = (!self.app_secrets.is_empty()).then(|| APP_SIGNATURE.to_owned());
        let provider = self.provider.as_ref().map(|(header, _)| header.to_string());
        app.into_iter().chain(provider).collect()
    }

    /// Reads the files as they are now.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file or the setting, and quotes no secret.
    pub fn read(&self) -> Result<ReceiverConfig, ConfigError> {
        let secrets = |setting, paths: &[PathBuf]| {
            Secrets::read(paths.iter().map(PathBuf::as_path), MAX_SECRETS)
                .map_err(|error| wrong(setting, error.to_string()))
        };
        let mut signers = Vec::with_capacity(2);
        if !self.app_secrets.is_empty() {
            signers.push(Signer::app(secrets("--webhook-app-secret-file", &self.app_secrets)?));
        }
        if let Some((header, paths)) = &self.provider {
            let secrets = secrets("--webhook-signature-secret-file", paths)?;
            signers.push(Signer::provider(header.clone(), secrets));
        }
        let token = self.verify_token.as_ref().map(std::slice::from_ref);
        let rules = config_file::read(&self.config)?.whatsapp.unwrap_or_default().rules()?;
        Ok(ReceiverConfig {
            signers,
            verify_tokens: token
                .map(|token| secrets("--webhook-verify-token-file", token))
                .transpose()?,
            rules,
        })
    }
}

/// Where `consentd serve` receives webhooks, and the secrets of their sender.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct WebhookListenerArgs {
    /// Receive WhatsApp's webhooks here over HTTP and record what they say: HOST:PORT, or none;
    /// needs the app's secret and the verify token, or a BSP's header and secret, and
    /// [whatsapp.numbers] in --config [default: none]
    #[arg(long, env = "CONSENTD_WEBHOOK", value_name = "ADDR")]
    pub webhook: Option<String>,
    /// The app's secret, by which webhooks are signed; one a line, and as many files as you like
    /// (in the variable with commas between): each is accepted, so that the secret can be replaced;
    /// read again when it changes
    #[arg(
        long,
        env = "CONSENTD_WEBHOOK_APP_SECRET_FILE",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub webhook_app_secret_file: Option<Vec<PathBuf>>,
    /// The token that the platform gives in its handshake; read again when it changes
    #[arg(long, env = "CONSENTD_WEBHOOK_VERIFY_TOKEN_FILE", value_name = "FILE")]
    pub webhook_verify_token_file: Option<PathBuf>,
    /// The signature of a BSP.
    #[command(flatten)]
    #[serde(skip)]
    pub provider: ProviderArgs,
}

/// The signature of a BSP that passes Meta's webhooks on.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ProviderArgs {
    /// The header in which a BSP that passes Meta's body on signs it by HMAC-SHA256, such as
    /// x-360dialog-signature; in addition to the app's signature, or in its place
    #[arg(long, env = "CONSENTD_WEBHOOK_SIGNATURE_HEADER", value_name = "NAME")]
    pub webhook_signature_header: Option<String>,
    /// The BSP's secret for that header, as the app's is given; read again when it changes
    #[arg(
        long,
        env = "CONSENTD_WEBHOOK_SIGNATURE_SECRET_FILE",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub webhook_signature_secret_file: Option<Vec<PathBuf>>,
}

impl ProviderArgs {
    fn or(self, weaker: Self) -> Self {
        Self {
            webhook_signature_header: self
                .webhook_signature_header
                .or(weaker.webhook_signature_header),
            webhook_signature_secret_file: self
                .webhook_signature_secret_file
                .or(weaker.webhook_signature_secret_file),
        }
    }

    /// The header and its files; nothing if neither is given.
    fn validate(&self) -> Result<Option<(HeaderName, Vec<PathBuf>)>, ConfigError> {
        const HEADER: &str = "--webhook-signature-header";
        let files = self.webhook_signature_secret_file.clone().filter(|files| !files.is_empty());
        let (name, files) = match (self.webhook_signature_header.as_deref(), files) {
            (None, None) => return Ok(None),
            (Some(name), Some(files)) => (name.trim(), files),
            (Some(_), None) => {
                return Err(wrong(HEADER, "needs --webhook-signature-secret-file: its secret"));
            }
            (None, Some(_)) => {
                let why = "needs --webhook-signature-header: the header that it signs in";
                return Err(wrong("--webhook-signature-secret-file", why));
            }
        };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            wrong(HEADER, "must be the name of an HTTP header, such as x-360dialog-signature")
        })?;
        if header.as_str() == APP_SIGNATURE {
            let why = "X-Hub-Signature-256 has the app's signature: its secret belongs into \
                       --webhook-app-secret-file";
            return Err(wrong(HEADER, why));
        }
        Ok(Some((header, files)))
    }
}

impl WebhookListenerArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            webhook: self.webhook.or(weaker.webhook),
            webhook_app_secret_file: self
                .webhook_app_secret_file
                .or(weaker.webhook_app_secret_file),
            webhook_verify_token_file: self
                .webhook_verify_token_file
                .or(weaker.webhook_verify_token_file),
            provider: self.provider.or(weaker.provider),
        }
    }

    /// Validates the receiver, if one is configured. Its secrets and numbers are read once, so that
    /// a mistake in them is reported at the start.
    pub(super) fn validate(
        &self,
        config: Option<&Path>,
    ) -> Result<Option<WebhookSettings>, ConfigError> {
        let Some(listen) = self.webhook.as_deref().and_then(unless_none) else {
            return Ok(None);
        };
        if !matches!(address("--webhook", listen)?, Address::Tcp(_)) {
            return Err(wrong("--webhook", "must be HOST:PORT such as 127.0.0.1:8080, or none"));
        }
        let needs = |what: &str| wrong("--webhook", format!("needs {what}"));
        let config = config.map(Path::to_owned).ok_or_else(|| {
            needs(
                "--config FILE with [whatsapp.numbers]: which phone_number_id is which business's",
            )
        })?;
        let provider = self.provider.validate()?;
        let app_secrets = self.webhook_app_secret_file.clone().unwrap_or_default();
        let verify_token = self.webhook_verify_token_file.clone();
        if app_secrets.is_empty() && provider.is_none() {
            return Err(needs(
                "--webhook-app-secret-file: the app's secret, by which requests are signed; or \
                 --webhook-signature-header and its secret, of a BSP that passes them on",
            ));
        }
        if verify_token.is_none() && !app_secrets.is_empty() {
            return Err(needs(
                "--webhook-verify-token-file: the token that you give the platform beside the URL",
            ));
        }
        let sources = WebhookSources { config, app_secrets, provider, verify_token };
        sources.read()?;
        Ok(Some(WebhookSettings { address: listen.to_owned(), sources }))
    }
}

/// Flags of `consentd webhook`.
#[derive(Args, Clone, Debug)]
pub struct WebhookArgs {
    /// Read further settings from this TOML file, [whatsapp.numbers] above all; it is read again
    /// when it changes, and on SIGHUP
    #[arg(long, env = "CONSENTD_CONFIG", value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Where to receive webhooks over HTTP: HOST:PORT [default: 127.0.0.1:8080]
    #[arg(long, env = "CONSENTD_WEBHOOK", value_name = "ADDR")]
    listen: Option<String>,
    /// The app's secret, by which requests are signed; one a line, and as many files as you like:
    /// each of them is good, so that the secret can be replaced
    #[arg(
        long,
        env = "CONSENTD_WEBHOOK_APP_SECRET_FILE",
        value_name = "FILE",
        value_delimiter = ','
    )]
    webhook_app_secret_file: Option<Vec<PathBuf>>,
    /// The token that the platform gives in its handshake
    #[arg(long, env = "CONSENTD_WEBHOOK_VERIFY_TOKEN_FILE", value_name = "FILE")]
    webhook_verify_token_file: Option<PathBuf>,
    #[command(flatten)]
    provider: ProviderArgs,
    /// Where to serve a page for people, /metrics, /livez and /readyz over HTTP: HOST:PORT, or none
    /// [default: 127.0.0.1:9464]
    #[arg(long, env = "CONSENTD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// Serve /livez and /readyz here too, without TLS, for probes that have no certificate: HOST:PORT, or
    /// none [default: none]
    #[arg(long, env = "CONSENTD_PROBES", value_name = "ADDR")]
    probes: Option<String>,
    /// What an append in Redis waits for: ledger, replicas:N, or aof [default: ledger]
    #[arg(long, env = "CONSENTD_DURABILITY", value_name = "WHAT")]
    durability: Option<String>,
    /// How long the ledger's log, which names users, is kept [default: 24h]
    #[arg(long, env = "CONSENTD_LOG_RETENTION", value_name = "TIME", value_parser = span)]
    log_retention: Option<std::time::Duration>,
    /// How many entries the ledger's log keeps at most [default: 1000000]
    #[arg(long, env = "CONSENTD_LOG_ENTRIES", value_name = "N", value_parser = number::<u64>)]
    log_entries: Option<u64>,
    /// How long inbound and failure events stay in histories; others stay for good [default: 90d]
    #[arg(long, env = "CONSENTD_HISTORY_RETENTION", value_name = "TIME", value_parser = span)]
    history_retention: Option<std::time::Duration>,
    /// Names by which a statement may call WhatsApp, comma-separated, in place of the built-in ones
    #[arg(long, env = "CONSENTD_PLATFORM_NAMES", value_name = "NAMES")]
    platform_names: Option<String>,
    /// What the statement of an opt-in must name: whatsapp-and-business, or business, which takes a
    /// general one too [default: whatsapp-and-business]
    #[arg(long, env = "CONSENTD_STATEMENT_NAMES", value_name = "WHAT")]
    statement_names: Option<String>,
    /// Threads that serve [default: 2, or the CPUs that this process may use where that is less]
    #[arg(
        long, env = "CONSENTD_WORKERS", value_name = "N", value_parser = number::<usize>
    )]
    workers: Option<usize>,
    /// How long a shutdown waits for what was begun [default: 10s]
    #[arg(long, env = "CONSENTD_DRAIN_TIMEOUT", value_name = "TIME", value_parser = span)]
    drain_timeout: Option<std::time::Duration>,
    /// What to log: a level, or directives such as info,consentd=debug [default: info]
    #[arg(long, env = "CONSENTD_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl WebhookArgs {
    /// Merges the flags with the file and validates both, for a process that only receives webhooks.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting or the file.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        // The command line requires it.
        let config = self.config.ok_or_else(|| wrong("--config", "is needed"))?;
        let mut file = config_file::read(&config)?;
        // A file that is shared with a sidecar has settings that are not for this process.
        file.listeners = ListenerArgs {
            admin: file.listeners.admin.take(),
            probes: file.listeners.probes.take(),
            ..ListenerArgs::default()
        };
        file.storage.snapshot = None;
        file.storage.snapshot_every = None;
        file.storage.new = None;
        file.storage.synthetic = None;
        file.decision_log = DecisionLogArgs::default();
        file.tls = TlsArgs::default();
        file.roles = None;
        let address = self.listen.or_else(|| file.webhook.webhook.take());
        let flags = ServeArgs {
            config: Some(config),
            ledger: self.ledger,
            listeners: ListenerArgs {
                listen: Some("none".to_owned()),
                admin: self.admin,
                probes: self.probes,
                ..ListenerArgs::default()
            },
            tls: self.tls,
            webhook: WebhookListenerArgs {
                webhook: Some(address.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())),
                webhook_app_secret_file: self.webhook_app_secret_file,
                webhook_verify_token_file: self.webhook_verify_token_file,
                provider: self.provider,
            },
            storage: StorageArgs {
                durability: self.durability,
                log_retention: self.log_retention,
                log_entries: self.log_entries,
                history_retention: self.history_retention,
                ..StorageArgs::default()
            },
            policy: PolicyArgs {
                platform_names: self.platform_names,
                statement_names: self.statement_names,
                ..PolicyArgs::default()
            },
            limits: LimitArgs {
                workers: self.workers,
                drain_timeout: self.drain_timeout,
                ..LimitArgs::default()
            },
            telemetry: TelemetryArgs { log: self.log, ..TelemetryArgs::default() },
            ..ServeArgs::default()
        };
        let settings = flags.or(file).validate()?;
        if settings.webhook.is_none() {
            return Err(wrong("--listen", "must be HOST:PORT such as 127.0.0.1:8080"));
        }
        if matches!(settings.ledger, LedgerAddress::File(_)) {
            let why = "a file belongs to one process: give --webhook to the `consentd serve` that \
                       has it, or keep the ledger in Redis";
            return Err(wrong("--ledger", why));
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Rules, ConfigError> {
        config_file::parse(text).unwrap().whatsapp.unwrap_or_default().rules()
    }

    #[test]
    fn numbers_and_types_are_read() {
        let text = "[whatsapp]\nopens-window = [\"text\"]\n[whatsapp.numbers]\n12 = \"acme\"";
        let rules = rules(text).unwrap();
        assert_eq!(rules.numbers["12"], "acme");
        assert_eq!(rules.opens_window.len(), 1);
        assert!(!rules.takes_signup);
    }

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        webhook: WebhookArgs,
    }

    #[test]
    fn receiver_keeps_the_ledger_as_its_flags_say_and_writes_no_decision_log() {
        use clap::Parser as _;
        use std::time::Duration;

        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let shared = "decision-log = \"/nowhere/log\"\nhistory-retention = \"30d\"\n\
                      log-retention = \"48h\"\n[whatsapp.numbers]\n12 = \"acme\"\n";
        std::fs::write(at("config"), shared).unwrap();
        let (config, secret, token) = (at("config"), at("secret"), at("token"));
        for path in [&secret, &token] {
            std::fs::write(path, "0123456789abcdef0123456789abcdef").unwrap();
        }
        let line = ["webhook", "--config", &config, "--ledger", "redis://127.0.0.1"];
        let files = ["--webhook-app-secret-file", &secret, "--webhook-verify-token-file", &token];
        let flags = ["--history-retention", "365d", "--platform-names", "Zap"];
        let settings = |flags: &[&str]| {
            let line = [&line[..], &files, flags].concat();
            Command::parse_from(line).webhook.settings()
        };
        let by_file = settings(&[]).unwrap();
        assert!(by_file.decision_log.is_none());
        assert_eq!(by_file.storage.retention.history, Duration::from_hours(30 * 24));
        let by_flag = settings(&flags).unwrap();
        assert_eq!(by_flag.storage.retention.history, Duration::from_hours(365 * 24));
        assert_eq!(by_flag.storage.retention.log, Duration::from_hours(48));
        let opt_in = "[[keywords.business.acme.opt-in]]\nwords = [\"begin\"]\n\
                      category = \"marketing\"\nstatement = \"offers from Acme on Zap\"\n\
                      business-name = \"Acme\"\n";
        std::fs::write(at("config"), format!("{shared}{opt_in}")).unwrap();
        assert!(settings(&[]).is_err());
        assert!(settings(&flags).is_ok(), "the keyword's statement is judged by the same names");
        assert!(settings(&["--statement-names", "business"]).is_ok(), "and by the same rule");
        assert!(settings(&["--statement-names", "acme"]).is_err());
    }

    #[test]
    fn invalid_setting_is_named() {
        for (text, part) in [
            ("", "whatsapp.numbers"),
            ("[whatsapp.numbers]\n12 = \"\"", "numbers: 12: "),
            ("[whatsapp.numbers]\n1 = \"a\"\n[whatsapp.accounts]\n12 = \"\"", "accounts: 12: "),
            ("[whatsapp.numbers]\n12 = \"acme \"", "U+0020 SPACE at byte 4"),
            ("[whatsapp.numbers]\n\"1\u{200b}2\" = \"acme\"", "U+200B ZERO WIDTH SPACE at byte 1"),
            ("[whatsapp]\nopens-window = [\"\"]\n[whatsapp.numbers]\n1 = \"a\"", "opens-window"),
        ] {
            let error = rules(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = |args: &WebhookListenerArgs, config| {
            args.validate(config).expect_err("something is missing").to_string()
        };
        let mut args = WebhookListenerArgs {
            webhook: Some("[::1]:0".into()),
            ..WebhookListenerArgs::default()
        };
        assert!(error(&args, None).contains("--config"));
        let config = Some(Path::new("a"));
        assert!(error(&args, config).contains("--webhook-app-secret-file"));
        args.webhook_app_secret_file = Some(vec!["a".into()]);
        assert!(error(&args, config).contains("--webhook-verify-token-file"));
        args.webhook = Some("unix:/a".into());
        assert!(error(&args, config).contains("HOST:PORT"));
    }
}
