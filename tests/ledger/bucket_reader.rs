//! Reading all buckets of a ledger in Redis over one connection, while it is written to and fails.

use super::*;
use consentd_ledger::{BucketReader, UnreadableRecord, bucket_of};

fn number() -> u32 {
    bucket_of(key(1), BUCKETS)
}

fn rejection(error: &LedgerError) -> Option<&RedisRejection> {
    RedisRejection::of(error)
}

/// Reads a bucket until it can be read again, as a follower does.
async fn read_again(reader: &BucketReader) -> usize {
    let begun = std::time::Instant::now();
    loop {
        match reader.bucket(number()).await {
            Ok(bucket) => return bucket.pairs.len(),
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn bucket_that_is_written_between_its_two_labels_is_that_of_its_label() {
    // Before the bucket, and before the second label.
    for words in [&b"*2\r\n$7\r\nHGETALL"[..], b"*5\r\n$5\r\nHMGET"] {
        let (folder, server) = a_server(&[]);
        let writer = open_redis(&server, options());
        append(&writer.ledger, key(1), opt_in("Yes")).await;
        let path = folder.path().join("proxy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (parted, mut is_parted) = mpsc::channel(1);
        let proxy = server::parting(listener, server.socket.clone(), words, parted);
        let proxy = tokio::spawn(proxy);
        let open = open_at(&path);
        let reader = open.ledger.bucket_reader();
        let write = async {
            let go_on = is_parted.recv().await.unwrap();
            append(&writer.ledger, key(1), opt_out("letter")).await;
            go_on.send(()).unwrap();
        };
        let (bucket, ()) = tokio::join!(reader.bucket(number()), write);
        let bucket = bucket.unwrap();
        assert_eq!(bucket.label, writer.ledger.read_after(2).await.unwrap().end);
        let [(_, Ok(record))] = &bucket.pairs[..] else { panic!("{bucket:?}") };
        assert_eq!(record.state, read(&writer.ledger, key(1)).await.record.state);
        open.close().await;
        writer.close().await;
        proxy.abort();
    }
}

#[tokio::test]
async fn bucket_that_is_lost_half_written_or_unreadable_is_told_as_such() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    append(&open.ledger, key(1), opt_out("letter")).await;
    let reader = open.ledger.bucket_reader();
    assert_eq!(read_again(&reader).await, 1);
    let bucket = format!("{{consent:0}}:b:{}", number());
    let field = &key(1).to_bytes()[..];
    let mut command = redis::cmd("HGET");
    let value = command.arg(&bucket).arg(field).query_async(&mut server.client().await).await;
    let value: Vec<u8> = value.unwrap();

    // As it is where a script ends between the bucket and the meta hash.
    let meta = "{consent:0}:meta";
    say(&server, &["HSET", meta, "rev", "1"]).await.unwrap();
    let error = reader.bucket(number()).await.unwrap_err();
    assert_eq!(rejection(&error), Some(&RedisRejection::CutShort));
    say(&server, &["HSET", meta, "rev", "2"]).await.unwrap();

    let mut command = redis::cmd("HSET");
    command.arg(&bucket).arg(field).arg(&value[..value.len() - 1]);
    command.query_async::<i64>(&mut server.client().await).await.unwrap();
    let damaged = reader.bucket(number()).await.unwrap();
    assert_eq!(damaged.pairs, [(key(1), Err(UnreadableRecord::Damaged))]);

    say(&server, &["HDEL", &bucket, "."]).await.unwrap();
    let error = reader.bucket(number()).await.unwrap_err();
    assert!(matches!(rejection(&error), Some(RedisRejection::LostKey { .. })), "{error}");
    assert_eq!(open.ledger.durability().lost_keys, 1);
    say(&server, &["DEL", &bucket]).await.unwrap();
    let error = reader.bucket(number()).await.unwrap_err();
    assert!(matches!(rejection(&error), Some(RedisRejection::LostKey { .. })), "{error}");
    say(&server, &["SET", &bucket, "text"]).await.unwrap();
    let error = reader.bucket(number()).await.unwrap_err();
    assert!(matches!(rejection(&error), Some(RedisRejection::Other { .. })), "{error}");
    // The replies behind an error are those of the next bucket all the same.
    let other = (number() + 1) % BUCKETS;
    assert_eq!(reader.bucket(other).await.unwrap().number, other);
    say(&server, &["DEL", meta]).await.unwrap();
    let error = reader.bucket(other).await.unwrap_err();
    assert_eq!(rejection(&error), Some(&RedisRejection::Missing));
    open.close().await;
}

#[tokio::test]
async fn reader_connects_again_after_its_connection_was_closed_and_closes_it_when_it_ends() {
    let (_folder, server) = a_server(&[]);
    let open = open_redis(&server, options());
    append(&open.ledger, key(1), opt_in("Yes")).await;
    let reader = open.ledger.bucket_reader();
    assert_eq!(read_again(&reader).await, 1);
    say(&server, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.unwrap();
    assert_eq!(read_again(&reader).await, 1);
    // Many at once, of which some are not waited for.
    let mut reads: Vec<_> = (0..BUCKETS).map(|number| Box::pin(reader.bucket(number))).collect();
    for read in reads.iter_mut().step_by(2) {
        let _ = tokio::time::timeout(Duration::ZERO, read.as_mut()).await;
    }
    let rest: Vec<_> = reads.into_iter().skip(1).step_by(2).collect();
    for read in rest {
        read.await.unwrap();
    }
    let connections = |line: &str| line.contains("cmd=hmget");
    let count = || async {
        let said = format!("{:?}", say(&server, &["CLIENT", "LIST"]).await.unwrap());
        said.split("\\n").filter(|line| connections(line)).count()
    };
    assert_eq!(count().await, 1);
    drop(reader);
    let begun = std::time::Instant::now();
    while count().await > 0 {
        assert!(begun.elapsed() < PATIENCE, "the connection stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    open.close().await;
}
