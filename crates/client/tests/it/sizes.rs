//! Many at once, and odd ones among them.

use consentd_client::Client;
use tonic::Code;

use crate::fixture::{PATIENCE, patient, prepare, question, sidecar};

#[tokio::test]
async fn ten_thousand_concurrent_checks_are_answered() {
    let sidecar = sidecar(&["--max-in-flight", "100000"]).await;
    prepare(&patient(sidecar.address())).await;
    for coalesce in [true, false] {
        let client = Client::builder().address(sidecar.address()).coalesce(coalesce);
        let client = client.deadline(PATIENCE).build().unwrap();
        let asking = (0..10_000).map(|number| {
            let client = client.clone();
            let user = if number % 2 == 0 { "opted-in" } else { "opted-out" };
            tokio::spawn(async move { client.may_send(question(user)).await })
        });
        for (number, asked) in asking.collect::<Vec<_>>().into_iter().enumerate() {
            let verdict = asked.await.unwrap();
            assert_eq!(verdict.error(), None, "coalesced: {coalesce}");
            assert_eq!(verdict.is_allowed(), number % 2 == 0, "{verdict}");
        }
    }
}

#[tokio::test]
async fn a_sidecar_that_takes_smaller_batches_is_asked_smaller_ones() {
    for most in ["100", "1"] {
        let sidecar = sidecar(&["--max-batch", most]).await;
        let client = patient(sidecar.address());
        prepare(&client).await;
        for _ in 0..2 {
            let asking = (0..3_000).map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.may_send(question("opted-in")).await })
            });
            for asked in asking.collect::<Vec<_>>() {
                let verdict = asked.await.unwrap();
                assert!(verdict.is_allowed(), "{verdict}");
            }
        }
    }
}

#[tokio::test]
async fn odd_questions_harm_no_others() {
    let sidecar = sidecar(&[]).await;
    let client = patient(sidecar.address());
    prepare(&client).await;
    let odd = [
        String::new(),
        "\0".to_owned(),
        "a\nb".to_owned(),
        "u\u{200b}".to_owned(),
        "x".repeat(200),
        "x".repeat(4_096),
        "x".repeat(1 << 20),
        "0171 1234567".to_owned(),
    ];
    let asking = (0..20).flat_map(|_| odd.iter().chain([const { &String::new() }])).map(|user| {
        let (client, user) = (client.clone(), user.clone());
        tokio::spawn(async move {
            let good = client.may_send(question("opted-in"));
            tokio::join!(client.may_send(question(&user)), good)
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        let (odd, good) = asked.await.unwrap();
        assert!(odd.is_invalid() && !odd.is_unavailable(), "{odd:?}");
        assert!(matches!(odd.code(), Some(Code::InvalidArgument | Code::OutOfRange)));
        assert!(good.is_allowed(), "{good:?}");
    }
}
