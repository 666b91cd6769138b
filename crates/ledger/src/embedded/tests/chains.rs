//! The heads of entries are the same, whether histories are read by pair or by revision.

use super::*;
use crate::{Cursor, EntryPosition, MAX_PAGE};

/// The number of pairs, each with a history that spans several pages.
const USERS: u8 = 7;

/// The number of entries that one append adds to each pair.
const EACH: usize = 40;

async fn append_rounds(ledger: &Embedded, rounds: usize) {
    for round in 0..rounds {
        for n in 1..=USERS {
            let stored = read(ledger, key(n)).await;
            let record = Record { state: stored.record.state, ..stored.record };
            let entry = |number: usize| HistoryEntry {
                user_id: format!("US.{n}"),
                business_id: "acme".into(),
                time: at(1),
                record_time: at(i64::try_from(round).unwrap()),
                what: inbound(&format!("{round}-{number}")),
            };
            let update = Update {
                user_id: format!("US.{n}"),
                business_id: "acme".into(),
                record,
                history: (0..EACH).map(entry).collect(),
                record_time: at(i64::try_from(round).unwrap()),
            };
            let change = Change { key: key(n), base: stored.version, update: Some(update) };
            let appended = ledger.append(vec![change]).await.unwrap();
            assert!(matches!(appended[..], [Appended::Committed(_)]));
        }
    }
}

/// The positions of all entries, read by revision from `cursor`. With `forgetful`, every page starts
/// with an empty chain cache.
async fn places(
    ledger: &Embedded,
    mut cursor: Cursor,
    forgetful: bool,
) -> Vec<(String, EntryPosition)> {
    let mut found = Vec::new();
    loop {
        let page = ledger.events_after(cursor).await.unwrap();
        found.extend(page.entries.into_iter().map(|(place, entry)| (entry.user_id, place)));
        let Some(next) = page.next else { return found };
        cursor = if forgetful { Cursor { after: next.after, ..Cursor::default() } } else { next };
    }
}

#[tokio::test]
async fn every_entry_is_told_with_the_same_place_however_it_is_read() {
    let running = Running::on(Disk::new(Vec::new())).unwrap();
    let ledger = &running.ledger;
    append_rounds(ledger, 40).await;
    let all = places(ledger, Cursor::default(), false).await;
    assert!(all.len() > 2 * MAX_PAGE, "{} entries lie on more than two pages", all.len());
    assert_eq!(places(ledger, Cursor::default(), true).await, all, "a chain that was forgotten");
    for n in 1..=USERS {
        let history = ledger.history(key(n)).await.unwrap();
        assert!(history.intact);
        let theirs: Vec<_> = history.entries.iter().map(|(place, _)| *place).collect();
        let user = format!("US.{n}");
        let told: Vec<_> = all.iter().filter(|(name, _)| *name == user).map(|(_, p)| *p).collect();
        assert_eq!(told, theirs);
        assert_eq!(theirs.last().unwrap().head, history.record.chain);
        let numbers: Vec<_> = theirs.iter().map(|place| place.number).collect();
        assert_eq!(numbers, (1..=history.record.history_len).collect::<Vec<_>>());
    }

    // Expired entries keep their numbers, and the heads after them do not change.
    let keep = Retention { history: Duration::ZERO, ..FOREVER };
    let database = running.database();
    while super::super::retention::sweep(&database, 1, keep).unwrap() {}
    append_rounds(ledger, 1).await;
    let left = places(ledger, Cursor::default(), false).await;
    assert_eq!(left.len(), usize::from(USERS) * EACH);
    for n in 1..=USERS {
        let history = ledger.history(key(n)).await.unwrap();
        assert!(history.intact && history.expired > 0);
        let told: Vec<_> = left.iter().filter(|(name, _)| *name == format!("US.{n}")).collect();
        let theirs: Vec<_> = history.entries.iter().map(|(place, _)| *place).collect();
        assert_eq!(told.iter().map(|(_, place)| *place).collect::<Vec<_>>(), theirs);
        assert_eq!(theirs.last().unwrap().number, history.record.history_len);
        // The heads that were read before are unchanged.
        for (_, place) in all.iter().filter(|(name, _)| *name == format!("US.{n}")) {
            let index = usize::try_from(place.number).unwrap() - 1;
            assert_eq!(history.heads[index], place.head);
        }
    }
    drop(database);
    running.close().await;
}
