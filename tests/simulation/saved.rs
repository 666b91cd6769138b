//! Tables that are saved while changes go on, and what a sidecar starts from.

use std::sync::Arc;

use consentd::follower::state_machine::{Attempt, WarmStart};
use consentd::table::TableImage;
use consentd_core::businesses::Businesses;
use consentd_core::id::KeySecret;
use consentd_core::time::Timestamp;
use consentd_ledger::{Identity, Position};
use consentd_os::clock::Moment;

use crate::held::business_of;
use crate::ledger::user;
use crate::oracle::Guards;
use crate::random::Random;
use crate::sidecar::Sidecar;
use crate::world::{Happening, MILLI, World};

/// In histories from this seed on tables are saved, and sidecars start from them. Those before are
/// as they were before there was such a thing.
pub const SAVING_FROM: u64 = 1 << 40;

/// How many shards a saved table has, each as it was at a moment of its own.
const SHARDS: usize = 1 << 10;

/// A table of which a part was written.
pub struct Begun {
    from: Position,
    attempt: Attempt,
    /// The businesses that it held, and how many additions it had seen.
    businesses: (Businesses, u64),
    seen: Timestamp,
    bytes: Vec<u8>,
    guards: Guards,
}

/// A table that was saved.
pub struct File {
    pub warm: WarmStart,
    /// The businesses that it holds: a sidecar that is to hold others does not start from it.
    pub businesses: Businesses,
    pub identity: Arc<Identity>,
    pub seen: Timestamp,
    bytes: Vec<u8>,
    /// What it denies.
    pub guards: Guards,
}

impl File {
    pub fn table(&self) -> TableImage {
        let most = u64::try_from(self.bytes.len()).unwrap();
        TableImage::read(&mut &self.bytes[..], most).expect("a table wrote it")
    }
}

/// What saves the tables of a history, with a chance of its own.
pub struct Saver {
    pub random: Random,
    pub begun: Option<Begun>,
    pub file: Option<File>,
}

impl Saver {
    /// One where tables are saved in histories of this seed.
    pub fn new(seed: u64) -> Option<Self> {
        let random = Random::new(seed ^ 0x5afe);
        (seed >= SAVING_FROM).then_some(Self { random, begun: None, file: None })
    }

    /// The sidecar is gone, and what it was writing.
    pub fn on_restart(&mut self) {
        self.begun = None;
    }
}

/// The shard of a user's pair.
fn shard(secret: &KeySecret, number: usize) -> usize {
    let (high, _) = secret.read(user(number), business_of(number)).unwrap().halves();
    usize::try_from(high >> 54).unwrap()
}

/// How many bytes a saved table's first shards take.
fn length(bytes: &[u8], shards: usize) -> usize {
    (0..shards).fold(0, |at, _| {
        let length = bytes[at + 4..at + 8].try_into().unwrap();
        at + 8 + usize::try_from(u32::from_le_bytes(length)).unwrap()
    })
}

/// Whether the profiles of the first saved table have the same numbers in the other one.
fn lists_begin_alike(first: &[u8], other: &[u8]) -> bool {
    // The list begins with the number of profiles.
    let profiles = |bytes: &[u8]| bytes[length(bytes, SHARDS) + 4..].to_vec();
    profiles(other).starts_with(&profiles(first))
}

impl World {
    /// The pair's record was written behind the log's back, or cannot be read: what a table knows
    /// of it that was saved may be denied beyond that, too.
    pub fn may_deny(&mut self, number: usize) {
        self.sidecar.guards.may_deny(number);
        if let Some(saver) = &mut self.saver {
            saver.begun.iter_mut().for_each(|begun| begun.guards.may_deny(number));
            saver.file.iter_mut().for_each(|file| file.guards.may_deny(number));
        }
    }

    /// Begins to save the table, or ends it: where it may be.
    pub fn save(&mut self) {
        let Some(mut saver) = self.saver.take() else { return };
        let (wait, moment) = (saver.random.pick(&[5, 40, 400, 3_000]) * MILLI, self.moment());
        self.after(wait, Happening::Saved);
        if self.frozen_until <= self.now {
            match saver.begun.take() {
                None => {
                    saver.begun = self.sidecar.begin_saving(moment);
                    // So that an entry which is replayed may be lost before the replay.
                    if self.faulty && saver.begun.is_some() && saver.random.percent(20) {
                        self.replica_lags = true;
                    }
                }
                Some(begun) => {
                    let random = &mut saver.random;
                    if let Some(file) = self.sidecar.finish_saving(&begun, random, moment) {
                        saver.file = Some(file);
                    }
                }
            }
        }
        let restarts = self.faulty && saver.file.is_some() && saver.random.percent(15);
        let strikes = restarts.then(|| saver.random.pick(&[0, 30, 60, 100, 150, 10_000]));
        self.saver = Some(saver);
        if let Some(within) = strikes {
            self.restart();
            let fault = if self.replica_lags { Happening::Promoted } else { Happening::Struck };
            if within < 1_000 {
                self.after(within * MILLI, fault);
            }
        }
    }
}

impl Sidecar {
    fn businesses(&self) -> (Businesses, u64) {
        let machine = self.scheduler().state_machine();
        (machine.held().clone(), machine.addition())
    }

    pub fn begin_saving(&mut self, moment: Moment) -> Option<Begun> {
        self.may_save(moment)?;
        let (seen, bytes) = self.saved();
        let machine = self.scheduler().state_machine();
        let (from, attempt) = (machine.position(), machine.attempt());
        let (businesses, guards) = (self.businesses(), self.guards.clone());
        Some(Begun { from, attempt, businesses, seen, bytes, guards })
    }

    /// The shards before a cut are as they were when it was begun, the others as they are now.
    pub fn finish_saving(
        &mut self,
        begun: &Begun,
        random: &mut Random,
        moment: Moment,
    ) -> Option<File> {
        let (cut, hash): (_, [u8; 32]) = (random.index(SHARDS + 1), random.bytes());
        let accepted = self.may_save(moment)?;
        let machine = self.scheduler().state_machine();
        if machine.attempt() != begun.attempt || self.businesses() != begun.businesses {
            return None;
        }
        let (from, until) = (begun.from, machine.position());
        let (_, now) = self.saved();
        // A table that is saved for real has one list of profiles for all of its shards.
        let cut = if lists_begin_alike(&begun.bytes, &now) { cut } else { 0 };
        let before = &begun.bytes[..length(&begun.bytes, cut)];
        let bytes = [before, &now[length(&now, cut)..]].concat();
        let identity = self.identity()?;
        let secret = &identity.secret;
        let guards = begun.guards.or(&self.guards, |number| shard(secret, number) >= cut);
        let seal = secret.digest(&hash);
        let warm = WarmStart { from, until, accepted, hash, seal };
        let (businesses, seen) = (begun.businesses.0.clone(), begun.seen);
        Some(File { warm, businesses, identity, seen, bytes, guards })
    }
}
