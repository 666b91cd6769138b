//! The methods of `RecordService` that read histories: listing, export, verification of an export,
//! and everything about a user.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status, Streaming};

use super::connection_context::{ConnectionContext, Page};
use super::record_service::{RecordService, ResponseStream, answer_chunks};
use super::{convert, pb, status};
use crate::budget::{Charge, Pool};
use crate::history;
use crate::history::by_user::{UserPair, UserPairs, pairs_of_user};
use crate::history::expiring_opt_ins::{self, OptInFilter};
use consentd_core::Violation;
use consentd_core::id::{BusinessId, Key};
use consentd_core::record::{ChainHead, HistoryEntry, Revision};
use consentd_core::standing::ResolvedState;
use consentd_core::template::Subject;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Cursor, EntryPosition, Events, History, Identity, Ledger, LedgerError, Partition,
};

const BROKEN: &str = "the history's chain does not match: entries were changed, added or removed \
                      outside consentd";

/// About the memory of a pair that was found for a user, with its record.
const USER_PAIR_BYTES: usize = 2 * 1024;

/// The bytes at which a page of a listed history is complete. The last entry may exceed it.
const LISTING_PAGE_BYTES: usize = 256 * 1024;

/// How a stream that reads histories ends with its connection.
const ASK_ELSEWHERE: &str = "the connection ends: ask again on another";

impl RecordService {
    pub(super) async fn list(
        &self,
        request: pb::ListEventsRequest,
        connection: ConnectionContext,
    ) -> Result<ResponseStream<pb::ListEventsResponse>, Status> {
        let pair = history::key_of_pair(&self.ledger, &request.user_id, &request.business_id).await;
        let pair = pair.map_err(status::read_error)?;
        let mut listing = Listing::new(self.ledger.clone(), connection, pair);
        // The first page is read here, so that a call that fails has no answers.
        let first = listing.next_page().await?;
        let pages = stream::iter(first.map(Ok)).chain(listing.pages());
        // Entries are listed even if the history was tampered with; the final status says so.
        let responses = pages.map_ok(|(page, is_broken)| {
            stream::iter(page.chain(is_broken.then(|| Err(Status::data_loss(BROKEN)))))
        });
        Ok(Box::pin(responses.try_flatten()))
    }

    pub(super) async fn export(
        &self,
        request: pb::ExportEventsRequest,
        connection: ConnectionContext,
    ) -> Result<ResponseStream<pb::ExportEventsResponse>, Status> {
        let pb::ExportEventsRequest { business_id, since_time, templates_only } = request;
        let mut found = Vec::new();
        let since = convert::moment("since_time", since_time, &mut found);
        if !business_id.is_empty() {
            found.extend(BusinessId::recorded(&business_id).err());
        }
        if !found.is_empty() {
            return Err(status::invalid(&found));
        }
        // The export ends at the current end of each partition: under a steady flow of events it would never
        // end. This process' table may be behind that end, or not loaded yet.
        let ends = history::ends_of_logs(&self.ledger).await;
        let ends = ends.map_err(|error| status::read_error(error.into()))?;
        let identity = self.ledger.identity().await;
        let identity = identity.map_err(|error| status::read_error(error.into()))?;
        let cache = connection.budget.charge(Pool::Records, 0).map_err(status::limit_reached)?;
        let export = Export {
            service: self.clone(),
            _long_call: connection.long_call(),
            connection,
            business_id,
            since,
            templates_only,
            ends: ends.into_iter().map(|end| end.revision).collect(),
            identity,
            next: Some(Cursor::default()),
            cache,
        };
        let pages = stream::unfold(export, |mut export| async move {
            let page = export.next_page().await?;
            Some((page, export))
        });
        Ok(Box::pin(pages.map_ok(stream::iter).try_flatten()))
    }

    pub(super) fn check(
        &self,
        requests: Streaming<pb::CheckEventsRequest>,
        connection: ConnectionContext,
    ) -> ResponseStream<pb::CheckEventsResponse> {
        let (service, turns) = (self.clone(), connection.clone());
        answer_chunks(requests, connection, ASK_ELSEWHERE, move |asked| {
            let (service, turns) = (service.clone(), turns.clone());
            async move { check_chunk(&service.ledger, &turns, asked).await }
        })
    }

