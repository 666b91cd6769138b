//! Taking away what was erased: a pair's history at once, and then, part by part, the statements
//! that no history refers to any more.

use std::collections::{BTreeMap, BTreeSet};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::history::{Added, HISTORY, Item};
use super::store::{TEXTS, Tables, damaged, failed};
use crate::{LedgerError, codec};
use consentd_core::record::Revision;

/// The digest of a statement that an erased history referred to, to the revision that erased it.
/// The statement stays where any other history refers to it.
pub(super) const DOOMED: TableDefinition<&[u8; 32], u64> = TableDefinition::new("doomed");

/// The name in the meta table of the last revision that erased: what was erased up to there may
/// still be in pages of the file that are free. See [`super::compact`].
pub(super) const ERASED: &str = "erased";

/// How many revisions are looked through at once. In unit tests few, so that others come between.
const MAX_LOOKED_AT: usize = if cfg!(test) { 2 } else { 4_096 };

/// How many statements are looked for at once.
const MAX_DOOMED: usize = 65_536;

/// Removes a pair's history, whose last addition is `last`, at the revision that erases it.
pub(super) fn history(
    tables: &mut Tables<'_>,
    revision: Revision,
    last: Revision,
) -> Result<(), LedgerError> {
    let (mut next, mut before) = (last, Revision::MAX);
    // Each lies before the one that names it.
    while next != 0 && next < before {
        let Some(value) = tables.history.remove(next).map_err(failed)? else { break };
        let value = value.value().to_vec();
        let added = Added::decode(&value).ok_or(damaged("a history entry"))?;
        for digest in added.items.iter().filter_map(statement) {
            tables.doomed.insert(&digest, revision).map_err(failed)?;
        }
        (before, next) = (next, added.previous);
    }
    Ok(())
}

/// The digest of an entry's statement, where it has one.
fn statement(item: &Item<'_>) -> Option<[u8; 32]> {
    match item {
        Item::Kept(entry) => codec::statement_digest_of(entry),
        Item::Perishable(_) | Item::Gone(_) => None,
    }
}

/// Removes statements that no history refers to any more. All histories are looked through for
/// that, a part each time.
#[derive(Default)]
pub(super) struct Reaper(Option<Look>);

/// A look through all histories. What comes to refer to such a statement meanwhile lies behind, and
/// is looked at too: it is the thread that appends which looks.
struct Look {
    doomed: BTreeMap<[u8; 32], Revision>,
    found: BTreeSet<[u8; 32]>,
    next: Revision,
}

impl Reaper {
    /// Goes on; tells whether there may be more to do.
    pub(super) fn step(&mut self, database: &Database) -> Result<bool, LedgerError> {
        let transaction = database.begin_read().map_err(failed)?;
        let Some(look) = &mut self.0 else {
            let doomed = transaction.open_table(DOOMED).map_err(failed)?;
            let some = doomed.iter().map_err(failed)?.take(MAX_DOOMED).map(|row| {
                let (digest, revision) = row.map_err(failed)?;
                Ok((*digest.value(), revision.value()))
            });
            let doomed = some.collect::<Result<BTreeMap<_, _>, LedgerError>>()?;
            if !doomed.is_empty() {
                self.0 = Some(Look { doomed, found: BTreeSet::new(), next: 0 });
            }
            return Ok(self.0.is_some());
        };
        let histories = transaction.open_table(HISTORY).map_err(failed)?;
        let mut looked_at = 0;
        for row in histories.range(look.next..).map_err(failed)?.take(MAX_LOOKED_AT) {
            let (revision, value) = row.map_err(failed)?;
            (looked_at, look.next) = (looked_at + 1, revision.value().saturating_add(1));
            let added = Added::decode(value.value()).ok_or(damaged("a history entry"))?;
            let theirs = added.items.iter().filter_map(statement);
            look.found.extend(theirs.filter(|digest| look.doomed.contains_key(digest)));
        }
        if looked_at < MAX_LOOKED_AT
            && let Some(look) = self.0.take()
        {
            look.finish(database)?;
        }
        Ok(true)
    }
}

impl Look {
    /// Removes those that were not found. One that another erase has doomed since it was found is
    /// left to the next look.
    fn finish(self, database: &Database) -> Result<(), LedgerError> {
        let transaction = database.begin_write().map_err(failed)?;
        {
            let mut doomed = transaction.open_table(DOOMED).map_err(failed)?;
            let mut texts = transaction.open_table(TEXTS).map_err(failed)?;
            for (digest, revision) in self.doomed {
                let now = doomed.get(&digest).map_err(failed)?.map(|value| value.value());
                if now != Some(revision) {
                    continue;
                }
                doomed.remove(&digest).map_err(failed)?;
                if !self.found.contains(&digest) {
                    texts.remove(&digest).map_err(failed)?;
                }
            }
        }
        transaction.commit().map_err(failed)
    }
}

/// Notes in the meta table that something was erased.
pub(super) fn note(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    revision: Revision,
) -> Result<(), LedgerError> {
    meta.insert(ERASED, &revision.to_be_bytes()[..]).map_err(failed)?;
    Ok(())
}
