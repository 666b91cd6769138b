//! Stops inside WhatsApp at several numbers of a business, on every ledger.

use consentd_core::event::{CODE_PLATFORM_STOPPED, Event, What};
use consentd_core::id::PhoneNumberId;
use consentd_core::platform_stops::{MAX_NUMBERS, PlatformStops};
use consentd_core::submission::Submission;
use consentd_ledger::Ledger;

use crate::linked::recorder;
use crate::{FOREVER, Open, homes};

const USER: &str = "15550123456";
const SCOPED: &str = "US.1349";

fn number(id: &str) -> Option<PhoneNumberId> {
    PhoneNumberId::parse(id).ok()
}

fn said(user: &str, time: i64, what: What) -> Submission {
    let event = Event {
        user_id: user.into(),
        business_id: "acme".into(),
        time: Some(crate::at(time)),
        what,
    };
    Submission::new(event, String::new())
}

fn preference(user: &str, time: i64, stopped: bool, at: &str) -> Submission {
    said(user, time, What::Platform { stopped, phone_number_id: number(at) })
}

async fn record(ledger: &Ledger, submissions: &[Submission]) -> Vec<bool> {
    let recorded = recorder(ledger).record(submissions).await;
    recorded.into_iter().map(|outcome| outcome.unwrap().applied).collect()
}

async fn stops_of(ledger: &Ledger, user: &str) -> PlatformStops {
    let key = ledger.identity().await.unwrap().secret.read(user, "acme").unwrap();
    crate::read(ledger, key).await.record.state.platform
}

/// At which numbers marketing is stopped, and since when.
fn standing(stops: &PlatformStops) -> Vec<(&str, i64)> {
    let stops = stops.standing();
    stops.map(|(id, time)| (id.map_or("", PhoneNumberId::as_str), time.as_millis())).collect()
}

#[tokio::test]
async fn each_number_has_its_own_stop_under_every_id_and_in_every_reading() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let failure = What::Failure { code: CODE_PLATFORM_STOPPED, phone_number_id: number("22") };
        let before = [
            preference(USER, 10, true, "11"),
            said(USER, 20, failure.clone()),
            preference(USER, 30, true, ""),
            preference(USER, 40, false, "11"),
            preference(USER, 41, false, "33"),
        ];
        assert_eq!(record(&ledger, &before).await, [true; 5]);
        let link = What::Link { other_user_id: SCOPED.into(), moved: false };
        record(&ledger, &[said(USER, 50, link)]).await;
        for user in [USER, SCOPED] {
            let stops = stops_of(&ledger, user).await;
            assert_eq!(standing(&stops), [("", 30), ("22", 20)], "{user}");
        }
        // A denial goes along with its number; what lifts it counts where it was said.
        record(&ledger, &[preference(SCOPED, 60, true, "11")]).await;
        record(&ledger, &[preference(SCOPED, 70, false, "22")]).await;
        let own = stops_of(&ledger, USER).await;
        assert_eq!(standing(&own), [("", 30), ("11", 60), ("22", 20)]);
        assert_eq!(standing(&stops_of(&ledger, SCOPED).await), [("", 30), ("11", 60)]);
        // What a failover lost is recorded again with its number; what is there changes nothing.
        let again = |one: &Submission| Submission { is_replay: true, ..one.clone() };
        let again: Vec<_> = before[..3].iter().map(again).collect();
        assert_eq!(record(&ledger, &again).await, [false; 3]);
        assert_eq!(stops_of(&ledger, USER).await, own);
        let history = consentd::history::of_pair(&ledger, USER, "acme").await.unwrap();
        assert!(history.intact);
        let mut replayed = PlatformStops::default();
        for (_, entry) in &history.entries {
            match &entry.what {
                What::Platform { stopped, phone_number_id } => {
                    replayed.apply(phone_number_id.as_ref(), entry.time, *stopped);
                }
                What::Failure { phone_number_id, .. } => {
                    replayed.apply(phone_number_id.as_ref(), entry.time, true);
                }
                _ => {}
            }
        }
        assert_eq!(replayed, own, "the history says all that the record does");
        Open { ledger, writer }.close().await;
    }
}

#[tokio::test]
async fn stop_beyond_the_most_numbers_is_taken_and_kept_without_its_number() {
    for home in homes() {
        let Open { ledger, writer } = home.open(FOREVER);
        let most = i64::try_from(MAX_NUMBERS).unwrap();
        let id = |n: i64| format!("number-{n:02}");
        let all: Vec<_> = (0..most).map(|n| preference(USER, 10 + n, n % 2 == 0, &id(n))).collect();
        record(&ledger, &all).await;
        let more = [
            preference(USER, 200, false, "one-more"),
            preference(USER, 210, true, "one-more"),
            preference(USER, 210, true, "one-more"),
            preference(USER, 220, false, "one-more"),
        ];
        assert_eq!(record(&ledger, &more).await, [false, true, false, false]);
        let stops = stops_of(&ledger, USER).await;
        assert_eq!(stops.numbered().count(), MAX_NUMBERS);
        assert_eq!(standing(&stops)[0], ("", 210));
        let link = What::Link { other_user_id: SCOPED.into(), moved: false };
        record(&ledger, &[said(USER, 300, link)]).await;
        let copied = stops_of(&ledger, SCOPED).await;
        assert_eq!(standing(&copied), standing(&stops));
        record(&ledger, &[preference(USER, 400, false, "")]).await;
        assert_eq!(standing(&stops_of(&ledger, USER).await), standing(&stops)[1..]);
        Open { ledger, writer }.close().await;
    }
}
