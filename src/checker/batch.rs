//! Batches of checks that are looked up together.

use super::template::{KnownCategory, TemplateName, parse_template};
use super::{CheckError, CheckRequest, Checker, ParsedRequest};
use crate::table::{BusinessKeys, Freshness, KeyDeriver, Pair};
use consentd_core::Violation;
use consentd_core::country_list::CountryList;
use consentd_core::decision::Form;
use consentd_core::id::{BusinessId, UserId};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class};
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// What requests are parsed by.
pub(super) struct Parsing<'a> {
    pub(super) keys: KeyDeriver<'a>,
    /// The countries that get no marketing templates.
    pub(super) blocked: &'a CountryList,
}

/// The parameters of a decision, apart from the pair and the category's topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckParameters {
    pub(super) class: Class,
    pub(super) form: Form,
    pub(super) min_revision: Revision,
    /// Whether it is about marketing to a country that the operator has blocked.
    pub(super) is_barred: bool,
}

/// The business and the category of the previous request: most requests of a batch share the business,
/// and many the category, which are then parsed once.
#[derive(Default)]
pub(super) struct ParseCache<'q> {
    business: Option<(&'q str, BusinessId<'q>)>,
    category: Option<(&'q str, Category<'q>)>,
}

impl<'q> ParseCache<'q> {
    /// Parses a request, or returns why it has no answer.
    pub(super) fn parse(
        &mut self,
        parsing: &Parsing<'_>,
        request: &CheckRequest<'q>,
    ) -> Result<ParsedRequest<'q>, CheckError> {
        let business = cached(&mut self.business, request.business_id, BusinessId::parse);
        let category = cached(&mut self.category, request.category, Category::parse);
        ParsedRequest::new(parsing, request, business, category)
    }
}

impl<'q> ParsedRequest<'q> {
    /// Parses the rest of a request, whose business and category are parsed already.
    ///
    /// # Errors
    ///
    /// All violations of the request, or that its business is not held.
    pub(super) fn new(
        parsing: &Parsing<'_>,
        request: &CheckRequest<'q>,
        business: Result<BusinessId<'q>, Violation>,
        category: Result<Category<'q>, Violation>,
    ) -> Result<Self, CheckError> {
        let user = UserId::parse(request.user_id);
        match (user, business, category, request.form) {
            (Ok(user), Ok(business), Ok(category), Ok(form)) => {
                let (keys, min_revision) = (parsing.keys.at(business)?, request.min_revision);
                Ok(Self::of_user(parsing, &user, keys, category, form, min_revision))
            }
            (user, business, category, form) => {
                let form = form.err().map(Violation::from);
                let violations = [user.err(), business.err(), category.err(), form];
                Err(CheckError::Invalid(violations.into_iter().flatten().collect()))
            }
        }
    }

    /// The check of a user whose id was read, at a business that is held.
    pub(super) fn of_user(
        parsing: &Parsing<'_>,
        user: &UserId<'_>,
        keys: BusinessKeys<'_>,
        category: Category<'q>,
        form: Form,
        min_revision: Revision,
    ) -> Self {
        let (pair, former) = (keys.pair(user), keys.former_pair(user));
        let is_blocked = parsing.blocked.covers(user);
        Self { pair, former, category, form, min_revision, is_blocked }
    }

    /// The parameters of its decision if this class decides.
    pub(super) fn parameters(&self, class: Class) -> CheckParameters {
        let Self { form, min_revision, is_blocked, .. } = *self;
        let is_barred = is_blocked && class == Class::Marketing;
        CheckParameters { class, form, min_revision, is_barred }
    }
}

/// The cached value if the text is the same, or else the parsed one, which is then cached.
fn cached<'q, T: Copy>(
    cache: &mut Option<(&'q str, T)>,
    text: &'q str,
    parse: impl FnOnce(&'q str) -> Result<T, Violation>,
) -> Result<T, Violation> {
    if let Some((known, value)) = *cache
        && known == text
    {
        return Ok(value);
    }
    let value = parse(text)?;
    *cache = Some((text, value));
    Ok(value)
}

/// What is known of the template of the previous request that named one: many requests of a batch name the
/// same.
#[derive(Default)]
pub(super) struct TemplateCache<'q> {
    known: Option<(&'q str, TemplateName<'q>, KnownCategory)>,
}

