//! Where things lie in Redis, and as what bytes.

use sha1::{Digest as _, Sha1};

use crate::{
    Announcement, Epoch, LogEntry, LogHead, StoredRecord, UnreadableEntry, UnreadableRecord,
    Version, codec,
};
use consentd_core::id::Key;
use consentd_core::record::Revision;

/// The format of this layout: which keys there are, and what is in them. Values have their own.
pub(super) const LAYOUT_FORMAT: u32 = 1;

/// The sentinel field that every hash of a ledger has from the start, so that each key exists: a
/// hash without it was deleted or evicted, and is not what it was, whatever is in it by now. Pairs'
/// fields are longer. Scripts name it by itself.
pub(super) const SENTINEL_FIELD: &[u8] = b".";

/// The sentinel's value in a bucket's histories that were lost once: what is in them since is all
/// that there is, and their pairs' records cannot be rebuilt from it. Elsewhere the value is empty.
pub(super) const INCOMPLETE: &[u8] = b"incomplete";

/// The hash tag that all keys share, so that Redis Cluster keeps them together.
const TAG: &str = "{consent:0}";

/// The keys of the ledger.
pub(super) struct Keyspace {
    tag: &'static str,
    pub(super) meta: String,
    pub(super) log: String,
    pub(super) text: String,
    pub(super) fence: String,
    /// What of an erase is still to be done: see `statement_gc`. There is no such key where nothing is.
    pub(super) erased: String,
    pub(super) channel: String,
}

/// How the key ends that holds the statements that opt-ins refer to.
const TEXT: &str = ":text";

/// Whether a key of a ledger holds the statements that opt-ins refer to.
pub(crate) fn holds_statements(key: &str) -> bool {
    key.ends_with(TEXT)
}

impl Keyspace {
    pub(super) fn new() -> Self {
        Self {
            tag: TAG,
            meta: format!("{TAG}:meta"),
            log: format!("{TAG}:log"),
            text: format!("{TAG}{TEXT}"),
            fence: format!("{TAG}:fence"),
            erased: format!("{TAG}:erased"),
            channel: format!("{TAG}:ch"),
        }
    }

    /// Where the log is copied to while it is rebuilt. There is no such key otherwise.
    pub(super) fn log_copy(&self) -> String {
        format!("{}:copy", self.log)
    }

    /// The hash of a bucket's pairs: key to value.
    pub(super) fn bucket(&self, number: u32) -> String {
        format!("{}:b:{number}", self.tag)
    }

    /// The number of the bucket whose pairs, or else whose histories, have this key.
    pub(super) fn bucket_number(&self, key: &str) -> Option<u32> {
        let rest = key.strip_prefix(self.tag)?;
        rest.strip_prefix(":b:").or_else(|| rest.strip_prefix(":h:"))?.parse().ok()
    }

    /// The hash of a bucket's histories: [`history_field`] to item. Beside them, under its key, lies
    /// the tombstone of each pair that was erased, as in its bucket.
    pub(super) fn history(&self, number: u32) -> String {
        format!("{}:h:{number}", self.tag)
    }
}

/// The encoding of a version at the start of a pair's value: the revision, then the head prefix,
/// both big-endian.
pub(super) fn version_bytes(version: Version) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&version.revision.to_be_bytes());
    bytes[8..].copy_from_slice(&version.head_prefix.to_be_bytes());
    bytes
}

/// A pair's value in its bucket: version (16 bytes), record.
pub(super) fn split_value(value: &[u8]) -> Option<(Version, &[u8])> {
    let (revision, rest) = value.split_first_chunk()?;
    let (head_prefix, record) = rest.split_first_chunk()?;
    let (revision, head_prefix) = (u64::from_be_bytes(*revision), u64::from_be_bytes(*head_prefix));
    // No change is of revision 0: a pair of it could pass for one that there is not.
    (revision != 0).then_some((Version { revision, head_prefix }, record))
}

/// A pair as Redis has it, where it has it.
pub(super) fn stored(value: Option<&[u8]>) -> Result<StoredRecord, UnreadableRecord> {
    let Some(value) = value else { return Ok(StoredRecord::default()) };
    let (version, record) = split_value(value).ok_or(UnreadableRecord::Damaged)?;
    Ok(StoredRecord { version, record: codec::decode_record(record)? })
}

/// The field of a history entry: the pair's key (16 bytes), and the entry's place as a varint.
pub(super) fn history_field(key: Key, place: u64) -> Vec<u8> {
    let mut field = Vec::with_capacity(18);
    field.extend_from_slice(&key.to_bytes());
    prost::encoding::encode_varint(place, &mut field);
    field
}

/// The place of the entry in a pair's history that a field is of; none where it is another's.
pub(super) fn history_place(key: Key, field: &[u8]) -> Option<u64> {
    let mut place = field.strip_prefix(&key.to_bytes())?;
    prost::encoding::decode_varint(&mut place).ok()
}

/// Whether a field of a bucket's histories is one of a pair's entries.
pub(super) fn is_history_field(field: &[u8]) -> bool {
    field.len() > 16
}

