//! What a user of that Redis must be allowed.

use super::*;

/// What a sidecar needs: to read, to prove by the fence that it reads the primary, and to hear.
const READER: [&str; 22] = [
    "on",
    ">p",
    "resetkeys",
    "%R~{consent:*}:*",
    "~{consent:*}:fence",
    "resetchannels",
    "&{consent:*}:ch",
    "-@all",
    "+ping",
    "+hello",
    "+info",
    "+subscribe",
    "+eval",
    "+evalsha",
    "+eval_ro",
    "+evalsha_ro",
    "+time",
    "+exists",
    "+hget",
    "+hmget",
    "+hgetall",
    "+xrange",
];

/// What a recorder needs beyond that.
const WRITER: [&str; 11] = [
    "~{consent:*}:*",
    "+xrevrange",
    "+hset",
    "+hsetnx",
    "+hincrby",
    "+hscan",
    "+xadd",
    "+xtrim",
    "+publish",
    "+hexists",
    "+hdel",
];

#[tokio::test]
async fn nobody_needs_more_rights_than_these() {
    let (_folder, server) = a_server(&[]);
    let words =
        |name, more: &[&'static str]| [&["ACL", "SETUSER", name][..], &READER[..], more].concat();
    say(&server, &words("reader", &[])).await.unwrap();
    say(&server, &words("writer", &WRITER)).await.unwrap();
    let open = |name: &str, options| {
        let (user, password) = (Some(name.to_owned()), Some("p".to_owned()));
        let target = TargetOptions { user, password, ..TargetOptions::default() };
        let (ledger, driver) = Redis::new(server.target_as(target), options);
        let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
        Open { ledger: Ledger::Redis(ledger), writer }
    };
    let sweep_interval = Duration::from_millis(10);
    let day = Duration::from_hours(24);
    let retention = Some(Retention { log: day, log_entries: 1_000, history: day });
    let reader = open("reader", options());
    let mut heard = reader.ledger.listen();
    let writer = open("writer", Options { retention, sweep_interval, ..options() });
    let subscribed = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap();
    assert!(matches!(subscribed, Ok(Notification::Subscribed)), "{subscribed:?}");
    for what in [opt_in("Yes"), inbound("wamid"), opt_out("letter")] {
        append(&writer.ledger, key(1), what).await;
    }
    let number = consentd_ledger::bucket_of(key(1), BUCKETS);
    for ledger in [&reader.ledger, &writer.ledger] {
        assert_eq!(ledger.read_after(3).await.unwrap().end.revision, 3);
        assert_eq!(ledger.bucket(number).await.unwrap().pairs.len(), 1);
        assert_eq!(ledger.bucket_reader().bucket(number).await.unwrap().pairs.len(), 1);
        assert_eq!(read(ledger, key(1)).await.version.revision, 3);
        assert!(ledger.history(key(1)).await.unwrap().intact);
    }
    let announced = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap();
    assert!(matches!(announced, Ok(Notification::Announcement(_))), "{announced:?}");
    super::super::erase::bury(&writer.ledger, key(1)).await;
    writer.ledger.purge(&[key(1)]).await.unwrap();
    until(&server, &["HLEN", "{consent:0}:erased"], "int(1)").await;
    until(&server, &["HLEN", "{consent:0}:text"], "int(1)").await;
    until(&server, &["XLEN", "{consent:0}:log"], "int(0)").await;
    let late = change(key(2), &nothing(), [opt_out("letter")]);
    let why = refused(reader.ledger.append(vec![late]).await);
    assert_eq!(why.label(), "denied", "{why}");
    // Whoever may not announce still records.
    say(&server, &["ACL", "SETUSER", "writer", "-publish"]).await.unwrap();
    assert_eq!(append(&writer.ledger, key(2), opt_out("letter")).await, 5);
    assert_eq!(writer.ledger.unannounced(), 1);
    reader.close().await;
    writer.close().await;
}
