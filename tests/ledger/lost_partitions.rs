//! Partitions that were lost, or restored from another ledger's backup: what is done with the others.

use consentd_ledger::{
    CopyError, Depth, NewLedger, NewRedis, RedisRejection, RepairMode, copy, create, plan,
};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;

use super::partitions::{append_all, eight, keys, servers, split};
use super::*;

/// The names of the keys that match a pattern.
async fn names(client: &mut MultiplexedConnection, pattern: &str) -> Vec<String> {
    let mut found: Vec<String> = client.keys(pattern).await.unwrap();
    found.sort();
    found
}

/// Deletes the keys that match a pattern, as if their shard had lost its data.
async fn lose(client: &mut MultiplexedConnection, pattern: &str) {
    let lost = names(client, pattern).await;
    assert!(!lost.is_empty(), "{pattern}");
    for key in lost {
        let () = client.del(key).await.unwrap();
    }
}

/// The meta key of a partition that is not the first one.
async fn meta(client: &mut MultiplexedConnection, partition: u32) -> String {
    names(client, &format!("{{consent:{partition}.*:meta")).await.remove(0)
}

/// Changes the last byte of a field.
async fn flip(client: &mut MultiplexedConnection, key: &str, field: &str) {
    let mut value: Vec<u8> = client.hget(key, field).await.unwrap();
    *value.last_mut().unwrap() ^= 1;
    let _: i64 = client.hset(key, field, value).await.unwrap();
}

/// The partitions whose polls fail, with what is said of them.
async fn refused(ledger: &Ledger) -> Vec<(u32, String)> {
    let mut refused = Vec::new();
    // The first one last, as if its follower came late.
    for partition in ledger.partitions().await.unwrap().into_iter().rev() {
        if let Err(error) = partition.read_after(0).await {
            refused.push((partition.number(), error.to_string()));
        }
    }
    refused
}

#[tokio::test]
async fn partition_of_another_ledger_is_refused_until_the_right_backup_is_there() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        let meta = meta(&mut client, 3).await;
        let open = open_redis(&server, Options::default());
        let (ledger, Ledger::Redis(redis)) = (&open.ledger, &open.ledger) else { unreachable!() };
        append_all(ledger, &keys(ledger, 20, 6).await).await;
        assert_eq!(refused(ledger).await, []);
        // As a backup of another ledger has it, or of the ledger that this one is a copy of.
        for field in ["secret", "ledger"] {
            flip(&mut client, &meta, field).await;
            let fresh = open_redis(&server, Options::default());
            for ledger in [ledger, &fresh.ledger] {
                let refused = refused(ledger).await;
                assert_eq!(refused.len(), 1, "{field}: {refused:?}");
                let (number, said) = &refused[0];
                assert_eq!(*number, 3);
                assert!(said.contains("partition 3") && said.contains("backup"), "{said}");
            }
            let status = redis.status().await.unwrap();
            let well: Vec<_> = status.iter().map(Result::is_ok).collect();
            assert_eq!(well, [true, true, true, false, true, true, true, true]);
            let report = ledger.verify(Depth::Records, &mut |_| {}).await.unwrap();
            assert_eq!(report.found, 1, "{report:?}");
            assert!(report.findings[0].to_string().contains("partition 3"), "{report:?}");
            fresh.close().await;
            flip(&mut client, &meta, field).await;
            assert_eq!(self::refused(ledger).await, []);
        }
        open.close().await;
    }
}

#[tokio::test]
async fn partitions_of_another_ledger_are_told_from_the_others_whichever_are_read_first() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        for partition in 1..4 {
            let meta = meta(&mut client, partition).await;
            flip(&mut client, &meta, "secret").await;
        }
        let open = open_redis(&server, Options::default());
        let report = open.ledger.verify(Depth::Records, &mut |_| {}).await.unwrap();
        assert_eq!(report.found, 3, "{report:?}");
        open.close().await;
        let open = open_redis(&server, Options::default());
        let Ledger::Redis(fresh) = &open.ledger else { unreachable!() };
        let status = fresh.status().await.unwrap();
        assert_eq!(status.iter().filter(|one| one.is_err()).count(), 3);
        open.close().await;
    }
}

