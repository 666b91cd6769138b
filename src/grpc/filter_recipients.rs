//! `FilterRecipients`: filters a campaign's recipients, message by message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::call_telemetry::CallNotes;
use super::codec::{self, MAX_FIELDS};
use super::consent_service::{CHECKS_PER_YIELD, CheckService};
use super::fast_decode::RawCampaign;
use super::{convert, pb, status};
use crate::budget::Charge;
use crate::checker;
use consentd_core::Violation;
use consentd_core::decision::Reason;
use consentd_core::id::BusinessId;
use consentd_core::scope::Category;
use consentd_os::clock;

/// The fields of a message other than its users.
const OTHER_FIELDS: usize = 3;

/// About the memory of a user while its message is filtered: entries in the list of users and in the
/// list of reasons, whose capacity may be twice what they need.
const USER_BYTES: usize = 2 * (size_of::<&str>() + size_of::<i32>());

/// About the memory of a field that prost has decoded, without its text: a `String` in a list whose
/// capacity may be twice what it needs, and the allocator's overhead.
const DECODED_BYTES: usize = 2 * size_of::<String>() + 24;

/// One call, with the values that a message sets for those that follow.
struct FilterCall {
    service: Arc<CheckService>,
    messages: Streaming<Bytes>,
    ending: CancellationToken,
    notes: Option<CallNotes>,
    /// Charges the same connection and pool as the open call.
    charge: Charge,
    business_id: String,
    category: String,
    form: i32,
}

impl CheckService {
    pub(super) fn filter_recipients(
        self: &Arc<Self>,
        request: Request<Streaming<Bytes>>,
        ending: &CancellationToken,
        charge: &Charge,
    ) -> Response<impl Stream<Item = Result<pb::FilterRecipientsResponse, Status>> + use<>> {
        let call = FilterCall {
            service: Arc::clone(self),
            ending: ending.clone(),
            charge: charge.empty(),
            notes: request.extensions().get::<CallNotes>().cloned(),
            messages: request.into_inner(),
            business_id: String::new(),
            category: String::new(),
            form: 0,
        };
        Response::new(stream::unfold(Some(call), |call| async move {
            let mut call = call?;
            let answer = call.next().await?;
            // A gRPC stream ends with its first error.
            let rest = answer.is_ok().then_some(call);
            Some((answer, rest))
        }))
    }
}

impl FilterCall {
    /// Answers the next message; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Result<pb::FilterRecipientsResponse, Status>> {
        let next = tokio::select! {
            biased;
            () = self.ending.cancelled() => {
                let why = "the connection ends: repeat the users without a verdict on another connection";
                Some(Err(Status::unavailable(why)))
            }
            next = self.messages.next() => next,
        };
        match next? {
            Ok(bytes) => Some(self.filter(bytes).await),
            Err(status) => Some(Err(status)),
        }
    }

    async fn filter(&mut self, bytes: Bytes) -> Result<pb::FilterRecipientsResponse, Status> {
        let started = clock::boot();
        let most = self.service.limits.recipients;
        let mut users = Vec::new();
        let decoded: pb::FilterRecipientsRequest;
        // Held until the message is answered: the task yields meanwhile, and other calls hold as much.
        let mut held = self.charge.empty();
        let campaign = if let Ok(campaign) = RawCampaign::read(&bytes, most, &mut users) {
            campaign
        } else {
            let fields = most.saturating_add(OTHER_FIELDS).max(MAX_FIELDS);
            let decoded_fields = codec::count_fields(&bytes, fields).saturating_mul(DECODED_BYTES);
            held.grow(bytes.len().saturating_add(decoded_fields)).map_err(status::limit_reached)?;
            decoded = codec::decode(bytes.clone(), fields)?;
            users = decoded.user_ids.iter().map(String::as_str).collect();
            RawCampaign::from(&decoded)
        };
        if users.len() > most {
            let why = format!("{} users; at most {most} a message", users.len());
            return Err(status::invalid(&[Violation::new("user_ids", why)]));
        }
        if users.len() > CHECKS_PER_YIELD {
            held.grow(users.len() * USER_BYTES).map_err(status::limit_reached)?;
        }
        if let Some(notes) = &self.notes {
            notes.batch(users.len());
        }
        self.set(campaign);
        let campaign = self.campaign()?;
        let mut reasons = Vec::with_capacity(users.len());
        let (mut allowed, mut staleness) = (0, Duration::ZERO);
        for some in users.chunks(CHECKS_PER_YIELD) {
            let filtered = self.service.checker.filter(&campaign, some.iter().copied(), |reason| {
                allowed += u32::from(reason.is_some_and(Reason::allows));
                reasons.push(reason.map_or(pb::Reason::Unspecified, convert::reason).into());
            });
            let filtered = filtered.map_err(|error| status::check_error(&error))?;
            staleness = filtered.max(staleness);
            // A single check must not wait for a whole campaign.
            yield_now().await;
        }
        self.service.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(pb::FilterRecipientsResponse {
            reasons,
            allowed_count: allowed,
            staleness: Some(convert::duration(staleness)),
        })
    }

    /// Stores the values that a message sets.
    fn set(&mut self, campaign: RawCampaign<'_>) {
        let keep = |kept: &mut String, set: &str| {
            if !set.is_empty() && kept != set {
                set.clone_into(kept);
            }
        };
        keep(&mut self.business_id, campaign.business_id);
        keep(&mut self.category, campaign.category);
        if campaign.form != 0 {
            self.form = campaign.form;
        }
    }

    fn campaign(&self) -> Result<checker::Campaign<'_>, Status> {
        let business = BusinessId::parse(&self.business_id);
        let category = Category::parse(&self.category);
        match (business, category, convert::form(self.form)) {
            (Ok(business), Ok(category), Ok(form)) => {
                Ok(checker::Campaign { business, category, form })
            }
            (business, category, form) => {
                let form = form.err().map(Violation::from);
                let found = [business.err(), category.err(), form];
                Err(status::invalid(&found.into_iter().flatten().collect::<Vec<_>>()))
            }
        }
    }
}
