//! Tables that hold only some businesses, and come to hold others.

use super::*;
use crate::table::NoPair;
use consentd_core::businesses::BusinessSet;

const MINE: usize = 1;
const THEIRS: usize = OTHERS_FROM + 1;
const ALSO_THEIRS: usize = OTHERS_FROM + 2;

fn only(ids: &[&str]) -> Businesses {
    Businesses::only(BusinessSet::of(ids.iter().copied()).unwrap())
}

/// A ledger in which a user of each business has opted in.
fn model() -> Model {
    let mut model = Model::new(0);
    for n in [MINE, THEIRS, ALSO_THEIRS] {
        model.append(n, false, 1);
    }
    model
}

/// A follower that holds the first business alone.
fn following(model: &Model) -> Follower {
    let mut follower = Follower::holding(only(&["shop"]), 100);
    follower.serve(model);
    assert!(follower.is_valid());
    follower
}

fn is_refused(follower: &Follower, n: usize) -> bool {
    matches!(follower.table.pair(&user(n), business(n)), Err(NoPair::NotHeld(_)))
}

#[test]
fn pairs_of_others_are_neither_loaded_nor_applied_and_move_the_revision_alone() {
    let mut model = model();
    let mut follower = following(&model);
    assert_eq!(follower.table.pairs(), 1);
    assert!(follower.stands(MINE, "marketing") && is_refused(&follower, THEIRS));
    let theirs = model.append(THEIRS, true, 20);
    let mut skipped = theirs.clone();
    skipped.body = Err(UndecodedEntry::Skipped(model.key(THEIRS)));
    for entry in [skipped, model.append(MINE, true, 21)] {
        follower.on(model.announce(&[entry]));
    }
    assert_eq!((follower.machine.applied(), follower.table.pairs()), (5, 1));
    assert!(follower.denies(MINE));
    // A poll proves it, and a bucket that was read whole is compared without the others.
    follower.poll(&model, 22);
    assert_eq!(follower.staleness(22), 0);
    for number in 0..BUCKETS {
        follower.on(Event::ScrubDue);
        follower.buckets.pop().unwrap();
        follower.bucket(model.bucket(number), 23);
    }
    assert_eq!(follower.mismatches(), [0, 0]);
}

#[test]
fn added_business_is_refused_until_all_of_its_pairs_are_there() {
    let mut model = model();
    let mut follower = following(&model);
    follower.on(Event::Hold(only(&["shop", "stall"])));
    assert_eq!(follower.added, [0, 1]);
    follower.added.clear();
    // One bucket is read ahead of the log, and one before an entry that changes it.
    let theirs = bucket_of(model.key(THEIRS), BUCKETS);
    let before = model.bucket(theirs);
    let stop = model.append(THEIRS, true, 20);
    follower.on(model.announce(&[stop]));
    follower.bucket_for(true, before, 21);
    follower.poll(&model, 21);
    assert_eq!(follower.added, [theirs], "it is read again");
    follower.added.clear();
    let also = bucket_of(model.key(ALSO_THEIRS), BUCKETS);
    model.append(MINE, true, 22);
    for number in [theirs, 1 - theirs] {
        follower.bucket_for(true, model.bucket(number), 22);
    }
    assert!(is_refused(&follower, THEIRS), "the log has not reached them");
    follower.poll(&model, 23);
    assert!(!is_refused(&follower, THEIRS));
    assert!(follower.denies(THEIRS) && follower.denies(MINE), "bucket {also}");
    assert!(follower.stands(ALSO_THEIRS, "marketing"));
    // Once it is held the log changes it like the others.
    let stop = model.append(ALSO_THEIRS, true, 24);
    follower.on(model.announce(&[stop]));
    assert!(follower.denies(ALSO_THEIRS));
    assert_eq!(follower.causes, [ResyncCause::Start], "nothing was interrupted");
}

#[test]
fn scrub_amid_an_addition_takes_nothing_that_was_added_for_a_stranger() {
    let model = model();
    let mut follower = following(&model);
    // It was asked for before, and read without the others.
    follower.on(Event::ScrubDue);
    let number = follower.buckets.pop().unwrap();
    let mut stale = model.bucket(number);
    stale.pairs.retain(|(key, _)| only(&["shop"]).holds_key(*key));
    let before = follower.machine.addition();
    follower.on(Event::Hold(only(&["shop", "stall"])));
    follower.added.clear();
    for number in 0..BUCKETS {
        follower.bucket_for(true, model.bucket(number), 20);
    }
    assert!(follower.stands(THEIRS, "marketing"));
    // It is asked for once more, and the answer to the first question comes before that to the second.
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets.pop(), Some(number));
    let attempt = follower.machine.attempt();
    follower.on(Event::Bucket {
        attempt,
        addition: before,
        is_added: false,
        arrived: moment(21),
        bucket: stale,
    });
    assert_eq!((follower.mismatches(), follower.table.pairs()), (vec![], 3));
    follower.bucket(model.bucket(number), 22);
    assert_eq!(follower.mismatches(), [0]);
}