    pub(super) fn list_user(
        &self,
        request: pb::ListUserEventsRequest,
        connection: ConnectionContext,
    ) -> ResponseStream<pb::ListUserEventsResponse> {
        // The stream begins at once, because finding the pairs may take longer than a client waits for
        // its beginning.
        let service = self.clone();
        let long_call = connection.long_call();
        let found = stream::once(async move {
            let pb::ListUserEventsRequest { user_id, business_ids } = request;
            let search = async {
                let _turn = connection.search_turn(&service.searches).await?;
                let found = pairs_of_user(&service.ledger, &user_id, &business_ids).await;
                found.map_err(status::read_error)
            };
            let found = tokio::select! {
                () = connection.closing.cancelled() => {
                    return Err(Status::unavailable(ASK_ELSEWHERE));
                }
                found = search => found?,
            };
            let bytes = found.pairs.len().saturating_mul(USER_PAIR_BYTES);
            let charge =
                connection.budget.charge(Pool::Records, bytes).map_err(status::limit_reached)?;
            Ok(all_of(service.ledger, connection, found, (charge, long_call)))
        });
        Box::pin(found.try_flatten())
    }

    pub(super) async fn list_due(
        &self,
        request: pb::ListDueOptInsRequest,
        connection: ConnectionContext,
    ) -> Result<ResponseStream<pb::ListDueOptInsResponse>, Status> {
        let pb::ListDueOptInsRequest { business_id, since_time, until_time, pending } = request;
        let mut found = Vec::new();
        let since = convert::moment("since_time", since_time, &mut found);
        let until = convert::moment("until_time", until_time, &mut found);
        if !business_id.is_empty() {
            found.extend(BusinessId::recorded(&business_id).err());
        }
        if !found.is_empty() {
            return Err(status::invalid(&found));
        }
        let ledger = self.ledger.clone();
        let read_error = |error: LedgerError| status::read_error(error.into());
        let clock = ledger.read(Vec::new()).await.map_err(read_error)?.clock;
        let mut buckets = Vec::new();
        for partition in ledger.partitions().await.map_err(read_error)? {
            let count = partition.identity().await.map_err(read_error)?.buckets;
            buckets.push((partition, count));
        }
        let all = |(partition, count): (Partition, u32)| {
            (0..count).map(move |bucket| (partition.clone(), bucket))
        };
        let buckets = buckets.into_iter().flat_map(all);
        // `MAX` means that an opt-in never expires, and the span excludes it.
        let span = since.unwrap_or(clock)..until.unwrap_or(Timestamp::MAX);
        let filter = OptInFilter { span, unconfirmed_at: pending.then_some(clock) };
        let long_call = Arc::new(connection.long_call());
        let found = stream::iter(buckets).then(move |(partition, bucket)| {
            let (ledger, filter, connection) = (ledger.clone(), filter.clone(), connection.clone());
            let (long_call, business_id) = (Arc::clone(&long_call), business_id.clone());
            async move {
                let _long_call = long_call;
                if connection.closing.is_cancelled() {
                    return Err(Status::unavailable(ASK_ELSEWHERE));
                }
                let turn = connection.history_turn().await?;
                let due = expiring_opt_ins::in_bucket(&ledger, &partition, bucket, &filter).await;
                let mut due = due.map_err(status::read_error)?;
                due.retain(|(_, entry)| business_id.is_empty() || entry.business_id == business_id);
                let due = due.into_iter().map(|(due, by)| convert::due(&due, by));
                turn.page(due).map(stream::iter)
            }
        });
        Ok(Box::pin(found.try_flatten()))
    }
}

/// An export, as far as it has come.
struct Export {
    service: RecordService,
    connection: ConnectionContext,
    /// The only business that is exported; empty for all.
    business_id: String,
    since: Option<Timestamp>,
    /// Whether events about people are left out.
    templates_only: bool,
    /// The last revision of each partition that is exported.
    ends: Vec<Revision>,
    /// The ledger's, by which an entry's partition is found.
    identity: Arc<Identity>,
    /// Where the next page begins; `None` after the last one.
    next: Option<Cursor>,
    /// Charges the cursor.
    cache: Charge,
    _long_call: TaskTrackerToken,
}

impl Export {
    /// Reads the next page; `None` after the last one.
    async fn next_page(&mut self) -> Option<Result<Page<pb::ExportEventsResponse>, Status>> {
        let cursor = self.next.take()?;
        let closing = self.connection.closing.clone();
        Some(tokio::select! {
            biased;
            () = closing.cancelled() => {
                Err(Status::unavailable("the connection ends: export again on another"))
            }
            page = self.read(cursor) => page,
        })
    }

