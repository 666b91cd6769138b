use std::sync::Arc;

use super::*;
use crate::follower::state_machine::ResyncCause;
use crate::table::{self, Table};
use consentd_core::id::{KEY_VERSION, KeySecret};
use consentd_core::scope::{Category, Scope};
use consentd_core::standing::Standing;
use consentd_core::state::{Choice, Effect};
use consentd_ledger::Position;
use consentd_os::clock::Moment;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn record(effects: &[Effect]) -> Record {
    let mut record = Record::default();
    for effect in effects {
        record.state.apply(effect).unwrap();
    }
    record
}

fn body(key: Key, record: &Record, time: i64) -> Box<LogBody> {
    let (user_id, business_id) = ("1".to_owned(), "acme".to_owned());
    let (record, record_time) = (Ok(record.clone()), at(time));
    Box::new(LogBody { key, user_id, business_id, record, record_time })
}

/// A table that holds an empty ledger, proven when its clock said `clock`.
fn loaded(clock: i64) -> (Table, Applier, Identity) {
    let (table, writer) = table::new();
    let mut applier = Applier::new(writer, 10);
    let secret = KeySecret::new(&[2; 16]);
    let identity = Identity {
        epoch: [1; 16],
        secret,
        key_version: KEY_VERSION,
        has_nameless: false,
        layout: consentd_core::partition::Layout::SINGLE,
        buckets: 1,
    };
    let shared = Arc::new(identity.clone());
    applier.perform(&Action::ResetTable { identity: shared, clock: at(clock), forget: false });
    let now = Moment { boot: std::time::Duration::ZERO, wall: at(clock) };
    applier.perform(&Action::SetProof(now, at(clock)));
    applier.perform(&Action::Validate);
    (table, applier, identity)
}

#[test]
fn what_a_scrub_finds_to_be_lost_is_later_than_all_that_was_applied() {
    let (table, mut applier, identity) = loaded(100);
    let key = Key::from_bytes([7; 16]);
    let marketing = Scope::parse("marketing").unwrap();
    // Both are later than the ledger's clock at the last proof.
    let opted_in = Effect::Choice(marketing, Choice::opt_in(at(150), None));
    let before = record(std::slice::from_ref(&opted_in));
    let after = record(&[opted_in, Effect::Choice(Scope::All, Choice::opt_out(at(160)))]);
    applier.perform(&Action::Apply(body(key, &before, 150)));
    applier.perform(&Action::Apply(body(key, &after, 160)));
    // The earlier record is written back to the ledger, past its log.
    let label = Position { epoch: identity.epoch, revision: 2, head: [0; 20] };
    let bucket = Bucket { number: 0, label, pairs: vec![(key, Ok(before))] };
    let done = applier.perform(&Action::CompareBucket(bucket));
    assert_eq!(done.bucket, Some(BucketOutcome::Compared { mismatches: 1 }));
    let category = Category::parse("marketing").unwrap();
    let facts = table.facts(key.into(), category).0.unwrap();
    assert!(matches!(facts.standing, Standing::OptedOutAll { .. }), "{facts:?}");
    assert_eq!(table.retained_pairs(), 1);
}

#[test]
fn scrub_that_finds_an_older_record_of_the_same_scope_retains_its_denials() {
    let (table, mut applier, identity) = loaded(100);
    let key = Key::from_bytes([7; 16]);
    let marketing = || Scope::parse("marketing").unwrap();
    let opted_in = Effect::Choice(marketing(), Choice::opt_in(at(150), None));
    let before = record(std::slice::from_ref(&opted_in));
    let stop = Effect::Platform { time: at(160), stopped: true, number: None };
    let after =
        record(&[opted_in, Effect::Choice(marketing(), Choice::opt_out(at(160))), stop.clone()]);
    applier.perform(&Action::Apply(body(key, &before, 150)));
    applier.perform(&Action::Apply(body(key, &after, 160)));
    // The earlier record is written back to the ledger, past its log: it has the same scope.
    let label = Position { epoch: identity.epoch, revision: 2, head: [0; 20] };
    let bucket = Bucket { number: 0, label, pairs: vec![(key, Ok(before.clone()))] };
    applier.perform(&Action::CompareBucket(bucket));
    let facts = || table.facts(key.into(), Category::parse("marketing").unwrap()).0.unwrap();
    assert_eq!(facts().standing, Standing::OptedOut);
    assert!(facts().platform_stopped);
    // An event may lift both, as ever.
    let resumed = Effect::Platform { time: at(170), stopped: false, number: None };
    let again = Effect::Choice(marketing(), Choice::opt_in(at(170), None));
    let lifted = record(&[again, stop, resumed]);
    applier.perform(&Action::Apply(body(key, &lifted, 170)));
    assert_eq!(facts().standing, Standing::OptedIn { expire: None });
    assert!(!facts().platform_stopped);
}

