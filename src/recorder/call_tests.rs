use std::collections::HashSet;
use std::time::Duration;

use super::returned::{KEPT, MAX_KEPT, Memory, Returnable};
use super::*;
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{HistoryEntry, Record};
use consentd_core::scope::Scope;
use consentd_core::state::{Effect, Word};
use consentd_core::time::Timestamp;
use consentd_ledger::{AppendReceipt, Embedded, Ledger, Notification, Retention, Update, Version};

fn opt_out() -> What {
    What::OptOut { scope: Scope::All, reference: String::new() }
}

fn submission(user: &str) -> Submission {
    let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
    let time = Timestamp::from_millis(1);
    Submission::new(Event { user_id, business_id, time, what: opt_out() }, String::new())
}

/// A recorder beside a follower that this test moves.
fn beside(folder: &std::path::Path) -> (Recorder, Ledger, FollowerPosition) {
    let (ledger, appender) =
        Embedded::open(&folder.join("ledger.redb"), Retention::default(), 1 << 20).unwrap();
    std::thread::spawn(move || appender.run());
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (ledger, follower) = (Ledger::Embedded(ledger), FollowerPosition::default());
    let keywords = Keywords::new(KeywordLists::default());
    let recorder = Recorder::new(ledger.clone(), PlatformNames::default(), keywords, metrics);
    (recorder.beside(follower.clone()), ledger, follower)
}

#[tokio::test]
async fn record_and_erase_that_the_table_does_not_get_to_are_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, ledger, follower) = beside(folder.path());
    let submissions = [submission("US.one"), submission("")];
    let results = recorder.record(&submissions).await;
    assert!(matches!(results[0], Err(Refusal::Unknown(_))), "{results:?}");
    assert!(matches!(results[1], Err(Refusal::Invalid(_))), "what is known stays known");
    let erased = recorder.erase("US.one", "acme").await;
    assert!(matches!(erased, Err(Refusal::Unknown(_))), "{erased:?}");
    // Durable they are: once the table gets there, a repeat is answered, and changes nothing.
    let page = ledger.read_after(0).await.unwrap();
    assert_eq!(page.end.revision, 2);
    follower.advance(page.end, |_| None);
    assert!(recorder.record(&submissions).await[0].is_ok());
    assert_eq!(recorder.erase("US.one", "acme").await.unwrap().revision, 2);
}

#[tokio::test]
async fn record_is_answered_when_the_table_gets_there() {
    let folder = tempfile::tempdir().unwrap();
    let (recorder, ledger, follower) = beside(folder.path());
    let mut announcements = ledger.listen();
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

/// A change that denies somebody everything.
fn denying(user: &str) -> Change {
    let time = Timestamp::from_millis(1).unwrap();
    let mut record = Record::default();
    record.state.apply(&Effect::Word(Scope::All, Word::opt_out(time))).unwrap();
    let Returnable::Denial(entry) = denial(user) else { unreachable!() };
    let update = Update {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        record,
        history: vec![*entry],
        record_time: time,
    };
    Change { key: Key::from_bytes([1; 16]), base: Version::default(), update: Some(update) }
}

/// What a recorder is going to give back.
fn unsettled(recorder: &Recorder) -> Vec<Returnable> {
    let unsettled = recorder.acknowledged.memory().unsettled(consentd_os::clock::boot(), 10);
    unsettled.into_iter().map(|(_, what)| what).collect()
}

#[tokio::test]
async fn conflict_after_an_unanswered_attempt_keeps_the_denial_to_give_back() {
    for (maybe_written, kept) in [(true, vec![denial("US.one")]), (false, vec![])] {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, _, _) = beside(folder.path());
        let mut call = Call::new(&recorder, true);
        // As in a ledger that can fail over.
        call.keeps = true;
        let first = call.send(&[denying("US.one")]);
        let outcome = Appended::Conflict(Ok(StoredRecord::default()));
        call.answered(first, &[AppendReceipt { outcome, head_prefix: 0, maybe_written }]);
        call.finish().await.unwrap();
        assert_eq!(unsettled(&recorder), kept);
    }
}

