//! What a process keeps beside its recorder: where its follower is, and the real memory of what it
//! recorded, from which it gives back what the ledger lost.
//!
//! Recorder 0 is of the sidecar's own process: it waits for that sidecar's follower, stops while it
//! is suspended, and forgets when it is restarted. Recorder 1 is of another process, whose follower
//! misses nothing. Recorder 2 has neither follower nor memory: the proof of the primary alone keeps
//! it from answering what is on a dead branch.

use std::collections::HashSet;

use consentd::recorder::replay_denials::{ReplayBuffer, Replayable};
use consentd::recorder::sent_changes::{Origin, SentChanges};
use consentd_core::state::Effect;
use consentd_core::time::Timestamp;
use consentd_ledger::{AppendReceipt, Change, FollowerCheckpoint, LedgerError, Version};

use crate::erase::erased_before;
use crate::ledger::{Said, user};
use crate::oracle::Violation;
use crate::recorder::time_of;
use crate::world::{Happening, MILLI, World};

/// How many recorders write of their own accord. Behind them comes one for each process, which gives
/// back what that process keeps.
pub const WRITERS: usize = 3;

/// The process of the sidecar that is simulated.
pub const OWN: usize = 0;

/// A process with a follower of its own, which misses nothing and is not simulated.
pub const ELSEWHERE: usize = 1;

/// How many processes have a memory.
pub const PROCESSES: usize = 2;

/// How often a process looks for what to give back.
pub const PAUSE: u64 = 200 * MILLI;

/// How soon it goes on after each.
pub const NEXT: u64 = 2 * MILLI;

/// A process with a memory.
#[derive(Default)]
pub struct Process {
    pub memory: ReplayBuffer,
    /// What is being given back: its number in the memory.
    pub giving: Option<u64>,
}

/// Something that a process wrote to some branch, and must give back should the ledger lack it.
#[derive(Clone, Debug)]
pub enum Owed {
    Denied(usize, Effect),
    Linked(usize, usize, Timestamp),
    Erased(usize, Timestamp),
}

impl Owed {
    pub fn number(&self) -> usize {
        match self {
            Self::Denied(number, _) | Self::Linked(number, ..) | Self::Erased(number, _) => *number,
        }
    }

    /// Whether a record has it, or was erased since.
    pub fn is_in(&self, said: Option<&Said>) -> bool {
        let Some(said) = said else { return false };
        match self {
            Self::Denied(_, effect) => {
                erased_before(said, Some(time_of(effect)))
                    || said.state.clone().apply(effect) == Ok(false)
            }
            Self::Linked(_, other, time) => erased_before(said, Some(*time)) || said.names(*other),
            Self::Erased(_, time) => erased_before(said, Some(*time)),
        }
    }
}

/// One call to a recorder of a history whose processes have memories.
pub struct Call {
    pub sent: SentChanges,
    /// Where the own follower was when it began.
    before: Option<FollowerCheckpoint>,
    /// How many losses the process had noticed by then.
    losses: u64,
    /// What it wrote, on whatever branch.
    pub written: Vec<Owed>,
    /// How often something was lost when the ledger took its last change.
    taken: u64,
}

/// The process of a recorder, where it has a memory.
pub fn process_of(index: usize) -> Option<usize> {
    match index {
        0 | WRITERS => Some(OWN),
        1 | 4 => Some(ELSEWHERE),
        _ => None,
    }
}

/// Whether a recorder only gives back.
pub fn gives_back(index: usize) -> bool {
    index >= WRITERS
}

impl World {
    /// A recorder begins a call; what it was at is dropped.
    pub fn begin_call(&mut self, index: usize) {
        self.end_call(index, false);
        if !self.plan.memories {
            return;
        }
        let process = process_of(index);
        let keeps = process.is_some() && !gives_back(index);
        let before = (process == Some(OWN)).then(|| self.position.now());
        let losses = process.map_or(0, |process| self.processes[process].memory.losses());
        let (sent, written) = (SentChanges::new(keeps), Vec::new());
        let taken = self.taken;
        self.recorders[index].call = Some(Call { sent, before, losses, written, taken });
    }

    /// A call ends: what it sent is known to be in the ledger if its follower has all of it, and is
    /// unknown otherwise.
    pub fn end_call(&mut self, index: usize, is_followed: bool) {
        let Some(mut call) = self.recorders[index].call.take() else { return };
        let Some(process) = process_of(index) else { return };
        let now = self.time();
        let memory = &mut self.processes[process].memory;
        for (what, is_confirmed) in call.sent.take_retained(is_followed) {
            let is_confirmed = is_confirmed && call.losses == memory.losses();
            memory.retain(now, what, is_confirmed);
        }
        if !gives_back(index) {
            self.owed.extend(call.written.into_iter().map(|owed| (process, owed)));
        }
    }

    /// Appends one change of a call, and notes what comes of it.
    pub fn append_of_call(
        &mut self,
        index: usize,
        number: usize,
        change: Change,
        said: Option<std::rc::Rc<Said>>,
        (origin, owes): (Origin, Vec<Owed>),
    ) -> Option<Result<AppendReceipt, LedgerError>> {
        let (base, writes) = (change.base, self.acks.writes());
        let first =
            self.recorders[index].call.as_mut().map(|call| call.sent.send(&[change], origin));
        let answer = self.append(number, base, said);
        let taken = self.taken;
        if let Some(call) =
            self.recorders[index].call.as_mut().filter(|_| self.acks.writes() > writes)
        {
            call.written.extend(owes);
        }
        if let (Some(call), Some(first), Some(answer)) =
            (&mut self.recorders[index].call, first, &answer)
        {
            call.taken = taken;
            match answer {
                Ok(written) => call.sent.answered(first, std::slice::from_ref(written)),
                Err(error) if error.may_be_written() => {}
                Err(_) => call.sent.discard(first, 1),
            }
        }
        answer
    }

