//! Single checks, batches and filters: the look-up alone, and with all that surrounds it in the
//! process (ids, key, clocks, decision); without and with a writer of 20,000 changes a second.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use consentd::table::{Pair, Table, UnreadablePair, Validity};
use consentd_core::decision::{Form, Policy, Proof, Reason, decide};
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::scope::Category;
use consentd_core::standing::Facts;
use consentd_core::time::Clock;
use consentd_os::clock::Moment;

use crate::tables::{HotTable, HotWriter, ProofOfFreshness};
use crate::{dashmap_table, digits, key, pin, scattered, secret, spread, state};

/// How many rounds a median is of.
const ROUNDS: usize = 41;
/// How many look-ups of each kind one round has.
const PER_ROUND: usize = 60_000;
/// How many different pairs are looked up: more than a cache holds, where there are so many.
const ASKED: usize = 1_200_000;
/// How many questions the service gives to the table at a time (`CHECKS_PER_YIELD` in `src/grpc/consent_service.rs`),
/// of a batch or filter of [`REQUEST`].
const LOOKUPS_PER_PREFETCH: usize = 128;
const REQUEST: usize = 1_000;
/// The staleness up to which checks are answered.
const BOUND: Duration = Duration::from_hours(1);
/// How many changes a millisecond the writer makes.
const CHANGES: u64 = 20;

const CATEGORIES: [&str; 3] = ["utility.order_updates", "marketing", "service"];

/// What is asked.
struct Asked {
    secret: KeySecret,
    users: Vec<[u8; 12]>,
    pairs: Vec<Pair>,
}

/// What is measured.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Call {
    SingleLookUp,
    SingleCheck,
    BatchLookUp,
    Batch,
    FilterLookUp,
    Filter,
}

impl Call {
    const ALL: [(Self, &str); 6] = [
        (Self::SingleLookUp, "single look-up"),
        (Self::SingleCheck, "single check"),
        (Self::BatchLookUp, "batch, look-ups"),
        (Self::Batch, "batch, whole"),
        (Self::FilterLookUp, "filter, look-ups"),
        (Self::Filter, "filter, whole"),
    ];
}

/// A table and the writer that changes it while `active`.
struct Subject<T: HotTable> {
    table: T,
    active: AtomicBool,
    changes: AtomicU64,
}

/// Measures both tables in turn.
pub(crate) fn measure(pairs: usize) {
    let asked = asked(pairs);
    let (own, own_writer) = filled::<Table>(pairs, &asked.secret);
    let (other, other_writer) = filled::<dashmap_table::Table>(pairs, &asked.secret);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, asked) = (&done, &asked);
        let (own_ref, other_ref) = (&own, &other);
        scope.spawn(move || write(own_writer, own_ref, pairs, &asked.secret, done));
        scope.spawn(move || write(other_writer, other_ref, pairs, &asked.secret, done));
        pin(0);
        for writes in [false, true] {
            for (call, name) in Call::ALL {
                compare(call, name, pairs, writes, (own_ref, other_ref), asked);
            }
        }
        done.store(true, Ordering::Release);
    });
}

fn asked(pairs: usize) -> Asked {
    let secret = secret();
    let users = (0..ASKED).map(|n| digits(scattered(n, pairs))).collect();
    let pairs = (0..ASKED).map(|n| key(&secret, scattered(n, pairs)).into()).collect();
    Asked { secret, users, pairs }
}

fn filled<T: HotTable>(pairs: usize, secret: &KeySecret) -> (Subject<T>, T::Writer) {
    let (table, mut writer) = T::create(secret);
    let now = Moment::now();
    for n in 0..pairs {
        writer.apply(key(secret, n), Ok(&state(n, now.wall, false)));
    }
    writer.prove(now);
    (Subject { table, active: AtomicBool::new(false), changes: AtomicU64::new(0) }, writer)
}

