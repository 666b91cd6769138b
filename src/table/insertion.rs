//! Inserts many new pairs at once, as a ledger is loaded.
//!
//! A bucket of a ledger is a range of keys, so its pairs are neighbours in one shard. Inserted one by one,
//! each would move half of those before it, for all of their home slots are close together until the rest of
//! the shard is loaded. Here they are merged into a copy of the shard, which is one sequential walk.

use std::sync::Arc;

use super::Writer;
use super::packed_entry::{ExpiringEntry, PackedEntry};
use super::shard::{Shard, ShardIndex};
use super::shard_writer::ShardWriter;
use super::writer::EncodedPair;
use consentd_core::id::Key;
use consentd_core::standing::ResolvedState;
use consentd_core::state::State;

/// A shard is copied for new pairs if they are at least one part in this many of those that it has. Fewer
/// are inserted sooner one by one.
const MIN_PART: usize = 16;

/// The pairs of a shard that is being made, in ascending order.
struct Merged {
    pairs: Vec<(Key, PackedEntry)>,
    expiring: Vec<ExpiringEntry>,
}

impl Merged {
    fn push(&mut self, key: Key, entry: PackedEntry) {
        self.pairs.push((key, entry));
    }

    fn push_expiring(&mut self, key: Key, expiring: ExpiringEntry) {
        let index = u32::try_from(self.expiring.len());
        let index = index.unwrap_or_else(|_| unreachable!("2³² expiring pairs of a shard"));
        self.expiring.push(expiring);
        self.push(key, PackedEntry::expiring(index));
    }

    /// Adds a pair that the shard has already.
    fn keep(&mut self, (key, entry): (Key, PackedEntry), shard: &Shard) {
        match shard.expiring_entry(entry) {
            Some(expiring) => self.push_expiring(key, expiring.copied()),
            None => self.push(key, entry),
        }
    }

    fn ends_with(&self, key: Key) -> bool {
        self.pairs.last().is_some_and(|(last, _)| *last == key)
    }
}

impl Writer {
    /// Writes the states of pairs, in ascending order of their keys, of which the table has none. Returns the
    /// indexes of those that were left out, for [`apply`](Self::apply): pairs that the table does have, pairs
    /// that must be boxed, and those of a shard for which there are few.
    pub fn insert_sorted(&mut self, new: &[(Key, &State)]) -> Vec<usize> {
        let mut left_out = Vec::new();
        let mut first = 0_usize;
        for new in new.chunk_by(|(one, _), (next, _)| ShardIndex::of(*one) == ShardIndex::of(*next))
        {
            self.insert_into_shard(first, new, &mut left_out);
            first = first.saturating_add(new.len());
        }
        self.shared
            .profile_bytes
            .store(self.profiles.bytes(), std::sync::atomic::Ordering::Relaxed);
        left_out
    }

    /// Inserts pairs of one shard, of which the first has this index.
    fn insert_into_shard(
        &mut self,
        first: usize,
        new: &[(Key, &State)],
        left_out: &mut Vec<usize>,
    ) {
        let Some((key, _)) = new.first() else { return };
        let index = ShardIndex::of(*key);
        let known = self.shards.get(index);
        let (shard, pairs) = (Arc::clone(&known.shard), known.pairs);
        if new.len() < pairs / MIN_PART {
            left_out.extend((first..).take(new.len()));
            return;
        }
        let capacity = pairs.saturating_add(new.len());
        let mut merged = Merged { pairs: Vec::with_capacity(capacity), expiring: Vec::new() };
        let mut nameless = 0_isize;
        let mut held = shard.pairs().peekable();
        for ((key, state), at) in new.iter().zip(first..) {
            while let Some(pair) = held.next_if(|(held, _)| held.halves() < key.halves()) {
                merged.keep(pair, &shard);
            }
            if held.peek().is_some_and(|(held, _)| held == key) || merged.ends_with(*key) {
                left_out.push(at);
                continue;
            }
            let is_nameless = isize::from(key.is_nameless());
            match self.encode_pair(ResolvedState::of(state)) {
                EncodedPair::Boxed(_) => left_out.push(at),
                EncodedPair::Inline(entry) => {
                    nameless = nameless.saturating_add(is_nameless);
                    self.use_profile(entry);
                    merged.push(*key, entry);
                }
                EncodedPair::Expiring(entry, word) => {
                    nameless = nameless.saturating_add(is_nameless);
                    self.use_profile(entry);
                    merged.push_expiring(*key, ExpiringEntry::new(entry, word));
                }
            }
        }
        held.for_each(|pair| merged.keep(pair, &shard));
        let Merged { pairs: merged, expiring } = merged;
        let added = merged.len().saturating_sub(pairs);
        if added == 0 {
            return;
        }
        let used = u32::try_from(expiring.len());
        let used = used.unwrap_or_else(|_| unreachable!("2³² expiring pairs of a shard"));
        let shard = Shard::from_sorted(merged.len(), merged.into_iter());
        let shard = Arc::new(shard.with_room_for_expiring(expiring, 0));
        drop(self.replace_shard(index, ShardWriter::new(shard, pairs, used)));
        self.change_pairs(index, isize::try_from(added).unwrap_or(isize::MAX), nameless);
    }

