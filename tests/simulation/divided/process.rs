//! What processes keep of what their recorders wrote to several partitions, and give back where one lost it.
//!
//! Recorder 0 is of the sidecar's own process, recorder 1 of another one, whose followers miss nothing; recorder 2 has
//! neither followers nor a memory. Behind them comes one for each process, which gives back what that keeps.

use std::collections::HashSet;

use consentd::recorder::replay_denials::Replayable;
use consentd::recorder::sent_changes::SentChanges;
use consentd_core::event::What;
use consentd_core::record::HistoryEntry;
use consentd_ledger::Change;

use super::recorder::{OWN as OWN_RECORDER, WRITERS};
use super::world::{Happening, World};
use crate::erase::erased_before;
use crate::held::business_of;
use crate::ledger::{BUSINESS, Stored, USERS, user};
use crate::oracle::Violation;
pub use crate::process::OWN;
use crate::process::{ELSEWHERE, NEXT, Owed, PAUSE, Process, gives_back, process_of};
use crate::round::GIVEN_BACK_WITHIN;
use crate::world::MILLI;

fn number_of(name: &str) -> Option<usize> {
    (0..USERS).find(|number| user(*number) == name)
}

impl World {
    /// What is recorded of a user.
    pub fn stored(&self, number: usize) -> Option<&Stored> {
        self.partitions[self.place[number]].primary.stored[number].as_ref()
    }

    /// A recorder begins a call; what it was at is dropped.
    pub fn begin_call(&mut self, index: usize) {
        self.end_call(index, false);
        let process = process_of(index).filter(|_| self.plan.memories);
        let losses = process.map(|process| self.processes[process].memory.losses());
        let recorder = &mut self.recorders[index];
        recorder.sent = SentChanges::new(losses.is_some() && !gives_back(index));
        recorder.losses = losses;
    }

    /// A call ends: what it sent is known to be in the ledger if its followers have all of it, and is unknown
    /// otherwise.
    pub fn end_call(&mut self, index: usize, is_followed: bool) {
        let now = self.time();
        let recorder = &mut self.recorders[index];
        let Some(losses) = recorder.losses.take() else { return };
        let Some(process) = process_of(index) else { return };
        let (retained, owed) =
            (recorder.sent.take_retained(is_followed), std::mem::take(&mut recorder.owes));
        let memory = &mut self.processes[process].memory;
        for (what, is_confirmed) in retained {
            memory.retain(now, what, is_confirmed && losses == memory.losses());
        }
        if !gives_back(index) {
            self.owed.extend(owed.into_iter().map(|owed| (process, owed)));
        }
    }

    /// What must not be lost of a change of a recorder's own that was written to some branch.
    pub fn owes(&mut self, index: usize, number: usize, change: &Change) {
        let Some(update) = &change.update else { return };
        let mut owes = Vec::new();
        for HistoryEntry { time, what, .. } in &update.history {
            match what {
                What::Link { other_user_id, .. } => {
                    let other = number_of(other_user_id);
                    owes.extend(other.map(|other| Owed::Linked(number, other, *time)));
                }
                what => {
                    let effects = what.effects(*time).into_iter();
                    owes.extend(effects.map(|effect| Owed::Denied(number, effect)));
                }
            }
        }
        if update.record.is_tombstone() {
            let erased = update.record.erased.as_ref();
            owes.extend(erased.map(|erased| Owed::Erased(number, erased.time)));
        }
        // The own process does not follow what it does not hold, and sees no loss there.
        let is_seen = process_of(index) != Some(OWN) || business_of(number) == BUSINESS;
        if is_seen {
            self.recorders[index].owes.extend(owes);
        }
    }

    /// Whether the followers of a recorder's process have all that its call appended.
    pub fn has_followed(&self, index: usize) -> bool {
        let recorder = &self.recorders[index];
        if process_of(index) == Some(ELSEWHERE) && self.plan.memories {
            let mut versions = recorder.sent.versions().into_iter();
            return versions.all(|(partition, version)| {
                self.partitions[usize::try_from(partition).unwrap()].primary.has_version(version)
            });
        }
        let awaited = recorder.sent.awaited(&recorder.followed);
        awaited.iter().all(|it| {
            let at = usize::try_from(it.partition).unwrap();
            it.has_arrived() || !self.partitions[at].is_followed
        })
    }

    /// Something was lost: the other process sees it some time later.
    pub fn others_notice(&mut self) {
        if self.plan.memories {
            let wait = self.random.between(MILLI, 2_000 * MILLI);
            self.after(wait, Happening::Noticed(ELSEWHERE));
        }
    }

