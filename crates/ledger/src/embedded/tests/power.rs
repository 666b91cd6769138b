//! Acknowledged changes survive power losses at random moments.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::disk::{Image, Rng};
use super::*;
use crate::{LogHead, MAX_PAGE, Tail};
use consentd_core::record::ChainHead;

const SEED: u64 = 0xd15c;

/// The number of images that are checked.
const IMAGES: usize = 500;

/// How many times a run continues from a previous image before it starts with an empty disk.
const GENERATIONS: usize = 8;

/// The number of concurrent tasks, and of changes in each.
const WRITERS: usize = 6;
const CHANGES: usize = 12;

/// An acknowledged change.
#[derive(Clone)]
struct Acknowledged {
    revision: Revision,
    change: Change,
}

type Known = Arc<Mutex<Vec<Acknowledged>>>;

/// Appends random changes to keys that other tasks change too, and records what is acknowledged.
async fn write(
    ledger: Embedded,
    known: Known,
    mut rng: Rng,
    writer: u8,
) -> Result<(), LedgerError> {
    for number in 0..CHANGES {
        let mut keys = vec![key(rng.pick(&[writer, writer, 100, 101]))];
        if rng.percent(20) {
            keys.push(key(50 + writer));
        }
        let name = format!("{writer}-{number}-{}", rng.next());
        let what = rng.pick(&[opt_in(&name), opt_out(&name), inbound(&name)]);
        while !keys.is_empty() {
            let mut changes = Vec::new();
            for key in &keys {
                let mut read = ledger.read(vec![*key]).await?;
                let stored = read.pairs.remove(0).unwrap();
                // Later than all previous events, so that each change modifies the record.
                let time = stored.record.state.latest().map_or(1, |time| time.as_millis() + 1);
                changes.push(change(*key, &stored, what.clone(), at(time)));
            }
            let appended = ledger.append(changes.clone()).await?;
            keys.clear();
            for (change, appended) in changes.into_iter().zip(appended) {
                match appended {
                    Appended::Committed(revision) => {
                        known.lock().unwrap().push(Acknowledged { revision, change });
                    }
                    Appended::Conflict(_) => keys.push(change.key),
                    Appended::Failed(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// Runs several such tasks, and returns the outcome of each.
async fn write_at_once(
    ledger: &Embedded,
    known: &Known,
    rng: &mut Rng,
) -> Vec<Result<(), LedgerError>> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let writer = u8::try_from(writer).unwrap();
        writers.spawn(write(ledger.clone(), Arc::clone(known), Rng(rng.next()), writer));
    }
    writers.join_all().await
}

/// Opens a ledger on `disk` and writes to it from several tasks. Returns images of what a power loss
/// would have left at random moments.
fn write_and_fail(runtime: &Runtime, disk: &Disk, known: &Known, rng: &mut Rng) -> Vec<Image> {
    let counted = Arc::clone(known);
    let count = Arc::new(move || counted.lock().unwrap().len());
    disk.probe(Rng(rng.next()), 1, count);
    let running = Running::on(disk.clone()).unwrap();
    runtime.block_on(async {
        for ended in write_at_once(&running.ledger, known, rng).await {
            ended.unwrap();
        }
        running.close().await;
    });
    disk.images()
}

/// Opens an image, and checks that everything acknowledged before the power loss is there.
async fn check(bytes: Vec<u8>, known: &[Acknowledged]) -> Result<(), String> {
    let running = Running::on(Disk::new(bytes)).map_err(|error| error.to_string())?;
    let outcome = check_ledger(&running.ledger, known).await;
    running.close().await;
    outcome
}

async fn check_ledger(ledger: &Embedded, known: &[Acknowledged]) -> Result<(), String> {
    let log = check_log(ledger).await?;
    let known_keys = known.iter().map(|known| known.change.key);
    let keys: HashSet<Key> = log.values().map(|(key, _)| *key).chain(known_keys).collect();
    let mut histories = HashMap::new();
    for key in keys {
        let stored = ledger.read(vec![key]).await.map_err(|error| error.to_string())?;
        let stored = stored.pairs[0].clone().map_err(|error| error.to_string())?;
        let last = log.iter().filter(|(_, (of, _))| *of == key).max_by_key(|(at, _)| **at);
        let (revision, (_, record)) = last.ok_or("a pair is not in the log")?;
        if (stored.version.revision, &stored.record) != (*revision, record) {
            return Err(format!("the record at {revision} is not the log's: {stored:?}"));
        }
        let history = ledger.history(key).await.map_err(|error| error.to_string())?;
        if !history.intact {
            return Err(format!("the history up to {revision} is not whole"));
        }
        histories.insert(key, history.entries);
    }
    for Acknowledged { revision, change } in known {
        let logged = log.get(revision).ok_or(format!("{revision} was lost"))?;
        if *logged != (change.key, record_after(change)) {
            return Err(format!("{revision} was acknowledged as {change:?} and is {logged:?}"));
        }
        let history = histories.get(&change.key).ok_or("a history was lost")?;
        let update = change.update.as_ref().unwrap();
        let number = usize::try_from(update.record.history_len).unwrap();
        let entry = history.get(number).ok_or(format!("entry {number} was lost"))?;
        if (entry.0.revision, &entry.1) != (*revision, &update.history[0]) {
            return Err(format!("entry {number} at {revision} is {entry:?}"));
        }
    }
    Ok(())
}

/// Reads the whole log and recomputes its hashes. Returns the change of each revision.
async fn check_log(ledger: &Embedded) -> Result<HashMap<Revision, (Key, Record)>, String> {
    let mut log = HashMap::new();
    let mut head = LogHead::default();
    let mut last = 0;
    loop {
        let page = ledger.read_after(last).await.map_err(|error| error.to_string())?;
        let Tail::Entries(entries) = page.tail else { return Err("the log has a gap".into()) };
        let whole = entries.len() < MAX_PAGE;
        for entry in entries {
            let body = entry.body.map_err(|error| error.to_string())?;
            let record = body.record.clone().map_err(|error| error.to_string())?;
            let bytes = codec::encode_log(&body, &codec::encode_record(&record));
            let mut hashed = head.to_vec();
            hashed.extend_from_slice(&entry.revision.to_be_bytes());
            hashed.extend_from_slice(&bytes);
            let next: ChainHead = sha256(&hashed);
            if (entry.revision, entry.previous, &entry.head[..]) != (last + 1, head, &next[..20]) {
                return Err(format!("entry {} does not continue {last}", entry.revision));
            }
            (last, head) = (entry.revision, entry.head);
            log.insert(last, (body.key, record));
        }
        if whole {
            let end = (page.end.revision, page.end.head);
            return if end == (last, head) { Ok(log) } else { Err("the log ends early".into()) };
        }
    }
}

#[test]
fn a_power_loss_loses_nothing_that_was_acknowledged() {
    let runtime = Runtime::new().unwrap();
    let mut rng = Rng(SEED);
    let (mut images, mut chain) = (0, 0);
    while images < IMAGES {
        chain += 1;
        let disk = Disk::new(Vec::new());
        // A file that is still being created has acknowledged nothing.
        drop(Database::builder().create_with_backend(disk.clone()).unwrap());
        let mut bytes = disk.bytes();
        let mut known = Known::default();
        for generation in 0..GENERATIONS {
            let disk = Disk::new(bytes);
            let mut left = write_and_fail(&runtime, &disk, &known, &mut rng);
            let all = known.lock().unwrap().clone();
            for (number, image) in left.iter().enumerate() {
                let before = &all[..image.known];
                if let Err(fault) = runtime.block_on(check(image.bytes.clone(), before)) {
                    panic!("seed {SEED:#x}, {chain}.{generation}, image {number}: {fault}");
                }
            }
            images += left.len();
            // The next run continues from an image, or else from the complete disk.
            let next = if left.is_empty() { None } else { Some(rng.below(left.len())) };
            let next = next.map(|next| left.swap_remove(next));
            let next = next.unwrap_or(Image { known: all.len(), bytes: disk.bytes() });
            known = Arc::new(Mutex::new(all[..next.known].to_vec()));
            bytes = next.bytes;
        }
    }
}

#[test]
fn a_disk_that_fails_ends_the_writer_and_loses_nothing_that_was_acknowledged() {
    let runtime = Runtime::new().unwrap();
    let mut rng = Rng(SEED);
    for round in 0..60 {
        let disk = Disk::new(Vec::new());
        let running = Running::on(disk.clone()).unwrap();
        let known = Known::default();
        disk.fail_after(rng.below(200));
        runtime.block_on(async {
            let ended = write_at_once(&running.ledger, &known, &mut rng).await;
            running.ledger.close().await;
            let written = running.writer.join().unwrap();
            if ended.iter().all(Result::is_ok) {
                return; // It would have failed later.
            }
            assert!(matches!(written, Err(LedgerError::Storage(_))), "{written:?}");
            let told = |ended: &Result<(), LedgerError>| {
                matches!(ended, Ok(()) | Err(LedgerError::Storage(_) | LedgerError::Closed))
            };
            assert!(ended.iter().all(told), "{ended:?}");
        });
        let known = known.lock().unwrap().clone();
        for bytes in [disk.after_power_loss(&mut rng), disk.bytes()] {
            if let Err(fault) = runtime.block_on(check(bytes, &known)) {
                panic!("seed {SEED:#x}, round {round}: {fault}");
            }
        }
    }
}

#[test]
fn a_disk_that_lies_is_noticed_by_this_test() {
    let runtime = Runtime::new().unwrap();
    let mut rng = Rng(SEED);
    let (mut images, mut noticed) = (0, 0);
    while images < IMAGES / 10 {
        let disk = Disk::new(Vec::new());
        drop(Database::builder().create_with_backend(disk.clone()).unwrap());
        disk.lie();
        let known = Known::default();
        let left = write_and_fail(&runtime, &disk, &known, &mut rng);
        let all = known.lock().unwrap().clone();
        images += left.len();
        for image in left {
            let before = &all[..image.known];
            // On such a disk redb may find its pages in a state that it considers impossible.
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(check(image.bytes, before))
            }));
            noticed += usize::from(!matches!(outcome, Ok(Ok(()))));
        }
    }
    assert!(noticed > 0, "of {images} images of a disk that never synced, none had lost anything");
}
