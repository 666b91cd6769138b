//! The report of a history that breaks a property.

use std::fmt;

/// What a property forbids.
#[derive(Debug)]
pub struct Violation {
    /// The property, by its number in `tests/simulation.rs`.
    pub property: u32,
    pub why: String,
}

impl Violation {
    pub fn new(property: u32, why: impl Into<String>) -> Self {
        Self { property, why: why.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "property {}: {}", self.property, self.why)
    }
}
