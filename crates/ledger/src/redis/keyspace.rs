//! The keys of a ledger in Redis, and the binary formats of their values.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

use sha1::{Digest as _, Sha1};

use crate::history::HistoryItem;
use crate::{LogEntry, LogHead, StoredRecord, UndecodedEntry, UnreadableRecord, Version, codec};
use consentd_core::businesses::Businesses;
use consentd_core::id::Key;
use consentd_core::partition::{Layout, MAX_PARTITIONS};
use consentd_core::record::Revision;

/// The version of the keyspace: which keys exist, and what they contain. Records and log entries have
/// format versions of their own.
pub(super) const LAYOUT_FORMAT: u32 = 1;

/// The sentinel field, which every hash of a ledger has from the start, so that each key exists: a hash
/// without it was deleted or evicted, whatever has been written to it since. Pairs' fields are longer.
/// The scripts spell it as a literal.
pub(super) const SENTINEL_FIELD: &[u8] = b".";

/// The sentinel field's value in histories that were lost once. They contain only what was recorded since,
/// so their pairs' records cannot be rebuilt from them. In all other hashes the value is empty.
pub(super) const INCOMPLETE: &[u8] = b"incomplete";

/// The hash tag of the keys of the first partition, and so of a ledger with one.
const FIRST_TAG: &str = "consent:0";

/// The number of slots of a Redis Cluster.
const SLOTS: u16 = 16_384;

/// The checksum that Redis Cluster divides keys by.
static CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// The slot of a key with this hash tag in a Redis Cluster.
fn slot_of(tag: &str) -> u16 {
    CRC.checksum(tag.as_bytes()) % SLOTS
}

/// The hash tag of the keys of a partition.
///
/// The slots are divided into as many equal parts as there are partitions, and each partition's slot is near the
/// middle of a part of its own. So the partitions are as even over the shards as the slots are; the slots of
/// consecutive tags such as `consent:1` would be close together. The first partition's part is the one with the slot
/// of [`FIRST_TAG`]. The tags are a function of the numbers alone, and never change.
fn tag_of(partition: u32, layout: Layout) -> String {
    if partition == 0 {
        return FIRST_TAG.to_owned();
    }
    let width = u32::from(SLOTS) / layout.partitions();
    let part = (u32::from(slot_of(FIRST_TAG)) / width + partition) % layout.partitions();
    let middle = part * width + width / 4..part * width + width.div_ceil(4) * 3;
    let prefix = format!("consent:{partition}.");
    // A slot is found sooner or later: the tags' slots are as good as random.
    let attempt = attempt_in(&prefix, &middle).unwrap_or_default();
    format!("{prefix}{attempt}")
}

/// The first number that makes a tag with this beginning whose slot is one of these.
///
/// With 1,024 partitions, a tag takes some 2,000 attempts. The checksum is linear: that of the beginning, followed by
/// as many zeros as the number has digits, and that of the digits alone give the whole one.
fn attempt_in(prefix: &str, slots: &Range<u32>) -> Option<usize> {
    let mut beginning = CRC.digest();
    beginning.update(prefix.as_bytes());
    let (mut from, mut until) = (0, 10);
    while from < ATTEMPTS {
        beginning.update(&[0]);
        let start = beginning.clone().finalize();
        let is_there = |digits: &u16| slots.contains(&u32::from((start ^ digits) % SLOTS));
        let digits = NUMBERS.get(from..until.min(ATTEMPTS))?;
        if let Some(place) = digits.iter().position(is_there) {
            return from.checked_add(place);
        }
        (from, until) = (until, until.saturating_mul(10));
    }
    // No tag of any layout takes so many.
    (ATTEMPTS..ATTEMPTS << 8)
        .find(|attempt| slots.contains(&u32::from(slot_of(&format!("{prefix}{attempt}")))))
}

/// How many numbers' checksums are kept.
const ATTEMPTS: usize = 1 << 15;

/// The checksums of the digits of the first numbers.
static NUMBERS: LazyLock<Vec<u16>> = LazyLock::new(|| {
    (0..ATTEMPTS).map(|number| CRC.checksum(number.to_string().as_bytes())).collect()
});

/// The keys of a partition.
pub(super) struct Keyspace {
    /// The number of the partition.
    pub(super) partition: u32,
    /// The hash tag with its braces, which all keys share, so that a Cluster keeps them together.
    tag: String,
    slot: u16,
    pub(super) meta: String,
    pub(super) log: String,
    pub(super) text: String,
    pub(super) fence: String,
    /// The queue of pending erasures: see `statement_gc`. Ledgers from before it had a sentinel field lack
    /// the key while it is empty.
    pub(super) erased: String,
    pub(super) channel: String,
}

