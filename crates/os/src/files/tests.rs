//! The identity of files, conflicting uses, permissions, and locks.

use std::os::unix::fs::symlink;

use super::*;

fn used(flag: &'static str, path: &Path, usage: Usage) -> UsedFile {
    UsedFile { flag, path: path.to_owned(), usage }
}

fn is_same(one: &Path, other: &Path) -> bool {
    Identity::of(one).is_some_and(|one| Identity::of(other) == Some(one))
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn identity_of_links_and_missing_files_is_that_of_their_targets() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("one"), "1").unwrap();
    fs::write(at("two"), "1").unwrap();
    fs::hard_link(at("one"), at("hard")).unwrap();
    symlink("one", at("soft")).unwrap();
    symlink(at("none"), at("dangling")).unwrap();
    symlink("dangling", at("twice")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink(folder.path(), at("folder/up")).unwrap();
    for (one, other, same) in [
        ("one", "hard", true),
        ("one", "soft", true),
        ("one", "folder/../one", true),
        ("one", "folder/up/hard", true),
        ("one", "two", false),
        ("none", "none", true),
        ("none", "dangling", true),
        ("none", "twice", true),
        ("none", "folder/up/none", true),
        ("none", "nothing", false),
        ("one", "none", false),
        ("loop", "loop", false),
        ("missing/a", "missing/a", false),
    ] {
        assert_eq!(is_same(&at(one), &at(other)), same, "{one} and {other}");
    }
}

#[test]
fn check_two_uses_of_one_file_are_refused_unless_harmless() {
    use Usage::{Certificate, Input, Password, Secret, Written};
    let folder = tempfile::tempdir().unwrap();
    let (one, link) = (folder.path().join("one"), folder.path().join("link"));
    fs::write(&one, "").unwrap();
    set_mode(&one, 0o600);
    fs::hard_link(&one, &link).unwrap();
    for (first, second, fine) in [
        (("--a", Written), ("--b", Written), false),
        (("--a", Written), ("--a", Written), false),
        (("--a", Input), ("--b", Written), false),
        (("--a", Secret), ("--b", Secret), false),
        (("--a", Secret), ("--a", Secret), true),
        (("--a", Password), ("--b", Password), true),
        (("--a", Certificate), ("--b", Certificate), true),
        (("--a", Certificate), ("--b", Secret), false),
    ] {
        let files = [used(first.0, &one, first.1), used(second.0, &link, second.1)];
        match check(&files) {
            Ok(()) => assert!(fine, "{files:?}"),
            Err(error) => {
                let said = error.to_string();
                assert!(!fine, "{said}");
                for part in [first.0, second.0, "one", "link", "same file", "path of its own"] {
                    assert!(said.contains(part), "{said}");
                }
            }
        }
    }
}

#[test]
fn check_a_link_a_folder_or_an_open_mode_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "").unwrap();
    symlink("file", &link).unwrap();
    let said = |path: &Path, usage| check(&[used("--a", path, usage)]).unwrap_err().to_string();
    let told = said(&link, Usage::Written);
    assert!(told.contains("symbolic link") && told.contains(file.to_str().unwrap()), "{told}");
    assert!(said(folder.path(), Usage::Written).contains("is a folder"));
    // Secrets are read through links, because container platforms mount them as links.
    set_mode(&file, 0o644);
    assert!(check(&[used("--a", &link, Usage::Secret)]).is_ok());
    for mode in [0o620, 0o602, 0o666] {
        set_mode(&file, mode);
        for usage in [Usage::Secret, Usage::Password, Usage::Certificate] {
            let told = said(&file, usage);
            let parts = [&format!("mode {mode:04o}"), "chmod go-w", "--a", "file"];
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        }
        assert!(check(&[used("--a", &file, Usage::Input)]).is_ok());
        assert!(read_trusted(&file).is_err());
    }
    set_mode(&file, 0o640);
    assert_eq!(read_trusted(&file).unwrap(), "");
    let secret = [used("--a", &file, Usage::Secret)];
    assert_eq!(readable_by_all(&secret).count(), 0);
    set_mode(&file, 0o604);
    assert_eq!(readable_by_all(&secret).next().unwrap().1, 0o604);
}

#[test]
fn take_from_others_leaves_the_owner_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = File::create(&path).unwrap();
    for (mode, then) in [(0o666, 0o644), (0o660, 0o640), (0o602, 0o600)] {
        set_mode(&path, mode);
        assert_eq!(take_from_others(&file).unwrap(), Some(mode));
        assert_eq!(mode_of(&path), then);
        assert_eq!(take_from_others(&file).unwrap(), None);
    }
}

#[test]
fn lock_is_held_once_and_one_left_behind_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    let lock = folder.path().join("table.lock");
    // A lock file that a killed process left, with a mode that lets others write it.
    fs::write(&lock, "").unwrap();
    set_mode(&lock, 0o666);
    let held = Lock::beside(&path).unwrap().expect("nobody has it");
    assert_eq!(mode_of(&lock), 0o644);
    assert!(Lock::beside(&path).unwrap().is_none());
    drop(held);
    assert!(!lock.exists());
    drop(Lock::beside(&path).unwrap().expect("it was given up"));
    // A file that is not a lock is neither locked nor removed, and links are not followed.
    fs::write(&lock, "a letter").unwrap();
    assert!(Lock::beside(&path).unwrap_err().to_string().contains("not empty"));
    fs::rename(&lock, folder.path().join("letter")).unwrap();
    symlink("letter", &lock).unwrap();
    assert!(is_link_error(&Lock::beside(&path).unwrap_err()));
    assert_eq!(fs::read(folder.path().join("letter")).unwrap(), b"a letter");
}
