#![doc = include_str!("../README.md")]
#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

mod address;
mod builder;
mod calls;
mod client;
mod coalesce;
mod error;
mod event;
mod filter;
mod observer;
mod question;
#[cfg(feature = "testing")]
pub mod testing;
mod verdict;
mod watch;

pub use consentd_proto::v1 as pb;
pub use pb::{OptInMethod, Reason};

pub use self::builder::{CHECK_DEADLINE, ClientBuilder};
pub use self::client::{Client, RECORD_DEADLINE};
pub use self::error::{Error, Violation};
pub use self::event::{Event, Evidence, Recorded};
pub use self::filter::{Campaign, Filtered};
pub use self::observer::Observer;
pub use self::question::{Form, Question};
pub use self::verdict::Verdict;
pub use self::watch::{Change, Watch};
