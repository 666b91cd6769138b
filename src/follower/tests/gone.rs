//! What a ledger did that is not there any more, or cannot be read.

use super::*;

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
    assert_eq!(follower.table.remembered(), 2);
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
    assert_eq!(follower.table.remembered(), 1);
    new.append(1, false, 21);
    follower.poll(&new, 21);
    assert!(!follower.denies(1));
}

#[test]
fn an_unreadable_entry_is_never_skipped() {
    let mut model = Model::new(2);
    let mut follower = Follower::live(&model);
    model.append(0, true, 20);
    model.log[2].body = Err(UnreadableEntry);
    for seconds in 30..33 {
        follower.poll(&model, seconds);
        assert!(!follower.is_valid());
    }
    assert_eq!(follower.causes, [Cause::Start, Cause::Unreadable]);
    let other = Model { epoch: 2, ..Model::new(1) };
    follower.poll(&other, 40);
    follower.serve(&other);
    assert!(follower.is_valid(), "another ledger is none of that one's business");
}

#[test]
fn an_unreadable_entry_that_a_backup_took_back_is_none_any_more() {
    let mut model = Model::new(2);
    let backup = model.clone();
    let mut follower = Follower::live(&model);
    model.append(0, true, 20);
    model.log[2].body = Err(UnreadableEntry);
    follower.poll(&model, 30);
    follower.page(Page { tail: Tail::Trimmed, ..model.page(2) }, 2, 31);
    assert_eq!(follower.causes.last(), Some(&Cause::Unreadable), "trimmed is not taken back");
    let mut branch = backup.clone();
    branch.append(1, true, 32);
    for ledger in [backup, branch] {
        follower.poll(&model, 33);
        assert!(!follower.is_valid());
        follower.poll(&ledger, 34);
        assert_eq!(follower.causes.last(), Some(&Cause::Fork));
        follower.serve(&ledger);
        assert!(follower.is_valid());
    }
}
