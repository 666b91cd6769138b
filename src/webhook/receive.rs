//! One request: from its bytes to its answer.

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

use super::credentials::Setup;
use super::{
    BODY, INLINE_BYTES, MAX_BODY_BYTES, MAX_DRAINED_BYTES, RECORDING, ROOM, Sender, Webhook,
};
use crate::budget::{Charge, Pool};
use crate::recorder::{MAX_EVENTS, Recorded, Refusal, Submission};
use crate::whatsapp::{self, ParsedPayload, PayloadError, UpdateKind};
use consentd_os::clock;

/// The header that has a request's signature.
const SIGNATURE: &str = "x-hub-signature-256";

/// In how many seconds to try again.
const RETRY_AFTER: &str = "5";

/// The longest challenge that is said back.
const MAX_CHALLENGE_BYTES: usize = 256;

/// For how long the platform sends again what was not answered with 200.
const RETRIED_FOR: Duration = Duration::from_hours(7 * 24);

/// Why a request was not answered with 200.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("no X-Hub-Signature-256: sha256= and the HMAC of the body in hexadecimal")]
    Unsigned,
    #[error("the signature is not that of these bytes under any of the app's secrets")]
    WrongSignature,
    #[error("a body of more than 3 MiB")]
    TooLarge,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body did not arrive")]
    Broken,
    #[error(transparent)]
    BadPayload(#[from] PayloadError),
    #[error("too many requests at once; send it again")]
    Busy,
    #[error("not recorded yet; send it again")]
    NotDurable,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            // And not 401: that would have to name a challenge, and the sender knows of none.
            Self::Unsigned | Self::WrongSignature => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::BadPayload(_) => StatusCode::BAD_REQUEST,
            Self::Busy | Self::NotDurable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, format!("{self}\n")).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let after = header::HeaderValue::from_static(RETRY_AFTER);
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

/// Shows the platform that this is the address it was told of.
pub(super) async fn handshake(
    State(webhook): State<Webhook>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    let said = |name| asked.get(name).map_or("", String::as_str);
    if !webhook.setup.load().verify_tokens.include(said("hub.verify_token")) {
        return (StatusCode::FORBIDDEN, "hub.verify_token is not the one that is set up here\n")
            .into_response();
    }
    let challenge = said("hub.challenge");
    if said("hub.mode") != "subscribe" || !(1..=MAX_CHALLENGE_BYTES).contains(&challenge.len()) {
        return (StatusCode::BAD_REQUEST, "hub.mode=subscribe and a hub.challenge are needed\n")
            .into_response();
    }
    let as_text = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (as_text, challenge.to_owned()).into_response()
}

/// Records what a request says.
pub(super) async fn receive(State(webhook): State<Webhook>, request: Request) -> Response {
    match webhook.receive(request).await {
        Ok(()) => "recorded\n".into_response(),
        Err(refused) => refused.into_response(),
    }
}

