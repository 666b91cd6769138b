//! `export`: all recorded events, as NDJSON.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use tempfile::NamedTempFile;
use tonic::Request;

use super::client::{ClientArgs, TokenArgs};
use super::export_stops::{self, Stops};
use super::{Verdict, export_line, output, time};
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use consentd_core::time::Timestamp;
use consentd_ledger::has_ledger_signature;
use consentd_os::files::{self, Usage, UsedFile};

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Only the events of this business
    #[arg(long, value_name = "ID", default_value = "")]
    business: String,
    /// Only events recorded since then: RFC 3339 (2026-01-31T09:30:00Z), or a time ago (24h)
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    since: Option<Timestamp>,
    /// Write to this file, which is replaced when the export is complete [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only who has stopped marketing inside WhatsApp, at which number of the business and since when,
    /// as CSV on standard output
    #[arg(long, conflicts_with_all = ["output", "since"])]
    stops: bool,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

/// What every line of an export begins with: the first field of an event.
const FIRST: &[u8] = br#"{"userId":"#;

/// Checks that the file to be replaced is an export or empty, and is not otherwise used.
fn check_output(path: &Path, token: Option<&Path>) -> anyhow::Result<()> {
    let file = |flag, path: &Path, usage| UsedFile { flag, path: path.to_owned(), usage };
    let mut used: Vec<_> =
        token.map(|token| file("--token-file", token, Usage::Secret)).into_iter().collect();
    used.push(file("--output", path, Usage::Written));
    files::check(&used)?;
    let shown = path.display();
    if has_ledger_signature(path) {
        bail!("--output: {shown} is a ledger, and would be replaced: give a path of its own");
    }
    let most = u64::try_from(FIRST.len()).unwrap_or(0);
    let first = files::beginning(path, most).unwrap_or_default();
    if !first.is_empty() && first != FIRST {
        bail!(
            "--output: {shown} is there, and is no export: it would be replaced; move it away, or \
             give another path"
        );
    }
    Ok(())
}

pub(super) async fn export(args: ExportArgs) -> anyhow::Result<Verdict> {
    if let Some(path) = &args.output {
        check_output(path, args.token.path())?;
    }
    let channel = args.client.connect().await?;
    let since_time = args.since.map(time::to_wire);
    let (business_id, templates_only) = (args.business.clone(), false);
    let request = pb::ExportEventsRequest { business_id, since_time, templates_only };
    let mut request = Request::new(request);
    args.token.authorize(&mut request)?;
    let answers = RecordServiceClient::new(channel).export_events(request).await;
    let mut answers = answers.map_err(|status| args.client.explain(&status))?.into_inner();
    let mut stops = Stops::default();
    let lines = export_line::Writer::new()?;
    let mut output = Output::new(args.output.as_deref())?;
    let mut count = 0_u64;
    while let Some(answer) =
        answers.message().await.map_err(|status| args.client.explain(&status))?
    {
        if args.stops {
            stops.add(answer);
        } else if !output.line(&lines.line(answer)?)? {
            return Ok(Verdict::Yes); // The reader closed the pipe.
        }
        count += 1;
    }
    let header = args.stops.then(|| export_stops::HEADER.to_owned());
    for row in header.into_iter().chain(stops.rows()) {
        if !output.line(row.as_bytes())? {
            return Ok(Verdict::Yes);
        }
    }
    output.finish(args.output.as_deref())?;
    if let Some(path) = &args.output {
        output::line(&format!("{count} events in {}", path.display()))?;
    }
    Ok(Verdict::Yes)
}

/// Where the lines are written.
enum Output {
    Stdout(BufWriter<io::Stdout>),
    /// A temporary file, which replaces the target at the end. Only its owner can read it, because
    /// it names users.
    File(BufWriter<NamedTempFile>),
}

impl Output {
    fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::Stdout(BufWriter::new(io::stdout()))) };
        let file = NamedTempFile::new_in(files::folder(path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File(BufWriter::new(file)))
    }

    /// Writes a line. Returns false if the reader has closed the pipe.
    fn line(&mut self, line: &[u8]) -> anyhow::Result<bool> {
        let writer: &mut dyn Write = match self {
            Self::Stdout(stdout) => stdout,
            Self::File(file) => file,
        };
        match writer.write_all(line).and_then(|()| writer.write_all(b"\n")) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true).context("cannot write the events"),
        }
    }

    fn finish(self, path: Option<&Path>) -> anyhow::Result<()> {
        match (self, path) {
            (Self::Stdout(mut stdout), _) => match stdout.flush() {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                flushed => flushed.context("cannot write the events")?,
            },
            (Self::File(file), Some(path)) => {
                let file = file.into_inner().context("cannot write the events")?;
                file.as_file().sync_all().context("cannot write the events")?;
                file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
            }
            (Self::File(_), None) => {}
        }
        Ok(())
    }
}
