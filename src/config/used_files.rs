//! The files that flags name, each of which is to be used for one purpose.

use std::path::{Path, PathBuf};

use super::{ConfigError, LedgerAddress, ServeArgs, wrong};
use crate::decision_log::{DecisionLogSettings, LogTarget};
use crate::net::socket::Address;
use consentd_os::files::{Unusable, Usage, UsedFile, beside, check};

/// What lies beside a ledger's file, by its suffix: the mark of what was acknowledged, the file
/// that is written when it is compacted, and the one that a deleted ledger's content is saved in.
const BESIDE_A_LEDGER: [&str; 3] = ["acknowledged", "compacting", "rescued"];

/// What lies beside a socket: its lock, and the socket before it has its name.
const BESIDE_A_SOCKET: [&str; 2] = ["lock", "new"];

/// All of them; refused where two are one, and where others may write what is trusted.
pub(super) fn of(
    args: &ServeArgs,
    ledger: &LedgerAddress,
    decision_log: Option<&DecisionLogSettings>,
    listen: &[Address],
    record: Option<&Address>,
) -> Result<Vec<UsedFile>, ConfigError> {
    let mut files = Vec::new();
    let mut add = |flag, path: &Path, usage| {
        // A variable that is empty is as good as unset.
        if !path.as_os_str().is_empty() {
            files.push(UsedFile { flag, path: path.to_owned(), usage });
        }
    };
    let mut add_named = |flag, path: &Option<PathBuf>, usage| {
        if let Some(path) = path {
            add(flag, path, usage);
        }
    };
    add_named("--config", &args.config, Usage::Input);
    add_named("--record-token-file", &args.record_token_file, Usage::Secret);
    add_named("--webhook-verify-token-file", &args.webhook_verify_token_file, Usage::Secret);
    add_named("--ledger-password-file", &args.ledger_password_file, Usage::Password);
    let sentinels = &args.ledger_sentinel_password_file;
    add_named("--ledger-sentinel-password-file", sentinels, Usage::Password);
    add_named("--ledger-ca-file", &args.ledger_ca_file, Usage::Certificate);
    add_named("--ledger-cert-file", &args.ledger_cert_file, Usage::Certificate);
    add_named("--ledger-key-file", &args.ledger_key_file, Usage::Certificate);
    for path in args.webhook_app_secret_file.iter().flatten() {
        add("--webhook-app-secret-file", path, Usage::Secret);
    }
    if let LedgerAddress::File(path) = ledger {
        add("--ledger", path, Usage::Written);
        for suffix in BESIDE_A_LEDGER {
            add("--ledger", &beside(path, suffix), Usage::Written);
        }
    }
    if let Some(path) = &args.snapshot {
        add("--snapshot", path, Usage::Written);
        add("--snapshot", &beside(path, "lock"), Usage::Written);
    }
    if let Some(DecisionLogSettings { target: LogTarget::File(path), keep, .. }) = decision_log {
        add("--decision-log", path, Usage::Written);
        for number in 1..=*keep {
            add("--decision-log", &beside(path, &number.to_string()), Usage::Written);
        }
    }
    let sockets = listen.iter().map(|address| ("--unix", address));
    for (flag, address) in sockets.chain(record.map(|address| ("--record", address))) {
        let Address::Unix(path) = address else { continue };
        add(flag, path, Usage::Written);
        for suffix in BESIDE_A_SOCKET {
            add(flag, &beside(path, suffix), Usage::Written);
        }
    }
    check(&files).map_err(|Unusable { flag, why }| wrong(flag, why))?;
    Ok(files)
}
