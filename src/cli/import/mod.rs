//! `import`: records the events of a file, over `RecordEvents`.
//!
//! [`input`] opens the file, a thread reads its [`rows`], and [`parser`] (for CSV with [`columns`])
//! turns them into events. [`session`] sends them over [`streams`] and keeps those in flight in a
//! [`window`], which counts their outcomes in the order of the rows. [`progress`] saves how far the
//! import is, [`rejects`] writes the rows that were not recorded.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod columns;
mod fault;
mod input;
mod parser;
mod progress;
mod rejects;
mod rows;
mod session;
mod streams;
mod window;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::HumanCount;

use self::columns::EVENTS;
use self::fault::Fault;
use self::input::Format;
use self::progress::{Progress, ProgressFile, RowCounts};
use self::rejects::Rejects;
use self::rows::Row;
use self::session::{Ended, Session};
use self::streams::LedgerName;
use super::client::{ClientArgs, TokenArgs};
use super::progress_bar::ProgressBar;
use super::{Verdict, output};
use crate::grpc::pb;
use consentd_os::clock;
use consentd_os::files::{self, Usage, UsedFile};

/// How often the progress is saved and shown.
const TICK: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// What to import, or - for standard input
    #[arg(value_name = "FILE")]
    input: String,
    /// Its format [default: by its name, or its first character]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What separates the columns of a CSV file [default: a comma, or a tab in *.tsv]
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<char>,
    /// Write rejected rows to this file, as they are in the input
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Begin with the first row, even if an import of this file was interrupted
    #[arg(long)]
    from_start: bool,
    /// How long to retry while the sidecar does not answer
    #[arg(long, value_name = "TIME", default_value = "60s",
          value_parser = humantime::parse_duration)]
    retry_for: Duration,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

/// The end of the command's help: the formats of rows.
pub(super) fn help() -> String {
    let events: Vec<_> = EVENTS
        .iter()
        .map(|(event, columns)| format!("  {event}: {}", columns.join(", ")))
        .collect();
    include_str!("help.txt").replace("{events}", &events.join("\n"))
}

impl ImportArgs {
    /// Checks that all files are different, and that no foreign file would be overwritten.
    fn check_files(&self, progress_file: Option<&ProgressFile>) -> anyhow::Result<()> {
        let file = |flag, path: &Path, usage| UsedFile { flag, path: path.to_owned(), usage };
        let mut used = vec![file("FILE", Path::new(&self.input), Usage::Input)];
        used.extend(self.rejects.iter().map(|path| file("--rejects", path, Usage::Written)));
        used.extend(self.token.path().map(|path| file("--token-file", path, Usage::Secret)));
        used.extend(progress_file.map(|saved| file("FILE", saved.path(), Usage::Written)));
        files::check(&used)?;
        if let Some(foreign) = progress_file.filter(|saved| saved.is_foreign()) {
            let path = foreign.path().display();
            bail!("{path} is to keep the progress, and holds something else: move it away");
        }
        Ok(())
    }

    fn delimiter(&self) -> anyhow::Result<u8> {
        let extension = std::path::Path::new(&self.input).extension();
        let tabs = extension.is_some_and(|extension| extension == "tsv");
        let delimiter = self.delimiter.unwrap_or(if tabs { '\t' } else { ',' });
        let delimiter = u8::try_from(delimiter).ok().filter(u8::is_ascii);
        delimiter.context("--delimiter: must be one ASCII character, such as ; or ,")
    }
}

pub(super) async fn import(args: ImportArgs) -> anyhow::Result<Verdict> {
    let progress_file = ProgressFile::of(&args.input);
    args.check_files(progress_file.as_ref())?;
    let delimiter = args.delimiter()?;
    // A missing file or an invalid header is an error before anything is sent.
    let open = |position| input::open(&args.input, args.format, delimiter, position);
    let (parser, rows) = open(None)?;
    let token = args.token.header()?;
    let mut session = Session::connect(&args.client, token, args.retry_for).await?;

    let saved = progress_file.as_ref().and_then(ProgressFile::load);
    // An import from the start may replace the file of rejected rows that an interrupted one made.
    let rejects_inode = saved.as_ref().and_then(|saved| saved.rejects_inode);
    let saved = saved.filter(|_| !args.from_start);
    let (rows, progress) = match saved.filter(|saved| can_continue(saved, session.ledger())) {
        None => {
            let mut progress = Progress::of(session.ledger().id.clone());
            progress.rejects_inode = rejects_inode;
            (rows, progress)
        }
        Some(saved) => (open(Some(saved.position()))?.1, saved),
    };
    let rejects = Rejects::open(args.rejects.as_deref(), &progress, &parser, delimiter)?;
    let size = progress_file.as_ref().and_then(|_| std::fs::metadata(&args.input).ok());
    let mut import = Import {
        bar: ProgressBar::new(size.map(|size| size.len())),
        rejects,
        progress_file,
        progress,
        last_saved: clock::boot(),
    };
    // Saved before the first row, so that the same command can continue wherever this one ends.
    import.save()?;
    let started = clock::boot();
    let rows_before = import.progress.tally.rows();
    let ended = session.run(parser, rows, &mut import).await;
    let counts = import.finish(ended)?;
    let elapsed = clock::boot().saturating_sub(started);
    print_counts(&counts, counts.rows() - rows_before, elapsed, args.client.json)?;
    if counts.rejected > 0 && !args.client.json {
        output::line(&match &args.rejects {
            Some(path) => format!("the rejected rows are in {}", path.display()),
            None => "to keep the rejected rows, give --rejects FILE".to_owned(),
        })?;
    }
    Ok(if counts.rejected == 0 { Verdict::Yes } else { Verdict::No })
}

