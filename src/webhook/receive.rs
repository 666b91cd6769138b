//! One webhook request: from its bytes to its response.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::credentials::ReceiverConfig;
use super::signature::{Signatures, Verdict, signatures, verify};
use super::{
    BODY_TIMEOUT, MAX_BODY_BYTES, MAX_DRAINED_BYTES, MAX_INLINE_BYTES, PERMIT_TIMEOUT,
    RECORDING_TIMEOUT, Sender, Webhook,
};
use crate::budget::{Charge, Pool};
use crate::recorder::{MAX_EVENTS, Recorded, Refusal};
use crate::whatsapp::{self, ParsedPayload, PayloadError, UpdateKind, WebhookUpdate};
use consentd_core::submission::Submission;
use consentd_os::clock;

/// The value of `Retry-After`: when to repeat a request, in seconds.
const RETRY_AFTER_SECONDS: &str = "5";

/// The longest challenge that is echoed.
const MAX_CHALLENGE_BYTES: usize = 256;

/// For how long WhatsApp repeats a request that was not answered with 200.
const RETRY_PERIOD: Duration = Duration::from_hours(7 * 24);

/// Why a request was not answered with 200.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(
        "no signature: the HMAC-SHA256 of the body, in X-Hub-Signature-256 or the BSP's header"
    )]
    Unsigned,
    #[error("the signature is not that of these bytes under any secret of its header")]
    WrongSignature,
    #[error("a body of more than 3 MiB")]
    TooLarge,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body did not arrive")]
    Broken,
    #[error(transparent)]
    BadPayload(#[from] PayloadError),
    #[error("overloaded: too many requests at once; send it again")]
    Busy,
    #[error("not recorded yet; send it again")]
    NotDurable,
}

