//! Decoding what was encoded returns the same value.

use proptest::prelude::*;

use super::history_entry::is_numbered;
use super::*;
use consentd_core::businesses::BusinessSet;
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::id::KeySecret;
use consentd_core::record::HistoryEntry;
use consentd_core::scope::Class;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn a_record() -> Record {
    let mut record = Record { history_len: 3, chain: [9; 32], ..Record::default() };
    let state = &mut record.state;
    state.scopes.insert(Scope::All, Choice::opt_out(at(0)).into());
    let confirmed = ScopeState { opt_out: Some(at(3)), ..Choice::confirmed(at(4), None).into() };
    state.scopes.insert(Scope::parse("marketing").unwrap(), confirmed);
    let topic = Scope::parse("utility.order_updates").unwrap();
    let choice = Some(Choice::opt_in(at(7), Some(at(8))));
    let pending = Some(Pending::new(at(8), None));
    state.scopes.insert(topic, ScopeState { choice, pending, opt_out: Some(at(6)) });
    state.last_inbound = Some(at(0));
    state.window_closed = Some(at(1));
    state.capped = Some(at(2));
    state.failure = Some((at(3), 131_026));
    state.user_failures.raise(UserFailure::Blocked, at(1));
    state.user_failures.raise(UserFailure::Country, at(2));
    state.platform.apply(None, at(4), true);
    state.suppression = Some((at(5), false));
    state.last_suppressed = Some(at(2));
    state.clamped.extend([at(5), at(8)]);
    state.claims.add(Claim { from: at(9), until: at(11), moment: at(5) });
    state.claims.add(Claim { from: at(12), until: at(12), moment: at(8) });
    let outcome = Outcome {
        revision: 5,
        applied: true,
        opted_out_scope: "*".into(),
        opted_in_category: String::new(),
        matched_keyword: "arrêt".into(),
        keyword_locale: "fr".into(),
    };
    record.remember(Request { id: [1; 16], what: [2; 16], outcome, time: Some(at(6)) });
    record
}

#[test]
fn records_and_log_entries_survive_their_bytes() {
    let plain = a_record();
    assert_eq!(decode_record(&encode_record(&plain)), Ok(plain.clone()));
    let link = Link { user_id: "US.1349".into(), time: at(4), moved: true };
    let record = Record { links: vec![link], ..plain.clone() };
    assert_eq!(decode_record(&encode_record(&record)), Ok(record.clone()));
    let format = |record| pb::Record::decode(&*encode_record(record)).unwrap().format;
    assert_eq!((format(&plain), format(&record)), (1, 2), "who knows no links loses none");
    assert_eq!(decode_record(&encode_record(&Record::default())), Ok(Record::default()));
    let key = Key::from_bytes([3; 16]);
    let encoded = encode_record(&record);
    let body = LogBody {
        key,
        user_id: "u".into(),
        business_id: "b".into(),
        record: Ok(record),
        record_time: at(9),
    };
    let bytes = encode_log(&body, &encoded);
    assert_eq!(decode_log(&bytes), Ok(body.clone()));
    for millis in [0, 1, 127, 128, 1_700_000_000_000] {
        let body = LogBody { record_time: at(millis), ..body.clone() };
        let bytes = encode_log(&body, &encoded);
        let (key_at, record_at) = places_in_log(&body, &encoded, &bytes).unwrap();
        assert_eq!(bytes[key_at..key_at + 16], key.to_bytes());
        assert_eq!(bytes[record_at..record_at + encoded.len()], encoded);
    }
}

#[test]
fn log_entry_of_another_business_is_told_by_its_first_bytes() {
    let only = |id| Businesses::only(BusinessSet::of([id]).unwrap());
    let secret = KeySecret::new(&[7; 16]);
    let key = secret.read("15550123456", "acme").unwrap();
    for key in [key, secret.nameless(key).unwrap()] {
        let record = a_record();
        let encoded = encode_record(&record);
        let (user_id, business_id) = ("u".to_owned(), "acme".to_owned());
        let body = LogBody { key, user_id, business_id, record: Ok(record), record_time: at(9) };
        let bytes = encode_log(&body, &encoded);
        let read = |businesses| decode_log_of(&businesses, &bytes);
        assert_eq!(read(Businesses::All).as_ref(), Ok(&body));
        assert_eq!(read(only("acme")).as_ref(), Ok(&body));
        let others = read(only("globex"));
        // The business of a nameless pair is not known.
        let is_skipped = !key.is_nameless();
        assert_eq!(others, if is_skipped { Err(UndecodedEntry::Skipped(key)) } else { Ok(body) });
        // An entry of a later format is not passed over: it is not known where its key is.
        let later = [&[1 << 3, 9], &bytes[2..]].concat();
        assert_eq!(decode_log_of(&only("globex"), &later), Err(UndecodedEntry::Unreadable));
        assert_eq!(decode_log_of(&only("globex"), &bytes[..9]), Err(UndecodedEntry::Unreadable));
    }
}

