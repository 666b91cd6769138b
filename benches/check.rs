//! A check inside the process: ids, key, look-up, clocks and decision, over tables of 10³ to 10⁷
//! pairs, with and without a writer that keeps changing them.
//!
//! `cargo bench --bench check` runs all; `cargo bench --bench check -- 10000000` the largest alone.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use consentd::checker::{CheckRequest, Checker};
use consentd::metrics::Metrics;
use consentd::table::{self, Table, Writer};
use consentd_core::decision::{Form, Policy, Proof, decide};
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::scope::{Class, Scope};
use consentd_core::standing::{Facts, Standing};
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::{Clock, Timestamp};
use consentd_os::clock::Moment;
use criterion::{BenchmarkId, Criterion};

const BOUND: Duration = Duration::from_hours(1);

fn user(n: usize) -> String {
    format!("1555{n:08}")
}

/// Writes the last eight digits of [`user`].
fn write_number(digits: &mut [u8; 12], mut n: usize) {
    for digit in digits[4..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(n % 10).unwrap();
        n /= 10;
    }
}

fn key(secret: &KeySecret, user: &str) -> Key {
    secret.key(&UserId::parse(user).unwrap(), BusinessId::parse("acme").unwrap())
}

/// One of the few standings that most pairs share.
fn state(n: usize, now: Timestamp) -> State {
    let mut state = State::default();
    let topic = Scope::parse("utility.order_updates").unwrap();
    let choice = Choice::opt_in(now.minus(Duration::from_hours(48)), None);
    state.apply(&Effect::Choice(topic, choice)).unwrap();
    if n.is_multiple_of(3) {
        let out = Choice::opt_out(now.minus(Duration::from_hours(30)));
        state.apply(&Effect::Choice(Scope::Class(Class::Marketing), out)).unwrap();
    }
    let minutes = u64::try_from(n % 4_000).unwrap();
    state.apply(&Effect::Inbound(now.minus(Duration::from_mins(minutes)))).unwrap();
    state
}

fn table_of(pairs: usize, secret: &KeySecret) -> (Table, Writer) {
    let (table, mut writer) = table::new();
    writer.reset(secret);
    let now = Moment::now();
    for n in 0..pairs {
        writer.apply(key(secret, &user(n)), Ok(&state(n, now.wall)));
    }
    writer.validate();
    writer.set_proof(now, now.wall);
    (table, writer)
}

/// A stride that visits every pair in an order that no cache foresees.
fn scattered(n: usize, pairs: usize) -> usize {
    n.wrapping_mul(2_654_435_761) % pairs
}

fn bench(criterion: &mut Criterion) {
    let secret = KeySecret::new(&[7; 16]);
    let mut group = criterion.benchmark_group("check");
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let sizes = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    for pairs in sizes {
        // A filter that ends in a size builds no other table; what follows a flag is no filter.
        let size = asked.as_deref().and_then(|asked| asked.rsplit('/').next()?.parse().ok());
        if size.is_some_and(|size: usize| sizes.contains(&size) && size != pairs) {
            continue;
        }
        let (table, mut writer) = table_of(pairs, &secret);
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let checker = Checker::new(table, Policy::default(), BOUND, metrics);
        let check = |bencher: &mut criterion::Bencher<'_>| {
            let mut n = 0_usize;
            // Writing the digits into place takes a few of the nanoseconds that are measured.
            let mut digits = *b"155500000000";
            bencher.iter(|| {
                n += 1;
                write_number(&mut digits, scattered(n, pairs));
                let question = CheckRequest {
                    user_id: std::str::from_utf8(&digits).unwrap(),
                    business_id: "acme",
                    category: "utility.order_updates",
                    form: Ok(Form::Template),
                    min_revision: 0,
                    template: None,
                };
                checker.check(black_box(&question)).unwrap()
            });
        };
        group.bench_function(BenchmarkId::new("quiet", pairs), check);
        // As fast as one thread can: far more than any ledger tells of.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let now = Moment::now().wall;
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let place = scattered(n, pairs);
                    writer.apply(key(&secret, &user(place)), Ok(&state(place + n, now)));
                }
            });
            group.bench_function(BenchmarkId::new("beside a writer", pairs), check);
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();

    let facts = Facts {
        standing: Standing::OptedIn { expire: None },
        last_inbound: Some(Timestamp::MIN),
        ..Facts::NOTHING
    };
    let clock = Clock::at(Moment::now().wall);
    criterion.bench_function("decision alone", |bencher| {
        bencher.iter(|| {
            let facts = black_box(&facts);
            decide(facts, Class::Utility, Form::Any, &Policy::default(), clock, Proof::Fresh)
        });
    });
    criterion.bench_function("clocks alone", |bencher| bencher.iter(Moment::about_now));
    criterion.bench_function("writing digits alone", |bencher| {
        let (mut digits, mut n) = (*b"155500000000", 0);
        bencher.iter(|| {
            n += 1;
            write_number(black_box(&mut digits), scattered(n, 10_000_000));
        });
    });
    criterion.bench_function("key alone", |bencher| {
        bencher.iter(|| key(&secret, black_box("15550123456")));
    });
    let mut group = criterion.benchmark_group("reading a user id");
    for id in [
        "15550123456",
        "447700900123",
        "5511987654321",
        "+1 (555) 012-3456",
        "US.13491208655302741918",
        "whatsapp:+15550123456",
        "+44 (0)7700 900123",
        "+54 11 15 2345 6789",
        "https://wa.me/15550123456?text=hello",
        "15550123456:12@s.whatsapp.net",
        "\u{202a}+١ ٥٥٥ ٠١٢ ٣٤٥٦\u{202c}",
    ] {
        group.bench_function(id, |bencher| bencher.iter(|| UserId::parse(black_box(id))));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
}
