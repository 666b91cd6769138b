//! Host names that cannot be resolved, in a network of their own where DNS is what the test says.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sidecar::BINARY;

/// Runs a command in namespaces whose only DNS server is at 127.0.0.1: one that never answers, or none.
const NAMESPACE: &str = r#"
import fcntl, socket, struct, subprocess, sys
kind, folder, *command = sys.argv[1:]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# The loopback interface, which a new namespace leaves down: SIOCSIFFLAGS with IFF_UP and IFF_RUNNING.
fcntl.ioctl(udp, 0x8914, struct.pack("16sH14x", b"lo", 0x41))
if kind == "silent":
    udp.bind(("127.0.0.1", 53))
for name in ("resolv.conf", "nsswitch.conf"):
    subprocess.run(["mount", "--bind", f"{folder}/{name}", f"/etc/{name}"], check=True)
sys.exit(subprocess.run(command, stdin=subprocess.DEVNULL).returncode)
"#;

/// What a command says where the DNS server never answers, or is not there.
fn run_with_dns(kind: &str, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    fs::write(folder.path().join("nsswitch.conf"), "hosts: files dns\n").unwrap();
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount", "python3", "-c", NAMESPACE, kind]);
    let output = command.arg(folder.path()).arg(BINARY).args(arguments).output();
    let output = output.expect("unshare is needed: apt-get install util-linux");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

const CHECK: [&str; 8] = [
    "check",
    "15550100001",
    "acme",
    "marketing",
    "--addr",
    "sidecar.test:50051",
    "--timeout",
    "1s",
];
const LEDGER: [&str; 4] = ["ledger", "status", "--ledger", "redis://redis.test:6379"];

#[test]
fn name_that_no_server_resolves_in_time_is_named() {
    let began = Instant::now();
    let said = run_with_dns("silent", &CHECK);
    assert!(said.contains("the host name sidecar.test was not resolved within 1s"), "{said}");
    // The system's resolver goes on for ten seconds, and cannot be stopped.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let said = run_with_dns("silent", &LEDGER);
    assert!(said.contains("redis.test:6379 was not resolved within"), "{said}");
}

#[test]
fn name_that_cannot_be_resolved_is_named() {
    let said = run_with_dns("none", &CHECK);
    assert!(said.contains("the host name sidecar.test cannot be resolved"), "{said}");
    let said = run_with_dns("none", &LEDGER);
    assert!(said.contains("redis.test:6379 cannot be resolved"), "{said}");
}
