//! Errors of Redis: replies that reject a command, and commands whose outcome is unknown.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, ServerError};

use super::server_info::UnsupportedServer;
use crate::LedgerError;
use consentd_core::id::{KEY_VERSION, TAGGED_KEY_VERSION};

/// Marks an error reply of a command that a script ran: Redis appends it and the script's name.
const IN_SCRIPT: &str = "script: ";

/// Part of the error reply of a Cluster's node if a script accesses a key that is another node's.
const NON_LOCAL_KEY: &str = "non local key";

/// Part of XADD's error reply if the new entry's id is not above the stream's last id.
const XADD_REFUSED: &str = "ID specified in XADD";

/// Why Redis rejected a command: it replied, and nothing was written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RedisRejection {
    /// Redis has reached `maxmemory` (OOM).
    #[error(
        "Redis is full (maxmemory): raise maxmemory, or give the log and histories less time; \
             opt-outs, suppressions and platform stops are still recorded"
    )]
    Full,
    /// Redis cannot save to disk and refuses all writes (MISCONF).
    #[error(
        "Redis cannot save to its disk (MISCONF), and refuses to write and to prove itself: look \
             at its log and its disk's space"
    )]
    CannotSave,
    /// The primary has fewer replicas than `min-replicas-to-write` demands.
    #[error("Redis lacks the replicas that its min-replicas-to-write asks for (NOREPLICAS)")]
    NoReplicas,
    /// The server is a replica.
    #[error("this Redis is a replica, not the primary (READONLY)")]
    ReadOnly,
    /// The server is loading its data, is busy, or has lost its primary. Transient.
    #[error("Redis is not ready ({code})")]
    NotReady {
        /// The code of the error reply.
        code: Box<str>,
    },
    /// The Cluster's slot with the ledger is another node's, or on its way there (MOVED, ASK, TRYAGAIN).
    /// Transient.
    #[error(
        "the ledger's slot is another node's of the Cluster by now, or on its way to one ({code})"
    )]
    SlotMoved {
        /// The code of the error reply.
        code: Box<str>,
    },
    /// The ACL does not permit the command (NOPERM).
    #[error("Redis' ACL does not let this user do that (NOPERM): {detail}")]
    Denied {
        /// The text of the error reply.
        detail: Box<str>,
    },
    /// The connection is not authenticated.
    #[error("Redis does not accept the credentials ({code})")]
    Unauthenticated {
        /// The code of the error reply.
        code: Box<str>,
    },
    /// This Redis has no ledger.
    #[error(
        "there is no ledger in this Redis, for its meta key is missing: if there was a ledger, that \
         key was deleted or evicted, and only a backup brings it back; else make one with \
         consentd init"
    )]
    Missing,
    /// This partition of the ledger is missing, and others are there.
    #[error(
        "partition {partition} of the ledger is missing where its slot is, for its meta key is: the shard has lost \
         its data, or the key was deleted or evicted; only a backup brings it back"
    )]
    MissingPartition {
        /// Its number.
        partition: u32,
    },
    /// A key of the ledger was deleted or evicted, with everything that it held.
    #[error(
        "the key {key} of the ledger is missing or incomplete in Redis: it was deleted or evicted. \
         What it holds is neither read nor written until `consentd ledger repair` has rebuilt it \
         or a backup was restored; maxmemory-policy must be noeviction"
    )]
    LostKey {
        /// The missing or incomplete key.
        key: Box<str>,
    },
    /// This partition is of another ledger than the others.
    #[error(
        "partition {partition} belongs to another ledger than the first partition, or than most of them: a shard was \
         restored from the backup of another ledger (restore that of this one), or the ledger is just being replaced \
         as a whole; until they agree, nothing there is used"
    )]
    ForeignPartition {
        /// Its number.
        partition: u32,
    },
    /// The ledger's epoch is not the known one: it was replaced by another ledger.
    #[error("another ledger is in this Redis than a moment ago")]
    Replaced,
    /// The ledger is divided otherwise than it was when this process first read it.
    #[error(
        "the ledger is divided otherwise than when this process began to use it (then into {known} partitions, now \
         into {found}): it was replaced by another ledger; restart this process"
    )]
    OtherLayout {
        /// The known number of partitions.
        known: u32,
        /// The number of them now.
        found: u32,
    },
    /// The ledger's businesses are spread otherwise than they were when this process first read it.
    #[error(
        "each business of the ledger is in {found} of its partitions, and was in {known} when this process began to \
         use it: it was replaced by another ledger; restart this process"
    )]
    OtherSpread {
        /// The known number of partitions of a business.
        known: u32,
        /// The number of them now.
        found: u32,
    },
    /// In the place of a partition is another one.
    #[error(
        "in the place of partition {partition} of the ledger is what says that it is partition {found}: its meta key \
         was copied or changed; restore a backup of it"
    )]
    OtherPartition {
        /// The number of the place.
        partition: u32,
        /// The number that is stated there.
        found: u64,
    },
    /// The ledger's keys were made by an older reading of user ids.
    #[error(
        "the ledger was made by an earlier consentd, which read user ids otherwise (key version \
             {version}; this one has {KEY_VERSION}), so that one person may have several keys in it: run \
             `consentd ledger copy {from} TO`, where TO is another database, server or file, stop its \
             recorders when that asks for it, and serve TO; nothing was changed here"
    )]
    OlderKeys {
        /// The version of its keys.
        version: u32,
        /// The ledger's address, without credentials.
        from: Box<str>,
    },
    /// The ledger's keys do not name their businesses.
    #[error(
        "the ledger's keys do not name their businesses (key version {version}; the first that does is \
             {TAGGED_KEY_VERSION}), so that a sidecar cannot hold some of them alone (--business, \
             --business-file): run `consentd ledger copy {from} TO`, where TO is another database or \
             server, stop its recorders when that asks for it, and serve TO; nothing was changed here"
    )]
    UntaggedKeys {
        /// The version of its keys.
        version: u32,
        /// The ledger's address, without credentials.
        from: Box<str>,
    },
    /// The ledger's keys were made by a newer reading of user ids.
    #[error(
        "the ledger was made by a newer consentd, which reads user ids otherwise (key version {version}; \
             this one has {KEY_VERSION}): upgrade this one"
    )]
    NewerKeys {
        /// The version of its keys.
        version: u32,
    },
    /// A ledger, or parts of one, exist already.
    #[error("there is a ledger in this Redis already, or a part of one")]
    Exists,
    /// An earlier append failed half-way, and must be rolled forward first.
    #[error("an append was cut short half-way; the next one, of any recorder, completes it")]
    CutShort,
    /// The log does not continue the ledger's hash chain.
    #[error(
        "the log in this Redis does not continue the ledger: it was changed from outside, and takes \
         no more entries; mend it with consentd ledger repair"
    )]
    BadLog,
    /// The reply does not have the form that the script returns.
    #[error("Redis returned a reply that this ledger's scripts never return")]
    MalformedReply,
    /// Any other error reply.
    #[error("Redis replied with the error {code}: {detail}")]
    Other {
        /// The first word of the error reply.
        code: Box<str>,
        /// The rest of the error reply.
        detail: Box<str>,
    },
}

