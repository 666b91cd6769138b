//! What load testers are given: a table that nobody recorded, requests about it, and the contract.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use consentd::grpc::pb;
use consentd::grpc::pb::batch_can_send_result::Result as Answer;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use serde_json::Value;
use tempfile::tempdir;

use crate::sidecar::{Sidecar, event, ledger_in, opt_out, question, run};

/// Runs a command that must do what it is told; gives what it printed.
#[track_caller]
fn done(arguments: &[&str]) -> String {
    let (code, printed, said) = run(arguments);
    assert_eq!((code, said.as_str()), (0, ""), "{arguments:?}");
    printed
}

fn requests(flags: &[&str]) -> Vec<Value> {
    serde_json::from_str(&done(&[&["bench", "requests"], flags].concat())).unwrap()
}

fn text(request: &Value, name: &str) -> String {
    request[name].as_str().unwrap_or_else(|| panic!("no {name}: {request}")).to_owned()
}

#[tokio::test]
async fn requests_ask_about_the_synthetic_table_as_often_as_they_were_told() {
    let folder = tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--synthetic", "2000"]).await;
    let mut checks = sidecar.checks().await;
    let status = checks.get_status(pb::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.pairs, status.revision), (2_000, 0));
    let flags = ["--users", "2000", "--count", "1000", "--seed", "3", "--hit-ratio"];
    for (ratio, known) in [("0", 0..=0), ("0.75", 700..=800), ("1", 1_000..=1_000)] {
        let requests = requests(&[&flags[..], &[ratio]].concat());
        assert_eq!(requests.len(), 1_000);
        let mut found = 0;
        for request in &requests {
            let (user_id, business_id) = (text(request, "userId"), text(request, "businessId"));
            let consent = pb::GetConsentRequest { user_id, business_id };
            let consent = checks.get_consent(consent).await.unwrap().into_inner();
            found += usize::from(consent.last_inbound_time.is_some());
        }
        assert!(known.contains(&found), "{found} of 1,000 at {ratio}");
    }
    let all = requests(&["--users", "2000", "--hit-ratio", "1", "--count", "1000"]);
    let ask =
        |r: &Value| question(&text(r, "userId"), &text(r, "businessId"), &text(r, "category"));
    let request = pb::BatchCanSendRequest { requests: all.iter().map(ask).collect() };
    let mut reasons = BTreeMap::new();
    for result in checks.batch_can_send(request).await.unwrap().into_inner().results {
        let Some(Answer::Response(response)) = result.result else { panic!("{result:?}") };
        *reasons.entry(response.reason().as_str_name()).or_insert(0) += 1;
    }
    assert!(reasons.len() >= 4, "answers of many kinds: {reasons:?}");
}

#[test]
fn a_seed_makes_the_same_requests_and_batches_hold_all_of_them() {
    let few = ["--users", "50", "--count", "10", "--seed"];
    let [one, same, other] = ["7", "7", "8"].map(|seed| requests(&[&few[..], &[seed]].concat()));
    assert_eq!(one, same);
    assert_ne!(one, other);
    let batches = requests(&[&few[..], &["7", "--batch", "4"]].concat());
    let sizes: Vec<_> = batches.iter().map(|b| b["requests"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [4, 4, 2]);
    let all: Vec<_> = batches.iter().flat_map(|b| b["requests"].as_array().unwrap()).collect();
    assert_eq!(all, one.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_recorded_counts_for_a_synthetic_user_too() {
    let folder = tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--synthetic", "10"]).await;
    let mut checks = sidecar.checks().await;
    let user = consentd_bench::fixture::user(0);
    let business = consentd_bench::fixture::BUSINESS;
    let ask = question(&user, business, "marketing");
    assert!(checks.can_send(ask.clone()).await.unwrap().get_ref().allowed);
    let stop = event(&user, business, opt_out("*"));
    sidecar.records().await.record_event(stop).await.unwrap();
    let denied = checks.can_send(ask).await.unwrap().into_inner();
    assert_eq!((denied.allowed, denied.reason()), (false, pb::Reason::OptedOutAll));
}

#[tokio::test]
async fn nothing_synthetic_is_served_beside_what_was_recorded() {
    let folder = tempdir().unwrap();
    {
        let sidecar = Sidecar::live(folder.path(), &[]).await;
        let stop = event("15550123456", "acme", opt_out("*"));
        sidecar.records().await.record_event(stop).await.unwrap();
    }
    let Err(said) = Sidecar::try_start(&ledger_in(folder.path()), &["--synthetic", "10"]) else {
        panic!("it was started")
    };
    assert!(said.contains("--synthetic") && said.contains("--ledger file:PATH"), "{said}");
}

#[test]
fn what_makes_no_sense_is_named() {
    for (flags, named) in [
        (["--users", "0"], "--users: must be from 1"),
        (["--hit-ratio", "1.5"], "--hit-ratio: must be from 0 to 1"),
        (["--batch", "0"], "--batch: must be 1 or more"),
    ] {
        let (code, printed, said) = run(&[&["bench", "requests"], &flags[..]].concat());
        assert_eq!((code, printed.as_str()), (2, ""));
        assert!(said.contains(named), "{said}");
    }
}

#[test]
fn the_binary_brings_the_contract() {
    let folder = tempdir().unwrap();
    let set = folder.path().join("consentd.protoset");
    let sources = folder.path().join("proto");
    let (set_path, sources_path) = (set.to_str().unwrap(), sources.to_str().unwrap());
    done(&["proto", "--descriptor-set", set_path, "--sources", sources_path]);
    let set = FileDescriptorSet::decode(&*fs::read(set).unwrap()).unwrap();
    let names: Vec<_> = set.file.iter().map(prost_types::FileDescriptorProto::name).collect();
    for file in &set.file {
        assert!(file.dependency.iter().all(|import| names.contains(&import.as_str())), "{names:?}");
    }
    assert!(names.contains(&"error_details.proto"), "errors decode too: {names:?}");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/consent/v1");
    let mut files = 0;
    for file in fs::read_dir(ours).unwrap() {
        let file = file.unwrap();
        let written = fs::read(sources.join("consent/v1").join(file.file_name())).unwrap();
        assert_eq!(written, fs::read(file.path()).unwrap(), "{:?}", file.file_name());
        files += 1;
    }
    assert_eq!(files, 3);
    let (code, _, said) = run(&["proto"]);
    assert_eq!(code, 2);
    assert!(said.contains("--descriptor-set") && said.contains("--sources"), "{said}");
}
