//! Buckets that were read on a fork, scrubs, and retained denials.

use super::*;
use crate::follower::applier::Judgement;

#[test]
fn a_bucket_ahead_of_the_ledger_is_not_waited_for_and_one_of_a_dead_branch_is_read_again() {
    let mut model = Model::new(8);
    let mut dead = model.clone();
    dead.append(0, true, 20);
    let mut follower = Follower::new(100);
    follower.poll(&model, 11);
    assert_eq!(follower.buckets, [0, 1]);
    follower.buckets.clear();
    // Both were read from a server that had one more change, which was lost since.
    for number in 0..BUCKETS {
        follower.bucket(dead.bucket(number), 12);
    }
    follower.poll(&model, 12);
    assert!(follower.buckets.is_empty(), "asked before they arrived: it may still come");
    follower.poll(&model, 13);
    assert_eq!(follower.buckets, [0, 1], "asked after they arrived: it never comes");
    follower.serve(&model);
    // The user's opt-out was seen in a bucket: it sticks, though that branch is none.
    assert!(follower.is_valid() && follower.denies(0));
    // The other way: a change takes the place of the lost one, with another hash.
    let mut follower = Follower::new(100);
    follower.poll(&model, 11);
    follower.buckets.clear();
    follower.bucket(dead.bucket(0), 12);
    follower.bucket(dead.bucket(1), 12);
    model.append(1, false, 21);
    follower.poll(&model, 13);
    assert_eq!(follower.buckets, [0, 1]);
    follower.serve(&model);
    assert_eq!(follower.machine.position(), model.end());
}

#[test]
fn scrubs_compare_only_the_same_revision() {
    let mut model = Model::new(8);
    let mut follower = Follower::live(&model);
    let n = (0..8).find(|n| bucket_of(model.key(*n), BUCKETS) == 0).unwrap();
    let old = model.bucket(0);
    let entry = model.append(n, true, 20);
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(0));
    follower.on(model.announce(&[entry]));
    follower.bucket(old, 21);
    assert!(follower.mismatches().is_empty(), "it was touched since it was read");
    assert!(follower.denies(n));
    // Read ahead of what is applied, and compared when that is reached.
    let entry = model.append(n, true, 22);
    follower.on(Event::ScrubDue);
    follower.buckets.clear();
    follower.bucket(model.bucket(0), 23);
    assert_eq!((follower.mismatches(), follower.polls), (vec![], 1));
    follower.on(model.announce(&[entry]));
    assert_eq!(follower.mismatches(), [0]);
}

#[test]
fn scrubs_mend_what_the_log_did_not_tell() {
    let model = Model::new(8);
    let mut follower = Follower::live(&model);
    let mut bucket = model.bucket(0);
    let (key, record) = bucket.pairs.pop().unwrap();
    let n = (0..8).find(|n| model.key(*n) == key).unwrap();
    let mut record = record.unwrap();
    record.state.apply(&effect(true, 30)).unwrap();
    bucket.pairs.push((key, Ok(record)));
    for expected in [1, 0] {
        follower.on(Event::ScrubDue);
        let number = follower.buckets.pop().unwrap();
        let read = if number == 0 { bucket.clone() } else { model.bucket(number) };
        follower.bucket(read, 31);
        assert_eq!(follower.mismatches().last(), Some(&expected));
    }
    assert!(follower.denies(n));
    // The pair vanishes: a stranger in the table, which stays denied.
    bucket.pairs.pop();
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(0));
    follower.bucket(bucket, 32);
    assert_eq!(follower.mismatches().last(), Some(&1));
    assert!(follower.denies(n) && follower.table.retained_pairs() == 1);
}

/// What a record allowed does not survive it in a pair that retains denials.
#[test]
fn a_scrub_takes_out_the_record_of_a_pair_that_stays_denied_otherwise() {
    let mut dead = Model::new(8);
    let n = (0..8).find(|n| bucket_of(dead.key(*n), BUCKETS) == 0).unwrap();
    dead.append_of(n, "utility", true, 20);
    let mut follower = Follower::live(&dead);
    // The opt-out of utility is lost, and sticks; the opt-in to marketing is there.
    let model = Model::new(8);
    follower.poll(&model, 21);
    follower.serve(&model);
    assert!(follower.is_valid() && follower.table.retained_pairs() == 1);
    assert!(follower.denies_of(n, "utility") && follower.stands(n, "marketing"));
    let mut bucket = model.bucket(0);
    bucket.pairs.retain(|(key, _)| *key != model.key(n));
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(0));
    follower.bucket(bucket, 22);
    assert_eq!(follower.mismatches(), [1]);
    assert!(follower.denies_of(n, "utility") && !follower.stands(n, "marketing"));
    assert_eq!(follower.table.retained_pairs(), 1);
}

