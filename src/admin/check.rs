//! The check form: answers a check for a person, with the pair's state.
//!
//! It is served only if the operator enables it, on loopback, and only to its own page: other pages in
//! the same browser must neither post here nor read the answer.

use std::net::IpAddr;

use axum::extract::State;
use axum::extract::rejection::FormRejection;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::Admin;
use super::format::{grouped, moment, short};
use super::page::{self, NO, YES};
use crate::checker::{self, CheckError, CheckRequest, Checker, InvalidForm};
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_core::id::PhoneNumberId;
use consentd_core::record::Revision;
use consentd_core::scope::{Class, Scope};
use consentd_os::clock;

/// The most bytes of a posted form.
pub(super) const MAX_FORM_BYTES: usize = 8 * 1024;

/// The submitted fields.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CheckForm {
    pub(super) user_id: String,
    pub(super) business_id: String,
    pub(super) category: String,
    form: String,
}

impl CheckForm {
    fn chosen(&self) -> &str {
        if self.form.is_empty() { "any" } else { &self.form }
    }
}

/// The form's section of the page: the submitted fields, their errors, and the outcome.
#[derive(Default)]
pub(super) struct CheckSection {
    pub(super) submitted: CheckForm,
    pub(super) user_id: Option<String>,
    pub(super) business_id: Option<String>,
    pub(super) category: Option<String>,
    pub(super) form: Option<String>,
    pub(super) outcome: Option<CheckOutcome>,
}

/// The outcome of a check.
pub(super) enum CheckOutcome {
    /// There is no answer; the text says why.
    Failed(String),
    /// The check was answered.
    Answered(Box<CheckExplanation>),
}

/// A check's result, in words.
pub(super) struct CheckExplanation {
    pub(super) allowed: bool,
    pub(super) drawing: &'static str,
    pub(super) reason: &'static str,
    pub(super) explanation: String,
    pub(super) free_form: &'static str,
    pub(super) template: &'static str,
    pub(super) window: String,
    pub(super) retry: Option<String>,
    pub(super) revision: String,
    pub(super) staleness: String,
    pub(super) opted_in: String,
    pub(super) opted_out: String,
    pub(super) last_inbound: String,
    pub(super) platform_stopped: String,
    pub(super) suppressed: &'static str,
}

/// The values of the form's choice, and their labels.
const FORMS: [(&str, &str, Form); 3] = [
    ("any", "Either", Form::Any),
    ("free-form", "Free-form", Form::FreeForm),
    ("template", "Template", Form::Template),
];

const INVALID_FORM: InvalidForm = InvalidForm { description: "must be any, free-form or template" };

impl CheckSection {
    /// The suggested classes.
    #[allow(clippy::unused_self, reason = "what a template can call")]
    pub(super) fn classes(&self) -> [&'static str; 4] {
        Class::ALL.map(Class::name)
    }

    /// The forms of a message, with their labels.
    #[allow(clippy::unused_self, reason = "what a template can call")]
    pub(super) fn forms(&self) -> [(&'static str, &'static str); 3] {
        FORMS.map(|(value, word, _)| (value, word))
    }

    /// Whether this form is selected.
    pub(super) fn is_selected(&self, value: &str) -> bool {
        value == self.submitted.chosen()
    }

    /// Answers a submitted form.
    fn submit(checker: &Checker, submitted: CheckForm) -> Self {
        let form = FORMS.iter().find(|(value, ..)| *value == submitted.chosen());
        let question = CheckRequest {
            template: None,
            user_id: &submitted.user_id,
            business_id: &submitted.business_id,
            category: &submitted.category,
            form: form.map(|(.., form)| *form).ok_or(INVALID_FORM),
            min_revision: 0,
        };
        let looked = checker.check_unrecorded(&question).and_then(|answer| {
            let known = checker.summary(&submitted.user_id, &submitted.business_id)?;
            Ok(CheckExplanation::of(&answer, &known.summary, known.revision))
        });
        let mut check = Self::default();
        check.outcome = match looked {
            Ok(answer) => Some(CheckOutcome::Answered(Box::new(answer))),
            Err(CheckError::NotReady) => Some(CheckOutcome::Failed(format!(
                "No answer yet: {}. A sender gets UNAVAILABLE, and must not send.",
                checker.status().cause
            ))),
            Err(CheckError::Reloading) => Some(CheckOutcome::Failed(format!(
                "Denied as STALE: {}. What the table holds of this user is not shown, for it is \
                 known to be wrong.",
                checker.status().cause
            ))),
            Err(error @ CheckError::NotHeld(_)) => Some(CheckOutcome::Failed(format!(
                "No answer: {error}. A sender gets FAILED_PRECONDITION, and must not send."
            ))),
            Err(CheckError::Invalid(found)) => {
                for violation in found {
                    check.note(violation);
                }
                None
            }
        };
        check.submitted = submitted;
        check
    }

    fn note(&mut self, violation: Violation) {
        let field = match violation.field.as_str() {
            "user_id" => &mut self.user_id,
            "business_id" => &mut self.business_id,
            "form" => &mut self.form,
            _ => &mut self.category,
        };
        *field = Some(violation.description);
    }
}

