//! Which ledger is used, and how to connect to it: for `serve`, and for the commands on a ledger.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::values::number;
use super::{ConfigError, wrong};
use consentd_ledger::{Target, TargetOptions};

/// The ledger that is used if none is named.
const DEFAULT: &str = "file:consentd.redb";
/// The variable that holds the password of a Redis. It has no flag: every user of a machine can
/// read the flags of its processes.
const PASSWORD: &str = "CONSENTD_LEDGER_PASSWORD";
/// The variable that holds the password of its Sentinels.
const SENTINEL_PASSWORD: &str = "CONSENTD_LEDGER_SENTINEL_PASSWORD";

/// Which ledger is used, and how to connect to it.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LedgerArgs {
    /// The ledger: file:PATH, made where there is none; or redis://HOST:PORT/DB,
    /// rediss:// with TLS, redis+unix:///PATH?db=N,
    /// redis+sentinel://HOST:PORT,HOST:PORT/MASTER (rediss+sentinel:// with TLS), or
    /// redis+cluster://HOST:PORT,HOST:PORT (rediss+cluster:// with TLS)
    /// [default: file:consentd.redb]
    #[arg(long, env = "CONSENTD_LEDGER", value_name = "LEDGER", hide_env_values = true)]
    pub ledger: Option<String>,
    /// The user at the ledger's Redis; its password is in --ledger-password-file or in
    /// CONSENTD_LEDGER_PASSWORD
    #[arg(long, env = "CONSENTD_LEDGER_USER", value_name = "USER")]
    pub ledger_user: Option<String>,
    /// The file that holds the password at the ledger's Redis; read at every connection
    #[arg(long, env = "CONSENTD_LEDGER_PASSWORD_FILE", value_name = "FILE")]
    pub ledger_password_file: Option<PathBuf>,
    /// The database in the ledger's Redis [default: 0]
    #[arg(
        long, env = "CONSENTD_LEDGER_DATABASE", value_name = "N",
        value_parser = number::<u32>,
    )]
    pub ledger_database: Option<u32>,
    /// The CA certificates to trust the ledger's Redis by, in place of the system's; its name
    /// is always verified; read at every connection
    #[arg(long, env = "CONSENTD_LEDGER_CA_FILE", value_name = "FILE")]
    pub ledger_ca_file: Option<PathBuf>,
    /// Our certificate for the ledger's Redis; read at every connection
    #[arg(long, env = "CONSENTD_LEDGER_CERT_FILE", value_name = "FILE")]
    pub ledger_cert_file: Option<PathBuf>,
    /// The key of that certificate; read at every connection
    #[arg(long, env = "CONSENTD_LEDGER_KEY_FILE", value_name = "FILE")]
    pub ledger_key_file: Option<PathBuf>,
    /// The user at the Sentinels; its password is in --ledger-sentinel-password-file or in
    /// CONSENTD_LEDGER_SENTINEL_PASSWORD
    #[arg(long, env = "CONSENTD_LEDGER_SENTINEL_USER", value_name = "USER")]
    pub ledger_sentinel_user: Option<String>,
    /// The file that holds the password at the Sentinels; read at every connection
    #[arg(long, env = "CONSENTD_LEDGER_SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub ledger_sentinel_password_file: Option<PathBuf>,
    /// Follow a primary behind Sentinels that has min-replicas-to-write 0: cut off from
    /// them, it would go on proving itself [default: false]
    #[arg(
        long, env = "CONSENTD_ACCEPT_UNFENCED", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
    )]
    pub accept_unfenced: Option<bool>,
}

impl LedgerArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            ledger: self.ledger.or(weaker.ledger),
            ledger_user: self.ledger_user.or(weaker.ledger_user),
            ledger_password_file: self.ledger_password_file.or(weaker.ledger_password_file),
            ledger_database: self.ledger_database.or(weaker.ledger_database),
            ledger_ca_file: self.ledger_ca_file.or(weaker.ledger_ca_file),
            ledger_cert_file: self.ledger_cert_file.or(weaker.ledger_cert_file),
            ledger_key_file: self.ledger_key_file.or(weaker.ledger_key_file),
            ledger_sentinel_user: self.ledger_sentinel_user.or(weaker.ledger_sentinel_user),
            ledger_sentinel_password_file: self
                .ledger_sentinel_password_file
                .or(weaker.ledger_sentinel_password_file),
            accept_unfenced: self.accept_unfenced.or(weaker.accept_unfenced),
        }
    }
}