#[test]
fn a_pair_that_only_sticks_and_is_then_recorded_is_a_stranger_once_its_record_is_gone() {
    let (table, mut applier, identity) = loaded(100);
    let key = Key::from_bytes([7; 16]);
    let denied = record(&[Effect::Choice(Scope::All, Choice::opt_out(at(110)))]);
    applier.perform(&Action::Apply(body(key, &denied, 110)));
    // The ledger is recreated and empty: the denial is retained for a pair without a record.
    let shared = Arc::new(identity.clone());
    applier.perform(&Action::Invalidate(ResyncCause::Fork));
    applier.perform(&Action::ResetTable { identity: shared, clock: at(120), forget: false });
    applier.perform(&Action::Validate);
    assert_eq!(table.retained_pairs(), 1);
    let marketing = Scope::parse("marketing").unwrap();
    let opted_in = record(&[Effect::Choice(marketing, Choice::opt_in(at(130), None))]);
    applier.perform(&Action::Apply(body(key, &opted_in, 130)));
    // That record is deleted from the ledger, past its log.
    let label = Position { epoch: identity.epoch, revision: 1, head: [0; 20] };
    let bucket = Bucket { number: 0, label, pairs: Vec::new() };
    let done = applier.perform(&Action::CompareBucket(bucket));
    assert_eq!(done.bucket, Some(BucketOutcome::Compared { mismatches: 1 }));
    let category = Category::parse("marketing").unwrap();
    let facts = table.facts(key.into(), category).0.unwrap();
    assert!(!matches!(facts.standing, Standing::OptedIn { .. }), "{facts:?}");
}

#[test]
fn what_a_saved_table_denied_of_a_pair_that_was_put_back_sticks_as_of_the_clock_it_was_saved_by() {
    let (table, mut applier, identity) = loaded(100);
    let key = Key::from_bytes([7; 16]);
    let marketing = Scope::parse("marketing").unwrap();
    let opted_in = |time| Effect::Choice(marketing.clone(), Choice::opt_in(at(time), None));
    let denied = record(&[opted_in(110), Effect::Choice(Scope::All, Choice::opt_out(at(120)))]);
    applier.perform(&Action::Apply(body(key, &denied, 120)));
    let mut bytes = Vec::new();
    table.save(&mut bytes, || true).unwrap();
    let most = u64::try_from(bytes.len()).unwrap();

    let (table, writer) = table::new();
    let mut applier = Applier::new(writer, 10);
    applier.keep(TableImage::read(&mut &bytes[..], most).unwrap(), at(500));
    let shared = Arc::new(identity);
    applier.perform(&Action::RestoreSnapshot { identity: Arc::clone(&shared), clock: at(300) });
    // The log is replayed from before the denial, which the ledger turns out to have lost.
    applier.perform(&Action::Replay(body(key, &record(&[opted_in(110)]), 110)));
    applier.perform(&Action::Invalidate(ResyncCause::Fork));
    applier.perform(&Action::ResetTable { identity: shared, clock: at(310), forget: false });
    applier.perform(&Action::Validate);
    assert_eq!(table.retained_pairs(), 1);
    // This is later than the loss by the ledger's clock, but not by the clock of the snapshot.
    applier.perform(&Action::Apply(body(key, &record(&[opted_in(400)]), 400)));
    let category = Category::parse("marketing").unwrap();
    let facts = table.facts(key.into(), category).0.unwrap();
    assert!(matches!(facts.standing, Standing::OptedOutAll { .. }), "{facts:?}");
}
