//! Opening a ledger to serve it: the check against the high-water mark, and the rewrite of a file
//! with erased data.

use std::path::Path;

use redb::{Database, ReadableDatabase as _};

use super::high_water_mark::{self, HighWaterMark, LedgerEnd, Verdict};
use super::open::LedgerFile;
use super::open_error::{OpenError, damaged_file, panics_as_damage};
use super::tables::{self, META, storage_error};
use super::{Appender, CompactionReport, Embedded, compact};
use crate::{Epoch, Retention};

/// A ledger that was opened to be served.
pub struct OpenedLedger {
    /// The ledger.
    pub ledger: Embedded,
    /// Its writer.
    pub appender: Appender,
    /// Whether it was created just now, and is empty.
    pub is_new: bool,
    /// The result of rewriting the file, if that was due.
    pub compacted: Option<Result<CompactionReport, OpenError>>,
    /// The file's previous mode, if others could write it and that permission was revoked.
    pub mode_before: Option<u32>,
}

impl Embedded {
    /// Opens the ledger like [`open`](Self::open), to serve it. If something was erased and every
    /// entry that names the erased users has expired, the file is rewritten first.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the file. A failed rewrite is no error: the file stays
    /// as it was, and the next start tries again.
    pub fn open_to_serve(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<OpenedLedger, OpenError> {
        panics_as_damage(path, || {
            let mut file = LedgerFile::open(path, cache_bytes)?;
            let meta = tables::prepare(&file.database, path)?;
            meta.check_keys(path)?;
            check_high_water_mark(path, &file.database, meta.epoch)?;
            let compacted = compact::after_erasure(&mut file, path, retention, cache_bytes)?;
            let LedgerFile { database, identity, is_new, mode_before } = file;
            let (ledger, mut appender) =
                Self::with_database(database, &meta, Some(identity), path, retention)?;
            appender.mark = Some(HighWaterMark::new(path));
            Ok(OpenedLedger { ledger, appender, is_new, compacted, mode_before })
        })
    }
}

/// Refuses a ledger that ends before what was acknowledged.
fn check_high_water_mark(path: &Path, database: &Database, epoch: Epoch) -> Result<(), OpenError> {
    let end = || {
        let transaction = database.begin_read().map_err(storage_error)?;
        let meta = transaction.open_table(META).map_err(storage_error)?;
        let (revision, head) = tables::read_end(&meta)?;
        Ok(LedgerEnd { epoch, revision, head })
    };
    let end = end().map_err(|error| damaged_file(path, error))?;
    let (path, mark) = (path.to_owned(), high_water_mark::path_of(path));
    let verdict = match high_water_mark::compare(&mark, &end) {
        Ok(verdict) => verdict,
        Err(why) => return Err(OpenError::InvalidMark { path, mark, why: why.to_string() }),
    };
    match verdict {
        Verdict::Complete => Ok(()),
        Verdict::Missing(acknowledged) => {
            Err(OpenError::Missing { path, mark, ends: end.revision, acknowledged })
        }
        Verdict::OtherLedger => Err(OpenError::Another { path, mark }),
    }
}
