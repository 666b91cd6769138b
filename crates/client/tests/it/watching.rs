//! Changes as they are told.

use consentd_client::{Change, Event, Watch};
use tokio::time::timeout;

use crate::fixture::{PATIENCE, opt_in, patient, sidecar, signal};

/// What a watch tells, and each reset once. A sidecar that has just loaded its table may send a second one: all may have
/// changed while it loaded.
struct Told {
    watch: Watch,
    last: Option<Change>,
}

impl Told {
    fn by(watch: Watch) -> Self {
        Self { watch, last: None }
    }

    async fn next(&mut self) -> Change {
        loop {
            let told = timeout(PATIENCE, self.watch.next()).await.expect("a change");
            let change = told.unwrap().expect("the watch goes on");
            let is_repeated = change == Change::Reset && self.last == Some(Change::Reset);
            self.last = Some(change.clone());
            if !is_repeated {
                return change;
            }
        }
    }
}

#[tokio::test]
async fn changes_are_told_and_a_restart_is_a_silence_and_a_reset() {
    let mut sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    client.record(opt_in("before")).await.unwrap();
    let mut watch = Told::by(client.watch("acme"));
    assert_eq!(watch.next().await, Change::Reset);
    client.record(opt_in("15550123456")).await.unwrap();
    // Another business is of no matter.
    client.record(Event::opt_out("15550123456", "other", "*")).await.unwrap();
    client.record(Event::template_category("acme", "offer", "en", "marketing")).await.unwrap();
    let (user, business) = ("15550123456".to_owned(), "acme".to_owned());
    assert_eq!(watch.next().await, Change::Changed { user, business: business.clone() });
    let template = Some(("offer".to_owned(), "en".to_owned()));
    assert_eq!(watch.next().await, Change::TemplateChanged { template, business });
    sidecar.kill();
    assert_eq!(watch.next().await, Change::Silent);
    sidecar.restart().await.unwrap();
    assert_eq!(watch.next().await, Change::Reset);
}

#[tokio::test]
async fn a_silence_is_told_and_ends_with_a_reset() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    let mut watch = Told::by(client.watch(""));
    assert_eq!(watch.next().await, Change::Reset);
    signal(&sidecar, "STOP");
    assert_eq!(watch.next().await, Change::Silent);
    signal(&sidecar, "CONT");
    assert_eq!(watch.next().await, Change::Reset);
}

#[tokio::test]
async fn an_old_connection_ends_in_a_silence_and_a_reset() {
    let sidecar = sidecar(&["--max-connection-age", "1s"]).await;
    let mut watch = Told::by(patient(sidecar.address()).watch("acme"));
    for _ in 0..3 {
        assert_eq!(watch.next().await, Change::Reset);
        assert_eq!(watch.next().await, Change::Silent);
    }
}
