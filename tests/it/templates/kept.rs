//! What is known of templates is kept as consent is: verified, copied, and retained where a ledger loses it.

use consentd::grpc::pb::Reason;

use super::{PERSON, about, answers, category, opt_in_to, record, restriction, then};
use crate::faults::redis::Redis;
use crate::faults::stage::{ledger_at, serve, status, wait_for_metric};
use crate::sidecar::{Sidecar, run};
use crate::webhook::client::{file, redis};
use crate::world::wall;

fn redis_without_ledger() -> (Redis, String) {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    (redis, ledger)
}

#[tokio::test]
async fn rules_are_verified_copied_and_survive_a_restart_like_any_pair() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    opt_in_to(&sidecar, PERSON, "utility").await;
    for class in ["utility", "marketing"] {
        record(&sidecar, then(category("sale", class), wall())).await;
    }
    record(&sidecar, then(category("order", "utility"), wall())).await;
    sidecar.kill();
    drop(sidecar);
    let from = file(folder.path());
    let (server, to) = redis_without_ledger();
    for arguments in [
        &["ledger", "verify", "--ledger", &from][..],
        &["ledger", "copy", &from, &to, "--buckets", "4", "--still", "10ms"],
        &["ledger", "verify", "--ledger", &to],
    ] {
        let (code, printed, error) = run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {printed}{error}");
    }
    let copied = serve(&to, &["--record", "127.0.0.1:0"], &[]);
    copied.wait_until_live().await;
    let restarted = Sidecar::live(folder.path(), &[]).await;
    for sidecar in [&copied, &restarted] {
        let sent = |name| about(PERSON, "utility", (name, "en"));
        answers(sidecar, &sent("sale"), (Reason::NoConsent, "marketing")).await;
        answers(sidecar, &sent("order"), (Reason::OptedIn, "utility")).await;
        let status = status(sidecar).await;
        assert_eq!(status.pairs, 3, "a template is a pair of the table like any other");
    }
    drop(server);
}

#[tokio::test]
async fn rules_that_a_ledger_loses_stay_in_force_and_are_given_back() {
    let (mut server, ledger) = redis(&[]);
    let recorder = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
    let reader = serve(&ledger, &[], &[]);
    for sidecar in [&recorder, &reader] {
        sidecar.wait_until_live().await;
    }
    opt_in_to(&recorder, PERSON, "utility").await;
    record(&recorder, then(category("sale", "utility"), wall())).await;
    let old = server.dump();
    record(&recorder, then(category("sale", "marketing"), wall())).await;
    record(&recorder, then(restriction(true, Some(4_102_444_800)), wall())).await;
    let (sale, any) =
        (about(PERSON, "utility", ("sale", "en")), about(PERSON, "utility", ("any", "en")));
    let so = (Reason::NoConsent, "marketing");
    for asked in [&sale, &any] {
        answers(&reader, asked, so).await;
    }
    server.restart_from(Some(&old));
    wait_for_metric(&reader, "consent_resyncs_total{cause=\"fork\"}", 1.0).await;
    for sidecar in [&recorder, &reader] {
        sidecar.wait_until_live().await;
        for asked in [&sale, &any] {
            answers(sidecar, asked, so).await;
        }
    }
    // Given back, they are in the ledger for those who never saw them, and the restriction has its end.
    wait_for_metric(&recorder, "consent_denials_given_back_total", 2.0).await;
    let newcomer = serve(&ledger, &[], &[]);
    newcomer.wait_until_live().await;
    for asked in [&sale, &any] {
        answers(&newcomer, asked, so).await;
    }
    let (_, listed, _) =
        run(&["template", "list", "--business", "acme", "--addr", &recorder.record]);
    assert!(listed.contains("until 2100-01-01T00:00:00Z\nsale en: marketing, since "), "{listed}");
}