    async fn read(&mut self, cursor: Cursor) -> Result<Page<pb::ExportEventsResponse>, Status> {
        let turn = self.connection.history_turn().await?;
        let read = self.service.ledger.events_after(cursor).await;
        let Events { entries, next, by_revision } =
            read.map_err(|error| status::read_error(error.into()))?;
        self.next =
            next.filter(|next| !by_revision || self.ends.iter().any(|end| next.after < *end));
        let entries = entries.into_iter().filter(|(at, entry)| self.has(at, entry));
        let messages = entries.map(|(at, entry)| convert::exported(at, entry)).collect();
        let page = match turn.charge(messages) {
            // The page goes first: without its cache the cursor is only slower.
            Err((messages, _)) if self.cache.amount() > 0 => {
                self.next = self.next.take().map(Cursor::without_cache);
                self.cache = self.cache.empty();
                turn.charge(messages)
            }
            charged => charged,
        };
        let bytes = self.next.as_ref().map_or(0, Cursor::bytes);
        if self.cache.grow_to(bytes).is_err() {
            self.next = self.next.take().map(Cursor::without_cache);
            self.cache = self.cache.empty();
        }
        page.map_err(|(_, status)| status)
    }

    /// The last revision that is exported of the partition that an entry is in.
    fn end_of(&self, entry: &HistoryEntry) -> Revision {
        let [end] = self.ends[..] else {
            let Identity { secret, layout, .. } = &*self.identity;
            let (user, business) = (&entry.user_id, &entry.business_id);
            // What older versions recorded may still be where their reading of the id has it.
            let keys = secret.read(user, business).ok().into_iter();
            let keys = keys.chain(secret.read_formerly(user, business));
            let places = keys.filter_map(|key| usize::try_from(layout.partition_of(key)).ok());
            let ends = places.filter_map(|place| self.ends.get(place));
            return ends.copied().max().unwrap_or_default();
        };
        end
    }

    /// Whether an entry is exported.
    fn has(&self, at: &EntryPosition, entry: &HistoryEntry) -> bool {
        at.revision <= self.end_of(entry)
            && (self.business_id.is_empty() || entry.business_id == self.business_id)
            && self.since.is_none_or(|since| entry.record_time >= since)
            && !(self.templates_only && entry.what.subject() == Subject::Person)
    }
}

/// The history of a pair, page by page. Each page reads the whole history again and verifies it, so
/// that what a client does not take is not kept; almost all histories have one page.
struct Listing {
    ledger: Ledger,
    connection: ConnectionContext,
    pair: Key,
    /// The number of the last entry that was listed; `None` once all were.
    last: Option<u64>,
    _long_call: TaskTrackerToken,
}

impl Listing {
    fn new(ledger: Ledger, connection: ConnectionContext, pair: Key) -> Self {
        let long_call = connection.long_call();
        Self { ledger, connection, pair, last: Some(0), _long_call: long_call }
    }

    /// Reads the next page; `None` after the last one. The last one ends with the result of verifying
    /// the chain, and comes with whether that is broken.
    async fn next_page(&mut self) -> Result<Option<(Page<pb::ListEventsResponse>, bool)>, Status> {
        let Some(mut last) = self.last.take() else { return Ok(None) };
        if self.connection.closing.is_cancelled() {
            return Err(Status::unavailable(ASK_ELSEWHERE));
        }
        let turn = self.connection.history_turn().await?;
        let history = self.ledger.history(self.pair).await;
        let history = history.map_err(|error| status::read_error(error.into()))?;
        let end = pb::ListEventsResponse {
            chain: Some(convert::chain(&history)),
            ..pb::ListEventsResponse::default()
        };
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for (at, entry) in history.entries {
            if at.number <= last {
                continue;
            }
            if bytes >= LISTING_PAGE_BYTES {
                self.last = Some(last);
                break;
            }
            last = at.number;
            let message = convert::listed(at, entry);
            bytes += size_of_val(&message) + message.encoded_len();
            messages.push(message);
        }
        let is_last = self.last.is_none();
        messages.extend(is_last.then_some(end));
        Ok(Some((turn.page(messages.into_iter())?, is_last && !history.intact)))
    }

    /// The pages that are left.
    fn pages(
        self,
    ) -> impl Stream<Item = Result<(Page<pb::ListEventsResponse>, bool), Status>> + Send {
        stream::try_unfold(self, |mut listing| async move {
            Ok(listing.next_page().await?.map(|page| (page, listing)))
        })
    }
}

/// Everything about the pairs of one user. A broken history is reported after all pairs are listed, and
/// `held` is dropped then.
fn all_of(
    ledger: Ledger,
    connection: ConnectionContext,
    found: UserPairs,
    held: impl Send + 'static,
) -> impl Stream<Item = Result<pb::ListUserEventsResponse, Status>> + Send {
    use pb::list_user_events_response::What;
    let UserPairs { pairs, clock } = found;
    let broken = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broken);
    let pairs = stream::iter(pairs).flat_map(move |pair| {
        let seen = Arc::clone(&seen);
        let pages = Listing::new(ledger.clone(), connection.clone(), pair.key).pages();
        let listed = pages.map_ok(move |(page, is_broken)| {
            seen.fetch_or(is_broken, Ordering::Relaxed);
            stream::iter(page.map(|listed| listed.map(What::Listed)))
        });
        stream::iter([Ok(What::Pair(user_pair(pair, clock)))]).chain(listed.try_flatten())
    });
    let pairs = pairs.map_ok(|what| pb::ListUserEventsResponse { what: Some(what) });
    let end = stream::once(async move {
        drop(held);
        broken.load(Ordering::Relaxed)
    });
    let end =
        end.filter_map(|broken| async move { broken.then(|| Err(Status::data_loss(BROKEN))) });
    pairs.chain(end)
}