impl RedisRejection {
    /// Classifies an error reply.
    fn of_reply(code: &str, detail: &str) -> Self {
        let other = || Self::Other { code: code.into(), detail: detail.into() };
        match code {
            "NOPERM" => Self::Denied { detail: detail.into() },
            // The log has had a larger id than the ledger's next revision: nothing was written.
            _ if detail.contains(XADD_REFUSED) => Self::BadLog,
            // A key that the script did not declare has left for another node already.
            _ if detail.contains(NON_LOCAL_KEY) => Self::SlotMoved { code: NON_LOCAL_KEY.into() },
            // A command inside a script failed: the script's earlier commands may have been executed.
            _ if detail.contains(IN_SCRIPT) => other(),
            "OOM" => Self::Full,
            "MISCONF" => Self::CannotSave,
            "NOREPLICAS" => Self::NoReplicas,
            "READONLY" => Self::ReadOnly,
            "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" => {
                Self::NotReady { code: code.into() }
            }
            "MOVED" | "ASK" | "TRYAGAIN" => Self::SlotMoved { code: code.into() },
            "NOAUTH" | "WRONGPASS" => Self::Unauthenticated { code: code.into() },
            "NOEPOCH" => Self::Missing,
            "BADEPOCH" => Self::Replaced,
            "EXISTS" => Self::Exists,
            "BEHIND" => Self::CutShort,
            "BADLOG" => Self::BadLog,
            "LOST" => Self::LostKey { key: detail.into() },
            _ => other(),
        }
    }

    /// The rejection that caused a ledger's error, if one did.
    #[must_use]
    pub fn of(error: &LedgerError) -> Option<&Self> {
        error.redis_cause()?.downcast_ref()
    }

