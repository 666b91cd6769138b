//! Finding what a ledger has left in its folder, to notice that it is missing.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use super::{compact, file_identity, high_water_mark};
use consentd_os::files;

/// The suffixes of the files that a ledger creates next to itself. These are looked up by name.
const COMPANION_SUFFIXES: [&str; 4] =
    ["lock", high_water_mark::SUFFIX, file_identity::RESCUE_SUFFIX, compact::REWRITE_SUFFIX];

/// The most entries of the folder that are searched for other leftovers; about a second's worth.
const MAX_FOLDER_ENTRIES: usize = 1_000_000;

/// Returns the files that a missing or empty ledger at `path` has left in its folder: those whose
/// names start with its name, and progress files of imports. Returns nothing if there is a ledger.
///
/// # Errors
///
/// The folder exists but cannot be read, or has too many entries to search.
pub fn leftover_files(path: &Path) -> Result<Vec<PathBuf>> {
    if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
        return Ok(Vec::new());
    }
    let entries = match fs::read_dir(files::folder(path)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let companions = COMPANION_SUFFIXES.map(|suffix| files::beside(path, suffix));
    let mut found: Vec<_> = companions.into_iter().filter(|path| path.is_file()).collect();
    for (number, entry) in entries.enumerate() {
        if number == MAX_FOLDER_ENTRIES && !found.is_empty() {
            break;
        }
        if number == MAX_FOLDER_ENTRIES {
            return Err(Error::other(format!(
                "its folder has more than {MAX_FOLDER_ENTRIES} entries, too many to see whether a \
                 ledger was here: give the ledger a folder of its own"
            )));
        }
        let entry = entry?;
        let other = entry.file_name();
        let other = other.as_encoded_bytes();
        // Companions, copies and backups: consentd.redb.lock, consentd.redb-old, consentd.redb~.
        let rest = other.strip_prefix(name).and_then(<[u8]>::first);
        let is_its_own = rest.is_some_and(|next| !next.is_ascii_alphanumeric());
        let is_progress = other.ends_with(b".import-progress");
        if (is_its_own || is_progress) && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}
