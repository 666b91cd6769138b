//! The platform sends everything again, at once and to several receivers, until it is recorded.

use consentd::grpc::pb::Reason;
use tokio::task::JoinSet;

use super::client::{
    Files, NUMBER, SECRET, USER, acme, answers, deliver, fixture, history, post, redis, sign,
};
use crate::sidecar::{PATIENCE, eventually};

/// Delivers until it is recorded, as the platform does.
async fn insist(address: String, body: Vec<u8>) {
    let delivered = async {
        loop {
            match deliver(&address, &body).await {
                200 => return,
                503 => {}
                status => panic!("{status}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, delivered).await.expect("it is recorded in the end");
}

#[tokio::test]
async fn repeats_at_once_to_two_receivers_change_nothing() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&acme());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    let receiver = files.receive(&ledger);
    let names = ["inbound_text", "several", "inbound_stop", "user_preferences_signup"];
    let mut deliveries = JoinSet::new();
    for place in 0..60 {
        let address = if place % 2 == 0 { &sidecar.webhook } else { &receiver.webhook };
        deliveries.spawn(insist(address.clone(), fixture(names[place % 4], NUMBER)));
    }
    while let Some(delivered) = deliveries.join_next().await {
        delivered.unwrap();
    }
    answers(&sidecar, USER, "acme", "marketing", Reason::OptedOutAll).await;
    // What came of each update, whichever came first: a later message may have been there before
    // an earlier one, which then changed nothing. All of them come to nine events: three messages and a
    // failure, two opt-outs with the messages that said so, an opt-in and the resume that it implies.
    let before = history(&sidecar, USER, "acme").await;
    assert!((4..=9).contains(&before.len()), "{} events", before.len());
    for name in names {
        insist(receiver.webhook.clone(), fixture(name, NUMBER)).await;
        insist(sidecar.webhook.clone(), fixture(name, NUMBER)).await;
    }
    assert_eq!(history(&sidecar, USER, "acme").await, before);
}

#[tokio::test]
async fn without_a_ledger_the_platform_is_told_to_come_again() {
    let (mut redis, ledger) = redis(&["--appendonly", "yes", "--appendfsync", "always"]);
    let files = Files::new(&acme());
    let sidecar = files.serve(&ledger, &["--record", "127.0.0.1:0"]).await;
    let receiver = files.receive(&ledger);
    let stop = fixture("inbound_stop", NUMBER);
    redis.kill();
    for address in [&sidecar.webhook, &receiver.webhook] {
        let answer = post(address, &sign(SECRET, &stop), &stop).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.head.contains("\r\nretry-after: 5"), "{}", answer.head);
        // What is nobody's affair needs no ledger.
        assert_eq!(deliver(address, &fixture("status_delivered", NUMBER)).await, 200);
    }
    redis.start_again();
    eventually("it is recorded", || async { deliver(&receiver.webhook, &stop).await == 200 }).await;
    answers(&sidecar, USER, "acme", "utility", Reason::OptedOutAll).await;
    let failed = "consent_webhook_updates_total{kind=\"message\",outcome=\"failed\"}";
    assert!(crate::faults::stage::metric(&receiver, failed).await >= 1.0);
    assert!(receiver.said().contains("so that WhatsApp sends them again"), "{}", receiver.said());
}

#[tokio::test]
async fn a_receiver_drains_and_its_ledger_may_not_be_a_file() {
    let (_redis, ledger) = redis(&[]);
    let files = Files::new(&acme());
    let mut receiver = files.receive(&ledger);
    assert_eq!(deliver(&receiver.webhook, &fixture("inbound_stop", NUMBER)).await, 200);
    let (status, _) = receiver.get("/livez").await;
    assert_eq!(status, 200);
    receiver.signal("TERM");
    assert!(receiver.ended().await.success(), "{}", receiver.said());
    let flags = files.flags();
    let mut arguments = vec!["webhook", "--ledger", "file:a.redb"];
    arguments.extend(flags.iter().map(String::as_str));
    let (code, _, error) = crate::sidecar::run(&arguments);
    assert_eq!(code, 2);
    assert!(error.contains("--ledger: a file belongs to one process"), "{error}");
}
