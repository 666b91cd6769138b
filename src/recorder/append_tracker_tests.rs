use std::collections::HashSet;
use std::time::Duration;

use super::replay_denials::{MAX_RETAINED, REPLAY_PERIOD, ReplayBuffer, Replayable};
use super::sent_changes::{Origin, SentChanges};
use super::*;
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{HistoryEntry, Record};
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, Effect};
use consentd_core::time::Timestamp;
use consentd_ledger::{
    AppendReceipt, Change, Embedded, Ledger, Notification, Retention, StoredRecord, Update, Version,
};

fn opt_out() -> What {
    What::OptOut { scope: Scope::All, reference: String::new() }
}

fn submission(user: &str) -> Submission {
    let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
    let time = Timestamp::from_millis(1);
    Submission::new(Event { user_id, business_id, time, what: opt_out() }, String::new())
}

/// A recorder with a follower whose position the test controls.
fn recorder_with_follower(folder: &std::path::Path) -> (Recorder, Ledger, FollowerPosition) {
    let (ledger, appender) =
        Embedded::open(&folder.join("ledger.redb"), Retention::default(), 1 << 20).unwrap();
    std::thread::spawn(move || appender.run());
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (ledger, follower) = (Ledger::Embedded(ledger), FollowerPosition::default());
    let keywords = Keywords::new(KeywordLists::default());
    let recorder = Recorder::new(ledger.clone(), PlatformNames::default(), keywords, metrics);
    (recorder.with_follower(follower.clone()), ledger, follower)
}

#[tokio::test]
async fn record_and_erase_that_the_follower_does_not_apply_are_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, ledger, follower) = recorder_with_follower(folder.path());
    let submissions = [submission("US.one"), submission("")];
    let results = recorder.record(&submissions).await;
    assert!(matches!(results[0], Err(Refusal::Unknown(_))), "{results:?}");
    assert!(matches!(results[1], Err(Refusal::Invalid(_))), "what is known stays known");
    let erased = recorder.erase("US.one", "acme").await;
    assert!(matches!(erased, Err(Refusal::Unknown(_))), "{erased:?}");
    // Both are durable: once the follower has applied them, repeats succeed and change nothing.
    let page = ledger.partition(0).unwrap().read_after(0).await.unwrap();
    assert_eq!(page.end.revision, 2);
    follower.advance(page.end, |_| None);
    assert!(recorder.record(&submissions).await[0].is_ok());
    assert_eq!(recorder.erase("US.one", "acme").await.unwrap().revision, 2);
}

#[tokio::test]
async fn record_succeeds_once_the_follower_has_applied_it() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, ledger, follower) = recorder_with_follower(folder.path());
    let mut announcements = ledger.partition(0).unwrap().listen();
    let goes_along = async {
        while let Ok(Notification::Announcement(announced)) = announcements.recv().await {
            let last = announced.entries.last().unwrap();
            let (epoch, revision, head) = (announced.epoch, last.revision, last.head);
            follower.advance(consentd_ledger::Position { epoch, revision, head }, |_| Some(head));
        }
    };
    tokio::select! {
        results = async { recorder.record(&[submission("US.one")]).await } => {
            assert_eq!(results[0].as_ref().unwrap().revision, 1);
        }
        () = goes_along => panic!("the ledger has ended"),
    }
}

/// An opt-out of everything.
fn denying(user: &str) -> Change {
    let time = Timestamp::from_millis(1).unwrap();
    let mut record = Record::default();
    record.state.apply(&Effect::Choice(Scope::All, Choice::opt_out(time))).unwrap();
    let Replayable::Denial(entry) = denial(user) else { unreachable!() };
    let update = Update {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        record,
        history: vec![*entry],
        record_time: time,
    };
    Change { key: Key::from_bytes([1; 16]), base: Version::default(), update: Some(update) }
}

/// The changes that a recorder is going to replay.
fn unconfirmed(recorder: &Recorder) -> Vec<Replayable> {
    let unconfirmed = recorder.recent_denials.buffer().unconfirmed(consentd_os::clock::boot(), 10);
    unconfirmed.into_iter().map(|(_, what)| what).collect()
}

#[tokio::test]
async fn conflict_after_an_unanswered_attempt_retains_the_denial() {
    for (maybe_written, retained) in [(true, vec![denial("US.one")]), (false, vec![])] {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, _, _) = recorder_with_follower(folder.path());
        let tracker = AppendTracker::new(&recorder, true);
        // As with a ledger that can fail over.
        *tracker.sent() = SentChanges::new(true);
        let first = tracker.sent().send(&[denying("US.one")], Origin::Event);
        let outcome = Appended::Conflict(Ok(StoredRecord::default()));
        tracker.sent().answered(
            first,
            &[AppendReceipt { outcome, partition: 0, head_prefix: 0, maybe_written }],
        );
        tracker.finish().await.unwrap();
        assert_eq!(unconfirmed(&recorder), retained);
    }
}

#[tokio::test]
async fn loss_detected_before_the_result_replays_the_denial() {
    for (is_lost, retained) in [(true, vec![denial("US.one")]), (false, vec![])] {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, ledger, follower) = recorder_with_follower(folder.path());
        let tracker = AppendTracker::new(&recorder, true);
        *tracker.sent() = SentChanges::new(true);
        let appended = tracker.append(vec![denying("US.one")], Origin::Event).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(1)]), "{appended:?}");
        follower.advance(ledger.partition(0).unwrap().read_after(0).await.unwrap().end, |_| None);
        // The replay task notes the loss before this call retains its denial.
        if is_lost {
            recorder.recent_denials.buffer().note_loss();
        }
        tracker.finish().await.unwrap();
        assert_eq!(unconfirmed(&recorder), retained);
    }
}

