//! What is said of WhatsApp's webhooks, by flags and by the file; the file and the secrets are
//! read anew while the process runs.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::{ConfigError, LedgerAddress, LedgerArgs, ServeArgs, Settings, config_file, wrong};
use crate::net::socket::Address;
use crate::webhook::{Secrets, Setup};
use crate::whatsapp::Rules;
use consentd_core::hidden;
use consentd_core::id::BusinessId;

/// Where `consentd webhook` listens, where nothing is said of it.
const LISTEN: &str = "127.0.0.1:8080";

/// What the file says of WhatsApp.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct WhatsappArgs {
    /// The business of each `phone_number_id`.
    numbers: HashMap<String, String>,
    /// The types of messages that open the window, in place of the built-in ones.
    opens_window: Option<Vec<String>>,
}

impl WhatsappArgs {
    fn rules(self) -> Result<Rules, ConfigError> {
        let bad = |why: String| Err(wrong("whatsapp", why));
        if self.numbers.is_empty() {
            return bad("name the business of each phone_number_id in [whatsapp.numbers], as in \
                        106540352242922 = \"acme\""
                .to_owned());
        }
        for (number, business) in &self.numbers {
            if let Some(hidden) = hidden::find(number) {
                return bad(format!("numbers: {number}: the phone_number_id {hidden}"));
            }
            if let Err(violation) = BusinessId::parse(business) {
                return bad(format!("numbers: {number}: {violation}"));
            }
        }
        let mut rules = Rules::new(self.numbers);
        if let Some(types) = self.opens_window {
            if types.iter().any(|kind| kind.trim() != kind || kind.is_empty()) {
                return bad("opens-window: must be types of messages, such as text".to_owned());
            }
            // The types of webhooks are read in lower case, too.
            rules.opens_window = types.iter().map(|kind| kind.to_ascii_lowercase()).collect();
        }
        Ok(rules)
    }
}

/// A receiver of webhooks.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// Where it listens, `HOST:PORT`.
    pub address: String,
    /// From where the rest is read.
    pub sources: WebhookSources,
}

/// From where a receiver's secrets and numbers are read, and read again.
#[derive(Clone, Debug)]
pub struct WebhookSources {
    config: PathBuf,
    app_secrets: Vec<PathBuf>,
    verify_token: PathBuf,
}

impl WebhookSources {
    /// Reads them as they are now.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the file or the setting, and quotes no secret.
    pub fn read(&self) -> Result<Setup, ConfigError> {
        let secrets = |setting, paths: &[PathBuf]| {
            Secrets::read(paths.iter().map(PathBuf::as_path))
                .map_err(|error| wrong(setting, error.to_string()))
        };
        Ok(Setup {
            app_secrets: secrets("--webhook-app-secret-file", &self.app_secrets)?,
            verify_tokens: secrets(
                "--webhook-verify-token-file",
                std::slice::from_ref(&self.verify_token),
            )?,
            rules: config_file::read(&self.config)?.whatsapp.unwrap_or_default().rules()?,
        })
    }
}

/// The receiver that is asked for, if any. All that it needs is read once, so that what is wrong
/// is told at the start.
pub(super) fn of(args: &ServeArgs) -> Result<Option<WebhookSettings>, ConfigError> {
    let Some(address) = args.webhook.as_deref().and_then(super::optional) else {
        return Ok(None);
    };
    if !matches!(super::address("--webhook", address)?, Address::Tcp(_)) {
        return Err(wrong("--webhook", "must be HOST:PORT such as 127.0.0.1:8080, or none"));
    }
    let needs = |what: &str| wrong("--webhook", format!("needs {what}"));
    let config = args.config.clone().ok_or_else(|| {
        needs("--config FILE with [whatsapp.numbers]: which phone_number_id is which business's")
    })?;
    let app_secrets = args.webhook_app_secret_file.clone().filter(|paths| !paths.is_empty());
    let app_secrets = app_secrets.ok_or_else(|| {
        needs("--webhook-app-secret-file: the app's secret, by which requests are signed")
    })?;
    let verify_token = args.webhook_verify_token_file.clone().ok_or_else(|| {
        needs("--webhook-verify-token-file: the token that you give the platform beside the URL")
    })?;
    let sources = WebhookSources { config, app_secrets, verify_token };
    sources.read()?;
    Ok(Some(WebhookSettings { address: address.to_owned(), sources }))
}

