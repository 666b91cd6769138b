//! For tests of senders: a client that answers by rules, and the real sidecar.
//!
//! ```
//! use consentd_client::Question;
//! use consentd_client::testing::Fake;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let fake = Fake::new();
//! fake.allow("15550123456", "acme", "marketing");
//! let client = fake.client();
//! assert!(client.may_send(Question::new("15550123456", "acme", "marketing")).await.is_allowed());
//! // Whatever no rule allows is denied.
//! assert!(!client.may_send(Question::new("15550199999", "acme", "marketing")).await.is_allowed());
//! fake.unavailable();
//! assert!(client.may_send(Question::new("15550123456", "acme", "marketing")).await.is_unavailable());
//! # }
//! ```

mod sidecar;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tonic::Code;

pub use self::sidecar::{NoSidecar, Sidecar};
use crate::builder::CHECK_DEADLINE;
use crate::client::{Backend, Client};
use crate::error::Error;
use crate::event::Recorded;
use crate::pb;
use crate::watch::Change;

/// A sidecar that answers by rules. Clones, and the clients that it makes, share them.
///
/// The latest rule that fits decides. What no rule fits is denied as `NO_CONSENT`.
#[derive(Clone, Debug, Default)]
pub struct Fake(Arc<Rules>);

impl Fake {
    /// A fake without rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client that this answers.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::with(Backend::Fake(Arc::clone(&self.0)), CHECK_DEADLINE)
    }

    /// Allows, as `OPTED_IN`, what is asked of this user, this business and this category; each may be `*`, which
    /// stands for any.
    pub fn allow(&self, user: &str, business: &str, category: &str) {
        self.rule([user, business, category], Answer::Decided(pb::Reason::OptedIn));
    }

    /// Denies the same for a reason such as [`Reason::OptedOutAll`](crate::Reason::OptedOutAll).
    pub fn deny(&self, user: &str, business: &str, category: &str, reason: pb::Reason) {
        self.rule([user, business, category], Answer::Decided(reason));
    }

    /// Answers nothing any more, as if there were no sidecar.
    pub fn unavailable(&self) {
        self.fail(Code::Unavailable, "no sidecar");
    }

    /// Fails all that is asked, with this code of gRPC.
    pub fn fail(&self, code: Code, cause: &str) {
        self.rule(["*"; 3], Answer::Failed(Error::new(code, cause)));
    }

    /// Tells a change to all watches.
    pub fn tell(&self, change: &Change) {
        self.0.lock().watches.retain(|watch| watch.try_send(Ok(change.clone())).is_ok());
    }

    /// The events that were recorded, in order.
    #[must_use]
    pub fn recorded(&self) -> Vec<pb::ConsentEvent> {
        self.0.lock().recorded.clone()
    }

    fn rule(&self, names: [&str; 3], answer: Answer) {
        self.0.lock().rules.push((names.map(str::to_owned), answer));
    }
}

/// The rules of a [`Fake`].
#[derive(Default)]
pub(crate) struct Rules(Mutex<State>);

#[derive(Default)]
struct State {
    rules: Vec<([String; 3], Answer)>,
    recorded: Vec<pb::ConsentEvent>,
    watches: Vec<mpsc::Sender<Result<Change, Error>>>,
}

#[derive(Clone)]
enum Answer {
    Decided(pb::Reason),
    Failed(Error),
}

impl Rules {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answer(
        &self,
        request: &pb::CanSendRequest,
    ) -> Result<pb::CanSendResponse, Error> {
        let asked = [&request.user_id, &request.business_id, &request.category];
        let fits = |names: &[String; 3]| {
            names.iter().zip(asked).all(|(name, asked)| name == "*" || name == asked)
        };
        let state = self.lock();
        let rule = state.rules.iter().rev().find(|(names, _)| fits(names));
        match rule.map_or(Answer::Decided(pb::Reason::NoConsent), |(_, answer)| answer.clone()) {
            Answer::Decided(reason) => {
                let allowed = (1..=9).contains(&i32::from(reason));
                let reason = reason.into();
                let (free_form_allowed, template_allowed) = (allowed, allowed);
                Ok(pb::CanSendResponse {
                    allowed,
                    reason,
                    free_form_allowed,
                    template_allowed,
                    ..Default::default()
                })
            }
            Answer::Failed(error) => Err(error),
        }
    }

    pub(crate) fn record(&self, request: pb::RecordEventRequest) -> Recorded {
        let mut state = self.lock();
        state.recorded.extend(request.event);
        let revision = u64::try_from(state.recorded.len()).unwrap_or(u64::MAX);
        Recorded(pb::RecordEventResponse { revision, applied: true, ..Default::default() })
    }

    pub(crate) fn watch(&self, told: mpsc::Sender<Result<Change, Error>>) {
        let _ = told.try_send(Ok(Change::Reset));
        self.lock().watches.push(told);
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}
