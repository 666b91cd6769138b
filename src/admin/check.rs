//! The check form: the answer for one person, and the standing that it rests on.
//!
//! Served only where the operator asked for it, on loopback, and only to pages of its own: any
//! other page that the same browser has open must neither post here nor read what is answered.

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
use crate::checker::{self, CheckError, CheckRequest, Checker};
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_core::record::Revision;
use consentd_core::scope::{Class, Scope};
use consentd_os::clock;

/// The most bytes of a posted form.
pub(super) const MAX_BYTES: usize = 8 * 1024;

/// What was typed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) user_id: String,
    pub(super) business_id: String,
    pub(super) category: String,
    form: String,
}

impl Asked {
    fn chosen(&self) -> &str {
        if self.form.is_empty() { "any" } else { &self.form }
    }
}

/// The form: what was typed, what was wrong with it, and what was answered.
#[derive(Default)]
pub(super) struct Check {
    pub(super) asked: Asked,
    pub(super) user_id: Option<String>,
    pub(super) business_id: Option<String>,
    pub(super) category: Option<String>,
    pub(super) form: Option<String>,
    pub(super) said: Option<Said>,
}

/// What came of asking.
pub(super) enum Said {
    /// No answer, and why.
    Wrong(String),
    /// An answer.
    Answer(Box<Answer>),
}

/// An answer in words.
pub(super) struct Answer {
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
    pub(super) platform_stopped: &'static str,
    pub(super) suppressed: &'static str,
}

/// The values of the form's choice, and their words.
const FORMS: [(&str, &str, Form); 3] = [
    ("any", "Either", Form::Any),
    ("free-form", "Free-form", Form::FreeForm),
    ("template", "Template", Form::Template),
];

impl Check {
    /// The classes that are suggested.
    #[allow(clippy::unused_self, reason = "what a template can call")]
    pub(super) fn classes(&self) -> [&'static str; 4] {
        Class::ALL.map(Class::name)
    }

    /// The ways to write a message.
    #[allow(clippy::unused_self, reason = "what a template can call")]
    pub(super) fn forms(&self) -> [(&'static str, &'static str); 3] {
        FORMS.map(|(value, word, _)| (value, word))
    }

    /// Whether this way was chosen.
    pub(super) fn is_asked(&self, value: &str) -> bool {
        value == self.asked.chosen()
    }

    /// Answers what was typed.
    fn of(checker: &Checker, asked: Asked) -> Self {
        let form = FORMS.iter().find(|(value, ..)| *value == asked.chosen());
        let question = CheckRequest {
            user_id: &asked.user_id,
            business_id: &asked.business_id,
            category: &asked.category,
            form: form.map_or(Form::Any, |(.., form)| *form),
        };
        let looked = checker.check_unrecorded(&question).and_then(|answer| {
            let (standing, revision, _) = checker.summary(&asked.user_id, &asked.business_id)?;
            Ok(Answer::of(&answer, &standing, revision))
        });
        let mut check = Self::default();
        if form.is_none() {
            check.form = Some("must be any, free-form or template".to_owned());
        }
        check.said = match looked {
            Ok(answer) if form.is_some() => Some(Said::Answer(Box::new(answer))),
            Ok(_) => None,
            Err(CheckError::NotReady) => Some(Said::Wrong(format!(
                "No answer yet: {}. A sender is told UNAVAILABLE, and must not send.",
                checker.status().cause
            ))),
            Err(CheckError::Invalid(found)) => {
                for violation in found {
                    check.note(violation);
                }
                None
            }
        };
        check.asked = asked;
        check
    }

    fn note(&mut self, violation: Violation) {
        let field = match violation.field.as_str() {
            "user_id" => &mut self.user_id,
            "business_id" => &mut self.business_id,
            _ => &mut self.category,
        };
        *field = Some(violation.description);
    }
}

impl Answer {
    /// `standing` was read right after the answer, at `revision`.
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
            platform_stopped: yes(standing.platform_stopped),
            suppressed: yes(standing.suppressed),
        }
    }
}

fn in_words(scope: &Scope) -> String {
    match scope {
        Scope::All => "everything (*)".to_owned(),
        scope => scope.to_string(),
    }
}

/// An explanation, which begins in lower case for the command line, as a sentence.
fn sentence(explanation: &str) -> String {
    let mut characters = explanation.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

/// The page with an empty form, which does not reload itself while somebody types.
pub(super) async fn form(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    match named_by_host(&headers) {
        Ok(_) => page::answer(&admin, StatusCode::OK, false, Some(Check::default())),
        Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
    }
}

/// The page with an answer.
pub(super) async fn ask(
    State(admin): State<Admin>,
    headers: HeaderMap,
    asked: Result<axum::Form<Asked>, FormRejection>,
) -> Response {
    if let Err(why) = from_our_page(&headers) {
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    match asked {
        Ok(axum::Form(asked)) => {
            let check = Check::of(&admin.checker, asked);
            let status = match &check.said {
                Some(Said::Answer(_)) => StatusCode::OK,
                Some(Said::Wrong(_)) => StatusCode::SERVICE_UNAVAILABLE,
                None => StatusCode::BAD_REQUEST,
            };
            page::answer(&admin, status, false, Some(check))
        }
        // What a browser's form never sends. It may be told what is wrong, but not what was sent.
        Err(rejection) => {
            let why = "the form cannot be read: post user_id, business_id, category and form, \
                       URL-encoded, each once\n";
            (rejection.status(), why).into_response()
        }
    }
}

/// The authority that the client believes it talks to, where that is this machine itself.
///
/// A page elsewhere can make its own name resolve to this machine (DNS rebinding), and is then of
/// our origin for the browser; but the name is still in the request.
fn named_by_host(headers: &HeaderMap) -> Result<&str, &'static str> {
    const WHY: &str = "checks are answered where the address is localhost or a loopback \
                       address alone: open the page under http://localhost\n";
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // A host has no user before it, whom an authority may have.
    let host = host.filter(|host| !host.contains('@')).ok_or(WHY)?;
    let authority: Authority = host.parse().map_err(|_| WHY)?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if is_loopback || name.eq_ignore_ascii_case("localhost") { Ok(host) } else { Err(WHY) }
}

/// Refuses a post that another page's form or script may have made.
fn from_our_page(headers: &HeaderMap) -> Result<(), &'static str> {
    const WHY: &str = "a check can be posted by the form on this page alone\n";
    let host = named_by_host(headers)?;
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        if origin.is_none_or(|origin| !origin.eq_ignore_ascii_case(host)) {
            return Err(WHY);
        }
    }
    // Browsers alone say it, and no script can say it for them.
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
