//! The encoding of records, log entries and history entries, as protobuf messages. It is the same in
//! every kind of ledger.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

use prost::Message as _;

use super::{LogBody, UndecodedEntry, UnreadableRecord};
use consentd_core::businesses::Businesses;
use consentd_core::claims::Claim;
use consentd_core::failure::UserFailure;
use consentd_core::id::{Key, PhoneNumberId};
use consentd_core::platform_stops::{PlatformStops, Preferences};
use consentd_core::record::{Erased, FORMAT, Link, Outcome, Record, Request};
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, ChoiceKind, Pending, ScopeState, State};
use consentd_core::time::Timestamp;

mod history_entry;
mod plain_record;

pub(super) use self::history_entry::{
    decode_history, encode_history, statement_digest_of, statement_of,
};

pub(super) use self::plain_record::decode_record_for_table;

#[allow(missing_docs, unreachable_pub, rustdoc::all, clippy::pedantic, reason = "generated")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/consentd.ledger.v1.rs"));
}

/// The format of records without links and erasures, which every version reads.
const PLAIN: u32 = 1;

/// The format of records with links or an erasure, and no numbers.
const LINKED: u32 = 2;

/// The newest format of log entries.
const ENTRY_FORMAT: u32 = 1;

/// Encodes a record.
pub(super) fn encode_record(record: &Record) -> Vec<u8> {
    let state = &record.state;
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millis);
    let platform = state.platform.aggregated();
    pb::Record {
        format: format_of(record),
        scopes: state
            .scopes
            .iter()
            .map(|(scope, scope_state)| encode_scope(scope, *scope_state))
            .collect(),
        last_inbound: millis(state.last_inbound),
        window_closed: millis(state.window_closed),
        capped: millis(state.capped),
        failure: state.failure.map(|(time, code)| pb::Failure { time: time.as_millis(), code }),
        user_failures: state
            .user_failures
            .iter()
            .map(|(failure, time)| pb::Failure { time: time.as_millis(), code: failure.code() })
            .collect(),
        platform: encode_mark(platform.latest, platform.last_stop),
        suppression: encode_mark(state.suppression, state.last_suppressed),
        requests: record.requests.iter().map(encode_request).collect(),
        history_len: record.history_len,
        chain: record.chain.to_vec(),
        links: record.links.iter().map(encode_link).collect(),
        erased: record.erased.as_ref().map(|erased| pb::Erased {
            time: erased.time.as_millis(),
            history_len: erased.history_len,
            chain: erased.chain.to_vec(),
        }),
        clamped: state.clamped.iter().map(|moment| moment.as_millis()).collect(),
        claims: state.claims.iter().map(encode_claim).collect(),
        platform_numbers: encode_numbers(&state.platform),
    }
    .encode_to_vec()
}

/// The oldest format that has all of a record: what knows only older ones must not rewrite it.
fn format_of(record: &Record) -> u32 {
    if has_numbers(&record.state.platform) {
        FORMAT
    } else if record.links.is_empty() && record.erased.is_none() {
        PLAIN
    } else {
        LINKED
    }
}

fn has_numbers(platform: &PlatformStops) -> bool {
    platform.numbered().next().is_some()
}

fn encode_mark(mark: Option<(Timestamp, bool)>, last: Option<Timestamp>) -> Option<pb::Mark> {
    mark.map(|(time, set)| {
        let last = last.filter(|last| !set || *last != time);
        pb::Mark { time: time.as_millis(), set, last_set: last.map(Timestamp::as_millis) }
    })
}

/// What was said at each number, if any number is known. Without one, the record's own mark has it all.
fn encode_numbers(platform: &PlatformStops) -> Vec<pb::PlatformNumber> {
    let all = platform.iter().filter(|_| has_numbers(platform));
    let numbers = all.map(|(number, preferences)| pb::PlatformNumber {
        phone_number_id: encode_number(number),
        mark: encode_mark(preferences.latest, preferences.last_stop),
    });
    numbers.collect()
}

/// The id of a number; empty if there is none.
fn encode_number(number: Option<&PhoneNumberId>) -> String {
    number.map(ToString::to_string).unwrap_or_default()
}

