//! Ids of one person: what the recorder promises, on every ledger, wherever it is killed.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use consentd::metrics::Metrics;
use consentd::recorder::linked_ids::{MAX_IDS, PropagationRound, Step};
use consentd::recorder::{Recorded, Recorder, Refusal};
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{HistoryEntry, Link, Record};
use consentd_core::scope::Scope;
use consentd_core::state::ChoiceKind;
use consentd_core::submission::Submission;
use consentd_ledger::{Appended, Change, Ledger, Update, Version};

use crate::{FOREVER, Open, homes, opt_in, opt_out};

/// A while after 1970, before any ledger's now.
const LATER: i64 = 1_000_000;

pub(super) fn recorder(ledger: &Ledger) -> Recorder {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let keywords = Keywords::new(KeywordLists::default());
    Recorder::new(ledger.clone(), PlatformNames::default(), keywords, metrics)
}

fn said(user: &str, time: impl Into<Option<i64>>, what: What) -> Submission {
    let time = time.into().map(crate::at);
    let event = Event { user_id: user.into(), business_id: "acme".into(), time, what };
    Submission::new(event, String::new())
}

fn link(user: &str, other: &str) -> Submission {
    let what = What::Link { other_user_id: other.into(), moved: false };
    said(user, LATER, what)
}

fn consented(user: &str, time: i64) -> Submission {
    let mut what = opt_in("Yes to WhatsApp from Acme");
    if let What::OptIn { expire, .. } = &mut what {
        *expire = None;
    }
    said(user, time, what)
}

async fn record(recorder: &Recorder, submission: Submission) -> Recorded {
    recorder.record(&[submission]).await.remove(0)
}

async fn record_of(ledger: &Ledger, user: &str) -> Record {
    let identity = ledger.identity().await.unwrap();
    let key = identity.secret.read(user, "acme").unwrap();
    crate::read(ledger, key).await.record
}

/// Whether an opt-out stands where it counts for marketing.
async fn is_out(ledger: &Ledger, user: &str) -> bool {
    let standing = record_of(ledger, user).await.state;
    let standing = standing.standing_on(&Scope::parse("marketing").unwrap());
    standing.choice.is_some_and(|choice| choice.kind == ChoiceKind::OptOut)
}

async fn is_suppressed(ledger: &Ledger, user: &str) -> bool {
    record_of(ledger, user).await.state.suppression.is_some_and(|(_, suppressed)| suppressed)
}

async fn history(ledger: &Ledger, user: &str) -> Vec<HistoryEntry> {
    let history = consentd::history::of_pair(ledger, user, "acme").await.unwrap();
    assert!(history.intact);
    history.entries.into_iter().map(|(_, entry)| entry).collect()
}

async fn end(ledger: &Ledger) -> u64 {
    let mut changes = 0;
    for partition in ledger.partitions().await.unwrap() {
        changes += partition.read_after(0).await.unwrap().end.revision;
    }
    changes
}

