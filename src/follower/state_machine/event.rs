//! What the machine is told.

use consentd_core::record::Revision;
use consentd_ledger::{Announcement, Bucket, Page};
use consentd_os::clock::Moment;

/// Which attempt to follow a ledger a question belongs to; answers of an earlier one are dropped.
pub type Attempt = u64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The log was read.
    Page {
        /// The attempt that it was asked for in.
        attempt: Attempt,
        /// When it was asked for: before the question was sent.
        asked: Moment,
        /// The revision that was asked from: what was applied then.
        after: Revision,
        /// The answer.
        page: Page,
    },
    /// A bucket was read.
    Bucket {
        /// The attempt that it was asked for in.
        attempt: Attempt,
        /// When it arrived.
        arrived: Moment,
        /// What it holds.
        bucket: Bucket,
    },
    /// Somebody appended.
    Announced(Announcement),
    /// A bucket was deleted or evicted: what it held is not known.
    Lost {
        /// The attempt that it was asked for in.
        attempt: Attempt,
        /// The bucket.
        number: u32,
    },
    /// There is no ledger where it was.
    Missing {
        /// The attempt that it was asked for in.
        attempt: Attempt,
    },
    /// Announcements were lost.
    Missed,
    /// It is time to compare a further bucket with the table.
    ScrubDue,
}
