//! The check form: who is answered, and what.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test ends by panicking")]
