//! What the state machine reacts to.

use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_ledger::{Announcement, Bucket, Page};
use consentd_os::clock::Moment;

/// The number of an attempt to follow a ledger. Each resync starts a new one; answers to requests of
/// an earlier one are dropped.
pub type Attempt = u64;

/// Something that happened to the ledger, or a timer.
#[derive(Debug)]
pub enum Event {
    /// A page of the log was read.
    Page {
        /// The attempt that requested it.
        attempt: Attempt,
        /// When it was requested: before the request was sent.
        asked: Moment,
        /// The revision behind which the page starts: the one that was applied then.
        after: Revision,
        /// The page.
        page: Page,
    },
    /// A bucket was read.
    Bucket {
        /// The attempt that requested it.
        attempt: Attempt,
        /// The number of the last addition when it was requested.
        addition: u64,
        /// Whether it was requested for the businesses that are being added.
        is_added: bool,
        /// When it arrived.
        arrived: Moment,
        /// The bucket.
        bucket: Bucket,
    },
    /// Changes were announced.
    Announced(Announcement),
    /// A bucket was deleted or evicted, so that its contents are unknown.
    Lost {
        /// The attempt that requested it.
        attempt: Attempt,
        /// The bucket's number.
        number: u32,
    },
    /// There is no ledger at the address.
    Missing {
        /// The attempt that requested it.
        attempt: Attempt,
    },
    /// Announcements may have been lost.
    Missed,
    /// The table is to hold these businesses.
    Hold(Businesses),
    /// It is time to compare the next bucket with the table.
    ScrubDue,
}
