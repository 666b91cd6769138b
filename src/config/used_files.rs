//! The files that flags name, each of which must serve one purpose alone.

use std::path::{Path, PathBuf};

use super::{ConfigError, LedgerAddress, Listeners, ServeArgs, wrong};
use crate::decision_log::{DecisionLogSettings, LogTarget};
use crate::net::socket::Address;
use consentd_core::partition::MAX_PARTITIONS;
use consentd_os::files::{Unusable, Usage, UsedFile, beside, check};

/// Suffixes of the files that are kept next to a ledger's file: the position that was acknowledged
/// last, the target of a compaction, and the content that was rescued from a deleted ledger.
const LEDGER_SUFFIXES: [&str; 3] = ["acknowledged", "compacting", "rescued"];

/// Suffixes of the files next to a socket: its lock, and the socket until it is renamed.
const SOCKET_SUFFIXES: [&str; 2] = ["lock", "new"];

/// Lists the files. Refuses two uses of one file where that would do harm, and a trusted file that
/// other users may write.
pub(super) fn collect(
    args: &ServeArgs,
    ledger: &LedgerAddress,
    decision_log: Option<&DecisionLogSettings>,
    listeners: &Listeners,
) -> Result<Vec<UsedFile>, ConfigError> {
    let mut files = Vec::new();
    let mut add = |flag, path: &Path, usage| {
        // An empty variable counts as unset.
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
    add_named("--business-file", &args.businesses.business_file, Usage::Input);
    add_named("--record-token-file", &args.listeners.record_token_file, Usage::Secret);
    add_named(
        "--webhook-verify-token-file",
        &args.webhook.webhook_verify_token_file,
        Usage::Secret,
    );
    add_named("--ledger-password-file", &args.ledger.ledger_password_file, Usage::Password);
    let sentinels = &args.ledger.ledger_sentinel_password_file;
    add_named("--ledger-sentinel-password-file", sentinels, Usage::Password);
    add_named("--ledger-ca-file", &args.ledger.ledger_ca_file, Usage::Certificate);
    add_named("--ledger-cert-file", &args.ledger.ledger_cert_file, Usage::Certificate);
    add_named("--ledger-key-file", &args.ledger.ledger_key_file, Usage::Certificate);
    add_named("--otlp-ca-file", &args.telemetry.otlp_ca_file, Usage::Certificate);
    add_named("--tls-cert-file", &args.tls.tls_cert_file, Usage::Certificate);
    add_named("--tls-key-file", &args.tls.tls_key_file, Usage::Certificate);
    add_named("--tls-client-ca-file", &args.tls.tls_client_ca_file, Usage::Certificate);
    for path in args.webhook.webhook_app_secret_file.iter().flatten() {
        add("--webhook-app-secret-file", path, Usage::Secret);
    }
    for path in args.webhook.provider.webhook_signature_secret_file.iter().flatten() {
        add("--webhook-signature-secret-file", path, Usage::Secret);
    }
    if let LedgerAddress::File(path) = ledger {
        add("--ledger", path, Usage::Written);
        for suffix in LEDGER_SUFFIXES {
            add("--ledger", &beside(path, suffix), Usage::Written);
        }
    }
    if let Some(path) = &args.storage.snapshot {
        add("--snapshot", path, Usage::Written);
        add("--snapshot", &beside(path, "lock"), Usage::Written);
        if matches!(ledger, LedgerAddress::Redis(_)) {
            // The ledger may be in several partitions, and then each has a file of its own: it is not known yet.
            for partition in 0..MAX_PARTITIONS {
                add("--snapshot", &beside(path, &partition.to_string()), Usage::Written);
            }
        }
    }
    if let Some(DecisionLogSettings { target: LogTarget::File(path), keep, .. }) = decision_log {
        add("--decision-log", path, Usage::Written);
        for number in 1..=*keep {
            add("--decision-log", &beside(path, &number.to_string()), Usage::Written);
        }
    }
    let grpc = listeners.listen.iter().map(|address| ("--unix", address));
    let record = listeners.record.iter().map(|address| ("--record", address));
    for (flag, address) in grpc.chain(record) {
        let Address::Unix(path) = address else { continue };
        add(flag, path, Usage::Written);
        for suffix in SOCKET_SUFFIXES {
            add(flag, &beside(path, suffix), Usage::Written);
        }
    }
    check(&files).map_err(|Unusable { flag, why }| wrong(flag, why))?;
    Ok(files)
}
