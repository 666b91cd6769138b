//! `import`: records the events of a file, over `RecordEvents`.
//!
//! [`input`] opens the file, a thread reads its [`rows`], and [`parser`] turns them into events. For
//! CSV, [`csv_options`] are the flags, [`columns`] what the header says, and [`csv_event`] makes an
//! event of the [`cells`] of a row, with the [`times`] and the [`guard`]s that other tools write.
//! [`session`] sends the events over [`streams`] and keeps those in flight in a [`window`], which counts
//! their outcomes in the order of the rows; [`dry_run`] only counts them. [`progress`] saves how far the
//! import is, [`rejects`] writes the rows that were not recorded, [`summary`] prints the counts.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod cells;
mod columns;
mod csv_event;
mod csv_options;
mod dry_run;
mod fault;
mod guard;
mod input;
mod parser;
mod progress;
mod rejects;
mod rows;
mod session;
mod streams;
mod summary;
mod times;
mod window;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::HumanCount;

use self::columns::EVENTS;
use self::csv_options::{CsvOptions, Defaults};
use self::fault::Fault;
use self::input::{Format, Input, Reading};
use self::progress::{Progress, ProgressFile, RowCounts};
use self::rejects::Rejects;
use self::rows::Row;
use self::session::{Ended, Session};
use self::streams::LedgerName;
use self::window::Recorded;
use super::client::{ClientArgs, TokenArgs};
use super::progress_bar::ProgressBar;
use super::{Verdict, output};
use crate::config::statement_names;
use consentd_core::event::StatementNames;
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
    /// Write rejected rows to this file, as they are in the input
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Record nothing, and say what would be recorded, refused and folded into one person
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: what the sidecar is configured to demand of statements
    #[arg(long, value_name = "WHAT", requires = "dry_run", value_parser = statement_names)]
    statement_names: Option<StatementNames>,
    /// Begin with the first row, even if an import of this file was interrupted
    #[arg(long)]
    from_start: bool,
    /// How long to retry while the sidecar does not answer
    #[arg(long, value_name = "TIME", default_value = "60s",
          value_parser = humantime::parse_duration)]
    retry_for: Duration,
    #[command(flatten)]
    defaults: Defaults,
    #[command(flatten, next_help_heading = "CSV files")]
    csv: CsvOptions,
    #[command(flatten, next_help_heading = "Sidecar")]
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
    /// These arguments for a list of templates, whose rows are categories of templates.
    pub(super) fn of_templates(mut self) -> Self {
        self.csv.event.get_or_insert_with(|| "template_category".to_owned());
        self.csv.of_templates = true;
        self
    }

    /// Checks that all files are different.
    fn check_files(&self, progress_file: Option<&ProgressFile>) -> anyhow::Result<()> {
        let file = |flag, path: &Path, usage| UsedFile { flag, path: path.to_owned(), usage };
        let mut used = vec![file("FILE", Path::new(&self.input), Usage::Input)];
        used.extend(self.rejects.iter().map(|path| file("--rejects", path, Usage::Written)));
        used.extend(self.token.path().map(|path| file("--token-file", path, Usage::Secret)));
        used.extend(progress_file.map(|saved| file("FILE", saved.path(), Usage::Written)));
        files::check(&used)?;
        Ok(())
    }

    fn reading(&self) -> Reading<'_> {
        Reading { format: self.format, csv: &self.csv, defaults: &self.defaults }
    }

    /// The flags that say what a row means, as text.
    fn meaning(&self) -> String {
        let format = self.format.map(|format| format!("--format={format:?} ")).unwrap_or_default();
        (format + &self.csv.meaning(&self.defaults)).trim_end().to_owned()
    }

    /// Checks that an interrupted import goes on with the flags that it began with.
    fn check_meaning(&self, saved: Option<&Progress>, meaning: &str) -> anyhow::Result<()> {
        if let Some(saved) = saved
            && saved.meaning != meaning
        {
            let flags = |flags: &str| match flags {
                "" => "no flags".to_owned(),
                flags => format!("the flags {flags}"),
            };
            bail!(
                "the import of {} was interrupted with {}, and goes on with those alone; now there \
                 are {}: give the same ones, or begin with the first row by --from-start",
                self.input,
                flags(&saved.meaning),
                flags(meaning)
            );
        }
        Ok(())
    }
}

