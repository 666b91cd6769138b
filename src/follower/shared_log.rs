//! What the followers of a ledger's partitions have logged, so that what befalls several of them is logged once: an
//! incident when it begins for the first of them, and its end when it is over for the last.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use consentd_os::clock;

/// For how long a message of one partition stands for the same one of others.
const VALIDITY: Duration = Duration::from_secs(10);

/// What is logged when it begins, and when it is over.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Incident {
    /// The table cannot be proven to have all changes.
    Unproven,
    /// Announcements are not received.
    Unsubscribed,
    /// The table is not valid.
    Invalid,
    /// The ledger's clock differs from this machine's.
    ClockOffset,
}

/// What was logged; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedLog(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The messages of the last [`VALIDITY`], each with the incident that it is of.
    recent: HashMap<(Option<Incident>, String), Duration>,
    /// The partitions that an incident lasts for.
    affected: BTreeSet<(Incident, u32)>,
}

impl SharedLog {
    /// Whether no other partition has logged this message of late. It is noted as logged then.
    pub(super) fn is_first(&self, message: &str) -> bool {
        self.lock().is_first(None, message, clock::boot())
    }

    /// Notes that an incident has begun for a partition, or has another cause. Returns whether to log it: not if
    /// another partition has logged the same cause of late, and the incident has lasted since.
    pub(super) fn begins(&self, incident: Incident, partition: u32, cause: &str) -> bool {
        self.begins_at(incident, partition, cause, clock::boot())
    }

    fn begins_at(&self, incident: Incident, partition: u32, cause: &str, now: Duration) -> bool {
        let mut state = self.lock();
        state.affected.insert((incident, partition));
        state.is_first(Some(incident), cause, now)
    }

    /// Notes that an incident is over for a partition. Returns whether to log it: if that was the last one.
    pub(super) fn ends(&self, incident: Incident, partition: u32) -> bool {
        let mut state = self.lock();
        state.affected.remove(&(incident, partition)) && state.is_over(incident)
    }

    /// Notes that a partition is not followed any more.
    pub(super) fn leaves(&self, partition: u32) {
        let mut state = self.lock();
        let left = state.affected.extract_if(.., |(_, affected)| *affected == partition);
        for (incident, _) in left.collect::<Vec<_>>() {
            state.is_over(incident);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_first(&mut self, incident: Option<Incident>, message: &str, now: Duration) -> bool {
        // Each partition has a slot of its own, which a message may name, and times differ.
        let message: String = message.chars().filter(|char| !char.is_ascii_digit()).collect();
        self.recent.retain(|_, logged| now.saturating_sub(*logged) < VALIDITY);
        let is_first = !self.recent.contains_key(&(incident, message.clone()));
        if is_first {
            self.recent.insert((incident, message), now);
        }
        is_first
    }

    /// Whether an incident lasts for no partition. Then the next one is logged, whenever it begins.
    fn is_over(&mut self, incident: Incident) -> bool {
        let is_over = !self.affected.iter().any(|(lasting, _)| *lasting == incident);
        if is_over {
            self.recent.retain(|(logged, _), _| *logged != Some(incident));
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::Incident::{Unproven, Unsubscribed};
    use super::*;

    const START: Duration = Duration::from_secs(100);

    #[test]
    fn message_of_one_partition_stands_for_the_same_of_others_for_a_while() {
        let messages = SharedLog::default();
        let is_first = |message, now| messages.clone().lock().is_first(None, message, now);
        assert!(is_first("no majority", START));
        assert!(!is_first("no majority", START + VALIDITY / 2));
        assert!(is_first("slot 530 has no owner", START));
        assert!(!is_first("slot 4659 has no owner", START));
        assert!(is_first("it does not answer", START + VALIDITY / 2));
        assert!(is_first("no majority", START + VALIDITY));
        assert!(!is_first("no majority", START + VALIDITY));
    }

    #[test]
    fn incident_is_over_with_its_last_partition_and_the_next_one_is_told_at_once() {
        let log = SharedLog::default();
        let begins = |incident, partition, cause| log.begins_at(incident, partition, cause, START);
        assert!(begins(Unproven, 1, "no answer"));
        assert!(!begins(Unproven, 2, "no answer"));
        assert!(begins(Unproven, 2, "no majority"), "another cause");
        assert!(begins(Unsubscribed, 1, "no answer"), "another incident");
        assert!(!log.ends(Unproven, 1), "it lasts for another one");
        assert!(!begins(Unproven, 1, "no answer"), "it has lasted since");
        assert!(!log.ends(Unproven, 2));
        assert!(log.ends(Unproven, 1));
        assert!(!log.ends(Unproven, 1), "it is over already");
        assert!(begins(Unproven, 2, "no answer"), "the next one");
        assert!(!begins(Unsubscribed, 2, "no answer"), "that one lasts");
    }

    #[test]
    fn partition_that_is_not_followed_any_more_leaves_nothing_behind() {
        let log = SharedLog::default();
        let begins = |partition| log.begins_at(Unproven, partition, "no answer", START);
        assert!(begins(1) && !begins(2));
        log.leaves(1);
        assert!(log.ends(Unproven, 2));
        assert!(begins(1));
        log.leaves(1);
        assert!(begins(2), "the next one");
    }
}
