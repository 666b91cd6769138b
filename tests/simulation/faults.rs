//! What goes wrong.

use std::rc::Rc;
use std::time::Duration;

use consentd_core::record::Link;
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Epoch, LogEntry, UndecodedEntry};

use crate::ledger::{Node, SECRETS, Said, Server, Stored, USERS, fork};
use crate::oracle::scope;
use crate::random::Random;
use crate::sidecar::true_time;
use crate::wire::Wire;
use crate::world::{Features, Happening, Isolated, MILLI, World};

/// How much of what a failover took recorders give back.
const MAX_GIVEN_BACK: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Wire,
    Trim,
    Lag,
    Failover,
    Split,
    Flush,
    Backup,
    Restore,
    Down,
    OutOfBand,
    Freeze,
    Image,
    WallStep,
    LedgerClock,
    Restart,
    Accept,
    UnreadableRecord,
    UnreadableEntry,
    Forged,
    LostBucket,
}

/// The faults of a history: few kinds, so that each is met in depth.
pub struct Faults {
    kinds: Vec<Fault>,
}

impl Faults {
    pub fn new(random: &mut Random, features: Features) -> Self {
        use Fault as F;
        let all = [
            F::Wire,
            F::Trim,
            F::Lag,
            F::Failover,
            F::Split,
            F::Flush,
            F::Backup,
            F::Restore,
            F::Down,
            F::OutOfBand,
            F::Freeze,
            F::Image,
            F::WallStep,
            F::LedgerClock,
            F::Restart,
            F::Accept,
            F::UnreadableRecord,
            F::UnreadableEntry,
            F::Forged,
        ];
        let mut kinds = vec![F::Wire];
        // What is most of the machine's work is a ledger that others have replaced.
        if random.percent(40) {
            kinds.extend([F::Split, F::Failover]);
        }
        for kind in all {
            let weight = match kind {
                F::OutOfBand | F::UnreadableEntry | F::UnreadableRecord | F::Restart => 12,
                F::WallStep if kinds.contains(&F::Image) => 0,
                _ => 35,
            };
            if random.percent(weight) {
                kinds.push(kind);
            }
        }
        // What is written behind the log's back is written past the links, too: in most histories of
        // linked ids nothing is.
        kinds.retain(|kind| !features.people || features.meet || *kind != F::OutOfBand);
        // What a recorder sends to a former primary is about failovers.
        if features.memories {
            kinds.extend([F::Split, F::Failover, F::Failover]);
        }
        Self { kinds }
    }

    /// Lets some histories lose buckets; by a chance of its own, so that all others stay as they were.
    pub fn lose_buckets(&mut self, seed: u64, features: Features) {
        let may = !features.people || features.meet;
        if may && Random::new(seed ^ 0x6c6f_7374).percent(25) {
            self.kinds.push(Fault::LostBucket);
        }
    }

    /// Whether keys are written behind the log's back.
    pub fn are_out_of_band(&self) -> bool {
        self.kinds.contains(&Fault::OutOfBand)
    }
}

