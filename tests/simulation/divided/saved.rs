//! Each partition's table is saved by itself, while changes go on, and is what its follower starts from.

use super::world::{Happening, World};
use crate::world::{MILLI, SECOND};

impl World {
    /// Begins to save the table of a partition, or ends it: where it may be.
    pub fn save(&mut self, at: usize) {
        let moment = self.moment();
        let partition = &mut self.partitions[at];
        let Some(mut saver) = partition.saver.take() else { return };
        let is_victim = self.victims.contains(&at);
        if partition.is_followed && self.frozen_until <= self.now {
            match saver.begun.take() {
                None => {
                    saver.begun = partition.sidecar.begin_saving(moment);
                    // So that an entry which is replayed may be lost before the replay.
                    if self.faulty && is_victim && saver.begun.is_some() && saver.random.percent(20)
                    {
                        partition.lags = true;
                    }
                }
                Some(begun) => {
                    let random = &mut saver.random;
                    let file = partition.sidecar.finish_saving(&begun, random, moment);
                    saver.file = file.or(saver.file);
                }
            }
        }
        let wait = saver.random.pick(&[5, 40, 400, 3_000]) * MILLI;
        let restarts = self.faulty && saver.file.is_some() && saver.random.percent(4);
        let within = saver.random.pick(&[0, 30, 60, 100, 150, 10_000]) * MILLI;
        self.partitions[at].saver = Some(saver);
        self.after(wait, Happening::Saved(at));
        if restarts {
            self.restart();
            let partition = &mut self.partitions[at];
            if is_victim && partition.lags && within < SECOND {
                let (term, until) = (partition.term, self.now + within + 8 * SECOND);
                partition.is_ill(until);
                self.after(within, Happening::Promoted(at, term));
            }
        }
    }
}
