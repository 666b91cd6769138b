//! A ledger's file that was damaged, cut, or put back from a backup: it is told, and nothing that
//! was acknowledged is forgotten in silence.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use consentd::recorder::Refusal;
use consentd_core::event::Event;
use consentd_core::submission::Submission;
use consentd_ledger::{Depth, OpenError, OpenedLedger, UnreadableRecord};
use redb::ReadableTable as _;
use tempfile::tempdir;

use super::*;

/// One table of a ledger's file, as redb hands it out.
type HistoryTable<'a> = redb::Table<'a, u64, &'static [u8]>;

/// How many pairs the ledger of these tests has, each with one opt-out.
const PAIRS: u64 = 40;

/// The header of a file of redb's: after it come its pages.
const HEADER: usize = 320;

/// How far apart the bits are that are flipped behind the header.
const STRIDE: usize = 331;

fn serve(path: &Path) -> Result<OpenedLedger, OpenError> {
    Embedded::open_to_serve(path, FOREVER, CACHE)
}

/// What `serve` opened, with what writes it running.
fn run(opened: OpenedLedger) -> Open {
    let appender = opened.appender;
    let writer = Writer::Thread(std::thread::spawn(move || appender.run()));
    Open { ledger: Ledger::Embedded(opened.ledger), writer }
}

/// Appends opt-outs to the ledger in this file, one after the other.
async fn append_all(path: &Path, numbers: std::ops::Range<u64>) {
    let open = run(serve(path).unwrap());
    for number in numbers {
        append(&open.ledger, key(number), opt_out("letter")).await;
    }
    open.close().await;
}

fn mark_of(path: &Path) -> PathBuf {
    path.with_file_name("ledger.redb.acknowledged")
}

/// Whether an error is one of those that a damaged file may be refused with; each names the file.
fn tells_of_damage(error: &OpenError, path: &Path) -> bool {
    let said = error.to_string();
    said.contains(path.to_str().unwrap())
        && match error {
            OpenError::Damaged { .. } => said.contains("is damaged") && said.contains("backup"),
            OpenError::NotALedger { .. } => said.contains("is not a ledger"),
            OpenError::Missing { ends, acknowledged, .. } => ends < acknowledged,
            _ => false,
        }
}

#[tokio::test]
async fn open_any_flipped_bit_is_told_or_harms_nothing() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..PAIRS + 1).await;
    let whole = fs::read(&path).unwrap();
    let places = (0..HEADER).chain((HEADER..whole.len()).step_by(STRIDE));
    let (mut told, mut harmless) = (0, 0);
    for (number, place) in places.enumerate() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (number % 8);
        fs::write(&path, &bytes).unwrap();
        match serve(&path) {
            Err(error) => {
                assert!(tells_of_damage(&error, &path), "byte {place}: {error:?}");
                told += 1;
            }
            Ok(opened) => {
                let ledger = Ledger::Embedded(opened.ledger);
                let report = ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
                assert_eq!((report.pairs, report.found), (PAIRS, 0), "byte {place}");
                harmless += 1;
            }
        }
    }
    assert!(told > 50 && harmless > 50, "{told} told, {harmless} harmless");
}

#[tokio::test]
async fn open_a_ledger_that_ends_before_its_mark_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..3).await;
    let backup = fs::read(&path).unwrap();
    append_all(&path, 3..6).await;
    let newest = fs::read(&path).unwrap();
    fs::write(&path, &backup).unwrap();
    for _ in 0..2 {
        let Err(error) = serve(&path) else { panic!("an older copy was served") };
        let OpenError::Missing { ends: 2, acknowledged: 5, .. } = &error else {
            panic!("{error:?}")
        };
        let said = error.to_string();
        for part in ["ledger.redb.acknowledged", "revision 2", "revision 5", "remove"] {
            assert!(said.contains(part), "{said}");
        }
    }
    fs::write(&path, newest).unwrap();
    run(serve(&path).unwrap()).close().await;
    // As it says: without the mark, the older one is taken for what it is.
    fs::write(&path, backup).unwrap();
    fs::remove_file(mark_of(&path)).unwrap();
    append_all(&path, 3..4).await;
    assert!(mark_of(&path).exists());
    // Another ledger is not this one, however far it goes.
    let other = tempdir().unwrap();
    let elsewhere = other.path().join("ledger.redb");
    append_all(&elsewhere, 1..9).await;
    fs::copy(&elsewhere, &path).unwrap();
    let Err(error) = serve(&path) else { panic!("another ledger was served") };
    assert!(matches!(error, OpenError::Another { .. }), "{error:?}");
}

