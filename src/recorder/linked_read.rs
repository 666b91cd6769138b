//! Reads the records of all linked ids of a person and, where an event takes its time from them, proves them. Pure.
//!
//! An event without a time counts as of no earlier than the latest event under any linked id. A read alone
//! does not tell that one: a deposed primary answers reads until it learns that it was replaced, and lacks what
//! the new primary has acknowledged since. It confirms no append, however, not even one that only compares. So
//! each record that was read is compared by an append, and one that has changed is replaced by the record that
//! the append found, until all are confirmed. Then every event that was acknowledged before the read began is in
//! these records.

use super::Refusal;
use super::linked_ids::{LinkedIds, Step};
use consentd_core::id::{Key, KeySecret};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Read, StoredRecord, UnreadableRecord};

/// The read of the linked ids of one person. The caller carries out its [steps](Self::step).
pub struct LinkedRead {
    ids: LinkedIds,
    /// The pair that the event was given under. The append of its own change compares its record.
    own: Key,
    /// Whether the records of the other ids must be proven.
    must_prove: bool,
}

impl LinkedRead {
    /// The read of the ids that the record of this pair names, as it was read. `must_prove` is whether the
    /// records must be those of the proven primary.
    #[must_use]
    pub fn new(
        secret: &KeySecret,
        (user_id, business_id): (&str, &str),
        (own, stored): (Key, StoredRecord),
        must_prove: bool,
    ) -> Self {
        let mut ids = LinkedIds::new(secret, business_id, user_id);
        ids.set_record(own, stored);
        Self { ids, own, must_prove }
    }

    /// Adds an id that the record need not name.
    pub fn add(&mut self, user_id: &str) {
        self.ids.add(user_id);
    }

    /// Sets the record of an id that was read before.
    pub(super) fn set_record(&mut self, key: Key, stored: StoredRecord) {
        self.ids.set_record(key, stored);
    }

    /// The next step: what to read, or what to append. Nothing is left to do if nothing is to be appended.
    #[must_use]
    pub fn step(&self) -> Step {
        let unread = self.ids.unread();
        if !unread.is_empty() {
            return Step::Read(unread);
        }
        let versions = self.ids.versions().filter(|(key, _)| self.must_prove && *key != self.own);
        Step::Append(versions.map(|(key, base)| Change { key, base, update: None }).collect())
    }

    /// Takes the result of a [`Step::Read`].
    ///
    /// # Errors
    ///
    /// [`UnreadableRecord`] if what is recorded under one of the ids is not known.
    pub fn read(&mut self, keys: &[Key], read: Read) -> Result<(), UnreadableRecord> {
        for (key, stored) in keys.iter().zip(read.pairs) {
            self.ids.set_record(*key, stored?);
        }
        Ok(())
    }

    /// Takes the outcomes of a [`Step::Append`] for these pairs. Returns whether all records are proven.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if an outcome is not known, or what is recorded under one of the ids.
    pub fn appended(&mut self, keys: &[Key], outcomes: Vec<Appended>) -> Result<bool, Refusal> {
        let mut is_proven = true;
        for (key, outcome) in keys.iter().zip(outcomes) {
            match outcome {
                Appended::Committed(_) => {}
                Appended::Conflict(stored) => {
                    self.ids.set_record(*key, stored?);
                    is_proven = false;
                }
                Appended::Failed(error) => return Err(error.into()),
            }
        }
        Ok(is_proven)
    }

    /// The time of the latest event under any of the ids.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.ids.latest()
    }

    pub(super) fn into_ids(self) -> LinkedIds {
        self.ids
    }
}

#[cfg(test)]
mod tests {
    use consentd_core::record::{Link, Record};
    use consentd_core::scope::Scope;
    use consentd_core::state::{Choice, Effect};
    use consentd_ledger::{LedgerError, Version};

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn secret() -> KeySecret {
        KeySecret::new(&[3; 16])
    }

    fn key(user: &str) -> Key {
        secret().read(user, "acme").unwrap()
    }

    /// A record that names other ids, whose latest event is an opt-in of that time.
    fn stored(revision: u64, named: &[&str], opted_in: i64) -> StoredRecord {
        let mut record = Record::default();
        for user in named {
            record.link(Link { user_id: (*user).to_owned(), time: at(1), moved: false });
        }
        let choice = Choice::opt_in(at(opted_in), None);
        record.state.apply(&Effect::Choice(Scope::All, choice)).unwrap();
        StoredRecord { version: Version { revision, head_prefix: 0 }, record }
    }

    fn read_of(must_prove: bool) -> LinkedRead {
        let own = (key("US.1"), stored(1, &["US.2"], 10));
        LinkedRead::new(&secret(), ("US.1", "acme"), own, must_prove)
    }

    fn reads(read: &mut LinkedRead, user: &str, found: StoredRecord) {
        assert!(matches!(read.step(), Step::Read(keys) if keys == [key(user)]));
        read.read(&[key(user)], Read { clock: at(5), pairs: vec![Ok(found)] }).unwrap();
    }

    /// The versions that the next append compares.
    fn compared(read: &LinkedRead) -> Vec<(Key, u64)> {
        let Step::Append(changes) = read.step() else { panic!("something is unread") };
        assert!(changes.iter().all(|change| change.update.is_none()));
        changes.iter().map(|change| (change.key, change.base.revision)).collect()
    }

    #[test]
    fn record_that_an_append_finds_changed_takes_the_place_of_what_was_read() {
        let mut read = read_of(true);
        reads(&mut read, "US.2", stored(2, &["US.1"], 20));
        assert_eq!(compared(&read), [(key("US.2"), 2)], "the event's own change compares its pair");
        // The proven primary has an opt-in of a faster clock, and one more id.
        let present = stored(7, &["US.1", "US.3"], 90);
        let conflict = vec![Appended::Conflict(Ok(present))];
        assert!(!read.appended(&[key("US.2")], conflict).unwrap());
        reads(&mut read, "US.3", stored(3, &["US.2"], 30));
        assert_eq!(compared(&read), [(key("US.2"), 7), (key("US.3"), 3)]);
        let keys = [key("US.2"), key("US.3")];
        assert!(
            read.appended(&keys, vec![Appended::Committed(7), Appended::Committed(3)]).unwrap()
        );
        assert_eq!(read.latest(), Some(at(90)));
    }

    #[test]
    fn append_whose_outcome_is_unknown_proves_nothing() {
        let mut read = read_of(true);
        reads(&mut read, "US.2", stored(2, &["US.1"], 20));
        let failed = vec![Appended::Failed(LedgerError::Closed)];
        assert!(matches!(read.appended(&[key("US.2")], failed), Err(Refusal::Ledger(_))));
    }

    #[test]
    fn read_that_needs_no_proof_appends_nothing() {
        let mut read = read_of(false);
        reads(&mut read, "US.2", stored(2, &["US.1"], 20));
        assert!(compared(&read).is_empty());
        assert_eq!(read.latest(), Some(at(20)));
    }
}
