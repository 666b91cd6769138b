//! A snapshot that is being read, bucket by bucket, while the log is followed.
//!
//! After "`DBLog`: A Watermark Based Change-Data-Capture Framework" (arXiv:2010.12597), by position
//! and hash in place of watermarks: every bucket comes with the position that it was read at.
//! Entries of the log change only buckets that were read, and only past that position. Where the
//! log, once it gets there, has another hash, the bucket is of a branch that is none, and is read
//! again. The log is followed all the while, so one that is shorter than a snapshot does no harm.

use std::collections::{BTreeMap, VecDeque};

use super::head_window::HeadWindow;
use consentd_core::record::Revision;
use consentd_ledger::{Bucket, LogHead};
use consentd_os::clock::Moment;

/// How many buckets are asked for at once.
const MAX_READING: usize = 16;

/// Where a bucket was read that the log has not reached yet.
struct Watermark {
    head: LogHead,
    bucket: u32,
    arrived: Moment,
}

/// What has been read of a bootstrap.
pub(super) struct Bootstrap {
    /// The revision that each bucket was read at.
    read: Vec<Option<Revision>>,
    /// How many of them have none.
    missing: usize,
    /// The next bucket that was never asked for.
    next: u32,
    /// Buckets to be asked for again, once the log has been asked where it ends.
    again: VecDeque<u32>,
    /// How many are being asked for.
    reading: usize,
    /// Labels ahead of the log as it is followed, by revision.
    labels: BTreeMap<Revision, Vec<Watermark>>,
}

impl Bootstrap {
    /// A snapshot of which nothing was read.
    pub(super) fn new(buckets: u32) -> Self {
        let count = usize::try_from(buckets).unwrap_or(usize::MAX);
        Self {
            read: vec![None; count],
            missing: count,
            next: 0,
            again: VecDeque::new(),
            reading: 0,
            labels: BTreeMap::new(),
        }
    }

    /// The buckets to be asked for now.
    pub(super) fn more(&mut self) -> impl Iterator<Item = u32> {
        let first = self.next;
        let last = u32::try_from(self.read.len()).unwrap_or(u32::MAX);
        while self.reading < MAX_READING && self.next < last {
            self.reading = self.reading.saturating_add(1);
            self.next = self.next.saturating_add(1);
        }
        first..self.next
    }

    /// Whether every bucket was read, at a position that the log has reached.
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0 && self.labels.is_empty()
    }

    /// How many buckets were read at a position that the log has not reached.
    pub(super) fn waiting(&self) -> usize {
        self.labels.values().map(Vec::len).sum()
    }

    /// Whether an entry of this revision changes this bucket as it was read.
    pub(super) fn takes(&self, bucket: u32, revision: Revision) -> bool {
        let place = usize::try_from(bucket).unwrap_or(usize::MAX);
        self.read.get(place).is_some_and(|read| read.is_some_and(|label| revision > label))
    }

    /// Takes a bucket that was read, where it can be; tells whether it was.
    pub(super) fn on_bucket(
        &mut self,
        bucket: &Bucket,
        arrived: Moment,
        window: &HeadWindow,
    ) -> bool {
        self.reading = self.reading.saturating_sub(1);
        let (label, end) = (bucket.label, window.end());
        let ahead = label.epoch == end.epoch && label.revision > end.revision;
        // One that was read before the log got here is good where nothing changed it since.
        if !ahead && !window.is_untouched(bucket) {
            self.again.push_back(bucket.number);
            return false;
        }
        if ahead {
            let Bucket { number: bucket, .. } = *bucket;
            let labels = self.labels.entry(label.revision).or_default();
            labels.push(Watermark { head: label.head, bucket, arrived });
        }
        // From here on the log alone changes it.
        let at = label.revision.max(end.revision);
        self.set(bucket.number, Some(at));
        true
    }

    /// The log got to a revision; gives the buckets that were read on another branch.
    pub(super) fn on_reached(&mut self, revision: Revision, head: &LogHead) -> Vec<u32> {
        let reached = self.labels.remove(&revision).unwrap_or_default();
        let wrong = reached.into_iter().filter(|label| label.head != *head);
        let wrong: Vec<_> = wrong.map(|label| label.bucket).collect();
        for bucket in &wrong {
            self.set(*bucket, None);
            self.again.push_back(*bucket);
        }
        wrong
    }

    /// The log, asked at that moment, ended there; gives the buckets that are to be taken out again.
    ///
    /// A bucket that arrived before then cannot have been read past that end, unless the ledger has
    /// lost what came between: its label is not waited for.
    pub(super) fn on_end(&mut self, asked: Moment, end: Revision) -> Vec<u32> {
        let beyond = end.checked_add(1).map(|beyond| self.labels.split_off(&beyond));
        let mut lost = Vec::new();
        for (revision, labels) in beyond.unwrap_or_default() {
            for label in labels {
                if label.arrived.boot < asked.boot {
                    self.set(label.bucket, None);
                    self.again.push_back(label.bucket);
                    lost.push(label.bucket);
                } else {
                    self.labels.entry(revision).or_default().push(label);
                }
            }
        }
        lost
    }

    /// The buckets to be asked for again, now that the log was asked where it ends.
    pub(super) fn again(&mut self) -> Vec<u32> {
        let again: Vec<_> = self.again.drain(..).collect();
        self.reading = self.reading.saturating_add(again.len());
        again
    }

    fn set(&mut self, bucket: u32, at: Option<Revision>) {
        let place = usize::try_from(bucket).unwrap_or(usize::MAX);
        let Some(slot) = self.read.get_mut(place) else { return };
        match (slot.is_some(), at.is_some()) {
            (false, true) => self.missing = self.missing.saturating_sub(1),
            (true, false) => self.missing = self.missing.saturating_add(1),
            _ => {}
        }
        *slot = at;
    }
}
