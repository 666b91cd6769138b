//! `verify-export`: checks that the ledger's histories extend those of an export.

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
use super::export_line::Reader;
use super::{Verdict, output};
use crate::grpc::pb;
use crate::grpc::pb::check_events_response::{Finding, Result as Found};
use crate::grpc::pb::record_service_client::RecordServiceClient;

/// The most events that are read ahead of the stream.
const MAX_QUEUED: usize = 1_024;

/// The longest line, in bytes: more than the bounds of an event's fields add up to.
const MAX_LINE_BYTES: u64 = 1024 * 1024;

/// The most findings that are printed.
const MAX_PRINTED: u64 = 1_000;

/// The end of the command's help.
pub(super) const HELP: &str = "\
Each finding names a line of the file, and no user. Exit codes: 0 today's histories extend what was
exported, 1 some do not, 2 could not check.";

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

/// The findings, counted.
#[derive(Default)]
struct Counts {
    checked: u64,
    same: u64,
    expired: u64,
    /// The other findings, which mean that something was changed, by name.
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
    let (requests, waiting) = mpsc::channel(MAX_QUEUED);
    let mut request = Request::new(ReceiverStream::new(waiting));
    token.authorize(&mut request)?;
    // The thread ends with the file, or when the stream is closed.
    let reading = tokio::task::spawn_blocking(move || send_lines(source, &requests));
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).check_events(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let mut counts = Counts::default();
    while let Some(answer) = answers.message().await.map_err(explain)? {
        counts.add(&answer, client.json)?;
    }
    let sent = reading.await.context("the reading of the file ended")??;
    if sent != counts.checked {
        bail!("{} of {sent} lines were answered: run it again", counts.checked);
    }
    if sent == 0 {
        bail!("{} has no event: nothing was checked", input.display());
    }
    counts.print(client.json)
}

/// Sends every line that is not blank, with its number as the sequence. Returns how many were sent.
fn send_lines(
    mut source: Box<dyn BufRead + Send>,
    requests: &mpsc::Sender<pb::CheckEventsRequest>,
) -> anyhow::Result<u64> {
    let reader = Reader::new()?;
    let (mut number, mut sent) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = source.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
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

impl Counts {
    /// Counts a finding, and prints it if it means a change.
    fn add(&mut self, answer: &pb::CheckEventsResponse, json: bool) -> anyhow::Result<()> {
        self.checked += 1;
        let line = answer.sequence;
        let (name, text) = match &answer.result {
            Some(Found::Finding(finding)) => match Finding::try_from(*finding) {
                Ok(Finding::Same) => {
                    self.same += 1;
                    return Ok(());
                }
                Ok(Finding::Expired) => {
                    self.expired += 1;
                    return Ok(());
                }
                Ok(finding) => (name(finding), text(finding)),
                Err(_) => bail!("line {line}: a finding that only a newer consentd knows"),
            },
            Some(Found::Error(error)) => bail!("line {line}: {}", error.message),
            None => bail!("line {line}: not answered"),
        };
        let count = self.wrong.entry(name).or_default();
        *count += 1;
        if self.wrong.values().sum::<u64>() > MAX_PRINTED {
            return Ok(());
        }
        if json {
            output::line(&serde_json::json!({ "line": line, "finding": name }).to_string())
        } else {
            output::line(&format!("line {line}: {text}"))
        }
    }

    fn print(self, json: bool) -> anyhow::Result<Verdict> {
        let wrong: u64 = self.wrong.values().sum();
        if json {
            let Self { checked, same, expired, wrong } = &self;
            let report = serde_json::json!({
                "checked": checked, "same": same, "expired": expired, "findings": wrong,
            });
            output::line(&report.to_string())?;
        } else {
            if wrong > MAX_PRINTED {
                output::line(&format!("and {} lines more", wrong - MAX_PRINTED))?;
            }
            let expired = match self.expired {
                0 => String::new(),
                count => format!(" ({count} gone by retention since; their chains hold)"),
            };
            output::line(&match wrong {
                0 if self.checked == 1 => {
                    format!("1 event checked: today's history extends what was exported{expired}")
                }
                0 => format!(
                    "{} events checked: today's histories extend what was exported{expired}",
                    self.checked
                ),
                wrong => format!(
                    "{wrong} of {} events checked are NOT as they were exported{expired}",
                    self.checked
                ),
            })?;
        }
        Ok(if wrong == 0 { Verdict::Yes } else { Verdict::No })
    }
}

/// A finding's name, for scripts.
fn name(finding: Finding) -> &'static str {
    finding.as_str_name().trim_start_matches("FINDING_")
}

fn text(finding: Finding) -> &'static str {
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
