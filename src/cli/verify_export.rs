//! `verify-export`: whether today's histories extend those that were exported.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::client::{ClientArgs, TokenArgs};
use super::exported::Reader;
use super::{Verdict, print};
use crate::grpc::pb;
use crate::grpc::pb::check_events_response::{Finding, Result as Found};
use crate::grpc::pb::record_service_client::RecordServiceClient;

/// How many events may be under way.
const MAX_WAITING: usize = 1_024;

/// The longest line, in bytes: above all bounds of an event's fields.
const MAX_LINE: u64 = 1024 * 1024;

/// How many lines with a finding are told.
const MAX_TOLD: u64 = 1_000;

/// What is said behind the last line with a finding.
const WHAT_IT_SAYS: &str = "\
Each finding names a line of the file, and no user. Exit codes: 0 today's histories extend what was
exported, 1 some do not, 2 could not check.";

pub(super) const HELP: &str = WHAT_IT_SAYS;

#[derive(Args, Debug)]
pub(super) struct VerifyExportArgs {
    /// What `consentd export` wrote, or - for standard input
    #[arg(value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

/// What was found, by what it means.
#[derive(Default)]
struct Tally {
    checked: u64,
    same: u64,
    expired: u64,
    /// How many lines have each finding that is none of these.
    wrong: BTreeMap<&'static str, u64>,
}

pub(super) async fn verify_export(args: VerifyExportArgs) -> anyhow::Result<Verdict> {
    let VerifyExportArgs { input, client, token } = args;
    let source: Box<dyn BufRead + Send> = if input.as_os_str() == "-" {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let file = File::open(&input);
        let file = file.with_context(|| format!("cannot read {}", input.display()))?;
        Box::new(BufReader::new(file))
    };
    let channel = client.connect().await?;
    let (requests, waiting) = mpsc::channel(MAX_WAITING);
    let mut request = Request::new(ReceiverStream::new(waiting));
    token.authorize(&mut request)?;
    // What reads the file ends with it, or when nobody takes its lines any more.
    let reading = tokio::task::spawn_blocking(move || send_lines(source, &requests));
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).check_events(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let mut tally = Tally::default();
    while let Some(answer) = answers.message().await.map_err(explain)? {
        tally.take(&answer, client.json)?;
    }
    let sent = reading.await.context("the reading of the file ended")??;
    if sent != tally.checked {
        bail!("{} of {sent} lines were answered: run it again", tally.checked);
    }
    if sent == 0 {
        bail!("{} has no event: nothing was checked", input.display());
    }
    tally.tell(client.json)
}

/// Sends every line; its number is its sequence. Gives how many there were.
fn send_lines(
    mut source: Box<dyn BufRead + Send>,
    requests: &mpsc::Sender<pb::CheckEventsRequest>,
) -> anyhow::Result<u64> {
    let reader = Reader::new()?;
    let (mut number, mut sent) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = source.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.context("cannot read the export")? == 0 {
            return Ok(sent);
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let exported = reader.read(line.trim_ascii()).with_context(|| format!("line {number}"))?;
        let request = pb::CheckEventsRequest { sequence: number, exported: Some(exported) };
        if requests.blocking_send(request).is_err() {
            return Ok(sent);
        }
        sent += 1;
    }
}

impl Tally {
    fn take(&mut self, answer: &pb::CheckEventsResponse, json: bool) -> anyhow::Result<()> {
        self.checked += 1;
        let line = answer.sequence;
        let (name, said) = match &answer.result {
            Some(Found::Finding(finding)) => match Finding::try_from(*finding) {
                Ok(Finding::Same) => {
                    self.same += 1;
                    return Ok(());
                }
                Ok(Finding::Expired) => {
                    self.expired += 1;
                    return Ok(());
                }
                Ok(finding) => (name(finding), in_words(finding)),
                Err(_) => bail!("line {line}: a finding that only a newer consentd knows"),
            },
            Some(Found::Error(error)) => bail!("line {line}: {}", error.message),
            None => bail!("line {line}: not answered"),
        };
        let count = self.wrong.entry(name).or_default();
        *count += 1;
        if self.wrong.values().sum::<u64>() > MAX_TOLD {
            return Ok(());
        }
        if json {
            print::line(&serde_json::json!({ "line": line, "finding": name }).to_string())
        } else {
            print::line(&format!("line {line}: {said}"))
        }
    }

    fn tell(self, json: bool) -> anyhow::Result<Verdict> {
        let wrong: u64 = self.wrong.values().sum();
        if json {
            let Self { checked, same, expired, wrong } = &self;
            let report = serde_json::json!({
                "checked": checked, "same": same, "expired": expired, "findings": wrong,
            });
            print::line(&report.to_string())?;
        } else {
            if wrong > MAX_TOLD {
                print::line(&format!("and {} lines more", wrong - MAX_TOLD))?;
            }
            let gone = match self.expired {
                0 => String::new(),
                gone => format!(" ({gone} gone by retention since; their chains hold)"),
            };
            print::line(&match wrong {
                0 if self.checked == 1 => {
                    format!("1 event checked: today's history extends what was exported{gone}")
                }
                0 => format!(
                    "{} events checked: today's histories extend what was exported{gone}",
                    self.checked
                ),
                wrong => format!(
                    "{wrong} of {} events checked are NOT as they were exported{gone}",
                    self.checked
                ),
            })?;
        }
        Ok(if wrong == 0 { Verdict::Yes } else { Verdict::No })
    }
}

/// A finding's name, for programs.
fn name(finding: Finding) -> &'static str {
    finding.as_str_name().trim_start_matches("FINDING_")
}

fn in_words(finding: Finding) -> &'static str {
    match finding {
        Finding::Changed => {
            "the history up to this event is not the one that was exported: something in it was \
             changed since"
        }
        Finding::Missing => {
            "the ledger's history of this pair ends before this event: events were removed, the \
             user was erased, or this is another ledger"
        }
        Finding::ExportChanged => {
            "the ledger's history is the one that was exported, and says something else than this \
             line: the file was changed"
        }
        Finding::ChainBroken => {
            "the history up to this event is the one that was exported, and its chain does not \
             match behind it: see `consentd history`"
        }
        Finding::Unspecified | Finding::Same | Finding::Expired => "as it was exported",
    }
}
