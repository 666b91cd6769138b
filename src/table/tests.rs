use proptest::prelude::*;

use super::packed_entry::{ExpiringEntry, MAX_PROFILES};
use super::*;
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::scope::Class;
use consentd_core::standing::Standing;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

pub(super) fn key(user: &str) -> Key {
    let user = format!("user-{user}");
    let user = UserId::parse(&user).unwrap();
    KeySecret::new(&[1; 16]).key(&user, BusinessId::parse("acme").unwrap())
}

fn state(whats: &[(i64, What)]) -> State {
    let mut state = State::default();
    for (time, what) in whats {
        for effect in what.effects(at(*time)) {
            state.apply(&effect).unwrap();
        }
    }
    state
}

fn opt_in(category: &str, expire: Option<i64>) -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: String::new(),
        business_name: String::new(),
        locale: String::new(),
        reference: String::new(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse(category).unwrap();
    What::OptIn { category, evidence, expire: expire.map(at), pending: false }
}

fn opt_out(scope: &str) -> What {
    What::OptOut { scope: Scope::parse(scope).unwrap(), reference: String::new() }
}

fn inbound() -> What {
    What::Inbound { message_id: String::new(), text: String::new() }
}

#[test]
fn opt_outs_under_expiring_opt_ins_are_among_the_denials_of_a_pair() {
    let (_, mut writer) = new();
    let before = [(1, opt_out("marketing")), (2, opt_in("marketing", Some(50)))];
    let boxed = [&before[..], &[(3, opt_in("utility", Some(60)))]].concat();
    for (user, whats) in [("1", &before[..]), ("2", &boxed)] {
        let whole = state(whats);
        writer.apply(key(user), Ok(&whole));
        let denials = writer.denials(key(user)).unwrap();
        assert_eq!(denials.missing_from(&whole, at(9)), None);
        assert!(denials.missing_from(&State::default(), at(9)).is_some());
        let mut listed = Vec::new();
        writer.for_each_denied(|key, denials| listed.push((key, denials.clone())));
        assert!(listed.contains(&(key(user), denials.into())));
    }
}

/// The number of pairs that are stored as expiring.
pub(super) fn expiring(writer: &Writer) -> usize {
    let expires = |(_, entry, shard): (_, _, &Shard)| shard.expiring_entry(entry).is_some();
    writer.pairs().map(expires).filter(|expires| *expires).count()
}

const CATEGORIES: [&str; 5] =
    ["marketing", "marketing.news", "utility", "utility.order_updates", "service.other"];

/// Asserts that the table answers for a state as the state itself does.
pub(super) fn assert_same(table: &Table, key: Key, state: &State) {
    let resolved = ResolvedState::of(state);
    for text in CATEGORIES {
        let category = Category::parse(text).unwrap();
        assert_eq!(table.facts(key.into(), category).0, Ok(resolved.facts(category)), "{text}");
    }
    let times = ExpiriesRef::from(resolved.expiries.as_ref());
    let (opted_in, opted_out) = resolved.profile.in_force(times, at(50));
    let summary = table.summary(key.into(), at(50)).0.unwrap();
    assert_eq!((summary.opted_in, summary.opted_out), (opted_in, opted_out));
    assert_eq!(summary.last_inbound, state.last_inbound);
}

#[test]
fn entry_takes_eight_bytes_and_keeps_its_content() {
    assert_eq!(size_of::<(Key, PackedEntry)>(), 24);
    for last_inbound in [None, Some(at(0)), Some(at(1_750_000_000_000))] {
        let entry = PackedEntry::inline(MAX_PROFILES, last_inbound);
        assert_eq!(entry.encoding(), Encoding::Inline(MAX_PROFILES, last_inbound));
        assert!(entry.is_self_contained());
    }
    let Encoding::Inline(7, Some(far)) = PackedEntry::inline(7, Some(Timestamp::MAX)).encoding()
    else {
        panic!("a moment that does not fit must not change the profile")
    };
    assert!(far < Timestamp::MAX);
    assert!(PackedEntry::from_word(0).is_none());
    assert!(PackedEntry::UNREADABLE.is_self_contained() && !PackedEntry::BOXED.is_self_contained());
    assert!(!PackedEntry::expiring(3).is_self_contained());
}