#[test]
fn open_a_new_ledger_has_no_mark_of_the_one_before() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(append_all(&path, 1..3));
    assert!(!serve(&path).unwrap().is_new);
    let mode = fs::metadata(mark_of(&path)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::remove_file(&path).unwrap();
    assert_eq!(consentd_ledger::leftover_files(&path).unwrap(), [mark_of(&path)]);
    assert!(serve(&path).unwrap().is_new);
    assert!(!mark_of(&path).exists());
    assert!(consentd_ledger::leftover_files(&path).unwrap().is_empty());
}

#[test]
fn open_a_symbolic_link_is_not_followed() {
    let folder = tempdir().unwrap();
    let (path, link) = (folder.path().join("ledger.redb"), folder.path().join("link"));
    drop(serve(&path).unwrap());
    symlink("ledger.redb", &link).unwrap();
    let Err(error) = serve(&link) else { panic!("a link was followed") };
    let said = error.to_string();
    assert!(said.contains("symbolic link") && said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
fn open_a_file_that_others_may_write_is_taken_from_them() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    assert_eq!(serve(&path).unwrap().mode_before, None);
    for (mode, then) in [(0o666, 0o644), (0o620, 0o600)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(serve(&path).unwrap().mode_before, Some(mode));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, then);
    }
}

#[tokio::test]
async fn append_to_a_file_that_is_gone_fails_and_saves_what_it_held() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let rescued = folder.path().join("ledger.redb.rescued");
    let open = run(serve(&path).unwrap());
    append(&open.ledger, key(1), opt_out("letter")).await;
    fs::remove_file(&path).unwrap();
    let change = change(key(2), &nothing(), [opt_out("letter")]);
    let appended = open.ledger.append(vec![change]).await;
    assert!(matches!(appended, Err(LedgerError::Storage(_))), "{appended:?}");
    let Writer::Thread(writer) = open.writer else { panic!("it is a file") };
    let said = writer.join().unwrap().unwrap_err().to_string();
    for part in [&path, &rescued].map(|path| path.to_str().unwrap()) {
        assert!(said.contains(part), "{said}");
    }
    // As it says.
    fs::rename(&rescued, &path).unwrap();
    let open = run(serve(&path).unwrap());
    let read = open.ledger.read(vec![key(1)]).await.unwrap();
    assert_eq!(read.pairs[0].as_ref().unwrap().version.revision, 1);
    open.close().await;
}