impl ReceiveError {
    fn status(&self) -> StatusCode {
        match self {
            // Not 401, which would have to name an authentication scheme.
            Self::Unsigned | Self::WrongSignature => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::BadPayload(_) => StatusCode::BAD_REQUEST,
            Self::Busy | Self::NotDurable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for ReceiveError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, format!("{self}\n")).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let after = header::HeaderValue::from_static(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

/// Answers the verification request that WhatsApp sends when a webhook is configured.
pub(super) async fn handshake(
    State(webhook): State<Webhook>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let parameter = |name| asked.get(name).map_or("", String::as_str);
    let config = webhook.config.load();
    let token = parameter("hub.verify_token");
    if !config.verify_tokens.as_ref().is_some_and(|tokens| tokens.contains(token)) {
        return (StatusCode::FORBIDDEN, "hub.verify_token is not the configured one\n")
            .into_response();
    }
    let challenge = parameter("hub.challenge");
    if parameter("hub.mode") != "subscribe" || !(1..=MAX_CHALLENGE_BYTES).contains(&challenge.len())
    {
        return (StatusCode::BAD_REQUEST, "hub.mode=subscribe and a hub.challenge are needed\n")
            .into_response();
    }
    let as_text = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (as_text, challenge.to_owned()).into_response()
}

/// Records the events of a request.
pub(super) async fn receive(State(webhook): State<Webhook>, request: Request) -> Response {
    match webhook.receive(request).await {
        Ok(()) => "recorded\n".into_response(),
        Err(refused) => refused.into_response(),
    }
}

impl Webhook {
    async fn receive(&self, request: Request) -> Result<(), ReceiveError> {
        let (parts, body) = request.into_parts();
        let sender = parts.extensions.get::<Sender>().ok_or(ReceiveError::Busy)?;
        // A body takes no permit until it has arrived: its bytes are charged as they come, and its
        // connection may be closed for another.
        let mut charge = sender.share.charge(Pool::Webhooks, 0).map_err(|_| ReceiveError::Busy)?;
        // The body is read even without a signature, so that the sender gets to read the response.
        let body = timeout(BODY_TIMEOUT, read_body(body, &mut charge)).await;
        let body = body.map_err(|_| ReceiveError::TooSlow)??;
        let _records = RecordingGuard::begin(&sender.records);
        let place = acquire(&self.parsing).await?;
        let payload = self.verify_and_parse(&parts.headers, body).await?;
        drop(place);
        let now = clock::wall();
        for arrival in &payload.arrivals {
            let (field, kind) = (arrival.field, arrival.kind.name());
            self.metrics.webhook_arrived(field, kind, &arrival.number, now);
        }
        for ((kind, cause), count) in &payload.skipped {
            self.metrics.webhook_skipped(kind.name(), cause.name(), cause.is_malformed(), *count);
        }
        self.warnings.skipped(&payload);
        if payload.links.is_empty() && payload.updates.is_empty() {
            return Ok(());
        }
        let _place = acquire(&self.recording).await?;
        match timeout(RECORDING_TIMEOUT, self.record(payload)).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ReceiveError::NotDurable),
        }
    }

    /// Verifies a body's signature, and only then parses it.
    async fn verify_and_parse(
        &self,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<ParsedPayload, ReceiveError> {
        let config = self.config.load_full();
        let signatures = signatures(&config.signers, headers);
        let judged = if body.len() <= MAX_INLINE_BYTES {
            verify_and_parse(&config, &signatures, &body)
        } else {
            // A large body would hold up the other requests of this thread.
            let judged =
                tokio::task::spawn_blocking(move || verify_and_parse(&config, &signatures, &body));
            judged.await.unwrap_or(Err(ReceiveError::NotDurable))
        };
        match &judged {
            Err(ReceiveError::Unsigned) => self.warnings.bad_signature("it is missing"),
            Err(ReceiveError::WrongSignature) => self.warnings.bad_signature("it is wrong"),
            _ => {}
        }
        judged
    }

    /// Records all updates. Returns whether each one is durable, or can never be recorded.
    ///
    /// Links come first: what is denied under one id of a user denies under the other before an event
    /// may allow there. If two ids could not be linked, an event that allows counts under its first id
    /// alone. A failed link may be written under the second id although denials are missing there, so
    /// that a copy waits for the link's outcome, besides what the recorder knows of the link.
    async fn record(&self, payload: ParsedPayload) -> bool {
        let ParsedPayload { links, mut updates, .. } = payload;
        let linked = self.record_updates(links).await;
        for update in &mut updates {
            let copies = std::mem::take(&mut update.copies).into_iter();
            let copies = copies.filter(|copy| {
                linked.get(copy.link).is_some_and(|outcome| *outcome <= UpdateOutcome::Applied)
            });
            update.submissions.extend(copies.map(|copy| copy.submission));
        }
        let recorded = self.record_updates(updates).await;
        linked.iter().chain(&recorded).all(|outcome| *outcome != UpdateOutcome::Failed)
    }

    /// Records updates. Returns the outcome of each.
    async fn record_updates(&self, updates: Vec<WebhookUpdate>) -> Vec<UpdateOutcome> {
        if updates.is_empty() {
            return Vec::new();
        }
        let mut kinds = Vec::with_capacity(updates.len());
        let mut submissions = Vec::with_capacity(updates.len());
        let mut places = Vec::with_capacity(updates.len());
        for (place, update) in updates.into_iter().enumerate() {
            kinds.push((update.kind, UpdateOutcome::Unchanged));
            places.extend(update.submissions.iter().map(|_| place));
            submissions.extend(update.submissions);
        }
        let mut ahead = Vec::new();
        let mut denials = Vec::new();
        let results = self.record_all(&submissions).await;
        for ((place, submission), result) in places.into_iter().zip(&submissions).zip(results) {
            let denial = result.as_ref().filter(|result| is_ahead(result));
            let denial = denial.and_then(|_| whatsapp::denial_at_arrival(submission));
            let outcome =
                result.map_or(UpdateOutcome::Failed, |result| self.classify(submission, &result));
            if let Some(denial) = denial {
                ahead.push((place, outcome));
                denials.push(denial);
            } else {
                raise(&mut kinds, place, outcome);
            }
        }
        // A denial whose time is too far ahead of the ledger's clock is recorded as of its arrival.
        // If it can still be recorded under its own time later, the request fails, so that it is
        // repeated: under its own time the denial outranks more allows.
        let results = self.record_all(&denials).await;
        for (((place, before), denial), result) in ahead.into_iter().zip(&denials).zip(results) {
            let outcome =
                result.map_or(UpdateOutcome::Failed, |result| self.classify(denial, &result));
            let is_recorded = before == UpdateOutcome::Refused && outcome == UpdateOutcome::Applied;
            raise(&mut kinds, place, if is_recorded { outcome } else { outcome.max(before) });
        }
        for (kind, outcome) in &kinds {
            self.metrics.webhook_update(kind.name(), outcome.name());
        }
        kinds.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Records any number of events. Returns the outcome of each, or `None` if it was not tried.
    async fn record_all(&self, submissions: &[Submission]) -> Vec<Option<Recorded>> {
        let mut all: Vec<Option<Recorded>> = Vec::with_capacity(submissions.len());
        for chunk in submissions.chunks(MAX_EVENTS) {
            let results = self.recorder.record(chunk).await;
            let is_gone = is_ledger_gone(&results);
            all.extend(results.into_iter().map(Some));
            if is_gone {
                // The rest would fail, too.
                break;
            }
        }
        all.resize(submissions.len(), None);
        all
    }

    fn classify(&self, submission: &Submission, result: &Recorded) -> UpdateOutcome {
        match result {
            Ok(outcome) if outcome.applied => UpdateOutcome::Applied,
            Ok(_) => UpdateOutcome::Unchanged,
            Err(refusal) if may_succeed_later(submission, refusal) => {
                self.warnings.failed(refusal);
                UpdateOutcome::Failed
            }
            Err(refusal) => {
                self.warnings.refused(refusal);
                UpdateOutcome::Refused
            }
        }
    }
}

/// The outcome of an update, from the best to the worst.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum UpdateOutcome {
    Unchanged,
    Applied,
    Refused,
    Failed,
}

impl UpdateOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Replaces the outcome of the update at `place` if `outcome` is worse.
fn raise(kinds: &mut [(UpdateKind, UpdateOutcome)], place: usize, outcome: UpdateOutcome) {
    if let Some((_, worst)) = kinds.get_mut(place) {
        *worst = outcome.max(*worst);
    }
}

/// Whether the ledger has failed, by the results of recording some events. One that has recorded any of them may have
/// lost a partition, and records in the others.
fn is_ledger_gone(results: &[Recorded]) -> bool {
    let fails = |result: &Recorded| matches!(result, Err(Refusal::Ledger(_) | Refusal::Unknown(_)));
    results.iter().any(fails) && !results.iter().any(Result::is_ok)
}

/// Whether an event was refused only because its time is too far ahead of the ledger's clock.
fn is_ahead(result: &Recorded) -> bool {
    match result {
        Err(Refusal::Invalid(found)) => found.iter().all(|found| found.field == "event_time"),
        _ => false,
    }
}

/// Whether an event that was not recorded may be recorded when the request is repeated.
fn may_succeed_later(submission: &Submission, refusal: &Refusal) -> bool {
    match refusal {
        // A time ahead of the ledger's clock is valid once the clock has moved on or was corrected:
        // a STOP must not be lost because of a clock that is slow.
        Refusal::Invalid(_) => {
            let soon = clock::wall().plus(RETRY_PERIOD);
            let is_soon = submission.event.time.is_some_and(|time| time <= soon);
            is_soon && is_ahead(&Err(refusal.clone()))
        }
        Refusal::TooManyScopes(_) | Refusal::TooManyIds(_) | Refusal::TooManyBusinesses(_) => false,
        // An unreadable record may be repaired, or read by a newer version.
        Refusal::Unreadable(_)
        | Refusal::Contended
        | Refusal::Ledger(_)
        // Whether it is recorded is unknown, and recording it again is idempotent.
        | Refusal::Unknown(_) => true,
    }
}

async fn acquire(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ReceiveError> {
    match timeout(PERMIT_TIMEOUT, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(ReceiveError::Busy),
    }
}

/// Marks a connection as busy until dropped, so that it is not closed for another.
struct RecordingGuard<'a>(&'a AtomicBool);

impl<'a> RecordingGuard<'a> {
    fn begin(records: &'a AtomicBool) -> Self {
        records.store(true, Ordering::Relaxed);
        Self(records)
    }
}

impl Drop for RecordingGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Reads a body and charges its bytes as they arrive. Nothing of a body that is too large is kept.
async fn read_body(mut body: Body, charge: &mut Charge) -> Result<Bytes, ReceiveError> {
    let announced = body.size_hint().lower();
    let mut too_large = announced > MAX_BODY_BYTES as u64;
    let mut kept = BytesMut::new();
    let (mut length, mut paid) = (0_usize, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ReceiveError::Broken)?.into_data() else { continue };
        length = length.saturating_add(data.len());
        too_large |= length > MAX_BODY_BYTES;
        if length > MAX_DRAINED_BYTES {
            break;
        }
        if too_large {
            kept = BytesMut::new();
        } else {
            kept.extend_from_slice(&data);
            // The buffer may be twice as large as what has arrived.
            let more = kept.capacity().saturating_sub(paid);
            charge.grow(more).map_err(|_| ReceiveError::Busy)?;
            paid += more;
        }
    }
    if too_large { Err(ReceiveError::TooLarge) } else { Ok(kept.freeze()) }
}

fn verify_and_parse(
    config: &ReceiverConfig,
    signatures: &Signatures,
    body: &[u8],
) -> Result<ParsedPayload, ReceiveError> {
    match verify(&config.signers, signatures, body) {
        Verdict::Signed => Ok(whatsapp::parse(body, &config.rules)?),
        Verdict::Wrong => Err(ReceiveError::WrongSignature),
        Verdict::Missing => Err(ReceiveError::Unsigned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consentd_core::record::Outcome;
    use consentd_ledger::LedgerError;

    #[test]
    fn ledger_that_has_recorded_some_events_is_not_gone() {
        let recorded: Recorded = Ok(Outcome::default());
        let failed: Recorded = Err(Refusal::Ledger(LedgerError::Busy));
        assert!(is_ledger_gone(&[failed.clone(), failed.clone()]));
        assert!(is_ledger_gone(&[failed.clone(), Err(Refusal::Contended)]));
        assert!(!is_ledger_gone(&[failed, recorded.clone()]));
        assert!(!is_ledger_gone(&[recorded]) && !is_ledger_gone(&[]));
    }
}
