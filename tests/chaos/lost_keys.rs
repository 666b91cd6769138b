//! Keys of a ledger in Redis that are deleted or evicted, and how an operator brings them back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::history::{nanos, now};
use crate::judge::Silence;
use crate::plan::{BUCKETS, Keys};
use crate::redis::Redis;
use crate::resp::{Client, Value};
use crate::sidecar::run;

const META: &str = "{consent:0}:meta";
const LOG: &str = "{consent:0}:log";
const FENCE: &str = "{consent:0}:fence";
const TEXT: &str = "{consent:0}:text";

/// How long a command may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long sidecars may take to hear of an eviction policy: they ask every two seconds.
const HEARD: Duration = Duration::from_secs(10);

/// How often the limit of memory is lowered until Redis evicts keys, and by how many kibibytes.
const LOWERED: u64 = 20;
const LOWERED_BY: u64 = 64;

/// How often an operator repairs a ledger that others write to meanwhile.
const REPAIRS: usize = 3;

fn bucket(number: usize) -> String {
    format!("{{consent:0}}:b:{number}")
}

fn histories(number: usize) -> String {
    format!("{{consent:0}}:h:{number}")
}

/// Whether a backup alone brings a key back: the repair rebuilds all others.
fn needs_backup(key: &str) -> bool {
    key == META || key == TEXT || key.contains(":h:")
}

fn all_keys() -> Vec<String> {
    let hashes = (0..BUCKETS).flat_map(|number| [bucket(number), histories(number)]);
    hashes.chain([META, LOG, FENCE, TEXT].map(str::to_owned)).collect()
}

/// Keys that are gone, or may be.
pub struct Lost {
    why: String,
    keys: Vec<String>,
    /// What those held that only a backup brings back.
    backup: BTreeMap<String, Vec<u8>>,
    from: u64,
    /// How far the ledger went then.
    revision: u64,
}

impl Lost {
    /// Deletes keys; the backup is of that very moment.
    pub fn delete(redis: &Redis, which: Keys) -> Self {
        let keys = match which {
            Keys::Bucket(number) => vec![bucket(number)],
            Keys::Histories(number) => vec![histories(number)],
            Keys::Both(number) => vec![bucket(number), histories(number)],
            Keys::Text => vec![TEXT.to_owned()],
            Keys::Log => vec![LOG.to_owned()],
            Keys::Fence => vec![FENCE.to_owned()],
            Keys::Meta => vec![META.to_owned()],
        };
        Self::take(redis, format!("{which:?} is deleted"), keys, true)
    }

    /// Takes a backup of keys, and may delete them, in one transaction.
    fn take(redis: &Redis, why: String, keys: Vec<String>, delete: bool) -> Self {
        let mut commands = vec![vec!["HGET", META, "rev"]];
        commands.extend(keys.iter().map(|key| vec!["DUMP", key.as_str()]));
        if delete {
            commands.extend(keys.iter().map(|key| vec!["DEL", key.as_str()]));
        }
        let mut client = Client::connect(redis.port(), ANSWER).unwrap();
        client.command(&["MULTI"]).unwrap();
        for command in &commands {
            client.command(command).unwrap();
        }
        let mut answers = client.command(&["EXEC"]).unwrap().parts().into_iter();
        let from = now();
        let revision = answers.next().map(|value| value.text().parse().unwrap());
        let backup = keys.iter().cloned().zip(answers.map(Value::bytes));
        let backup = backup.filter(|(key, _)| needs_backup(key)).collect();
        Self { why, keys, backup, from, revision: revision.expect("the ledger has a revision") }
    }

    /// Brings everything back, as the README has it: what only a backup has from the backup, and
    /// the rest by `consentd ledger repair`. Says when nothing was proven or recorded, if that is
    /// so.
    pub fn mend(self, redis: &Redis, bound: Duration) -> Result<Option<Silence>, String> {
        for key in &self.keys {
            if redis.command(&["EXISTS", key]).text() != "0" {
                return Err(format!("{}, and {key} was made anew", self.why));
            }
        }
        let until = now();
        self.bring_back(redis, &self.keys)?;
        let lost = |key: &str| self.keys.iter().any(|lost| lost == key);
        let silence = Silence {
            why: self.why.clone(),
            from: self.from,
            until,
            denies_from: self.from + nanos(bound),
            revision: (lost(META) || lost(LOG)).then_some(self.revision),
        };
        Ok((lost(META) || lost(LOG) || lost(FENCE)).then_some(silence))
    }

    fn bring_back(&self, redis: &Redis, missing: &[String]) -> Result<(), String> {
        for key in missing.iter().filter(|key| needs_backup(key)) {
            redis.command(&[b"RESTORE", key.as_bytes(), b"0", &self.backup[key]]);
        }
        repair(redis, &self.why)
    }

    /// Lets Redis evict keys once every sidecar has heard that it may.
    pub async fn evict(redis: &Redis, fleet: &Fleet, kibibytes: u64) -> Result<Self, String> {
        redis.set("maxmemory-policy", "allkeys-lru");
        fleet
            .until_all(HEARD, "says allkeys-lru", |status| status.cause.contains("allkeys-lru"))
            .await?;
        let lost = Self::take(redis, "Redis evicts keys".to_owned(), all_keys(), false);
        let number = |field: &str| redis.info(field).parse::<u64>().unwrap();
        let mut limit = number("used_memory").saturating_sub(kibibytes << 10);
        let before = number("evicted_keys");
        for _ in 0..LOWERED {
            redis.set("maxmemory", &limit.to_string());
            if number("evicted_keys") > before {
                return Ok(lost);
            }
            // No limit at all is written as none.
            limit = limit.saturating_sub(LOWERED_BY << 10).max(1);
        }
        Err(format!("Redis evicts nothing though it may take {limit} bytes only"))
    }

    /// Lets it keep everything again, and brings back what is gone.
    pub fn keep(self, redis: &Redis, bound: Duration) -> Result<Silence, String> {
        redis.set("maxmemory", "0");
        let is_missing = |key: &&String| redis.command(&["EXISTS", key.as_str()]).text() == "0";
        let missing: Vec<String> = self.keys.iter().filter(is_missing).cloned().collect();
        let revision = redis.command(&["HGET", META, "rev"]).text();
        if !missing.iter().any(|key| key == META) && revision != self.revision.to_string() {
            return Err(format!("written while Redis evicts: {revision}, not {}", self.revision));
        }
        println!("         evicted: {} of {} keys", missing.len(), self.keys.len());
        let until = now();
        redis.set("maxmemory-policy", "noeviction");
        self.bring_back(redis, &missing)?;
        let (from, denies_from) = (self.from, self.from + nanos(bound));
        Ok(Silence { why: self.why, from, until, denies_from, revision: Some(self.revision) })
    }
}

/// Repairs a ledger as an operator does, who tries again what others wrote to meanwhile.
fn repair(redis: &Redis, why: &str) -> Result<(), String> {
    let ledger = format!("redis://{}", redis.address());
    let mut said = String::new();
    for _ in 0..REPAIRS {
        let (code, printed, error) = run(&["ledger", "repair", "--ledger", &ledger]);
        if code == 0 {
            return Ok(());
        }
        said = format!("{printed}{error}");
    }
    Err(format!("{why}, and ledger repair leaves: {said}"))
}