#[tokio::test]
async fn file_that_is_cut_or_overwritten_in_place_ends_the_ledger() {
    // How long it is made; the last is as after a longer file was copied over it.
    let lengths: [fn(u64) -> u64; 3] = [|_| 0, |length| length / 2, |length| length + 4_096];
    for length_of in lengths {
        for asks in [false, true] {
            let folder = tempdir().unwrap();
            let path = folder.path().join("ledger.redb");
            let open = run(serve(&path).unwrap());
            append(&open.ledger, key(1), opt_out("letter")).await;
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(length_of(file.metadata().unwrap().len())).unwrap();
            if asks {
                let change = change(key(2), &nothing(), [opt_out("letter")]);
                let appended = open.ledger.append(vec![change]).await;
                assert!(appended.is_err(), "it would not survive a restart: {appended:?}");
            }
            // Where nobody asks, it ends by itself.
            let Writer::Thread(writer) = open.writer else { panic!("it is a file") };
            let said = writer.join().unwrap().unwrap_err().to_string();
            for part in [path.to_str().unwrap(), "truncated or overwrote", "newest backup"] {
                assert!(said.contains(part), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn compact_removes_what_it_left_and_no_file_of_others() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..PAIRS).await;
    let beside = folder.path().join("ledger.redb.compacting");
    let compact = || Embedded::compact(&path, FOREVER, CACHE);
    for left in [vec![], vec![0; 9_000], fs::read(&path).unwrap()] {
        fs::write(&beside, left).unwrap();
        compact().unwrap();
        assert!(!beside.exists());
    }
    fs::write(&beside, "notes of somebody").unwrap();
    let said = compact().unwrap_err().to_string();
    assert!(said.contains("ledger.redb.compacting") && said.contains("move it away"), "{said}");
    assert_eq!(fs::read(&beside).unwrap(), b"notes of somebody");
    // Another ledger, which somebody gave this name.
    fs::remove_file(&beside).unwrap();
    let elsewhere = folder.path().join("elsewhere.redb");
    append_all(&elsewhere, 1..PAIRS).await;
    fs::rename(&elsewhere, &beside).unwrap();
    let said = compact().unwrap_err().to_string();
    assert!(said.contains("another ledger") && said.contains("move it away"), "{said}");
    assert!(beside.exists());
    fs::remove_file(&beside).unwrap();
    // A ledger that another process has open.
    let other = run(serve(&beside).unwrap());
    let said = compact().unwrap_err().to_string();
    assert!(said.contains("open in another process"), "{said}");
    assert!(beside.exists());
    other.close().await;
}

#[tokio::test]
async fn compact_removes_no_database_of_another_program() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..PAIRS).await;
    let beside = folder.path().join("ledger.redb.compacting");
    let compact = || Embedded::compact(&path, FOREVER, CACHE);
    // Without a table of a ledger's, or with one that only has its name.
    let others: [fn(&redb::WriteTransaction); 3] = [
        |writing| {
            let table = redb::TableDefinition::<u64, u64>::new("numbers");
            writing.open_table(table).unwrap().insert(1, 2).unwrap();
        },
        |writing| {
            let table = redb::MultimapTableDefinition::<u64, u64>::new("numbers");
            writing.open_multimap_table(table).unwrap().insert(1, 2).unwrap();
        },
        |writing| {
            let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
            writing.open_table(table).unwrap().insert("name", &b"value"[..]).unwrap();
        },
    ];
    for create in others {
        let database = redb::Database::create(&beside).unwrap();
        let writing = database.begin_write().unwrap();
        create(&writing);
        writing.commit().unwrap();
        drop(database);
        let said = compact().unwrap_err().to_string();
        assert!(said.contains("another program") && said.contains("move it away"), "{said}");
        assert!(beside.exists());
        fs::remove_file(&beside).unwrap();
    }
    // A compaction that was interrupted before its only commit.
    drop(redb::Database::create(&beside).unwrap());
    compact().unwrap();
    assert!(!beside.exists());
}

#[test]
fn traces_are_found_in_a_folder_of_many_files() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    for name in ["ledger.redb.2026-11-01", "ledger.redb.rescued"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    for number in 0..30_000 {
        fs::File::create(folder.path().join(format!("other-{number}"))).unwrap();
    }
    let found = consentd_ledger::leftover_files(&path).unwrap();
    let found: Vec<_> = found.iter().map(|found| found.file_name().unwrap()).collect();
    assert_eq!(found, ["ledger.redb.2026-11-01", "ledger.redb.rescued"]);
}

#[tokio::test]
async fn start_beside_a_mark_that_is_none_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..3).await;
    let mark = mark_of(&path);
    for other in ["notes of somebody", "ledger"] {
        fs::write(&mark, other).unwrap();
        let Err(error) = serve(&path) else { panic!("it cannot tell whether all is there") };
        let said = error.to_string();
        assert!(matches!(error, OpenError::InvalidMark { .. }), "{said}");
        assert!(said.contains(mark.to_str().unwrap()) && said.contains("move it away"), "{said}");
        assert_eq!(fs::read_to_string(&mark).unwrap(), other);
    }
    fs::remove_file(&mark).unwrap();
    append_all(&path, 3..4).await;
    assert!(fs::read_to_string(&mark).unwrap().starts_with("ledger "), "it is made anew");
}

#[tokio::test]
async fn append_to_a_file_that_another_took_the_place_of_fails() {
    for moved in [false, true] {
        let folder = tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        append_all(&path, 1..2).await;
        fs::copy(&path, folder.path().join("backup")).unwrap();
        let open = run(serve(&path).unwrap());
        append(&open.ledger, key(2), opt_out("letter")).await;
        if moved {
            fs::rename(&path, folder.path().join("moved")).unwrap();
        } else {
            fs::rename(folder.path().join("backup"), &path).unwrap();
        }
        // Nobody asks: it ends by itself.
        let Writer::Thread(writer) = open.writer else { panic!("it is a file") };
        let said = writer.join().unwrap().unwrap_err().to_string();
        let rescued = folder.path().join("ledger.redb.rescued");
        assert_eq!(rescued.exists(), !moved, "what has a path left is saved already: {said}");
        let remedy = if moved { "move the file back" } else { "rename that" };
        assert!(said.contains(remedy), "{said}");
        let back = if moved { folder.path().join("moved") } else { rescued };
        fs::rename(back, &path).unwrap();
        let open = run(serve(&path).unwrap());
        assert_eq!(open.ledger.read_after(0).await.unwrap().end.revision, 2);
        open.close().await;
    }
}