impl<'q> TemplateCache<'q> {
    /// Parses a request that names a template, and looks up what is known of that; or returns why it has
    /// no answer.
    pub(super) fn parse(
        &mut self,
        checker: &Checker,
        parsing: &Parsing<'_>,
        request: &CheckRequest<'q>,
        template: TemplateName<'q>,
        clock: impl Fn() -> Moment,
    ) -> Result<(ParsedRequest<'q>, KnownCategory), CheckError> {
        let (parsed, pairs) = parse_template(parsing, request, template)?;
        let known = match self.known {
            Some((business, name, known))
                if business == request.business_id && name == template =>
            {
                known
            }
            _ => checker.known_category(pairs, clock),
        };
        self.known = Some((request.business_id, template, known));
        Ok((parsed, known))
    }
}

/// A valid request of a batch.
#[derive(Clone, Copy)]
pub(super) struct BatchItem {
    /// What it asks, with the class that decides.
    pub(super) asked: CheckParameters,
    /// As in [`CheckResult::stricter`](super::CheckResult::stricter).
    pub(super) stricter: Option<Class>,
}

/// A request that another class decides than the one that was asked for, or none.
pub(super) struct TemplateItem<'q> {
    /// Its place among the pairs.
    pub(super) place: usize,
    pub(super) former: Option<Pair>,
    pub(super) asked: Category<'q>,
    /// Whether it could be read what is known of the template.
    pub(super) is_readable: bool,
    /// When that was looked up.
    pub(super) at: Timestamp,
}

/// The requests of a batch in order. An invalid one takes a place among the requests and has no pair.
pub(super) struct Batch<'q, E> {
    pub(super) requests: Vec<Result<BatchItem, E>>,
    pub(super) pairs: Vec<Pair>,
    pub(super) categories: Vec<Category<'q>>,
    /// The former pairs of the few requests that have one, by their place among the pairs.
    pub(super) former: Vec<(usize, Pair)>,
    /// The requests that are decided otherwise than they ask, because of the templates that they name.
    pub(super) templates: Vec<TemplateItem<'q>>,
    /// How current the look-ups of templates were, each with the place of the pair whose answer rests on it.
    pub(super) known: Vec<(usize, Freshness)>,
}

impl<'q, E> Batch<'q, E> {
    pub(super) fn with_capacity(requests: usize) -> Self {
        Self {
            requests: Vec::with_capacity(requests),
            pairs: Vec::with_capacity(requests),
            categories: Vec::with_capacity(requests),
            former: Vec::new(),
            templates: Vec::new(),
            known: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, request: &ParsedRequest<'q>) {
        self.push_as(request, request.category, None);
    }

    /// Adds a request whose template is known to be of a category.
    pub(super) fn push_template(&mut self, request: &ParsedRequest<'q>, known: &KnownCategory) {
        let ParsedRequest { former, category: asked, .. } = *request;
        self.known.push((self.pairs.len(), known.freshness));
        let decides = known.decides(asked.class);
        let class = decides.unwrap_or(Class::Marketing);
        let is_readable = decides.is_ok();
        if class == asked.class && is_readable {
            return self.push_as(request, asked, None);
        }
        let (place, at) = (self.pairs.len(), known.at);
        self.templates.push(TemplateItem { place, former, asked, is_readable, at });
        let stricter = (class != asked.class).then_some(class);
        self.push_as(request, Category { class, topic: None }, stricter);
    }

    fn push_as(
        &mut self,
        request: &ParsedRequest<'q>,
        category: Category<'q>,
        stricter: Option<Class>,
    ) {
        let ParsedRequest { pair, former, .. } = *request;
        self.former.extend(former.map(|former| (self.pairs.len(), former)));
        let asked = request.parameters(category.class);
        self.requests.push(Ok(BatchItem { asked, stricter }));
        self.pairs.push(pair);
        self.categories.push(category);
    }

    pub(super) fn push_invalid(&mut self, error: E) {
        self.requests.push(Err(error));
    }
}