/// A recorder's work, killed when it has waited so often for its ledger; what it came to, if it did.
async fn killed_after<T>(waits: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut waited = 0;
    std::future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if waited == waits => Poll::Ready(None),
        Poll::Pending => {
            waited += 1;
            Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn what_denies_holds_under_every_id_and_what_lifts_it_under_its_own() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        let (number, scoped, other) = ("15550123456", "US.1349", "US.77");
        for user in [number, scoped, other] {
            record(&recorder, consented(user, 10)).await.unwrap();
        }
        // What was denied before the link comes along, in both directions and with its own time.
        record(
            &recorder,
            said(number, 20, What::Platform { stopped: true, phone_number_id: None }),
        )
        .await
        .unwrap();
        let why = What::Suppression { suppressed: true, reference: "court".into() };
        record(&recorder, said(scoped, 30, why)).await.unwrap();
        assert!(record(&recorder, link(number, scoped)).await.unwrap().applied);
        for user in [number, scoped] {
            let state = record_of(&ledger, user).await.state;
            assert_eq!(state.platform.at(None).latest, Some((crate::at(20), true)));
            assert_eq!(state.suppression, Some((crate::at(30), true)));
            assert!(!is_out(&ledger, user).await, "opt-ins stay");
        }
        // What is denied under one id is denied under those that it is linked to by others.
        record(&recorder, link(other, scoped)).await.unwrap();
        let stop = What::Inbound { message_id: "wamid.1".into(), text: "STOP".into() };
        let stopped = record(&recorder, said(number, LATER + 10, stop)).await.unwrap();
        for user in [number, scoped, other] {
            assert!(is_out(&ledger, user).await, "{user}");
            let last = history(&ledger, user).await.pop().unwrap();
            assert_eq!((&*last.user_id, last.time), (user, crate::at(LATER + 10)));
            let What::OptOut { scope: Scope::All, reference } = last.what else { panic!() };
            assert!(reference.ends_with("keyword in message wamid.1"), "{reference}");
            assert_eq!(reference.contains("linked at 1970-01-01T00:16:40.000Z"), user != number);
        }
        assert_eq!(stopped.revision, end(&ledger).await, "who waits for it sees all of it");
        // What lifts it does so under the id that it was said under.
        record(&recorder, consented(scoped, LATER + 20)).await.unwrap();
        record(
            &recorder,
            said(number, LATER + 20, What::Platform { stopped: false, phone_number_id: None }),
        )
        .await
        .unwrap();
        for user in [number, scoped, other] {
            assert_eq!(is_out(&ledger, user).await, user != scoped, "{user}");
            let platform = record_of(&ledger, user).await.state.platform;
            assert_eq!(platform.is_stopped(), user != number, "{user}");
        }
        // And an older denial than that, told late, changes it under the others alone.
        record(&recorder, said(scoped, LATER + 15, opt_out("letter"))).await.unwrap();
        assert!(!is_out(&ledger, scoped).await && is_out(&ledger, number).await);
        Open { ledger, writer }.close().await;
    }
}

#[tokio::test]
async fn both_ids_name_each_other_and_a_repeat_changes_nothing() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        record(&recorder, said("US.1", 5, opt_out("letter"))).await.unwrap();
        let moved = What::Link { other_user_id: "+1 555 012 3456".into(), moved: true };
        let mut moved = said("US.1", LATER, moved);
        moved.request_id = "moved".into();
        let first = record(&recorder, moved.clone()).await.unwrap();
        assert!(first.applied);
        let linked = |record: &Record| {
            record.links.iter().map(|link| (link.user_id.clone(), link.moved)).collect::<Vec<_>>()
        };
        let names = linked(&record_of(&ledger, "US.1").await);
        assert_eq!(names, [("+1 555 012 3456".to_owned(), true)]);
        let names = linked(&record_of(&ledger, "15550123456").await);
        assert_eq!(names, [("US.1".to_owned(), false)], "nobody moved to US.1");
        let (before, told) = (end(&ledger).await, history(&ledger, "15550123456").await);
        assert_eq!(record(&recorder, moved).await.unwrap(), first);
        for repeat in [link("US.1", "15550123456"), link("1-555-012-3456", "US.1")] {
            assert!(!record(&recorder, repeat).await.unwrap().applied);
        }
        assert_eq!(end(&ledger).await, before, "not a byte is written");
        assert_eq!(history(&ledger, "15550123456").await, told);
        // One id is no other of its own, in whatever notation.
        let own = record(&recorder, link("15550123456", "+1 555 012 3456")).await;
        assert!(matches!(own, Err(Refusal::Invalid(found)) if found[0].field.contains("link")));
        Open { ledger, writer }.close().await;
    }
}

#[tokio::test]
async fn so_many_ids_make_a_person_and_no_more() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        for n in 1..MAX_IDS {
            record(&recorder, link(&format!("US.{}", n - 1), &format!("US.{n}"))).await.unwrap();
        }
        let last = format!("US.{}", MAX_IDS - 1);
        let one_more = record(&recorder, link(&last, "US.more")).await;
        assert!(matches!(one_more, Err(Refusal::TooManyIds(_))), "{one_more:?}");
        let from_outside = record(&recorder, link("US.more", "US.0")).await;
        assert!(matches!(from_outside, Err(Refusal::TooManyIds(_))), "{from_outside:?}");
        assert_eq!(record_of(&ledger, "US.more").await, Record::default());
        record(&recorder, said("US.0", LATER, opt_out("letter"))).await.unwrap();
        assert!(is_out(&ledger, &last).await, "a denial reaches the last of a chain");
        Open { ledger, writer }.close().await;
    }
}

