//! What befalls a ledger in a server: how it is found, and mended where it can be.

use serde_json::Value as Json;

use super::{BUCKETS, digest, start, told, verify, with_pairs};
use crate::faults::redis::Redis;
use crate::faults::resp::Value;
use crate::faults::stage::{ask, live_within, serve};
use crate::sidecar::{PATIENCE, event, opt_out, run};

/// A pair as it lies in a server.
struct Pair {
    bucket: String,
    key: Vec<u8>,
    value: Vec<u8>,
}

fn pairs(redis: &Redis) -> Vec<Pair> {
    let mut found = Vec::new();
    for number in 0..BUCKETS {
        let bucket = format!("{{consent:0}}:b:{number}");
        let parts = redis.command(&["HGETALL", &bucket]).parts();
        for pair in parts.chunks(2) {
            let (key, value) = (pair[0].clone().bytes(), pair[1].clone().bytes());
            if key.len() == 16 {
                found.push(Pair { bucket: bucket.clone(), key, value });
            }
        }
    }
    found
}

impl Pair {
    fn put(&self, redis: &Redis, value: &[u8]) {
        redis.command(&[b"HSET", self.bucket.as_bytes(), &self.key, value]);
    }

    fn remove(&self, redis: &Redis) {
        redis.command(&[b"HDEL", self.bucket.as_bytes(), &self.key]);
    }

    fn revision(&self) -> u64 {
        u64::from_be_bytes(self.value[..8].try_into().unwrap())
    }
}

/// The last pair that was written, which the log's last entry is about.
fn last(redis: &Redis) -> Pair {
    pairs(redis).into_iter().max_by_key(Pair::revision).unwrap()
}

/// The log's entries: id, and the values of its fields.
fn log(redis: &Redis) -> Vec<(String, Vec<Vec<u8>>)> {
    let entries = redis.command(&["XRANGE", LOG, "-", "+"]).parts();
    let read = |entry: Value| {
        let [id, fields]: [Value; 2] = entry.parts().try_into().unwrap();
        let fields: Vec<_> = fields.parts().into_iter().map(Value::bytes).collect();
        (id.text(), fields)
    };
    entries.into_iter().map(read).collect()
}

fn forget_log(redis: &Redis) {
    redis.command(&["XTRIM", LOG, "MAXLEN", "0"]);
}

/// Replaces the log's last entry by one whose body is another. The whole log is written anew:
/// Redis 8 and Valkey take no id again that was deleted.
fn rewrite_last(redis: &Redis, change: impl Fn(&mut Vec<Vec<u8>>)) {
    let mut entries = log(redis);
    change(&mut entries.last_mut().unwrap().1);
    redis.command(&["DEL", LOG]);
    for (id, fields) in entries {
        let mut command = vec![b"XADD".to_vec(), LOG.as_bytes().to_vec(), id.into_bytes()];
        command.extend(fields);
        redis.command(&command);
    }
}

fn delete_buckets(redis: &Redis) {
    for number in 0..BUCKETS {
        redis.command(&["DEL", &format!("{{consent:0}}:b:{number}")]);
    }
}

const LOG: &str = "{consent:0}:log";
const META: &str = "{consent:0}:meta";

/// What befalls a ledger, how `verify` calls it, and by which command it is mended.
struct Case(&'static str, Option<&'static str>, fn(&Redis));

