//! Changes of an account's templates: the category of one, and a restriction of all. They name the account,
//! and no phone number.

use serde_json::Value;

use super::fields::{has, list, name, seconds, text, word};
use super::{Rules, SkipCause, UpdateKind};
use consentd_core::event::{Event, What};
use consentd_core::scope::Class;
use consentd_core::submission::{SourcePrecision, Submission};
use consentd_core::template::{ACCOUNT, TemplateId};
use consentd_core::time::Timestamp;

/// Restrictions of an account that do not concern its templates. What other types there are is in no page:
/// Meta's says that misuse of the category makes all utility templates marketing for 7 or 30 days, in an
/// `account_update`, and does not name the type
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/templates/template-categorization>,
/// 2026-05-21). So any other type restricts.
const OTHER_RESTRICTIONS: [&str; 3] = [
    "restricted_add_phone_number_action",
    "restricted_biz_initiated_messaging",
    "restricted_customer_initiated_messaging",
];

/// The fields that concern the account and name no number, and the kinds of their updates.
const FIELDS: [(&str, UpdateKind); 2] =
    [("template_category_update", UpdateKind::Template), ("account_update", UpdateKind::Account)];

/// The field of a change, and the kind of its updates, if it is one of an account.
pub(super) fn field(name: &str) -> Option<(&'static str, UpdateKind)> {
    FIELDS.into_iter().find(|(field, _)| *field == name)
}

/// What was found in a change of an account.
pub(super) struct FoundChange {
    pub(super) submissions: Vec<Submission>,
    /// Why the change was skipped, wholly or in part.
    pub(super) skipped: Option<SkipCause>,
    /// The account, if no business is known for it.
    pub(super) unknown_account: Option<String>,
}

/// Parses a change of an account. It is in `entry`, which names the account and has the time.
pub(super) fn parse(kind: UpdateKind, entry: &Value, value: &Value, rules: &Rules) -> FoundChange {
    let skip = |cause| FoundChange {
        submissions: Vec::new(),
        skipped: Some(cause),
        unknown_account: None,
    };
    let found = match kind {
        UpdateKind::Template => category(value),
        _ => restriction(value).map(|what| (ACCOUNT.to_owned(), what, None)),
    };
    let (subject, what, mut fault) = match found {
        Ok(found) => found,
        Err(cause) => return skip(cause),
    };
    let account = name(entry, "id");
    let businesses = match &account {
        Some(account) => rules.business_of_account(account).into_iter().collect(),
        // What denies counts at every business.
        None => rules.businesses(),
    };
    if businesses.is_empty() {
        let mut found = skip(SkipCause::UnknownAccount);
        found.unknown_account = account;
        return found;
    }
    let time = seconds(entry, "time");
    fault = fault.or(account.is_none().then_some(SkipCause::NoAccount));
    fault = fault.or(time.is_none().then_some(SkipCause::NoTime));
    let submission = |business: &str| {
        let what = if fault.is_some() { without_lift(what.clone()) } else { what.clone() };
        let (user_id, business_id) = (subject.clone(), business.to_owned());
        let event = Event { user_id, business_id, time, what };
        let precision = SourcePrecision::Seconds;
        Submission { precision, ..Submission::new(event, String::new()) }
    };
    let submissions = businesses.into_iter().map(submission).collect();
    FoundChange { submissions, skipped: fault, unknown_account: None }
}

/// The event without what it lifts, for one that is malformed.
pub(super) fn without_lift(what: What) -> What {
    match what {
        What::TemplateCategory { category, lift: _, reference } => {
            What::TemplateCategory { category, lift: Some(Timestamp::MIN), reference }
        }
        what => what,
    }
}

/// A completed change of a template's category, and what is wrong with it.
///
/// Before the change Meta announces it, by a `correct_category` beside the category that the template still
/// has. Meta's page says to keep what the completed notices say
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/marketing-messages/route-template-messages>,
/// 2026-09-21).
fn category(value: &Value) -> Result<(String, What, Option<SkipCause>), SkipCause> {
    if has(value, "correct_category") {
        return Err(SkipCause::Announced);
    }
    if !has(value, "new_category") {
        return Err(SkipCause::BadShape);
    }
    let known = word(value, "new_category").and_then(|category| Class::from_name(&category));
    let known = known.filter(|class| *class != Class::Service);
    let of = |field| text(value, field).map(str::trim).unwrap_or_default();
    let (name, language) = (of("message_template_name"), of("message_template_language"));
    let template = TemplateId::parse(name, language).map_err(|_| SkipCause::NoTemplate)?;
    // A category that is unknown here may be as strict as any.
    let category = known.unwrap_or(Class::Marketing);
    let fault = known.is_none().then_some(SkipCause::BadShape);
    let reference = "template_category_update".to_owned();
    let what = What::TemplateCategory { category, lift: None, reference };
    Ok((template.to_string(), what, fault))
}

/// A restriction of the account under which its utility templates count as marketing. When it ends is in
/// its `expiration`; no page names a notice of its end.
fn restriction(value: &Value) -> Result<What, SkipCause> {
    if word(value, "event").as_deref() != Some("account_restriction") {
        return Err(SkipCause::NotARestriction);
    }
    let listed = list(value, "restriction_info").unwrap_or_default();
    let is_other = |info: &&Value| {
        word(info, "restriction_type").is_some_and(|kind| OTHER_RESTRICTIONS.contains(&&*kind))
    };
    let ours: Vec<_> = listed.iter().filter(|info| !is_other(info)).collect();
    if ours.is_empty() && !listed.is_empty() {
        return Err(SkipCause::NotARestriction);
    }
    let ends: Option<Vec<_>> = ours.iter().map(|info| seconds(info, "expiration")).collect();
    // Without a readable end it holds until it is lifted.
    let until = ends.and_then(|ends| ends.into_iter().max());
    let reference = "account_update".to_owned();
    Ok(What::TemplateRestriction { restricted: true, until, reference })
}