#[test]
fn pair_with_one_expiry_moment_takes_sixteen_bytes_more() {
    assert_eq!(size_of::<ExpiringEntry>(), 16);
    let (table, mut writer) = new();
    let both = [(1, opt_in("marketing", Some(80))), (2, opt_in("utility.news", Some(80)))];
    let far = [(1, opt_in("marketing", Some(Timestamp::MAX.as_millis() - 1)))];
    let capped = [(1, What::Failure { code: 131_049, phone_number_id: None })];
    for (user, whats, expires) in [("1", &both[..], true), ("2", &far, false), ("3", &capped, true)]
    {
        let state = state(whats);
        assert_eq!(
            ExpiringEntry::expiry_word(&ResolvedState::of(&state)).is_some(),
            expires,
            "{user}"
        );
        writer.apply(key(user), Ok(&state));
        assert_same(&table, key(user), &state);
        assert!(writer.holds_state(key(user), Ok(&state)));
    }
    assert_eq!((expiring(&writer), table.0.boxed.len()), (2, 1));
    writer.apply(key("1"), Ok(&state(&[])));
    writer.apply(key("2"), Ok(&state(&both)));
    assert_eq!((expiring(&writer), table.0.boxed.len()), (2, 0));
}

#[test]
fn keys_are_found_after_others_moved_their_slots() {
    use std::collections::BTreeMap;
    // Keys of few bits, so that many share a home slot, and keys at one end of the range.
    let keys = [0_u64, 1, 2, 3, u64::MAX, u64::MAX - 1, 1 << 53, (1 << 53) + 7, 1 << 40];
    let keys = keys.iter().flat_map(|high| (0..40).map(|low| Key::from_halves((*high, low))));
    let mut keys: Vec<_> = keys.collect();
    keys.sort_by_key(|key| key.halves().1.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ key.halves().0);
    let (table, mut writer) = new();
    let mut model = BTreeMap::new();
    for (number, key) in keys.iter().chain(&keys).enumerate() {
        if number % 3 == 2 {
            let gone = keys[number / 2 % keys.len()];
            let held = writer.remove_where(|key| key == gone);
            assert_eq!(held.len(), usize::from(model.remove(&gone).is_some()));
        }
        let time = i64::try_from(number).unwrap();
        let state = state(&[(time, inbound())]);
        writer.apply(*key, Ok(&state));
        model.insert(*key, state);
        assert_eq!(table.pairs(), model.len());
    }
    for key in &keys {
        assert_eq!(writer.contains(*key), model.contains_key(key));
        if let Some(state) = model.get(key) {
            assert_same(&table, *key, state);
        }
    }
    assert_eq!(writer.remove_where(|_| true).len(), model.len());
    assert_eq!(table.pairs(), 0);
}

#[test]
fn emptied_shard_takes_an_expiring_pair() {
    let (table, mut writer) = new();
    let [gone, kept] = [1, 2].map(|n| Key::from_halves((n, n)));
    assert_eq!(ShardIndex::of(gone), ShardIndex::of(kept));
    writer.apply(gone, Ok(&state(&[(1, inbound())])));
    writer.remove(gone);
    let state = state(&[(1, opt_in("marketing", Some(80)))]);
    writer.apply(kept, Ok(&state));
    assert_same(&table, kept, &state);
    assert!(writer.holds_state(kept, Ok(&state)));
}

#[test]
fn batch_returns_what_single_look_ups_return() {
    let (table, mut writer) = new();
    for user in 0..500 {
        let said = match user % 5 {
            0 => state(&[(1, opt_in("marketing", Some(60 + user)))]),
            1 => state(&[(1, opt_in("marketing", None)), (9, inbound())]),
            2 => state(&[(2, opt_out("*"))]),
            3 => state(&[(1, opt_in("utility", Some(70))), (1, opt_in("marketing", Some(80)))]),
            _ => continue,
        };
        writer.apply(key(&user.to_string()), Ok(&said));
    }
    writer.apply(key("4"), Err(UnreadablePair));
    writer.validate();
    let pairs: Vec<Pair> = (0..500).map(|user| key(&user.to_string()).into()).collect();
    let categories = (0..500).map(|place| CATEGORIES[place % CATEGORIES.len()]);
    let categories: Vec<_> = categories.map(|text| Category::parse(text).unwrap()).collect();
    let mut found = vec![Err(UnreadablePair)];
    let freshness = table.facts_batch(&pairs, &categories, &mut found);
    assert_eq!(freshness.validity, Validity::Valid);
    let each = pairs.iter().zip(categories);
    let single = each.map(|(pair, category)| table.facts(*pair, category).0);
    assert_eq!(found, single.collect::<Vec<_>>());
}

