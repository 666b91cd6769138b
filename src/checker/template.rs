//! Checks that name a template: the stricter of the category that is asked for and of the one that the
//! ledger knows of decides. In a file of its own, so that a check without a template pays for one branch.

use super::batch::Parsing;
use super::{CheckError, CheckRequest, CheckResult, Checker, Evaluation, ParsedRequest};
use crate::table::{BusinessKeys, Freshness, Pair, UnreadablePair};
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_core::id::BusinessId;
use consentd_core::scope::{Category, Class};
use consentd_core::standing::Facts;
use consentd_core::template::TemplateId;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// The name of a template, not validated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TemplateName<'a> {
    /// Its name, as WhatsApp has it.
    pub name: &'a str,
    /// Its language, such as `pt_BR`.
    pub language: &'a str,
}

impl TemplateName<'_> {
    /// What is wrong with the name.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        TemplateId::parse(self.name, self.language).err().unwrap_or_default()
    }

    /// The pairs in whose records the category of the template is kept.
    pub(super) fn pairs(&self, keys: BusinessKeys<'_>) -> Result<TemplatePairs, Vec<Violation>> {
        let template = TemplateId::parse(self.name, self.language)?;
        let (template, account) = (keys.template_pair(&template), keys.account_pair());
        Ok(TemplatePairs { template, account })
    }
}

/// The pairs in whose records a template's category is kept.
#[derive(Clone, Copy)]
pub(super) struct TemplatePairs {
    template: Pair,
    account: Pair,
}

/// What was known of a template's category at a look-up.
#[derive(Clone, Copy)]
pub(super) struct KnownCategory {
    /// The least strict class that it may be sent as, and whether utility counts as marketing.
    rule: Result<(Class, bool), UnreadablePair>,
    /// How current that is.
    pub(super) freshness: Freshness,
    /// When it was looked up.
    pub(super) at: Timestamp,
}

impl KnownCategory {
    /// The class by which a check decides that asks for this one.
    ///
    /// # Errors
    ///
    /// [`UnreadablePair`] if what is known cannot be read: then the check is denied.
    pub(super) fn decides(&self, asked: Class) -> Result<Class, UnreadablePair> {
        let (least, is_restricted) = self.rule?;
        let class = asked.stricter(least);
        Ok(if is_restricted { class.restricted() } else { class })
    }
}

/// The form of a check that names a template.
///
/// # Errors
///
/// A [`Violation`] of `form` if it is free-form.
pub fn template_form(form: Form) -> Result<Form, Violation> {
    match form {
        Form::Any | Form::Template => Ok(Form::Template),
        Form::FreeForm => {
            let why = "a free-form message is no template: give either the form or the template";
            Err(Violation::new("form", why))
        }
    }
}

impl Checker {
    /// What is known of a template's category. It is looked up before the user's pair: should another
    /// ledger take this one's place in between, that pair is not found either, and the check is denied.
    pub(super) fn known_category(
        &self,
        pairs: TemplatePairs,
        clock: impl Fn() -> Moment,
    ) -> KnownCategory {
        let (least, freshness) = self.tables.least_class(pairs.template);
        let (until, later) = self.tables.restricted_until(pairs.account);
        let freshness = freshness.joined(later);
        let now = clock();
        let clock = freshness.clock(now);
        let is_restricted = until.map(|until| until.is_some_and(|end| clock.earliest < end));
        let rule = least.and_then(|least| is_restricted.map(|restricted| (least, restricted)));
        KnownCategory { rule, freshness, at: clock.latest }
    }

    /// The facts of a user about the class that decides. Where that is another one than was asked for,
    /// what the user opted out of in the category that was asked for denies, too.
    pub(super) fn facts_as(
        &self,
        (pair, former): (Pair, Option<Pair>),
        asked: Category<'_>,
        class: Class,
        at: Timestamp,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        let (facts, freshness) = self.facts(pair, former, asked);
        if class == asked.class {
            return (facts, freshness);
        }
        let (stricter, later) = self.facts(pair, former, Category { class, topic: None });
        let facts = facts.and_then(|asked| stricter.map(|facts| facts.denied_as(&asked, at)));
        (facts, freshness.joined(later))
    }

    /// Checks a request that names a template. Returns also the pair and the moment, for the log.
    ///
    /// # Errors
    ///
    /// [`CheckError`] if no decision was made.
    #[cold]
    #[inline(never)]
    pub(super) fn check_template<'q>(
        &self,
        request: &CheckRequest<'q>,
        template: TemplateName<'q>,
        clock: impl Fn() -> Moment,
    ) -> Result<(ParsedRequest<'q>, CheckResult, Moment), CheckError> {
        let (parsed, pairs) = parse_template(&self.parsing(), request, template)?;
        let ParsedRequest { pair, former, category, .. } = parsed;
        let known = self.known_category(pairs, &clock);
        let decides = known.decides(category.class);
        let class = decides.unwrap_or(Class::Marketing);
        let (facts, later) = self.facts_as((pair, former), category, class, known.at);
        let facts = decides.and(facts);
        let freshness = self.tables.resting_on(known.freshness, later);
        let evaluation = Evaluation::new(self, freshness, clock())?;
        let result = evaluation.result(&facts, parsed.parameters(class));
        let stricter = (class != category.class).then_some(class);
        Ok((parsed, CheckResult { stricter, ..result }, evaluation.now))
    }
}

/// Parses a request that names a template, or returns all of its violations, or that its business is not held.
pub(super) fn parse_template<'q>(
    parsing: &Parsing<'_>,
    request: &CheckRequest<'q>,
    template: TemplateName<'q>,
) -> Result<(ParsedRequest<'q>, TemplatePairs), CheckError> {
    let business = BusinessId::parse(request.business_id);
    let category = Category::parse(request.category);
    // What is wrong with the business is reported once, with what is wrong with the rest of the request.
    let keys = business.as_ref().ok().and_then(|business| parsing.keys.at(*business).ok());
    let pairs = match keys {
        Some(keys) => template.pairs(keys).map(Some),
        None => TemplateId::parse(template.name, template.language).map(|_| None),
    };
    let parsed = ParsedRequest::new(parsing, request, business, category);
    let parsed = match parsed {
        Err(CheckError::Invalid(violations)) => Err(violations),
        // Invalid fields come first: they are the caller's to correct, whichever sidecar is asked.
        Err(error) if pairs.is_ok() => return Err(error),
        Err(_) => Err(Vec::new()),
        Ok(parsed) => Ok(parsed),
    };
    let form = request.form.map_or(Ok(Form::Template), template_form);
    match (parsed, pairs, form) {
        (Ok(parsed), Ok(Some(pairs)), Ok(form)) => Ok((ParsedRequest { form, ..parsed }, pairs)),
        (parsed, pairs, form) => {
            let found = [parsed.err(), pairs.err(), form.err().map(|found| vec![found])];
            Err(CheckError::Invalid(found.into_iter().flatten().flatten().collect()))
        }
    }
}