#[test]
fn too_much_that_is_lost_keeps_the_table_invalid_until_that_is_accepted() {
    let mut model = Model::new(4);
    (0..3).for_each(|n| drop(model.append(n, true, 20)));
    let mut follower = Follower::new(2);
    follower.serve(&model);
    assert!(follower.is_valid());
    model.log.truncate(4);
    follower.poll(&model, 30);
    follower.serve(&model);
    let overflowed = Some(Judgement::Overflowed { retained: 3 });
    assert!(!follower.is_valid() && follower.done.iter().any(|done| done.judgement == overflowed));
    // It is lost once more, and accepted before that was seen: that counts as well.
    let backup = model.clone();
    model.log.truncate(3);
    model.accepted = 1;
    follower.poll(&model, 40);
    assert_eq!(follower.causes.last(), Some(&ResyncCause::Fork));
    follower.serve(&model);
    assert!(follower.is_valid() && !follower.denies(0));
    // A backup from before the acceptance is a fork, and accepted by nobody.
    model.append(3, true, 50);
    model.append(3, true, 51);
    follower.poll(&model, 52);
    assert!(follower.denies(3));
    let mut backup = backup;
    (60..64).for_each(|seconds| drop(backup.append(0, false, seconds)));
    follower.poll(&backup, 64);
    assert_eq!(follower.causes.last(), Some(&ResyncCause::Fork));
    follower.serve(&backup);
    assert!(follower.is_valid() && follower.denies(3), "what was lost stays denied");
}

#[test]
fn what_a_ledger_of_other_keys_denied_stays_denied_until_something_newer_is_said() {
    let mut old = Model::new(4);
    old.append(1, true, 5);
    old.append(2, true, 5);
    let mut follower = Follower::live(&old);
    let mut new = Model { epoch: 2, secret: 2, seconds: 20, ..Model::new(0) };
    new.append(2, false, 6);
    follower.poll(&new, 20);
    follower.serve(&new);
    assert!(follower.is_valid() && follower.denies(1) && follower.denies(2));
    assert_eq!(follower.table.retained_pairs(), 2);
    let entries = [new.append(1, false, 19), new.append(2, false, 21)];
    follower.poll(&new, 30);
    assert!(follower.denies(1), "older than the loss");
    assert!(!follower.denies(2), "newer than the loss, though not than the last proof");
    drop(entries);
    // A second one of that kind cannot be remembered beside the first.
    new.append(3, true, 31);
    follower.poll(&new, 31);
    let mut third = Model { epoch: 3, secret: 3, seconds: 40, ..Model::new(0) };
    follower.poll(&third, 40);
    follower.serve(&third);
    assert!(follower.is_valid(), "nothing of the first is left to be remembered");
    third.append(0, true, 41);
    follower.poll(&third, 41);
    assert!(follower.denies(0) && follower.denies(3));
    let fourth = Model { epoch: 4, secret: 4, seconds: 50, ..Model::new(0) };
    follower.poll(&fourth, 50);
    follower.serve(&fourth);
    assert!(!follower.is_valid());
}

#[test]
fn what_a_ledger_of_other_keys_denied_is_not_forgotten_where_a_bucket_was_read_ahead_of_its_log() {
    let mut old = Model::new(0);
    old.append(1, true, 5);
    let mut follower = Follower::live(&old);
    let mut new = Model { epoch: 2, secret: 2, seconds: 20, ..Model::new(0) };
    follower.poll(&new, 20);
    follower.poll(&new, 20);
    // Its bucket holds the pair before the log has told which pair that is.
    new.append(1, false, 6);
    new.append(1, false, 7);
    follower.serve(&new);
    follower.poll(&new, 20);
    assert!(follower.is_valid() && follower.denies(1), "what allows it is older than the loss");
    assert_eq!(follower.table.retained_pairs(), 1);
    new.append(1, false, 21);
    follower.poll(&new, 21);
    assert!(!follower.denies(1));
}

