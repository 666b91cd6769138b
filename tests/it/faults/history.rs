//! What happened: which events were sent and acknowledged, and what was answered, when.
//!
//! Several processes write files of it, one JSON object a line, and one reads them all. Moments
//! are nanoseconds by the machine's own clock, which all processes on it share.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// An event is about to be sent; a retry of it is not told again.
    Sent(Sent),
    /// It was acknowledged.
    Acknowledged(Acknowledged),
    /// A check was answered.
    Answer(Answer),
    /// So many checks were denied; written at the end where denials are not kept one by one.
    Denied {
        /// By which sidecar.
        sidecar: String,
        /// Why, as numbered by the contract.
        reason: i32,
        /// How many.
        count: u64,
    },
}

/// What somebody did.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Did {
    /// Agreed.
    OptIn,
    /// Withdrew.
    OptOut,
}

/// An event that was sent.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sent {
    /// By whom.
    pub process: String,
    /// Which event; in the event itself, so that it is known again in the ledger.
    pub name: String,
    /// Of which user; the business is always the same.
    pub user: String,
    /// What it says.
    pub did: Did,
    /// Of what.
    pub scope: String,
    /// Its `event_time`, in Unix milliseconds; none where the ledger gives it one.
    pub event_time: Option<i64>,
    /// The wall clock when it was first sent, likewise.
    pub wall: i64,
    /// When it was first sent.
    pub at: u64,
}

/// That an event is in the ledger.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Acknowledged {
    /// Which event.
    pub name: String,
    /// When that was heard.
    pub at: u64,
    /// At which revision.
    pub revision: u64,
    /// Whether it changed anything.
    pub applied: bool,
}

/// What was answered to a check.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answer {
    /// By which sidecar.
    pub sidecar: String,
    /// Of which user.
    pub user: String,
    /// Of which category.
    pub category: String,
    /// When it was asked.
    pub asked: u64,
    /// When the answer was there.
    pub answered: u64,
    /// What it was.
    pub allowed: bool,
    /// Why, as numbered by the contract.
    pub reason: i32,
    /// At which revision.
    pub revision: u64,
    /// How old the table's proof was, in nanoseconds.
    pub staleness: u64,
}

/// This moment, in nanoseconds since the machine was started.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// The wall clock, in Unix milliseconds.
pub fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set");
    i64::try_from(since.as_millis()).unwrap()
}

/// A span as this file counts it.
pub fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap()
}

/// Where all tasks of a process write what happened.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    lines: Vec<Line>,
    file: Option<File>,
    denied: BTreeMap<(String, i32), u64>,
    counts: Counts,
}

/// How much has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Checks that were allowed.
    pub allowed: u64,
    /// Checks that were denied.
    pub denied: u64,
}

impl History {
    /// One that goes to a file, and keeps denials as counts alone.
    pub fn to_file(path: &Path) -> Self {
        let file = Some(File::create(path).unwrap());
        Self(Arc::new(Mutex::new(Inner { file, ..Inner::default() })))
    }

    /// Takes down what happened.
    pub fn add(&self, line: Line) {
        let mut inner = self.0.lock().unwrap();
        match &line {
            Line::Acknowledged(_) => inner.counts.acknowledged += 1,
            Line::Answer(answer) if answer.allowed => inner.counts.allowed += 1,
            Line::Answer(answer) => {
                inner.counts.denied += 1;
                if inner.file.is_some() {
                    let key = (answer.sidecar.clone(), answer.reason);
                    *inner.denied.entry(key).or_default() += 1;
                    return;
                }
            }
            Line::Sent(_) | Line::Denied { .. } => {}
        }
        match &mut inner.file {
            // At once: a process that is killed leaves what it knew.
            Some(file) => write(file, &line),
            None => inner.lines.push(line),
        }
    }

    /// How much has happened so far.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap().counts
    }

    /// All that happened, where it is not in a file.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap().lines.clone()
    }

    /// Writes to the file what was only counted.
    pub fn finish(&self) {
        let mut inner = self.0.lock().unwrap();
        let denied = std::mem::take(&mut inner.denied);
        if let Some(file) = &mut inner.file {
            for ((sidecar, reason), count) in denied {
                write(file, &Line::Denied { sidecar, reason, count });
            }
        }
    }
}

fn write(file: &mut File, line: &Line) {
    let mut text = serde_json::to_vec(line).unwrap();
    text.push(b'\n');
    file.write_all(&text).unwrap();
}

/// What a file tells; the last line of a process that was killed may be cut.
pub fn read(path: &Path) -> Vec<Line> {
    let lines = BufReader::new(File::open(path).unwrap()).lines();
    let lines: Vec<String> = lines.collect::<Result<_, _>>().unwrap();
    let parsed =
        lines.iter().enumerate().map_while(|(place, line)| match serde_json::from_str(line) {
            Ok(line) => Some(line),
            Err(_) if place + 1 == lines.len() => None,
            Err(error) => panic!("{}, line {}: {error}", path.display(), place + 1),
        });
    parsed.collect()
}

#[test]
fn what_several_wrote_is_read_even_where_the_last_line_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history");
    let history = History::to_file(&path);
    let answer = |allowed| Answer {
        sidecar: "a".into(),
        user: "US.1".into(),
        category: "utility".into(),
        asked: 1,
        answered: 2,
        allowed,
        reason: if allowed { 1 } else { 13 },
        revision: 3,
        staleness: 4,
    };
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let history = history.clone();
            let answer = answer(true);
            std::thread::spawn(move || {
                (0..50).for_each(|_| history.add(Line::Answer(answer.clone())));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    history.add(Line::Answer(answer(false)));
    history.finish();
    let cut = "{\"answer\":{\"side";
    std::fs::write(&path, [std::fs::read(&path).unwrap(), cut.into()].concat()).unwrap();
    let lines = read(&path);
    assert_eq!(lines.len(), 201);
    assert!(matches!(lines[200], Line::Denied { reason: 13, count: 1, .. }));
}
