//! The filtering of a campaign's recipients: one message to each of them.

use std::time::Duration;

use super::batch::Batch;
use super::{CheckError, Checker, ParsedRequest, TemplateName};
use consentd_core::decision::{Form, Reason};
use consentd_core::id::{BusinessId, UserId};
use consentd_core::scope::{Category, Class};
use consentd_os::clock::Moment;

/// What the checks of all recipients of a campaign have in common.
#[derive(Clone, Copy, Debug)]
pub struct Campaign<'a> {
    /// The business that would send.
    pub business: BusinessId<'a>,
    /// The category of the messages.
    pub category: Category<'a>,
    /// The form of the messages.
    pub form: Form,
    /// The template that the messages will be, if it is known.
    pub template: Option<TemplateName<'a>>,
}

/// The result of filtering some recipients of a campaign.
#[derive(Clone, Copy, Debug)]
pub struct FilterResult {
    /// How long ago the table was proven to be current.
    pub staleness: Duration,
    /// As in [`CheckResult::stricter`](super::CheckResult::stricter).
    pub stricter: Option<Class>,
}

/// Why a recipient has no verdict.
enum NoVerdict {
    /// The id is malformed.
    InvalidId,
    /// The check has no answer.
    Failed(CheckError),
}

impl From<CheckError> for NoVerdict {
    fn from(error: CheckError) -> Self {
        Self::Failed(error)
    }
}

impl Checker {
    /// Checks one message of a campaign to each user in order, like
    /// [`check_many`](Self::check_many); `each` gets `None` for an invalid user id. The template's category
    /// is looked up once.
    ///
    /// # Errors
    ///
    /// [`CheckError::NotReady`] if the partition of one of the users was never loaded: a campaign is asked about
    /// as a whole, and a user without a verdict would be taken for one who may not be messaged.
    /// [`CheckError::NotHeld`], or [`CheckError::Invalid`] for the name of the template.
    pub fn filter<'q>(
        &self,
        campaign: &Campaign<'q>,
        users: impl ExactSizeIterator<Item = &'q str>,
        mut each: impl FnMut(Option<Reason>),
    ) -> Result<FilterResult, CheckError> {
        let parsing = self.parsing();
        let Campaign { business, category, form, template } = *campaign;
        let keys = self.counting_not_held(parsing.keys.at(business).map_err(CheckError::from))?;
        let known = match template {
            None => None,
            Some(template) => {
                let pairs = template.pairs(keys).map_err(CheckError::Invalid)?;
                Some(self.known_category(pairs, Moment::about_now))
            }
        };
        let mut batch = Batch::with_capacity(users.len());
        for user in users {
            match UserId::parse(user) {
                Ok(user) => {
                    let parsed = ParsedRequest::of_user(&parsing, &user, keys, category, form, 0);
                    match &known {
                        None => batch.push(&parsed),
                        Some(known) => batch.push_template(&parsed, known),
                    }
                }
                Err(_) => batch.push_invalid(NoVerdict::InvalidId),
            }
        }
        let mut failure = None;
        let staleness = self.check_batch(batch, Moment::about_now, |result| match result {
            Ok(result) => each(Some(result.decision.reason)),
            Err(NoVerdict::InvalidId) => each(None),
            Err(NoVerdict::Failed(error)) => failure = Some(error),
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let class = known.map(|known| known.decides(category.class).unwrap_or(Class::Marketing));
        Ok(FilterResult { staleness, stricter: class.filter(|class| *class != category.class) })
    }
}