impl World {
    pub fn fault(&mut self) {
        let fault = self.random.pick(&self.faults.kinds);
        if self.traced {
            println!("        fault: {fault:?}");
        }
        let frozen = self.frozen_until > self.now;
        match fault {
            // What is suspended is not suspended again.
            Fault::Freeze | Fault::Image if frozen => {}
            Fault::Wire => self.wire = Wire::any(&mut self.random),
            Fault::Trim => {
                let keep = self.random.pick(&[0, 1, 5, 30]);
                let trimmed = self.primary.end().revision.saturating_sub(keep);
                self.primary.trimmed = self.primary.trimmed.max(trimmed);
            }
            Fault::Lag => self.replica_lags = !self.replica_lags,
            Fault::Failover => self.fail_over(),
            // What cuts a replica off is seldom kind to anybody else.
            Fault::Split => {
                self.replica_lags = true;
                self.wire = Wire::any(&mut self.random);
                self.wire.bucket_delay = self.random.pick(&[50, 1_000, 6_000]) * MILLI;
                let wait = self.random.between(100, 4_000) * MILLI;
                self.after(wait, Happening::Promoted);
            }
            Fault::Flush => self.flush(),
            Fault::Backup => {
                let backup = self.primary.clone();
                self.backups.push(backup);
                if self.backups.len() > 3 {
                    self.backups.remove(0);
                }
            }
            Fault::Restore => {
                if !self.backups.is_empty() {
                    let index = self.random.index(self.backups.len());
                    self.primary = self.backups[index].clone();
                    self.replace();
                }
            }
            Fault::Down => self.down_until = self.now + self.random.between(100, 8_000) * MILLI,
            Fault::OutOfBand => self.write_out_of_band(),
            Fault::Freeze => {
                self.frozen_until = self.now + self.random.between(100, 8_000) * MILLI;
            }
            Fault::Image => {
                // Restored: what the image does not know is how long it was away.
                let away = self.random.between(100, 8_000) * MILLI;
                self.frozen_until = self.now + away;
                self.clocks.behind += Duration::from_micros(away);
            }
            Fault::WallStep => {
                let step = self.random.pick(&[-3_600_000, -3_000, 3_000, 3_600_000]);
                self.clocks.wall += step;
            }
            Fault::LedgerClock => {
                self.primary.clock = self.random.pick(&[-4_000, 0, 0, 4_000]);
            }
            Fault::Restart => self.restart(),
            Fault::Accept => self.primary.accepted += 1,
            Fault::UnreadableRecord => self.write_unreadable(),
            Fault::UnreadableEntry => {
                let number = self.random.index(USERS);
                let mut said = self.said(number);
                let time = self.primary.clock(true_time(self.time()));
                let _ = said.apply(&Effect::Choice(scope("utility"), Choice::opt_out(time)));
                let said = Said::new(said, true).linked(self.links(number));
                let said = said.erased_at(self.erased_at(number));
                self.write(number, Rc::new(said), false);
                self.unreadable_entry = true;
            }
            Fault::Forged => self.forge(),
            Fault::LostBucket => self.lose_bucket(),
        }
    }

    /// What the primary holds of a user.
    fn said(&self, number: usize) -> State {
        let stored = self.primary.stored[number].as_ref();
        stored.map(|stored| stored.said.state.clone()).unwrap_or_default()
    }

    /// The ids that the primary links a user to.
    fn links(&self, number: usize) -> Vec<Link> {
        let stored = self.primary.stored[number].as_ref();
        stored.map(|stored| stored.said.links.clone()).unwrap_or_default()
    }

    /// When the primary says that a user was erased.
    fn erased_at(&self, number: usize) -> Option<Timestamp> {
        self.primary.stored[number].as_ref().and_then(|stored| stored.said.erased)
    }

    /// What the primary holds is all that counts now.
    fn is_replaced(&mut self) {
        let stored = self.primary.stored.clone();
        self.acks.replaced(|number| Some(Rc::clone(&stored[number].as_ref()?.said)));
    }

    /// The primary is another one: what it lacks is lost.
    fn replace(&mut self) {
        self.know();
        self.lose();
        self.taken += 1;
        self.others_notice();
        if self.random.percent(70) {
            self.replica = self.primary.clone();
        }
        self.is_replaced();
    }

    /// What is there now is reached by some connections for a while yet.
    fn isolate(&mut self, with: Server) {
        let server = std::mem::replace(&mut self.primary, with);
        let until = self.now + self.random.pick(&[0, 500, 7_000]) * MILLI;
        let wholly = self.random.percent(50);
        self.isolated = Some(Isolated { server, until, wholly });
    }

    pub fn fail_over(&mut self) {
        let old = Rc::clone(&self.primary.node);
        self.isolate(self.replica.clone());
        self.replace();
        // Where processes have memories they give back what those say.
        if self.random.percent(50) && !self.plan.memories {
            self.give_back(&old);
        }
    }

    /// Recorders record again what is missing of a log that was lost: the ledger may be as long as
    /// before, and another one.
    fn give_back(&mut self, old: &Rc<Node>) {
        let Some(both) = fork(old, &self.primary.node) else { return };
        let mut lost = old.way_from(both.position.revision);
        lost.push(Rc::clone(old));
        for node in lost.iter().take(MAX_GIVEN_BACK) {
            let Some((number, said)) = node.said().filter(|(_, said)| said.readable) else {
                continue;
            };
            if self.primary.stored[number].as_ref().is_none_or(|stored| stored.said.readable) {
                let state = self.said(number).join(said.state.clone());
                let mut links = self.links(number);
                let known = |link: &&Link| !links.iter().any(|it| it.user_id == link.user_id);
                let lost: Vec<_> = said.links.iter().filter(known).cloned().collect();
                links.extend(lost);
                self.write(number, Rc::new(Said::new(state, true).linked(links)), true);
            }
        }
    }

