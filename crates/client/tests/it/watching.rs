//! Changes as they are told.

use consentd_client::{Change, Event, Watch};
use tokio::time::timeout;

use crate::fixture::{PATIENCE, opt_in, patient, sidecar, signal};

async fn next(watch: &mut Watch) -> Change {
    timeout(PATIENCE, watch.next()).await.expect("a change").unwrap().expect("the watch goes on")
}

#[tokio::test]
async fn changes_are_told_and_a_restart_is_a_silence_and_a_reset() {
    let mut sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    client.record(opt_in("before")).await.unwrap();
    let mut watch = client.watch("acme");
    assert_eq!(next(&mut watch).await, Change::Reset);
    client.record(opt_in("15550123456")).await.unwrap();
    // Another business is of no matter.
    client.record(Event::opt_out("15550123456", "other", "*")).await.unwrap();
    client.record(Event::template_category("acme", "offer", "en", "marketing")).await.unwrap();
    let (user, business) = ("15550123456".to_owned(), "acme".to_owned());
    assert_eq!(next(&mut watch).await, Change::Changed { user, business: business.clone() });
    let template = Some(("offer".to_owned(), "en".to_owned()));
    assert_eq!(next(&mut watch).await, Change::TemplateChanged { template, business });
    sidecar.kill();
    assert_eq!(next(&mut watch).await, Change::Silent);
    sidecar.restart().await.unwrap();
    assert_eq!(next(&mut watch).await, Change::Reset);
}

#[tokio::test]
async fn a_silence_is_told_and_ends_with_a_reset() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    let mut watch = client.watch("");
    assert_eq!(next(&mut watch).await, Change::Reset);
    signal(&sidecar, "STOP");
    assert_eq!(next(&mut watch).await, Change::Silent);
    signal(&sidecar, "CONT");
    assert_eq!(next(&mut watch).await, Change::Reset);
}

#[tokio::test]
async fn an_old_connection_ends_in_a_silence_and_a_reset() {
    let sidecar = sidecar(&["--max-connection-age", "1s"]).await;
    let mut watch = patient(sidecar.address()).watch("acme");
    for _ in 0..3 {
        assert_eq!(next(&mut watch).await, Change::Reset);
        assert_eq!(next(&mut watch).await, Change::Silent);
    }
}
