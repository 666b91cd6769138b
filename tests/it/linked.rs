//! One person under several ids, at the real binary.

use consentd::grpc::pb::consent_event::What;
use consentd::grpc::pb::{self, Reason};

use crate::sidecar::{Sidecar, event, opt_in, opt_out, question, run};

fn link(other: &str, moved: bool) -> What {
    What::Link(pb::Link { other_user_id: other.into(), moved })
}

#[tokio::test]
async fn a_stop_under_one_id_denies_under_the_other_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let (number, scoped) = ("+1 555 012 3456", "US.13491208655302741918");
    for user in [number, scoped] {
        let mut given = event(user, "acme", opt_in("marketing"));
        given.request_id = "signup".into();
        records.record_event(given).await.unwrap();
    }
    let linked = records.record_event(event(number, "acme", link(scoped, false))).await.unwrap();
    assert!(linked.get_ref().applied);
    let again = records.record_event(event(scoped, "acme", link(number, false))).await.unwrap();
    assert!(!again.get_ref().applied, "it is the same link");
    let stop = records.record_event(event(scoped, "acme", opt_out("*"))).await.unwrap();
    for user in [number, scoped] {
        let mut ask = question(user, "acme", "marketing");
        ask.min_revision = stop.get_ref().revision;
        let answer = checks.can_send(ask).await.unwrap().into_inner();
        assert_eq!(answer.reason(), Reason::OptedOutAll, "{user}");
    }
    // Another business knows nothing of it.
    let other = checks.can_send(question(number, "bakery", "marketing")).await.unwrap();
    assert_eq!(other.get_ref().reason(), Reason::NoConsent);
    // Opted in again under one id, and under that alone.
    let mut given = event(number, "acme", opt_in("marketing"));
    given.request_id = "again".into();
    records.record_event(given).await.unwrap();
    for (user, reason) in [(number, Reason::OptedIn), (scoped, Reason::OptedOutAll)] {
        let answer = checks.can_send(question(user, "acme", "marketing")).await.unwrap();
        assert_eq!(answer.get_ref().reason(), reason, "{user}");
    }
}

#[tokio::test]
async fn a_number_that_changed_takes_the_stop_along_and_the_history_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let to = sidecar.grpc.clone();
    let told = |command: &[&str]| {
        let (code, out, error) = run(&[command, &["--addr", &to]].concat());
        assert_eq!((code, error.as_str()), (0, ""), "{command:?}");
        out
    };
    let mut records = sidecar.records().await;
    let mut stop = event("15550123456", "acme", opt_out("*"));
    if let Some(What::OptOut(out)) = &mut stop.event.as_mut().unwrap().what {
        out.reference = "letter of 3 May".into();
    }
    records.record_event(stop).await.unwrap();
    let moved = ["record", "link", "15550123456", "acme", "15550199999", "--moved"];
    assert!(told(&moved).starts_with("recorded, revision "));
    assert!(told(&moved).starts_with("recorded before"), "it is a repeat");
    let mut checks = sidecar.checks().await;
    let answer = checks.can_send(question("15550199999", "acme", "utility")).await.unwrap();
    assert_eq!(answer.get_ref().reason(), Reason::OptedOutAll);
    let old = told(&["history", "15550123456", "acme"]);
    assert!(old.contains("moved to 15550199999"), "{old}");
    let new = told(&["history", "15550199999", "acme"]);
    assert!(new.contains("is also 15550123456"), "{new}");
    assert!(new.contains("opt-out * [under the id linked at 20"), "{new}");
    // An export has both, and says the same again.
    let exported = told(&["export"]);
    assert_eq!(exported.matches("\"link\":").count(), 2, "{exported}");
    let own = ["record", "link", "15550123456", "acme", "+1 555 012 3456"];
    let (code, _, error) = run(&[&own[..], &["--addr", &to]].concat());
    assert!(code != 0 && error.contains("OTHER"), "{error}");
}