/// Wherever a recorder is killed, its caller tries again, with another recorder; and until then
/// what was acknowledged holds.
#[tokio::test]
async fn a_recorder_that_is_killed_anywhere_leaves_nothing_allowed() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let (mut killed, mut whole) = (0, 0);
        for waits in 0.. {
            let users = ["one", "two", "three"].map(|name| format!("US.{waits}.{name}"));
            let [one, two, three] = users.each_ref().map(String::as_str);
            let other = recorder(&ledger);
            for user in [one, two, three] {
                record(&other, consented(user, 10)).await.unwrap();
            }
            record(&other, said(two, 20, opt_out("letter"))).await.unwrap();
            record(&other, link(three, two)).await.unwrap();
            // Killed while it links.
            let linked = killed_after(waits, record(&recorder(&ledger), link(one, two))).await;
            match &linked {
                Some(linked) => assert!(linked.is_ok(), "{linked:?}"),
                // What one id knows of is enough to finish it: another denial does as well.
                None if waits % 2 == 0 => drop(record(&other, link(one, two)).await.unwrap()),
                None => drop(record(&other, link(two, one)).await.unwrap()),
            }
            assert!(is_out(&ledger, one).await && is_out(&ledger, three).await, "{waits}");
            // Killed while it denies: then it is opted in again, and the denial told once more.
            let mut stop = said(one, LATER + 20, opt_out("again"));
            if waits % 2 == 0 {
                stop.event.time = None;
                stop.request_id = "stop".into();
            }
            for user in [one, two, three] {
                record(&other, consented(user, LATER + 10)).await.unwrap();
                assert!(!is_out(&ledger, user).await);
            }
            let denied = killed_after(waits, record(&recorder(&ledger), stop.clone())).await;
            if denied.is_none() {
                killed += 1;
                if is_out(&ledger, one).await {
                    let now = ledger.read(Vec::new()).await.unwrap().clock.as_millis();
                    record(&other, consented(one, now)).await.unwrap();
                }
                record(&other, stop).await.unwrap();
            } else {
                assert!(is_out(&ledger, one).await);
            }
            for user in [two, three] {
                assert!(is_out(&ledger, user).await, "{waits}: {user}");
            }
            whole += usize::from(linked.is_some() && denied.is_some());
            if whole > 4 {
                break;
            }
        }
        // Before its own change, and before the copies, at the least.
        assert!(killed >= 2, "it was killed at {killed} moments");
        Open { ledger, writer }.close().await;
    }
}

/// Whatever meets: links and denials by recorders that know nothing of each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_meets_no_denial_is_missed_under_any_id() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        for round in 0..20 {
            let user = |n: usize| format!("US.{round}.{n}");
            let mut at_once = Vec::new();
            for n in 0..4_usize {
                let recorder = recorder(&ledger);
                let topic = Scope::parse(&format!("utility.t{n}")).unwrap();
                let stop = What::OptOut { scope: topic, reference: String::new() };
                let stop = said(&user(n), LATER, stop);
                at_once.push(tokio::spawn({
                    let recorder = recorder.clone();
                    async move { record(&recorder, stop).await }
                }));
                let joined = link(&user(n), &user((n + 1 + round % 2) % 4));
                at_once.push(tokio::spawn(async move { record(&recorder, joined).await }));
            }
            for done in at_once {
                done.await.unwrap().unwrap();
            }
            for n in 0..4 {
                let known = record_of(&ledger, &user(n)).await.state.scopes.len();
                // Every other one, or all four.
                assert_eq!(known, if round % 2 == 0 { 4 } else { 2 }, "{}", user(n));
            }
        }
        Open { ledger, writer }.close().await;
    }
}

