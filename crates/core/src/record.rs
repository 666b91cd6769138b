//! A pair's record: its state, the head of its history, and its last request ids.

use sha2::{Digest, Sha256};

use super::event::What;
use super::state::State;
use super::time::Timestamp;

/// The newest format of records that this version reads and writes.
///
/// Format 2 has links, or a tombstone. A record without either is still written as format 1, so that
/// older versions can update it. They refuse format 2, and so cannot drop its links. Format 3 has stops
/// inside WhatsApp by the business's number, which a version that knows no numbers would make one stop.
pub const FORMAT: u32 = 3;

/// The most request ids that a pair remembers.
pub const MAX_REQUESTS: usize = 8;

/// The number of a change in the ledger's log, from 1 without gaps. 0 is before the first change.
pub type Revision = u64;

/// The head of the hash chain over a pair's history, a SHA-256.
pub type ChainHead = [u8; 32];

/// All that a ledger stores of a pair, except for the entries of its history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// The state that the events made.
    pub state: State,
    /// The number of entries that the history ever had.
    pub history_len: u64,
    /// The head of the hash chain after the last entry; zeros if there is none.
    pub chain: ChainHead,
    /// The last requests, oldest first.
    pub requests: Vec<Request>,
    /// The person's other ids at this business, oldest first. Denials are copied to them.
    pub links: Vec<Link>,
    /// The last erasure of the pair, if it was erased.
    pub erased: Option<Box<Erased>>,
}

/// Another id of a pair's user, at the same business.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The other id, as written.
    pub user_id: String,
    /// The event time of the link.
    pub time: Timestamp,
    /// Whether the person left this pair's own id for it, as by changing the number.
    pub moved: bool,
}

/// The erasure of a pair. Its history starts again from there; of the entries before, only the head of
/// the hash chain is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Erased {
    /// The time of the erasure. An event that happened until then is never recorded again.
    pub time: Timestamp,
    /// The number of entries that the history had.
    pub history_len: u64,
    /// The head of the hash chain after the last of them.
    pub chain: ChainHead,
}

/// A request that a pair remembers, which makes a retry idempotent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// A keyed digest of the request id.
    pub id: [u8; 16],
    /// A keyed digest of the event.
    pub what: [u8; 16],
    /// The outcome, which a retry returns.
    pub outcome: Outcome,
    /// The time as of which its denial counts, if the pair had links: a retry copies the denial to the
    /// other ids as of that time.
    pub time: Option<Timestamp>,
}

/// The outcome of recording one event.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// The revision of the change. In a record, 0 stands for the revision at which that record was
    /// written, which the record cannot know.
    pub revision: Revision,
    /// Whether the event changed the pair's state.
    pub applied: bool,
    /// The scopes that a keyword opted out of, joined by `, `; empty if none.
    pub opted_out_scope: String,
    /// The categories that a keyword opted in to, joined by `, `; empty if none.
    pub opted_in_category: String,
    /// The keyword that did either, as it is listed; empty if none.
    pub matched_keyword: String,
    /// That keyword's language, as a BCP 47 tag; empty if it belongs to several languages or is unknown.
    pub keyword_locale: String,
}

impl Request {
    /// What a tombstone keeps of a request: its keyed digests alone. A repeat of an event that has no
    /// time of its own is recognised by them, and leaves no trace of the person.
    fn without_outcome(&self) -> Self {
        let outcome = Outcome { revision: self.outcome.revision, ..Outcome::default() };
        Self { id: self.id, what: self.what, outcome, time: None }
    }
}

impl Record {
    /// The remembered request of this id.
    #[must_use]
    pub fn request(&self, id: &[u8; 16]) -> Option<&Request> {
        self.requests.iter().rev().find(|request| request.id == *id)
    }

    /// Remembers a request, and forgets the oldest if there are more than [`MAX_REQUESTS`].
    pub fn remember(&mut self, request: Request) {
        if self.requests.len() >= MAX_REQUESTS {
            self.requests.remove(0);
        }
        self.requests.push(request);
    }

    /// Links another id of the same person, unless it is linked in the same notation. Returns whether
    /// that changed the record.
    pub fn link(&mut self, link: Link) -> bool {
        if let Some(known) = self.links.iter_mut().find(|known| known.user_id == link.user_id) {
            let changed = link.moved && !known.moved;
            known.moved |= link.moved;
            return changed;
        }
        self.links.push(link);
        true
    }

    /// Where the remaining history starts: the number of erased entries, and the head of the hash chain
    /// after the last of them.
    #[must_use]
    pub fn history_start(&self) -> (u64, ChainHead) {
        let erased = self.erased.as_ref();
        erased.map_or((0, ChainHead::default()), |erased| (erased.history_len, erased.chain))
    }

    /// Whether all entries of the history were erased.
    #[must_use]
    pub fn is_without_history(&self) -> bool {
        self.erased.as_ref().is_some_and(|erased| erased.history_len == self.history_len)
    }

    /// The tombstone of the pair: a suppression, the length and head of its history, and digests of its
    /// last request ids. Its time is the ledger's clock, but no earlier than the pair's latest event,
    /// its latest link or the latest claimed time, so that it wins over events of fast clocks and a repeat of any event leaves no trace.
    #[must_use]
    pub fn tombstone(&self, clock: Timestamp) -> Self {
        let linked = self.links.iter().map(|link| link.time).max();
        let latest = self.state.latest().max(self.state.claims.latest()).max(linked);
        self.tombstone_at(latest.unwrap_or(clock).max(clock))
    }

    /// The tombstone as of this time, for a pair that was erased then and whose erasure the ledger lost.
    #[must_use]
    pub fn tombstone_at(&self, time: Timestamp) -> Self {
        let (history_len, chain) = (self.history_len, self.chain);
        let erased = Some(Box::new(Erased { time, history_len, chain }));
        let state = State {
            suppression: Some((time, true)),
            last_suppressed: Some(time),
            ..State::default()
        };
        let requests = self.requests.iter().map(Request::without_outcome).collect();
        Self { state, history_len, chain, requests, erased, ..Self::default() }
    }

    /// Whether this is a tombstone without later events.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.erased.as_ref().is_some_and(|erased| *self == self.tombstone(erased.time))
    }

    /// Sets the revision at which this record was written in the outcomes that lack it.
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
    /// The time as of which it counts.
    pub time: Timestamp,
    /// When it was recorded, by the ledger's clock.
    pub record_time: Timestamp,
    /// What happened. The text of a message is never stored.
    pub what: What,
}

impl HistoryEntry {
    /// Whether the entry is kept for ever. Only inbound messages and failures are deleted after their
    /// retention, except for a failure that reports a stop inside WhatsApp.
    #[must_use]
    pub fn is_kept_for_good(&self) -> bool {
        self.what.is_denial() || !matches!(self.what, What::Inbound { .. } | What::Failure { .. })
    }
}

/// The head of the hash chain after an entry with this digest.
///
/// The chain covers the digests and not the entries, so that it still proves the remaining entries
/// after others were deleted by retention.
#[must_use]
pub fn extend_chain(head: &ChainHead, entry: &[u8; 32]) -> ChainHead {
    Sha256::new().chain_update(head).chain_update(entry).finalize().into()
}

/// The digest of an encoded entry, or of a statement, in the chain.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
