//! The scrub: compares one bucket after the other with the table, to find what was written past the
//! log.

use super::{Action, Phase, StateMachine};
use consentd_ledger::Bucket;

/// Which bucket is compared next.
#[derive(Default)]
pub(super) struct Scrub {
    /// The bucket that is being read, or is read next.
    next: u32,
    /// Whether it is being read.
    reading: bool,
    /// A bucket that was read at a position ahead of what is applied, until that is reached.
    ahead: Option<Bucket>,
}

impl Scrub {
    /// Whether this is the bucket that is being read.
    pub(super) fn is_reading(&self, number: u32) -> bool {
        self.reading && self.next == number
    }

    /// Whether a bucket waits for the log to reach it.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Goes on with the next bucket if this is the one that is being read.
    pub(super) fn skip(&mut self, number: u32) {
        if self.is_reading(number) {
            self.next = number.saturating_add(1);
            self.reading = false;
        }
    }

    /// Forgets what was being read, for a resync. The next scrub reads the same bucket again.
    pub(super) fn reset(&mut self) {
        self.ahead = None;
        self.reading = false;
    }
}

impl StateMachine {
    /// Reads the next bucket, unless one is being read.
    pub(super) fn scrub(&mut self) {
        // A bucket whose position was not reached since is of a fork; it is read again.
        self.scrub.ahead = None;
        if matches!(self.phase, Phase::Live) && !self.scrub.reading {
            if self.scrub.next >= self.buckets {
                self.scrub.next = 0;
            }
            self.scrub.reading = true;
            self.actions.push(Action::ReadBucket(self.scrub.next));
        }
    }

    /// Compares the bucket that was read, now or once the log has reached its position. One that
    /// was changed since it was read is compared in the next scrub instead.
    pub(super) fn on_scrubbed(&mut self, bucket: Bucket) {
        self.scrub.reading = false;
        if bucket.label.revision > self.applied() {
            self.scrub.ahead = Some(bucket);
            self.actions.push(Action::Poll);
        } else if self.window.is_untouched(&bucket) {
            self.compare(bucket);
        }
    }

    /// Compares the bucket that waits, if it was read at the position that is applied now.
    pub(super) fn compare_ahead(&mut self) {
        let end = self.window.end();
        if let Some(bucket) =
            self.scrub.ahead.take_if(|bucket| bucket.label.revision <= end.revision)
            && bucket.label == end
        {
            self.compare(bucket);
        }
    }

    fn compare(&mut self, bucket: Bucket) {
        self.scrub.next = bucket.number.saturating_add(1);
        let bucket = self.held_of(bucket);
        self.actions.push(Action::CompareBucket(bucket));
    }
}