#[tokio::test]
async fn who_is_erased_is_erased_under_every_id_wherever_that_is_cut_short() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        let mut waits = 0;
        let mut cuts = 0;
        loop {
            let [a, b, c] = ["A", "B", "C"].map(|id| format!("US.{id}{waits}"));
            for user in [&a, &b, &c] {
                record(&recorder, consented(user, 10)).await.unwrap();
            }
            record(&recorder, link(&a, &b)).await.unwrap();
            record(&recorder, link(&b, &c)).await.unwrap();
            let done = killed_after(waits, recorder.erase(&a, "acme")).await;
            cuts += usize::from(done.is_none());
            recorder.erase(&a, "acme").await.unwrap();
            for user in [&a, &b, &c] {
                assert!(record_of(&ledger, user).await.is_tombstone(), "{waits} waits");
                assert!(history(&ledger, user).await.is_empty());
            }
            if done.is_some() {
                break;
            }
            waits += 1;
        }
        assert!(cuts > 1, "it was cut short {cuts} times");

        // What was said before comes again, and leaves no trace under any of the ids.
        let [a, b, c] = ["A", "B", "C"].map(|id| format!("US.{id}{waits}"));
        record(&recorder, link(&a, &b)).await.unwrap();
        record(&recorder, said(&c, LATER, opt_out("*"))).await.unwrap();
        for user in [&a, &b, &c] {
            assert!(record_of(&ledger, user).await.is_tombstone());
        }
        // Whoever still names an erased id, as after a crash, does not bring its name back.
        let d = format!("US.D{waits}");
        record(&recorder, consented(&d, 10)).await.unwrap();
        record(&recorder, link(&d, &a)).await.unwrap();
        assert!(record_of(&ledger, &d).await.state.suppression.is_some_and(|(_, set)| set));
        assert!(record_of(&ledger, &a).await.is_tombstone(), "the link was said before the erase");
        record(&recorder, said(&d, LATER + 5, opt_out("*"))).await.unwrap();
        assert!(record_of(&ledger, &a).await.is_tombstone());
        // A link that is said afterwards is one.
        let later = said(&a, None, What::Link { other_user_id: b.clone(), moved: false });
        assert!(record(&recorder, later).await.unwrap().applied);
        assert_eq!(record_of(&ledger, &a).await.links.len(), 1);
        assert_eq!(record_of(&ledger, &b).await.links.len(), 1);
        // Also where the other id has named this one all the while.
        let later = said(&d, None, What::Link { other_user_id: a.clone(), moved: false });
        record(&recorder, later).await.unwrap();
        assert_eq!(record_of(&ledger, &a).await.links.len(), 2);
        drop(recorder);
        Open { ledger, writer }.close().await;
    }
}

#[tokio::test]
async fn link_to_an_id_whose_tombstone_is_ahead_of_the_clock_holds_at_both_ends() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        let ahead = consentd_os::clock::wall().as_millis() + 240_000;
        record(&recorder, said("US.A", ahead, opt_out("utility"))).await.unwrap();
        recorder.erase("US.A", "acme").await.unwrap();
        let erased = record_of(&ledger, "US.A").await.erased.unwrap();
        assert!(erased.time >= crate::at(ahead), "it is stamped no earlier than the opt-out");
        record(&recorder, consented("US.B", LATER)).await.unwrap();
        let what = What::Link { other_user_id: "US.A".into(), moved: false };
        assert!(record(&recorder, said("US.B", None, what)).await.unwrap().applied);
        for user in ["US.A", "US.B"] {
            assert_eq!(record_of(&ledger, user).await.links.len(), 1, "{user}");
        }
        record(&recorder, said("US.A", ahead + 10_000, opt_out("marketing"))).await.unwrap();
        assert!(is_out(&ledger, "US.B").await);
        drop(recorder);
        Open { ledger, writer }.close().await;
    }
}

