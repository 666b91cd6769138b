//! What a node of a Cluster is asked about the owners of slots, and its answer.
//!
//! Every node is a voter, replicas too. The primaries alone, who elect a successor, would not do: a failover
//! replaces one of them by its replica, and a majority of the former primaries may have no node in common
//! with one of the present ones. The nodes stay the same in a failover. Each takes note of a new owner when
//! that one announces itself, never goes back to an earlier one, and every change of owner has a higher
//! config epoch, so that the owner's id and config epoch are its term.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use redis::Value;

use super::error::ConnectionError;
use super::handshake::Handshake;
use super::primary::{Primary, Term};
use super::quorum::{Answer, text};
use super::url::Address;

/// The question to one node.
pub(super) fn question() -> redis::Pipeline {
    let mut question = redis::pipe();
    question.cmd("CLUSTER").arg("NODES");
    question
}

/// Reads the reply.
pub(super) fn answer(
    replies: &[Value],
    slots: &BTreeSet<u16>,
    handshake: &Handshake<'_>,
) -> Result<Answer, ConnectionError> {
    let not_node = || ConnectionError::NotRedis { address: handshake.address.clone(), hint: "" };
    match replies {
        [Value::ServerError(error)] => {
            Err(handshake.refused_question("a question (CLUSTER NODES)", error))
        }
        [nodes] => {
            let nodes = text(nodes).ok_or_else(not_node)?;
            ReplyReader { asked: handshake.address, has_tls: handshake.tls.is_some() }
                .parse(nodes, slots)
                .ok_or_else(not_node)
        }
        _ => Err(not_node()),
    }
}

/// How a node's reply is read.
struct ReplyReader<'a> {
    /// The address at which the node was asked.
    asked: &'a Address,
    /// Whether the connections have TLS, whose certificates name hosts.
    has_tls: bool,
}

/// One line of the reply.
struct Node<'a> {
    id: &'a str,
    address: Option<Address>,
    is_self: bool,
    /// Whether it is being introduced, and its id is only a temporary one.
    is_new: bool,
    /// Whether it is a primary that is not known to have failed.
    is_primary: bool,
    epoch: u64,
    slots: Vec<&'a str>,
}

impl Node<'_> {
    /// Those of these slots that it owns.
    fn owned<'s>(&self, slots: &'s BTreeSet<u16>) -> impl Iterator<Item = u16> + use<'_, 's> {
        let ranges = self.slots.iter().filter(|_| self.is_primary);
        ranges.filter_map(|range| parse(range)).flat_map(|range| slots.range(range)).copied()
    }
}

/// Reads a range of slots, such as `0-5460` or `5461`.
fn parse(range: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    // A range that ends before it begins has no slots.
    (first <= last).then_some(first..=last)
}

