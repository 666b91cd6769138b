//! Ledgers of several partitions, in one Redis and in a Cluster.

use std::collections::BTreeSet;

use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_ledger::{
    CopyError, CreateError, Cursor, Depth, NewLedger, NewRedis, Plan, Progress, RedisRejection,
    RepairMode, copy, create, plan,
};

use super::server::Server;
use super::*;

/// How many partitions most of these ledgers have, each business in two of them.
pub(super) fn eight() -> Shape {
    Shape { layout: Layout::new(8, 2).unwrap(), buckets: 4 }
}

/// A Redis, and a Cluster of one node, without a ledger.
pub(super) fn servers(folder: &TempDir) -> [Server; 2] {
    let place = |name: &str| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).unwrap();
        place
    };
    [Server::start(&place("single"), &[]), Server::start_cluster(&place("cluster"))]
}

/// The keys of some people at some businesses, as ledgers derive them.
pub(super) async fn keys(ledger: &Ledger, businesses: u32, people: u32) -> Vec<Key> {
    let secret: KeySecret = ledger.identity().await.unwrap().secret.clone();
    let all =
        (0..businesses).flat_map(|business| (0..people).map(move |person| (business, person)));
    all.map(|(business, person)| {
        let (business, person) = (format!("business-{business}"), format!("1555012{person:04}"));
        secret.key(&UserId::parse(&person).unwrap(), BusinessId::parse(&business).unwrap())
    })
    .collect()
}

/// Appends an opt-out to each of these pairs, in one call.
pub(super) async fn append_all(ledger: &Ledger, keys: &[Key]) {
    let read = ledger.read(keys.to_vec()).await.unwrap();
    let changes = keys.iter().zip(&read.pairs);
    let changes =
        changes.map(|(key, stored)| change(*key, stored.as_ref().unwrap(), [opt_out("")]));
    let receipts = ledger.append_with_receipts(changes.collect()).await.unwrap();
    let layout = ledger.layout().await.unwrap();
    for (key, receipt) in keys.iter().zip(receipts) {
        assert!(matches!(receipt.outcome, Appended::Committed(_)), "{receipt:?}");
        assert_eq!(receipt.partition, layout.partition_of(*key));
    }
}

#[tokio::test]
async fn pairs_are_in_the_partitions_of_their_businesses_and_read_in_the_order_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        let ledger = &open.ledger;
        let keys = keys(ledger, 6, 20).await;
        append_all(ledger, &keys).await;
        let read = ledger.read(keys.clone()).await.unwrap();
        assert!(read.pairs.iter().all(|pair| pair.as_ref().unwrap().record.history_len == 1));
        // Each partition has the pairs of its businesses, and revisions of its own.
        let layout = ledger.layout().await.unwrap();
        let mut found = 0;
        for partition in ledger.partitions().await.unwrap() {
            let number = partition.number();
            let own = keys.iter().filter(|key| layout.partition_of(**key) == number).count();
            let end = partition.read_after(u64::MAX).await.unwrap().end;
            assert_eq!(end.revision, u64::try_from(own).unwrap());
            for bucket in 0..partition.identity().await.unwrap().buckets {
                found += partition.bucket(bucket).await.unwrap().pairs.len();
            }
        }
        assert_eq!(found, keys.len());
        let partitions: BTreeSet<_> = keys.iter().map(|key| layout.partition_of(*key)).collect();
        assert!(partitions.len() > 4, "{partitions:?}");
        // All that was recorded is listed once.
        let (mut next, mut listed) = (Some(Cursor::default()), Vec::new());
        while let Some(cursor) = next {
            let page = ledger.events_after(cursor).await.unwrap();
            listed.extend(page.entries.into_iter().map(|(_, entry)| entry.user_id));
            next = page.next;
        }
        assert_eq!(listed.len(), keys.len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>().len(), keys.len());
        let history = ledger.history(keys[7]).await.unwrap();
        assert_eq!((history.entries.len(), history.intact), (1, true));
        // A conflict in one partition leaves the others' changes alone.
        let stale = change(keys[0], &nothing(), [inbound("late")]);
        let fresh = ledger.read(vec![keys[25]]).await.unwrap().pairs.remove(0).unwrap();
        let fresh = change(keys[25], &fresh, [inbound("in time")]);
        let outcomes = ledger.append(vec![stale, fresh]).await.unwrap();
        assert!(matches!(outcomes[0], Appended::Conflict(_)));
        assert!(matches!(outcomes[1], Appended::Committed(_)));
        let report = ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
        assert_eq!((report.found, report.pairs), (0, 120));
        open.close().await;
    }
}

