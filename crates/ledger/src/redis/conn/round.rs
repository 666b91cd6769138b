//! The answers of a round of questions, and what a majority of the voters names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::ConnectionError;
use super::primary::{Primary, Term};
use super::quorum::Answer;
use super::url::Address;

/// The answers of a round so far.
#[derive(Default)]
pub(super) struct Round {
    /// The least number of voters that there are.
    pub(super) min_total: usize,
    /// The answers by the voters' ids.
    pub(super) answers: BTreeMap<String, Answer>,
    /// The addresses that answered.
    pub(super) heard: BTreeSet<Address>,
    pub(super) failure: Option<Arc<ConnectionError>>,
}

/// The key by which votes are counted: the node and its config epoch in a Cluster, otherwise the address.
type Candidate<'a> = (Option<&'a Term>, Option<&'a Address>);

fn candidate(primary: &Primary) -> Candidate<'_> {
    match &primary.term {
        Some(term) => (Some(term), None),
        None => (None, Some(&primary.address)),
    }
}

impl Round {
    pub(super) fn add(&mut self, answer: Answer) {
        self.answers.insert(answer.id.clone(), answer);
    }

    /// The number of voters that a majority is of.
    pub(super) fn total(&self) -> usize {
        self.voters().max(self.min_total)
    }

    /// The number of known voters: those that answered, and those that are named by any answer.
    pub(super) fn voters(&self) -> usize {
        let others = self.answers.values().flat_map(|answer| &answer.others).map(|(id, _)| id);
        let ids: BTreeSet<_> = self.answers.keys().chain(others).collect();
        ids.len()
    }

    /// Whether more than half of all known voters have answered.
    pub(super) fn is_majority(&self) -> bool {
        self.answers.len() * 2 > self.total()
    }

    /// The primary of a slot with the most votes, and their number.
    pub(super) fn best(&self, slot: u16) -> Option<(Arc<Primary>, usize)> {
        let mut votes = BTreeMap::<Candidate<'_>, Vec<&Arc<Primary>>>::new();
        for primary in self.answers.values().filter_map(|answer| answer.primaries.get(&slot)) {
            votes.entry(candidate(primary)).or_default().push(primary);
        }
        let (_, named) = votes.into_iter().max_by_key(|(_, named)| named.len())?;
        // Nodes of a Cluster may know one of them by several addresses: most of them by the usual one.
        let alike =
            |one: &Arc<Primary>| named.iter().filter(|two| two.address == one.address).count();
        let primary =
            named.iter().max_by_key(|one| (alike(one), std::cmp::Reverse(&one.address)))?;
        Some((Arc::clone(primary), named.len()))
    }

    /// The primary of a slot that more than half of all known voters name.
    pub(super) fn agreed(&self, slot: u16) -> Option<Arc<Primary>> {
        let total = self.total();
        self.best(slot).filter(|(_, votes)| votes * 2 > total).map(|(primary, _)| primary)
    }

    /// Whether none of the voters that answered knows a primary of the slot.
    pub(super) fn is_unknown(&self, slot: u16) -> bool {
        let mut answers = self.answers.values();
        !self.answers.is_empty() && answers.all(|answer| !answer.primaries.contains_key(&slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address::Tcp("10.0.0.1".into(), port)
    }

    fn poll(min_total: usize, answers: &[(&str, Option<u16>, &[&str])]) -> Round {
        let mut round = Round { min_total, ..Round::default() };
        for (id, port, others) in answers {
            let others = others.iter().map(|other| ((*other).to_owned(), at(1))).collect();
            let primary = port.map(|port| (0, Arc::new(Primary::from(at(port)))));
            let primaries = primary.into_iter().collect();
            round.add(Answer { id: (*id).to_owned(), primaries, others });
        }
        round
    }

    /// A node's answer in a Cluster of three primaries with a replica each: the owner's id, epoch and port.
    fn node(id: &str, (owner, epoch, port): (&str, u64, u16)) -> Answer {
        let term = Some(Term { node: owner.to_owned(), epoch });
        let others = ["a", "b", "c", "ra", "rb", "rc"].into_iter().filter(|other| *other != id);
        let others = others.map(|other| (other.to_owned(), at(1))).collect();
        let primaries = [(0, Arc::new(Primary { address: at(port), term }))].into();
        Answer { id: id.to_owned(), primaries, others }
    }

    fn agreed(answers: Vec<Answer>) -> Option<Arc<Primary>> {
        let mut round = Round::default();
        for answer in answers {
            round.add(answer);
        }
        round.agreed(0)
    }

    #[test]
    fn in_a_cluster_all_nodes_vote_and_for_one_term() {
        let (old, new) = (("a", 1, 1), ("ra", 4, 2));
        let agree = |ids: &[&str], owner| ids.iter().map(|id| node(id, owner)).collect::<Vec<_>>();
        assert_eq!(agreed(agree(&["a", "b", "c", "rb"], old)).unwrap().address, at(1));
        // The replica of a has been elected by the votes of b and c, and c has not heard of it yet: two of
        // the former and two of the present primaries are on either side.
        assert!(agreed(agree(&["ra", "b"], new)).is_none());
        assert!(agreed(agree(&["a", "c"], old)).is_none());
        assert!(agreed(agree(&["a", "c", "rc"], old)).is_none());
        // One has not heard of a later term of the same node yet.
        let later = ("a", 5, 1);
        let mixed = [agree(&["a", "b", "c"], later), agree(&["rb"], old)].concat();
        assert!(agreed(mixed).is_none());
        // Two names of one node are one node, and most use the first.
        let names = [agree(&["a"], ("a", 1, 2)), agree(&["b", "c", "rc"], old)].concat();
        let primary = agreed(names.clone()).unwrap();
        assert_eq!(primary.address, at(1));
        assert!(primary.is_same(&names[0].primaries[&0]));
        assert!(!primary.is_same(&node("a", later).primaries[&0]));
    }

    #[test]
    fn only_more_than_half_of_all_known_decides() {
        // One of three, cut off with the old primary.
        assert_eq!(poll(1, &[("a", Some(1), &["b", "c"])]).agreed(0), None);
        assert_eq!(
            poll(1, &[("a", Some(1), &["b", "c"]), ("b", Some(1), &["a", "c"])]).agreed(0),
            Some(Arc::new(at(1).into()))
        );
        // Two of four is no majority; nor are two that disagree.
        let four: &[&str] = &["a", "b", "c", "d"];
        assert_eq!(poll(1, &[("a", Some(1), four), ("b", Some(1), four)]).agreed(0), None);
        let split = [("a", Some(1), &["b"][..]), ("b", Some(2), &["a"][..])];
        assert_eq!(poll(1, &split).agreed(0), None);
        // One that has forgotten the others (SENTINEL RESET) counts as one of those configured.
        assert_eq!(poll(3, &[("a", Some(1), &[])]).agreed(0), None);
        assert_eq!(poll(1, &[("a", Some(1), &[])]).agreed(0), Some(Arc::new(at(1).into())));
        // One that answers at two addresses has one vote.
        let twice = [("a", Some(1), &["b", "c"][..]), ("a", Some(1), &["b", "c"][..])];
        assert_eq!(poll(2, &twice).agreed(0), None);
        assert!(poll(1, &[("a", None, &[])]).is_unknown(0));
    }
}