fn number(id: &str) -> Option<PhoneNumberId> {
    PhoneNumberId::parse(id).ok()
}

/// What versions that knew no numbers read of a record, if they did not refuse its format.
fn mark_of_a_version_before(record: &Record) -> (u32, DecodedMark) {
    let record = pb::Record::decode(&*encode_record(record)).unwrap();
    (record.format, mark_of(record.platform).unwrap())
}

#[test]
fn stops_by_number_survive_their_bytes_and_a_version_before_denies() {
    let mut record = a_record();
    let before = encode_record(&record);
    assert!(pb::Record::decode(&*before).unwrap().platform_numbers.is_empty());
    assert_eq!(mark_of_a_version_before(&record), (1, (Some((at(4), true)), Some(at(4)))));
    let (one, two) = (number("11"), number("22"));
    record.state.platform.apply(one.as_ref(), at(6), true);
    record.state.platform.apply(one.as_ref(), at(8), false);
    record.state.platform.apply(two.as_ref(), at(5), true);
    assert_eq!(decode_record(&encode_record(&record)), Ok(record.clone()));
    assert_eq!(mark_of_a_version_before(&record), (3, (Some((at(5), true)), Some(at(6)))));
    record.state.platform.apply(two.as_ref(), at(7), false);
    assert_eq!(mark_of_a_version_before(&record), (3, (Some((at(4), true)), Some(at(6)))));
    record.state.platform.apply(None, at(6), false);
    assert_eq!(mark_of_a_version_before(&record), (3, (Some((at(8), false)), Some(at(6)))));
    assert_eq!(decode_record(&encode_record(&record)), Ok(record.clone()));
    record.state.platform = PlatformStops::default();
    record.state.platform.apply(one.as_ref(), at(6), false);
    assert_eq!(decode_record(&encode_record(&record)), Ok(record));
}

#[test]
fn history_entries_survive_their_bytes_and_keep_statements_apart() {
    let evidence = Evidence {
        method: Method::Website,
        statement: "Yes to WhatsApp from Acme".into(),
        business_name: "Acme".into(),
        locale: "en".into(),
        reference: "https://acme.example/1".into(),
        confirmation: "message wamid.2".into(),
        phone_number_id: None,
        statement_names: StatementNames::Business,
    };
    let signup = Evidence {
        method: Method::WhatsappSignup,
        statement: String::new(),
        phone_number_id: number("11"),
        statement_names: StatementNames::default(),
        ..evidence.clone()
    };
    let category = Scope::parse("marketing").unwrap();
    let what = [
        What::OptIn { category: category.clone(), evidence, expire: Some(at(99)), pending: true },
        What::OptIn { category, evidence: signup, expire: None, pending: false },
        What::OptOut { scope: Scope::All, reference: "letter".into() },
        What::Inbound { message_id: "wamid.1".into(), text: String::new() },
        What::Platform { stopped: true, phone_number_id: None },
        What::Platform { stopped: false, phone_number_id: number("11") },
        What::Failure { code: 131_047, phone_number_id: None },
        What::Failure { code: 131_050, phone_number_id: number("22") },
        What::Suppression { suppressed: true, reference: "court".into() },
        What::Link { other_user_id: "US.1349".into(), moved: true },
        What::TemplateCategory { category: Class::Utility, lift: None, reference: "a".into() },
        What::TemplateCategory {
            category: Class::Marketing,
            lift: Some(at(1)),
            reference: String::new(),
        },
        What::TemplateRestriction {
            restricted: true,
            until: Some(at(9)),
            reference: String::new(),
        },
        What::TemplateRestriction { restricted: false, until: None, reference: "b".into() },
    ];
    for what in what {
        let entry = HistoryEntry {
            user_id: "+1 555".into(),
            business_id: "acme".into(),
            time: at(1),
            record_time: at(2),
            what,
        };
        let bytes = encode_history(&entry);
        let text = statement_of(&entry).map(|(_, text)| text.to_owned());
        let format = pb::HistoryEntry::decode(&*bytes).unwrap().format;
        assert_eq!(format, if is_numbered(&entry.what) { 2 } else { 1 }, "older versions read 1");
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!whole.contains("Yes to WhatsApp"));
        assert_eq!(decode_history(&bytes, |_| text), Some(entry));
    }
}