impl CheckExplanation {
    /// Explains an answer. `standing` was read right after it, at `revision`.
    fn of(
        answer: &checker::CheckResult,
        standing: &checker::PairSummary,
        revision: Revision,
    ) -> Self {
        let decision = &answer.decision;
        let scopes = |scopes: &[Scope]| match scopes {
            [] => "nothing".to_owned(),
            scopes => scopes.iter().map(in_words).collect::<Vec<_>>().join(", "),
        };
        let may = |allowed| if allowed { "may be sent" } else { "may not be sent" };
        let yes = |yes| if yes { "yes" } else { "no" };
        let now = clock::wall();
        Self {
            allowed: decision.allowed(),
            drawing: if decision.allowed() { YES } else { NO },
            reason: decision.reason.name(),
            explanation: sentence(decision.reason.explanation()),
            free_form: may(decision.free_form_allowed),
            template: may(decision.template_allowed),
            window: match decision.window_expire {
                None => "the user never wrote".to_owned(),
                Some(end) if end > now => format!("until {}", moment(end)),
                Some(end) => format!("closed since {}", moment(end)),
            },
            retry: decision.retry.map(moment),
            revision: match grouped(answer.revision) {
                both if answer.revision == revision => both,
                first => format!("{first} (its standing: {})", grouped(revision)),
            },
            staleness: short(answer.staleness.as_secs_f64()),
            opted_in: scopes(&standing.opted_in),
            opted_out: scopes(&standing.opted_out),
            last_inbound: standing.last_inbound.map_or_else(|| "never".to_owned(), moment),
            platform_stopped: stops(&standing.stops),
            suppressed: yes(standing.suppressed),
        }
    }
}

/// Whether marketing is stopped inside WhatsApp, and at which of the business's numbers.
fn stops(stops: &[Option<PhoneNumberId>]) -> String {
    match stops {
        [] => "no".to_owned(),
        [None] => "yes".to_owned(),
        stops => {
            let name = |number: &Option<PhoneNumberId>| match number {
                None => "a number unknown".to_owned(),
                Some(id) => id.to_string(),
            };
            format!("yes, at {}", stops.iter().map(name).collect::<Vec<_>>().join(", "))
        }
    }
}

fn in_words(scope: &Scope) -> String {
    match scope {
        Scope::All => "everything (*)".to_owned(),
        scope => scope.to_string(),
    }
}

/// Turns an explanation, which begins in lower case for the command line, into a sentence.
fn sentence(explanation: &str) -> String {
    let mut characters = explanation.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

/// The page with an empty form. It does not reload itself while the form is being filled in.
pub(super) async fn form(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    match named_by_host(&headers) {
        Ok(_) => page::answer(&admin, StatusCode::OK, false, Some(CheckSection::default())),
        Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
    }
}

/// The page with an answer.
pub(super) async fn ask(
    State(admin): State<Admin>,
    headers: HeaderMap,
    asked: Result<axum::Form<CheckForm>, FormRejection>,
) -> Response {
    if let Err(why) = from_our_page(&headers) {
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    match asked {
        Ok(axum::Form(asked)) => {
            let check = CheckSection::submit(&admin.checker, asked);
            let status = match &check.outcome {
                Some(CheckOutcome::Answered(_)) => StatusCode::OK,
                Some(CheckOutcome::Failed(_)) => StatusCode::SERVICE_UNAVAILABLE,
                None => StatusCode::BAD_REQUEST,
            };
            page::answer(&admin, status, false, Some(check))
        }
        // A browser's form never sends this. The response does not echo what was sent.
        Err(rejection) => {
            let why = "the form cannot be read: post user_id, business_id, category and form, \
                       URL-encoded, each once\n";
            (rejection.status(), why).into_response()
        }
    }
}

/// The request's host, if it names this machine.
///
/// Another site can make its own name resolve to this machine (DNS rebinding). The browser then takes
/// its page for ours, but that name is still in the request.
fn named_by_host(headers: &HeaderMap) -> Result<&str, &'static str> {
    const WHY: &str = "checks are answered where the address is localhost or a loopback \
                       address alone: open the page under http://localhost\n";
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // An authority may contain a user, a host does not.
    let host = host.filter(|host| !host.contains('@')).ok_or(WHY)?;
    let authority: Authority = host.parse().map_err(|_| WHY)?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if is_loopback || name.eq_ignore_ascii_case("localhost") { Ok(host) } else { Err(WHY) }
}

/// Refuses a post that another page's form or script may have sent.
fn from_our_page(headers: &HeaderMap) -> Result<(), &'static str> {
    const WHY: &str = "a check can be posted by the form on this page alone\n";
    let host = named_by_host(headers)?;
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if origin.is_none_or(|origin| !origin.eq_ignore_ascii_case(host)) {
            return Err(WHY);
        }
    }
    // Only browsers send this header, and scripts cannot set it.
    match headers.get("sec-fetch-site") {
        Some(site) if site != "same-origin" => Err(WHY),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_names_of_this_machine_are_believed() {
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "127.8.8.8", "[::1]:9464"] {
            assert_eq!(from_our_page(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "user@localhost",
            "10.0.0.1",
            "[::2]",
            "localhost:9464/",
            "0.0.0.0:9464",
        ] {
            assert!(from_our_page(&headers(&[("host", host)])).is_err(), "{host}");
        }
        assert!(from_our_page(&headers(&[])).is_err());
    }

    #[test]
    fn only_our_own_page_may_post() {
        let host = ("host", "localhost:9464");
        for (more, is_ours) in [
            (("origin", "http://localhost:9464"), true),
            (("origin", "http://LocalHost:9464"), true),
            (("origin", "http://localhost:8080"), false),
            (("origin", "https://localhost:9464"), false),
            (("origin", "http://evil.example"), false),
            (("origin", "null"), false),
            (("origin", ""), false),
            (("sec-fetch-site", "same-origin"), true),
            (("sec-fetch-site", "same-site"), false),
            (("sec-fetch-site", "cross-site"), false),
            (("sec-fetch-site", "none"), false),
        ] {
            assert_eq!(from_our_page(&headers(&[host, more])).is_ok(), is_ours, "{more:?}");
        }
    }
}