const CASES: [Case; 29] = [
    Case("no_fence", Some("repair"), |redis| {
        redis.command(&["DEL", "{consent:0}:fence"]);
    }),
    Case("no_sentinel", Some("repair"), |redis| {
        redis.command(&["HDEL", "{consent:0}:b:0", "."]);
        redis.command(&["HDEL", "{consent:0}:h:5", "."]);
        redis.command(&["HDEL", "{consent:0}:text", "."]);
    }),
    Case("no_sentinel", Some("repair"), delete_buckets),
    Case("no_sentinel", Some("repair"), |redis| {
        forget_log(redis);
        delete_buckets(redis);
    }),
    Case("no_log", Some("repair"), |redis| {
        redis.command(&["DEL", LOG]);
    }),
    Case("no_log", Some("repair"), |redis| {
        redis.command(&["DEL", LOG, "{consent:0}:fence"]);
        delete_buckets(redis);
    }),
    Case("cut_short", Some("repair"), |redis| {
        let before = log(redis).len() - 2;
        let (id, fields) = log(redis).swap_remove(before);
        let revision = id.trim_end_matches("-0").as_bytes().to_vec();
        redis.command(&[b"HSET", META.as_bytes(), b"rev", &revision, b"head", &fields[5]]);
    }),
    Case("stray_entries", Some("repair"), |redis| {
        redis.command(&["XADD", LOG, "999999-0", "p", "x", "b", "y", "h", "z"]);
    }),
    Case("stray_entries", Some("repair"), |redis| {
        // Between two entries of the ledger, more than are copied at once.
        let entries = log(redis);
        redis.command(&["DEL", LOG]);
        for (id, fields) in entries {
            let mut command = vec![b"XADD".to_vec(), LOG.as_bytes().to_vec(), id.into_bytes()];
            command.extend(fields);
            redis.command(&command);
            if log(redis).len() == 5 {
                let add = "for n = 1, 1100 do redis.call('XADD', KEYS[1], '5-' .. n, 'a', 'b') end";
                redis.command(&["EVAL", add, "1", LOG]);
            }
        }
    }),
    Case("appends_refused", Some("repair"), |redis| {
        // What an earlier repair has left on Redis 8 and Valkey: the entry is gone, its id is not.
        redis.command(&["XADD", LOG, "999999-0", "p", "x", "b", "y", "h", "z"]);
        redis.command(&["XDEL", LOG, "999999-0"]);
    }),
    Case("appends_refused", Some("repair"), |redis| {
        forget_log(redis);
        redis.command(&["XADD", LOG, "*", "p", "x"]);
        forget_log(redis);
    }),
    Case("log_gap", Some("repair"), |redis| {
        redis.command(&["XDEL", LOG, "5-0"]);
    }),
    Case("log_head", Some("repair"), |redis| {
        rewrite_last(redis, |fields| {
            let body = &mut fields[3];
            // The user's name: the entry can still be read.
            let at = body.windows(3).position(|bytes| bytes == b"US.").unwrap();
            body[at] = b'X';
        });
    }),
    Case("log_entry", Some("repair"), |redis| rewrite_last(redis, |fields| fields[3][0] = 0xff)),
    Case("log_entry", Some("repair"), |redis| rewrite_last(redis, |fields| fields.truncate(4))),
    Case("log_end", Some("repair"), |redis| {
        redis.command(&["HSET", META, "head", "01234567890123456789"]);
    }),
    Case("foreign", Some("repair"), |redis| {
        redis.command(&["HSET", "{consent:0}:b:2", "some", "thing"]);
    }),
    Case("misplaced", Some("repair"), |redis| {
        let pair = last(redis);
        let elsewhere = if pair.bucket.ends_with(":b:1") { ":b:2" } else { ":b:1" };
        let bucket = format!("{{consent:0}}{elsewhere}");
        pair.remove(redis);
        redis.command(&[b"HSET", bucket.as_bytes(), &pair.key, &pair.value]);
    }),
    Case("unreadable", Some("repair"), |redis| last(redis).put(redis, b"short")),
    Case("unreadable", Some("repair"), |redis| {
        forget_log(redis);
        let pair = last(redis);
        pair.put(redis, &[&pair.value[..16], b"\xff\xff\xff"].concat());
    }),
    Case("lost", Some("scrub"), |redis| last(redis).remove(redis)),
    Case("lost", Some("repair"), |redis| {
        forget_log(redis);
        last(redis).remove(redis);
    }),
    Case("ahead", Some("repair"), |redis| {
        let pair = last(redis);
        pair.put(redis, &[&[0, 0, 0, 1], &pair.value[4..]].concat());
    }),
    Case("not_as_logged", Some("scrub"), |redis| {
        let (all, pair) = (pairs(redis), last(redis));
        let other = all.into_iter().min_by_key(|pair| pair.value.len()).unwrap();
        pair.put(redis, &[&pair.value[..16], &other.value[16..]].concat());
    }),
    Case("history", None, |redis| {
        let pair = last(redis);
        let field = [&pair.key[..], &[0]].concat();
        redis.command(&[b"HDEL", pair.bucket.replace(":b:", ":h:").as_bytes(), &field]);
    }),
    Case("statement", None, |redis| {
        for digest in redis.command(&["HKEYS", "{consent:0}:text"]).parts() {
            let digest = digest.bytes();
            if digest.len() == 32 {
                redis.command(&[b"HSET", b"{consent:0}:text".as_slice(), &digest, b"other"]);
            }
        }
    }),
    Case("wrong_kind", None, |redis| {
        redis.command(&["DEL", "{consent:0}:h:1"]);
        redis.command(&["SET", "{consent:0}:h:1", "x"]);
    }),
    Case("newer", None, |redis| {
        let pair = last(redis);
        pair.put(redis, &[&pair.value[..16], b"\x08\x63"].concat());
    }),
    Case("meta", None, |redis| {
        redis.command(&["HDEL", META, "buckets"]);
    }),
];

