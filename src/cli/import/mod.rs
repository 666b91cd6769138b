//! `import`: many events from a file, over `RecordEvents`.
//!
//! A thread reads rows and makes events of them; [`session`] sends them and takes the answers,
//! which are dealt with in the order of the rows; [`progress`] keeps how far that is.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod columns;
mod progress;
mod rejects;
mod rows;
mod session;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use self::columns::EVENTS;
use self::progress::{Keeper, Progress, Tally};
use self::rejects::Rejects;
use self::rows::Form;
use self::session::{Ended, LedgerName, Session};
use super::client::{ClientArgs, TokenArgs};
use super::print::hex;
use super::{Verdict, print};
use consentd_os::clock;
use consentd_os::files::{self, Usage, UsedFile};

/// How often the progress is kept and shown.
const TICK: Duration = Duration::from_millis(500);

/// How often somebody who reads a log is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    /// What to import, or - for standard input
    #[arg(value_name = "FILE")]
    input: String,
    /// How it is written [default: by its name, or its first character]
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// What separates the columns of a CSV file [default: a comma, or a tab in *.tsv]
    #[arg(long, value_name = "CHARACTER")]
    delimiter: Option<char>,
    /// Write rows that are not recorded to this file, as they are in the input
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Begin with the first row, though an import of this file was broken off
    #[arg(long)]
    from_start: bool,
    /// Go on trying for so long while the sidecar does not answer
    #[arg(long, value_name = "TIME", default_value = "60s",
          value_parser = humantime::parse_duration)]
    retry_for: Duration,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

/// What a row may look like, for the help.
pub(super) fn help() -> String {
    let events: Vec<_> = EVENTS
        .iter()
        .map(|(event, columns)| format!("  {event}: {}", columns.join(", ")))
        .collect();
    include_str!("help.txt").replace("{events}", &events.join("\n"))
}

