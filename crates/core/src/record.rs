//! A pair's record: its state, the head of its history, and the requests that it remembers.

use sha2::{Digest, Sha256};

use super::event::What;
use super::state::State;
use super::time::Timestamp;

/// The newest format of records that this version reads and writes.
///
/// 2 has links, or tells of an erase; a record without either is still written as 1, so that
/// versions before it may rewrite it, and one with them never loses them to such a version.
pub const FORMAT: u32 = 2;

/// How many request ids a pair remembers.
pub const MAX_REQUESTS: usize = 8;

/// The place of a change in its partition of the ledger: dense, from 1; 0 is before the first.
pub type Revision = u64;

/// The SHA-256 head of a pair's history.
pub type ChainHead = [u8; 32];

/// All that a ledger holds of a pair, its history's entries aside.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// What events have made.
    pub state: State,
    /// How many entries the history has.
    pub history_len: u64,
    /// The chain's head after the last of them; zeros where there is none.
    pub chain: ChainHead,
    /// The last requests, oldest first.
    pub requests: Vec<Request>,
    /// The person's other ids at this business, oldest first: denials hold under them as well.
    pub links: Vec<Link>,
    /// That what came before was erased, where it was; the last time, where more than once.
    pub erased: Option<Box<Erased>>,
}

/// Another id of a pair's user, at the same business.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The other id, as written.
    pub user_id: String,
    /// When it was said that they are of one person.
    pub time: Timestamp,
    /// Whether the person left this pair's own id for it, as by changing the number.
    pub moved: bool,
}

/// Where a pair was erased. Its history begins anew there: of what came before, the chain's head
/// alone is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Erased {
    /// When. What happened until then is never recorded any more.
    pub time: Timestamp,
    /// How many entries the history had.
    pub history_len: u64,
    /// The chain's head after the last of them.
    pub chain: ChainHead,
}

/// A request that a pair remembers, so that a retry changes nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// A keyed digest of the caller's id.
    pub id: [u8; 16],
    /// A keyed digest of what was asked for.
    pub what: [u8; 16],
    /// What came of it.
    pub outcome: Outcome,
    /// When what it denied counts as having happened, where the pair had links: a retry takes the
    /// denial to the other ids, as of that time.
    pub time: Option<Timestamp>,
}

/// What came of recording one event.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The revision of the pair's partition after it. In a record, 0 stands for the revision at
    /// which that record was written, which it cannot know.
    pub revision: Revision,
    /// Whether it changed the pair's state.
    pub applied: bool,
    /// The scopes that a keyword opted out of, joined by `, `; empty where none.
    pub opted_out_scope: String,
    /// The categories that a keyword opted in to, joined likewise.
    pub opted_in_category: String,
    /// The keyword that did either, as it is listed; empty where none.
    pub matched_keyword: String,
    /// That keyword's language, as a BCP 47 tag; empty where it is of several, or unknown.
    pub keyword_locale: String,
}

impl Record {
    /// What came of the request of this id, where the pair remembers it, and what it was about.
    #[must_use]
    pub fn request(&self, id: &[u8; 16]) -> Option<&Request> {
        self.requests.iter().rev().find(|request| request.id == *id)
    }

    /// Remembers a request; the oldest is forgotten where there are too many.
    pub fn remember(&mut self, request: Request) {
        if self.requests.len() >= MAX_REQUESTS {
            self.requests.remove(0);
        }
        self.requests.push(request);
    }

    /// Adds another id of the same person, unless it is known as written here; tells whether that
    /// changed anything.
    pub fn link(&mut self, link: Link) -> bool {
        if let Some(known) = self.links.iter_mut().find(|known| known.user_id == link.user_id) {
            let changed = link.moved && !known.moved;
            known.moved |= link.moved;
            return changed;
        }
        self.links.push(link);
        true
    }

    /// How many entries of the history were erased, and the chain's head after the last of them:
    /// where what is left of it begins.
    #[must_use]
    pub fn history_start(&self) -> (u64, ChainHead) {
        let erased = self.erased.as_ref();
        erased.map_or((0, ChainHead::default()), |erased| (erased.history_len, erased.chain))
    }

    /// Whether nothing is left of a history, for all of it was erased.
    #[must_use]
    pub fn is_without_history(&self) -> bool {
        self.erased.as_ref().is_some_and(|erased| erased.history_len == self.history_len)
    }

    /// What is left of an erased pair: that it must never be contacted, and the chain's head.
    /// Stamped by the clock, and no earlier than the pair's latest event or what that claimed, so
    /// that it stands whatever other clocks said, and a repeat of any event leaves no trace.
    #[must_use]
    pub fn tombstone(&self, clock: Timestamp) -> Self {
        let latest = self.state.latest().max(self.state.claims.latest());
        self.tombstone_at(latest.unwrap_or(clock).max(clock))
    }

    /// The same, stamped with this time: of a pair that was erased then, and is known again because
    /// the ledger lost the erase.
    #[must_use]
    pub fn tombstone_at(&self, time: Timestamp) -> Self {
        let (history_len, chain) = (self.history_len, self.chain);
        let erased = Some(Box::new(Erased { time, history_len, chain }));
        let state = State {
            suppression: Some((time, true)),
            last_suppressed: Some(time),
            ..State::default()
        };
        Self { state, history_len, chain, erased, ..Self::default() }
    }

    /// Whether this is what an erase leaves, and nothing has come since.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.erased.as_ref().is_some_and(|erased| *self == self.tombstone(erased.time))
    }

    /// Fills in the revision that this record was written at, now that it is known.
    pub fn written_at(&mut self, revision: Revision) {
        for request in &mut self.requests {
            if request.outcome.revision == 0 {
                request.outcome.revision = revision;
            }
        }
    }
}

/// One entry of a pair's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryEntry {
    /// The user, as written.
    pub user_id: String,
    /// The business, as written.
    pub business_id: String,
    /// When it happened.
    pub time: Timestamp,
    /// When it was recorded, by the ledger's clock.
    pub record_time: Timestamp,
    /// What happened; a text is never in it.
    pub what: What,
}

impl HistoryEntry {
    /// Whether it is kept for good: what was consented to and withdrawn is, a failure that tells
    /// of a platform stop included; what merely opens or closes a window is not.
    #[must_use]
    pub fn is_kept_for_good(&self) -> bool {
        self.what.is_denial() || !matches!(self.what, What::Inbound { .. } | What::Failure { .. })
    }
}

/// The chain's head after an entry of this digest.
///
/// Over the digest and not the entry, so that a chain still proves what is left once an entry
/// that was kept for a time alone has gone.
#[must_use]
pub fn extend_chain(head: &ChainHead, entry: &[u8; 32]) -> ChainHead {
    Sha256::new().chain_update(head).chain_update(entry).finalize().into()
}

/// The digest by which an encoded entry, or a statement, stands in a chain.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