#[test]
fn failure_about_the_user_is_found_in_records_that_a_version_before_wrote() {
    let mut written = pb::Record::decode(&*encode_record(&a_record())).unwrap();
    // Such a version knows the latest failure alone.
    written.user_failures.clear();
    written.failure = Some(pb::Failure { time: 7, code: 130_472 });
    let state = decode_record(&written.encode_to_vec()).unwrap().state;
    let found: Vec<_> = state.user_failures.iter().collect();
    assert_eq!(found, [(UserFailure::Experiment, at(7))]);
    // A code that only a later version knows is ignored, and the record can be read.
    written.user_failures.push(pb::Failure { time: 8, code: 130_999 });
    assert_eq!(decode_record(&written.encode_to_vec()).unwrap().state, state);
}

#[test]
fn newer_formats_are_told_apart_from_damage() {
    let mut newer = pb::Record { format: FORMAT + 1, ..Default::default() };
    newer.chain = vec![0; 32];
    let unreadable = decode_record(&newer.encode_to_vec());
    assert_eq!(unreadable, Err(UnreadableRecord::Newer { format: FORMAT + 1 }));
    assert_eq!(decode_record(&[0xff]), Err(UnreadableRecord::Damaged));
    assert_eq!(decode_record(&[]), Err(UnreadableRecord::Damaged), "a chain is 32 bytes");
    let entry = pb::LogEntry { format: ENTRY_FORMAT + 1, key: vec![0; 16], ..Default::default() };
    assert_eq!(decode_log(&entry.encode_to_vec()), Err(UndecodedEntry::Unreadable));
}

/// Asserts that a record is decoded for a table as for any other reader, except for its requests.
fn assert_same_for_table(bytes: &[u8]) {
    let whole = decode_record(bytes);
    let mut lean = decode_record_for_table(bytes);
    if let (Ok(lean), Ok(whole)) = (&mut lean, &whole) {
        assert!(lean.requests.is_empty() || lean.requests == whole.requests);
        lean.requests.clone_from(&whole.requests);
    }
    assert_eq!(lean, whole, "{}", hex::encode(bytes));
}

/// Records as most pairs have them, one with a little of everything, and one of each rare kind.
fn some_records() -> Vec<Record> {
    let (requests, rare) = (a_record().requests, a_record());
    let mut all = vec![Record::default(), rare.clone(), Record { requests, ..Record::default() }];
    for (scope, choice) in [
        ("marketing", Choice::opt_in(at(7), None)),
        ("utility.order_updates", Choice::confirmed(at(7), Some(at(9)))),
        ("*", Choice::opt_out(at(3))),
    ] {
        let mut record =
            Record { requests: rare.requests.clone(), history_len: 2, ..Record::default() };
        let pending = Some(Pending::new(at(8), None));
        let state = ScopeState { pending, opt_out: Some(at(3)), ..choice.into() };
        record.state.scopes.insert(Scope::parse(scope).unwrap(), state);
        record.state.last_inbound = Some(at(4));
        record.state.suppression = Some((at(5), false));
        record.state.last_suppressed = Some(at(2));
        record.state.platform.apply(None, at(4), true);
        all.push(record);
    }
    let link = Link { user_id: "US.1349".into(), time: at(4), moved: true };
    all.push(Record { links: vec![link], ..rare.clone() });
    let erased = Some(Box::new(Erased { time: at(4), history_len: 2, chain: [4; 32] }));
    all.push(Record { erased, ..rare.clone() });
    let mut numbered = rare;
    numbered.state.platform.apply(number("11").as_ref(), at(6), true);
    all.push(numbered);
    all
}

#[test]
fn table_reads_of_a_record_what_everybody_else_does_however_it_is_damaged() {
    for record in some_records() {
        let bytes = encode_record(&record);
        assert_same_for_table(&bytes);
        for at in 0..bytes.len() {
            assert_same_for_table(&bytes[..at]);
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert_same_for_table(&damaged);
            }
            let twice = [&bytes[..at], &bytes[at.saturating_sub(9)..]].concat();
            assert_same_for_table(&twice);
        }
        assert_same_for_table(&[&bytes[..], &bytes[..]].concat());
    }
}

#[test]
fn records_of_most_pairs_are_read_for_a_table_without_their_requests() {
    let plain = some_records().into_iter().filter(|record| {
        let lean = decode_record_for_table(&encode_record(record)).unwrap();
        !record.requests.is_empty() && lean.requests.is_empty()
    });
    assert_eq!(plain.count(), 4);
}

proptest! {
    #[test]
    fn table_reads_of_any_bytes_what_everybody_else_does(
        bytes in proptest::collection::vec(any::<u8>(), 0..100)
    ) {
        assert_same_for_table(&bytes);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_record(&bytes);
        let _ = decode_log(&bytes);
        let _ = decode_history(&bytes, |_| None);
    }
}