pub(super) async fn import(args: ImportArgs) -> anyhow::Result<Verdict> {
    let progress_file = ProgressFile::of(&args.input).filter(|_| !args.dry_run);
    args.check_files(progress_file.as_ref())?;
    let before = progress_file.as_ref().map(ProgressFile::load).transpose()?.flatten();
    // A missing file or an invalid header is an error before anything is sent.
    let mut input = input::open(&args.input, &args.reading())?;
    if args.dry_run {
        return dry_run::run(&args, input);
    }
    let meaning = args.meaning();
    let saved = before.as_ref().filter(|_| !args.from_start);
    args.check_meaning(saved, &meaning)?;
    let token = args.token.header()?;
    let mut session = Session::connect(&args.client, token, args.retry_for).await?;

    let mut progress = Progress::of(session.ledger(), meaning, input.first);
    // An import from the start may replace the file of rejected rows that an interrupted one made.
    progress.rejects_inode = before.as_ref().and_then(|before| before.rejects_inode);
    if let Some(saved) = saved.filter(|saved| can_continue(saved, session.ledger()))
        && input.continue_at(saved.position())?
    {
        progress = saved.clone();
    }
    let Input { parser, rows, preamble, .. } = input;
    let rejects = Rejects::open(args.rejects.as_deref(), &progress, &preamble)?;
    let mut import = Import::new(&args.input, rejects, progress_file, progress);
    // Saved before the first row, so that the same command can continue wherever this one ends.
    import.save()?;
    let started = clock::boot();
    let rows_before = import.progress.tally.rows();
    let ended = session.run(parser, rows, &mut import).await;
    let counts = import.finish(ended)?;
    let elapsed = clock::boot().saturating_sub(started);
    summary::print(&counts, counts.rows() - rows_before, elapsed, args.client.json)?;
    conclude(&args, &counts)
}

/// Says where the rejected rows are. Returns whether there are none.
fn conclude(args: &ImportArgs, counts: &RowCounts) -> anyhow::Result<Verdict> {
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
    let doubt = saved.doubt_about(ledger);
    output::note(&match &doubt {
        None => {
            let line = HumanCount(saved.line);
            format!(
                "going on with line {line}; the rows before it are in the ledger (--from-start begins \
                 with the first row)"
            )
        }
        Some(why) => format!("{why}: beginning with the first row"),
    });
    doubt.is_none()
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
    fn new(
        input: &str,
        rejects: Rejects,
        progress_file: Option<ProgressFile>,
        progress: Progress,
    ) -> Self {
        let size = std::fs::metadata(input).ok().filter(std::fs::Metadata::is_file);
        let bar = ProgressBar::new(size.map(|size| size.len()));
        Self { bar, rejects, progress_file, progress, last_saved: clock::boot() }
    }

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
    fn count(&mut self, recorded: Recorded) {
        self.progress.note(recorded.partition, recorded.revision);
        let RowCounts { applied, unchanged, .. } = &mut self.progress.tally;
        *(if recorded.applied { applied } else { unchanged }) += 1;
    }

    /// Counts a row that is not recorded, and writes it to the rejected ones.
    fn reject(&mut self, row: &Row, fault: &Fault) -> anyhow::Result<()> {
        self.progress.tally.rejected += 1;
        let rejects = &mut self.rejects;
        self.bar.suspend(|| rejects.add(row, fault))
    }

    /// Notes that the import is behind a row.
    fn pass(&mut self, row: &Row) {
        self.progress.tally.further_lines += row.lines().saturating_sub(1);
        (self.progress.offset, self.progress.line) = (row.end, row.next_line);
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.progress.rejects = self.rejects.flush()?;
        self.progress.rejects_inode = self.rejects.inode()?;
        let Some(progress_file) = &self.progress_file else { return Ok(()) };
        if let Err(error) = progress_file.save(&mut self.progress) {
            // The import goes on: repeating it from the start is idempotent.
            self.bar.note(&format!(
                "{error:#}: an import that is broken off will begin with the first row"
            ));
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
