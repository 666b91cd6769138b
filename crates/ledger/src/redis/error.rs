//! Why Redis did not do what it was asked to, in our words.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisError, ServerError};

use super::server_info::UnsupportedServer;
use crate::LedgerError;

/// What Redis adds to the error of a command that a script ran, before the script's name.
const IN_SCRIPT: &str = "script: ";

/// What Redis says where a stream has had a larger id than the one of a new entry.
const XADD_REFUSED: &str = "ID specified in XADD";

/// Why Redis refused: it answered, and nothing was done.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RedisRejection {
    /// It has reached `maxmemory`.
    #[error(
        "Redis is full (maxmemory): raise maxmemory, or give the log and histories less time; \
             opt-outs, suppressions and platform stops are still recorded"
    )]
    Full,
    /// It cannot save, and refuses all writes.
    #[error(
        "Redis cannot save to its disk (MISCONF), and refuses to write and to prove itself: look \
             at its log and its disk's space"
    )]
    CannotSave,
    /// It has fewer replicas than `min-replicas-to-write` asks for.
    #[error("Redis lacks the replicas that its min-replicas-to-write asks for (NOREPLICAS)")]
    NoReplicas,
    /// It is a replica.
    #[error("this Redis is a replica, not the primary (READONLY)")]
    ReadOnly,
    /// It is loading its data, is busy, or has lost its primary.
    #[error("Redis is not ready ({code})")]
    NotReady {
        /// What it answered.
        code: Box<str>,
    },
    /// Its ACL does not let us.
    #[error("Redis' ACL does not let this user do that (NOPERM): {detail}")]
    Denied {
        /// What it answered.
        detail: Box<str>,
    },
    /// We are nobody there.
    #[error("Redis wants other credentials ({code})")]
    Unauthenticated {
        /// What it answered.
        code: Box<str>,
    },
    /// There is no ledger.
    #[error(
        "there is no ledger in this Redis, for its meta key is missing: if there was a ledger, that \
         key was deleted or evicted, and only a backup brings it back; else make one with \
         consentd init"
    )]
    Missing,
    /// A key of the ledger was deleted or evicted, and with it what it held.
    #[error(
        "the key {key} of the ledger is missing or incomplete in Redis: it was deleted or evicted. \
         What it holds is neither read nor written until `consentd ledger repair` has rebuilt it \
         or a backup was restored; maxmemory-policy must be noeviction"
    )]
    Lost {
        /// Which key.
        key: Box<str>,
    },
    /// There is another ledger than the one that is known.
    #[error("another ledger is in this Redis than a moment ago")]
    Replaced,
    /// A ledger, or parts of one, are there already.
    #[error("there is a ledger in this Redis already, or a part of one")]
    Exists,
    /// An append was cut short, and waits for the next one to complete it.
    #[error("an append was cut short half-way; the next one, of any recorder, completes it")]
    CutShort,
    /// The log does not continue the ledger's hash.
    #[error(
        "the log in this Redis does not continue the ledger: it was changed from outside, and takes \
         no more entries; mend it with consentd ledger repair"
    )]
    BadLog,
    /// What it should not have answered.
    #[error("Redis gave an answer that is not one of this ledger's scripts")]
    Strange,
    /// Anything else.
    #[error("Redis answers {code}: {detail}")]
    Other {
        /// The first word.
        code: Box<str>,
        /// The rest.
        detail: Box<str>,
    },
}