#[tokio::test]
async fn ledger_that_is_replaced_as_a_whole_is_followed_once_its_partitions_agree() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        let open = open_redis(&server, Options::default());
        assert_eq!(refused(&open.ledger).await, []);
        // One partition after the other, as an operator restores them.
        let mut metas = names(&mut client, "{consent:*:meta").await;
        metas.rotate_left(1);
        for (number, meta) in metas.iter().enumerate() {
            flip(&mut client, meta, "secret").await;
            flip(&mut client, meta, "epoch").await;
            assert_eq!(refused(&open.ledger).await.is_empty(), number == 7, "{meta}");
        }
        // And by another one that is made.
        let () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
        assert_eq!(refused(&open.ledger).await.len(), 8);
        create(server.target(), eight()).await.unwrap();
        assert_eq!(refused(&open.ledger).await, []);
        append_all(&open.ledger, &keys(&open.ledger, 20, 6).await).await;
        open.close().await;
    }
}

/// Nobody can say which of two is right, but most of the partitions are more than some.
#[tokio::test]
async fn first_partition_of_another_ledger_is_refused_as_well_as_the_others() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        let open = open_redis(&server, Options::default());
        assert_eq!(refused(&open.ledger).await, []);
        flip(&mut client, "{consent:0}:meta", "secret").await;
        refused(&open.ledger).await;
        let all: Vec<_> = refused(&open.ledger).await.into_iter().map(|(one, _)| one).collect();
        assert_eq!(all, [7, 6, 5, 4, 3, 2, 1, 0]);
        open.close().await;
    }
}

#[tokio::test]
async fn no_second_ledger_is_made_beside_what_is_left_of_one_in_any_layout() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        for lost in ["{consent:0}*", "{consent:[1-6].*"] {
            lose(&mut client, lost).await;
            let before = names(&mut client, "*").await;
            for (partitions, spread) in [(1, 1), (4, 2), (16, 2)] {
                let layout = Layout::new(partitions, spread).unwrap();
                let shape = Shape { layout, buckets: 1 };
                let errors = [
                    plan(server.target(), shape).await.unwrap_err().to_string(),
                    create(server.target(), shape).await.unwrap_err().to_string(),
                    NewRedis::plan(server.target(), shape, true).await.unwrap_err().to_string(),
                    NewRedis::begin(server.target(), shape, true).await.err().unwrap().to_string(),
                ];
                for said in errors {
                    assert!(said.contains("of a ledger of 8 partitions"), "{partitions}: {said}");
                    assert!(said.contains("backup"), "{said}");
                }
            }
            assert_eq!(names(&mut client, "*").await, before, "nothing was changed");
        }
    }
}

#[tokio::test]
async fn ledger_that_was_complete_is_not_continued_after_its_first_partition_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        lose(&mut client, "{consent:0}*").await;
        lose(&mut client, "{consent:5.*").await;
        let before = names(&mut client, "*").await;
        for said in [
            plan(server.target(), eight()).await.unwrap_err().to_string(),
            create(server.target(), eight()).await.unwrap_err().to_string(),
        ] {
            assert!(said.contains("the first partition"), "{said}");
            assert!(said.contains("only a backup"), "{said}");
        }
        assert_eq!(names(&mut client, "*").await, before, "nothing was changed");
    }
}