#[tokio::test]
async fn creating_goes_on_where_it_was_cut_and_never_over_what_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        let hashes = 2 + 2 * 4;
        let keys = 8 * (hashes + 3);
        let none = Plan { keys, present: 0 };
        assert_eq!(plan(server.target(), eight()).await.unwrap(), none);
        create(server.target(), eight()).await.unwrap();
        let again = create(server.target(), eight()).await;
        assert!(matches!(again, Err(CreateError::Exists)), "{again:?}");
        // As if the run had been cut before the first partition, which is the last to be made.
        let mut client = server.client().await;
        let wipe = |meta: &'static str| redis::cmd("DEL").arg(meta).take();
        let () = wipe("{consent:0}:meta").query_async(&mut client).await.unwrap();
        let mut metas = redis::cmd("KEYS");
        let metas = metas.arg("{consent:*:meta").query_async::<Vec<String>>(&mut client).await;
        for meta in metas.unwrap() {
            let mut unmark = redis::cmd("HDEL");
            let marks = unmark.arg(meta).arg("complete").query_async::<i64>(&mut client).await;
            assert_eq!(marks.unwrap(), 1, "it was marked as complete");
        }
        let left = plan(server.target(), eight()).await.unwrap();
        assert_eq!(left, Plan { keys, present: keys - 1 });
        // Another layout is not what the run began.
        let other = Shape { layout: Layout::new(8, 4).unwrap(), buckets: 4 };
        assert!(matches!(plan(server.target(), other).await, Err(CreateError::Exists)));
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        let mut secrets = BTreeSet::new();
        for partition in open.ledger.partitions().await.unwrap() {
            let identity = partition.identity().await.unwrap();
            secrets.insert(identity.secret.digest(b""));
            assert_eq!(identity.layout, eight().layout);
        }
        assert_eq!(secrets.len(), 1, "one secret in all partitions");
        // Something was recorded in another partition: the first one is not made anew.
        let layout = eight().layout;
        let keys = self::keys(&open.ledger, 8, 4).await;
        let other = keys.into_iter().find(|key| layout.partition_of(*key) > 0).unwrap();
        append_all(&open.ledger, &[other]).await;
        open.close().await;
        let () = wipe("{consent:0}:meta").query_async(&mut client).await.unwrap();
        let over = create(server.target(), eight()).await;
        assert!(matches!(over, Err(CreateError::LostFirst { .. })), "{over:?}");
    }
}

#[tokio::test]
async fn logs_of_all_partitions_together_are_as_long_as_the_retention_says() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let retention = Retention { log_entries: 32, ..FOREVER };
        let options = Options { retention: Some(retention), ..Options::default() };
        let open = open_redis(&server, options);
        let Ledger::Redis(ledger) = &open.ledger else { unreachable!() };
        for _ in 0..4 {
            append_all(&open.ledger, &keys(&open.ledger, 20, 6).await).await;
        }
        for partition in ledger.status().await.unwrap() {
            let (page, status) = partition.unwrap();
            // One more is kept, which a page's first entry is compared with.
            assert_eq!(status.log_entries, page.end.revision.min(32 / 8 + 1));
        }
        open.close().await;
    }
}

#[tokio::test]
async fn partitions_share_their_connections() {
    let folder = tempfile::tempdir().unwrap();
    let many = Shape { layout: Layout::new(64, 4).unwrap(), buckets: 1 };
    for server in servers(&folder) {
        create(server.target(), many).await.unwrap();
        let open = open_redis(&server, Options::default());
        let ledger = &open.ledger;
        let keys = keys(ledger, 40, 16).await;
        let partitions = ledger.partitions().await.unwrap();
        let mut heard: Vec<_> = partitions.iter().map(Partition::listen).collect();
        for heard in &mut heard {
            let subscribed = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
            assert!(matches!(subscribed, Notification::Subscribed), "{subscribed:?}");
        }
        for some in keys.chunks(64) {
            append_all(ledger, some).await;
        }
        for partition in &partitions {
            partition.read_after(0).await.unwrap();
        }
        // One for reading, one for appending, one for announcements, one to ask a node of a Cluster; and this one.
        let mut client = server.client().await;
        let mut list = redis::cmd("CLIENT");
        let list: String = list.arg("LIST").query_async(&mut client).await.unwrap();
        assert!(list.lines().count() <= 5, "{list}");
        // Each partition's follower is told of its own changes alone.
        let layout = many.layout;
        for (number, heard) in (0..).zip(&mut heard) {
            let own = keys.iter().filter(|key| layout.partition_of(**key) == number).count();
            let mut told = 0;
            while told < own {
                let told_of = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
                let Notification::Announcement(announced) = told_of else { panic!("{told_of:?}") };
                for entry in announced.entries.iter() {
                    let key = entry.body.as_ref().unwrap().key;
                    assert_eq!(layout.partition_of(key), number);
                }
                told += announced.entries.len();
            }
            assert_eq!(told, own);
        }
        open.close().await;
    }
}

