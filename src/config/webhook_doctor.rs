//! The settings of `consentd webhook doctor`: those of the receiver that it examines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::values::{address, span, unless_none};
use super::webhook::DEFAULT_ADDRESS;
use super::{ConfigError, LedgerAddress, LedgerArgs, WebhookListenerArgs, config_file, wrong};
use crate::net::socket::Address;

/// Where a receiver serves its metrics by default.
const DEFAULT_ADMIN: &str = "127.0.0.1:9464";

/// The most receivers that are asked.
const MAX_RECEIVERS: usize = 64;

/// Which receiver is examined: the flags and variables of the receiver itself.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// The receiver's TOML file, which has [whatsapp.numbers]
    #[arg(long, env = "CONSENTD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Where the receiver serves /metrics: HOST:PORT, and with commas between as many as there are
    /// behind one address; the latest of what they say counts [default: 127.0.0.1:9464]
    #[arg(long, env = "CONSENTD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// How long a number may have got no message before that is a finding
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    silent_after: Duration,
    #[command(flatten)]
    webhook: WebhookListenerArgs,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// What the configuration of a receiver says.
#[derive(Debug)]
pub struct ReceiverReview {
    /// The business of each `phone_number_id`.
    pub numbers: BTreeMap<String, String>,
    /// Where it receives.
    pub listen: String,
    /// Where it serves metrics, in each of its processes.
    pub admin: Vec<String>,
    /// The ledger, where one is named.
    pub ledger: Option<LedgerAddress>,
    /// What keeps a receiver from starting.
    pub unusable: Option<ConfigError>,
    /// The headers that a request may be signed in.
    pub signed_in: Vec<String>,
    /// How long a number may be silent.
    pub silent_after: Duration,
}

impl DoctorArgs {
    /// Reads the configuration as the receiver does. What the receiver could not start with is part of
    /// the review.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the file or its numbers cannot be read, or a flag's value is invalid.
    pub fn review(self) -> Result<ReceiverReview, ConfigError> {
        let file = config_file::read(&self.config)?;
        let numbers = file.whatsapp.clone().unwrap_or_default().rules()?.numbers;
        let admin = self.admin.or(file.listeners.admin);
        let ledger = self.ledger.or(file.ledger);
        let is_named = ledger.ledger.is_some();
        let mut webhook = self.webhook.or(file.webhook);
        let listen = webhook.webhook.get_or_insert_with(|| DEFAULT_ADDRESS.to_owned()).clone();
        let (signed_in, unusable) = match webhook.validate(Some(&self.config)) {
            Ok(settings) => (settings.map_or_else(Vec::new, |one| one.sources.headers()), None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Ok(ReceiverReview {
            numbers: numbers.into_iter().collect(),
            listen,
            admin: admin_addresses(admin.as_deref().unwrap_or(DEFAULT_ADMIN))?,
            ledger: is_named.then(|| ledger.address()).transpose()?,
            unusable,
            signed_in,
            silent_after: self.silent_after,
        })
    }
}

/// The addresses of `--admin`.
fn admin_addresses(text: &str) -> Result<Vec<String>, ConfigError> {
    let Some(text) = unless_none(text) else {
        let why = "the receiver must serve /metrics, from which the doctor knows what arrived";
        return Err(wrong("--admin", why));
    };
    let mut addresses = Vec::new();
    for one in text.split(',').map(str::trim) {
        let Address::Tcp(address) = address("--admin", one)? else {
            return Err(wrong("--admin", "must be HOST:PORT such as 127.0.0.1:9464"));
        };
        addresses.push(address);
    }
    if addresses.len() > MAX_RECEIVERS {
        return Err(wrong("--admin", format!("names more than {MAX_RECEIVERS} receivers")));
    }
    Ok(addresses)
}
