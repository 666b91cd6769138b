//! The screening of campaigns.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consentd_client::testing::Sidecar;
use consentd_client::{Campaign, Client, Form, Reason, Verdict};

use crate::fixture::{PATIENCE, opt_in, patient, prepare, sidecar, signal};

/// Of the large campaign.
const USERS: usize = 100_000;

fn campaign() -> Campaign {
    Campaign::new("acme", "marketing").form(Form::Template)
}

#[tokio::test]
async fn a_hundred_thousand_users_are_screened_over_a_restart_in_bounded_memory() {
    let mut sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    for number in (0..USERS).step_by(10_000) {
        client.record(opt_in(&format!("user-{number}"))).await.unwrap();
    }
    // Users are waited for 5 s. On a busy machine a restart may take as long, and then says nothing.
    let started = Instant::now();
    while let Some((lost, away)) = screen_over_restarts(&client, &mut sidecar).await {
        assert!(away > Duration::from_secs(2), "{lost}, though it was away for {away:?} only");
        assert!(started.elapsed() < PATIENCE, "{lost}, each time");
    }
}

/// Screens all users, and restarts the sidecar twice meanwhile. If a verdict is missing, gives why, and for how long the
/// sidecar was away at most.
async fn screen_over_restarts(
    client: &Client,
    sidecar: &mut Sidecar,
) -> Option<(Verdict, Duration)> {
    let taken = Arc::new(AtomicUsize::new(0));
    let taking = Arc::clone(&taken);
    let users = (0..USERS).map(move |number| {
        taking.fetch_add(1, Ordering::Relaxed);
        format!("user-{number}")
    });
    let mut filtered = client.filter(users, campaign());
    let (mut count, mut lost, mut away) = (0, None, Duration::ZERO);
    while let Some((user, verdict)) = filtered.next().await {
        assert_eq!(user, format!("user-{count}"));
        if verdict.is_unavailable() {
            lost = Some(verdict);
        } else {
            assert_eq!(verdict.is_allowed(), count % 10_000 == 0, "user {count}: {verdict}");
        }
        count += 1;
        // Four chunks are under way, and one more is read.
        assert!(taken.load(Ordering::Relaxed) <= count + 5_000);
        let begun = Instant::now();
        if count == USERS / 4 {
            sidecar.restart().await.unwrap();
        } else if count == USERS / 2 {
            signal(sidecar, "TERM");
            sidecar.wait().unwrap();
            sidecar.restart().await.unwrap();
        }
        away = away.max(begun.elapsed());
    }
    assert_eq!(count, USERS);
    lost.map(|lost| (lost, away))
}

#[tokio::test]
async fn malformed_users_and_malformed_campaigns_are_invalid() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    prepare(&client).await;
    let long = "x".repeat(1 << 20);
    let users = ["opted-in", "", "opted-out", "0171 1234567", &long, "opted-in"];
    let mut filtered = client.filter(users.map(str::to_owned), campaign());
    let mut said = Vec::new();
    while let Some((user, verdict)) = filtered.next().await {
        said.push((user.len(), verdict.is_allowed(), verdict.is_invalid(), verdict.reason()));
        if verdict.is_invalid() {
            assert_eq!(verdict.field(), "user_id");
        }
    }
    let expected = [
        (8, true, false, "OPTED_IN"),
        (0, false, true, ""),
        (9, false, false, "OPTED_OUT_ALL"),
        (12, false, true, ""),
        (1 << 20, false, true, ""),
        (8, true, false, "OPTED_IN"),
    ];
    assert_eq!(
        said,
        expected.map(|(len, allowed, invalid, reason)| (len, allowed, invalid, reason.into()))
    );

    let newsletter = Campaign::new("acme", "newsletter");
    let mut filtered = client.filter(["opted-in"], newsletter);
    let (_, verdict) = filtered.next().await.unwrap();
    assert!(verdict.is_invalid() && verdict.field() == "category", "{verdict:?}");
    assert!(filtered.next().await.is_none());
    assert!(client.filter(Vec::<String>::new(), campaign()).next().await.is_none());
}

#[tokio::test]
async fn a_sidecar_that_takes_fewer_recipients_is_asked_for_fewer() {
    for most in ["100", "1"] {
        let sidecar = sidecar(&["--max-recipients", most]).await;
        let client = patient(sidecar.address());
        prepare(&client).await;
        let users = (0..2_500).map(|number| if number % 2 == 0 { "opted-in" } else { "opted-out" });
        let mut filtered = client.filter(users, campaign());
        let mut count = 0;
        while let Some((_, verdict)) = filtered.next().await {
            assert_eq!(verdict.error(), None, "user {count} of {most} at once");
            assert_eq!(verdict.is_allowed(), count % 2 == 0, "user {count}: {verdict}");
            count += 1;
        }
        assert_eq!(count, 2_500);
    }
}

#[tokio::test]
async fn users_that_come_slowly_are_screened_as_they_come() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    prepare(&client).await;
    let (sender, users) = tokio::sync::mpsc::channel(1);
    let users = tokio_stream::wrappers::ReceiverStream::new(users);
    let mut filtered = client.filter_stream(users, campaign());
    for _ in 0..3 {
        sender.send("opted-in".to_owned()).await.unwrap();
        assert!(filtered.next().await.unwrap().1.is_allowed());
    }
    drop(sender);
    assert!(filtered.next().await.is_none());
}

#[tokio::test]
async fn without_a_sidecar_all_are_unavailable() {
    let client = patient("unix:/no/such/socket");
    let mut filtered = client.filter((0..2_500).map(|number| number.to_string()), campaign());
    let mut count = 0;
    while let Some((_, verdict)) = filtered.next().await {
        assert!(verdict.is_unavailable() && !verdict.is_allowed(), "{verdict}");
        assert_ne!(verdict.reason(), Reason::OptedIn.as_str_name());
        count += 1;
    }
    assert_eq!(count, 2_500);
}