impl ReplyReader<'_> {
    /// Reads the whole reply; `None` if it does not have the form of a reply to CLUSTER NODES.
    fn parse(&self, text: &str, slots: &BTreeSet<u16>) -> Option<Answer> {
        let nodes: Vec<_> = text.lines().map(|line| self.node(line)).collect::<Option<_>>()?;
        let own = nodes.iter().find(|node| node.is_self)?;
        let mut primaries = BTreeMap::new();
        for node in nodes.iter().filter(|node| node.is_primary && !node.slots.is_empty()) {
            let Some(address) = node.address.clone() else { continue };
            let term = Some(Term { node: node.id.to_owned(), epoch: node.epoch });
            let primary = Arc::new(Primary { address, term });
            for slot in node.owned(slots) {
                primaries.entry(slot).or_insert_with(|| Arc::clone(&primary));
            }
        }
        let others = nodes.iter().filter(|node| !node.is_new && !node.is_self);
        // A node whose address is not known is a voter, too. The address that was asked stands in for its own,
        // and is not asked again.
        let others = others
            .map(|node| (node.id.to_owned(), node.address.clone().unwrap_or(self.asked.clone())));
        Some(Answer { id: own.id.to_owned(), primaries, others: others.collect() })
    }

    /// Reads one line: id, address, flags, the id of its primary, two times, the config epoch, the state
    /// of the link, and the ranges of slots. Slots that are being migrated follow in brackets.
    fn node<'t>(&self, line: &'t str) -> Option<Node<'t>> {
        let mut words = line.split(' ');
        let (id, address, flags) = (words.next()?, words.next()?, words.next()?);
        let (_primary, _ping, _pong, epoch) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        let _link = words.next()?;
        let has = |flag: &str| flags.split(',').any(|one| one == flag);
        let is_self = has("myself");
        let address = if has("noaddr") { None } else { self.address(address) };
        Some(Node {
            id,
            // A node that never met another one does not know its own address.
            address: address.or_else(|| is_self.then(|| self.asked.clone())),
            is_self,
            is_new: has("handshake"),
            is_primary: has("master") && !has("fail"),
            epoch: epoch.parse().ok()?,
            slots: words.filter(|word| !word.is_empty() && !word.starts_with('[')).collect(),
        })
    }

    /// Reads an address, `ip:port@busport[,hostname[,more]]`. With TLS the host's name is taken where the
    /// node announces one, because certificates rarely contain addresses.
    fn address(&self, text: &str) -> Option<Address> {
        let mut parts = text.split(',');
        let (ip, port) = parts.next()?.split_once('@')?.0.rsplit_once(':')?;
        let name = parts.next().filter(|name| self.has_tls && !name.is_empty());
        let host = name.unwrap_or(ip);
        let port = port.parse().ok().filter(|port| *port > 0)?;
        (!host.is_empty()).then(|| Address::Tcp(host.into(), port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address::Tcp(host.into(), port)
    }

    fn parse(has_tls: bool, text: &str) -> Option<Answer> {
        ReplyReader { asked: &at("asked", 7), has_tls }.parse(text, &[4659, 4661, 6000].into())
    }

    fn address_of_owner(answer: &Answer) -> Option<&Address> {
        answer.primaries.get(&4659).map(|primary| &primary.address)
    }

    const NODES: &str = "\
        aa 10.0.0.1:7000@17000,one.example,shard-id=x myself,master - 0 0 1 connected 0-4658 4660\n\
        bb 10.0.0.2:7000@17000,two.example master - 0 1 5 connected 4659 [4661->-aa]\n\
        cc 10.0.0.3:7000@17000 slave aa 0 1 1 connected\n\
        dd 10.0.0.4:7000@17000 master,fail - 0 1 3 disconnected 5000-16383\n\
        ee :0@0 master,noaddr - 0 1 0 disconnected\n\
        ff 10.0.0.6:7000@17000 handshake - 0 1 0 disconnected\n";

    #[test]
    fn owner_and_other_nodes_are_read_from_the_nodes_of_a_cluster() {
        let answer = parse(false, NODES).unwrap();
        assert_eq!(answer.id, "aa");
        let term = Some(Term { node: "bb".to_owned(), epoch: 5 });
        assert_eq!(*answer.primaries[&4659], Primary { address: at("10.0.0.2", 7000), term });
        // One slot is nobody's, and the owner of one is known to have failed.
        assert_eq!(answer.primaries.keys().collect::<Vec<_>>(), [&4659]);
        let expected = [
            ("bb", at("10.0.0.2", 7000)),
            ("cc", at("10.0.0.3", 7000)),
            ("dd", at("10.0.0.4", 7000)),
            ("ee", at("asked", 7)),
        ];
        assert_eq!(answer.others, expected.map(|(id, at)| (id.to_owned(), at)));
        // Certificates name hosts.
        assert_eq!(address_of_owner(&parse(true, NODES).unwrap()), Some(&at("two.example", 7000)));
    }

    #[test]
    fn node_alone_without_slots_or_with_a_failed_owner_is_read_as_it_is() {
        let alone = "aa :7000@17000 myself,master - 0 0 0 connected 0-16383\n";
        let alone = parse(false, alone).unwrap();
        assert_eq!(address_of_owner(&alone), Some(&at("asked", 7)));
        assert_eq!(alone.primaries.len(), 3);
        let empty = "aa ::1:7000@17000 myself,master - 0 0 0 connected\n";
        assert!(parse(false, empty).unwrap().primaries.is_empty());
        let failed = NODES.replace(
            "bb 10.0.0.2:7000@17000,two.example master",
            "bb 10.0.0.2:7000@17000 master,fail",
        );
        assert!(parse(false, &failed).unwrap().primaries.is_empty());
        let suspected =
            failed.replace("10.0.0.2:7000@17000 master,fail", "::1:7000@17000 master,fail?");
        assert_eq!(address_of_owner(&parse(false, &suspected).unwrap()), Some(&at("::1", 7000)));
        for wrong in ["", "aa 10.0.0.1:7000@17000 myself,master - 0 0 x connected", "hello"] {
            assert!(parse(false, wrong).is_none(), "{wrong}");
        }
    }
}