    /// Counts a use of an entry's profile at once, so that the number is not given to another one.
    fn use_profile(&mut self, entry: PackedEntry) {
        if let Some(number) = entry.profile() {
            self.profiles.add_use(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{a_state, assert_same, expiring, key};
    use super::super::{UnreadablePair, new};
    use super::*;

    /// Inserts pairs together, and those that are left out one by one.
    fn insert(writer: &mut Writer, pairs: &mut [(Key, &State)]) -> usize {
        pairs.sort_by_key(|(key, _)| key.halves());
        let left_out = writer.insert_sorted(pairs);
        for at in &left_out {
            let (key, state) = pairs[*at];
            writer.apply(key, Ok(state));
        }
        left_out.len()
    }

    proptest! {
        #[test]
        fn pairs_inserted_together_answer_as_pairs_applied_one_by_one(
            states in proptest::collection::vec(a_state(), 1..60),
            parts in 1_usize..6,
            unreadable in 0_usize..60,
        ) {
            // Neighbours, as a bucket's pairs are: the first bytes of all keys are the same.
            let keys: Vec<_> = (0..states.len()).map(|user| {
                let mut bytes = key(&user.to_string()).to_bytes();
                bytes[..2].copy_from_slice(&[7, u8::from(user % 9 == 0)]);
                Key::from_bytes(bytes)
            }).collect();
            let (table, mut writer) = new();
            let (_, mut single) = new();
            if let Some(key) = keys.get(unreadable) {
                writer.apply(*key, Err(UnreadablePair));
            }
            let pairs: Vec<_> = keys.iter().copied().zip(&states).collect();
            for part in pairs.chunks(states.len().div_ceil(parts)) {
                insert(&mut writer, &mut part.to_vec());
            }
            for (key, state) in &pairs {
                single.apply(*key, Ok(state));
                prop_assert!(writer.holds_state(*key, Ok(state)));
                assert_same(&table, *key, state);
            }
            prop_assert_eq!(table.pairs(), states.len());
            prop_assert_eq!(expiring(&writer), expiring(&single));
            prop_assert_eq!(writer.profiles.used(), single.profiles.used());
            // Whatever is inserted can be changed and removed like any other pair.
            for ((key, _), state) in pairs.iter().zip(states.iter().rev()) {
                writer.apply(*key, Ok(state));
                prop_assert!(writer.holds_state(*key, Ok(state)));
            }
            writer.remove_where(|_| true);
            prop_assert_eq!((table.pairs(), writer.profiles.used()), (0, 0));
        }
    }

    #[test]
    fn pair_that_the_table_has_is_left_out() {
        let (table, mut writer) = new();
        let (state, other) =
            (State::default(), State { last_inbound: Some(at(5)), ..State::default() });
        writer.apply(key("1"), Ok(&state));
        assert_eq!(insert(&mut writer, &mut [(key("1"), &other), (key("2"), &other)]), 1);
        assert_eq!(insert(&mut writer, &mut [(key("3"), &other), (key("3"), &other)]), 1);
        for number in ["1", "2", "3"] {
            assert!(writer.holds_state(key(number), Ok(&other)));
        }
        assert_eq!(table.pairs(), 3);
    }

    fn at(millis: i64) -> consentd_core::time::Timestamp {
        consentd_core::time::Timestamp::from_millis(millis).unwrap()
    }
}
