//! What an operator may set.

use std::collections::BTreeSet;

use super::{CLASSES, Class, HOUR, MINUTE, user_key};

/// What an operator configures.
#[derive(Clone, Debug)]
pub struct Rules {
    pub window: i64,
    pub margin: i64,
    pub window_implies: BTreeSet<Class>,
    pub stale_allow: BTreeSet<Class>,
    /// > `--deny-after-failure` (none by default)
    pub deny_after: BTreeSet<i32>,
    /// > `--marketing-blocked-countries` (none by default): how phone numbers begin
    pub blocked: Vec<String>,
}

impl Default for Rules {
    /// > `window` is 24 h, `margin` 60 s.
    /// > `window_implies` … by default all four
    /// > `stale_allow` (empty by default)
    fn default() -> Self {
        Rules {
            window: 24 * HOUR,
            margin: MINUTE,
            window_implies: CLASSES.iter().map(|(class, _)| *class).collect(),
            stale_allow: BTreeSet::new(),
            deny_after: BTreeSet::new(),
            blocked: Vec::new(),
        }
    }
}

impl Rules {
    /// Whether marketing templates to a user are denied for the country.
    pub fn block(&self, user: &str) -> bool {
        let key = user_key(user).unwrap_or_default();
        let is_phone = key.bytes().all(|byte| byte.is_ascii_digit());
        is_phone && self.blocked.iter().any(|prefix| key.starts_with(prefix.as_str()))
    }
}
