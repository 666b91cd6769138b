//! Reads an input as an import does, and records nothing.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use anyhow::Context as _;
use consentd_core::event::{MAX_AHEAD, PlatformNames};
use consentd_core::template::Subject;
use consentd_core::user_id::{self, Reading};
use consentd_os::clock;
use indicatif::HumanCount;

use super::fault::Fault;
use super::input::Input;
use super::parser::{Parsed, Parser};
use super::progress::Progress;
use super::rejects::Rejects;
use super::streams::LedgerName;
use super::{Import, ImportArgs, conclude, summary};
use crate::cli::time::from_wire;
use crate::cli::{Verdict, output};
use crate::grpc::{self, pb};

/// The most notations of ids that are distinguished, at about 40 bytes each.
const MAX_NOTATIONS: usize = 4 << 20;

/// How many notations there are, and how many people they are.
struct People {
    hasher: RandomState,
    notations: HashSet<u64>,
    readings: HashSet<u64>,
    /// Whether there were more notations than are distinguished.
    is_full: bool,
}

impl People {
    fn new() -> Self {
        let (notations, readings) = (HashSet::new(), HashSet::new());
        Self { hasher: RandomState::new(), notations, readings, is_full: false }
    }

    /// Notes an id as the file has it, and as it is read.
    fn note(&mut self, notation: &str, user_id: &str) {
        let notation = self.hasher.hash_one(notation);
        if self.notations.len() >= MAX_NOTATIONS && !self.notations.contains(&notation) {
            self.is_full = true;
            return;
        }
        self.notations.insert(notation);
        self.readings.insert(match user_id::read(user_id) {
            Ok(Reading::Phone(number)) => self.hasher.hash_one((number.value(), number.len())),
            Ok(Reading::Opaque(id)) => self.hasher.hash_one(id),
            Err(_) => notation,
        });
    }

    /// How many notations are another one of a person who is there already.
    fn folded(&self) -> usize {
        self.notations.len().saturating_sub(self.readings.len())
    }
}

/// Reads all rows, checks each by itself, and prints what would become of them.
pub(super) fn run(args: &ImportArgs, input: Input) -> anyhow::Result<Verdict> {
    let Input { parser, mut rows, preamble, first, .. } = input;
    let progress = Progress::of(&LedgerName::none(), String::new(), first);
    let rejects = Rejects::open(args.rejects.as_deref(), &progress, &preamble)?;
    let mut import = Import::new(&args.input, rejects, None, progress);
    let names = PlatformNames::default();
    let names = names.with_required(args.statement_names.unwrap_or_default());
    let mut people = People::new();
    while let Some(row) = rows.next().context("cannot read on")? {
        match parser.event(&row).and_then(|event| checked(&parser, &names, event)) {
            Parsed::Event((user_id, notation)) => {
                if Subject::of(&user_id) == Subject::Person {
                    people.note(notation.as_deref().unwrap_or(&user_id), &user_id);
                }
                import.progress.tally.applied += 1;
            }
            Parsed::Fault(fault) => import.reject(&row, &fault)?,
            Parsed::Blank => import.progress.tally.blank_lines += 1,
            Parsed::LeftOut => import.progress.tally.left_out += 1,
        }
        import.pass(&row);
        import.tick()?;
    }
    import.rejects.flush()?;
    let counts = import.progress.tally;
    drop(import);
    let (notations, persons) = (people.notations.len(), people.readings.len());
    if args.client.json {
        let mut result = summary::as_json(&counts);
        result["dryRun"] = true.into();
        result["notations"] = notations.into();
        result["people"] = persons.into();
        result["folded"] = people.folded().into();
        output::line(&result.to_string())?;
        return conclude(args, &counts);
    }
    let count = |count: usize| HumanCount(u64::try_from(count).unwrap_or(u64::MAX)).to_string();
    let first = if people.is_full { "the first " } else { "" };
    output::line(&format!(
        "nothing was recorded (--dry-run)\n{}, {} would be recorded, {} rejected{}\n{first}{} \
         notations of ids are {} people: {} are folded into another one",
        summary::lines_and_rows(&counts),
        HumanCount(counts.applied),
        HumanCount(counts.rejected),
        summary::left_out(&counts),
        count(notations),
        count(persons),
        count(people.folded()),
    ))?;
    conclude(args, &counts)
}

/// The user's id of an event and its notation, if a sidecar would take the event, so far as that can be
/// said without one.
fn checked(
    parser: &Parser,
    names: &PlatformNames,
    (event, notation): (pb::ConsentEvent, Option<String>),
) -> Result<(String, Option<String>), Fault> {
    let latest = clock::wall().plus(MAX_AHEAD);
    if event.event_time.as_ref().is_some_and(|time| from_wire(time) > latest) {
        let why = "more than 5 minutes ahead of this machine's clock: check the zone and the unit";
        return Err(Fault::new("event_time", why));
    }
    let user_id = event.user_id.clone();
    match grpc::event_error(event, names) {
        Some(error) => Err(parser.fault(&error)),
        None => Ok((user_id, notation)),
    }
}