impl ImportArgs {
    /// Sees that no two files are one, and that nothing else is written over.
    fn check_files(&self, keeper: Option<&Keeper>) -> anyhow::Result<()> {
        let file = |flag, path: &Path, usage| UsedFile { flag, path: path.to_owned(), usage };
        let mut used = vec![file("FILE", Path::new(&self.input), Usage::Input)];
        used.extend(self.rejects.iter().map(|path| file("--rejects", path, Usage::Written)));
        used.extend(self.token.path().map(|path| file("--token-file", path, Usage::Secret)));
        used.extend(keeper.map(|keeper| file("FILE", keeper.path(), Usage::Written)));
        files::check(&used)?;
        if let Some(keeper) = keeper.filter(|keeper| keeper.is_in_the_way()) {
            let path = keeper.path().display();
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
    let keeper = Keeper::of(&args.input);
    args.check_files(keeper.as_ref())?;
    let delimiter = args.delimiter()?;
    // Told before anything is sent: a wrong header or a missing file.
    let read = |place| rows::read(&args.input, args.format, delimiter, place);
    let (parser, rows) = read(None)?;
    let token = args.token.header()?;
    let mut session = Session::connect(&args.client, token, args.retry_for).await?;

    let before = keeper.as_ref().and_then(Keeper::load);
    // Rows that were rejected before may be rejected again, so that their file is this import's.
    let rejects_inode = before.as_ref().and_then(|before| before.rejects_inode);
    let before = before.filter(|_| !args.from_start);
    let (rows, progress) = match before.filter(|before| goes_on(before, session.ledger())) {
        None => {
            let mut anew = Progress::of(session.ledger().id.clone());
            anew.rejects_inode = rejects_inode;
            (rows, anew)
        }
        Some(before) => (read(Some(before.place()))?.1, before),
    };
    let rejects = Rejects::open(args.rejects.as_deref(), &progress, &parser, delimiter)?;
    let size = keeper.as_ref().and_then(|_| std::fs::metadata(&args.input).ok());
    let mut import = Import {
        shown: Shown::new(size.map(|size| size.len())),
        rejects,
        keeper,
        progress,
        kept: clock::boot(),
    };
    // From the first row on, so that the same command can go on wherever this one ends.
    import.keep()?;
    let started = clock::boot();
    let first = import.progress.tally.rows();
    let ended = session.run(parser, rows, &mut import).await;
    import.finish(ended)?;
    let tally = import.progress.tally;
    let took = clock::boot().saturating_sub(started);
    print_tally(&tally, tally.rows() - first, took, args.client.json)?;
    if tally.rejected > 0 && !args.client.json {
        print::line(&match &args.rejects {
            Some(path) => format!("the rejected rows are in {}", path.display()),
            None => "to keep the rejected rows, give --rejects FILE".to_owned(),
        })?;
    }
    Ok(if tally.rejected == 0 { Verdict::Yes } else { Verdict::No })
}

/// Whether an import that was broken off can go on in this ledger; says so.
fn goes_on(before: &Progress, ledger: &LedgerName) -> bool {
    // A ledger that is another one, or was set back, has not all of it.
    let same = before.ledger == ledger.id && before.revision <= ledger.revision;
    print::note(&if same {
        let line = HumanCount(before.line);
        format!(
            "going on with line {line}; the rows before it are in the ledger (--from-start begins \
             anew)"
        )
    } else {
        "this is not the ledger that the file was being imported into: beginning anew".to_owned()
    });
    same
}

fn print_tally(tally: &Tally, rows: u64, took: Duration, json: bool) -> anyhow::Result<()> {
    let Tally { applied, unchanged, rejected } = *tally;
    if json {
        let tally = serde_json::json!({
            "rows": tally.rows(), "applied": applied, "unchanged": unchanged, "rejected": rejected,
        });
        return print::line(&tally.to_string());
    }
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    let rate = rows as f64 / took.as_secs_f64().max(0.001);
    print::line(&format!(
        "{} rows: {} recorded, {} known before or older than what is known, {} rejected; {:.1} s, \
         {} a second",
        HumanCount(tally.rows()),
        HumanCount(applied),
        HumanCount(unchanged),
        HumanCount(rejected),
        took.as_secs_f64(),
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

/// What comes of the rows.
struct Import {
    shown: Shown,
    rejects: Rejects,
    keeper: Option<Keeper>,
    progress: Progress,
    kept: Duration,
}

impl Import {
    /// Keeps the progress, and shows it, now and then.
    fn tick(&mut self) -> anyhow::Result<()> {
        if clock::boot().saturating_sub(self.kept) < TICK {
            return Ok(());
        }
        self.kept = clock::boot();
        self.shown.show(&self.progress);
        self.keep()
    }

    fn keep(&mut self) -> anyhow::Result<()> {
        self.progress.rejects = self.rejects.flush()?;
        self.progress.rejects_inode = self.rejects.inode()?;
        let Some(keeper) = &self.keeper else { return Ok(()) };
        if let Err(error) = keeper.save(&mut self.progress) {
            // The import is worth more than the comfort of going on from its middle.
            self.shown.say(&format!("{error:#}: a broken import will begin anew"));
            self.keeper = None;
        }
        Ok(())
    }

    fn finish(&mut self, ended: anyhow::Result<Ended>) -> anyhow::Result<()> {
        self.shown.end();
        let kept = self.keep();
        match ended {
            Ok(Ended::AtTheEnd) => {
                kept?;
                if let Some(keeper) = &self.keeper {
                    keeper.remove();
                }
                Ok(())
            }
            Ok(Ended::Interrupted) => bail!("interrupted; {}", self.what_now()),
            Err(error) => Err(error.context(self.what_now())),
        }
    }

    fn what_now(&self) -> String {
        let rows = HumanCount(self.progress.tally.rows());
        match &self.keeper {
            Some(keeper) => format!(
                "{rows} rows are done with; the same command goes on behind them (what it needs is \
                 in {})",
                keeper.path().display()
            ),
            None => format!("{rows} rows are done with; to import them again changes nothing"),
        }
    }
}

/// What a person sees meanwhile.
struct Shown {
    bar: Option<ProgressBar>,
    told: Duration,
}

impl Shown {
    fn new(size: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, told: clock::boot() };
        }
        let (bar, template) = match size {
            Some(size) => (
                ProgressBar::new(size),
                "{bar:30} {percent:>3} %  {msg}  {elapsed} gone, {eta} to go",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed} gone"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar: Some(bar), told: clock::boot() }
    }

    fn show(&mut self, progress: &Progress) {
        let tally = progress.tally;
        let rejected = match tally.rejected {
            0 => String::new(),
            rejected => format!(", {} rejected", HumanCount(rejected)),
        };
        let text = format!("{} rows{rejected}", HumanCount(tally.rows()));
        if let Some(bar) = &self.bar {
            bar.set_position(progress.offset);
            bar.set_message(text);
        } else if clock::boot().saturating_sub(self.told) >= TELL_EVERY {
            self.told = clock::boot();
            print::note(&text);
        }
    }

    /// Says something beside the bar.
    fn say(&self, text: &str) {
        self.beside(|| print::note(text));
    }

    fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