#[test]
fn removed_business_is_refused_and_its_pairs_are_dropped() {
    let mut model = model();
    let mut follower = Follower::holding(only(&["shop", "stall"]), 100);
    follower.serve(&model);
    let pair = follower.table.pair(&user(THEIRS), "stall").unwrap();
    follower.on(Event::Hold(only(&["shop"])));
    assert!(is_refused(&follower, THEIRS) && follower.stands(MINE, "marketing"));
    assert_eq!(follower.table.pairs(), 1);
    // Whoever derived the key before gets no answer.
    let category = Category::parse("marketing").unwrap();
    assert!(follower.table.facts(pair, category).0.is_err());
    let mut facts = Vec::new();
    follower.table.facts_batch(&[pair], &[category], &mut facts);
    assert!(facts[0].is_err());
    // What it was denied is not remembered, and it comes back as the ledger has it.
    model.append(THEIRS, true, 20);
    follower.poll(&model, 20);
    follower.on(Event::Hold(only(&["shop", "stall"])));
    follower.serve(&model);
    assert!(follower.denies(THEIRS) && follower.stands(ALSO_THEIRS, "marketing"));
    assert_eq!(follower.table.retained_pairs(), 0);
}

#[test]
fn addition_that_is_given_up_leaves_nothing_behind() {
    let model = model();
    let mut follower = following(&model);
    let both = || Event::Hold(only(&["shop", "stall"]));
    follower.on(both());
    follower.added.clear();
    let theirs = bucket_of(model.key(THEIRS), BUCKETS);
    follower.bucket_for(true, model.bucket(theirs), 20);
    assert!(follower.table.pairs() > 1);
    let late = (follower.machine.attempt(), follower.machine.addition());
    follower.on(Event::Hold(only(&["shop"])));
    assert_eq!(follower.table.pairs(), 1);
    follower.on(both());
    follower.added.clear();
    // An answer to the addition before.
    let (attempt, addition) = late;
    let bucket = model.bucket(1 - theirs);
    follower.on(Event::Bucket { attempt, addition, is_added: true, arrived: moment(21), bucket });
    assert!(is_refused(&follower, THEIRS));
    for number in 0..BUCKETS {
        follower.bucket_for(true, model.bucket(number), 22);
    }
    assert!(follower.stands(THEIRS, "marketing") && follower.stands(ALSO_THEIRS, "marketing"));
}

#[test]
fn entry_that_was_skipped_before_its_business_was_wanted_is_read_again() {
    let mut model = model();
    let mut follower = following(&model);
    let stop = model.append(THEIRS, true, 20);
    let mut skipped = stop;
    skipped.body = Err(UndecodedEntry::Skipped(model.key(THEIRS)));
    let mut page = model.page(3);
    page.tail = Tail::Entries(vec![skipped.clone()]);
    follower.on(Event::Hold(only(&["shop", "stall"])));
    follower.on(model.announce(&[skipped]));
    follower.page(page, 3, 20);
    assert_eq!((follower.machine.applied(), follower.polls), (3, 1), "it is asked for again");
    follower.serve(&model);
    assert_eq!(follower.machine.applied(), 4);
    assert!(follower.denies(THEIRS));
}

#[test]
fn removal_amid_a_reload_does_not_make_the_table_valid() {
    let mut model = model();
    let mut follower = Follower::holding(only(&["shop", "stall"]), 100);
    follower.serve(&model);
    // A fork loses what they were denied, which is retained.
    let before = model.clone();
    let stop = model.append(THEIRS, true, 20);
    follower.on(model.announce(&[stop]));
    let mut fork = before.clone();
    fork.append(MINE, false, 21);
    follower.poll(&fork, 22);
    follower.serve(&fork);
    assert!(follower.denies(THEIRS) && follower.table.retained_pairs() == 1);
    // Amid the next one they are removed.
    let mut next = before;
    next.append(MINE, false, 23);
    follower.poll(&next, 24);
    assert!(!follower.is_valid());
    follower.on(Event::Hold(only(&["shop"])));
    assert!(!follower.is_valid(), "it is not read yet");
    follower.serve(&next);
    assert_eq!((follower.is_valid(), follower.table.retained_pairs()), (true, 0));
}

#[test]
fn fork_amid_an_addition_loads_all_that_is_wanted() {
    let mut model = model();
    let mut follower = following(&model);
    follower.on(Event::Hold(only(&["shop", "stall"])));
    follower.added.clear();
    let mut fork = model.clone();
    model.append(THEIRS, true, 20);
    fork.append(THEIRS, true, 21);
    follower.poll(&model, 22);
    follower.poll(&fork, 23);
    assert_eq!(follower.causes, [ResyncCause::Start, ResyncCause::Fork]);
    follower.serve(&fork);
    assert!(follower.is_valid() && follower.denies(THEIRS));
}
