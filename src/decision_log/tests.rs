use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::output::Output;
use super::writer::MAX_LINE_BYTES;
use super::*;

fn decided(key: u64, nanos: u64) -> DecisionRecord<'static> {
    DecisionRecord {
        key: Key::from_halves((key, 7)),
        category: Category::parse("marketing.offers").unwrap(),
        form: Form::Template,
        reason: Reason::NoConsent,
        stricter: None,
        revision: 41,
        staleness: Duration::from_micros(2_000_300),
        now: Moment {
            boot: Duration::from_nanos(nanos),
            wall: Timestamp::from_millis(1_750_000_000_123).unwrap(),
        },
    }
}

fn line(decided: &DecisionRecord<'_>) -> String {
    let mut line = Vec::new();
    QueuedDecision::of(decided).write(&mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn a_line_says_what_was_decided() {
    assert_eq!(
        line(&decided(255, 0)),
        "{\"time\":\"2025-06-15T15:06:40.123Z\",\"pair\":\"00000000000000ff0000000000000007\",\
         \"category\":\"marketing.offers\",\"form\":\"TEMPLATE\",\"allowed\":false,\
         \"reason\":\"NO_CONSENT\",\"revision\":41,\"staleness\":2.000300}\n"
    );
    let longest = format!("authentication.{}", "a".repeat(MAX_TOPIC_CHARS));
    let mut other =
        DecisionRecord { revision: u64::MAX, reason: Reason::ReplyAfterOptOut, ..decided(1, 0) };
    for category in [longest.as_str(), "service"] {
        other.stricter = Some(Class::Marketing);
        other.category = Category::parse(category).unwrap();
        let read: serde_json::Value = serde_json::from_str(&line(&other)).unwrap();
        assert_eq!(
            (&read["category"], &read["category_used"]),
            (&category.into(), &"marketing".into())
        );
        assert!(line(&other).len() <= MAX_LINE_BYTES);
        assert_eq!(
            (read["allowed"].as_bool(), read["revision"].as_u64()),
            (Some(true), Some(u64::MAX))
        );
    }
}

#[test]
fn a_share_is_drawn_evenly_over_pairs_and_over_time() {
    for share in [0.01, 0.25, 0.5] {
        let highest = sample_threshold(share);
        // Many pairs at one time, one pair at many times, and both.
        for (pairs, times) in [(100_000, 1), (1, 100_000), (1_000, 100)] {
            let all = (0..pairs).flat_map(|pair| (0..times).map(move |time| (pair, time * 977)));
            let logged =
                all.filter(|(pair, time)| sample_hash(&decided(*pair, *time)) <= highest).count();
            let expected = 100_000.0 * share;
            let off = (f64::from(u32::try_from(logged).unwrap()) - expected).abs();
            let deviation = (expected * (1.0 - share)).sqrt();
            assert!(off < 6.0 * deviation, "{share} of {pairs} pairs, {times} times: {logged}");
        }
    }
    assert_eq!(sample_threshold(1.0), u64::MAX);
}

/// The content of all files of a folder, concatenated from the oldest on.
fn content(folder: &Path) -> (Vec<String>, String) {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names: BTreeSet<_> = names.map(|name| name.into_string().unwrap()).collect();
    let names: Vec<_> = names.into_iter().rev().collect();
    let content = names.iter().map(|name| fs::read_to_string(folder.join(name)).unwrap()).collect();
    (names, content)
}

/// The bytes of a [`short_line`].
const SHORT_LINE: u64 = 44;

/// The beginning of a decision, as a line of its own.
fn short_line(number: u32) -> String {
    format!("{{\"time\":\"2026-11-29T20:00:00.{number:03}Z\",\"pair\":\"\n")
}

fn short_lines(numbers: impl IntoIterator<Item = u32>) -> String {
    numbers.into_iter().map(short_line).collect()
}

#[test]
fn a_full_file_makes_room_for_another() {
    for (keep, kept) in [(2, &["log.2", "log.1", "log"][..]), (1, &["log.1", "log"]), (0, &["log"])]
    {
        let folder = tempfile::tempdir().unwrap();
        let target = LogTarget::File(folder.path().join("log"));
        let mut output = Output::new(target.clone(), 3 * SHORT_LINE, keep).unwrap();
        let mut expected = String::new();
        for number in 10..32 {
            let line = short_line(number);
            let (written, failed) = output.write(line.as_bytes());
            assert_eq!((written, failed.is_none()), (1, true));
            expected.push_str(&line);
            if number == 17 {
                // A restarted writer appends to the file.
                output = Output::new(target.clone(), 3 * SHORT_LINE, keep).unwrap();
            }
        }
        let (names, content) = content(folder.path());
        assert_eq!(names, kept);
        assert!(expected.ends_with(&content) && !content.is_empty(), "{content}");
        for name in names {
            assert!(fs::metadata(folder.path().join(name)).unwrap().len() <= 3 * SHORT_LINE);
        }
    }
}

#[test]
fn a_full_file_that_was_moved_away_moves_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut output = Output::new(LogTarget::File(path.clone()), 2 * SHORT_LINE, 2).unwrap();
    for number in 10..14 {
        assert_eq!(output.write(short_line(number).as_bytes()).0, 1);
    }
    fs::rename(&path, folder.path().join("moved")).unwrap();
    assert_eq!(output.write(short_line(14).as_bytes()).0, 1);
    let of = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let found = [of("log.1"), of("moved"), of("log")];
    assert_eq!(found, [short_lines([10, 11]), short_lines([12, 13]), short_lines([14])]);
    assert!(!folder.path().join("log.2").exists());
}

#[test]
fn what_cannot_be_written_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in/log");
    let missing = Output::new(LogTarget::File(path.clone()), 4 * SHORT_LINE, 1);
    assert!(missing.is_err(), "at once");
    fs::create_dir(folder.path().join("in")).unwrap();
    let mut output = Output::new(LogTarget::File(path.clone()), 4 * SHORT_LINE, 1).unwrap();
    assert_eq!(output.write(short_lines([1, 2]).as_bytes()).0, 2);
    // If the next file cannot be created, this one does not grow.
    fs::create_dir(folder.path().join("in/log.1")).unwrap();
    fs::write(folder.path().join("in/log.1/x"), "").unwrap();
    for _ in 0..3 {
        let (written, failed) = output.write(short_lines(3..7).as_bytes());
        assert_eq!((written, failed.is_some()), (0, true));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), short_lines([1, 2]));
    fs::remove_dir_all(folder.path().join("in/log.1")).unwrap();
    assert_eq!(output.write(short_lines(7..11).as_bytes()).0, 4);
    let (written, failed) =
        Output::new(LogTarget::File("/dev/full".into()), 10, 1).unwrap().write(b"1\n");
    assert_eq!((written, failed.map(|error| error.kind())), (0, Some(io::ErrorKind::StorageFull)));
}

