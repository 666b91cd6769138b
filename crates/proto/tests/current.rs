//! The generated code is the one of today's contract.

use std::path::Path;
use std::process::Command;

#[test]
fn the_generated_code_is_current() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generated");
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "consentd-proto", "--example", "generate", "--"])
        .arg(&out)
        .status()
        .expect("Cargo runs the tests");
    assert!(status.success());
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    let names = |folder: &Path| {
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<_> = files.collect();
        names.sort();
        names
    };
    assert_eq!(names(&out), names(&committed));
    for name in names(&out) {
        let is_current = std::fs::read(out.join(&name)).unwrap()
            == std::fs::read(committed.join(&name)).unwrap();
        assert!(is_current, "{name:?}: cargo run --package consentd-proto --example generate");
    }
}