#[test]
fn pair_moves_between_encodings_as_its_expiries_change() {
    let (table, mut writer) = new();
    let pair = key("1");
    let steps = [
        vec![(1, opt_in("marketing", None)), (2, inbound())],
        vec![(1, opt_in("marketing", None)), (3, opt_in("utility", Some(99)))],
        vec![(1, opt_in("marketing", Some(80))), (3, opt_in("utility.order_updates", Some(99)))],
        vec![(4, opt_out("*"))],
        vec![(4, What::Failure { code: 131_049, phone_number_id: None })],
        vec![],
    ];
    for step in steps {
        let state = state(&step);
        writer.apply(pair, Ok(&state));
        assert_same(&table, pair, &state);
        let resolved = ResolvedState::of(&state);
        let boxed = resolved.expiries.is_some() && ExpiringEntry::expiry_word(&resolved).is_none();
        assert_eq!(table.0.boxed.len(), usize::from(boxed));
        assert_eq!(table.pairs(), 1);
    }
}

#[test]
fn unreadable_pair_is_an_error_and_an_unknown_one_has_no_facts() {
    let (table, mut writer) = new();
    let category = Category { class: Class::Service, topic: None };
    assert_eq!(table.facts(key("1").into(), category).0, Ok(Facts::NOTHING));
    writer.apply(key("1"), Ok(&state(&[(1, opt_in("service", Some(9)))])));
    writer.apply(key("1"), Err(UnreadablePair));
    assert_eq!(table.facts(key("1").into(), category).0, Err(UnreadablePair));
    assert!(table.summary(key("1").into(), at(1)).0.is_err());
    assert_eq!(table.0.boxed.len(), 0);
}

#[test]
fn pairs_with_equal_standing_share_a_profile() {
    let (table, mut writer) = new();
    for user in 0..1_000 {
        let time = i64::from(user) + 10;
        let state = state(&[(time, opt_in("marketing", None)), (time + 1, inbound())]);
        writer.apply(key(&user.to_string()), Ok(&state));
    }
    assert_eq!((table.pairs(), writer.profiles.len()), (1_000, 1));
    assert!(table.bytes() >= 1_000 * 24);
}

#[test]
fn freshness_never_moves_back_and_validity_is_published() {
    let (table, mut writer) = new();
    let moment = |seconds: u64| Moment {
        boot: Duration::from_secs(seconds),
        wall: at(1_000_000).plus(Duration::from_secs(seconds)),
    };
    assert_eq!(table.freshness().validity, Validity::Loading);
    writer.invalidate();
    assert_eq!(table.freshness().validity, Validity::Loading, "nothing was loaded yet");
    writer.set_revision(7);
    writer.validate();
    writer.set_proof(moment(10), at(2_000_000));
    writer.set_proof(moment(9), at(3_000_000));
    let freshness = table.freshness();
    assert_eq!((freshness.validity, freshness.revision), (Validity::Valid, 7));
    assert_eq!(freshness.staleness(moment(12)), Duration::from_secs(2));
    assert_eq!(freshness.ledger_clock(moment(12)), at(2_002_000));
    // Both a suspended machine and a stepped clock increase the staleness.
    let slept = Moment { boot: Duration::from_hours(1), ..moment(12) };
    assert!(freshness.staleness(slept) > Duration::from_mins(59));
    let stepped = Moment { wall: at(1_000_000).plus(Duration::from_hours(1)), ..moment(12) };
    assert!(freshness.staleness(stepped) > Duration::from_mins(59));
    writer.invalidate();
    assert_eq!(table.freshness().validity, Validity::Invalid);
}

#[tokio::test]
async fn wait_for_revision_ends_once_it_is_applied() {
    let (table, mut writer) = new();
    let waiting = table.clone();
    let task = tokio::task::spawn(async move { waiting.wait_for_revision(5).await });
    writer.set_revision(4);
    tokio::task::yield_now().await;
    assert!(!task.is_finished());
    writer.set_revision(6);
    task.await.unwrap();
    table.wait_for_revision(6).await;
}