/// What is said to `consentd webhook`.
#[allow(
    rustdoc::bare_urls,
    clippy::doc_markdown,
    reason = "these comments are the help that a terminal shows"
)]
#[derive(Args, Clone, Debug)]
pub struct WebhookArgs {
    /// Read further settings from this TOML file, [whatsapp.numbers] above all; it is read again
    /// when it changes, and on SIGHUP
    #[arg(long, env = "CONSENTD_CONFIG", value_name = "FILE")]
    config: PathBuf,
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
    /// Where to serve a page for people, /metrics, /livez and /readyz over HTTP: HOST:PORT, or none
    /// [default: 127.0.0.1:9464]
    #[arg(long, env = "CONSENTD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// What an append in Redis waits for: ledger, replicas:N, or aof [default: ledger]
    #[arg(long, env = "CONSENTD_DURABILITY", value_name = "WHAT")]
    durability: Option<String>,
    /// Threads that serve [default: 2, or the CPUs that this process may use where that is less]
    #[arg(
        long, env = "CONSENTD_WORKERS", value_name = "N", value_parser = super::number::<usize>
    )]
    workers: Option<usize>,
    /// How long a shutdown waits for what was begun [default: 10s]
    #[arg(long, env = "CONSENTD_DRAIN_TIMEOUT", value_name = "TIME", value_parser = super::span)]
    drain_timeout: Option<std::time::Duration>,
    /// What to log: a level, or directives such as info,consentd=debug [default: info]
    #[arg(long, env = "CONSENTD_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl WebhookArgs {
    /// These settings and those of the file, validated: a sidecar that only receives webhooks.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting or the file.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        let mut weaker = config_file::read(&self.config)?;
        // What of a sidecar's file is not for this command.
        weaker.unix = None;
        weaker.record = None;
        weaker.record_token_file = None;
        weaker.admin_checks = None;
        weaker.snapshot = None;
        weaker.snapshot_every = None;
        weaker.new = None;
        weaker.synthetic = None;
        let listen = self.listen.or_else(|| weaker.webhook.take());
        let said = ServeArgs {
            config: Some(self.config),
            listen: Some("none".to_owned()),
            webhook: Some(listen.unwrap_or_else(|| LISTEN.to_owned())),
            webhook_app_secret_file: self.webhook_app_secret_file,
            webhook_verify_token_file: self.webhook_verify_token_file,
            admin: self.admin,
            durability: self.durability,
            workers: self.workers,
            drain_timeout: self.drain_timeout,
            log: self.log,
            ..self.ledger.into_serve_args()
        };
        let settings = said.or(weaker).validate()?;
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
        toml::from_str::<ServeArgs>(text).unwrap().whatsapp.unwrap_or_default().rules()
    }

    #[test]
    fn numbers_and_types_are_read() {
        let text = "[whatsapp]\nopens-window = [\"text\"]\n[whatsapp.numbers]\n12 = \"acme\"";
        let rules = rules(text).unwrap();
        assert_eq!(rules.numbers["12"], "acme");
        assert_eq!(rules.opens_window.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "whatsapp.numbers"),
            ("[whatsapp.numbers]\n12 = \"\"", "numbers: 12: "),
            ("[whatsapp.numbers]\n12 = \"acme \"", "U+0020 SPACE at byte 4"),
            ("[whatsapp.numbers]\n\"1\u{200b}2\" = \"acme\"", "U+200B ZERO WIDTH SPACE at byte 1"),
            ("[whatsapp]\nopens-window = [\"\"]\n[whatsapp.numbers]\n1 = \"a\"", "opens-window"),
        ] {
            let said = rules(text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
        let said = |args: ServeArgs| match of(&args) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("nothing is wrong"),
        };
        let mut args = ServeArgs { webhook: Some("[::1]:0".into()), ..ServeArgs::default() };
        assert!(said(args.clone()).contains("--config"));
        args.config = Some("a".into());
        assert!(said(args.clone()).contains("--webhook-app-secret-file"));
        args.webhook_app_secret_file = Some(vec!["a".into()]);
        assert!(said(args.clone()).contains("--webhook-verify-token-file"));
        args.webhook = Some("unix:/a".into());
        assert!(said(args).contains("HOST:PORT"));
    }
}