fn denial(user: &str) -> Replayable {
    let time = Timestamp::from_millis(1).unwrap();
    Replayable::Denial(Box::new(HistoryEntry {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        time,
        record_time: time,
        what: opt_out(),
    }))
}

#[test]
fn buffer_returns_unconfirmed_changes_and_all_after_a_loss() {
    let mut buffer = ReplayBuffer::default();
    let erase = Replayable::Erase { key: Key::from_bytes([1; 16]), time: Timestamp::MIN };
    buffer.retain(Duration::ZERO, denial("US.known"), true);
    buffer.retain(Duration::ZERO, denial("US.unknown"), false);
    buffer.retain(Duration::ZERO, erase.clone(), true);
    let unconfirmed = buffer.unconfirmed(REPLAY_PERIOD, 10);
    assert_eq!(unconfirmed, [(1, denial("US.unknown"))]);
    buffer.confirm(&HashSet::from([1]));
    assert_eq!(buffer.unconfirmed(REPLAY_PERIOD, 10), []);
    buffer.note_loss();
    let all = [(0, denial("US.known")), (1, denial("US.unknown")), (2, erase.clone())];
    assert_eq!(buffer.unconfirmed(REPLAY_PERIOD, 10), all);
    assert_eq!(buffer.unconfirmed(REPLAY_PERIOD, 1).len(), 1, "no more than asked for");
    // An erasure drops the denials of its pair, which name the user, but not the erasures.
    buffer.forget(|denial| denial.user_id == "US.known");
    assert_eq!(buffer.unconfirmed(REPLAY_PERIOD, 10), all[1..]);
    assert_eq!(buffer.unconfirmed(REPLAY_PERIOD + Duration::from_millis(1), 10), [], "too old");
}

#[test]
fn unconfirmed_change_that_is_too_old_counts_as_given_up() {
    let mut buffer = ReplayBuffer::default();
    buffer.retain(Duration::ZERO, denial("US.confirmed"), true);
    buffer.retain(Duration::ZERO, denial("US.unconfirmed"), false);
    buffer.retain(Duration::from_secs(1), denial("US.later"), false);
    assert_eq!(
        (buffer.unconfirmed(REPLAY_PERIOD, 10).len(), buffer.take_given_up()),
        (2, 0),
        "not too old yet"
    );
    let late = REPLAY_PERIOD + Duration::from_millis(1);
    assert_eq!(buffer.unconfirmed(late, 10), [(2, denial("US.later"))]);
    assert_eq!(buffer.take_given_up(), 1, "what is known to be in the ledger is not given up");
    assert_eq!(buffer.take_given_up(), 0, "it is reported once");
}

#[test]
fn full_buffer_drops_the_oldest_and_counts_it_as_given_up() {
    let mut buffer = ReplayBuffer::default();
    for _ in 0..MAX_RETAINED {
        buffer.retain(Duration::ZERO, denial("US.one"), false);
    }
    assert_eq!(buffer.take_given_up(), 0);
    buffer.retain(Duration::ZERO, denial("US.one"), false);
    buffer.retain(Duration::ZERO, denial("US.one"), false);
    assert_eq!(buffer.take_given_up(), 2);
    let first = buffer.unconfirmed(Duration::ZERO, 1);
    assert_eq!(first[0].0, 2, "the oldest that is left");
}

#[test]
fn changes_that_cannot_be_confirmed_do_not_starve_the_others() {
    let mut buffer = ReplayBuffer::default();
    for user in ["US.0", "US.1", "US.2", "US.3", "US.4"] {
        buffer.retain(Duration::ZERO, denial(user), false);
    }
    let mut next_batch = || -> Vec<u64> {
        let some = buffer.unconfirmed(Duration::ZERO, 2);
        let numbers: Vec<u64> = some.iter().map(|(number, _)| *number).collect();
        // The first two are never confirmed, as when their record is unreadable.
        buffer.confirm(&numbers.iter().copied().filter(|number| *number > 1).collect());
        numbers
    };
    assert_eq!([next_batch(), next_batch(), next_batch()], [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(
        [next_batch(), next_batch()],
        [vec![0, 1], vec![0, 1]],
        "from the first again, every time"
    );
}

/// The event itself is given back after a loss, and walks to the other ids again.
#[test]
fn copy_under_a_linked_id_is_kept_only_while_its_outcome_is_unknown() {
    let written = |revision| AppendReceipt {
        outcome: Appended::Committed(revision),
        partition: 0,
        head_prefix: 0,
        maybe_written: false,
    };
    for (is_answered, is_followed, kept) in [
        (true, true, vec![(denial("US.one"), true)]),
        (true, false, vec![(denial("US.one"), false), (denial("US.two"), false)]),
        (false, true, vec![(denial("US.one"), true), (denial("US.two"), false)]),
    ] {
        let mut sent = SentChanges::new(true);
        let event = sent.send(&[denying("US.one")], Origin::Event);
        sent.answered(event, &[written(1)]);
        let copy = sent.send(&[denying("US.two")], Origin::Propagation);
        if is_answered {
            sent.answered(copy, &[written(2)]);
        }
        assert_eq!(sent.take_retained(is_followed), kept, "{is_answered}, {is_followed}");
    }
}