/// What stands of one history entry. In Redis, the revision (8 bytes) stands before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HistoryItem<'a> {
    /// The entry, kept for good.
    Kept(&'a [u8]),
    /// The entry, kept for a time.
    Perishable(&'a [u8]),
    /// The digest of one that was kept for a time.
    Gone(&'a [u8; 32]),
}

impl<'a> HistoryItem<'a> {
    const KEPT: u8 = 0;
    const PERISHABLE: u8 = 1;
    const GONE: u8 = 2;

    /// As bytes, without the revision, which the script puts before them.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (tag, bytes): (_, &[u8]) = match self {
            Self::Kept(entry) => (Self::KEPT, entry),
            Self::Perishable(entry) => (Self::PERISHABLE, entry),
            Self::Gone(digest) => (Self::GONE, *digest),
        };
        [&[tag], bytes].concat()
    }

    /// The item of a history field's value, and the revision that wrote it.
    pub(super) fn decode(value: &'a [u8]) -> Option<(Revision, Self)> {
        let (revision, rest) = value.split_first_chunk()?;
        let (tag, bytes) = rest.split_first()?;
        let item = match *tag {
            Self::KEPT => Self::Kept(bytes),
            Self::PERISHABLE => Self::Perishable(bytes),
            Self::GONE => Self::Gone(bytes.try_into().ok()?),
            _ => return None,
        };
        Some((u64::from_be_bytes(*revision), item))
    }
}

/// How the log's hash goes on: SHA-1 over the hash before it, the revision (8 bytes, big-endian),
/// and the body. All as they are, not in hexadecimals: half the bytes in the log.
///
/// SHA-1 is what Redis' scripts can reckon. It tells branches apart, against accidents; what proves
/// a pair's past is the pair's own SHA-256 chain.
pub(super) fn next_head(previous: &LogHead, revision: Revision, body: &[u8]) -> LogHead {
    let hash = Sha1::new();
    let hash = hash.chain_update(previous).chain_update(revision.to_be_bytes());
    hash.chain_update(body).finalize().into()
}

/// A log entry as a follower is told of it; one that does not continue the hash is unreadable.
pub(super) fn log_entry(
    previous: LogHead,
    revision: Revision,
    body: &[u8],
    head: LogHead,
) -> LogEntry {
    let continues = next_head(&previous, revision, body) == head;
    let body = if continues { codec::decode_log(body) } else { Err(UnreadableEntry) };
    LogEntry { revision, previous, head, body }
}

/// Where in a log entry's body its pair and record lie, and in which bucket that is: what completes
/// an append that was cut short (`scripts/roll.lua`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct BodyOffsets {
    pub(super) bucket: u32,
    pub(super) key_at: u8,
    pub(super) record_at: u32,
    pub(super) record_len: u32,
}

impl BodyOffsets {
    pub(super) fn encode(self) -> [u8; 13] {
        let mut bytes = [0; 13];
        bytes[..4].copy_from_slice(&self.bucket.to_be_bytes());
        bytes[4] = self.key_at;
        bytes[5..9].copy_from_slice(&self.record_at.to_be_bytes());
        bytes[9..].copy_from_slice(&self.record_len.to_be_bytes());
        bytes
    }

    /// The bucket of an encoded place.
    pub(super) fn bucket_of(bytes: &[u8]) -> Option<u32> {
        Some(u32::from_be_bytes(*bytes.first_chunk()?))
    }
}

/// The most entries of an announcement: those of one script.
const MAX_ANNOUNCED: usize = super::append::MAX_SCRIPT;

/// Decodes a message on the announcements' channel, a bounded part at a time: epoch (16 bytes), first
/// revision (8), the log's hash before it (20), then each entry's body after its length (4).
pub(super) struct AnnouncementReader<'a> {
    epoch: Epoch,
    /// Of the next entry.
    revision: Revision,
    /// The log's hash before it.
    head: LogHead,
    rest: &'a [u8],
    /// How many entries there may still be.
    left: usize,
}

impl<'a> AnnouncementReader<'a> {
    pub(super) fn read(message: &'a [u8]) -> Option<Self> {
        let (epoch, rest) = message.split_first_chunk()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (head, rest) = rest.split_first_chunk()?;
        let revision = u64::from_be_bytes(*first);
        let (epoch, head, left) = (*epoch, *head, MAX_ANNOUNCED);
        // It announces something.
        (!rest.is_empty()).then_some(Self { epoch, revision, head, rest, left })
    }

    /// Whether all of it was read.
    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next entries, `most` at the most; none where it is over, or malformed from there on.
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
        Some(LogEntry { revision, previous, head: self.head, body: codec::decode_log(body) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole announcement, or `None` if the message is malformed.
    fn announcement(message: &[u8]) -> Option<Announcement> {
        let mut reader = AnnouncementReader::read(message)?;
        let all = reader.part(MAX_ANNOUNCED)?;
        reader.is_over().then_some(all)
    }

    #[test]
    fn announcements_tell_what_was_published_and_nothing_else() {
        let bodies = [&b"not a body"[..], b""];
        let mut message = [&[7; 16][..], &5_u64.to_be_bytes(), &[3; 20]].concat();
        assert!(announcement(&message).is_none(), "it announces nothing");
        for body in bodies {
            message.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            message.extend_from_slice(body);
        }
        let told = announcement(&message).unwrap();
        let revisions: Vec<_> = told.entries.iter().map(|entry| entry.revision).collect();
        assert_eq!((told.epoch, revisions), ([7; 16], vec![5, 6]));
        assert_eq!(told.entries[0].previous, [3; 20]);
        assert_eq!(told.entries[1].previous, next_head(&[3; 20], 5, bodies[0]));
        assert_eq!(told.entries[1].head, next_head(&told.entries[0].head, 6, bodies[1]));
        assert!(told.entries[0].body.is_err());
        for length in 0..message.len() {
            let cut = announcement(&message[..length]).map(|cut| cut.entries.len());
            assert!(cut.is_none() || cut == Some(1), "{length}: {cut:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = announcement(&bytes);
            let _ = stored(Some(&bytes));
            let _ = HistoryItem::decode(&bytes);
            let _ = BodyOffsets::bucket_of(&bytes);
        }
    }
}