/// Changes pairs at a steady rate while it is wanted: three in four have a new last inbound, one in
/// four gains or loses an expiry, which takes more room than its slot.
fn write<T: HotTable>(
    mut writer: impl HotWriter,
    subject: &Subject<T>,
    pairs: usize,
    secret: &KeySecret,
    done: &AtomicBool,
) {
    pin(1);
    let now = Moment::now().wall;
    let mut n = 0;
    while !done.load(Ordering::Acquire) {
        let (start, before) = (Instant::now(), n);
        while subject.active.load(Ordering::Acquire) {
            let due = u64::try_from(start.elapsed().as_micros()).unwrap() * CHANGES / 1_000;
            while n - before < due {
                n += 1;
                let number = usize::try_from(n).unwrap();
                let pair = scattered(number / 2, pairs);
                let state = state(pair + number, now, n.is_multiple_of(4));
                writer.apply(key(secret, pair), Ok(&state));
            }
            subject.changes.store(n, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Measures a call in rounds, the tables in turn, and prints both medians and that of the ratios.
fn compare(
    call: Call,
    name: &str,
    pairs: usize,
    writes: bool,
    (own, other): (&Subject<Table>, &Subject<dashmap_table::Table>),
    asked: &Asked,
) {
    let (mut first, mut second, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let rates = [own.changes.load(Ordering::Relaxed), other.changes.load(Ordering::Relaxed)];
    let mut took = [0.0_f64; 2];
    for round in 0..=ROUNDS {
        let mut results = [0.0; 2];
        for turn in 0..2 {
            let start = Instant::now();
            let index = (round + turn) % 2;
            results[index] = if index == 0 {
                once(call, own, writes, asked, round)
            } else {
                once(call, other, writes, asked, round)
            };
            took[index] += start.elapsed().as_secs_f64();
        }
        // The first round warms up.
        if round > 0 {
            first.push(results[0]);
            second.push(results[1]);
            ratios.push(results[1] / results[0]);
        }
    }
    let beside = if writes {
        let rate = |now: u64, before: u64, took: f64| (now - before) as f64 / took;
        let own = rate(own.changes.load(Ordering::Relaxed), rates[0], took[0]);
        let other = rate(other.changes.load(Ordering::Relaxed), rates[1], took[1]);
        format!("with a writer of {own:.0} and {other:.0} changes/s")
    } else {
        "quiet".to_owned()
    };
    println!(
        "calls | {pairs} pairs, {name}, {beside} | own {} ns | dashmap {} ns | ratio {}",
        spread(first, 1),
        spread(second, 1),
        spread(ratios, 2),
    );
}

/// One round of one table: nanoseconds for each question.
fn once<T: HotTable>(
    call: Call,
    subject: &Subject<T>,
    writes: bool,
    asked: &Asked,
    round: usize,
) -> f64 {
    let from = round * PER_ROUND % (ASKED - PER_ROUND);
    let range = from..from + PER_ROUND;
    let (users, pairs) = (&asked.users[range.clone()], &asked.pairs[range]);
    subject.active.store(writes, Ordering::Release);
    if writes {
        // The writer wakes up at least so often.
        thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    match call {
        Call::SingleLookUp => look_up_each(&subject.table, pairs),
        Call::SingleCheck => check_each(&subject.table, &asked.secret, users),
        Call::BatchLookUp | Call::FilterLookUp => {
            look_up_many(&subject.table, pairs, call == Call::FilterLookUp);
        }
        Call::Batch | Call::Filter => {
            check_many(&subject.table, &asked.secret, users, call == Call::Filter);
        }
    }
    let took = start.elapsed();
    subject.active.store(false, Ordering::Release);
    took.as_nanos() as f64 / PER_ROUND as f64
}

fn category(place: usize) -> Category<'static> {
    Category::parse(CATEGORIES[place % CATEGORIES.len()]).unwrap()
}

fn look_up_each<T: HotTable>(table: &T, pairs: &[Pair]) {
    let category = category(0);
    for pair in pairs {
        black_box(table.facts(*pair, category).0.unwrap());
    }
}

fn look_up_many<T: HotTable>(table: &T, pairs: &[Pair], one_category: bool) {
    let categories = [0; LOOKUPS_PER_PREFETCH].map(|_| category(0));
    let mut mixed = categories;
    if !one_category {
        mixed.iter_mut().enumerate().for_each(|(place, one)| *one = category(place));
    }
    for request in pairs.chunks(REQUEST) {
        for some in request.chunks(LOOKUPS_PER_PREFETCH) {
            // As the gate does, which allocates for each of these.
            let mut facts = Vec::with_capacity(some.len());
            black_box(table.facts_batch(some, &mixed[..some.len()], &mut facts));
            black_box(&facts);
        }
    }
}

/// What the decisions on look-ups that were made together have in common.
struct Judge {
    policy: Policy,
    clock: Clock,
    proof: Proof,
}

impl Judge {
    fn new(freshness: &impl ProofOfFreshness) -> Self {
        let now = Moment::about_now();
        let proof = match freshness.validity() {
            Validity::Valid if freshness.staleness(now) <= BOUND => Proof::Fresh,
            _ => panic!("the table is proven"),
        };
        let clock = Clock::of(now.wall, freshness.ledger_clock(now));
        Self { policy: Policy::default(), clock, proof }
    }

    fn decide(&self, facts: &Result<Facts, UnreadablePair>, category: Category<'_>) -> Reason {
        let facts = facts.as_ref().unwrap();
        decide(facts, category.class, Form::Template, &self.policy, self.clock, self.proof).reason
    }
}

fn check_each<T: HotTable>(table: &T, secret: &KeySecret, users: &[[u8; 12]]) {
    for user in users {
        let user = UserId::parse(std::str::from_utf8(user).unwrap()).unwrap();
        let business = BusinessId::parse(black_box("acme")).unwrap();
        let category = Category::parse(black_box("utility.order_updates")).unwrap();
        let pair = secret.key(&user, business).into();
        let (facts, freshness) = table.facts(pair, category);
        black_box(Judge::new(&freshness).decide(&facts, category));
    }
}

fn check_many<T: HotTable>(table: &T, secret: &KeySecret, users: &[[u8; 12]], one_category: bool) {
    let business = BusinessId::parse("acme").unwrap();
    for request in users.chunks(REQUEST) {
        for some in request.chunks(LOOKUPS_PER_PREFETCH) {
            let mut pairs = Vec::<Pair>::with_capacity(some.len());
            let mut categories = Vec::with_capacity(some.len());
            for (place, user) in some.iter().enumerate() {
                let user = UserId::parse(std::str::from_utf8(user).unwrap()).unwrap();
                pairs.push(secret.key(&user, business).into());
                categories.push(if one_category { category(0) } else { category(place) });
            }
            let mut facts = Vec::with_capacity(some.len());
            let freshness = table.facts_batch(&pairs, &categories, &mut facts);
            let judge = Judge::new(&freshness);
            for (facts, category) in facts.iter().zip(categories) {
                black_box(judge.decide(facts, category));
            }
        }
    }
}