#[test]
fn reader_concurrent_with_a_write_sees_the_old_or_the_new_state() {
    let (table, mut writer) = new();
    let pair = key("1");
    let one = state(&[(1, opt_in("marketing", None)), (2, inbound())]);
    let other = state(&[(3, opt_in("utility", Some(99))), (4, opt_out("marketing"))]);
    let category = Category { class: Class::Utility, topic: None };
    let expected = [&one, &other].map(|state| ResolvedState::of(state).facts(category));
    writer.apply(pair, Ok(&one));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..50_000 {
                let facts = table.facts(pair.into(), category).0.unwrap();
                assert!(expected.contains(&facts), "{facts:?}");
            }
        });
        while !reader.is_finished() {
            writer.apply(pair, Ok(&other));
            writer.apply(pair, Ok(&one));
        }
        reader.join().unwrap();
    });
}

#[test]
fn readers_find_their_pairs_while_others_come_and_go() {
    let (table, mut writer) = new();
    let category = Category::parse("marketing").unwrap();
    let mine: Vec<(Key, State)> = (0..200)
        .map(|user| {
            let expire = (user % 2 == 0).then_some(1_000 + user);
            let said = [(user, opt_in("marketing", expire)), (user, inbound())];
            (key(&format!("mine{user}")), state(&said))
        })
        .collect();
    for (key, state) in &mine {
        writer.apply(*key, Ok(state));
    }
    let pairs: Vec<Pair> = mine.iter().map(|(key, _)| (*key).into()).collect();
    let expected: Vec<_> =
        mine.iter().map(|(_, state)| Ok(ResolvedState::of(state).facts(category))).collect();
    let categories = vec![category; pairs.len()];
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut found = Vec::new();
                for _ in 0..300 {
                    table.facts_batch(&pairs, &categories, &mut found);
                    assert_eq!(found, expected);
                }
            })
        });
        let theirs =
            [(1, opt_in("marketing", Some(7))), (2, opt_out("*"))].map(|one| state(&[one]));
        let mut user = 0_usize;
        while !readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            // So many that every shard grows, and then shrinks.
            let other = |user: usize| key(&format!("other{}", user % 20_000));
            writer.apply(other(user), Ok(&theirs[user % 2]));
            writer.remove(other(user.wrapping_sub(user % 9_000)));
            user += 1;
        }
    });
}

/// A state of a profile that only one user, and only this change of it, has.
fn state_of_its_own(user: usize, change: usize) -> State {
    let expire = change.is_multiple_of(2).then_some(1_000);
    let topics = [format!("utility.user_{user}"), format!("marketing.change_{user}_{change}")];
    state(&topics.map(|topic| (1, opt_in(&topic, expire))))
}

#[test]
fn profiles_of_ever_new_topics_are_freed_and_their_numbers_given_out_again() {
    const USERS: usize = 50;
    let (table, mut writer) = new();
    for change in 0..400 {
        for user in 0..USERS {
            writer.apply(key(&user.to_string()), Ok(&state_of_its_own(user, change)));
        }
    }
    for user in 0..USERS {
        let resolved = ResolvedState::of(&state_of_its_own(user, 399));
        let topic = format!("marketing.change_{user}_399");
        let category = Category::parse(&topic).unwrap();
        let found = table.facts(key(&user.to_string()).into(), category).0;
        assert_eq!(found, Ok(resolved.facts(category)));
    }
    assert!(writer.profiles.len() < 300, "{} profiles", writer.profiles.len());
    let rest = writer.remove_where(|_| true);
    assert_eq!((rest.len(), writer.profiles.used()), (USERS, 0), "every use is counted back");
}

#[test]
fn readers_find_the_profile_that_an_entry_meant_while_profiles_are_freed() {
    const USERS: usize = 40;
    let (table, mut writer) = new();
    for user in 0..USERS {
        writer.apply(key(&user.to_string()), Ok(&state_of_its_own(user, 0)));
    }
    let pairs: Vec<Pair> = (0..USERS).map(|user| key(&user.to_string()).into()).collect();
    let topics: Vec<_> = (0..USERS).map(|user| format!("utility.user_{user}")).collect();
    let categories: Vec<_> = topics.iter().map(|topic| Category::parse(topic).unwrap()).collect();
    let is_own = |facts: &Result<Facts, UnreadablePair>| {
        matches!(facts, Ok(Facts { standing: Standing::OptedIn { .. }, .. }))
    };
    std::thread::scope(|scope| {
        let readers = [1, 2, 3].map(|round| {
            let (table, pairs, categories) = (&table, &pairs, &categories);
            scope.spawn(move || {
                let mut found = Vec::new();
                for _ in 0..400 * round {
                    table.facts_batch(pairs, categories, &mut found);
                    assert!(found.iter().all(is_own), "another user's profile was found");
                    for (pair, category) in pairs.iter().zip(categories) {
                        assert!(is_own(&table.facts(*pair, *category).0));
                    }
                }
            })
        });
        let mut change = 0;
        while !readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            change += 1;
            for user in 0..USERS {
                writer.apply(key(&user.to_string()), Ok(&state_of_its_own(user, change)));
            }
        }
    });
}