/// The state of one pair of a user.
fn user_pair(pair: UserPair, clock: Timestamp) -> pb::UserPair {
    let state = &pair.stored.record.state;
    let ResolvedState { profile, last_inbound, expiries } = ResolvedState::of(state);
    let times = expiries.as_ref().into();
    let (opted_in, opted_out) = profile.in_force(times, clock);
    let failures = profile.held_failures(times, clock);
    let names = |scopes: Vec<_>| scopes.iter().map(ToString::to_string).collect();
    let consent = pb::GetConsentResponse {
        last_inbound_time: last_inbound.map(convert::timestamp),
        opted_in: names(opted_in),
        opted_out: names(opted_out),
        platform_stopped: profile.platform_stopped(),
        stopped_phone_number_ids: convert::stopped_numbers(profile.stops()),
        suppressed: profile.suppressed(),
        revision: pair.stored.version.revision,
        staleness: None,
        pair_key: convert::pair_key(pair.key),
        failures: failures.iter().map(convert::held_failure).collect(),
    };
    pb::UserPair { business_id: pair.business_id, consent: Some(consent) }
}

/// Verifies exported events. Each pair's history is read once.
async fn check_chunk(
    ledger: &Ledger,
    connection: &ConnectionContext,
    asked: Vec<pb::CheckEventsRequest>,
) -> Vec<pb::CheckEventsResponse> {
    use pb::check_events_response::Result as Pb;
    let mut pairs: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (index, request) in asked.iter().enumerate() {
        let event = request.exported.as_ref().and_then(|exported| exported.event.as_ref());
        let ids = event.map(|event| (event.user_id.clone(), event.business_id.clone()));
        pairs.entry(ids.unwrap_or_default()).or_default().push(index);
    }
    let mut answers: Vec<_> = asked
        .iter()
        .map(|request| pb::CheckEventsResponse { sequence: request.sequence, result: None })
        .collect();
    for ((user_id, business_id), indices) in pairs {
        let history = {
            let _turn = connection.history_turn().await;
            history::of_pair(ledger, &user_id, &business_id).await
        };
        for index in indices {
            let (Some(request), Some(answer)) = (asked.get(index), answers.get_mut(index)) else {
                continue;
            };
            answer.result = Some(match &history {
                Ok(history) => match finding(history, request.exported.as_ref()) {
                    Ok(finding) => Pb::Finding(finding.into()),
                    Err(violation) => Pb::Error(pb::ItemError {
                        code: Code::InvalidArgument.into(),
                        field: violation.field,
                        message: violation.description,
                    }),
                },
                Err(error) => Pb::Error(status::item_refusal(&error.clone().into())),
            });
        }
    }
    answers
}

/// Compares an exported event with its history of today.
fn finding(
    history: &History,
    exported: Option<&pb::ExportEventsResponse>,
) -> Result<pb::check_events_response::Finding, Violation> {
    use pb::check_events_response::Finding;
    let wrong = |field: &str, why: &str| Violation::new(format!("exported.{field}"), why);
    let exported = exported.ok_or_else(|| wrong("event", "required: what was exported"))?;
    let head = <ChainHead>::try_from(&*exported.chain_head)
        .map_err(|_| wrong("chain_head", "must be the 32 bytes that the export has"))?;
    if exported.number == 0 {
        return Err(wrong("number", "required: the event's number, from 1"));
    }
    if exported.number <= history.record.history_start().0 {
        // The user was erased since: nothing is left to compare it with.
        return Ok(Finding::Expired);
    }
    let Some(today) = history.head_after(exported.number) else { return Ok(Finding::Missing) };
    if today != head {
        return Ok(Finding::Changed);
    }
    let entry = history.entries.iter().find(|(at, _)| at.number == exported.number);
    let Some((at, entry)) = entry else {
        return Ok(if history.intact { Finding::Expired } else { Finding::ChainBroken });
    };
    let now = convert::exported(*at, entry.clone());
    if now.event != exported.event || now.record_time != exported.record_time {
        return Ok(Finding::ExportChanged);
    }
    Ok(if history.intact { Finding::Same } else { Finding::ChainBroken })
}