#[tokio::test]
async fn loss_noticed_before_the_answer_gives_back_what_was_just_recorded() {
    for (is_lost, kept) in [(true, vec![denial("US.one")]), (false, vec![])] {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, ledger, follower) = beside(folder.path());
        let mut call = Call::new(&recorder, true);
        call.keeps = true;
        let appended = call.append(vec![denying("US.one")]).await.unwrap();
        assert!(matches!(appended[..], [Appended::Committed(1)]), "{appended:?}");
        follower.advance(ledger.read_after(0).await.unwrap().end, |_| None);
        // The task that gives back hears of the loss before this call keeps its denial.
        if is_lost {
            recorder.acknowledged.memory().doubt();
        }
        call.finish().await.unwrap();
        assert_eq!(unsettled(&recorder), kept);
    }
}

fn denial(user: &str) -> Returnable {
    let time = Timestamp::from_millis(1).unwrap();
    Returnable::Denial(Box::new(HistoryEntry {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        time,
        record_time: time,
        what: opt_out(),
    }))
}

#[test]
fn memory_gives_back_what_is_unknown_and_all_after_a_loss() {
    let mut memory = Memory::default();
    let erase = Returnable::Erase { key: Key::from_bytes([1; 16]), time: Timestamp::MIN };
    memory.keep(Duration::ZERO, denial("US.known"), true);
    memory.keep(Duration::ZERO, denial("US.unknown"), false);
    memory.keep(Duration::ZERO, erase.clone(), true);
    let unsettled = memory.unsettled(KEPT, 10);
    assert_eq!(unsettled, [(1, denial("US.unknown"))]);
    memory.settle(&HashSet::from([1]));
    assert_eq!(memory.unsettled(KEPT, 10), []);
    memory.doubt();
    let all = [(0, denial("US.known")), (1, denial("US.unknown")), (2, erase.clone())];
    assert_eq!(memory.unsettled(KEPT, 10), all);
    assert_eq!(memory.unsettled(KEPT, 1).len(), 1, "no more than asked for");
    // A person who is erased is not named any more; that a pair was erased is kept.
    memory.forget(|denial| denial.user_id == "US.known");
    assert_eq!(memory.unsettled(KEPT, 10), all[1..]);
    assert_eq!(memory.unsettled(KEPT + Duration::from_millis(1), 10), [], "too old");
}

#[test]
fn memory_of_what_was_too_old_before_it_was_settled_counts_it_as_given_up() {
    let mut memory = Memory::default();
    memory.keep(Duration::ZERO, denial("US.settled"), true);
    memory.keep(Duration::ZERO, denial("US.unsettled"), false);
    memory.keep(Duration::from_secs(1), denial("US.later"), false);
    assert_eq!((memory.unsettled(KEPT, 10).len(), memory.given_up()), (2, 0), "not too old yet");
    let late = KEPT + Duration::from_millis(1);
    assert_eq!(memory.unsettled(late, 10), [(2, denial("US.later"))]);
    assert_eq!(memory.given_up(), 1, "what is known to be in the ledger is not given up");
    assert_eq!(memory.given_up(), 0, "it is told once");
}

#[test]
fn memory_over_its_bound_forgets_the_oldest_and_counts_it_as_given_up() {
    let mut memory = Memory::default();
    for _ in 0..MAX_KEPT {
        memory.keep(Duration::ZERO, denial("US.one"), false);
    }
    assert_eq!(memory.given_up(), 0);
    memory.keep(Duration::ZERO, denial("US.one"), false);
    memory.keep(Duration::ZERO, denial("US.one"), false);
    assert_eq!(memory.given_up(), 2);
    let first = memory.unsettled(Duration::ZERO, 1);
    assert_eq!(first[0].0, 2, "the oldest that is left");
}

#[test]
fn memory_that_cannot_settle_some_asks_for_the_others_in_turn() {
    let mut memory = Memory::default();
    for user in ["US.0", "US.1", "US.2", "US.3", "US.4"] {
        memory.keep(Duration::ZERO, denial(user), false);
    }
    let mut asked = || -> Vec<u64> {
        let some = memory.unsettled(Duration::ZERO, 2);
        let numbers: Vec<u64> = some.iter().map(|(number, _)| *number).collect();
        // The first two are never settled: their record is unreadable, say.
        memory.settle(&numbers.iter().copied().filter(|number| *number > 1).collect());
        numbers
    };
    assert_eq!([asked(), asked(), asked()], [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!([asked(), asked()], [vec![0, 1], vec![0, 1]], "from the first again, every time");
}
