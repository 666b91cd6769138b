//! What the page looks like, in every state that it can be seen in.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test ends by panicking")]
