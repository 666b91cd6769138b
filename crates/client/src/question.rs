//! A question: may this message be sent?

use std::fmt;
use std::time::Duration;

use crate::pb;

/// How a message is written.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Form {
    /// Not decided yet: the verdict says which forms are allowed.
    #[default]
    Unspecified,
    /// Text, media or an interactive message, which may be sent within 24 hours of the user's last message.
    FreeForm,
    /// A template that WhatsApp has approved.
    Template,
}

impl From<Form> for pb::MessageForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Unspecified => Self::Unspecified,
            Form::FreeForm => Self::FreeForm,
            Form::Template => Self::Template,
        }
    }
}

/// A question about one message: its user, its business and its category, and what else is known of it.
///
/// ```
/// use consentd_client::{Form, Question};
///
/// let question = Question::new("+1 555 012 3456", "acme", "marketing.offers").form(Form::Template);
/// let question = question.template("spring_offer", "en");
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a question does nothing until a client is asked"]
pub struct Question {
    pub(crate) request: pb::CanSendRequest,
    pub(crate) deadline: Option<Duration>,
}

impl Question {
    /// May `business` send `user` a message of this category?
    ///
    /// `user` is a phone number in any usual notation with its country code, a business-scoped user id, or an id of
    /// your own with a letter in it, 160 bytes at most. `category` is `marketing`, `utility`, `authentication` or
    /// `service`, perhaps with a topic: `utility.order_updates`.
    pub fn new(
        user: impl Into<String>,
        business: impl Into<String>,
        category: impl Into<String>,
    ) -> Self {
        let request = pb::CanSendRequest {
            user_id: user.into(),
            business_id: business.into(),
            category: category.into(),
            ..Default::default()
        };
        Self { request, deadline: None }
    }

    /// How the message is written.
    pub fn form(mut self, form: Form) -> Self {
        self.request.form = pb::MessageForm::from(form).into();
        self
    }

    /// The template that the message will be, by its name and language, such as `en` or `pt_BR`. The stricter of the
    /// question's category and of the template's own one decides.
    pub fn template(mut self, name: impl Into<String>, language: impl Into<String>) -> Self {
        self.request.template = Some(pb::Template { name: name.into(), language: language.into() });
        self
    }

    /// Waits, up to the deadline, until the sidecar holds this revision, as [`Client::record`](crate::Client::record)
    /// returned it. Only a sidecar other than the one that recorded the event needs it. Such a question is not
    /// coalesced with others.
    pub fn min_revision(mut self, revision: u64) -> Self {
        self.request.min_revision = revision;
        self
    }

    /// How long the answer may take, instead of the client's own deadline.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits the user id.
        f.debug_struct("Question")
            .field("business", &self.request.business_id)
            .field("category", &self.request.category)
            .field("form", &self.request.form())
            .field("template", &self.request.template)
            .field("min_revision", &self.request.min_revision)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl From<pb::CanSendRequest> for Question {
    fn from(request: pb::CanSendRequest) -> Self {
        Self { request, deadline: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_omits_the_user() {
        let text = format!("{:?}", Question::new("15550123456", "acme", "marketing"));
        assert!(text.contains("acme") && !text.contains("1555"), "{text}");
    }
}