#[tokio::test]
async fn space_of_a_file_that_was_emptied_says_that_it_should_be_compacted() {
    const JUNK: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("junk");
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    append_all(&path, 1..2).await;
    let open = run(serve(&path).unwrap());
    let Ledger::Embedded(ledger) = &open.ledger else { panic!("it is a file") };
    let small = ledger.disk_usage().await.unwrap().unwrap();
    assert!(!small.is_worth_compacting() && small.used_bytes > 0, "{small:?}");
    open.close().await;
    // Somebody needed much, and needs it no more; what came behind it keeps the file long.
    let database = redb::Database::create(&path).unwrap();
    let edit = |edit: &dyn Fn(&mut HistoryTable)| {
        let transaction = database.begin_write().unwrap();
        edit(&mut transaction.open_table(JUNK).unwrap());
        transaction.commit().unwrap();
    };
    let piece = vec![7; 1 << 20];
    edit(&|junk| (0..40).for_each(|number| drop(junk.insert(number, &piece[..]).unwrap())));
    edit(&|junk| drop(junk.insert(99, &piece[..]).unwrap()));
    edit(&|junk| (0..40).for_each(|number| drop(junk.remove(number).unwrap())));
    drop(database);
    let open = run(serve(&path).unwrap());
    let Ledger::Embedded(ledger) = &open.ledger else { panic!("it is a file") };
    let large = ledger.disk_usage().await.unwrap().unwrap();
    assert!(large.is_worth_compacting(), "{large:?}");
    assert_eq!(large.file_bytes, fs::metadata(&path).unwrap().len());
    open.close().await;
    let compacted = Embedded::compact(&path, FOREVER, CACHE).unwrap();
    assert!(compacted.bytes_after < small.file_bytes * 2, "{compacted:?}");
}

#[tokio::test]
async fn recorder_refuses_what_it_cannot_read_and_records_other_pairs() {
    const RECORDS: redb::TableDefinition<&[u8; 16], &[u8]> = redb::TableDefinition::new("pairs");
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let event = |user: &str| {
        let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: None, what: opt_out("letter") };
        Submission::new(event, String::new())
    };
    let record = async |submission| {
        let open = run(serve(&path).unwrap());
        let result = super::linked::recorder(&open.ledger).record(&[submission]).await.remove(0);
        open.close().await;
        result
    };
    record(event("15550123456")).await.unwrap();
    let edit = |bytes: &[u8]| {
        let database = redb::Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut records = transaction.open_table(RECORDS).unwrap();
            let known = records
                .first()
                .unwrap()
                .map(|(key, value)| (*key.value(), value.value()[..16].to_vec()));
            let (key, version) = known.unwrap();
            records.insert(&key, [&version, bytes].concat().as_slice()).unwrap();
        }
        transaction.commit().unwrap();
    };
    let newer = consentd_core::record::FORMAT + 1;
    // Field 1 is the format, and nobody knows field 31 yet.
    let later = [0x08, u8::try_from(newer).unwrap(), 0xfa, 0x01, 0x01, b'n'];
    for (bytes, why) in [
        (&[0xff; 8][..], UnreadableRecord::Damaged),
        (&later, UnreadableRecord::Newer { format: newer }),
    ] {
        edit(bytes);
        let refused = record(event("15550123456")).await;
        assert!(
            matches!(&refused, Err(Refusal::Unreadable(found)) if *found == why),
            "{refused:?}"
        );
    }
    record(event("15550123457")).await.unwrap();
}

/// A `yes` reads the pair's history only if an opt-in is pending.
#[tokio::test]
async fn a_confirmation_of_nothing_needs_no_history() {
    const HISTORY: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("history");
    let folder = tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let record = async |user: &str, what: What| {
        let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: None, what };
        let request_id =
            format!("{user} {}", i32::from(matches!(event.what, What::Inbound { .. })));
        let open = run(serve(&path).unwrap());
        let submission = Submission::new(event, request_id);
        let result = super::linked::recorder(&open.ledger).record(&[submission]).await.remove(0);
        open.close().await;
        result
    };
    let mut asked = opt_in("Yes to WhatsApp from Acme");
    if let What::OptIn { expire, pending, .. } = &mut asked {
        (*expire, *pending) = (None, true);
    }
    for (user, what) in [("US.none", opt_out("letter")), ("US.pending", asked)] {
        record(user, what).await.unwrap();
    }
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut history = transaction.open_table(HISTORY).unwrap();
        let rows = history.iter().unwrap().map(|row| {
            let (number, row) = row.unwrap();
            (number.value(), row.value().to_vec())
        });
        let rows: Vec<(u64, Vec<u8>)> = rows.collect();
        assert_eq!(rows.len(), 2);
        for (number, mut row) in rows {
            // The end of a row is the end of its entry.
            let end = row.len() - 6;
            row[end..].fill(0xff);
            history.insert(number, row.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    drop(database);
    let yes = || What::Inbound { message_id: "wamid.1".to_owned(), text: "yes".to_owned() };
    assert!(record("US.none", yes()).await.unwrap().applied);
    let refused = record("US.pending", yes()).await;
    assert!(matches!(&refused, Err(Refusal::Ledger(_))), "{refused:?}");
}
