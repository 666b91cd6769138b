//! Pairs that kept the key of an earlier reading of user ids.
//!
//! A copy re-keys the pairs of an older ledger, except for those whose names are gone, such as tombstones. A
//! check of a notation that was read otherwise looks at both keys. Before anything more is recorded of such an
//! id, what the former pair denies is recorded under the key of today as well, as of its own time.

use std::collections::BTreeSet;

use super::linked_ids::denials_of;
use super::{MAX_EVENTS, Recorder, Refusal};
use consentd_core::event::{Event, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Record;
use consentd_core::submission::Submission;
use consentd_ledger::MAX_APPEND;

/// An id that versions before read otherwise, at a business.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Renamed<'a> {
    user_id: &'a str,
    business_id: &'a str,
    former: [u8; 16],
}

impl Recorder {
    /// Records what the former pairs of the ids that these events name deny.
    pub(super) async fn take_over_former(&self, submissions: &[Submission]) -> Result<(), Refusal> {
        // Most events name no such id, and this is then all that is done.
        let has_former = |event: &Event| {
            let any = KeySecret::new(&[0; 16]);
            ids(event).any(|id| any.read_formerly(id, &event.business_id).is_some())
        };
        if !submissions.iter().any(|one| has_former(&one.event)) {
            return Ok(());
        }
        let identity = self.ledger.identity().await?;
        let renamed: BTreeSet<Renamed<'_>> = submissions
            .iter()
            .flat_map(|one| ids(&one.event).map(|id| (id, one.event.business_id.as_str())))
            .filter_map(|(user_id, business_id)| {
                let former = identity.secret.read_formerly(user_id, business_id)?.to_bytes();
                Some(Renamed { user_id, business_id, former })
            })
            .collect();
        let renamed: Vec<_> = renamed.into_iter().collect();
        let mut events = Vec::new();
        for some in renamed.chunks(MAX_APPEND) {
            let keys = some.iter().map(|one| Key::from_bytes(one.former)).collect();
            for (one, stored) in some.iter().zip(self.ledger.read(keys).await?.pairs) {
                events.extend(taken_over(one, &stored?.record));
            }
        }
        for some in events.chunks(MAX_EVENTS) {
            for result in self.record_events(some, true).await {
                match result {
                    // An id that is refused today is found under its former key alone.
                    Ok(_) | Err(Refusal::Invalid(_)) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
        }
        Ok(())
    }
}

/// The user ids that an event names.
fn ids(event: &Event) -> impl Iterator<Item = &str> {
    let other = match &event.what {
        What::Link { other_user_id, .. } => Some(other_user_id.as_str()),
        _ => None,
    };
    std::iter::once(event.user_id.as_str()).chain(other)
}

/// The denials of a former pair, as events of the id. Those that are known change nothing.
fn taken_over(
    Renamed { user_id, business_id, .. }: &Renamed<'_>,
    record: &Record,
) -> impl Iterator<Item = Submission> {
    let (user_id, business_id) = ((*user_id).to_owned(), (*business_id).to_owned());
    denials_of(&record.state).into_iter().map(move |denial| {
        let event = Event {
            user_id: user_id.clone(),
            business_id: business_id.clone(),
            time: Some(denial.time),
            what: denial.what,
        };
        Submission { is_replay: true, ..Submission::new(event, String::new()) }
    })
}