impl RedisRejection {
    /// What an error reply means.
    fn of_reply(code: &str, detail: &str) -> Self {
        let in_other_words = || Self::Other { code: code.into(), detail: detail.into() };
        match code {
            "NOPERM" => Self::Denied { detail: detail.into() },
            // The log has had a larger id than the ledger's next one: nothing was logged.
            _ if detail.contains(XADD_REFUSED) => Self::BadLog,
            // A command of a script was refused, when others of it may have been done.
            _ if detail.contains(IN_SCRIPT) => in_other_words(),
            "OOM" => Self::Full,
            "MISCONF" => Self::CannotSave,
            "NOREPLICAS" => Self::NoReplicas,
            "READONLY" => Self::ReadOnly,
            "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => {
                Self::NotReady { code: code.into() }
            }
            "NOAUTH" | "WRONGPASS" => Self::Unauthenticated { code: code.into() },
            "NOEPOCH" => Self::Missing,
            "BADEPOCH" => Self::Replaced,
            "EXISTS" => Self::Exists,
            "BEHIND" => Self::CutShort,
            "BADLOG" => Self::BadLog,
            "LOST" => Self::Lost { key: detail.into() },
            _ => in_other_words(),
        }
    }

    /// Why a ledger's error says that Redis refused, where that is why.
    #[must_use]
    pub fn of(error: &LedgerError) -> Option<&Self> {
        match error {
            LedgerError::Refused(why) | LedgerError::Unreachable(why) => why.downcast_ref(),
            _ => None,
        }
    }

    /// In one word, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::CannotSave => "cannot_save",
            Self::NoReplicas => "no_replicas",
            Self::ReadOnly => "read_only",
            Self::NotReady { .. } => "not_ready",
            Self::Denied { .. } => "denied",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::Missing => "missing",
            Self::Lost { .. } => "lost_key",
            Self::Replaced => "replaced",
            Self::Exists => "exists",
            Self::CutShort => "cut_short",
            Self::BadLog => "bad_log",
            Self::Strange => "strange",
            Self::Other { .. } => "other",
        }
    }

    /// Whether it may pass by itself, soon, or elsewhere: worth asking again.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::ReadOnly | Self::NotReady { .. })
    }

    /// Whether Redis says so before it runs anything of a script.
    pub(super) fn is_before_all(&self) -> bool {
        match self {
            Self::Denied { detail } | Self::Other { detail, .. } => !detail.contains(IN_SCRIPT),
            Self::Strange => false,
            _ => true,
        }
    }
}

/// Redis did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("Redis did not answer within {0:?}")]
pub(super) struct NoAnswer(pub(super) Duration);

/// What came of asking Redis, where it was not an answer.
#[derive(Clone, Debug)]
pub(super) enum RedisFailure {
    /// There was no connection: it was not asked.
    NotSent(LedgerError),
    /// It may or may not have done it.
    Lost(Arc<dyn std::error::Error + Send + Sync>),
    /// It is set up so that it must not be believed.
    UnsupportedServer(Arc<UnsupportedServer>),
    /// It does not know the script.
    NoScript,
    /// It answered with an error.
    Refused(RedisRejection),
}

impl RedisFailure {
    /// What an error of the client is; `None` for one that has left the connection unusable.
    pub(super) fn of_client(error: RedisError) -> Self {
        match error.code() {
            Some("NOSCRIPT") => Self::NoScript,
            Some(code) => {
                Self::Refused(RedisRejection::of_reply(code, error.detail().unwrap_or_default()))
            }
            None => Self::Lost(Arc::new(error)),
        }
    }

    /// A key of the ledger is missing.
    pub(super) fn lost(key: &str) -> Self {
        Self::Refused(RedisRejection::Lost { key: key.into() })
    }

    /// The same, where it may have been done.
    pub(super) fn unsure(self) -> Self {
        match self {
            Self::UnsupportedServer(why) => Self::Lost(why),
            failure => failure,
        }
    }

    pub(super) fn of_server(error: &ServerError) -> Self {
        match error.code() {
            "NOSCRIPT" => Self::NoScript,
            code => {
                Self::Refused(RedisRejection::of_reply(code, error.details().unwrap_or_default()))
            }
        }
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
            RedisFailure::Lost(error) => Self::Unreachable(error),
            RedisFailure::UnsupportedServer(why) => Self::Refused(why),
            // It was given the whole script, too.
            RedisFailure::NoScript => RedisRejection::Strange.into(),
            RedisFailure::Refused(why) => why.into(),
        }
    }
}
