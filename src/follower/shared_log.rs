//! What the followers of a ledger's partitions have logged of late, so that what befalls all of them is logged once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consentd_os::clock;

/// For how long a message of one partition stands for the same one of others.
const VALIDITY: Duration = Duration::from_secs(10);

/// The messages of the last [`VALIDITY`]; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentMessages(Arc<Mutex<HashMap<String, Duration>>>);

impl RecentMessages {
    /// Whether no other partition has logged this message of late. It is noted as logged then.
    pub(super) fn is_first(&self, message: &str) -> bool {
        self.is_first_at(message, clock::boot())
    }

    fn is_first_at(&self, message: &str, now: Duration) -> bool {
        // Each partition has a slot of its own, which a message may name, and times differ.
        let message: String = message.chars().filter(|char| !char.is_ascii_digit()).collect();
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|_, logged| now.saturating_sub(*logged) < VALIDITY);
        let is_first = !recent.contains_key(&message);
        if is_first {
            recent.insert(message, now);
        }
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_one_partition_stands_for_the_same_of_others_for_a_while() {
        let (messages, start) = (RecentMessages::default(), Duration::from_secs(100));
        let others = messages.clone();
        assert!(messages.is_first_at("no majority", start));
        assert!(!others.is_first_at("no majority", start + VALIDITY / 2));
        assert!(messages.is_first_at("slot 530 has no owner", start));
        assert!(!others.is_first_at("slot 4659 has no owner", start));
        assert!(others.is_first_at("it does not answer", start + VALIDITY / 2));
        assert!(others.is_first_at("no majority", start + VALIDITY));
        assert!(!messages.is_first_at("no majority", start + VALIDITY));
    }
}
