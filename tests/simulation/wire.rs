//! What lies between the sidecar and the ledger.

use consentd::follower::scheduler::{BucketRequest, PageRequest, ReadFailure};
use consentd_ledger::{Announcement, Epoch, LogEntry, Tail};

use crate::random::Random;
use crate::sidecar::{Brought, true_time};
use crate::world::{Happening, Isolated, MILLI, World};

/// The longest that an announcement is under way, in milliseconds.
pub const SLOWEST: u64 = 2_500;

/// How well the wire carries; losses in percent, delays in microseconds.
#[derive(Clone, Copy)]
pub struct Wire {
    pub announce_loss: u64,
    /// How many of the losses are noticed.
    pub loss_told: u64,
    pub twice: u64,
    pub reorders: bool,
    announce_delay: u64,
    pub page_loss: u64,
    page_delay: u64,
    pub bucket_loss: u64,
    pub bucket_delay: u64,
    /// How many reads reach another server than the primary.
    pub stray: u64,
}

impl Wire {
    pub fn healthy() -> Self {
        Self {
            announce_loss: 0,
            loss_told: 0,
            twice: 0,
            reorders: false,
            announce_delay: 3 * MILLI,
            page_loss: 0,
            page_delay: 20 * MILLI,
            bucket_loss: 0,
            bucket_delay: 50 * MILLI,
            stray: 0,
        }
    }

    pub fn any(random: &mut Random) -> Self {
        Self {
            announce_loss: random.pick(&[0, 0, 10, 50, 100]),
            loss_told: random.pick(&[0, 50, 100]),
            twice: random.pick(&[0, 30]),
            reorders: random.percent(30),
            announce_delay: random.pick(&[3, 100, SLOWEST]) * MILLI,
            page_loss: random.pick(&[0, 0, 20, 60]),
            page_delay: random.pick(&[20, 20, 300, 900]) * MILLI,
            bucket_loss: random.pick(&[0, 0, 20]),
            bucket_delay: random.pick(&[50, 50, 1_000, 6_000]) * MILLI,
            stray: random.pick(&[0, 0, 30]),
        }
    }

    pub fn page_delay(&self, random: &mut Random) -> u64 {
        random.between(MILLI / 2, self.page_delay)
    }

    pub fn bucket_delay(&self, random: &mut Random) -> u64 {
        random.between(MILLI / 2, self.bucket_delay)
    }

    pub fn announce_delay(&self, random: &mut Random) -> u64 {
        random.between(MILLI / 10, self.announce_delay)
    }
}

impl World {
    pub fn is_down(&self) -> bool {
        self.now < self.down_until
    }

    /// The isolated primary, while it is what the sidecar reaches.
    fn isolated(&self) -> Option<&Isolated> {
        self.isolated.as_ref().filter(|isolated| self.now < isolated.until)
    }

    pub fn answer_page(&mut self, id: u64, question: PageRequest) {
        // A fenced question is refused by a primary that cannot reach its replicas.
        let refused = self.is_down() || self.isolated().is_some_and(|isolated| isolated.wholly);
        let now = true_time(self.time());
        let page = (!refused).then(|| self.primary.page(question.after, self.plan.page, now));
        let page = page.map(|mut page| {
            if let Tail::Entries(entries) = &mut page.tail {
                for entry in entries {
                    *entry = self.decoded(entry);
                }
            }
            page
        });
        if self.random.percent(self.wire.page_loss) {
            return;
        }
        let wait = self.wire.page_delay(&mut self.random);
        let brought = Brought::Page(id, question, page);
        self.after(wait, Happening::Brought(self.life, brought));
    }

    pub fn answer_bucket(&mut self, id: u64, question: BucketRequest) {
        // Reading a bucket is not fenced: any server that is reached answers, even a replica.
        let stray = self.random.percent(self.wire.stray);
        let server = match self.isolated() {
            Some(isolated) => &isolated.server,
            None if stray => &self.replica,
            None => &self.primary,
        };
        // A ledger of fewer buckets has nothing in one of that number.
        let bucket = if self.is_down() {
            Err(ReadFailure::Unanswered)
        } else if server.lost.contains(&question.number) {
            Err(ReadFailure::Lost)
        } else {
            let mut bucket = server.bucket(question.number);
            bucket.pairs.retain(|(key, _)| self.held.wanted.holds_key(*key));
            Ok(bucket)
        };
        if self.random.percent(self.wire.bucket_loss) {
            return;
        }
        let wait = self.wire.bucket_delay(&mut self.random);
        let brought = Brought::Bucket(id, question, bucket);
        self.after(wait, Happening::Brought(self.life, brought));
    }

    /// Tells the sidecar of entries, as well as the wire does.
    pub fn announce(&mut self, epoch: Epoch, entries: &[LogEntry]) {
        let copies = 1 + u64::from(self.random.percent(self.wire.twice));
        for _ in 0..copies {
            if self.random.percent(self.wire.announce_loss) {
                if self.random.percent(self.wire.loss_told) {
                    let wait = self.wire.announce_delay(&mut self.random);
                    self.after(wait, Happening::Brought(self.life, Brought::Missed));
                }
                continue;
            }
            let entries = entries.iter().map(|entry| self.decoded(entry)).collect();
            let announcement = Announcement { epoch, entries };
            let mut at = self.now + self.wire.announce_delay(&mut self.random);
            if !self.wire.reorders {
                at = at.max(self.last_announced);
                self.last_announced = at;
            }
            let brought = Brought::Announced(announcement);
            self.after(at - self.now, Happening::Brought(self.life, brought));
        }
    }
}
