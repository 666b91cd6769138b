//! Hints for I/O errors: what an operator can do after the system refused to open a file.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::files;

/// Returns a remedy for this error at `path`, as a clause to append to an error message, or an empty
/// string if there is none. Owners are shown as numbers, like in `ls -n`.
#[must_use]
pub fn hint(path: &Path, error: &Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => format!("; {}", denied(path)),
        ErrorKind::NotFound => match missing_folder(path) {
            Some(folder) => {
                let folder = folder.display();
                format!("; there is no folder {folder}: make it with `mkdir -p {folder}`")
            }
            None => String::new(),
        },
        ErrorKind::ReadOnlyFilesystem => {
            "; nothing can be written there: give a path on a volume that is mounted for writing"
                .to_owned()
        }
        ErrorKind::IsADirectory => "; it is a folder: give a file in it".to_owned(),
        _ if files::is_link_error(error) && files::is_link(path) => {
            format!("; {}", files::link_hint(path))
        }
        _ => String::new(),
    }
}

/// Compares the owner of the inaccessible path with this process' user and group.
fn denied(path: &Path) -> String {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let us = format!("this process runs as uid {uid}, gid {gid}");
    // The obstacle is the file itself or, if that cannot be inspected, its nearest visible parent.
    let folders = path.ancestors().filter(|at| at.parent().is_some()).map(files::folder);
    let mut found = std::iter::once(path).chain(folders);
    let found = found.find_map(|at| Some((at, at.metadata().ok()?)));
    let Some((at, found)) = found else { return us };
    let (owner, group, mode) = (found.uid(), found.gid(), found.mode() & 0o7777);
    let folder = if at == path { "" } else { "the folder " };
    format!(
        "{folder}{} belongs to uid {owner}, gid {group} (mode {mode:04o}), and {us}: run this as \
         its owner, change the owner or the mode, or give another path",
        at.display()
    )
}

/// The file's parent folder, if it does not exist.
fn missing_folder(path: &Path) -> Option<PathBuf> {
    let folder = files::folder(path);
    (!folder.exists()).then(|| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_file_system_is_answered_with_a_volume() {
        // EROFS: what a container with a read-only root gets.
        let error = Error::from_raw_os_error(30);
        let hint = hint(Path::new("consentd.redb"), &error);
        assert!(hint.contains("a path on a volume that is mounted for writing"), "{hint}");
    }
}