#[tokio::test]
async fn what_is_left_is_verified_and_repaired_and_what_is_lost_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for server in servers(&folder) {
        create(server.target(), eight()).await.unwrap();
        let mut client = server.client().await;
        let open = open_redis(&server, Options::default());
        let all = keys(&open.ledger, 20, 6).await;
        append_all(&open.ledger, &all).await;
        let mut left = all.len();
        for lost in [5, 0] {
            left -= split(&open.ledger, &all, lost).await.0.len();
        }
        open.close().await;
        lose(&mut client, "{consent:5.*").await;
        lose(&mut client, "{consent:0}*").await;
        let fence = names(&mut client, "{consent:3.*:fence").await;
        let () = client.del(fence).await.unwrap();
        // Nobody here has known the ledger before.
        let open = open_redis(&server, Options { retention: None, ..Options::default() });
        let Ledger::Redis(redis) = &open.ledger else { unreachable!() };
        let named = |report: &consentd_ledger::Report| {
            let said: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
            for lost in [0, 5] {
                let lost = format!("partition {lost} of the ledger is missing");
                assert!(said.iter().any(|said| said.contains(&lost)), "{said:?}");
            }
            assert!(said.iter().all(|said| !said.contains("init")), "{said:?}");
            report.found
        };
        let report = open.ledger.verify(Depth::Records, &mut |_| {}).await.unwrap();
        assert_eq!((named(&report), report.pairs), (3, u64::try_from(left).unwrap()));
        let repaired = redis.repair(RepairMode::All, false, &mut |_| {}).await.unwrap();
        assert_eq!((repaired.done.len(), named(&repaired.left)), (1, 2));
        let status = redis.status().await.unwrap();
        for (number, status) in status.into_iter().enumerate() {
            match status {
                Ok((_, status)) => assert!(status.has_fence, "it was put back"),
                Err(error) => {
                    assert!([0, 5].contains(&number), "{number}: {error}");
                    assert!(!error.to_string().contains("init"), "{error}");
                }
            }
        }
        open.close().await;
        // Without any partition there is no ledger.
        lose(&mut client, "*").await;
        let open = open_redis(&server, Options::default());
        let error = open.ledger.verify(Depth::Records, &mut |_| {}).await.unwrap_err();
        assert_eq!(RedisRejection::of(&error), Some(&RedisRejection::Missing));
        open.close().await;
    }
}

#[tokio::test]
async fn copy_that_was_cut_while_it_was_finished_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let [single, cluster] = servers(&folder);
    create(single.target(), shape(4)).await.unwrap();
    let from = open_redis(&single, Options::default());
    let still = Duration::from_millis(10);
    let copy_to = async |begun| {
        let to = NewLedger::Redis(Box::new(begun));
        copy(&from.ledger, to, still, &mut |_| {}).await
    };
    let begun = NewRedis::begin(cluster.target(), eight(), false).await.unwrap();
    let mut client = cluster.client().await;
    // The first partition is finished last, and this one before it cannot be.
    let meta = meta(&mut client, 3).await;
    flip(&mut client, &meta, "copying").await;
    copy_to(begun).await.unwrap_err();
    let unfinished = NewRedis::begin(cluster.target(), eight(), false).await.err().unwrap();
    assert!(matches!(unfinished, CopyError::Unfinished), "{unfinished}");
    create(cluster.target(), eight()).await.unwrap_err();
    NewRedis::plan(cluster.target(), eight(), true).await.unwrap();
    let keys = self::keys(&from.ledger, 20, 6).await;
    append_all(&from.ledger, &keys).await;
    let begun = NewRedis::begin(cluster.target(), eight(), true).await.unwrap();
    assert_eq!(copy_to(begun).await.unwrap().pairs, 120);
    let copied = open_redis(&cluster, Options::default());
    let report = copied.ledger.verify(Depth::Histories, &mut |_| {}).await.unwrap();
    assert_eq!((report.found, report.pairs), (0, 120));
    copied.close().await;
    // What is complete is nobody's to remove, even if its first partition was lost.
    lose(&mut client, "{consent:0}*").await;
    let before = names(&mut client, "*").await;
    NewRedis::begin(cluster.target(), eight(), true).await.err().unwrap();
    assert_eq!(names(&mut client, "*").await, before, "nothing was changed");
    from.close().await;
}
