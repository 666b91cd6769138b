//! `FilterRecipients`: a campaign's recipients, screened message by message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::call_telemetry::Notes;
use super::codec::{self, MAX_FIELDS};
use super::consent_service::{AT_ONCE, CheckService};
use super::fast_decode::Campaign;
use super::{convert, pb, status};
use crate::budget::Charge;
use crate::checker;
use consentd_core::Violation;
use consentd_core::decision::Reason;
use consentd_core::id::BusinessId;
use consentd_core::scope::Category;
use consentd_os::clock;

/// The fields of a message beside its users.
const OTHER_FIELDS: usize = 3;

/// About the memory of a user of a message while it is screened: places in the list of users and in
/// that of reasons, which may have twice as many as they need.
const USER_BYTES: usize = 2 * (size_of::<&str>() + size_of::<i32>());

/// About the memory of a field of a message that prost has decoded, its text aside: a `String`, of
/// which a list may have twice as many places as it needs, and what the allocator adds to its text.
const DECODED_BYTES: usize = 2 * size_of::<String>() + 24;

/// One call.
struct Screening {
    service: Arc<CheckService>,
    messages: Streaming<Bytes>,
    ending: CancellationToken,
    notes: Option<Notes>,
    /// What the open call is charged to.
    charge: Charge,
    /// What was set last.
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
        let screening = Screening {
            service: Arc::clone(self),
            ending: ending.clone(),
            charge: charge.beside(),
            notes: request.extensions().get::<Notes>().cloned(),
            messages: request.into_inner(),
            business_id: String::new(),
            category: String::new(),
            form: 0,
        };
        Response::new(stream::unfold(Some(screening), |screening| async move {
            let mut screening = screening?;
            let answer = screening.next().await?;
            // A stream ends with its first error.
            let rest = answer.is_ok().then_some(screening);
            Some((answer, rest))
        }))
    }
}

impl Screening {
    /// Answers the next message; nothing where there is none.
    async fn next(&mut self) -> Option<Result<pb::FilterRecipientsResponse, Status>> {
        let next = tokio::select! {
            biased;
            () = self.ending.cancelled() => {
                let why = "the connection ends: screen those without a verdict on another";
                Some(Err(Status::unavailable(why)))
            }
            next = self.messages.next() => next,
        };
        match next? {
            Ok(bytes) => Some(self.screen(bytes).await),
            Err(status) => Some(Err(status)),
        }
    }

    async fn screen(&mut self, bytes: Bytes) -> Result<pb::FilterRecipientsResponse, Status> {
        let started = clock::boot();
        let most = self.service.limits.recipients;
        let mut users = Vec::new();
        let decoded: pb::FilterRecipientsRequest;
        // Until the message is answered: others take their turns meanwhile, and are as many.
        let mut held = self.charge.beside();
        let campaign = if let Ok(campaign) = Campaign::read(&bytes, most, &mut users) {
            campaign
        } else {
            let fields = most.saturating_add(OTHER_FIELDS).max(MAX_FIELDS);
            let decoded_fields = codec::count_fields(&bytes, fields).saturating_mul(DECODED_BYTES);
            held.grow(bytes.len().saturating_add(decoded_fields)).map_err(status::of_full)?;
            decoded = codec::decode(bytes.clone(), fields)?;
            users = decoded.user_ids.iter().map(String::as_str).collect();
            Campaign::from(&decoded)
        };
        if users.len() > most {
            let why = format!("{} users; at most {most} a message", users.len());
            return Err(status::invalid(&[Violation::new("user_ids", why)]));
        }
        if users.len() > AT_ONCE {
            held.grow(users.len() * USER_BYTES).map_err(status::of_full)?;
        }
        if let Some(notes) = &self.notes {
            notes.batch(users.len());
        }
        self.set(campaign);
        let campaign = self.campaign()?;
        let mut reasons = Vec::with_capacity(users.len());
        let (mut allowed, mut staleness) = (0, Duration::ZERO);
        for some in users.chunks(AT_ONCE) {
            let screened = self.service.checker.filter(&campaign, some.iter().copied(), |reason| {
                allowed += u32::from(reason.is_some_and(Reason::allows));
                reasons.push(reason.map_or(pb::Reason::Unspecified, convert::reason).into());
            });
            let screened = screened.map_err(|error| status::of_check(&error))?;
            staleness = screened.max(staleness);
            // Whoever asks about one message is not kept waiting by a campaign.
            yield_now().await;
        }
        self.service.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(pb::FilterRecipientsResponse {
            reasons,
            allowed_count: allowed,
            staleness: Some(convert::duration(staleness)),
        })
    }

    /// Keeps what a message sets.
    fn set(&mut self, campaign: Campaign<'_>) {
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
                let found = [business.err(), category.err(), form.err()];
                Err(status::invalid(&found.into_iter().flatten().collect::<Vec<_>>()))
            }
        }
    }
}