    /// The value of the metrics' label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::CannotSave => "cannot_save",
            Self::NoReplicas => "no_replicas",
            Self::ReadOnly => "read_only",
            Self::NotReady { .. } => "not_ready",
            Self::SlotMoved { .. } => "slot_moved",
            Self::Denied { .. } => "denied",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::Missing => "missing",
            Self::MissingPartition { .. } => "missing_partition",
            Self::LostKey { .. } => "lost_key",
            Self::Replaced => "replaced",
            Self::ForeignPartition { .. } => "foreign_partition",
            Self::OtherLayout { .. } | Self::OtherSpread { .. } => "other_layout",
            Self::OtherPartition { .. } => "other_partition",
            Self::OlderKeys { .. } => "older_keys",
            Self::NewerKeys { .. } => "newer_keys",
            Self::UntaggedKeys { .. } => "untagged_keys",
            Self::Exists => "exists",
            Self::CutShort => "cut_short",
            Self::BadLog => "bad_log",
            Self::MalformedReply => "strange",
            Self::Other { .. } => "other",
        }
    }

    /// Whether a retry, soon or at another server, may succeed.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::ReadOnly | Self::NotReady { .. } | Self::SlotMoved { .. })
    }

    /// Whether Redis sends this reply before it executes any command of a script.
    pub(super) fn is_before_execution(&self) -> bool {
        match self {
            Self::Denied { detail } | Self::Other { detail, .. } => !detail.contains(IN_SCRIPT),
            Self::MalformedReply => false,
            Self::SlotMoved { code } => **code != *NON_LOCAL_KEY,
            _ => true,
        }
    }
}

/// Redis did not reply within the timeout.
#[derive(Debug, thiserror::Error)]
#[error("Redis did not answer within {0:?}")]
pub(super) struct ResponseTimeout(pub(super) Duration);

/// Why a command has no usable reply.
#[derive(Clone, Debug)]
pub(super) enum RedisFailure {
    /// There was no connection: the command was not sent.
    NotSent(LedgerError),
    /// The command was sent, and no reply was received: its outcome is unknown.
    NoReply(Arc<dyn std::error::Error + Send + Sync>),
    /// The server's configuration is one that cannot hold a ledger.
    UnsupportedServer(Arc<UnsupportedServer>),
    /// The server does not have the script in its cache (NOSCRIPT).
    NoScript,
    /// The server replied with an error.
    Rejected(RedisRejection),
}

impl RedisFailure {
    /// Classifies an error of the client library. One without a code is an error of the connection, so
    /// that the outcome is unknown.
    pub(super) fn of_client(error: RedisError) -> Self {
        match error.code() {
            Some(code) => Self::of_reply(code, error.detail().unwrap_or_default()),
            None => Self::NoReply(Arc::new(error)),
        }
    }

    /// Classifies an error reply by its first word and the rest.
    fn of_reply(code: &str, detail: &str) -> Self {
        match code {
            "NOSCRIPT" => Self::NoScript,
            code => Self::Rejected(RedisRejection::of_reply(code, detail)),
        }
    }

    /// Whether the server has rejected the command for now: a retry, soon or at another server, may succeed.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.is_transient())
    }

    /// Whether another server is to be asked: this one is not the primary, or not any more.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Rejected(RedisRejection::ReadOnly | RedisRejection::SlotMoved { .. }))
    }

    /// Classifies an error reply by its bytes.
    pub(super) fn of_error_reply(reply: &[u8]) -> Self {
        let text = String::from_utf8_lossy(reply);
        let (code, detail) = text.split_once(' ').unwrap_or((&text, ""));
        Self::of_reply(code, detail)
    }

    /// A key of the ledger is missing or incomplete.
    pub(super) fn lost_key(key: &str) -> Self {
        Self::Rejected(RedisRejection::LostKey { key: key.into() })
    }

    /// Turns a failure that was found after the command was sent into an unknown outcome.
    pub(super) fn into_unknown_outcome(self) -> Self {
        match self {
            Self::UnsupportedServer(why) => Self::NoReply(why),
            failure => failure,
        }
    }

    /// Classifies an error reply of the server.
    pub(super) fn of_server(error: &ServerError) -> Self {
        Self::of_reply(error.code(), error.details().unwrap_or_default())
    }
}

impl From<RedisRejection> for LedgerError {
    fn from(why: RedisRejection) -> Self {
        Self::Refused(Arc::new(why))
    }
}

impl From<RedisFailure> for LedgerError {
    fn from(failure: RedisFailure) -> Self {
        match failure {
            RedisFailure::NotSent(error) => error,
            RedisFailure::NoReply(error) => Self::Unreachable(error),
            RedisFailure::UnsupportedServer(why) => Self::Refused(why),
            // The whole script was sent, too.
            RedisFailure::NoScript => RedisRejection::MalformedReply.into(),
            RedisFailure::Rejected(why) => why.into(),
        }
    }
}
