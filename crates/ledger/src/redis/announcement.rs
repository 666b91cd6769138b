//! The format of the announcements on the pub/sub channel.

use super::append::MAX_BATCH;
use super::keyspace::next_head;
use crate::{Announcement, Epoch, LogEntry, LogHead, codec};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;

/// The maximum number of entries in an announcement: those of one batch.
const MAX_ANNOUNCED: usize = MAX_BATCH;

/// Decodes a message on the announcements' channel, a bounded part at a time: epoch (16 bytes), first
/// revision (8), the log's hash before it (20), then each entry's body after its length (4).
pub(super) struct AnnouncementReader<'a> {
    epoch: Epoch,
    /// The revision of the next entry.
    revision: Revision,
    /// The log's head before the next entry.
    head: LogHead,
    rest: &'a [u8],
    /// How many more entries are accepted.
    left: usize,
    /// Entries of other businesses than these are not decoded.
    businesses: Businesses,
}

impl<'a> AnnouncementReader<'a> {
    pub(super) fn read(message: &'a [u8], businesses: Businesses) -> Option<Self> {
        let (epoch, rest) = message.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (head, rest) = rest.split_first_chunk()?;
        let revision = u64::from_be_bytes(*first);
        let (epoch, head, left) = (*epoch, *head, MAX_ANNOUNCED);
        // An announcement without entries is malformed.
        (!rest.is_empty()).then_some(Self { epoch, revision, head, rest, left, businesses })
    }

    /// Whether the whole message was read.
    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// Decodes up to `most` entries; `None` at the end of the message, or if the rest is malformed.
    pub(super) fn part(&mut self, most: usize) -> Option<Announcement> {
        let mut entries = Vec::with_capacity(most.min(self.left));
        while entries.len() < most && self.left > 0 {
            let Some(entry) = self.entry() else { break };
            entries.push(entry);
        }
        (!entries.is_empty()).then(|| Announcement { epoch: self.epoch, entries: entries.into() })
    }

    fn entry(&mut self) -> Option<LogEntry> {
        let (length, rest) = self.rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (body, rest) = rest.split_at_checked(length)?;
        let (revision, previous) = (self.revision, self.head);
        self.revision = revision.checked_add(1)?;
        self.head = next_head(&previous, revision, body);
        self.rest = rest;
        self.left = self.left.saturating_sub(1);
        let body = codec::decode_log_of(&self.businesses, body);
        Some(LogEntry { revision, previous, head: self.head, body })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole announcement, or `None` if the message is malformed.
    fn announcement(message: &[u8]) -> Option<Announcement> {
        let mut reader = AnnouncementReader::read(message, Businesses::All)?;
        let all = reader.part(MAX_ANNOUNCED)?;
        reader.is_over().then_some(all)
    }

    #[test]
    fn announcement_decodes_to_the_published_entries_and_rejects_truncation() {
        let bodies = [&b"not a body"[..], b""];
        let mut message = [&[7; 16][..], &5_u64.to_be_bytes(), &[3; 20]].concat();
        assert!(announcement(&message).is_none(), "an announcement without entries");
        for body in bodies {
            message.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            message.extend_from_slice(body);
        }
        let decoded = announcement(&message).unwrap();
        let revisions: Vec<_> = decoded.entries.iter().map(|entry| entry.revision).collect();
        assert_eq!((decoded.epoch, revisions), ([7; 16], vec![5, 6]));
        assert_eq!(decoded.entries[0].previous, [3; 20]);
        assert_eq!(decoded.entries[1].previous, next_head(&[3; 20], 5, bodies[0]));
        assert_eq!(decoded.entries[1].head, next_head(&decoded.entries[0].head, 6, bodies[1]));
        assert!(decoded.entries[0].body.is_err());
        for length in 0..message.len() {
            let cut = announcement(&message[..length]).map(|cut| cut.entries.len());
            assert!(cut.is_none() || cut == Some(1), "{length}: {cut:?}");
        }
    }

    proptest! {
        #[test]
        fn announcement_of_arbitrary_bytes_is_decoded_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            prop_assert!(announcement(&bytes).is_none_or(|decoded| !decoded.entries.is_empty()));
        }
    }
}