/// The suffix of the key that holds the statements that opt-ins refer to.
const TEXT: &str = ":text";

/// Whether this key of a ledger holds the statements that opt-ins refer to.
pub(crate) fn holds_statements(key: &str) -> bool {
    key.ends_with(TEXT)
}

impl Keyspace {
    /// The keys of the partition with this number in a ledger with this layout.
    pub(super) fn of(partition: u32, layout: Layout) -> Self {
        let tag = tag_of(partition, layout);
        let slot = slot_of(&tag);
        let tag = format!("{{{tag}}}");
        Self {
            partition,
            meta: format!("{tag}:meta"),
            log: format!("{tag}:log"),
            text: format!("{tag}{TEXT}"),
            fence: format!("{tag}:fence"),
            erased: format!("{tag}:erased"),
            channel: format!("{tag}:ch"),
            tag,
            slot,
        }
    }

    /// The partitions with other keys than those of this layout that a ledger of any layout may have, each with
    /// that ledger's number of partitions. Tags follow from these two numbers.
    pub(super) fn of_other_layouts(layout: Layout) -> impl Iterator<Item = (u32, Self)> {
        let own: HashSet<String> =
            layout.all().map(|number| Self::of(number, layout).meta).collect();
        let powers = 0..=MAX_PARTITIONS.ilog2();
        let layouts = powers.filter_map(|power| Layout::new(1 << power, 1).ok());
        let all = layouts
            .flat_map(|one| one.all().map(move |number| (one.partitions(), Self::of(number, one))));
        all.filter(move |(_, keyspace)| !own.contains(&keyspace.meta))
    }

    /// The slot of all keys in a Redis Cluster, by the hash tag.
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }

    /// The key that a repair copies the log to. It exists only while the log is being rebuilt.
    pub(super) fn log_copy(&self) -> String {
        format!("{}:copy", self.log)
    }

    /// The hash of a bucket's pairs: key to value.
    pub(super) fn bucket(&self, number: u32) -> String {
        format!("{}:b:{number}", self.tag)
    }

    /// The number of the bucket whose hash of pairs or of histories has this key.
    pub(super) fn bucket_number(&self, key: &str) -> Option<u32> {
        let rest = key.strip_prefix(self.tag.as_str())?;
        rest.strip_prefix(":b:").or_else(|| rest.strip_prefix(":h:"))?.parse().ok()
    }

    /// The hash of a bucket's histories: [`history_field`] to item. It also has a copy of the tombstone of
    /// each erased pair, in a field that is the pair's key.
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

/// Splits a pair's value in its bucket into its version (16 bytes) and its record.
pub(super) fn split_value(value: &[u8]) -> Option<(Version, &[u8])> {
    let (revision, rest) = value.split_first_chunk()?;
    let (head_prefix, record) = rest.split_first_chunk()?;
    let (revision, head_prefix) = (u64::from_be_bytes(*revision), u64::from_be_bytes(*head_prefix));
    // Revisions begin at 1. A value with revision 0 could pass for a pair that does not exist.
    (revision != 0).then_some((Version { revision, head_prefix }, record))
}

/// Decodes a pair's value; the default record if there is no value.
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

/// The index in the pair's history of the entry in this field; `None` for another pair's field.
pub(super) fn history_place(key: Key, field: &[u8]) -> Option<u64> {
    let mut place = field.strip_prefix(&key.to_bytes())?;
    prost::encoding::decode_varint(&mut place).ok()
}

/// Whether a field in a bucket's histories is that of a history entry.
pub(super) fn is_history_field(field: &[u8]) -> bool {
    field.len() > 16
}

/// The value of a history field without the revision, which the script prepends: the item's tag, and
/// its payload.
pub(super) fn encode_item(item: &HistoryItem<'_>) -> Vec<u8> {
    let (tag, payload) = item.parts();
    [&[tag], payload].concat()
}

/// The revision (8 bytes, big-endian) and the item of a history field's value.
pub(super) fn decode_item(value: &[u8]) -> Option<(Revision, HistoryItem<'_>)> {
    let (revision, rest) = value.split_first_chunk()?;
    let (tag, payload) = rest.split_first()?;
    let item = HistoryItem::from_parts(*tag, payload)?;
    Some((u64::from_be_bytes(*revision), item))
}

/// The next head of the log's hash chain: SHA-1 over the previous head, the revision (8 bytes,
/// big-endian), and the body. The bytes are raw, not hexadecimal, which halves their size in the log.
///
/// SHA-1 is the hash that Redis' scripts can compute. It only has to tell forks of the log apart, which
/// are accidents; the evidence of a pair's past is the pair's own SHA-256 chain.
pub(super) fn next_head(previous: &LogHead, revision: Revision, body: &[u8]) -> LogHead {
    let hash = Sha1::new();
    let hash = hash.chain_update(previous).chain_update(revision.to_be_bytes());
    hash.chain_update(body).finalize().into()
}