    /// A process has seen that the ledger lost something.
    pub fn notices(&mut self, process: usize) {
        self.processes[process].memory.note_loss();
    }

    /// The sidecar's process is gone, with all that it kept.
    pub fn process_restarts(&mut self) {
        self.processes[OWN] = Process::default();
        self.owed.retain(|(process, _)| *process != OWN);
        for index in 0..self.recorders.len() {
            if index == OWN_RECORDER || gives_back(index) && process_of(index) == Some(OWN) {
                self.recorders[index].losses = None;
                self.recorder_starts(index);
            }
        }
    }

    pub fn looks_for_lost_when_awake(&mut self, process: usize, operation: u64) {
        if self.recorders[WRITERS + process].operation != operation {
            return;
        }
        let frozen = self.frozen_until.saturating_sub(self.now);
        if process == OWN && frozen > 0 {
            return self.after(frozen, Happening::LooksForLost(process, operation));
        }
        self.looks_for_lost(process);
    }

    /// A process looks for what it has to give back.
    fn looks_for_lost(&mut self, process: usize) {
        let index = WRITERS + process;
        let now = self.time();
        let Some((number, what)) = self.processes[process].memory.unconfirmed(now, 1).pop() else {
            let operation = self.recorders[index].operation;
            return self.after(PAUSE, Happening::LooksForLost(process, operation));
        };
        self.processes[process].giving = Some(number);
        let is_known = match &what {
            Replayable::Denial(entry) => self.records_again(index, entry),
            Replayable::Erase { key, time } => {
                let number = self.partitions[0].primary.number_of(*key);
                number.is_some_and(|number| self.erases_again(index, number, *time))
            }
        };
        if is_known {
            self.recorder_tries(index);
        } else {
            self.settles(index);
            self.recorder_starts(index);
        }
    }

    /// How long until a process goes on with what it gives back.
    pub fn gives_next(&mut self, index: usize) {
        let operation = self.recorders[index].operation;
        // Where pages are small, readers must keep up.
        let wait = if self.plan.page < 8 { PAUSE } else { NEXT };
        self.after(wait, Happening::LooksForLost(index - WRITERS, operation));
    }

    /// What a recorder gave back is in the ledger, or will never be.
    pub fn settles(&mut self, index: usize) {
        let process = &mut self.processes[index - WRITERS];
        let numbers: HashSet<u64> = process.giving.take().into_iter().collect();
        process.memory.confirm(&numbers);
    }

    /// Keeps something of which it is not known that the ledger has it.
    pub fn keeps(&mut self, index: usize, what: Replayable) {
        let now = self.time();
        if let Some(process) = process_of(index) {
            self.processes[process].memory.retain(now, what, false);
        }
    }

    /// A process forgets what it could give back of users who were erased.
    pub fn forgets(&mut self, index: usize, erased: &[usize]) {
        let Some(process) = process_of(index) else { return };
        let is_erased = |name: &str| erased.iter().any(|number| user(*number) == name);
        self.processes[process].memory.forget(|entry| is_erased(&entry.user_id));
        self.owed.retain(|(of, owed)| {
            *of != process || matches!(owed, Owed::Erased(..)) || !erased.contains(&owed.number())
        });
    }

    fn all_is_given_back(&mut self) -> bool {
        let now = self.time();
        let is_confirmed = |process: &mut Process| process.memory.unconfirmed(now, 1).is_empty();
        self.processes.iter_mut().all(is_confirmed)
    }

    /// Property 8.
    pub fn give_back_all(&mut self) -> Result<(), Violation> {
        let until = self.now + GIVEN_BACK_WITHIN;
        let is_quiet =
            |world: &Self| world.recorders[..WRITERS].iter().all(|it| it.losses.is_none());
        self.run(until, |world| is_quiet(world) && world.all_is_given_back())?;
        if !self.all_is_given_back() {
            return Err(Violation::new(8, "something is left to be given back"));
        }
        for (process, owed) in &self.owed {
            let said = self.stored(owed.number()).map(|stored| &*stored.said);
            if !owed.is_in(said) {
                let state = said.map(|said| &said.state);
                let why = format!("process {process} did not give back {owed:?}: {state:?}");
                return Err(Violation::new(8, why));
            }
        }
        for number in 0..USERS {
            let Some(said) = self.stored(number).map(|stored| &stored.said) else { continue };
            if said.links.iter().any(|link| erased_before(said, Some(link.time))) {
                let why = format!("user {number} was erased, and names who was linked before");
                return Err(Violation::new(8, why));
            }
        }
        Ok(())
    }
}