/// Converts the id of a number; the outer `None` means that it is set but invalid.
#[allow(clippy::option_option, reason = "unset, invalid and set are three things")]
fn number_of(id: &str) -> Option<Option<PhoneNumberId>> {
    if id.is_empty() { Some(None) } else { PhoneNumberId::parse(id).ok().map(Some) }
}

fn encode_claim(claim: Claim) -> pb::Claim {
    pb::Claim {
        from: claim.from.as_millis(),
        until: claim.until.as_millis(),
        moment: claim.moment.as_millis(),
    }
}

fn claim_of(claim: pb::Claim) -> Option<Claim> {
    Some(Claim {
        from: Timestamp::from_millis(claim.from)?,
        until: Timestamp::from_millis(claim.until)?,
        moment: Timestamp::from_millis(claim.moment)?,
    })
}

fn encode_scope(scope: &Scope, scope_state: ScopeState) -> pb::ScopeWords {
    let opt_in = |time: Timestamp, expire: Option<Timestamp>, confirms| pb::OptInWord {
        time: time.as_millis(),
        expire: expire.map(Timestamp::as_millis),
        confirms,
    };
    let mut words = pb::ScopeWords { scope: scope.to_string(), ..Default::default() };
    match scope_state.choice {
        Some(Choice { time, kind: ChoiceKind::OptOut }) => words.opt_out = Some(time.as_millis()),
        Some(Choice { time, kind: ChoiceKind::OptIn { expire, confirms } }) => {
            words.opt_in = Some(opt_in(time, expire, confirms));
        }
        None => {}
    }
    words.pending =
        scope_state.pending.map(|pending| opt_in(pending.time, pending.expire(), false));
    let replaced = scope_state.opt_out.filter(|_| words.opt_out.is_none());
    words.replaced_opt_out = replaced.map(Timestamp::as_millis);
    words
}

fn encode_request(request: &Request) -> pb::Request {
    pb::Request {
        id: request.id.to_vec(),
        what: request.what.to_vec(),
        revision: request.outcome.revision,
        applied: request.outcome.applied,
        opted_out_scope: request.outcome.opted_out_scope.clone(),
        opted_in_category: request.outcome.opted_in_category.clone(),
        matched_keyword: request.outcome.matched_keyword.clone(),
        keyword_locale: request.outcome.keyword_locale.clone(),
        time: request.time.map(Timestamp::as_millis),
    }
}

fn encode_link(link: &Link) -> pb::LinkedId {
    pb::LinkedId { user_id: link.user_id.clone(), time: link.time.as_millis(), moved: link.moved }
}

/// Decodes a record.
pub(super) fn decode_record(bytes: &[u8]) -> Result<Record, UnreadableRecord> {
    let record = pb::Record::decode(bytes).map_err(|_| UnreadableRecord::Damaged)?;
    if record.format > FORMAT {
        return Err(UnreadableRecord::Newer { format: record.format });
    }
    record_of(record).ok_or(UnreadableRecord::Damaged)
}

fn record_of(record: pb::Record) -> Option<Record> {
    let mut state = State::default();
    for words in record.scopes {
        let scope = Scope::parse(&words.scope).ok()?;
        let times = ScopeTimes {
            opt_out: words.opt_out,
            opt_in: words.opt_in,
            pending: words.pending,
            replaced_opt_out: words.replaced_opt_out,
        };
        state.scopes.insert(scope, scope_state_of(times)?);
    }
    state.last_inbound = optional(record.last_inbound)?;
    state.window_closed = optional(record.window_closed)?;
    state.capped = optional(record.capped)?;
    state.failure = match record.failure {
        None => None,
        Some(failure) => Some((Timestamp::from_millis(failure.time)?, failure.code)),
    };
    for failure in record.user_failures {
        let time = Timestamp::from_millis(failure.time)?;
        // A later version may know more of them.
        if let Some(known) = UserFailure::of(failure.code) {
            state.user_failures.raise(known, time);
        }
    }
    // Versions before have the latest failure alone.
    if let Some((time, code)) = state.failure
        && let Some(known) = UserFailure::of(code)
    {
        state.user_failures.raise(known, time);
    }
    state.platform = platform_of(record.platform, record.platform_numbers)?;
    (state.suppression, state.last_suppressed) = mark_of(record.suppression)?;
    state.clamped =
        record.clamped.into_iter().map(Timestamp::from_millis).collect::<Option<_>>()?;
    for claim in record.claims {
        state.claims.add(claim_of(claim)?);
    }
    let requests = record.requests.into_iter().map(request_of).collect::<Option<_>>()?;
    let chain = record.chain.try_into().ok()?;
    let links = record.links.into_iter().map(link_of).collect::<Option<_>>()?;
    let erased = match record.erased.map(erased_of) {
        None => None,
        Some(erased) => Some(Box::new(erased?)),
    };
    Some(Record { state, history_len: record.history_len, chain, requests, links, erased })
}