#[tokio::test]
async fn lost_partition_is_named_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        let ledger = &open.ledger;
        let keys = keys(ledger, 20, 6).await;
        append_all(ledger, &keys).await;
        let mut client = server.client().await;
        let mut lost = redis::cmd("KEYS");
        let lost: Vec<String> = lost.arg("{consent:3.*").query_async(&mut client).await.unwrap();
        assert_eq!(lost.len(), 13, "{lost:?}");
        let () = redis::cmd("DEL").arg(&lost).query_async(&mut client).await.unwrap();
        let layout = ledger.layout().await.unwrap();
        for partition in ledger.partitions().await.unwrap() {
            let poll = partition.read_after(0).await;
            match partition.number() {
                3 => {
                    let error = poll.unwrap_err();
                    let found = RedisRejection::of(&error);
                    let expected = RedisRejection::MissingPartition { partition: 3 };
                    assert_eq!(found, Some(&expected));
                    assert!(error.is_missing());
                }
                _ => assert!(poll.is_ok()),
            }
        }
        // Nothing is acknowledged there, and the other partitions' changes are.
        let (there, elsewhere): (Vec<Key>, Vec<Key>) =
            keys.iter().partition(|key| layout.partition_of(**key) == 3);
        assert!(ledger.read(vec![there[0]]).await.is_err());
        append_all(ledger, &elsewhere).await;
        let mut changes = vec![change(there[0], &nothing(), [opt_out("")])];
        let other = ledger.read(vec![elsewhere[0]]).await.unwrap().pairs.remove(0).unwrap();
        changes.push(change(elsewhere[0], &other, [opt_out("again")]));
        let outcomes = ledger.append(changes).await.unwrap();
        assert!(matches!(outcomes[0], Appended::Failed(_)), "{outcomes:?}");
        assert!(matches!(outcomes[1], Appended::Committed(_)), "{outcomes:?}");
        let again = create(server.target(), eight()).await;
        assert!(matches!(again, Err(CreateError::Exists)), "no partition is ever made anew");
        open.close().await;
    }
}

/// Which of these keys are in a partition, and which are elsewhere.
pub(super) async fn split(ledger: &Ledger, keys: &[Key], partition: u32) -> (Vec<Key>, Vec<Key>) {
    let layout = ledger.layout().await.unwrap();
    keys.iter().partition(|key| layout.partition_of(**key) == partition)
}

#[tokio::test]
async fn loss_of_the_first_partition_keeps_nothing_from_being_recorded_in_the_others() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        let ledger = &open.ledger;
        let keys = keys(ledger, 20, 6).await;
        append_all(ledger, &keys).await;
        let mut client = server.client().await;
        let mut lost = redis::cmd("KEYS");
        let lost: Vec<String> = lost.arg("{consent:0}*").query_async(&mut client).await.unwrap();
        let () = redis::cmd("DEL").arg(&lost).query_async(&mut client).await.unwrap();
        let (there, elsewhere) = split(ledger, &keys, 0).await;
        // It is noticed by the first that asks.
        ledger.read(vec![there[0]]).await.unwrap_err();
        assert!(ledger.identity().await.is_err(), "nothing names the ledger");
        let secret = ledger.secret().await.unwrap();
        let user = UserId::parse("15550120000").unwrap();
        let key = secret.key(&user, BusinessId::parse("business-0").unwrap());
        assert_eq!(key, keys[0], "its keys are made as before");
        append_all(ledger, &elsewhere).await;
        let refused = vec![change(there[0], &nothing(), [opt_out("")])];
        ledger.append(refused).await.unwrap_err();
        open.close().await;
    }
}

#[tokio::test]
async fn partition_that_is_restored_from_another_ledger_takes_nothing_under_keys_that_it_does_not_have()
 {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        let mut meta = redis::cmd("KEYS");
        let meta: Vec<String> =
            meta.arg("{consent:3.*:meta").query_async(&mut client).await.unwrap();
        // As a backup of a ledger with another secret has it.
        let mut secret = redis::cmd("HGET");
        let secret = secret.arg(&meta[0]).arg("secret").query_async(&mut client).await;
        let mut secret: Vec<u8> = secret.unwrap();
        *secret.last_mut().unwrap() ^= 1;
        let mut restore = redis::cmd("HSET");
        let restore = restore.arg(&meta[0]).arg("secret").arg(secret).query_async(&mut client);
        let _: i64 = restore.await.unwrap();
        let open = open_redis(&server, Options::default());
        let ledger = &open.ledger;
        let keys = keys(ledger, 20, 6).await;
        let (there, elsewhere) = split(ledger, &keys, 3).await;
        append_all(ledger, &elsewhere).await;
        let refused = vec![change(there[0], &nothing(), [opt_out("")])];
        let error = ledger.append(refused).await.unwrap_err();
        let expected = RedisRejection::ForeignPartition { partition: 3 };
        assert_eq!(RedisRejection::of(&error), Some(&expected));
        open.close().await;
    }
}

