//! The causes of a resync.

/// Why the table is invalid and the ledger is read again. Its `Display` is shown to operators.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResyncCause {
    /// The process has just started.
    #[error("reading the ledger for the first time")]
    Start,
    /// The ledger has another epoch: it is another ledger.
    #[error("the ledger was replaced by another one; reading it anew")]
    Epoch,
    /// There is no ledger at the address any more.
    #[error(
        "the ledger, or this partition of it, is gone with what it held: bring it back from a backup or, if \
         nothing of the ledger is needed any more, make a new one with `consentd init`"
    )]
    Missing,
    /// The log is a fork of what is applied: the ledger has lost changes, or replaced them.
    #[error("the ledger lost changes or holds others in their place; reading it anew")]
    Fork,
    /// The next entries were trimmed from the log.
    #[error("the ledger's log no longer holds what comes next; reading all of it")]
    Trimmed,
    /// An entry of the log cannot be read.
    #[error(
        "an entry of the ledger's log cannot be read: a newer consentd wrote it, or it is \
             damaged"
    )]
    Unreadable,
    /// An operator has accepted the ledger as it is.
    #[error("an operator accepted the ledger as it is; reading it anew")]
    Accepted,
}

impl ResyncCause {
    /// Whether the ledger may lack changes that were followed before, so that recorders give back
    /// what they remember. This holds for every cause but the first start, before which nothing was
    /// followed: the ledger that is read again is not compared with the one before. A log that was
    /// trimmed may be that of another branch, and a ledger that was accepted may be replaced before
    /// it is read.
    #[must_use]
    pub fn may_be_loss(self) -> bool {
        self != Self::Start
    }

    /// The cause as a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Epoch => "epoch",
            Self::Missing => "missing",
            Self::Fork => "fork",
            Self::Trimmed => "trimmed",
            Self::Unreadable => "unreadable",
            Self::Accepted => "accepted",
        }
    }
}
