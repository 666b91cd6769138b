//! What consentd asks of the operating system, so that everything else gets it as a parameter:
//! clocks, and files.

pub mod access;
pub mod clock;
pub mod files;
