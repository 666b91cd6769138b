//! What goes wrong with the nodes and the partitions that they own.

use std::rc::Rc;

use super::partition::FormerOwner;
use super::world::{Happening, World};
use crate::ledger::Server;
use crate::random::Random;
use crate::wire::Wire;
use crate::world::{MILLI, SECOND};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    Wire,
    Lag,
    /// The owner is cut off from the other nodes, and clients still reach it.
    Isolated,
    /// The owner is stopped, another takes its place, and it goes on without knowing.
    Suspended,
    Down,
    Unconfirmed,
    KeyByKey,
    Atomic,
    Backup,
    Trim,
    Clock,
    Freeze,
    WallStep,
    Restart,
}

/// The faults of a history: few kinds, so that each is met in depth.
pub fn kinds(random: &mut Random) -> Vec<Fault> {
    use Fault as F;
    let all = [
        (F::Wire, 50),
        (F::Lag, 50),
        (F::Isolated, 50),
        (F::Suspended, 50),
        (F::Down, 50),
        (F::Unconfirmed, 40),
        (F::KeyByKey, 50),
        (F::Atomic, 50),
        (F::Backup, 30),
        (F::Trim, 30),
        (F::Clock, 40),
        (F::Freeze, 12),
        (F::WallStep, 12),
        (F::Restart, 20),
    ];
    let mut kinds = vec![F::Lag];
    kinds.extend(all.iter().filter(|(_, weight)| random.percent(*weight)).map(|(kind, _)| *kind));
    kinds
}

impl World {
    pub fn fault(&mut self) {
        let kind = self.random.pick(&self.kinds);
        let Some(at) = (!self.victims.is_empty()).then(|| self.random.pick(&self.victims)) else {
            return;
        };
        let (now, owner) = (self.now, self.partitions[at].owner);
        let span = self.random.between(100, 8_000) * MILLI;
        if self.traced {
            println!("        fault: {kind:?} of {at} at node {owner}");
        }
        // What is being moved, or is gone, has one fault already.
        let partition = &self.partitions[at];
        let is_busy = partition.is_silent(now) || partition.is_missing;
        match kind {
            Fault::Isolated
            | Fault::Suspended
            | Fault::KeyByKey
            | Fault::Atomic
            | Fault::Backup
                if is_busy => {}
            Fault::Wire => {
                let wire = Wire::any(&mut self.random);
                let partition = &mut self.partitions[at];
                (partition.wire, partition.wire_until) = (wire, now + span);
                // An answer of before may be under way for as long.
                partition.is_ill(now + span + 7 * SECOND);
                self.after(span, Happening::Mended(at));
            }
            Fault::Lag => self.partitions[at].lags ^= true,
            Fault::Isolated => {
                let wait = self.random.pick(&[0, 300, 2_000]) * MILLI;
                let term = self.partitions[at].term;
                self.partitions[at].is_ill(now + wait + 8 * SECOND);
                self.after(wait, Happening::Promoted(at, term));
            }
            Fault::Suspended => {
                self.machines[owner].down_until = now + span;
                self.are_ill(owner, now + span + 8 * SECOND);
                // All that it owns fails over, or all but some.
                for at in 0..self.partitions.len() {
                    let partition = &self.partitions[at];
                    let may = partition.owner == owner && self.victims.contains(&at);
                    if may && !partition.is_missing && self.random.percent(80) {
                        let term = partition.term;
                        let wait = self.random.below(span);
                        self.after(wait, Happening::Promoted(at, term));
                    }
                }
            }
            Fault::Down => {
                self.machines[owner].down_until = now + span;
                self.are_ill(owner, now + span);
            }
            Fault::Unconfirmed => {
                let partition = &mut self.partitions[at];
                partition.unconfirmed_until = now + span;
                partition.is_ill(now + span);
            }
            Fault::KeyByKey => {
                let completed = self.random.percent(60);
                let partition = &mut self.partitions[at];
                partition.migrating_until = now + span;
                partition.is_ill(now + span);
                let term = partition.term;
                self.after(span, Happening::Migrated(at, term, completed));
            }
            Fault::Atomic => {
                let term = self.partitions[at].term;
                self.migrated(at, term, true);
                if self.random.percent(60) {
                    // What its replica has by then may be less than what was handed over.
                    self.partitions[at].lags |= self.random.percent(60);
                    let wait = self.random.pick(&[1, 50, 500, 3_000]) * MILLI;
                    let term = self.partitions[at].term;
                    self.partitions[at].is_ill(now + wait);
                    self.after(wait, Happening::TargetLost(at, term));
                }
            }
            Fault::Backup => {
                let partition = &mut self.partitions[at];
                partition.backup = partition.primary.clone();
            }
            Fault::Trim => {
                let keep = self.random.pick(&[0, 1, 5, 30]);
                self.partitions[at].is_ill(now);
                let primary = &mut self.partitions[at].primary;
                let trimmed = primary.end().revision.saturating_sub(keep);
                primary.trimmed = primary.trimmed.max(trimmed);
            }
            Fault::Clock => {
                let clock = self.random.pick(&[-4_000, -300, 0, 900, 4_000]);
                self.machines[owner].clock = clock;
                self.set_clocks();
            }
            Fault::Freeze => {
                self.frozen_until = self.frozen_until.max(now + span);
                self.all_are_ill(now + span);
            }
            Fault::WallStep => {
                self.clocks.wall += self.random.pick(&[-3_600_000, -3_000, 3_000, 3_600_000]);
                self.all_are_ill(now);
            }
            Fault::Restart => self.restart(),
        }
    }