#[tokio::test]
async fn each_damage_is_found_and_mended_where_it_can_be() {
    let mut redis = start();
    let ledger = with_pairs(&redis, 12).await;
    assert_eq!(verify(&ledger).1, Vec::<String>::new());
    let whole = redis.dump();
    for (number, Case(label, mended_by, plant)) in CASES.into_iter().enumerate() {
        redis.restart_from(Some(&whole));
        plant(&redis);
        let before = digest(&redis);
        let (report, labels) = verify(&ledger);
        assert!(labels.iter().any(|found| found == label), "{number} {label}: {report}");
        let mend = |command: &str, flags: &[&str]| {
            run(&[&["ledger", command, "--ledger", &ledger], flags].concat())
        };
        for command in ["scrub", "repair", "verify"] {
            mend(command, &["--dry-run"]);
        }
        assert_eq!(digest(&redis), before, "{label}: dry runs and verify change nothing");
        let (code, printed, error) = mend(mended_by.unwrap_or("repair"), &[]);
        if let Some(command) = mended_by {
            assert_eq!(code, 0, "{number} {label}, {command}: {printed}{error}");
            let (report, labels) = verify(&ledger);
            assert!(labels.is_empty(), "{number} {label} is not mended: {report}\n{printed}");
            // Whoever was opted out still is, and opt-outs can be recorded.
            let sidecar = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
            live_within(&sidecar, PATIENCE).await;
            for user in 0..12 {
                let answer = ask(&sidecar, &format!("US.{user}"), "marketing").await;
                assert_eq!(answer.allowed, user % 3 != 0, "{number} {label}: US.{user}");
            }
            let mut records = sidecar.records().await;
            let recorded = records.record_event(event("US.1", "acme", opt_out("*"))).await;
            recorded.unwrap_or_else(|error| panic!("{number} {label}: {error}"));
            assert!(!ask(&sidecar, "US.1", "marketing").await.allowed, "{number} {label}");
        } else {
            assert_ne!(code, 0, "{number} {label}: {printed}");
            assert!(verify(&ledger).1.iter().any(|found| found == label), "{label}");
        }
    }
}

#[tokio::test]
async fn a_log_that_takes_no_entries_is_named_by_status_and_recorder_and_repaired_while_they_run() {
    let redis = start();
    let ledger = with_pairs(&redis, 3).await;
    let sidecar = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
    live_within(&sidecar, PATIENCE).await;
    // Whoever follows from before the end finds the log whole after it was rebuilt.
    let before = log(&redis);
    redis.command(&["XADD", LOG, "*", "p", "x"]);
    redis.command(&["XDEL", LOG, &log(&redis).pop().unwrap().0]);
    let status = ["ledger", "status", "--ledger", &ledger];
    let said = told(1, &status);
    assert!(said.contains("nothing can be appended"), "{said}");
    let said: Json = serde_json::from_str(&told(1, &[&status[..], &["--json"]].concat())).unwrap();
    assert_eq!((&said["takesAppends"], &said["cutShort"]), (&false.into(), &false.into()));
    let mut records = sidecar.records().await;
    let stop = event("US.1", "acme", opt_out("*"));
    let error = records.record_event(stop.clone()).await.unwrap_err();
    assert!(error.message().contains("consentd ledger repair"), "{error}");
    let planned = told(1, &["ledger", "repair", "--ledger", &ledger, "--dry-run"]);
    assert!(planned.contains("rebuilding the log"), "{planned}");
    told(0, &["ledger", "repair", "--ledger", &ledger]);
    assert_eq!(log(&redis), before);
    told(0, &status);
    records.record_event(stop).await.unwrap();
    assert!(!ask(&sidecar, "US.1", "marketing").await.allowed);
    assert_eq!(redis.command(&["EXISTS", "{consent:0}:log:copy"]), Value::Int(0));
}