/// Where a ledger is.
#[derive(Clone, Debug)]
pub enum LedgerAddress {
    /// In a file.
    File(PathBuf),
    /// In a Redis.
    Redis(Box<Target>),
}

impl fmt::Display for LedgerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Redis(target) => target.fmt(f),
        }
    }
}

impl LedgerArgs {
    /// The ledger of `--ledger`, or the default one.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] names the setting, and quotes no password.
    pub fn address(&self) -> Result<LedgerAddress, ConfigError> {
        self.address_of(self.ledger.as_deref().unwrap_or(DEFAULT))
    }

    /// The ledger at another address, with the same user, password, database and certificates.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] names the setting, and quotes no password.
    pub fn address_of(&self, text: &str) -> Result<LedgerAddress, ConfigError> {
        self.address_with(text, from_environment)
    }

    fn address_with(
        &self,
        text: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<LedgerAddress, ConfigError> {
        let text = text.trim();
        if Target::is_meant_by(text) {
            let options = TargetOptions {
                user: self.ledger_user.clone(),
                password: variable(PASSWORD),
                password_file: self.ledger_password_file.clone(),
                database: self.ledger_database,
                ca_file: self.ledger_ca_file.clone(),
                cert_file: self.ledger_cert_file.clone(),
                key_file: self.ledger_key_file.clone(),
                sentinel_user: self.ledger_sentinel_user.clone(),
                sentinel_password: variable(SENTINEL_PASSWORD),
                sentinel_password_file: self.ledger_sentinel_password_file.clone(),
                accept_unfenced: self.accept_unfenced.unwrap_or(false),
            };
            let target = Target::new(text, options);
            let target = target.map_err(|error| wrong(error.setting, error.why.to_string()))?;
            return Ok(LedgerAddress::Redis(Box::new(target)));
        }
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(LedgerAddress::File(path.into())),
            Some(("file", _)) => {
                Err(wrong("--ledger", "file: needs a path, such as file:consentd.redb"))
            }
            // The text is not quoted: what precedes an @ may be a password.
            _ if text.contains('@') || text.contains("://") => {
                let right = "must be file:PATH, redis://HOST:PORT, rediss://HOST:PORT, \
                             redis+unix:///PATH, redis+sentinel://HOST:PORT,HOST:PORT/MASTER or \
                             redis+cluster://HOST:PORT,HOST:PORT";
                Err(wrong("--ledger", right))
            }
            _ => Err(wrong(
                "--ledger",
                format!("must be file:PATH or redis://HOST:PORT: did you mean file:{text}?"),
            )),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a password has a variable and no flag, so clap does not read it"
)]
fn from_environment(variable: &str) -> Option<String> {
    // An empty variable counts as unset, as for every other setting.
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(args: &LedgerArgs, text: &str) -> Result<LedgerAddress, ConfigError> {
        args.address_with(text, |name| Some(format!("the secret {name}")))
    }

    #[test]
    fn address_is_parsed_as_file_or_redis() {
        let none = LedgerArgs::default();
        for (text, shown) in [
            ("file:a/b.redb", "file:a/b.redb"),
            ("redis://u:p@h/3", "redis://h:6379/3"),
            (" rediss://h ", "rediss://h:6379"),
            ("redis+sentinel://a,b/m", "redis+sentinel://a:26379,b:26379/m"),
            ("unix:/run/r.sock", "redis+unix:///run/r.sock"),
        ] {
            let address = address(&none, text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert!(!format!("{address:?}").contains("secret"), "{address:?}");
        }
        for (text, part) in [
            ("consentd.redb", "did you mean file:consentd.redb?"),
            ("file:", "needs a path"),
            ("http://u:secret@h", "redis://HOST:PORT"),
            ("u:secret@h", "redis://HOST:PORT"),
            ("redis://u:secret@h:x", "a port is from 1 to 65535"),
        ] {
            let said = address(&none, text).unwrap_err().to_string();
            assert!(said.starts_with("--ledger: ") && said.contains(part), "{text}: {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn wrong_option_is_named_by_its_own_flag() {
        let args: LedgerArgs =
            toml::from_str("ledger-ca-file = \"/ca.pem\"\nledger-user = \"u\"").unwrap();
        let said = address(&args, "redis://h").unwrap_err().to_string();
        assert!(said.starts_with("--ledger-ca-file: ") && said.contains("rediss://"), "{said}");
        assert!(address(&args, "rediss://h").is_ok());
        // A file needs none of it; `copy` has one of each.
        assert!(address(&args, "file:a").is_ok());
    }
}