    fn flush(&mut self) {
        let copied = self.random.percent(40).then(|| Rc::clone(&self.primary.node));
        let secret =
            if self.random.percent(50) { self.random.index(SECRETS) } else { self.primary.secret };
        let buckets = self.random.pick(&[1, 4, 20]);
        let new = Server::new(&mut self.random, secret, buckets, copied.as_ref());
        self.isolate(new);
        self.unreadable_entry = false;
        self.down_until = self.now + self.random.pick(&[0, 100, 3_000]) * MILLI;
        self.replica = self.primary.clone();
        self.replace();
    }

    /// A key is written, or deleted, that the log does not tell of.
    pub fn write_out_of_band(&mut self) {
        let number = self.random.index(USERS);
        if self.primary.has_lost(number) {
            return;
        }
        let mut state = self.said(number);
        self.loose[number] = true;
        self.may_deny(number);
        let version = (0, self.random.bytes());
        // No recorder notices it, so that it is not given back.
        self.refuses(number);
        self.taken += 1;
        if self.random.percent(40) {
            self.primary.stored[number] = None;
        } else {
            if self.random.percent(40) {
                state.scopes.clear();
            }
            let time = self.primary.clock(true_time(self.time()));
            let _ = state.apply(&Effect::Choice(scope("utility"), Choice::opt_out(time)));
            let said = Rc::new(Said::new(state, true));
            self.acks.written(number, &said);
            self.primary.stored[number] = Some(Stored { version, said });
        }
        self.lose();
        self.is_replaced();
    }

    /// A newer version writes a record, and sometimes it is read again later.
    fn write_unreadable(&mut self) {
        let number = self.random.index(USERS);
        if self.primary.has_lost(number) {
            return;
        }
        let readable = self.random.percent(50);
        let state = self.said(number);
        self.may_deny(number);
        let said = Said::new(state, readable).linked(self.links(number));
        let said = said.erased_at(self.erased_at(number));
        self.write(number, Rc::new(said), true);
    }

    /// A bucket is deleted, and repaired some time later.
    fn lose_bucket(&mut self) {
        let buckets = u64::from(self.primary.identity.buckets);
        let number = u32::try_from(self.random.below(buckets)).unwrap();
        self.primary.lost.insert(number);
        for user in 0..USERS {
            if self.primary.bucket_of(user) == number {
                self.may_deny(user);
                self.doubted[user] = true;
            }
        }
        let wait = self.random.between(100, 8_000) * MILLI;
        self.after(wait, Happening::Repaired(self.primary.end().epoch, number));
    }

    /// It is rebuilt as it was, or but for what nothing tells of any more.
    pub fn repair(&mut self, epoch: Epoch, number: u32) {
        if self.primary.end().epoch != epoch || !self.primary.lost.remove(&number) {
            return;
        }
        self.others_notice();
        let inside = |user: &usize| self.primary.bucket_of(*user) == number;
        let gone = (0..USERS).find(inside).filter(|_| self.faults.are_out_of_band());
        if let Some(user) = gone.filter(|_| self.random.percent(50)) {
            self.loose[user] = true;
            self.primary.stored[user] = None;
            self.refuses(user);
            self.taken += 1;
            self.lose();
            self.is_replaced();
        }
    }

    /// An announcement that no ledger made.
    fn forge(&mut self) {
        let end = self.primary.end();
        let ahead = self.random.below(3);
        let previous = if self.random.percent(50) { end.head } else { self.random.bytes() };
        let entry = LogEntry {
            revision: end.revision + 1 + ahead,
            previous,
            head: self.random.bytes(),
            body: Err(UndecodedEntry::Unreadable),
        };
        let epoch = if self.random.percent(20) { self.random.bytes() } else { end.epoch };
        self.announce(epoch, &[entry]);
    }

    /// Ends all faults but those that a sidecar must live with.
    pub fn heal(&mut self) {
        self.faulty = false;
        let pubsub_dead = self.random.percent(30);
        self.wire = Wire::healthy();
        if pubsub_dead {
            self.wire.announce_loss = 100;
        } else {
            self.wire.announce_loss = self.random.pick(&[0, 20]);
        }
        self.replica_lags = false;
        self.isolated = None;
        self.down_until = 0;
        self.primary.lost.clear();
        self.replica.lost.clear();
        // One that is gone for good is known to a sidecar that met it, and to no other.
        if self.unreadable_entry || self.primary.has_unreadable_entry() {
            self.flush();
            self.isolated = None;
            self.down_until = 0;
        }
    }
}