/// What was lifted under its own id since is still taken to the others, as of its own time.
#[tokio::test]
async fn a_denial_that_is_tried_again_after_it_was_lifted_reaches_the_other_ids() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        let mut halves = 0;
        for waits in 0.. {
            let [one, two] = ["one", "two"].map(|name| format!("US.{waits}.{name}"));
            record(&recorder, consented(&two, 10)).await.unwrap();
            record(&recorder, link(&one, &two)).await.unwrap();
            // On the very scope that is opted in to again: nothing is left of it there.
            let scope = Scope::parse("marketing").unwrap();
            let mut stop = said(&one, LATER, What::OptOut { scope, reference: String::new() });
            stop.request_id = "stop".into();
            let done = killed_after(waits, record(&recorder, stop.clone())).await;
            if done.is_some() {
                break;
            }
            // Another recorder, which waits for what the dead one had sent.
            if is_out(&ledger, &one).await && !is_out(&ledger, &two).await {
                halves += 1;
                record(&recorder, consented(&one, LATER + 1)).await.unwrap();
                assert!(!is_out(&ledger, &one).await);
                record(&recorder, stop).await.unwrap();
                assert!(is_out(&ledger, &two).await, "{waits} waits");
                assert!(!is_out(&ledger, &one).await, "it is as old as it was");
            }
        }
        assert!(halves > 0 || matches!(ledger, Ledger::Embedded(_)), "never cut in the middle");
        Open { ledger, writer }.close().await;
    }
}

/// The second verification of a link. A ledger may write the changes of different pairs in any
/// order. Here a denial comes under a third id, after that was compared and before the link is
/// written; the id in the middle had a later denial and a lift of it before it was linked, so the
/// denial changes nothing of its record and no comparison fails. Only who reads all of them again
/// finds it.
#[tokio::test]
async fn a_link_is_proven_only_once_all_ids_were_read_behind_both_its_ends() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let recorder = recorder(&ledger);
        let secret = ledger.identity().await.unwrap().secret.clone();
        let key = |user: &str| secret.read(user, "acme").unwrap();
        let suppression = |suppressed| What::Suppression { suppressed, reference: String::new() };
        // The later one of them is remembered after it was lifted, so that an earlier one is no news.
        record(&recorder, said("US.2", LATER + 80, suppression(true))).await.unwrap();
        record(&recorder, said("US.2", LATER + 100, suppression(false))).await.unwrap();
        record(&recorder, link("US.2", "US.3")).await.unwrap();
        assert!(!is_suppressed(&ledger, "US.3").await, "what was lifted is not copied");
        // The link's own change, under the id that it was given for.
        let time = crate::at(LATER);
        let to_second = Link { user_id: "US.2".into(), time, moved: false };
        let mut own = Record::default();
        own.link(to_second.clone());
        let what = What::Link { other_user_id: "US.2".into(), moved: false };
        let (user_id, business_id) = ("US.1".to_owned(), "acme".to_owned());
        let (user, business) = (user_id.clone(), business_id.clone());
        let entry = HistoryEntry { user_id, business_id, time, record_time: time, what };
        let update = Update {
            user_id: user,
            business_id: business,
            record: own,
            history: vec![entry],
            record_time: time,
        };
        let own = Change { key: key("US.1"), base: Version::default(), update: Some(update) };
        assert!(matches!(ledger.append(vec![own]).await.unwrap()[..], [Appended::Committed(_)]));

        let mut walk = PropagationRound::new(&secret, "acme", "US.1", vec![to_second], Vec::new());
        let mut denied = false;
        loop {
            match walk.step() {
                Step::Read(keys) => {
                    let read = ledger.read(keys.clone()).await.unwrap();
                    walk.read(&keys, read).unwrap();
                }
                Step::Append(changes) => {
                    assert_eq!(changes.len(), 3);
                    let mut outcomes = Vec::new();
                    for change in changes.into_iter().rev() {
                        let is_third = change.key == key("US.3");
                        outcomes.extend(ledger.append(vec![change]).await.unwrap());
                        if is_third && !denied {
                            denied = true;
                            let before = record_of(&ledger, "US.2").await;
                            let stop = said("US.3", LATER + 50, suppression(true));
                            record(&recorder, stop).await.unwrap();
                            assert_eq!(record_of(&ledger, "US.2").await, before, "it is no news");
                            assert!(!is_suppressed(&ledger, "US.2").await, "it is older");
                        }
                    }
                    if walk.appended(&outcomes).unwrap().is_some() {
                        break;
                    }
                }
            }
        }
        assert!(
            denied && is_suppressed(&ledger, "US.1").await,
            "the link was acknowledged without it"
        );
        Open { ledger, writer }.close().await;
    }
}