/// Decodes a log entry, unless it is about a pair of another business than these; one that does not continue
/// the hash chain is unreadable.
pub(super) fn log_entry(
    businesses: &Businesses,
    previous: LogHead,
    revision: Revision,
    body: &[u8],
    head: LogHead,
) -> LogEntry {
    let continues = next_head(&previous, revision, body) == head;
    let body = if continues {
        codec::decode_log_of(businesses, body)
    } else {
        Err(UndecodedEntry::Unreadable)
    };
    LogEntry { revision, previous, head, body }
}

/// The bucket of a log entry, and the offsets of the pair's key and record in its body, in bytes. With
/// them `scripts/roll_forward.lua` completes an append that failed half-way.
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

    /// The bucket in encoded offsets.
    pub(super) fn bucket_of(bytes: &[u8]) -> Option<u32> {
        Some(u32::from_be_bytes(*bytes.first_chunk()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn partitions_are_even_over_the_slots_and_stay_where_they_are() {
        for partitions in [1_u32, 2, 4, 8, 64, 512, 1_024] {
            let layout = Layout::new(partitions, 1).unwrap();
            let keyspaces: Vec<_> = layout.all().map(|one| Keyspace::of(one, layout)).collect();
            let width = u32::from(SLOTS) / partitions;
            let parts = keyspaces.iter().map(|one| u32::from(one.slot()) / width);
            let parts: std::collections::BTreeSet<_> = parts.collect();
            assert_eq!(parts.len(), partitions as usize, "one in each part");
            assert_eq!((&*keyspaces[0].meta, keyspaces[0].slot()), ("{consent:0}:meta", 4_659));
            for shards in [2_u32, 3, 5] {
                let mut counts = vec![0; shards as usize];
                for one in &keyspaces {
                    counts[(u32::from(one.slot()) * shards / u32::from(SLOTS)) as usize] += 1;
                }
                let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
                assert!(most - least <= 1, "{partitions} over {shards}: {counts:?}");
            }
        }
        // Ledgers have these keys: other tags would find no partition of a ledger that exists.
        let layout = Layout::new(64, 4).unwrap();
        let tags = [1, 17, 63].map(|one| Keyspace::of(one, layout).tag);
        assert_eq!(tags, ["{consent:1.167}", "{consent:17.0}", "{consent:63.18}"]);
    }

    #[test]
    fn tags_are_the_first_whose_slots_are_in_their_parts() {
        for partitions in [2_u32, 64, 1_024] {
            let layout = Layout::new(partitions, 1).unwrap();
            let width = u32::from(SLOTS) / partitions;
            for partition in [1, partitions / 2, partitions - 1] {
                let tag = tag_of(partition, layout);
                let (prefix, attempt) = tag.split_once('.').unwrap();
                let part = u32::from(slot_of(&tag)) / width;
                let is_there = |attempt: &u32| {
                    let at = u32::from(slot_of(&format!("{prefix}.{attempt}")));
                    let middle = part * width + width / 4..part * width + width.div_ceil(4) * 3;
                    middle.contains(&at)
                };
                assert_eq!((0..1_000_000).find(is_there), attempt.parse().ok(), "{tag}");
            }
        }
    }

    #[test]
    fn partitions_of_other_layouts_are_all_but_those_with_the_same_keys() {
        let layout = Layout::new(8, 2).unwrap();
        let others: Vec<_> = Keyspace::of_other_layouts(layout).collect();
        assert!((2_000..2_047 - 7).contains(&others.len()), "{}", others.len());
        let own: Vec<_> = layout.all().map(|one| Keyspace::of(one, layout).meta).collect();
        assert!(others.iter().all(|(_, one)| !own.contains(&one.meta)));
        assert!(
            others.iter().any(|(partitions, one)| (*partitions, one.partition) == (1_024, 1_023))
        );
    }

    proptest! {
        #[test]
        fn decoders_of_arbitrary_bytes_do_not_panic_and_round_trip(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = stored(Some(&bytes));
            if let Some((revision, item)) = decode_item(&bytes) {
                prop_assert_eq!([&revision.to_be_bytes()[..], &encode_item(&item)].concat(), bytes.clone());
            }
            if let Some((version, record)) = split_value(&bytes) {
                prop_assert_eq!([&version_bytes(version)[..], record].concat(), bytes.clone());
            }
            prop_assert_eq!(BodyOffsets::bucket_of(&bytes).is_some(), bytes.len() >= 4);
        }
    }
}