#[test]
fn an_unreadable_entry_that_a_backup_took_back_is_none_any_more() {
    let mut model = Model::new(2);
    let backup = model.clone();
    let mut follower = Follower::live(&model);
    model.append(0, true, 20);
    model.log[2].body = Err(UndecodedEntry::Unreadable);
    follower.poll(&model, 30);
    follower.page(Page { tail: Tail::Trimmed, ..model.page(2) }, 2, 31);
    assert_eq!(follower.causes.last(), Some(&ResyncCause::Unreadable), "trimmed is not taken back");
    let mut branch = backup.clone();
    branch.append(1, true, 32);
    for ledger in [backup, branch] {
        follower.poll(&model, 33);
        assert!(!follower.is_valid());
        follower.poll(&ledger, 34);
        assert_eq!(follower.causes.last(), Some(&ResyncCause::Fork));
        follower.serve(&ledger);
        assert!(follower.is_valid());
    }
}

/// Reports to it that a bucket was lost.
fn lose(follower: &mut Follower, number: u32) {
    let attempt = follower.machine.attempt();
    follower.on(Event::Lost { attempt, number });
}

#[test]
fn lost_bucket_is_denied_and_read_again_until_it_is_back() {
    let mut model = Model::new(8);
    let bucket_of_user = |model: &Model, n| bucket_of(model.key(n), BUCKETS);
    let out = (0..8).find(|n| bucket_of_user(&model, *n) == 0).unwrap();
    let inside = (out + 1..8).find(|n| bucket_of_user(&model, *n) == 0).unwrap();
    let other = (0..8).find(|n| bucket_of_user(&model, *n) == 1).unwrap();
    model.append(out, true, 20);
    let mut follower = Follower::live(&model);
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(0));
    lose(&mut follower, 0);
    let unreadable = |follower: &Follower, n: usize| {
        let pair = follower.table.pair(&user(n), business(n)).unwrap();
        follower.table.facts(pair, Category::parse("marketing").unwrap()).0.is_err()
    };
    assert!(follower.is_valid() && unreadable(&follower, out) && unreadable(&follower, inside));
    assert!(follower.stands(other, "marketing"), "it lies elsewhere");
    // Others are compared meanwhile, and with every page it is asked for again.
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(1));
    follower.bucket(model.bucket(1), 21);
    follower.poll(&model, 22);
    assert_eq!(follower.buckets.pop(), Some(0));
    lose(&mut follower, 0);
    follower.poll(&model, 23);
    assert_eq!(follower.buckets.pop(), Some(0));
    // It comes back without the opt-out, which stays.
    let mut bucket = model.bucket(0);
    bucket.pairs.retain(|(key, _)| *key != model.key(out));
    follower.bucket(bucket, 24);
    assert!(follower.denies(out) && follower.stands(inside, "marketing"));
    assert_eq!(follower.table.retained_pairs(), 1);
    follower.poll(&model, 25);
    assert!(follower.buckets.is_empty(), "it is back");
}

#[test]
fn table_that_lacks_a_lost_bucket_is_not_valid_before_it_is_back() {
    let model = Model::new(8);
    let mut follower = Follower::new(100);
    follower.poll(&model, 11);
    lose(&mut follower, 0);
    follower.bucket(model.bucket(1), 12);
    follower.poll(&model, 13);
    assert!(!follower.is_valid());
    follower.bucket(model.bucket(0), 14);
    follower.buckets.clear();
    follower.serve(&model);
    assert!(follower.is_valid());
}

#[test]
fn denial_that_was_only_named_while_it_loads_dates_the_loss_that_takes_it() {
    let mut model = Model::new(1);
    let mut follower = Follower::live(&model);
    let stop = model.append(0, true, 20);
    follower.on(model.announce(&[stop]));
    // A fork is read, and says STOP once more before the bucket is read, by a clock that is ahead.
    let mut fork = Model::new(1);
    fork.append(0, true, 21);
    follower.poll(&fork, 22);
    follower.poll(&fork, 23);
    fork.append(0, true, 500);
    follower.poll(&fork, 24);
    // That is lost as well.
    let mut other = Model { epoch: 2, ..Model::new(0) };
    follower.poll(&other, 25);
    follower.buckets.clear();
    follower.serve(&other);
    assert!(follower.is_valid() && follower.denies(0));
    let lift = other.append(0, false, 100);
    follower.on(other.announce(&[lift]));
    assert!(follower.denies(0), "it is older than what was denied");
    let lift = other.append(0, false, 501);
    follower.on(other.announce(&[lift]));
    assert!(!follower.denies(0));
}