impl Webhook {
    async fn receive(&self, request: Request) -> Result<(), Refused> {
        let (parts, body) = request.into_parts();
        let sender = parts.extensions.get::<Sender>().ok_or(Refused::Busy)?;
        // Until the body is there it has no place that another could need: it is charged as it
        // arrives, and its connection may be ended for another.
        let mut charge = sender.share.charge(Pool::Webhooks, 0).map_err(|_| Refused::Busy)?;
        // Read even where there is no signature, so that whoever sends it gets to read why.
        let body = timeout(BODY, whole(body, &mut charge)).await;
        let body = body.map_err(|_| Refused::TooSlow)??;
        let _records = Records::begin(&sender.records);
        let place = room(&self.judging).await?;
        let heard = self.judge(signature(&parts.headers), body).await?;
        drop(place);
        for ((kind, cause), count) in &heard.skipped {
            self.metrics.webhook_skipped(kind.name(), cause.name(), cause.is_malformed(), *count);
        }
        self.warnings.heard(&heard);
        if heard.updates.is_empty() {
            return Ok(());
        }
        let _place = room(&self.recording).await?;
        match timeout(RECORDING, self.record(heard)).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Refused::NotDurable),
        }
    }

    /// Checks a body's signature, and only then reads it.
    async fn judge(
        &self,
        signature: Option<[u8; 32]>,
        body: Bytes,
    ) -> Result<ParsedPayload, Refused> {
        let setup = self.setup.load_full();
        let judged = if body.len() <= INLINE_BYTES {
            judge(&setup, signature, &body)
        } else {
            // Others must not wait for it.
            let judged = tokio::task::spawn_blocking(move || judge(&setup, signature, &body));
            judged.await.unwrap_or(Err(Refused::NotDurable))
        };
        match &judged {
            Err(Refused::Unsigned) => self.warnings.signature("there was none"),
            Err(Refused::WrongSignature) => self.warnings.signature("it was not right"),
            _ => {}
        }
        judged
    }

    /// Records all updates; whether every one is durable, or can never be.
    async fn record(&self, heard: ParsedPayload) -> bool {
        let mut kinds = Vec::with_capacity(heard.updates.len());
        let mut submissions = Vec::with_capacity(heard.updates.len());
        let mut places = Vec::with_capacity(heard.updates.len());
        for (place, update) in heard.updates.into_iter().enumerate() {
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
        // What is too far ahead of the ledger's clock denies as of its arrival. Where it may be
        // recorded by its own time yet, it is to come again: by that it counts for longer.
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
        kinds.iter().all(|(_, outcome)| *outcome != UpdateOutcome::Failed)
    }

    /// Records any number of events; gives the outcome of each, nothing where it was not tried.
    async fn record_all(&self, submissions: &[Submission]) -> Vec<Option<Recorded>> {
        let mut all: Vec<Option<Recorded>> = Vec::with_capacity(submissions.len());
        for chunk in submissions.chunks(MAX_EVENTS) {
            let results = self.recorder.record(chunk).await;
            let fails =
                |result: &Recorded| matches!(result, Err(Refusal::Ledger(_) | Refusal::Unknown(_)));
            let gone = results.iter().any(fails);
            all.extend(results.into_iter().map(Some));
            if gone {
                // Where there is no ledger, the rest has none either.
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
            Err(refusal) if may_come_yet(submission, refusal) => {
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

/// Whether an event was refused for a time that is too far ahead of the ledger's clock, and for
/// nothing else.
fn is_ahead(result: &Recorded) -> bool {
    match result {
        Err(Refusal::Invalid(found)) => found.iter().all(|found| found.field == "event_time"),
        _ => false,
    }
}

/// Whether what was not recorded may be, if it comes again.
fn may_come_yet(submission: &Submission, refusal: &Refusal) -> bool {
    match refusal {
        // What is ahead of the ledger's clock is not once that has gone on, or was set: a STOP
        // must not be lost for a clock that is late.
        Refusal::Invalid(_) => {
            let soon = clock::wall().plus(RETRIED_FOR);
            let is_soon = submission.event.time.is_some_and(|time| time <= soon);
            is_soon && is_ahead(&Err(refusal.clone()))
        }
        Refusal::TooManyScopes(_) | Refusal::TooManyIds(_) | Refusal::TooManyBusinesses => false,
        // A record that cannot be read is mended, or read by a newer version.
        Refusal::Unreadable(_)
        | Refusal::Contended
        | Refusal::Ledger(_)
        // Whether it is recorded is unknown, and recording it again is idempotent.
        | Refusal::Unknown(_) => true,
    }
}

async fn room(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refused> {
    match timeout(ROOM, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) | Err(_) => Err(Refused::Busy),
    }
}

/// Says that a connection records something, and is not to be ended for another, until dropped.
struct Records<'a>(&'a AtomicBool);

impl<'a> Records<'a> {
    fn begin(records: &'a AtomicBool) -> Self {
        records.store(true, Ordering::Relaxed);
        Self(records)
    }
}

impl Drop for Records<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// All of a body, which is charged as it arrives; of one that is too large nothing is kept.
async fn whole(mut body: Body, charge: &mut Charge) -> Result<Bytes, Refused> {
    let told = body.size_hint().lower();
    let mut too_large = told > MAX_BODY_BYTES as u64;
    let mut kept = BytesMut::new();
    let (mut length, mut paid) = (0_usize, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refused::Broken)?.into_data() else { continue };
        length = length.saturating_add(data.len());
        too_large |= length > MAX_BODY_BYTES;
        if length > MAX_DRAINED_BYTES {
            break;
        }
        if too_large {
            kept = BytesMut::new();
        } else {
            kept.extend_from_slice(&data);
            // As it grows it may take twice as much as has arrived.
            let more = kept.capacity().saturating_sub(paid);
            charge.grow(more).map_err(|_| Refused::Busy)?;
            paid += more;
        }
    }
    if too_large { Err(Refused::TooLarge) } else { Ok(kept.freeze()) }
}

/// The signature that a request has, where it has one, and one alone.
fn signature(headers: &HeaderMap) -> Option<[u8; 32]> {
    let mut all = headers.get_all(SIGNATURE).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let mut bytes = [0; 32];
    let hexadecimal = one.to_str().ok()?.strip_prefix("sha256=")?;
    hex::decode_to_slice(hexadecimal, &mut bytes).ok()?;
    Some(bytes)
}

fn judge(
    setup: &Setup,
    signature: Option<[u8; 32]>,
    body: &[u8],
) -> Result<ParsedPayload, Refused> {
    let signature = signature.ok_or(Refused::Unsigned)?;
    if !setup.app_secrets.signed(body, &signature) {
        return Err(Refused::WrongSignature);
    }
    Ok(whatsapp::parse(body, &setup.rules)?)
}
