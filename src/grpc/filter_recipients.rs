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
use consentd_core::scope::{Category, Class};
use consentd_os::clock;

/// The fields of a message other than its users.
const OTHER_FIELDS: usize = 4;

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
    template: Option<pb::Template>,
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
            template: None,
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
        let (mut allowed, mut staleness, mut stricter) = (0, Duration::ZERO, None);
        for some in users.chunks(CHECKS_PER_YIELD) {
            let filtered = self.service.checker.filter(&campaign, some.iter().copied(), |reason| {
                allowed += u32::from(reason.is_some_and(Reason::allows));
                reasons.push(reason.map_or(pb::Reason::Unspecified, convert::reason).into());
            });
            let filtered = filtered.map_err(|error| status::check_error(&error))?;
            staleness = filtered.staleness.max(staleness);
            stricter = stricter_of(stricter, filtered.stricter);
            // A single check must not wait for a whole campaign.
            yield_now().await;
        }
        self.service.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(pb::FilterRecipientsResponse {
            reasons,
            allowed_count: allowed,
            staleness: Some(convert::duration(staleness)),
            category_used: match self.template {
                None => String::new(),
                Some(_) => convert::category_used(stricter, &self.category),
            },
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
        if let Some(template) = campaign.template {
            let is_none = template.name.is_empty() && template.language.is_empty();
            self.template = (!is_none).then(|| template.clone());
        }
    }

    fn campaign(&self) -> Result<checker::Campaign<'_>, Status> {
        let business = BusinessId::parse(&self.business_id);
        let category = Category::parse(&self.category);
        let template = self.template.as_ref().map(convert::template_name);
        let form = convert::form(self.form).map_err(Violation::from);
        let form =
            form.and_then(|form| template.map_or(Ok(form), |_| checker::template_form(form)));
        let invalid = template.map(|template| template.violations()).unwrap_or_default();
        match (business, category, form) {
            (Ok(business), Ok(category), Ok(form)) if invalid.is_empty() => {
                Ok(checker::Campaign { business, category, form, template })
            }
            (business, category, form) => {
                let found = [business.err(), category.err(), form.err()];
                let found = found.into_iter().flatten().chain(invalid);
                Err(status::invalid(&found.collect::<Vec<_>>()))
            }
        }
    }
}

/// The stricter of two classes that decided.
fn stricter_of(one: Option<Class>, other: Option<Class>) -> Option<Class> {
    one.zip(other).map(|(one, other)| one.stricter(other)).or(one).or(other)
}
