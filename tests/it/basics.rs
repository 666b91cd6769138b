//! What a newcomer does first.

use crate::sidecar::{Sidecar, event, inbound, opt_in, opt_out, question};
use consentd::grpc::pb::{self, Reason};

#[tokio::test]
async fn an_opt_in_allows_and_a_stop_denies_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let ask = question("+1 (555) 012-3456", "acme", "marketing");
    let answer = checks.can_send(ask.clone()).await.unwrap().into_inner();
    assert_eq!((answer.allowed, answer.reason()), (false, Reason::NoConsent));

    let mut given = event("15550123456", "acme", opt_in("marketing"));
    given.request_id = "signup-1".into();
    let recorded = records.record_event(given).await.unwrap().into_inner();
    assert!(recorded.applied);
    let answer = checks.can_send(ask.clone()).await.unwrap().into_inner();
    assert_eq!((answer.allowed, answer.reason()), (true, Reason::OptedIn));
    assert!(answer.template_allowed && !answer.free_form_allowed);
    assert_eq!(answer.revision, recorded.revision);

    let not_a_stop = event("15550123456", "acme", inbound("we must stop this bill"));
    let heard = records.record_event(not_a_stop).await.unwrap().into_inner();
    assert_eq!(heard.opted_out_scope, "");
    assert!(checks.can_send(ask.clone()).await.unwrap().into_inner().allowed);

    let stop = event("15550123456", "acme", inbound("Stop."));
    let stopped = records.record_event(stop).await.unwrap().into_inner();
    assert_eq!((stopped.applied, stopped.opted_out_scope.as_str()), (true, "*"));
    let answer = checks.can_send(ask.clone()).await.unwrap().into_inner();
    assert_eq!((answer.allowed, answer.reason()), (false, Reason::OptedOutAll));
}

#[tokio::test]
async fn what_matched_is_told_by_the_business_and_again_to_a_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("consentd.toml");
    let text = "[keywords]\nlanguages = [\"es\"]\n\
                [keywords.business.tienda]\nexcept = [\"alto\"]\n\
                [[keywords.business.tienda.opt-out]]\nscope = \"marketing.offers\"\n\
                words = [\"sin ofertas\"]\nlocale = \"es-MX\"\n";
    std::fs::write(&config, text).unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--config", config.to_str().unwrap()]).await;
    let mut records = sidecar.records().await;
    for (business, text, scope, keyword, locale) in [
        ("tienda", "¡SIN OFERTAS!", "marketing.offers", "sin ofertas", "es-MX"),
        ("tienda", "alto", "", "", ""),
        ("tienda", "Stop.", "*", "stop", ""),
        ("tienda", "ARRETEZ", "*", "arrêtez", "fr"),
        ("other", "sin ofertas", "", "", ""),
        ("other", "Alto", "*", "alto", "es"),
    ] {
        let mut said = event("15550123456", business, inbound(text));
        said.request_id = format!("message {text}");
        let told = records.record_event(said.clone()).await.unwrap().into_inner();
        let found = (&*told.opted_out_scope, &*told.matched_keyword, &*told.keyword_locale);
        assert_eq!(found, (scope, keyword, locale), "{business} {text}");
        let again = records.record_event(said).await.unwrap().into_inner();
        assert_eq!(again, told, "a repeat gets the same answer");
    }
}

#[tokio::test]
async fn a_lost_answer_a_stop_and_a_retry_still_deny() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let minute = std::time::Duration::from_mins(1);
    let ahead: prost_types::Timestamp = (std::time::SystemTime::now() + minute).into();
    // With a request id, with a time, and with a time that the ledger clamps to now.
    for (user, request_id, time) in [
        ("1", "once", None),
        ("2", "", Some(crate::sidecar::ago(minute))),
        ("3", "", Some(ahead)),
        ("4", "both", Some(crate::sidecar::ago(minute))),
    ] {
        let mut given = event(user, "acme", opt_in("utility"));
        given.request_id = request_id.into();
        given.event.as_mut().unwrap().event_time = time;
        let first = records.record_event(given.clone()).await.unwrap().into_inner();
        assert!(first.applied, "{user}");
        // The answer is lost; the user says STOP; the client tries again.
        records.record_event(event(user, "acme", opt_out("*"))).await.unwrap();
        let again = records.record_event(given).await.unwrap().into_inner();
        if !request_id.is_empty() {
            assert_eq!(again, first, "a repeat gets the same answer");
        }
        let answer = checks.can_send(question(user, "acme", "utility")).await.unwrap();
        assert_eq!(answer.get_ref().reason(), Reason::OptedOutAll, "{user}");
    }
    // Without either, it is refused: nothing could tell the retry from a new opt-in.
    let refused = records.record_event(event("5", "acme", opt_in("utility"))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("request_id"), "{}", refused.message());
}

#[tokio::test]
async fn what_was_recorded_survives_a_restart_with_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let mut given = event("US.1349", "acme", opt_in("marketing.news"));
    given.request_id = "1".into();
    records.record_event(given).await.unwrap();
    records.record_event(event("US.1349", "acme", opt_out("marketing.news"))).await.unwrap();
    sidecar.signal("TERM");
    assert!(sidecar.wait(crate::sidecar::PATIENCE).success(), "{}", sidecar.said());

    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);
    let answer = checks.can_send(question("US.1349", "acme", "marketing.news")).await.unwrap();
    assert_eq!(answer.get_ref().reason(), Reason::OptedOut);
    let request = pb::ListEventsRequest { user_id: "US.1349".into(), business_id: "acme".into() };
    let mut entries = records.list_events(request).await.unwrap().into_inner();
    let first = entries.message().await.unwrap().unwrap();
    let Some(pb::consent_event::What::OptIn(said)) = first.event.unwrap().what else {
        panic!("the first entry is the opt-in");
    };
    assert_eq!(said.evidence.unwrap().statement, "Yes to messages from Acme on WhatsApp");
    assert!(entries.message().await.unwrap().is_some());
    let checked = entries.message().await.unwrap().unwrap().chain.unwrap();
    assert!(checked.intact && checked.event_count == 2 && checked.kept_count == 2);
    assert_eq!(entries.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_ends_nothing() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let ledger = format!("file:{}", crate::sidecar::ledger_in(folder.path()).display());
    let mut child = Command::new(crate::sidecar::BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "none", "--ledger", &ledger])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()));
    let said = said.find_map(|said| said.ok().filter(|said| said["message"] == "listening"));
    // Its standard error is closed from here on, and it has more to say: that it drains.
    let said = said.unwrap();
    let address = said["grpc"].as_str().unwrap().to_owned();
    let asking = crate::sidecar::channel(&address).await;
    crate::sidecar::eventually("it answers", || {
        let mut checks = pb::consent_service_client::ConsentServiceClient::new(asking.clone());
        async move { checks.can_send(question("1", "acme", "service")).await.is_ok() }
    })
    .await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn a_request_that_never_arrives_whole_is_given_up_at_its_deadline() {
    use crate::sidecar::Wire;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-in-flight", "2"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let mut begun = Vec::new();
    for method in ["consent.v1.ConsentService/CanSend", "consent.v1.RecordService/RecordEvent"] {
        begun.push(wire.begin_headers(method, &[("grpc-timeout", "300m")]).await.unwrap());
    }
    for (call, _unsent) in begun {
        let status = call.end().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    }
    // Their places are free again.
    sidecar.checks().await.can_send(question("1", "acme", "service")).await.unwrap();
}