#[tokio::test]
async fn damage_in_any_partition_is_found_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        let Ledger::Redis(ledger) = &open.ledger else { unreachable!() };
        append_all(&open.ledger, &keys(&open.ledger, 6, 20).await).await;
        let mut client = server.client().await;
        for key in ["{consent:3.*:fence", "{consent:5.*:b:0"] {
            let mut found = redis::cmd("KEYS");
            let found: Vec<String> = found.arg(key).query_async(&mut client).await.unwrap();
            assert_eq!(found.len(), 1);
            let () = redis::cmd("DEL").arg(&found).query_async(&mut client).await.unwrap();
        }
        let damaged = open.ledger.verify(Depth::Records, &mut |_| {}).await.unwrap();
        assert!(damaged.found >= 2, "{damaged:?}");
        let mut last = Progress::default();
        let repaired = ledger.repair(RepairMode::All, false, &mut |progress| last = progress).await;
        let repaired = repaired.unwrap();
        assert_eq!(repaired.left.found, 0, "{repaired:?}");
        assert_eq!((last.done, last.of), (32, 32));
        let well = open.ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
        assert_eq!((well.found, well.pairs), (0, 120));
        for partition in ledger.status().await.unwrap() {
            assert!(partition.unwrap().1.has_fence);
        }
        open.close().await;
    }
}

#[tokio::test]
async fn ledger_that_is_replaced_by_one_divided_otherwise_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let open = open_redis(&server, Options::default());
        open.ledger.layout().await.unwrap();
        let mut client = server.client().await;
        let () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
        create(server.target(), shape(4)).await.unwrap();
        let first = open.ledger.partition(0).unwrap();
        let error = first.read_after(0).await.unwrap_err();
        let expected = RedisRejection::OtherLayout { known: 8, found: 1 };
        assert_eq!(RedisRejection::of(&error), Some(&expected));
        assert!(error.to_string().contains("restart this process"), "{error}");
        open.close().await;
    }
}

#[tokio::test]
async fn copies_go_from_any_layout_to_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let [single, cluster] = servers(&folder);
    create(single.target(), shape(4)).await.unwrap();
    let from = open_redis(&single, Options::default());
    let keys = keys(&from.ledger, 6, 20).await;
    append_all(&from.ledger, &keys).await;
    let read = from.ledger.read(vec![keys[3]]).await.unwrap().pairs.remove(0).unwrap();
    let opted_in = change(keys[3], &read, [opt_in("I agree")]);
    from.ledger.append(vec![opted_in]).await.unwrap();
    // Into a Cluster, and from there into a file.
    let begun = NewRedis::begin(cluster.target(), eight(), false).await.unwrap();
    let to = NewLedger::Redis(Box::new(begun));
    let still = Duration::from_millis(10);
    let copied = copy(&from.ledger, to, still, &mut |_| {}).await.unwrap();
    assert_eq!((copied.pairs, copied.missing_statements, copied.late), (120, 0, 0));
    let second = open_redis(&cluster, Options::default());
    let path = folder.path().join("back.redb");
    let file = NewLedger::File(Box::new(consentd_ledger::NewFile::begin(&path).unwrap()));
    copy(&second.ledger, file, still, &mut |_| {}).await.unwrap();
    let (ledger, _appender) = Embedded::open(&path, FOREVER, CACHE).unwrap();
    let third = Ledger::Embedded(ledger);
    for key in keys {
        let expected = from.ledger.history(key).await.unwrap();
        for copy in [&second.ledger, &third] {
            let found = copy.history(key).await.unwrap();
            assert_eq!(
                (found.record, found.entries),
                (expected.record.clone(), expected.entries.clone())
            );
        }
    }
    for ledger in [&second.ledger, &third] {
        let report = ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
        assert_eq!((report.found, report.pairs), (0, 120));
    }
    let taken = NewRedis::begin(cluster.target(), eight(), true).await;
    assert!(matches!(taken, Err(CopyError::Target(CreateError::Exists))));
    drop(third);
    from.close().await;
    second.close().await;
}