/// What a message of a scope has beside its name.
#[derive(Clone, Copy, Default)]
struct ScopeTimes {
    opt_out: Option<i64>,
    opt_in: Option<pb::OptInWord>,
    pending: Option<pb::OptInWord>,
    replaced_opt_out: Option<i64>,
}

fn scope_state_of(times: ScopeTimes) -> Option<ScopeState> {
    let out = optional(times.opt_out)?;
    let confirms = times.opt_in.as_ref().is_some_and(|choice| choice.confirms);
    let opt_in = times.opt_in.map(opt_in_of);
    let choice = match (out, opt_in) {
        (None, None) => None,
        (Some(out), None) => Some(Choice::opt_out(out)),
        (None, Some(opt_in)) => {
            let (time, expire) = opt_in?;
            let make = if confirms { Choice::confirmed } else { Choice::opt_in };
            Some(make(time, expire))
        }
        (Some(_), Some(_)) => return None,
    };
    let opt_out = out.max(optional(times.replaced_opt_out)?);
    let pending = match times.pending.map(opt_in_of) {
        None => None,
        Some(pending) => pending.map(|(time, expire)| Some(Pending::new(time, expire)))?,
    };
    Some(ScopeState { choice, pending, opt_out })
}

/// A mark, and when it was last set.
type DecodedMark = (Option<(Timestamp, bool)>, Option<Timestamp>);

fn mark_of(mark: Option<pb::Mark>) -> Option<DecodedMark> {
    let Some(mark) = mark else { return Some((None, None)) };
    let time = Timestamp::from_millis(mark.time)?;
    let last = optional(mark.last_set)?.max(mark.set.then_some(time));
    Some((Some((time, mark.set)), last))
}

fn platform_of(alone: Option<pb::Mark>, numbers: Vec<pb::PlatformNumber>) -> Option<PlatformStops> {
    let mut platform = PlatformStops::default();
    let mut set = |number, mark: Option<pb::Mark>| {
        if mark.is_some() {
            let (latest, last_stop) = mark_of(mark)?;
            platform.set(number, Preferences { latest, last_stop });
        }
        Some(())
    };
    if numbers.is_empty() {
        set(None, alone)?;
    }
    for number in numbers {
        set(number_of(&number.phone_number_id)?, number.mark)?;
    }
    Some(platform)
}

fn link_of(link: pb::LinkedId) -> Option<Link> {
    let time = Timestamp::from_millis(link.time)?;
    Some(Link { user_id: link.user_id, time, moved: link.moved })
}

fn erased_of(erased: pb::Erased) -> Option<Erased> {
    let time = Timestamp::from_millis(erased.time)?;
    Some(Erased { time, history_len: erased.history_len, chain: erased.chain.try_into().ok()? })
}

fn opt_in_of(choice: pb::OptInWord) -> Option<(Timestamp, Option<Timestamp>)> {
    Some((Timestamp::from_millis(choice.time)?, optional(choice.expire)?))
}

/// Converts an optional time; the outer `None` means that it is set but out of bounds.
#[allow(clippy::option_option, reason = "unset, out of bounds and set are three things")]
fn optional(millis: Option<i64>) -> Option<Option<Timestamp>> {
    match millis {
        None => Some(None),
        Some(millis) => Timestamp::from_millis(millis).map(Some),
    }
}

