//! Batches of checks that are looked up together.

use super::{CheckRequest, ParsedRequest};
use crate::table::{KeyDeriver, Pair};
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_core::id::{BusinessId, UserId};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class};

/// The business and the category of the previous request: most requests of a batch share the business,
/// and many the category, which are then parsed once.
#[derive(Default)]
pub(super) struct ParseCache<'q> {
    business: Option<(&'q str, BusinessId<'q>)>,
    category: Option<(&'q str, Category<'q>)>,
}

impl<'q> ParseCache<'q> {
    /// Parses a request, or returns all of its violations.
    pub(super) fn parse(
        &mut self,
        keys: &KeyDeriver,
        request: &CheckRequest<'q>,
    ) -> Result<ParsedRequest<'q>, Vec<Violation>> {
        let business = cached(&mut self.business, request.business_id, BusinessId::parse);
        let category = cached(&mut self.category, request.category, Category::parse);
        ParsedRequest::new(keys, request, business, category)
    }
}

impl<'q> ParsedRequest<'q> {
    /// Parses the rest of a request, whose business and category are parsed already.
    ///
    /// # Errors
    ///
    /// All violations of the request.
    pub(super) fn new(
        keys: &KeyDeriver,
        request: &CheckRequest<'q>,
        business: Result<BusinessId<'q>, Violation>,
        category: Result<Category<'q>, Violation>,
    ) -> Result<Self, Vec<Violation>> {
        let user = UserId::parse(request.user_id);
        match (user, business, category, request.form) {
            (Ok(user), Ok(business), Ok(category), Ok(form)) => {
                let min_revision = request.min_revision;
                Ok(Self::of_user(keys, &user, business, category, form, min_revision))
            }
            (user, business, category, form) => {
                let form = form.err().map(Violation::from);
                let violations = [user.err(), business.err(), category.err(), form];
                Err(violations.into_iter().flatten().collect())
            }
        }
    }

    /// The check of a user whose id was read.
    pub(super) fn of_user(
        keys: &KeyDeriver,
        user: &UserId<'_>,
        business: BusinessId<'_>,
        category: Category<'q>,
        form: Form,
        min_revision: Revision,
    ) -> Self {
        let (pair, former) = (keys.pair(user, business), keys.former_pair(user, business));
        Self { pair, former, category, form, min_revision }
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

/// The requests of a batch in order. An invalid one takes a place among the requests and has no pair.
pub(super) struct Batch<'q, E> {
    pub(super) requests: Vec<Result<(Class, Form, Revision), E>>,
    pub(super) pairs: Vec<Pair>,
    pub(super) categories: Vec<Category<'q>>,
    /// The former pairs of the few requests that have one, by their place among the pairs.
    pub(super) former: Vec<(usize, Pair)>,
}

impl<'q, E> Batch<'q, E> {
    pub(super) fn with_capacity(requests: usize) -> Self {
        Self {
            requests: Vec::with_capacity(requests),
            pairs: Vec::with_capacity(requests),
            categories: Vec::with_capacity(requests),
            former: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, request: &ParsedRequest<'q>) {
        let ParsedRequest { pair, former, category, form, min_revision } = *request;
        self.former.extend(former.map(|former| (self.pairs.len(), former)));
        self.requests.push(Ok((category.class, form, min_revision)));
        self.pairs.push(pair);
        self.categories.push(category);
    }

    pub(super) fn push_invalid(&mut self, error: E) {
        self.requests.push(Err(error));
    }
}
