//! The product's table and the alternative of `benches/hot_table` answer alike, so that what the
//! benchmark compares is the same work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use consentd::table::{Pair, Table, UnreadablePair};
use consentd_core::event::{Method, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::scope::{Category, Scope};
use consentd_core::standing::{ResolvedState, Standing};
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use proptest::prelude::*;

use super::tables::{HotTable, HotWriter};
use super::{CATEGORIES, NOW, Timed, dashmap_table, evidence, moment, state_of, what};

type Alternative = dashmap_table::Table;

/// A change of one pair.
#[derive(Clone, Debug)]
enum Write {
    Apply(usize, Vec<Timed>),
    Unreadable(usize),
    Remove(usize),
}

/// Keys that share a prefix, or its ends, or half of their bits; and some that lie anywhere. None is that of
/// a nameless pair, whose lower 32 bits are 0: the alternative does not know that one counts for another.
fn keys() -> Vec<Key> {
    let step = (1_u64 << 54) / 56;
    let highs = [0, 1, 2, step - 1, step, step + 1, 1 << 54, 1 << 63, u64::MAX - 1, u64::MAX];
    let close = highs.iter().flat_map(|high| [1, 2, u64::MAX].map(|low| (*high, low)));
    let spread = (1..31_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n));
    close.chain(spread).map(Key::from_halves).collect()
}

fn write() -> impl Strategy<Value = Write> {
    let place = 0..keys().len();
    prop_oneof![
        8 => (place.clone(), proptest::collection::vec((moment(), what()), 0..4))
            .prop_map(|(place, events)| Write::Apply(place, events)),
        1 => place.clone().prop_map(Write::Unreadable),
        3 => place.prop_map(Write::Remove),
    ]
}

fn perform(writer: &mut impl HotWriter, key: Key, write: &Write) {
    match write {
        Write::Apply(_, events) => writer.apply(key, Ok(&state_of(events))),
        Write::Unreadable(_) => writer.apply(key, Err(UnreadablePair)),
        Write::Remove(_) => writer.remove(key),
    }
}

proptest! {
    #[test]
    fn hot_tables_after_the_same_writes_give_the_same_look_ups(
        writes in proptest::collection::vec(write(), 1..200),
    ) {
        let secret = KeySecret::new(&[1; 16]);
        let (own, mut own_writer) = Table::create(&secret);
        let (other, mut other_writer) = Alternative::create(&secret);
        let keys = keys();
        let mut facts = (Vec::new(), Vec::new());
        for write in &writes {
            let (Write::Apply(place, _) | Write::Unreadable(place) | Write::Remove(place)) = write;
            perform(&mut own_writer, keys[*place], write);
            perform(&mut other_writer, keys[*place], write);
            prop_assert_eq!(own.pairs(), other.pairs());
        }
        let pairs: Vec<Pair> = keys.iter().map(|key| (*key).into()).collect();
        for text in CATEGORIES {
            let category = Category::parse(text).unwrap();
            let categories = vec![category; pairs.len()];
            own.facts_batch(&pairs, &categories, &mut facts.0);
            other.facts_batch(&pairs, &categories, &mut facts.1);
            prop_assert_eq!(&facts.0, &facts.1, "{}", text);
            for (pair, expected) in pairs.iter().zip(&facts.0) {
                prop_assert_eq!(&own.facts(*pair, category).0, expected);
                prop_assert_eq!(&other.facts(*pair, category).0, expected);
            }
        }
    }
}

/// A state with a topic that no other pair has; every other change brings two expiries, which fit
/// into no slot, or one, which takes another slot.
fn state_of_its_own(user: usize, change: usize) -> State {
    let expire = |hours: i64| Timestamp::from_millis(NOW + hours * 3_600_000);
    let (first, second) = match change % 3 {
        0 => (None, None),
        1 => (expire(1), None),
        _ => (expire(1), expire(2)),
    };
    let opt_in = |topic: String, expire| {
        let (category, evidence) = (Scope::parse(&topic).unwrap(), evidence(Method::Website));
        (
            Timestamp::from_millis(NOW).unwrap(),
            What::OptIn { category, evidence, expire, pending: false },
        )
    };
    state_of(&[
        opt_in(format!("utility.user_{user}"), first),
        opt_in(format!("marketing.change_{user}_{change}"), second),
    ])
}

#[test]
fn alternative_table_while_profiles_are_freed_shows_every_pair_its_own() {
    const USERS: usize = 70;
    let (table, mut writer) = Alternative::create(&KeySecret::new(&[1; 16]));
    let step = u64::MAX / 70;
    let keys: Vec<_> = (0..70).map(|user| Key::from_halves((user * step, user))).collect();
    for (user, key) in keys.iter().enumerate() {
        writer.apply(*key, Ok(&state_of_its_own(user, 0)));
    }
    let pairs: Vec<Pair> = keys.iter().map(|key| (*key).into()).collect();
    let topics: Vec<_> = (0..USERS).map(|user| format!("utility.user_{user}")).collect();
    let categories: Vec<_> = topics.iter().map(|topic| Category::parse(topic).unwrap()).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut found = Vec::new();
            for _ in 0..400 {
                table.facts_batch(&pairs, &categories, &mut found);
                let single = pairs.iter().zip(&categories);
                found.extend(single.map(|(pair, category)| table.facts(*pair, *category).0));
                for facts in &found {
                    let facts = facts.expect("every pair can be read");
                    assert!(matches!(facts.standing, Standing::OptedIn { .. }));
                }
            }
            done.store(true, Ordering::Release);
        });
        let mut change = 0;
        while !done.load(Ordering::Acquire) && !reader.is_finished() {
            change += 1;
            for (user, key) in keys.iter().enumerate() {
                writer.apply(*key, Ok(&state_of_its_own(user, change)));
            }
        }
        reader.join().unwrap();
        for (user, pair) in pairs.iter().enumerate() {
            let expected =
                ResolvedState::of(&state_of_its_own(user, change)).facts(categories[user]);
            assert_eq!(table.facts(*pair, categories[user]).0, Ok(expected));
        }
    });
}

#[test]
fn alternative_table_with_long_runs_finds_every_pair() {
    let (table, mut writer) = Alternative::create(&KeySecret::new(&[1; 16]));
    // All in one shard of the map, so that a run has hundreds of pairs.
    let keys = (1..20_000_u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 10, n));
    let keys: Vec<_> = keys.map(Key::from_halves).collect();
    let inbound = |n: usize| Timestamp::from_millis(NOW + i64::try_from(n).unwrap()).unwrap();
    for (n, key) in keys.iter().enumerate() {
        let said = What::Inbound { message_id: String::new(), text: String::new() };
        writer.apply(*key, Ok(&state_of(&[(inbound(n), said)])));
    }
    let category = Category::parse("service").unwrap();
    for (n, key) in keys.iter().enumerate() {
        let facts = table.facts((*key).into(), category).0.unwrap();
        assert_eq!(facts.last_inbound, Some(inbound(n)));
    }
}