    /// Something is wrong until then with all that a node owns.
    fn are_ill(&mut self, machine: usize, until: u64) {
        let of_it = self.partitions.iter_mut().filter(|partition| partition.owner == machine);
        of_it.for_each(|partition| partition.is_ill(until));
    }

    fn all_are_ill(&mut self, until: u64) {
        self.partitions.iter_mut().for_each(|partition| partition.is_ill(until));
    }

    /// Every server goes by the clock of its node.
    fn set_clocks(&mut self) {
        for partition in &mut self.partitions {
            partition.primary.clock = self.machines[partition.owner].clock;
            if let Some(former) = &mut partition.former {
                former.server.clock = self.machines[former.machine].clock;
            }
        }
    }

    /// Another node owns the partition, with this data. The one before may not know that for a while.
    fn owned_by(&mut self, at: usize, machine: usize, with: Server, knows: bool) {
        let resumes = self.machines[self.partitions[at].owner].down_until.max(self.now);
        let until = resumes + self.random.pick(&[0, 500, 7_000]) * MILLI;
        let down = self.machines[machine].down_until;
        let partition = &mut self.partitions[at];
        let server = std::mem::replace(&mut partition.primary, with);
        let (before, term) = (partition.owner, partition.term);
        let former = FormerOwner { server, machine: before, until, term };
        partition.former = (!knows).then_some(former);
        (partition.owner, partition.spare) = (machine, before);
        partition.term += 1;
        partition.is_missing = false;
        let until = if knows { down } else { down.max(until) };
        partition.is_ill(until.max(self.now));
        self.set_clocks();
    }

    /// The replica takes the place of the owner, with what it has.
    pub fn fail_over(&mut self, at: usize) {
        let (spare, with) = (self.partitions[at].spare, self.partitions[at].replica.clone());
        let knows = self.partitions[at].is_missing;
        self.partitions[at].migrating_until = 0;
        self.owned_by(at, spare, with, knows);
        self.is_replaced(at);
    }

    /// The owner of a partition holds what it holds: what it lacks is lost.
    pub fn is_replaced(&mut self, at: usize) {
        let now = self.now;
        self.partitions[at].know(now);
        self.taken += 1;
        self.partitions[at].taken += 1;
        self.others_notice();
        if self.random.percent(70) {
            self.partitions[at].replica = self.partitions[at].primary.clone();
        }
        self.forget_lost(at);
    }

    /// All keys are at another node, or all are back.
    pub fn migrated(&mut self, at: usize, term: u64, completed: bool) {
        let partition = &mut self.partitions[at];
        if partition.term != term {
            return;
        }
        partition.migrating_until = 0;
        if completed {
            let with = partition.primary.clone();
            let owner = partition.owner;
            let others = self.machines.len() - 1;
            let machine = (owner + 1 + self.random.index(others)) % self.machines.len();
            // The node that gave the keys away says so itself.
            self.owned_by(at, machine, with, true);
        }
    }

    /// The node to which a partition was just handed over is lost: what its replica has is what there is; or there
    /// is nothing, until somebody restores it.
    pub fn target_lost(&mut self, at: usize, term: u64) {
        if self.partitions[at].term != term {
            return;
        }
        if self.random.percent(60) {
            return self.fail_over(at);
        }
        let wait = self.random.between(500, 9_000) * MILLI;
        let now = self.now;
        let partition = &mut self.partitions[at];
        partition.is_missing = true;
        partition.former = None;
        partition.term += 1;
        partition.is_ill(now + wait);
        self.after(wait, Happening::Restored(at));
    }

    /// A partition of which its owner has nothing is restored from a backup, or from the lost node's own disk.
    pub fn restored(&mut self, at: usize) {
        if !self.partitions[at].is_missing {
            return;
        }
        let from_disk = self.random.percent(40);
        let partition = &mut self.partitions[at];
        partition.is_missing = false;
        partition.term += 1;
        if !from_disk {
            partition.primary = partition.backup.clone();
            self.set_clocks();
            self.is_replaced(at);
        }
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        self.faulty = false;
        let (now, loss) = (self.now, self.random.pick(&[0, 0, 20, 100]));
        self.machines.iter_mut().for_each(|machine| machine.down_until = 0);
        for at in 0..self.partitions.len() {
            self.restored(at);
            let partition = &mut self.partitions[at];
            partition.wire = Wire::healthy();
            partition.wire.announce_loss = loss;
            (partition.lags, partition.former) = (false, None);
            (partition.migrating_until, partition.unconfirmed_until) = (0, 0);
            partition.wire_until = u64::MAX;
            partition.term += 1;
            partition.is_ill(now);
        }
    }

    /// Another round of faults begins, for some of the partitions.
    pub fn break_some(&mut self) {
        self.faulty = true;
        let count = self.partitions.len();
        let spared = self.random.index(count);
        let victims = (0..count).filter(|at| *at != spared);
        self.victims = victims.collect();
        self.victims.retain(|_| self.random.percent(70));
        if self.random.percent(20) {
            self.victims = (0..count).collect();
        }
        for partition in &mut self.partitions {
            partition.wire_until = 0;
        }
    }

    /// Appends to a former owner, whose log is a branch by itself.
    pub fn know_branch(&mut self, at: usize) {
        let node = self.partitions[at].former.as_ref().map(|it| Rc::clone(&it.server.node));
        if let Some(node) = node {
            self.partitions[at].know_branch(&node);
        }
    }
}
