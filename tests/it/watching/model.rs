//! A client that withdraws messages as it is told to, beside somebody who writes all the time: what
//! it believes is never older than what it was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use tonic::transport::Channel;

use super::*;
use crate::rng::Rng;

/// How many users are written about.
const USERS: usize = 12;

fn user(number: usize) -> String {
    format!("US.{number}")
}

/// What the client believes of each user: the revision that the last answer rests on.
type Believed = BTreeMap<String, u64>;

/// Somebody said that everything up to this revision was told, and this was believed then.
struct Claim {
    upto: u64,
    believed: Believed,
}

/// The client.
struct Client {
    checks: ConsentServiceClient<Channel>,
    believed: Believed,
    claims: Vec<Claim>,
    resets: usize,
    /// The last checkpoint.
    upto: u64,
}

impl Client {
    async fn ask(&mut self, user: &str) {
        let answer = self.checks.can_send(question(user, BUSINESS, "marketing")).await.unwrap();
        self.believed.insert(user.to_owned(), answer.into_inner().revision);
    }

    async fn ask_about_all(&mut self) {
        for number in 0..USERS {
            self.ask(&user(number)).await;
        }
    }

    /// Watches until so many messages have come, or the end is reached.
    async fn watch(&mut self, sidecar: &Sidecar, messages: usize, end: &AtomicU64) {
        let mut watching = Watching::of(sidecar, BUSINESS).await;
        // Where a stream begins something may have been missed, as at a reset.
        let mut anew = true;
        for _ in 0..messages {
            match watching.next().await {
                What::Changed(changed) => self.ask(&changed.user_id).await,
                What::Reset(_) => {
                    self.resets += 1;
                    anew = true;
                }
                What::TemplateChanged(_) => panic!("no template changed"),
                checkpoint @ What::Checkpoint(_) => {
                    let upto = revision(&checkpoint).unwrap();
                    if std::mem::take(&mut anew) {
                        self.ask_about_all().await;
                    }
                    self.upto = upto;
                    self.claims.push(Claim { upto, believed: self.believed.clone() });
                    if upto >= end.load(Ordering::Acquire) {
                        return;
                    }
                }
            }
        }
    }
}

/// Writes, while a client watches a sidecar and subscribes anew again and again; `disturb` is
/// called at each of that. Gives how often the client was reset.
async fn never_misses(
    events: usize,
    writer: &Sidecar,
    sidecar: &Sidecar,
    mut disturb: impl FnMut(usize),
) -> usize {
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let mut records = writer.records().await;
    let written = Arc::clone(&end);
    let writing = tokio::spawn(async move {
        let mut rng = Rng::new(7);
        let mut log = Vec::new();
        for number in 0..events {
            let user = user(rng.below(USERS));
            let what = [opt_in("marketing"), opt_out("*"), inbound("hello")];
            let mut said = event(&user, BUSINESS, what[number % 3].clone());
            said.request_id = format!("w{number}");
            let recorded = records.record_event(said).await.unwrap().into_inner();
            if recorded.applied {
                log.push((recorded.revision, user));
            }
        }
        let last = log.last().map_or(0, |(revision, _)| *revision);
        written.store(last, Ordering::Release);
        log
    });
    let checks = sidecar.checks().await;
    let mut client =
        Client { checks, believed: Believed::new(), claims: Vec::new(), resets: 0, upto: 0 };
    let mut rng = Rng::new(8);
    let started = Instant::now();
    for round in 0.. {
        let messages = 1 + rng.below(40);
        client.watch(sidecar, messages, &end).await;
        if client.upto >= end.load(Ordering::Acquire) {
            break;
        }
        assert!(started.elapsed() < 2 * PATIENCE, "up to {} only", client.upto);
        disturb(round);
    }
    let log = writing.await.unwrap();
    assert!(client.claims.len() > 20, "{}", client.claims.len());
    for Claim { upto, believed } in &client.claims {
        for number in 0..USERS {
            let user = user(number);
            let told = log.iter().rev().find(|(revision, of)| revision <= upto && *of == user);
            let Some((changed, _)) = told else { continue };
            assert!(believed[&user] >= *changed, "{user} changed at {changed}, before {upto}");
        }
    }
    client.resets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_and_goes_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let resets = never_misses(1_500, &sidecar, &sidecar, |_| {}).await;
    assert_eq!(resets, 0, "nothing was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_of_a_sidecar_whose_connections_to_redis_break() {
    let stage = Stage::set(Setup { bound: EASY, ..Setup::default() }).await;
    let net = &stage.reader_net;
    never_misses(1_000, &stage.recorder, &stage.reader, |round| {
        if round % 5 == 4 {
            net.reset();
        }
    })
    .await;
}
