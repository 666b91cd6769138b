//! What is asked: read one by one, and kept for many to be decided together.

use super::CheckRequest;
use crate::table::{KeyDeriver, Pair};
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_core::id::{BusinessId, UserId};
use consentd_core::scope::{Category, Class};

/// What the question before was about: most questions of a batch share their business, and many
/// their category, which are read once then.
#[derive(Default)]
pub(super) struct ParseCache<'q> {
    business: Option<(&'q str, BusinessId<'q>)>,
    category: Option<(&'q str, Category<'q>)>,
}

impl<'q> ParseCache<'q> {
    /// The pair and the category of a question.
    pub(super) fn read(
        &mut self,
        keys: &KeyDeriver,
        question: &CheckRequest<'q>,
    ) -> Result<(Pair, Category<'q>), Vec<Violation>> {
        let user = UserId::parse(question.user_id);
        let business = again(&mut self.business, question.business_id, BusinessId::parse);
        let category = again(&mut self.category, question.category, Category::parse);
        match (user, business, category) {
            (Ok(user), Ok(business), Ok(category)) => Ok((keys.pair(&user, business), category)),
            (user, business, category) => {
                let found = [user.err(), business.err(), category.err()];
                Err(found.into_iter().flatten().collect())
            }
        }
    }
}

/// What a text was read as before, or is read as now.
fn again<'q, T: Copy>(
    before: &mut Option<(&'q str, T)>,
    text: &'q str,
    parse: impl FnOnce(&'q str) -> Result<T, Violation>,
) -> Result<T, Violation> {
    if let Some((same, read)) = *before
        && same == text
    {
        return Ok(read);
    }
    let read = parse(text)?;
    *before = Some((text, read));
    Ok(read)
}

/// What is to be decided together; what is wrong with a question keeps its place.
pub(super) struct Batch<'q, E> {
    pub(super) asked: Vec<Result<(Class, Form), E>>,
    pub(super) pairs: Vec<Pair>,
    pub(super) categories: Vec<Category<'q>>,
}

impl<'q, E> Batch<'q, E> {
    pub(super) fn with_capacity(questions: usize) -> Self {
        Self {
            asked: Vec::with_capacity(questions),
            pairs: Vec::with_capacity(questions),
            categories: Vec::with_capacity(questions),
        }
    }

    pub(super) fn ask(&mut self, pair: Pair, category: Category<'q>, form: Form) {
        self.asked.push(Ok((category.class, form)));
        self.pairs.push(pair);
        self.categories.push(category);
    }

    pub(super) fn refuse(&mut self, why: E) {
        self.asked.push(Err(why));
    }
}
