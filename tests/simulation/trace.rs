//! What happens, in words, for `CONSENTD_TRACE`.

use consentd::follower::state_machine::Action;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, LogBody, Tail, UnreadableRecord};

use crate::recorder::Step;
use crate::sidecar::Brought;
use crate::world::Happening;

/// A step.
pub fn told(happening: &Happening) -> String {
    match happening {
        Happening::AskedPage(id, question) => format!("asked {id}: {question:?}"),
        Happening::AskedBucket(id, question) => format!("asked {id}: {question:?}"),
        Happening::Brought(life, brought) => told_brought(*life, brought),
        Happening::Recorder(index, _, step) => {
            let step = match step {
                Step::Start => "starts",
                Step::Read => "reads",
                Step::Append(..) => "appends",
                Step::Appended => "is answered",
                Step::PropagationRound => "walks on",
                Step::Walked => "is answered for all ids",
                Step::Erase => "erases on",
                Step::Erased => "is answered that all ids are erased",
                Step::ErasedAgain => "has erased again",
                Step::TimedOut => "waits no longer",
            };
            format!("recorder {index} {step}")
        }
        Happening::Synced => "synced".to_owned(),
        Happening::Check(number) => format!("check {number}"),
        Happening::Expected(_, position) => format!("expected {}", position.revision),
        Happening::Repaired(_, number) => format!("bucket {number} is repaired"),
        Happening::Fault => "fault due".to_owned(),
        Happening::Struck => "fault due while it loads".to_owned(),
        Happening::Promoted => "the replica is promoted".to_owned(),
        Happening::Noticed(process) => format!("process {process} sees a loss"),
        Happening::LooksForLost(process, _) => format!("process {process} looks for what is lost"),
        Happening::Saved => "saved".to_owned(),
        Happening::Held => "other businesses may be held".to_owned(),
    }
}

/// What the wire brings.
pub fn told_brought(life: u64, brought: &Brought) -> String {
    match brought {
        Brought::Page(id, _, Some(page)) => {
            let count = match &page.tail {
                Tail::Entries(entries) => entries.len().to_string(),
                Tail::Trimmed => "trimmed".to_owned(),
            };
            let end = page.end;
            format!("[{life}] page {id}: {count} to {} {:02x?}", end.revision, &end.head[..2])
        }
        Brought::Page(id, _, None) => format!("[{life}] no page {id}"),
        Brought::Gone(id, _) => format!("[{life}] no ledger {id}"),
        Brought::Bucket(id, question, Ok(bucket)) => format!(
            "[{life}] bucket {id}: {} of {} at {} {:02x?}",
            bucket.pairs.len(),
            question.number,
            bucket.label.revision,
            &bucket.label.head[..2]
        ),
        Brought::Bucket(id, _, Err(why)) => format!("[{life}] no bucket {id}: {why:?}"),
        Brought::Again => format!("[{life}] again"),
        Brought::Tick => format!("[{life}] tick"),
        Brought::Wanted => format!("[{life}] the log is wanted"),
        Brought::ScrubDue => format!("[{life}] scrub"),
        Brought::Announced(announcement) => {
            let entries = announcement.entries.iter();
            let entries: Vec<_> = entries.map(|entry| entry.revision).collect();
            format!("[{life}] announced {entries:?}")
        }
        Brought::Missed => format!("[{life}] missed"),
        Brought::Held(businesses) => format!("[{life}] is to hold {businesses:?}"),
    }
}

/// An action as a trace tells it: without what says nothing in a simulation.
pub fn brief(action: &Action) -> String {
    let record = |user: &str, record: Result<&State, &UnreadableRecord>| match record {
        Err(_) => format!("{user}: unreadable"),
        Ok(state) => {
            let words = state.scopes.iter().map(|(scope, said)| {
                let choice =
                    said.choice.map(|choice| (choice.time.as_millis() % 1_000_000, choice.kind));
                format!("{scope} {choice:?}")
            });
            let words = words.collect::<Vec<_>>().join(", ");
            let mark = |mark: Option<(Timestamp, bool)>| {
                mark.map(|(time, set)| (time.as_millis() % 1_000_000, set))
            };
            let platform: Vec<_> =
                state.platform.iter().map(|(number, said)| (number, mark(said.latest))).collect();
            let suppression = mark(state.suppression);
            format!("{user}: {words}; platform {platform:?}, suppression {suppression:?}")
        }
    };
    let body =
        |body: &LogBody| record(&body.user_id, body.record.as_ref().map(|record| &record.state));
    let bucket = |bucket: &Bucket| {
        let pairs = bucket.pairs.iter().map(|(key, pair)| {
            record(&format!("{key:?}"), pair.as_ref().map(|record| &record.state))
        });
        let pairs = pairs.collect::<Vec<_>>().join("\n            ");
        format!("{} at {}: {pairs}", bucket.number, bucket.label.revision)
    };
    match action {
        Action::Apply(it) => format!("apply {}", body(it)),
        Action::NoteIds(it) => format!("meet {}", body(it)),
        Action::LoadBucket(it) => format!("load {}", bucket(it)),
        Action::CompareBucket(it) => format!("compare {}", bucket(it)),
        other => format!("{other:?}"),
    }
}