    /// Whether something was lost since the ledger took the last change of a call: then what was
    /// answered may be gone already, as if it had been lost later.
    pub fn may_be_taken(&self, index: usize) -> bool {
        self.recorders[index].call.as_ref().is_none_or(|call| call.taken != self.taken)
    }

    /// Whether the follower of a recorder's process has all that the call appended.
    pub fn is_followed(&self, index: usize) -> bool {
        let Some(call) = &self.recorders[index].call else { return true };
        let has = |version: &Version| match (process_of(index), call.before) {
            (Some(OWN), Some(before)) => self.position.has(*version, before),
            (Some(_), _) => self.primary.has_version(*version),
            (None, _) => true,
        };
        // What was written behind the log's back has no revision to wait for.
        let versions = call.sent.versions().into_iter().map(|(_, version)| version);
        versions.filter(|version| version.revision > 0).all(|version| has(&version))
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
        self.position = consentd_ledger::FollowerPosition::default();
        if !self.plan.memories {
            return;
        }
        self.processes[OWN] = Process::default();
        self.owed.retain(|(process, _)| *process != OWN);
        for index in (0..self.recorders.len()).filter(|index| process_of(*index) == Some(OWN)) {
            self.recorders[index].call = None;
            self.recorder_starts(index);
        }
    }

    /// A process looks for what it has to give back.
    pub fn looks_for_lost(&mut self, process: usize) {
        let index = WRITERS + process;
        let now = self.time();
        let unsettled = self.processes[process].memory.unconfirmed(now, 1).pop();
        let Some((number, what)) = unsettled else {
            let operation = self.recorders[index].operation;
            return self.after(PAUSE, Happening::LooksForLost(process, operation));
        };
        self.processes[process].giving = Some(number);
        let is_known = match &what {
            Replayable::Denial(entry) => self.records_again(index, entry),
            Replayable::Erase { key, time } => {
                let number = self.primary.number_of(*key);
                if number.is_none() {
                    // The key is of a ledger with another secret: the pair is unknown here.
                    self.owed.retain(|(of, owed)| {
                        *of != process || !matches!(owed, Owed::Erased(_, at) if at == time)
                    });
                }
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
        let process = index - WRITERS;
        let giving = self.processes[process].giving.take();
        let numbers: HashSet<u64> = giving.into_iter().collect();
        self.processes[process].memory.confirm(&numbers);
    }

    /// The ledger refuses to take it.
    pub fn refuses(&mut self, number: usize) {
        self.owed.retain(|(_, owed)| owed.number() != number);
    }

    /// Keeps a denial or an erase, of which it is not known that the ledger has it.
    pub fn keeps(&mut self, process: usize, what: Replayable) {
        let now = self.time();
        self.processes[process].memory.retain(now, what, false);
    }

    /// A process forgets what it could give back of users who were erased.
    pub fn forgets(&mut self, process: usize, erased: &[usize]) {
        let is_erased = |name: &str| erased.iter().any(|number| user(*number) == name);
        self.processes[process].memory.forget(|entry| is_erased(&entry.user_id));
        self.owed.retain(|(of, owed)| {
            *of != process || matches!(owed, Owed::Erased(..)) || !erased.contains(&owed.number())
        });
    }

    /// Whether no recorder is at anything of its own accord.
    pub fn is_quiet(&self) -> bool {
        self.recorders[..WRITERS].iter().all(|recorder| recorder.call.is_none())
    }

    /// Whether nothing is left to give back.
    pub fn all_is_given_back(&mut self) -> bool {
        let now = self.time();
        let is_confirmed = |process: &mut Process| process.memory.unconfirmed(now, 1).is_empty();
        self.processes.iter_mut().all(is_confirmed)
    }

    /// Property 8: what a process wrote to any branch is in the ledger, and an erased pair names no id
    /// that was linked before the erase.
    pub fn check_given_back(&self) -> Result<(), Violation> {
        for (process, owed) in &self.owed {
            let stored = self.primary.stored[owed.number()].as_ref();
            let said = stored.map(|stored| &*stored.said);
            if said.is_some_and(|said| !said.readable) || owed.is_in(said) {
                continue;
            }
            let state = said.map(|said| &said.state);
            let why = format!("process {process} did not give back {owed:?}: {state:?}");
            return Err(Violation::new(8, why));
        }
        for (number, stored) in self.primary.stored.iter().enumerate() {
            let Some(said) = stored.as_ref().map(|stored| &stored.said) else { continue };
            if said.links.iter().any(|link| erased_before(said, Some(link.time))) {
                let why = format!("user {number} was erased, and names who was linked before");
                return Err(Violation::new(8, why));
            }
        }
        Ok(())
    }
}

/// How long a caller waits for a recorder of this index.
pub fn patience(index: usize) -> u64 {
    (if process_of(index) == Some(OWN) { 2_500 } else { 400 }) * MILLI
}