#[test]
fn a_torn_file_is_still_its_own_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let whole = short_line(1);
    for (content, is_its_own) in [
        ("", true),
        (&whole[..3], true),
        (&format!("\n{whole}")[..], true),
        (&whole, true),
        ("{\"user\"", false),
        ("time\n", false),
        ("{\"time\":\"2026-11-29T20:00:00.000Z\",\"level\":\"INFO\"}\n", false),
    ] {
        fs::write(&path, content).unwrap();
        let opened = Output::new(LogTarget::File(path.clone()), 4 * SHORT_LINE, 1);
        assert_eq!(opened.is_ok(), is_its_own, "{content:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn a_decision_finds_the_queue_full_and_is_counted() {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let settings = DecisionLogSettings {
        target: LogTarget::File(path.clone()),
        sample: 1.0,
        filter: DecisionFilter::Denials,
        max_size: 1 << 30,
        keep: 1,
    };
    let (log, writer) = open(settings, Arc::clone(&metrics)).unwrap();
    let queue = u64::try_from(QUEUE_ENTRIES).unwrap();
    for number in 0..queue + 10 {
        log.log(&decided(number, number));
        log.log(&DecisionRecord { reason: Reason::OptedIn, ..decided(number, number) });
    }
    assert_eq!(metrics.decisions_dropped_by_queue(), 10, "what allows takes no room");
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    writer.run(&stop);
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(
        written.lines().count(),
        QUEUE_ENTRIES,
        "what was decided before is written at the end"
    );
    let last = written.lines().last().unwrap();
    assert!(last.contains(&format!("{:016x}", queue - 1)), "{last}");
}
