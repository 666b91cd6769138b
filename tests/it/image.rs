//! The archive of the image, whose tests are in Python beside what writes it.

use std::path::Path;
use std::process::Command;

#[test]
fn image_archive_is_reproducible_and_holds_what_it_says() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image/test.py");
    let output = Command::new("python3").arg(tests).output().expect("python3 is needed");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("Ran 7 tests"), "{printed}");
}
