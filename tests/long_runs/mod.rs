//! What the programs share that play for as long as they are told to: the tests' parts that both
//! use, and how arguments are read and the runtime is started.

#[path = "../it/faults/redis.rs"]
pub mod redis;
#[path = "../it/faults/resp.rs"]
pub mod resp;
#[path = "../it/rng.rs"]
pub mod rng;
#[path = "../servers/mod.rs"]
pub mod servers;
#[path = "../it/sidecar.rs"]
pub mod sidecar;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::str::FromStr;

/// Runs a future on a runtime of two threads.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(future)
}

/// Plays with the options that are given; as a test with a filter for other tests it does nothing.
pub fn play<F: Future<Output = ExitCode>>(
    name: &str,
    valued: &[&str],
    play: impl FnOnce(Options) -> F,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::read(name, valued, &arguments) else {
        println!("{name}: other tests were asked for");
        return ExitCode::SUCCESS;
    };
    block_on(play(options))
}

/// The options of a command line, such as `--seconds 600 --keep`.
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Reads them; the names in `valued` have a value. Flags of the test harness, which cargo
    /// passes on, are passed over. Nothing where cargo passes on a filter for other tests.
    fn read(name: &str, valued: &[&str], arguments: &[String]) -> Option<Self> {
        let mut options = BTreeMap::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if let Some(flag) = argument.strip_prefix("--") {
                let value = if valued.contains(&flag) {
                    arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"))
                } else {
                    ""
                };
                options.insert(flag.to_owned(), value.to_owned());
            } else if !name.contains(argument.as_str()) {
                return None;
            }
        }
        Some(Self(options))
    }

    /// Whether a flag was given.
    pub fn has(&self, flag: &str) -> bool {
        self.0.contains_key(flag)
    }

    /// An option's value.
    pub fn text(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).map(String::as_str)
    }

    /// An option's number, or this one.
    pub fn number<T: FromStr>(&self, flag: &str, otherwise: T) -> T {
        let parse = |text: &str| text.parse().ok();
        self.text(flag).map_or(otherwise, |text| {
            parse(text).unwrap_or_else(|| panic!("--{flag} is {text:?}; it must be a number"))
        })
    }
}
