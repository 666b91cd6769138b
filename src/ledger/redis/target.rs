//! Where a Redis is, and who we are there.

/// Where a Redis is, and who we are there.
#[derive(Clone)]
pub struct Target {
    pub(super) url: String,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Target")
    }
}