/// Whether an interrupted import can continue in this ledger, which is printed.
fn can_continue(saved: &Progress, ledger: &LedgerName) -> bool {
    // A smaller revision means that the ledger has lost some of the recorded rows.
    let has_all_rows = saved.ledger == ledger.id && saved.revision <= ledger.revision;
    output::note(&if has_all_rows {
        let line = HumanCount(saved.line);
        format!(
            "going on with line {line}; the rows before it are in the ledger (--from-start begins \
             anew)"
        )
    } else {
        "this is not the ledger that the file was being imported into: beginning anew".to_owned()
    });
    has_all_rows
}

/// Prints the counts, and the rate at which this run recorded `rows` in `elapsed`.
fn print_counts(
    counts: &RowCounts,
    rows: u64,
    elapsed: Duration,
    json: bool,
) -> anyhow::Result<()> {
    let RowCounts { applied, unchanged, rejected } = *counts;
    if json {
        let result = serde_json::json!({
            "rows": counts.rows(), "applied": applied, "unchanged": unchanged, "rejected": rejected,
        });
        return output::line(&result.to_string());
    }
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let rate = rows as f64 / elapsed.as_secs_f64().max(0.001);
    output::line(&format!(
        "{} rows: {} recorded, {} known before or older than what is known, {} rejected; {:.1} s, \
         {} a second",
        HumanCount(counts.rows()),
        HumanCount(applied),
        HumanCount(unchanged),
        HumanCount(rejected),
        elapsed.as_secs_f64(),
        HumanCount(to_u64(rate)),
    ))
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate: it is positive, and its fraction does not matter"
)]
fn to_u64(rate: f64) -> u64 {
    rate.round() as u64
}

/// The results of an import.
struct Import {
    bar: ProgressBar,
    rejects: Rejects,
    progress_file: Option<ProgressFile>,
    progress: Progress,
    last_saved: Duration,
}

impl Import {
    /// Saves the progress and shows it, at most every [`TICK`].
    fn tick(&mut self) -> anyhow::Result<()> {
        if clock::boot().saturating_sub(self.last_saved) < TICK {
            return Ok(());
        }
        self.last_saved = clock::boot();
        let RowCounts { rejected, .. } = self.progress.tally;
        let mut text = format!("{} rows", HumanCount(self.progress.tally.rows()));
        if rejected > 0 {
            let _ = write!(text, ", {} rejected", HumanCount(rejected));
        }
        self.bar.show(self.progress.offset, &text, Some(&text));
        self.save()
    }

    /// Counts a recorded row.
    fn count(&mut self, response: &pb::RecordEventResponse) {
        self.progress.revision = self.progress.revision.max(response.revision);
        let RowCounts { applied, unchanged, .. } = &mut self.progress.tally;
        *(if response.applied { applied } else { unchanged }) += 1;
    }

    /// Counts a row that is not recorded, and writes it to the rejected ones.
    fn reject(&mut self, row: &Row, fault: &Fault) -> anyhow::Result<()> {
        self.progress.tally.rejected += 1;
        let rejects = &mut self.rejects;
        self.bar.suspend(|| rejects.add(row, fault))
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.progress.rejects = self.rejects.flush()?;
        self.progress.rejects_inode = self.rejects.inode()?;
        let Some(progress_file) = &self.progress_file else { return Ok(()) };
        if let Err(error) = progress_file.save(&mut self.progress) {
            // The import goes on: repeating it from the start is idempotent.
            self.bar.note(&format!("{error:#}: a broken import will begin anew"));
            self.progress_file = None;
        }
        Ok(())
    }

    /// Saves the progress, or removes its file after the last row. Returns the counts, or an error
    /// that says how to continue.
    fn finish(mut self, ended: anyhow::Result<Ended>) -> anyhow::Result<RowCounts> {
        let saved = self.save();
        match ended {
            Ok(Ended::AtTheEnd) => {
                saved?;
                if let Some(progress_file) = &self.progress_file {
                    progress_file.remove();
                }
                Ok(self.progress.tally)
            }
            Ok(Ended::Interrupted) => bail!("interrupted; {}", self.how_to_continue()),
            Err(error) => Err(error.context(self.how_to_continue())),
        }
    }

    fn how_to_continue(&self) -> String {
        let rows = HumanCount(self.progress.tally.rows());
        match &self.progress_file {
            Some(progress_file) => format!(
                "{rows} rows are done with; the same command goes on behind them (what it needs is \
                 in {})",
                progress_file.path().display()
            ),
            None => format!("{rows} rows are done with; to import them again changes nothing"),
        }
    }
}
