//! Judges what the writers and checkers of a setting wrote down.

use std::collections::BTreeSet;
use std::path::PathBuf;

use consentd::grpc::pb::Reason;
use consentd::grpc::pb::record_service_client::RecordServiceClient;

use crate::checker::{check, compare_where};
use crate::history::{self, Line, Sent};
use crate::load::{channel, listed};
use crate::world::World;

/// The most violations of one kind that are reported.
const MAX_TOLD: usize = 5;

/// A time in which the ledger is known to prove and to take nothing, in nanoseconds as
/// [`history::now`] counts them.
#[derive(Clone, Debug)]
pub struct Silence {
    /// Why.
    pub why: String,
    /// Its beginning.
    pub from: u64,
    /// Its end.
    pub until: u64,
    /// From here on nothing may be allowed: what was proven before has grown too old.
    pub denies_from: u64,
    /// What is acknowledged must have this revision at most; nothing is known of it where none is
    /// given.
    pub revision: Option<u64>,
}

impl Silence {
    /// What breaks it.
    fn broken_by(&self, lines: &[Line]) -> Vec<String> {
        let Self { why, from, until, denies_from, revision } = self;
        let wrong = lines.iter().filter_map(|line| match line {
            Line::Acknowledged(event) if (*from..*until).contains(&event.at) => {
                let is_later = revision.is_some_and(|revision| event.revision > revision);
                is_later.then(|| format!("acknowledged beyond {revision:?}, {why}: {event:?}"))
            }
            Line::Answer(answer) if answer.allowed => {
                let inside = answer.asked > *denies_from && answer.answered < *until;
                inside.then(|| format!("allowed, {why}: {answer:?}"))
            }
            _ => None,
        });
        wrong.take(MAX_TOLD).collect()
    }
}

/// Adds what is wrong, and says the figures.
pub async fn judge<W: World>(
    files: &[PathBuf],
    records: &str,
    silences: &[Silence],
    wrong: &mut Vec<String>,
) -> String {
    let bound = W::BOUND;
    let lines: Vec<Line> = files.iter().flat_map(|file| history::read(file)).collect();
    let verdict = check(&lines, bound);
    wrong.extend(verdict.violations.iter().cloned());
    wrong.extend(silences.iter().flat_map(|silence| silence.broken_by(&lines)));
    let users: BTreeSet<String> = lines
        .iter()
        .filter_map(|line| if let Line::Sent(sent) = line { Some(sent.user.clone()) } else { None })
        .collect();
    match listed(&RecordServiceClient::new(channel(records)), users).await {
        Ok(listed) => {
            let is_forgotten = |event: &Sent| W::FORGETS_REQUEST_IDS && event.event_time.is_none();
            wrong.extend(compare_where(&lines, &listed, is_forgotten));
        }
        Err(status) => wrong.push(format!("the ledger cannot be listed: {status}")),
    }
    if verdict.allowed == 0 || verdict.opt_outs == 0 {
        wrong.push("nothing was allowed, or nobody opted out: it shows nothing".to_owned());
    }
    let denied: u64 = verdict.denied.values().sum();
    let stale = verdict.denied_for(Reason::Stale as i32);
    format!(
        "{} violations; the longest that an opt-out took to be enforced: {:?} (at {}; the bound is \
         {bound:?})\n{} events, {} acknowledged, {} of them opt-outs; {} checks allowed, {denied} \
         denied, {stale} of them as stale; {} silences",
        verdict.violated,
        verdict.longest,
        verdict.longest_at,
        verdict.sent,
        verdict.acknowledged,
        verdict.opt_outs,
        verdict.allowed,
        silences.len(),
    )
}