#[test]
fn image_written_while_profiles_are_freed_has_the_profile_of_each_pair() {
    const USERS: usize = 40;
    let (table, mut writer) = new();
    let secret = KeySecret::new(&[1; 16]);
    for user in 0..USERS {
        writer.apply(key(&user.to_string()), Ok(&state_of_its_own(user, 0)));
    }
    std::thread::scope(|scope| {
        let saver = scope.spawn(|| {
            for _ in 0..40 {
                let mut bytes = Vec::new();
                table.save(&mut bytes, || true).unwrap();
                let saved = TableImage::read(&mut &bytes[..], bytes.len() as u64).unwrap();
                let (restored, mut other) = new();
                assert!(other.restore(saved, &secret));
                for user in 0..USERS {
                    let topic = format!("utility.user_{user}");
                    let category = Category::parse(&topic).unwrap();
                    let facts = restored.facts(key(&user.to_string()).into(), category).0.unwrap();
                    assert!(matches!(facts.standing, Standing::OptedIn { .. }));
                }
                assert_eq!(other.remove_where(|_| true).len(), USERS);
                assert_eq!(other.profiles.used(), 0);
            }
        });
        let mut change = 0;
        while !saver.is_finished() {
            change += 1;
            for user in 0..USERS {
                writer.apply(key(&user.to_string()), Ok(&state_of_its_own(user, change)));
            }
        }
    });
}

pub(super) fn a_state() -> impl Strategy<Value = State> {
    let category = proptest::sample::select(&CATEGORIES[..]);
    let what = prop_oneof![
        (category.clone(), proptest::option::of(40_i64..60)).prop_map(|(c, e)| opt_in(c, e)),
        category.prop_map(opt_out),
        Just(opt_out("*")),
        Just(inbound()),
        Just(What::Platform { stopped: true, phone_number_id: None }),
        Just(What::Suppression { suppressed: true, reference: String::new() }),
        Just(What::Failure { code: 131_047, phone_number_id: None }),
        Just(What::Failure { code: 131_049, phone_number_id: None }),
    ];
    proptest::collection::vec((0_i64..20, what), 0..8).prop_map(|whats| state(&whats))
}

proptest! {
    #[test]
    fn table_answers_as_the_states_do(states in proptest::collection::vec(a_state(), 1..20)) {
        let (table, mut writer) = new();
        for (user, state) in states.iter().enumerate() {
            // Every pair takes the state of the one before, and must release its profile.
            if let Some(before) = user.checked_sub(1).and_then(|before| states.get(before)) {
                writer.apply(key(&user.to_string()), Ok(before));
            }
            writer.apply(key(&user.to_string()), Ok(state));
        }
        for (user, state) in states.iter().enumerate() {
            assert_same(&table, key(&user.to_string()), state);
        }
    }
}

#[test]
fn what_is_proven_is_in_what_is_read() {
    // For any interleaving of reads and writes: a freshness that is read after the entry could be
    // newer than the entry.
    const WRITES: i64 = 30_000;
    let (table, mut writer) = new();
    let pair = key("15550001");
    let write = |writer: &mut Writer, number: i64| {
        writer.apply(pair, Ok(&state(&[(number, inbound())])));
        writer.set_revision(u64::try_from(number).unwrap());
    };
    write(&mut writer, 1);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (2..WRITES).for_each(|number| write(&mut writer, number));
            done.store(true, Ordering::Release);
        });
        let mut reads = 0;
        while !done.load(Ordering::Acquire) || reads < 1_000 {
            let category = Category::parse("service").unwrap();
            let (facts, freshness) = table.facts(pair.into(), category);
            let inbound = facts.unwrap().last_inbound.unwrap().as_millis();
            let promised = i64::try_from(freshness.revision).unwrap();
            assert!(inbound >= promised, "{inbound} was read, and {promised} promised");
            reads += 1;
        }
    });
}