fn request_of(request: pb::Request) -> Option<Request> {
    Some(Request {
        id: request.id.try_into().ok()?,
        what: request.what.try_into().ok()?,
        outcome: Outcome {
            revision: request.revision,
            applied: request.applied,
            opted_out_scope: request.opted_out_scope,
            opted_in_category: request.opted_in_category,
            matched_keyword: request.matched_keyword,
            keyword_locale: request.keyword_locale,
        },
        time: optional(request.time)?,
    })
}

/// Encodes a log entry's body, whose record is encoded already.
pub(super) fn encode_log(body: &LogBody, record: &[u8]) -> Vec<u8> {
    pb::LogEntry {
        format: ENTRY_FORMAT,
        key: body.key.to_bytes().to_vec(),
        user_id: body.user_id.clone(),
        business_id: body.business_id.clone(),
        record: record.to_vec(),
        record_time: body.record_time.as_millis(),
        padding: Vec::new(),
    }
    .encode_to_vec()
}

/// Padding that lengthens an encoded log entry by at least `length` bytes when it is appended. It is
/// a field that decoders ignore.
pub(super) fn padding(length: usize) -> Vec<u8> {
    pb::LogEntry { padding: vec![0; length], ..Default::default() }.encode_to_vec()
}

/// The bytes before the key in a log entry's body of a known format: the format, and the key's length.
const BEFORE_KEY: [u8; 4] = [1 << 3, 1, (2 << 3) | 2, 16];

/// The key of the pair that a log entry's body is about, by the bytes at the key's place alone; `None` if the
/// body does not begin as those that are written do.
fn key_of_log(bytes: &[u8]) -> Option<Key> {
    Some(Key::from_bytes(*bytes.strip_prefix(&BEFORE_KEY)?.first_chunk()?))
}

/// Decodes a log entry's body, unless it is about a pair that none of these businesses has.
pub(super) fn decode_log_of(
    businesses: &Businesses,
    bytes: &[u8],
) -> Result<LogBody, UndecodedEntry> {
    match key_of_log(bytes) {
        Some(key) if !businesses.holds_key(key) => Err(UndecodedEntry::Skipped(key)),
        _ => decode_log(bytes),
    }
}

/// Decodes a log entry's body.
pub(super) fn decode_log(bytes: &[u8]) -> Result<LogBody, UndecodedEntry> {
    let entry = pb::LogEntry::decode(bytes).map_err(|_| UndecodedEntry::Unreadable)?;
    if entry.format > ENTRY_FORMAT {
        return Err(UndecodedEntry::Unreadable);
    }
    let key = entry.key.try_into().map_err(|_| UndecodedEntry::Unreadable)?;
    let record_time = Timestamp::from_millis(entry.record_time);
    Ok(LogBody {
        key: Key::from_bytes(key),
        user_id: entry.user_id,
        business_id: entry.business_id,
        record: decode_record(&entry.record),
        record_time: record_time.ok_or(UndecodedEntry::Unreadable)?,
    })
}

/// The offsets of the key and the record inside an encoded body, so that a Lua script can read them
/// without a decoder.
pub(super) fn places_in_log(body: &LogBody, record: &[u8], bytes: &[u8]) -> Option<(usize, usize)> {
    use prost::encoding::{encoded_len_varint, key_len};
    let format = key_len(1).checked_add(encoded_len_varint(ENTRY_FORMAT.into()))?;
    // The key's length takes one byte.
    let key = format.checked_add(key_len(2))?.checked_add(1)?;
    let time = match body.record_time.as_millis() {
        0 => 0, // proto3 does not encode a zero.
        time => key_len(6).checked_add(encoded_len_varint(time.cast_unsigned()))?,
    };
    let record = bytes.len().checked_sub(time)?.checked_sub(record.len())?;
    Some((key, record))
}

/// Decodes only the key and the encoded record of a log entry's body, whatever their formats.
pub(super) fn decode_pair(bytes: &[u8]) -> Option<(Key, Vec<u8>)> {
    let entry = pb::LogEntry::decode(bytes).ok()?;
    Some((Key::from_bytes(entry.key.try_into().ok()?), entry.record))
}

#[cfg(test)]
mod tests;
