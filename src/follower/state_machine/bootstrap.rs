//! The bootstrap: reads all buckets of a ledger while its log is followed.
//!
//! The algorithm is that of "`DBLog`: A Watermark Based Change-Data-Capture Framework"
//! (arXiv:2010.12597), with the position at which a bucket was read as its watermark. Entries of the
//! log change only buckets that were read, and only past their watermark. If the log has another
//! head at that revision once it gets there, the bucket was read on a fork, and is read again. As
//! the log is followed all the while, it may be trimmed to less than a bootstrap takes.

use std::collections::{BTreeMap, VecDeque};

use super::head_window::HeadWindow;
use consentd_core::record::Revision;
use consentd_ledger::{Bucket, LogHead};
use consentd_os::clock::Moment;

/// How many buckets are read concurrently.
const MAX_READING: usize = 16;

/// The head at which a bucket was read, until the log reaches its revision.
struct Watermark {
    head: LogHead,
    bucket: u32,
    arrived: Moment,
}

/// The progress of a bootstrap.
pub(super) struct Bootstrap {
    /// The revision past which the log changes each bucket; `None` for one that was not read.
    read: Vec<Option<Revision>>,
    /// How many buckets were not read.
    missing: usize,
    /// The next bucket to read for the first time.
    next: u32,
    /// Buckets to read again after the next page of the log.
    again: VecDeque<u32>,
    /// How many buckets are being read.
    reading: usize,
    /// Watermarks ahead of the log as it is followed, by revision.
    watermarks: BTreeMap<Revision, Vec<Watermark>>,
}

impl Bootstrap {
    /// A bootstrap of a ledger with so many buckets.
    pub(super) fn new(buckets: u32) -> Self {
        let count = usize::try_from(buckets).unwrap_or(usize::MAX);
        Self {
            read: vec![None; count],
            missing: count,
            next: 0,
            again: VecDeque::new(),
            reading: 0,
            watermarks: BTreeMap::new(),
        }
    }

    /// The buckets to start reading now.
    pub(super) fn more(&mut self) -> impl Iterator<Item = u32> {
        let first = self.next;
        let last = u32::try_from(self.read.len()).unwrap_or(u32::MAX);
        while self.reading < MAX_READING && self.next < last {
            self.reading = self.reading.saturating_add(1);
            self.next = self.next.saturating_add(1);
        }
        first..self.next
    }

    /// Whether all buckets were read, and the log has reached their watermarks.
    pub(super) fn is_whole(&self) -> bool {
        self.missing == 0 && self.watermarks.is_empty()
    }

    /// How many buckets have a watermark that the log has not reached.
    pub(super) fn waiting(&self) -> usize {
        self.watermarks.values().map(Vec::len).sum()
    }

    /// Whether the entry with this revision changes this bucket as it was read.
    pub(super) fn takes(&self, bucket: u32, revision: Revision) -> bool {
        let place = usize::try_from(bucket).unwrap_or(usize::MAX);
        self.read.get(place).is_some_and(|read| read.is_some_and(|watermark| revision > watermark))
    }

    /// Handles a bucket that was read; returns whether it can be loaded.
    pub(super) fn on_bucket(
        &mut self,
        bucket: &Bucket,
        arrived: Moment,
        window: &HeadWindow,
    ) -> bool {
        self.reading = self.reading.saturating_sub(1);
        let (label, end) = (bucket.label, window.end());
        let ahead = label.epoch == end.epoch && label.revision > end.revision;
        // A bucket that was read at an earlier position can be used if no entry has changed it since.
        if !ahead && !window.is_untouched(bucket) {
            self.again.push_back(bucket.number);
            return false;
        }
        if ahead {
            let Bucket { number: bucket, .. } = *bucket;
            let watermarks = self.watermarks.entry(label.revision).or_default();
            watermarks.push(Watermark { head: label.head, bucket, arrived });
        }
        // From this revision on, the log's entries change it.
        let at = label.revision.max(end.revision);
        self.set(bucket.number, Some(at));
        true
    }

    /// Handles that the log has reached a revision; returns the buckets that were read there on a
    /// fork.
    pub(super) fn on_reached(&mut self, revision: Revision, head: &LogHead) -> Vec<u32> {
        let reached = self.watermarks.remove(&revision).unwrap_or_default();
        let wrong = reached.into_iter().filter(|watermark| watermark.head != *head);
        let wrong: Vec<_> = wrong.map(|watermark| watermark.bucket).collect();
        for bucket in &wrong {
            self.set(*bucket, None);
            self.again.push_back(*bucket);
        }
        wrong
    }

    /// Handles that the log, as read at this moment, ended there; returns the buckets to unload.
    ///
    /// A bucket that arrived earlier cannot have been read past that end, unless the ledger has lost
    /// the entries between: its watermark is never reached.
    pub(super) fn on_end(&mut self, asked: Moment, end: Revision) -> Vec<u32> {
        let beyond = end.checked_add(1).map(|beyond| self.watermarks.split_off(&beyond));
        let mut lost = Vec::new();
        for (revision, watermarks) in beyond.unwrap_or_default() {
            for watermark in watermarks {
                if watermark.arrived.boot < asked.boot {
                    self.set(watermark.bucket, None);
                    self.again.push_back(watermark.bucket);
                    lost.push(watermark.bucket);
                } else {
                    self.watermarks.entry(revision).or_default().push(watermark);
                }
            }
        }
        lost
    }

    /// The buckets to read again, now that the log's end is known.
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
