use proptest::prelude::*;

use super::*;
use crate::table::{self, UnreadablePair};
use consentd_core::id::Key;
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, Effect, State};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn key(number: u64) -> Key {
    // Keys in all shards, and some that are adjacent.
    Key::from_halves((number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number))
}

/// States of every encoding.
fn state(number: u64) -> State {
    let mut state = State::default();
    let expire = |millis: i64| (!number.is_multiple_of(3)).then_some(at(millis));
    for (scope, millis) in
        [("marketing", 90), ("utility.news", if number % 5 == 1 { 70 } else { 90 })]
    {
        let choice = Choice::opt_in(at(3), expire(millis));
        state.apply(&Effect::Choice(Scope::parse(scope).unwrap(), choice)).unwrap();
    }
    if number.is_multiple_of(4) {
        state.apply(&Effect::Choice(Scope::All, Choice::opt_out(at(5)))).unwrap();
    }
    if number.is_multiple_of(2) {
        state.apply(&Effect::Inbound(at(i64::try_from(number).unwrap()))).unwrap();
    }
    if number % 7 == 1 {
        state.apply(&Effect::Suppression { time: at(4), suppressed: true }).unwrap();
    }
    state
}

const PAIRS: u64 = 300;

fn file() -> (Vec<u8>, Position, KeySecret) {
    file_of(Businesses::All)
}

fn file_of(businesses: Businesses) -> (Vec<u8>, Position, KeySecret) {
    let secret = KeySecret::new(&[3; 16]);
    let (table, mut writer) = table::new();
    writer.reset(&secret);
    for number in 0..PAIRS {
        writer.apply(key(number), Ok(&state(number)));
    }
    writer.apply(key(PAIRS), Err(UnreadablePair));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    let from = Position { epoch: [1; 16], revision: 7, head: [2; 20] };
    let start = SnapshotHeader { from, accepted: 4, seen: at(5), proven: at(6), businesses };
    let written = write(&path, &start, &table, || true).unwrap();
    let until = Position { revision: 9, head: [3; 20], ..from };
    let size = finish(&path, written, &until, &secret).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(u64::try_from(bytes.len()).unwrap(), size);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    (bytes, until, secret)
}

fn decoded(bytes: &[u8]) -> Result<(WarmStart, TableImage, SnapshotHeader), TableImageError> {
    decode(bytes, u64::try_from(bytes.len()).unwrap())
}

#[test]
fn what_was_saved_is_read_back() {
    let (bytes, until, secret) = file();
    let (warm, saved, start) = decoded(&bytes).unwrap();
    assert_eq!((warm.until, warm.accepted, start.seen, start.proven), (until, 4, at(5), at(6)));
    assert_eq!(warm.seal, secret.digest(&warm.hash));
    let (table, mut writer) = table::new();
    assert!(writer.restore(saved, &secret));
    assert_eq!(table.pairs(), usize::try_from(PAIRS).unwrap() + 1);
    for number in 0..PAIRS {
        assert!(writer.holds_state(key(number), Ok(&state(number))), "{number}");
    }
    assert!(writer.holds_state(key(PAIRS), Err(UnreadablePair)));
    // The restored table can be written like any other.
    for number in 0..2 * PAIRS {
        writer.apply(key(number), Ok(&state(number + 1)));
        assert!(writer.holds_state(key(number), Ok(&state(number + 1))), "{number}");
    }
}

#[test]
fn a_file_says_which_businesses_it_holds() {
    assert_eq!(decoded(&file().0).unwrap().2.businesses, Businesses::All);
    let some = Businesses::only(BusinessSet::of(["globex", "acme"]).unwrap());
    let (bytes, ..) = file_of(some.clone());
    let (_, saved, start) = decoded(&bytes).unwrap();
    assert_eq!((start.businesses, saved.pairs()), (some, usize::try_from(PAIRS).unwrap() + 1));
}

#[test]
fn a_file_that_ends_anywhere_is_refused() {
    let (bytes, ..) = file_of(Businesses::only(BusinessSet::of(["globex", "acme"]).unwrap()));
    // Every byte of the header and the trailer, and every 61st between them.
    let dense =
        |place: &usize| *place < 200 || *place + 200 > bytes.len() || place.is_multiple_of(61);
    for length in (0..bytes.len()).filter(dense) {
        assert!(decoded(&bytes[..length]).is_err(), "{length}");
    }
    assert!(decoded(&[&bytes[..], &[0]].concat()).is_err(), "nor one that goes on");
}

#[test]
fn a_byte_that_changed_anywhere_is_noticed() {
    let (mut bytes, _, secret) = file();
    let length = bytes.len();
    let dense = |place: &usize| *place < 200 || *place + 200 > length || place.is_multiple_of(61);
    for place in (0..length).filter(dense) {
        bytes[place] ^= 1 << (place % 8);
        let refused =
            decoded(&bytes).map_or(true, |(warm, ..)| secret.digest(&warm.hash) != warm.seal);
        assert!(refused, "{place}");
        bytes[place] ^= 1 << (place % 8);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let (mut bytes, ..) = file();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        drop(decoded(&bytes));
        bytes.truncate(length.index(bytes.len()));
        drop(decoded(&bytes));
    }
}
